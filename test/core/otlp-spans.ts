import { SpanKind, SpanStatusCode, type Attributes, type HrTime, type SpanContext } from '@opentelemetry/api'
import * as fc from 'fast-check'
import { expect } from 'vitest'
import { encodeProtobuf } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import type { InstrumentationScope, ReadableSpan, TimedEvent } from '../../packages/core/src/span.ts'
import { checkRequest } from '../conformance/otlp-wire.ts'
import { decodeRequest } from '../otlp-definition.ts'

export const TRACE = '0af7651916cd43dd8448eb211c80319c'
export const SPAN = 'b7ad6b7169203331'
export const PARENT = '00f067aa0ba902b7'

export const resource = { attributes: { 'service.name': 'checkout' } }
export const scope: InstrumentationScope = { name: '@throughline/express', version: '0.1.0' }

/** Attributes as users hand them over, whatever the types say. */
export type Loose = Record<string, unknown>

export type Given = Partial<Omit<ReadableSpan, 'attributes' | 'spanContext'>> & {
  attributes?: Loose
  context?: Partial<SpanContext>
}

export function span(given: Given = {}): ReadableSpan {
  const { context, attributes = {}, ...rest } = given
  const spanContext = { traceId: TRACE, spanId: SPAN, traceFlags: 1, ...context }
  return {
    name: 'GET /',
    kind: SpanKind.SERVER,
    spanContext: () => spanContext,
    startTime: [1_753_000_000, 123_456_789],
    endTime: [1_753_000_001, 1],
    status: { code: SpanStatusCode.UNSET },
    attributes: attributes as Attributes,
    links: [],
    events: [],
    duration: [0, 0],
    ended: true,
    resource,
    instrumentationScope: scope,
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
    ...rest,
  }
}

export function traceState(text: string): NonNullable<SpanContext['traceState']> {
  const state = { get: () => undefined, set: () => state, unset: () => state, serialize: () => text }
  return state
}

// ---- One form to compare: what OTLP/JSON says, as plain objects, without fields at their default ----

const isDefault = (value: unknown) =>
  value === undefined ||
  value === 0 ||
  value === '0' ||
  value === '' ||
  (Array.isArray(value) && value.length === 0)

/** Defaults and absence are the same on the wire, but for the fields of an attribute's value. */
export function form(value: unknown, name = ''): unknown {
  if (value instanceof Uint8Array)
    return Buffer.from(value).toString(name === 'bytesValue' ? 'base64' : 'hex')
  if (typeof value === 'number')
    return Object.is(value, -0) ? '-0' : Number.isFinite(value) ? value : String(value)
  if (Array.isArray(value)) return value.map((item) => form(item))
  if (typeof value !== 'object' || value === null) return value
  const isValue = Object.keys(value).some((key) => key.endsWith('Value'))
  const entries = Object.entries(value).filter(([, item]) => isValue || !isDefault(item))
  return Object.fromEntries(entries.map(([key, item]) => [key, form(item, key)]))
}

/** As the decoder reads it, after a second reader has found nothing in it that the decoder would pass over. */
export function fromProtobuf(spans: readonly ReadableSpan[]): unknown {
  const request = encodeProtobuf(spans)
  checkRequest(request)
  return form(decodeRequest(request))
}
export const fromJson = (spans: readonly ReadableSpan[]) => form(JSON.parse(encodeJson(spans)))

/** The one span of a request of one span. */
export function wireSpan(given: Given): Record<string, unknown> {
  const request = fromProtobuf([span(given)])
  expect(fromJson([span(given)])).toEqual(request)
  return (request as { resourceSpans: [{ scopeSpans: [{ spans: [Record<string, unknown>] }] }] })
    .resourceSpans[0].scopeSpans[0].spans[0]
}

/** The value under `key` as it stands on the wire, in both encodings. */
export function wireValue(value: unknown): unknown {
  const attributes = wireSpan({ attributes: { key: value } })['attributes'] as
    | { value: unknown }[]
    | undefined
  return attributes?.[0]?.value
}

// ---- What is expected, by the mapping of the specification ----

