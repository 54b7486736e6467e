/**
 * Spans to OTLP/JSON: the same request as `encode.ts` writes, by the protobuf JSON mapping with OTLP's deviations
 * (OTLP 1.x, "JSON Protobuf Encoding"): ids in hexadecimal, enums as integers, keys in lowerCamelCase, 64-bit integers as
 * decimal strings. Fields at their default are left out.
 */
import type { Attributes, HrTime, Link, SpanStatus } from '@opentelemetry/api'
import { DEPTH_LIMIT, isPlain, textOf, VALUES_LIMIT } from '../attribute.ts'
import { reportOnce } from '../report.ts'
import type { Resource } from '../resource.ts'
import type { InstrumentationScope, ReadableSpan, TimedEvent } from '../span.ts'
import { fitsInt64, flagsOf, leaveOut, type Remainder, stateText } from './encode.ts'

interface AnyValue {
  stringValue?: string
  boolValue?: boolean
  intValue?: string
  doubleValue?: number | string
  arrayValue?: { values: AnyValue[] }
  kvlistValue?: { values: KeyValue[] }
  bytesValue?: string
}

interface KeyValue {
  key: string
  value: AnyValue
}

const TRACE_ID = /^[0-9a-f]{32}$/i
const SPAN_ID = /^[0-9a-f]{16}$/i
const ZEROS = /^0+$/

/** Half of a surrogate pair without its other half: JSON could carry it as an escape, but UTF-8 receivers refuse it. */
const LONE_SURROGATES = /\p{Surrogate}/gu

let valuesLeft = 0

/**
 * The spans as the text of an ExportTraceServiceRequest, grouped and valued as `encodeProtobuf` does. No spans are `{}`.
 * Never throws: a span that cannot be encoded is left out, which is said once and counted in `rest`.
 */
export function encodeJson(
  spans: readonly ReadableSpan[],
  rest: Pick<Remainder, 'leftOut'> = { leftOut: 0 },
): string {
  const resources = new Map<Resource, Map<InstrumentationScope, ReadableSpan[]>>()
  for (const span of spans) {
    try {
      const { resource, instrumentationScope: scope } = span
      let scopes = resources.get(resource)
      if (scopes === undefined) resources.set(resource, (scopes = new Map()))
      const siblings = scopes.get(scope)
      if (siblings === undefined) scopes.set(scope, [span])
      else siblings.push(span)
    } catch (error) {
      leaveOut(rest, error)
    }
  }
  let text = ''
  for (const [resource, scopes] of resources) {
    const { leftOut } = rest
    try {
      text += (text === '' ? '' : ',') + resourceSpans(resource, scopes, rest)
    } catch (error) {
      rest.leftOut = leftOut
      for (const siblings of scopes.values()) rest.leftOut += siblings.length
      reportOnce('encode', 'error', 'the spans of a resource could not be encoded and are left out', error)
    }
  }
  return text === '' ? '{}' : `{"resourceSpans":[${text}]}`
}

function resourceSpans(
  resource: Resource,
  scopes: Map<InstrumentationScope, ReadableSpan[]>,
  rest: Pick<Remainder, 'leftOut'>,
): string {
  const head = stringify({ attributes: keyValues(resource.attributes) })
  let text = ''
  for (const [scope, spans] of scopes) text += (text === '' ? '' : ',') + scopeSpans(scope, spans, rest)
  return `{"resource":${head},"scopeSpans":[${text}]${schemaUrl(resource.schemaUrl)}}`
}

function scopeSpans(
  scope: InstrumentationScope,
  spans: readonly ReadableSpan[],
  rest: Pick<Remainder, 'leftOut'>,
): string {
  const head = stringify({ name: wellFormed(textOf(scope.name)), version: nonEmpty(scope.version) })
  let text = ''
  for (const span of spans) {
    try {
      text += (text === '' ? '' : ',') + stringify(toSpan(span))
    } catch (error) {
      leaveOut(rest, error)
    }
  }
  return `{"scope":${head},"spans":[${text}]${schemaUrl(scope.schemaUrl)}}`
}

function schemaUrl(url: string | undefined): string {
  return url ? `,"schemaUrl":${stringify(wellFormed(textOf(url)))}` : ''
}

/** JSON.stringify leaves out what is undefined: that is how the objects below say "not set". */
function stringify(value: object | string): string {
  return JSON.stringify(value)
}

function toSpan(span: ReadableSpan): object {
  const context = span.spanContext()
  const parent = span.parentSpanContext
  return {
    traceId: hexId(context.traceId, TRACE_ID, 32),
    spanId: hexId(context.spanId, SPAN_ID, 16),
    traceState: nonEmpty(stateText(context)),
    parentSpanId: parent === undefined ? undefined : parentId(parent.spanId),
    flags: flagsOf(context.traceFlags, parent?.isRemote),
    name: wellFormed(span.name),
    kind: span.kind >= 0 && span.kind <= 4 ? span.kind + 1 : undefined,
    startTimeUnixNano: nanoseconds(span.startTime),
    endTimeUnixNano: nanoseconds(span.endTime),
    attributes: keyValues(span.attributes),
    droppedAttributesCount: nonZero(span.droppedAttributesCount),
    events: span.events.length === 0 ? undefined : span.events.map(toEvent),
    droppedEventsCount: nonZero(span.droppedEventsCount),
    links: span.links.length === 0 ? undefined : span.links.map(toLink),
    droppedLinksCount: nonZero(span.droppedLinksCount),
    status: toStatus(span.status),
  }
}

