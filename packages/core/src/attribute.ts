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
 * Known attribute names as literal keys: V8 creates such an object in one step; computed keys (`[semconv.URL_PATH]`) cost one
 * each, and make later additions slow: 0.8 µs a span. `satisfies NamedAttributes` has the compiler check each key.
 */
export type NamedAttributes = {
  readonly [Name in (typeof semconv)[keyof typeof semconv]]?: AttributeValue | undefined
}

type Writable<Value> = { -readonly [Name in keyof NamedAttributes]: Value }

/** How often V8 looks at what a constructor makes, before it knows how many names that has at most. */
const TIMES_WATCHED = 8

/**
 * A constructor of plain objects that begin with what `fill` writes, and have room for `later` as well. An object of a literal has
 * room for the names written there alone: what comes later is in a second object, and from the fourth on in a third one. Saves 7 of
 * 18 ns for the attributes of a request, 40 bytes, and a line of the cache when they are encoded.
 */
export function roomFor<Given extends unknown[]>(
  fill: (this: Writable<AttributeValue | undefined>, ...given: Given) => void,
  later: NamedAttributes,
): new (...given: Given) => Attributes {
  fill.prototype = Object.prototype
  const made = fill as unknown as new (...given: unknown[]) => Attributes
  for (let time = 0; time < TIMES_WATCHED; time++) Object.assign(new made(), later)
  return made
}

/** Writes one or two attributes into a span's, under names written out in its body. */
export type NamedWriter = (
  into: Writable<AttributeValue>,
  first: AttributeValue,
  second: AttributeValue | undefined,
) => void

/** `__proto__` is a valid name too, which an assignment would treat specially. */
export function putAttribute(into: Attributes, key: string, value: AttributeValue): void {
  if (key !== '__proto__') into[key] = value
  else Object.defineProperty(into, key, { value, writable: true, enumerable: true, configurable: true })
}

/**
 * Whether key and value form a valid attribute (OpenTelemetry common specification, attribute and AnyValue): a string, number
 * or boolean, bytes, or a list or a record of such values, nested or not.
 */
export function isAttribute(key: unknown, value: unknown): value is AttributeValue {
  return isName(key) && kept(value, Infinity) !== undefined
}

/** A name is any string but an empty one. */
export function isName(key: unknown): key is string {
  return typeof key === 'string' && key !== ''
}

/** Whether a value is a plain object, of whichever realm: not a list, RegExp, Map, or instance of any other class. */
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
 * The value as a span keeps it: strings and bytes cut to the limit, lists and records copied, since the caller may change its
 * own later. Undefined for an invalid value, such as a function, a Map, or a list that contains itself.
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
  /** The lists and records around the current one. */
  readonly within: object[]
}

/** Undefined for an invalid value; null, exported as empty, for one nested too deep. */
function copied(value: object, copying: Copying): unknown {
  const { lengthLimit, within } = copying
  // Of whichever realm. A Buffer's `slice` would share its memory.
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
  // Pushing would leave room for 16 more elements: 128 bytes.
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
  // Of what is cut no keys are asked: a list that holds one large record a thousand times would cost half a minute.
  if (copying.valuesLeft < 0) return copy
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

/** Counts characters (common specification, attribute limits): one that takes two UTF-16 units counts once. */
function cut(text: string, limit: number): string {
  if (text.length <= limit) return text
  let at = 0
  for (let count = 0; count < limit && at < text.length; count++)
    at += (text.codePointAt(at) as number) > LAST_OF_ONE_UNIT ? 2 : 1
  return at < text.length ? text.slice(0, at) : text
}

const LAST_OF_ONE_UNIT = 0xffff

/**
 * A copy of attributes that are all strings, numbers and booleans, as nearly always; undefined if any other must be checked, or
 * reading threw. A clone is half the size of an object built key by key, in a third of the time.
 */
export function plainCopy(given: Attributes): Attributes | undefined {
  // The characters of a string are not attributes.
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

/** A deep copy of the valid attributes. */
export function soundCopy(given: Attributes | undefined): Attributes {
  if (typeof given !== 'object' || given === null) return {}
  return plainCopy(given) ?? limitedAttributes(given, Infinity, Infinity).attributes
}

/** The valid attributes of an event or a link within their limits, and how many the count limit dropped. */
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

/** Reports an invalid attribute with an example of a valid one; undefined and null are silently left out. */
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

/** A value that throws when read is lost with those after it; the app never sees the error (trace API, error handling). */
export function sayUnreadable(of: string, error: unknown): void {
  reportOnce(`unreadable:${of}`, 'warn', `left out, since to read it threw: ${of}`, error)
}

/** A name as a string, whatever JavaScript callers pass: with any other type the encoder would lose the whole span. */
export function textOf(name: unknown): string {
  return typeof name === 'string' ? name : asText(name)
}

// A separate function, so that `textOf` stays small enough for V8 to inline.
function asText(name: unknown): string {
  try {
    return String(name)
  } catch {
    return ''
  }
}
