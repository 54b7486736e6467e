import {
  ROOT_CONTEXT,
  trace,
  type Attributes,
  type AttributeValue,
  type Span as ApiSpan,
} from '@opentelemetry/api'
import * as fc from 'fast-check'
import { JsonTraceSerializer, ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer'
import { resourceFromAttributes } from '@opentelemetry/resources'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { describe, expect, it } from 'vitest'
import { randomIds, type IdGenerator } from '../../packages/core/src/ids.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { engine, type TestEngine } from './engine.ts'
import {
  anyContext,
  anyNumber,
  anySpan,
  anyText,
  anyTime,
  expectedRequest,
  form,
  fromJson,
  fromProtobuf,
  resource,
  scope,
  withTextIntegers,
} from './otlp-spans.ts'

describe('any span', () => {
  it('arrives field by field, read by an independent decoder', () => {
    fc.assert(
      fc.property(fc.array(anySpan, { minLength: 1, maxLength: 6 }), (spans) => {
        expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
      }),
      { numRuns: 200 },
    )
  })

  it('says the same in JSON as in protobuf', () => {
    fc.assert(
      fc.property(fc.array(anySpan, { minLength: 1, maxLength: 4 }), (spans) => {
        expect(fromJson(spans)).toEqual(fromProtobuf(spans))
      }),
      { numRuns: 100 },
    )
  })

  it('says what the official serializers say', () => {
    // Ordinary spans: where the official ones differ among themselves (null, lone surrogates, 2^53 in JSON) is left out.
    const ordinaryText = fc.string({ unit: 'grapheme', maxLength: 200 })
    const ordinary = fc.dictionary(
      ordinaryText,
      fc.oneof(
        ordinaryText,
        fc.boolean(),
        fc.maxSafeInteger().map((number) => number || 0),
        fc.double({ min: -1e12, max: 1e12, noNaN: true }).map((number) => number || 0),
        fc.array(ordinaryText, { maxLength: 4 }),
      ),
      { maxKeys: 8, noNullPrototype: true },
    ) as fc.Arbitrary<Attributes>
    const ordinarySpan = fc
      .tuple(anySpan, ordinary, ordinary, ordinaryText)
      .map(([one, attributes, inner, name]): ReadableSpan => ({
        ...one,
        name,
        attributes,
        status: { code: one.status.code === 0 ? 1 : one.status.code, message: name }, // They write one that is unset.
        events: one.events.map((event) => ({ ...event, name, attributes: inner })),
        links: one.links.map((link) => ({ ...link, attributes: inner })),
        resource,
        instrumentationScope: scope,
      }))
    fc.assert(
      fc.property(fc.array(ordinarySpan, { minLength: 1, maxLength: 4 }), (spans) => {
        const theirs = ProtobufTraceSerializer.serializeRequest(spans as never) as Uint8Array
        expect(fromProtobuf(spans)).toEqual(form(decodeRequest(theirs)))
        const theirJson = Buffer.from(
          JsonTraceSerializer.serializeRequest(spans as never) as Uint8Array,
        ).toString()
        expect(fromJson(spans)).toEqual(form(JSON.parse(theirJson, withTextIntegers)))
      }),
      { numRuns: 100 },
    )
  })
})

// ---- Spans of the engine, and of the official SDK ----

/** One call on a span that is open. */
type Step = (span: ApiSpan) => void

const anyApiValue = fc.oneof(
  anyText,
  anyNumber,
  fc.boolean(),
  fc.array(fc.oneof(fc.string({ unit: 'grapheme' }), fc.constant(null)), { maxLength: 5 }),
  fc.array(anyNumber, { maxLength: 5 }),
) as fc.Arbitrary<AttributeValue>
const anyApiAttributes = fc.dictionary(
  fc.oneof(fc.constantFrom('http.request.method', 'url.full', 'n'), fc.string({ minLength: 1 })),
  anyApiValue,
  { maxKeys: 6, noNullPrototype: true },
)
const anyGivenTime = fc.oneof(
  fc.constant(undefined),
  anyTime,
  fc.integer({ min: 1_700_000_000_000, max: 1_900_000_000_000 }),
  fc.integer({ min: 1_700_000_000_000, max: 1_900_000_000_000 }).map((ms) => new Date(ms)),
)
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(fc.string({ minLength: 1 }), anyApiValue).map(
    ([key, value]): Step =>
      (span) =>
        span.setAttribute(key, value),
  ),
  anyApiAttributes.map(
    (attributes): Step =>
      (span) =>
        span.setAttributes(attributes),
  ),
  fc.tuple(anyText, fc.option(anyApiAttributes, { nil: undefined }), anyGivenTime).map(
    ([name, attributes, time]): Step =>
      (span) =>
        span.addEvent(name, attributes, time),
  ),
  fc.tuple(anyContext, fc.option(anyApiAttributes, { nil: undefined })).map(
    ([context, attributes]): Step =>
      (span) =>
        span.addLink(attributes === undefined ? { context } : { context, attributes }),
  ),
  fc.tuple(fc.constantFrom(0, 1, 2), fc.option(anyText, { nil: undefined })).map(
    ([code, message]): Step =>
      (span) =>
        span.setStatus(message === undefined ? { code } : { code, message }),
  ),
  anyText.map(
    (name): Step =>
      (span) =>
        span.updateName(name),
  ),
  anyText.map(
    (message): Step =>
      (span) =>
        span.recordException(new RangeError(message)),
  ),
)
const anyLife = fc.record({
  name: anyText,
  kind: fc.constantFrom(undefined, 0, 1, 2, 3, 4),
  parent: fc.option(anyContext, { nil: undefined }),
  attributes: fc.option(anyApiAttributes, { nil: undefined }),
  startTime: anyGivenTime,
  endTime: anyGivenTime,
  steps: fc.array(anyStep, { maxLength: 8 }),
})
type Life = typeof anyLife extends fc.Arbitrary<infer T> ? T : never