export const text = (value: string) => value.replaceAll(/\p{Surrogate}/gu, '\ufffd')

export function expectedValue(value: unknown): object {
  if (value == null) return {}
  if (typeof value === 'string') return { stringValue: text(value) }
  if (typeof value === 'boolean') return { boolValue: value }
  if (typeof value === 'bigint') {
    return value >= -(2n ** 63n) && value < 2n ** 63n
      ? { intValue: String(value) }
      : { stringValue: String(value) }
  }
  if (typeof value === 'number') {
    if (Object.is(value, -0)) return { doubleValue: '-0' }
    if (!Number.isFinite(value)) return { doubleValue: String(value) }
    if (!Number.isInteger(value)) return { doubleValue: value }
    const exact = BigInt(value)
    return exact >= -(2n ** 63n) && exact < 2n ** 63n ? { intValue: String(exact) } : { doubleValue: value }
  }
  if (value instanceof Uint8Array) return { bytesValue: Buffer.from(value).toString('base64') }
  if (Array.isArray(value)) {
    return {
      arrayValue: value.length === 0 ? {} : { values: Array.from(value, (item) => expectedValue(item)) },
    }
  }
  const values = expectedAttributes(value, (item) => item === undefined)
  return { kvlistValue: values === undefined ? {} : { values } }
}

function expectedAttributes(
  attributes: object | undefined,
  left: (value: unknown) => boolean = (value) => value == null,
): object[] | undefined {
  const list = Object.entries(attributes ?? {})
    .filter(([, value]) => !left(value))
    .map(([key, value]) => ({ key: text(key), value: expectedValue(value) }))
  return list.length === 0 ? undefined : list
}

const nanos = (time: HrTime) => String(BigInt(time[0]) * 1_000_000_000n + BigInt(time[1]))
const flags = (context: { traceFlags: number } | undefined, remote: boolean | undefined) =>
  ((context?.traceFlags ?? 0) & 0xff) + 0x100 + (remote === true ? 0x200 : 0)

/** Fields at their default are absent: `toEqual` takes undefined for absent. */
function expectedSpan(given: ReadableSpan): object {
  const context = given.spanContext()
  return {
    traceId: context.traceId,
    spanId: context.spanId,
    traceState: context.traceState?.serialize() || undefined,
    parentSpanId: given.parentSpanContext?.spanId,
    name: text(given.name),
    kind: given.kind + 1,
    startTimeUnixNano: nanos(given.startTime),
    endTimeUnixNano: nanos(given.endTime),
    attributes: expectedAttributes(given.attributes),
    droppedAttributesCount: given.droppedAttributesCount || undefined,
    droppedEventsCount: given.droppedEventsCount || undefined,
    droppedLinksCount: given.droppedLinksCount || undefined,
    flags: flags(context, given.parentSpanContext?.isRemote),
    status:
      given.status.code === SpanStatusCode.UNSET
        ? undefined
        : { code: given.status.code, message: given.status.message ? text(given.status.message) : undefined },
    events:
      given.events.length === 0
        ? undefined
        : given.events.map((event) => ({
            timeUnixNano: nanos(event.time),
            name: text(event.name),
            attributes: expectedAttributes(event.attributes),
            droppedAttributesCount: event.droppedAttributesCount || undefined,
          })),
    links:
      given.links.length === 0
        ? undefined
        : given.links.map((link) => ({
            traceId: link.context.traceId,
            spanId: link.context.spanId,
            traceState: link.context.traceState?.serialize() || undefined,
            attributes: expectedAttributes(link.attributes),
            droppedAttributesCount: link.droppedAttributesCount || undefined,
            flags: flags(link.context, link.context.isRemote),
          })),
  }
}

// ---- Generators ----

