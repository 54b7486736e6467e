import { reasonOf } from './options.ts'
import { decodeRequest } from './protobuf.ts'
import { spanKinds, statusCodes } from './span.ts'
import type { Attributes, AttributeValue, Resource, Scope, Span, SpanEvent, SpanLink } from './span.ts'

/** An object out of a request: OTLP/JSON's own, or protobufjs' with the same keys. */
type Raw = Record<string, unknown>

/** protobufjs refuses deeper messages too; without a limit a few kilobytes of `[[[[` exhaust the stack. */
const maxDepth = 100

/** JSON.parse rounds integers beyond 2^53; these are the keys that may hold such ones, to be read as strings. */
const longInteger =
  /"(startTimeUnixNano|endTimeUnixNano|timeUnixNano|intValue)"\s*:\s*(-?\d{16,})(?![\d.eE])/g

/**
 * The spans of an ExportTraceServiceRequest in OTLP/JSON. Throws an Error whose message says which field is wrong,
 * what was expected and what was received. (opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding)
 */
export function spansFromJson(body: Uint8Array): Span[] {
  const text = new TextDecoder('utf-8', { fatal: true }).decode(body)
  return requestSpans(JSON.parse(text.replace(longInteger, '"$1":"$2"')))
}

/** The same of an ExportTraceServiceRequest in protobuf. */
export function spansFromProtobuf(body: Uint8Array): Span[] {
  return requestSpans(decodeRequest(body))
}

function requestSpans(value: unknown): Span[] {
  if (!isRecord(value)) throw wrong('the request', 'an object with resourceSpans', value)
  return list(value, 'resourceSpans', (resourceSpans) => {
    const resource = readResource(resourceSpans)
    return list(resourceSpans, 'scopeSpans', (scopeSpans) => {
      const scope = readScope(scopeSpans)
      return list(scopeSpans, 'spans', (span) => readSpan(span, resource, scope))
    })
  }).flat(2)
}

function readResource(raw: Raw): Resource {
  const resource = record(raw, 'resource')
  return {
    attributes: attributes(resource),
    droppedAttributesCount: uint32(resource, 'droppedAttributesCount'),
    schemaUrl: string(raw, 'schemaUrl'),
  }
}

function readScope(raw: Raw): Scope {
  const scope = record(raw, 'scope')
  return {
    name: string(scope, 'name'),
    version: string(scope, 'version'),
    attributes: attributes(scope),
    droppedAttributesCount: uint32(scope, 'droppedAttributesCount'),
    schemaUrl: string(raw, 'schemaUrl'),
  }
}

function readSpan(raw: Raw, resource: Resource, scope: Scope): Span {
  const serviceName = resource.attributes['service.name']
  const status = record(raw, 'status')
  return {
    traceId: id(raw, 'traceId', 16),
    spanId: id(raw, 'spanId', 8),
    parentSpanId: parentId(raw),
    name: string(raw, 'name'),
    kind: spanKinds[enumeration(raw, 'kind')] ?? 'unspecified',
    startTimeUnixNano: fixed64(raw, 'startTimeUnixNano'),
    endTimeUnixNano: fixed64(raw, 'endTimeUnixNano'),
    attributes: attributes(raw),
    events: list(raw, 'events', readEvent),
    links: list(raw, 'links', readLink),
    status: {
      code: statusCodes[enumeration(status, 'code')] ?? 'unset',
      message: string(status, 'message'),
    },
    traceState: string(raw, 'traceState'),
    flags: uint32(raw, 'flags'),
    droppedAttributesCount: uint32(raw, 'droppedAttributesCount'),
    droppedEventsCount: uint32(raw, 'droppedEventsCount'),
    droppedLinksCount: uint32(raw, 'droppedLinksCount'),
    serviceName: typeof serviceName === 'string' && serviceName ? serviceName : 'unknown_service',
    resource,
    scope,
  }
}

function readEvent(raw: Raw): SpanEvent {
  return {
    timeUnixNano: fixed64(raw, 'timeUnixNano'),
    name: string(raw, 'name'),
    attributes: attributes(raw),
    droppedAttributesCount: uint32(raw, 'droppedAttributesCount'),
  }
}

function readLink(raw: Raw): SpanLink {
  return {
    traceId: id(raw, 'traceId', 16),
    spanId: id(raw, 'spanId', 8),
    traceState: string(raw, 'traceState'),
    attributes: attributes(raw),
    droppedAttributesCount: uint32(raw, 'droppedAttributesCount'),
    flags: uint32(raw, 'flags'),
  }
}

function attributes(raw: Raw): Attributes {
  return keyValues(raw, 'attributes', 0)
}

/** fromEntries defines the keys, so that one called `__proto__` is a key like any other. */
function keyValues(raw: Raw, key: string, depth: number): Attributes {
  return Object.fromEntries(
    list(raw, key, (entry) => [string(entry, 'key'), anyValue(record(entry, 'value'), depth)]),
  )
}

function anyValue(raw: Raw, depth: number): AttributeValue {
  if (depth > maxDepth)
    throw new Error(`value: expected at most ${maxDepth} levels of nesting, received more`)
  if (has(raw, 'stringValue')) return string(raw, 'stringValue')
  if (has(raw, 'boolValue')) return boolean(raw, 'boolValue')
  if (has(raw, 'intValue')) return int(raw, 'intValue')
  if (has(raw, 'doubleValue')) return double(raw, 'doubleValue')
  if (has(raw, 'bytesValue')) return bytes(raw, 'bytesValue')
  if (has(raw, 'kvlistValue')) return keyValues(record(raw, 'kvlistValue'), 'values', depth + 1)
  if (!has(raw, 'arrayValue')) return null
  return list(record(raw, 'arrayValue'), 'values', (item) => anyValue(item, depth + 1))
}

