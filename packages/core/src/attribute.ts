import type { Attributes, AttributeValue } from '@opentelemetry/api'
import { reportOnce } from './report.ts'
import type * as semconv from './semconv.ts'

/** Arrays and objects nested deeper than this are exported as empty values: an attribute may be cyclic. */
export const DEPTH_LIMIT = 64

/**
 * An attribute's array or object is cut after this many values, nested ones included. Depth alone bounds
 * nothing: `a = [a, a]` holds 2^64 values at depth 64, and a sparse array may claim billions.
 */
export const VALUES_LIMIT = 65_536

/**
 * Attributes under names of the conventions that we know, for a literal with the keys written out: V8 makes that in one
 * step, where keys that are computed (`[semconv.URL_PATH]`) cost a step each, and a slow one for every attribute that is
 * set later: 0.8 µs a span. `satisfies NamedAttributes` has the compiler check each key.
 */
export type NamedAttributes = {
  readonly [Name in (typeof semconv)[keyof typeof semconv]]?: AttributeValue | undefined
}

/** Writes one attribute or two, under names that are written out in it, into those of a span. */
export type NamedWriter = (
  into: { -readonly [Name in keyof NamedAttributes]: AttributeValue },
  first: AttributeValue,
  second: AttributeValue | undefined,
) => void

/** Any text but an empty one is a name: `__proto__`, too, which an assignment would take for something else. */
export function putAttribute(into: Attributes, key: string, value: AttributeValue): void {
  if (key !== '__proto__') into[key] = value
  else Object.defineProperty(into, key, { value, writable: true, enumerable: true, configurable: true })
}

/** What an attribute may be (OpenTelemetry common specification, attribute): text, number, boolean, or arrays of one of them. */
export function isAttribute(key: unknown, value: unknown): value is AttributeValue {
  if (typeof key !== 'string' || key === '') return false
  return isPrimitive(value) || (Array.isArray(value) && isUniform(value))
}

/**
 * Whether a value is an object as it is written in code, of whichever realm: a record of values, and no RegExp, Map or list, nor
 * an instance of anything else that has its own way to be text.
 */
export function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

export function isPrimitive(value: unknown): boolean {
  const type = typeof value
  return type === 'string' || type === 'number' || type === 'boolean'
}

function isUniform(values: unknown[]): boolean {
  const read = values.length > VALUES_LIMIT ? values.slice(0, VALUES_LIMIT) : values
  const first = read.find((value) => value !== null && value !== undefined)
  if (first !== undefined && !isPrimitive(first)) return false
  return read.every((value) => value === null || value === undefined || typeof value === typeof first)
}

/** The value as a span keeps it: texts within the limit, and arrays as copies, since the caller may go on to change its own. */
export function limited(value: AttributeValue, lengthLimit: number): AttributeValue {
  if (typeof value === 'string') return cut(value, lengthLimit)
  if (!Array.isArray(value)) return value
  const copy = value.slice(0, VALUES_LIMIT) as (string | null)[]
  if (lengthLimit === Infinity) return copy
  return copy.map((element) => (typeof element === 'string' ? cut(element, lengthLimit) : element))
}

/** Any character counts as one (common specification, attribute limits), also where it takes two units of JavaScript. */
function cut(text: string, limit: number): string {
  if (text.length <= limit) return text
  let at = 0
  for (let count = 0; count < limit && at < text.length; count++)
    at += (text.codePointAt(at) as number) > LAST_OF_ONE_UNIT ? 2 : 1
  return at < text.length ? text.slice(0, at) : text
}

const LAST_OF_ONE_UNIT = 0xffff

/**
 * A copy of attributes that are texts, numbers and booleans, as nearly all are; undefined where one has to be looked at, or
 * cannot be read. A clone is half the size of an object to which the same keys are added one by one, in a third of the
 * time.
 */
export function plainCopy(given: Attributes): Attributes | undefined {
  // The characters of a text are no attributes.
  if (typeof given !== 'object') return undefined
  try {
    const copy = { ...given }
    for (const key in copy) {
      if (key === '' || !isPrimitive(copy[key])) return undefined
    }
    return copy
  } catch {
    return undefined
  }
}

/** A copy, lists and all, of those attributes that are any. */
export function soundCopy(given: Attributes | undefined): Attributes {
  if (typeof given !== 'object' || given === null) return {}
  return plainCopy(given) ?? limitedAttributes(given, Infinity, Infinity).attributes
}

/** Attributes of an event or a link within their limits, and how many the first limit cost. */
export function limitedAttributes(
  given: Attributes,
  countLimit: number,
  lengthLimit: number,
): { attributes: Attributes; dropped: number } {
  const attributes: Attributes = {}
  let kept = 0
  let dropped = 0
  try {
    for (const key of Object.keys(given)) {
      const value = given[key]
      if (!isAttribute(key, value)) {
        sayNoAttribute(key, value)
        continue
      }
      if (kept < countLimit) {
        kept += 1
        putAttribute(attributes, key, limited(value, lengthLimit))
      } else dropped += 1
    }
  } catch (error) {
    sayUnreadable('attributes', error)
  }
  return { attributes, dropped }
}

/** Says what is wrong with it, and how it is done where it was given; nothing is wrong with one that is not there. */
export function sayNoAttribute(
  key: unknown,
  value: unknown,
  example = "span.setAttribute('order.id', 'A-7')",
): void {
  if (value === undefined || value === null) return
  const name = textOf(key)
  const received = Array.isArray(value) ? 'an array of others or of several kinds' : typeof value
  let wrong = `expected a string, number, boolean or an array of one of them, received ${received} for "${name}"`
  if (typeof key !== 'string' || key === '')
    wrong = `expected a name of one character or more, received "${name}"`
  reportOnce(`attribute:${name}`, 'warn', `an attribute was not recorded: ${wrong}; for example ${example}`)
}

/** Values that throw when they are read cost themselves and what comes after them, never the app (trace API, error handling). */
export function sayUnreadable(of: string, error: unknown): void {
  reportOnce(`unreadable:${of}`, 'warn', `left out, since to read it threw: ${of}`, error)
}

/** A name as text, whatever JavaScript callers hand over: one that is none would cost the encoder the whole span. */
export function textOf(name: unknown): string {
  if (typeof name === 'string') return name
  try {
    return String(name)
  } catch {
    return ''
  }
}