interface Maker {
  startSpan: TestEngine['tracer']['startSpan']
}

function live(tracer: Maker, life: Life): void {
  const { name, kind, parent, attributes, startTime, endTime, steps } = life
  const context = parent === undefined ? ROOT_CONTEXT : trace.setSpanContext(ROOT_CONTEXT, parent)
  const span = tracer.startSpan(
    name,
    {
      ...(kind === undefined ? {} : { kind }),
      ...(attributes === undefined ? {} : { attributes }),
      ...(startTime === undefined ? {} : { startTime }),
    },
    context,
  )
  for (const step of steps) step(span)
  span.end(endTime)
}

describe('a span that was lived', () => {
  const limits = {
    attributeCountLimit: 5,
    attributeValueLengthLimit: 100,
    eventCountLimit: 3,
    linkCountLimit: 2,
    attributePerEventCountLimit: 2,
    attributePerLinkCountLimit: 1,
  }

  it.each<[string, IdGenerator]>([
    ['random ids', randomIds],
    ['ids of a generator of the app’s', { ...randomIds }],
  ])('on our engine, with %s, arrives as exporters read it', (_, idGenerator) => {
    fc.assert(
      fc.property(fc.array(anyLife, { minLength: 1, maxLength: 6 }), fc.boolean(), (lives, isLimited) => {
        const { tracer, provider, ended } = engine({ idGenerator, ...(isLimited && { limits }) })
        const other = provider.getTracer('other')
        lives.forEach((life, index) => live(index % 3 === 2 ? other : tracer, life))
        expect(ended).toHaveLength(lives.length)
        const expected = expectedRequest(ended)
        expect(fromProtobuf(ended)).toEqual(expected)
        expect(fromJson(ended)).toEqual(expected)
      }),
      { numRuns: 200 },
    )
  })

  it('on the official SDK arrives as exporters read it', () => {
    const memory = new InMemorySpanExporter()
    const provider = new BasicTracerProvider({
      resource: resourceFromAttributes({ 'service.name': 'theirs', n: 1 }),
      spanProcessors: [new SimpleSpanProcessor(memory)],
    })
    fc.assert(
      fc.property(fc.array(anyLife, { minLength: 1, maxLength: 4 }), (lives) => {
        memory.reset()
        for (const life of lives) live(provider.getTracer('theirs', '1.0.0'), life)
        const spans = memory.getFinishedSpans() as unknown as ReadableSpan[]
        expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
        expect(fromJson(spans)).toEqual(expectedRequest(spans))
      }),
      { numRuns: 50 },
    )
  })
})