/**
 * A number where a number is exact, or where nothing is: the official JSON exporter writes 1e300 as an intValue,
 * which is not worth refusing a whole request.
 */
function int(raw: Raw, key: string): number | bigint {
  const value = get(raw, key)
  if (typeof value === 'number' && Number.isInteger(value)) return value
  const integral = integer(raw, key)
  const number = Number(integral)
  const isInt64 = BigInt.asIntN(64, integral) === integral
  return Number.isSafeInteger(number) || !isInt64 ? number : integral
}

/**
 * The field as it is on the wire: only own properties (protobufjs keeps the defaults of absent fields on the
 * prototype), and null is absent, as in all of protobuf's JSON.
 */
function get(raw: Raw, key: string): unknown {
  return Object.hasOwn(raw, key) ? (raw[key] ?? undefined) : undefined
}

function has(raw: Raw, key: string): boolean {
  return get(raw, key) !== undefined
}

function isRecord(value: unknown): value is Raw {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function record(raw: Raw, key: string): Raw {
  const value = get(raw, key) ?? {}
  if (!isRecord(value)) throw wrong(key, 'an object', value)
  return value
}

function list<T>(raw: Raw, key: string, read: (item: Raw) => T): T[] {
  const value = get(raw, key) ?? []
  if (!Array.isArray(value)) throw wrong(key, 'an array', value)
  return value.map((item: unknown, index) => {
    if (!isRecord(item)) throw wrong(`${key}[${index}]`, 'an object', item)
    try {
      return read(item)
    } catch (error) {
      throw new Error(`${key}[${index}].${reasonOf(error)}`, { cause: error })
    }
  })
}

function string(raw: Raw, key: string): string {
  const value = get(raw, key) ?? ''
  if (typeof value !== 'string') throw wrong(key, 'a string', value)
  return value
}

function boolean(raw: Raw, key: string): boolean {
  const value = get(raw, key)
  if (typeof value !== 'boolean') throw wrong(key, 'true or false', value)
  return value
}

function double(raw: Raw, key: string): number {
  const value = get(raw, key)
  if (typeof value === 'number') return value
  const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : NaN
  if (Number.isNaN(number) && value !== 'NaN') {
    throw wrong(key, 'a number, "NaN", "Infinity" or "-Infinity"', value)
  }
  return number
}

function uint32(raw: Raw, key: string): number {
  const value = get(raw, key) ?? 0
  const number = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value
  const fits = typeof number === 'number' && Number.isInteger(number) && number >= 0 && number < 2 ** 32
  if (!fits) throw wrong(key, 'an integer from 0 to 4294967295', value)
  return number
}

/** Enumerations are open: a number that this version does not know is not an error. Names are not allowed. */
function enumeration(raw: Raw, key: string): number {
  const value = get(raw, key) ?? 0
  if (typeof value !== 'number' || !Number.isInteger(value)) throw wrong(key, 'an integer', value)
  return value
}

function fixed64(raw: Raw, key: string): bigint {
  const value = integer(raw, key)
  if (value < 0n || value >= 2n ** 64n) throw wrong(key, 'an integer from 0 to 2^64 - 1', value)
  return value
}

/** A string, a number or a Long (which gives its digits as a string). */
function integer(raw: Raw, key: string): bigint {
  const value = get(raw, key) ?? 0
  const digits = isRecord(value) || typeof value === 'number' ? integerDigits(value) : value
  if (typeof digits !== 'string' || !/^-?\d{1,20}$/.test(digits)) {
    throw wrong(key, 'an integer, as a string or a number', value)
  }
  return BigInt(digits)
}

function integerDigits(value: Raw | number): string {
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value).toString() : ''
  return Object.hasOwn(value, 'unsigned') ? String(value) : ''
}

function bytes(raw: Raw, key: string): Uint8Array {
  const value = get(raw, key)
  // A copy: the decoder's slice would keep the whole request in memory.
  if (value instanceof Uint8Array) return Uint8Array.from(value)
  if (typeof value !== 'string' || !/^[\w+/-]*={0,2}$/.test(value)) throw wrong(key, 'base64', value)
  return Uint8Array.from(Buffer.from(value, 'base64'))
}

function id(raw: Raw, key: string, length: number): string {
  const value = get(raw, key) ?? ''
  const hex = value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value
  const valid = typeof hex === 'string' && hex.length === 2 * length && /^[\da-f]+$/i.test(hex)
  if (!valid || /^0+$/.test(hex)) throw wrong(key, `${2 * length} hex characters, not all zero`, hex)
  return hex.toLowerCase()
}

/** Absent, empty and all zero are the same: there is no parent. */
function parentId(raw: Raw): string | undefined {
  const value = get(raw, 'parentSpanId') ?? ''
  const hex = value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value
  return hex === '' || hex === '0000000000000000' ? undefined : id(raw, 'parentSpanId', 8)
}

function wrong(key: string, expected: string, received: unknown): Error {
  return new Error(`${key}: expected ${expected}, received ${show(received)}`)
}

function show(value: unknown): string {
  const text = typeof value === 'bigint' ? String(value) : (JSON.stringify(value) ?? String(value))
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}