export const anyText = fc.oneof(
  fc.string({ unit: 'grapheme' }),
  fc.string({ unit: 'binary' }),
  fc.string({ unit: fc.constantFrom('\ud800', '\udfff', 'a', 'é', '漢', '😀'), maxLength: 80 }),
  fc.string({ unit: 'grapheme-ascii', minLength: 30, maxLength: 400 }),
  fc.constantFrom('', 'GET', 'a'.repeat(55), 'a'.repeat(56), 'a'.repeat(57), 'a'.repeat(127), 'é'.repeat(64)),
  fc.integer({ min: 1000, max: 70_000 }).map((length) => 'x'.repeat(length)),
  fc.integer({ min: 5000, max: 6000 }).map((length) => '漢'.repeat(length)),
)
export const anyNumber = fc.oneof(
  fc.integer(),
  fc.integer({ min: 0, max: 2 ** 21 }),
  fc.maxSafeInteger(),
  fc.double(),
  fc.float(),
  fc.constantFrom(
    0,
    -0,
    127,
    128,
    16_383,
    16_384,
    -1,
    2 ** 31,
    -(2 ** 31),
    2 ** 32,
    2 ** 53,
    2 ** 63,
    -(2 ** 63),
  ),
  fc.constantFrom(
    2 ** 63 - 1024,
    -(2 ** 63) - 2048,
    1e300,
    Number.NaN,
    Infinity,
    -Infinity,
    Number.MIN_VALUE,
    Number.MAX_VALUE,
    2 ** -1022,
    2 ** 53 - 1,
    2 ** 53 + 2,
    -(2 ** 53) - 2,
    1.5,
    -1e-320,
  ),
  // Where a number takes one byte more on the wire, and where it turns into another form.
  fc
    .tuple(fc.integer({ min: 0, max: 64 }), fc.integer({ min: -2, max: 2 }), fc.constantFrom(1, -1))
    .map(([bits, step, sign]) => sign * (2 ** bits + step)),
)
const anyBigint = fc.oneof(
  fc.bigInt({ min: -(2n ** 70n), max: 2n ** 70n }),
  fc.constantFrom(2n ** 63n - 1n, 2n ** 63n, -(2n ** 63n), -(2n ** 63n) - 1n, 0n, -1n),
  fc
    .tuple(fc.bigInt({ min: 0n, max: 64n }), fc.bigInt({ min: -2n, max: 2n }), fc.constantFrom(1n, -1n))
    .map(([bits, step, sign]) => sign * (2n ** bits + step)),
)
const anyBytes = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  // A window on a larger buffer.
  fc.uint8Array({ minLength: 20, maxLength: 40 }).map((bytes) => bytes.subarray(7, 19)),
  fc.integer({ min: 16_000, max: 70_000 }).map((length) => new Uint8Array(length).fill(0xab)),
)
/** Homogeneous, as nearly all are, and long enough to be worth a path of its own. */
const anyList = fc.oneof(
  fc.array(anyText, { maxLength: 4 }),
  fc.array(fc.string({ unit: 'grapheme' }), { maxLength: 200 }),
  fc.array(anyNumber, { maxLength: 200 }),
  fc.array(fc.boolean(), { maxLength: 200 }),
  fc.array(fc.oneof(fc.constantFrom(null, undefined), fc.integer()), { maxLength: 20 }),
  // oxlint-disable-next-line no-sparse-arrays -- A hole is what is tested.
  fc.constant([1, , 3]),
)
const anyValue: fc.Arbitrary<unknown> = fc.letrec<{ value: unknown; leaf: unknown }>((tie) => ({
  leaf: fc.oneof(
    { weight: 4, arbitrary: anyText },
    { weight: 3, arbitrary: anyNumber },
    fc.boolean(),
    fc.constantFrom(null, undefined),
    anyBytes,
    anyBigint,
  ),
  value: fc.oneof(
    { depthSize: 'small' },
    { weight: 6, arbitrary: tie('leaf') },
    anyList,
    fc.array(tie('value'), { maxLength: 5 }),
    fc.dictionary(anyText, tie('value'), { maxKeys: 4 }),
  ),
})).value
export const anyAttributes = fc.dictionary(
  fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom('http.request.method', 'url.full', 'n', 'k'.repeat(130)) },
    anyText,
    fc.constantFrom('', '__proto__', 'constructor', 'été', 'k'.repeat(16_384)),
    fc.integer({ min: 105, max: 130 }).map((length) => 'k'.repeat(length)),
    fc.integer({ min: 35, max: 65 }).map((length) => 'é'.repeat(length)),
  ),
  anyValue,
  { maxKeys: 6, noNullPrototype: true },
) as fc.Arbitrary<Attributes>

