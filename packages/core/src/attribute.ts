import type { Attributes, AttributeValue } from '@opentelemetry/api'
import { isUint8Array } from 'node:util/types'
import { reportOnce, shownName } from './report.ts'
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

/**
 * What an attribute may be (OpenTelemetry common specification, attribute and AnyValue): a text, number or boolean, bytes, or a
 * list or a record of those, of lists and of records.
 */
export function isAttribute(key: unknown, value: unknown): value is AttributeValue {
  return isName(key) && kept(value, Infinity) !== undefined
}

/** Any text but an empty one. */
export function isName(key: unknown): key is string {
  return typeof key === 'string' && key !== ''
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

/**
 * The value as a span keeps it: texts and bytes within the limit, lists and records as copies, since the caller may go on to
 * change its own. Undefined for what is no attribute, as a function, a Map, or a list within itself.
 */
export function kept(value: unknown, lengthLimit: number): AttributeValue | undefined {
  if (typeof value === 'string') return cut(value, lengthLimit)
  if (isPrimitive(value)) return value as AttributeValue
  if (typeof value !== 'object' || value === null) return undefined
  const copying = { lengthLimit, valuesLeft: VALUES_LIMIT, within: [] }
  const copy = copied(value, copying) as AttributeValue | undefined
  if (copying.valuesLeft < 0) sayCut()
  return copy
}

function sayCut(): void {
  const message = `an attribute holds more than ${VALUES_LIMIT} values, and was cut there`
  reportOnce('attribute cut', 'warn', message)
}

interface Copying {
  readonly lengthLimit: number
  valuesLeft: number
  /** The lists and records that the one at hand is in. */
  readonly within: object[]
}

/** Undefined for what is no value of an attribute. What is nested too deep is none either, and leaves an empty value. */
function copied(value: object, copying: Copying): unknown {
  const { lengthLimit, within } = copying
  // Of whichever realm; a Buffer's own `slice` would share its memory.
  if (isUint8Array(value))
    return new Uint8Array(value.length > lengthLimit ? value.subarray(0, lengthLimit) : value)
  const isList = Array.isArray(value)
  if (within.includes(value) || (!isList && !isPlain(value))) return undefined
  if (within.length > DEPTH_LIMIT) return null
  within.push(value)
  const copy = isList ? copiedList(value, copying) : copiedRecord(value as Record<string, unknown>, copying)
  within.pop()
  return copy
}

function copiedList(list: readonly unknown[], copying: Copying): unknown[] | undefined {
  const count = Math.min(list.length, Math.max(0, copying.valuesLeft))
  // To push each into a list would leave room for 16 more: 128 bytes.
  // oxlint-disable-next-line unicorn/no-new-array -- as long as it is to be, and not filled twice
  const copy = new Array<unknown>(count)
  copying.valuesLeft -= list.length
  for (let index = 0; index < count; index++) {
    const item = list[index]
    const own = copiedItem(item, copying)
    if (own === undefined && item !== undefined) return undefined
    copy[index] = own
  }
  return copy
}

function copiedRecord(record: Record<string, unknown>, copying: Copying): Attributes | undefined {
  const copy: Attributes = {}
  for (const key of Object.keys(record)) {
    if (copying.valuesLeft-- <= 0) break
    const item = record[key]
    if (item === undefined) continue
    const own = copiedItem(item, copying)
    if (own === undefined) return undefined
    putAttribute(copy, key, own as AttributeValue)
  }
  return copy
}

function copiedItem(item: unknown, copying: Copying): unknown {
  if (typeof item === 'string') return cut(item, copying.lengthLimit)
  if (isPrimitive(item) || item === null) return item
  return typeof item === 'object' ? copied(item, copying) : undefined
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
  let count = 0
  let dropped = 0
  try {
    for (const key of Object.keys(given)) {
      const value = given[key]
      const own = isName(key) ? kept(value, lengthLimit) : undefined
      if (own === undefined) {
        sayNoAttribute(key, value)
        continue
      }
      if (count < countLimit) {
        count += 1
        putAttribute(attributes, key, own)
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
  const name = shownName(textOf(key))
  let wrong = `expected a string, number, boolean, bytes, or a list or a plain object of such values, received ${kindOf(value)} for "${name}"`
  if (typeof key !== 'string' || key === '')
    wrong = `expected a name of one character or more, received "${name}"`
  reportOnce(`attribute:${name}`, 'warn', `an attribute was not recorded: ${wrong}; for example ${example}`)
}

function kindOf(value: unknown): string {
  if (Array.isArray(value)) return 'a list that holds something else, or itself'
  if (isPlain(value)) return 'an object that holds something else, or itself'
  return typeof value === 'object' ? Object.prototype.toString.call(value) : typeof value
}

/** Values that throw when they are read cost themselves and what comes after them, never the app (trace API, error handling). */
export function sayUnreadable(of: string, error: unknown): void {
  reportOnce(`unreadable:${of}`, 'warn', `left out, since to read it threw: ${of}`, error)
}

/** A name as text, whatever JavaScript callers hand over: one that is none would cost the encoder the whole span. */
export function textOf(name: unknown): string {
  return typeof name === 'string' ? name : asText(name)
}

// Apart, so that the question above is small enough to be inlined wherever it is asked.
function asText(name: unknown): string {
  try {
    return String(name)
  } catch {
    return ''
  }
}