function toEvent(event: TimedEvent): object {
  return {
    timeUnixNano: nanoseconds(event.time),
    name: wellFormed(event.name),
    attributes: keyValues(event.attributes),
    droppedAttributesCount: nonZero(event.droppedAttributesCount),
  }
}

function toLink(link: Link): object {
  const { context } = link
  return {
    traceId: hexId(context.traceId, TRACE_ID, 32),
    spanId: hexId(context.spanId, SPAN_ID, 16),
    traceState: nonEmpty(stateText(context)),
    attributes: keyValues(link.attributes),
    droppedAttributesCount: nonZero(link.droppedAttributesCount),
    flags: flagsOf(context.traceFlags, context.isRemote),
  }
}

function toStatus(status: SpanStatus): object | undefined {
  if (status.code !== 1 && status.code !== 2) return undefined
  return { code: status.code, message: nonEmpty(status.message) }
}

function hexId(id: string, form: RegExp, length: number): string {
  return form.test(id) ? id.toLowerCase() : '0'.repeat(length)
}

function parentId(id: string): string | undefined {
  return SPAN_ID.test(id) && !ZEROS.test(id) ? id.toLowerCase() : undefined
}

/** Nanoseconds in decimal; '0', which is unknown, for a time that is negative, not a number or beyond 2^64 - 1. */
function nanoseconds(time: HrTime): string {
  const seconds = Math.trunc(time[0])
  const rest = Math.trunc(time[1])
  if (!(seconds >= 0 && rest >= 0 && seconds < 2 ** 35 && rest < 2 ** 52)) return '0'
  const total = BigInt(seconds) * 1_000_000_000n + BigInt(rest)
  return BigInt.asUintN(64, total) === total ? total.toString() : '0'
}

function nonZero(count: number | undefined): number | undefined {
  return count ? count >>> 0 : undefined
}

function nonEmpty(text: string | undefined): string | undefined {
  return text ? wellFormed(textOf(text)) : undefined
}

function wellFormed(text: string): string {
  return text.replace(LONE_SURROGATES, '\ufffd')
}

function keyValues(attributes: Attributes | undefined): KeyValue[] | undefined {
  const list: KeyValue[] = []
  for (const key in attributes) {
    if (!Object.hasOwn(attributes, key)) continue
    const value = attributes[key]
    if (value == null) continue
    valuesLeft = VALUES_LIMIT
    list.push({ key: wellFormed(key), value: anyValue(value, 1) })
  }
  return list.length === 0 ? undefined : list
}

function anyValue(value: unknown, depth: number): AnyValue {
  switch (typeof value) {
    case 'string':
      return { stringValue: wellFormed(value) }
    case 'boolean':
      return { boolValue: value }
    case 'number':
      return numberValue(value)
    case 'bigint':
      return BigInt.asIntN(64, value) === value ? { intValue: `${value}` } : { stringValue: `${value}` }
    case 'undefined':
      return {}
    default:
      if (value === null || depth > DEPTH_LIMIT) return {}
      try {
        return objectValue(value, depth)
      } catch {
        return {}
      }
  }
}

function numberValue(value: number): AnyValue {
  if (fitsInt64(value)) {
    // Beyond 2^53 a number's own digits are rounded, those of the bigint are exact.
    return { intValue: Number.isSafeInteger(value) ? `${value}` : BigInt(value).toString() }
  }
  // JSON has no NaN and no infinities, and JSON.stringify has no -0: the mapping takes all four as strings.
  if (Object.is(value, -0)) return { doubleValue: '-0' }
  return { doubleValue: Number.isFinite(value) ? value : `${value}` }
}

function objectValue(value: unknown, depth: number): AnyValue {
  if (value instanceof Uint8Array) {
    return { bytesValue: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64') }
  }
  if (Array.isArray(value)) {
    const values: AnyValue[] = []
    for (let index = 0; index < value.length && valuesLeft-- > 0; index++) {
      values.push(anyValue(value[index], depth + 1))
    }
    return { arrayValue: { values } }
  }
  if (isPlain(value)) {
    const values: KeyValue[] = []
    for (const key in value) {
      if (!Object.hasOwn(value, key)) continue
      const item = value[key]
      if (item === undefined) continue
      if (valuesLeft-- <= 0) break
      values.push({ key: wellFormed(key), value: anyValue(item, depth + 1) })
    }
    return { kvlistValue: { values } }
  }
  return { stringValue: wellFormed(String(value)) }
}