const hex = (length: number) =>
  fc.string({ unit: fc.constantFrom(...'0123456789abcdef'), minLength: length, maxLength: length })
const anyId = (length: number) => hex(length).filter((id) => !/^0+$/.test(id))
export const anyTime: fc.Arbitrary<HrTime> = fc.oneof(
  fc.tuple(fc.integer({ min: 0, max: 18_446_744_072 }), fc.integer({ min: 0, max: 999_999_999 })),
  fc.constantFrom<HrTime>(
    [0, 0],
    [18_446_744_073, 709_551_615],
    [4, 294_967_295],
    [4, 294_967_296],
    [65_535, 0],
  ),
)
export const anyContext: fc.Arbitrary<SpanContext> = fc
  .record(
    {
      traceId: fc.oneof(fc.constant(TRACE), anyId(32)),
      spanId: anyId(16),
      traceFlags: fc.integer({ min: 0, max: 255 }),
      isRemote: fc.boolean(),
      traceState: fc.constantFrom('', 'a=1', 'vendor=' + 'x'.repeat(200)).map(traceState),
    },
    { requiredKeys: ['traceId', 'spanId', 'traceFlags'] },
  )
  .map((context) => context)
const dropped = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 2 ** 32 - 1 }))

export const RESOURCES = [
  resource,
  { attributes: { 'service.name': 'été', n: 1 }, schemaUrl: 'https://example.com/r' },
]
export const SCOPES = [scope, { name: 'pg', schemaUrl: 'https://example.com/s' }, { name: '' }]

export const anySpan: fc.Arbitrary<ReadableSpan> = fc
  .record({
    context: anyContext,
    parentSpanContext: fc.option(anyContext, { nil: undefined }),
    name: anyText,
    kind: fc.constantFrom(0, 1, 2, 3, 4),
    startTime: anyTime,
    endTime: anyTime,
    status: fc.record({ code: fc.constantFrom(0, 1, 2), message: anyText }, { requiredKeys: ['code'] }),
    attributes: anyAttributes,
    events: fc.array(
      fc.record<TimedEvent, 'time' | 'name'>(
        { time: anyTime, name: anyText, attributes: anyAttributes, droppedAttributesCount: dropped },
        { requiredKeys: ['time', 'name'] },
      ),
      { maxLength: 3 },
    ),
    links: fc.array(
      fc.record(
        { context: anyContext, attributes: anyAttributes, droppedAttributesCount: dropped },
        { requiredKeys: ['context'] },
      ),
      { maxLength: 3 },
    ),
    droppedAttributesCount: dropped,
    droppedEventsCount: dropped,
    droppedLinksCount: dropped,
    resource: fc.constantFrom(...RESOURCES),
    instrumentationScope: fc.constantFrom(...SCOPES),
  })
  .map((given) => span(given as Given))

/** All spans of a request by name of scope and resource, grouped naively. */
export function expectedRequest(spans: readonly ReadableSpan[]): unknown {
  const resources = [...new Set(spans.map((one) => one.resource))]
  return form({
    resourceSpans: resources.map((owner) => {
      const own = spans.filter((one) => one.resource === owner)
      return {
        resource: { attributes: expectedAttributes(owner.attributes) },
        schemaUrl: owner.schemaUrl,
        scopeSpans: [...new Set(own.map((one) => one.instrumentationScope))].map((maker) => ({
          scope: { name: maker.name, version: maker.version },
          schemaUrl: maker.schemaUrl,
          spans: own.filter((one) => one.instrumentationScope === maker).map((one) => expectedSpan(one)),
        })),
      }
    }),
  })
}

/** The official JSON has integers as numbers, which the mapping allows. */
export const withTextIntegers = (key: string, value: unknown) => (key === 'intValue' ? String(value) : value)
