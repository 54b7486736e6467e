import {
  context,
  defaultTextMapGetter,
  defaultTextMapSetter,
  ROOT_CONTEXT,
  SamplingDecision,
  SpanKind,
  trace,
  type Context,
  type SpanContext,
  type TextMapGetter,
  type TextMapPropagator,
} from '@opentelemetry/api'
import { B3InjectEncoding, B3Propagator } from '@opentelemetry/propagator-b3'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { AsyncContextManager, root, suppressTracing } from '../../packages/core/src/context.ts'
import {
  b3MultiPropagator,
  b3Propagator,
  compositePropagator,
  traceContextPropagator,
} from '../../packages/core/src/propagation.ts'
import {
  alwaysOff,
  alwaysOn,
  parentBased,
  ruleBased,
  traceIdRatio,
} from '../../packages/core/src/sampling.ts'
import { engine, said } from './engine.ts'

const traceId = '80f198ee56343ba864fe8b2a57d3eff7'
const spanId = 'e457b5a2e4d86bd1'
const parentId = '05e3ac9a4f6e3b90'
const ids = `${traceId}-${spanId}`
const several = { 'x-b3-traceid': traceId, 'x-b3-spanid': spanId }

const official = new B3Propagator()
const officialMulti = new B3Propagator({ injectEncoding: B3InjectEncoding.MULTI_HEADER })

type Carrier = Record<string, unknown>

function extracted(carrier: unknown, propagator: TextMapPropagator = b3Propagator): Context {
  return propagator.extract(root, carrier, defaultTextMapGetter)
}

const spanContextOf = (carrier: unknown, propagator?: TextMapPropagator) =>
  trace.getSpanContext(extracted(carrier, propagator))

function injected(from: Context, propagator: TextMapPropagator = b3Propagator): Carrier {
  const carrier: Carrier = {}
  propagator.inject(from, carrier, defaultTextMapSetter)
  return carrier
}

function holding(more: Partial<SpanContext> = {}): Context {
  return trace.setSpanContext(root, { traceId, spanId, traceFlags: 1, ...more })
}

describe('what comes in by b3', () => {
  const sampled = { traceId, spanId, traceFlags: 1, isRemote: true }
  const unsampled = { ...sampled, traceFlags: 0 }
  const undecided = { ...unsampled, isUndecided: true }

  test.each<[string, Carrier, object]>([
    ['kept', { b3: `${ids}-1` }, sampled],
    ['kept, with the parent of the parent', { b3: `${ids}-1-${parentId}` }, sampled],
    ['not kept', { b3: `${ids}-0` }, unsampled],
    ['to be debugged', { b3: `${ids}-d` }, sampled],
    ['left to us', { b3: ids }, undecided],
    ['left to us, with the parent of the parent', { b3: `${ids}-${parentId}` }, undecided],
    ['blanks around it', { b3: ` ${ids}-1\t` }, sampled],
    ['short ids', { b3: `${spanId}-${spanId}-1` }, { ...sampled, traceId: `${'0'.repeat(16)}${spanId}` }],
    ['several headers, blanks around them', { ...several, 'x-b3-sampled': '\t1 ' }, sampled],
    ['a Buffer', { b3: Buffer.from(`${ids}-1`) }, sampled],
    ['several headers, kept', { ...several, 'x-b3-sampled': '1' }, sampled],
    ['several headers, not kept', { ...several, 'x-b3-sampled': '0' }, unsampled],
    ['several headers, in older words', { ...several, 'x-b3-sampled': 'True' }, sampled],
    ['several headers, not kept in older words', { ...several, 'x-b3-sampled': 'false' }, unsampled],
    ['several headers, left to us', several, undecided],
    ['several headers, a state that is empty', { ...several, 'x-b3-sampled': '' }, undecided],
    ['several headers, flags that are none', { ...several, 'x-b3-flags': '0' }, undecided],
    ['several headers, to be debugged', { ...several, 'x-b3-flags': '1' }, sampled],
    ['debugging beats a state', { ...several, 'x-b3-flags': '1', 'x-b3-sampled': '0' }, sampled],
    [
      'several headers, short ids',
      { ...several, 'x-b3-traceid': spanId, 'x-b3-sampled': '1' },
      { ...sampled, traceId: `${'0'.repeat(16)}${spanId}` },
    ],
    ['the single one wins', { ...several, 'x-b3-sampled': '1', b3: `${ids}-0` }, unsampled],
    ['unless it is not valid', { ...several, 'x-b3-sampled': '1', b3: 'nonsense' }, sampled],
    ['or says no more than a state', { ...several, 'x-b3-sampled': '1', b3: '0' }, sampled],
    ['of two the first wins', { b3: `${ids}-1, ${ids}-0` }, sampled],
    ['of two, as an array, too', { b3: [`${ids}-0`, `${ids}-1`] }, unsampled],
    ['and of two in several headers', { ...several, 'x-b3-sampled': '1, 0' }, sampled],
  ])('becomes the parent: %s', (_row, carrier, expected) => {
    for (const propagator of [b3Propagator, b3MultiPropagator]) {
      expect(spanContextOf(carrier, propagator)).toEqual(expected)
    }
  })

  test.each<[string, Carrier]>([
    ['nothing', {}],
    ['a state without ids', { b3: '1' }],
    ['not even that', { b3: '' }],
    ['a trace id alone', { b3: traceId }],
    ['a trace id of zeros', { b3: `${'0'.repeat(32)}-${spanId}-1` }],
    ['a short one of zeros', { b3: `${'0'.repeat(16)}-${spanId}-1` }],
    ['a span id of zeros', { b3: `${traceId}-${'0'.repeat(16)}-1` }],
    ['a trace id of a wrong length', { b3: `${traceId.slice(8)}-${spanId}-1` }],
    ['capitals', { b3: `${traceId.toUpperCase()}-${spanId}-1` }],
    ['a state that is none', { b3: `${ids}-2` }],
    ['more than there is', { b3: `${ids}-1-${parentId}-1` }],
    ['something before it', { b3: `x${ids}-1` }],
    ['something after it', { b3: `${ids}-1x` }],
    ...['\n', '\r', '\v', '\u00a0', '\u2003', '\ufeff'].flatMap((blank): [string, Carrier][] => [
      [`what is no blank of a header before it: ${JSON.stringify(blank)}`, { b3: `${blank}${ids}-1` }],
      [`the same behind it: ${JSON.stringify(blank)}`, { b3: `${ids}-1${blank}` }],
      [
        `the same in several headers: ${JSON.stringify(blank)}`,
        { ...several, 'x-b3-spanid': `${spanId}${blank}` },
      ],
    ]),
    ['several headers without a span id', { 'x-b3-traceid': traceId }],
    ['several headers without a trace id', { 'x-b3-spanid': spanId, 'x-b3-sampled': '1' }],
    ['several headers with capitals', { ...several, 'x-b3-spanid': spanId.toUpperCase() }],
    ['several headers, a trace id of a wrong length', { ...several, 'x-b3-traceid': traceId.slice(8) }],
    ['several headers, a span id of zeros', { ...several, 'x-b3-spanid': '0'.repeat(16) }],
    ['several headers, a state that is none', { ...several, 'x-b3-sampled': 'maybe' }],
    ['several headers, a number as the state', { ...several, 'x-b3-sampled': 1 }],
  ])('leaves the context as it was where it is not valid: %s', (_row, carrier) => {
    const before = holding({ spanId: parentId })
    for (const propagator of [b3Propagator, b3MultiPropagator]) {
      expect(propagator.extract(before, carrier, defaultTextMapGetter)).toBe(before)
    }
  })

  test('is of any kind, and never an error', () => {
    const long = 'a'.repeat(16_384)
    const values = fc.oneof(
      fc.anything(),
      fc.string({ unit: 'binary' }),
      fc.constantFrom(
        `${ids}-1`,
        traceId,
        spanId,
        '1',
        long,
        `${ids}-${long}`,
        ' '.repeat(16_384),
        ','.repeat(16_384),
      ),
      fc.uint8Array().map((bytes) => Buffer.from(bytes)),
    )
    const fields = ['b3', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-sampled', 'x-b3-flags']
    const carriers = fc.record(Object.fromEntries(fields.map((field) => [field, values])), {
      requiredKeys: [],
    })
    const property = fc.property(carriers, (carrier) => {
      const junk: TextMapGetter<Carrier> = { get: (from, key) => from[key] as string, keys: () => [] }
      for (const propagator of [b3Propagator, b3MultiPropagator]) {
        const spanContext = trace.getSpanContext(propagator.extract(root, carrier, junk))
        expect(spanContext === undefined || trace.isSpanContextValid(spanContext)).toBe(true)
      }
    })
    fc.assert(property, { numRuns: 1000 })
  })
})

describe('what goes out by b3', () => {
  test('is one header, or several', () => {
    expect(injected(holding())).toEqual({ b3: `${ids}-1` })
    expect(injected(holding({ traceFlags: 2 }))).toEqual({ b3: `${ids}-0` })
    expect(injected(holding(), b3MultiPropagator)).toEqual({ ...several, 'x-b3-sampled': '1' })
    expect(injected(holding({ traceFlags: 2 }), b3MultiPropagator)).toEqual({
      ...several,
      'x-b3-sampled': '0',
    })
    expect(b3Propagator.fields()).toEqual(['b3'])
    expect(b3MultiPropagator.fields()).toEqual(['x-b3-traceid', 'x-b3-spanid', 'x-b3-sampled', 'x-b3-flags'])
  })

  test('is nothing where there is no trace, or where tracing is suppressed', () => {
    for (const propagator of [b3Propagator, b3MultiPropagator]) {
      expect(injected(root, propagator)).toEqual({})
      expect(injected(holding({ traceId: '0'.repeat(32) }), propagator)).toEqual({})
      expect(injected(suppressTracing(holding()), propagator)).toEqual({})
    }
  })

  test.each<[string, Carrier]>([
    ['kept', { ...several, 'x-b3-sampled': '1' }],
    ['not kept', { ...several, 'x-b3-sampled': '0' }],
    ['left to whoever comes', several],
    ['to be debugged', { ...several, 'x-b3-flags': '1' }],
  ])('goes out as it came, in either form, where nobody makes spans: %s', (_row, carrier) => {
    const came = extracted(carrier)
    const passing = trace.setSpan(came, trace.getTracer('nobody').startSpan('work', {}, came))
    expect(injected(passing, b3MultiPropagator)).toEqual(carrier)
    expect(injected(extracted(injected(passing)), b3MultiPropagator)).toEqual(carrier)
  })

  test('says of the spans of a trace to be debugged that it is, and of no other trace', () => {
    context.setGlobalContextManager(new AsyncContextManager())
    const { tracer } = engine({ sampler: parentBased(alwaysOff) })
    const came = extracted({ b3: `${ids}-d` })
    const child = tracer.startSpan('child', {}, came)
    expect(child.isRecording()).toBe(true)
    expect(injected(trace.setSpan(came, child))).toEqual({ b3: `${traceId}-${child.spanContext().spanId}-d` })
    const other = tracer.startSpan('other', { root: true }, came)
    expect(injected(trace.setSpan(came, other))['b3']).toMatch(/-0$/)
    context.disable()
  })
})

describe('a decision that the sender left to us', () => {
  const kept = (sampler: typeof alwaysOn, b3: string) =>
    parentBased(sampler).shouldSample(extracted({ b3 }), traceId, 'work', SpanKind.SERVER, {}, [])
      .decision === SamplingDecision.RECORD_AND_SAMPLED

  test('is the root sampler to make; one that was made is followed', () => {
    expect([kept(alwaysOn, ids), kept(alwaysOff, ids)]).toEqual([true, false])
    expect([kept(alwaysOn, `${ids}-0`), kept(alwaysOff, `${ids}-1`)]).toEqual([false, true])
  })

  test('is made by a share too: of new traces, which nobody has decided about before', () => {
    const reports = said()
    const high = 'f'.repeat(32)
    const low = `${'f'.repeat(18)}${'0'.repeat(14)}`
    const share = (traceId: string) => {
      const of = extracted({ b3: `${traceId}-${spanId}` })
      return parentBased(traceIdRatio(0.5)).shouldSample(of, traceId, 'work', SpanKind.SERVER, {}, [])
        .decision
    }
    expect([share(high), share(low)]).toEqual([
      SamplingDecision.RECORD_AND_SAMPLED,
      SamplingDecision.NOT_RECORD,
    ])
    expect(reports.lines).toEqual([])
  })

  test('is made by rules that ask for attributes, too', () => {
    const quiet = ruleBased([{ match: { path: '/health' }, rate: 0 }])
    const { tracer } = engine({ sampler: parentBased(quiet) })
    const from = extracted({ b3: ids })
    const isKept = (path: string) => tracer.startSpan('GET', { attributes: { 'url.path': path } }, from)
    expect([isKept('/health').isRecording(), isKept('/orders').isRecording()]).toEqual([false, true])
  })

  test('is made once, in the trace that the sender began', () => {
    const { tracer } = engine({ sampler: parentBased(alwaysOn) })
    const span = tracer.startSpan('work', { kind: SpanKind.SERVER }, extracted({ b3: ids }))
    expect(span.spanContext()).toMatchObject({ traceId, traceFlags: 1 })
    expect(injected(trace.setSpan(root, span))).toEqual({ b3: `${traceId}-${span.spanContext().spanId}-1` })
  })
})

describe('beside the official propagator', () => {
  const contexts = fc.record({
    traceId: fc.stringMatching(/^[0-9a-f]{31}[1-9a-f]$/),
    spanId: fc.stringMatching(/^[0-9a-f]{15}[1-9a-f]$/),
    traceFlags: fc.constantFrom(0, 1),
  })

  test('each reads what the other writes, and both write the same', () => {
    const property = fc.property(contexts, (spanContext) => {
      const from = trace.setSpanContext(root, spanContext)
      for (const [ours, theirs] of [
        [b3Propagator, official],
        [b3MultiPropagator, officialMulti],
      ] as const) {
        const carrier = injected(from, ours)
        expect(carrier).toEqual(injected(from, theirs))
        const read = { ...spanContext, isRemote: true }
        expect(spanContextOf(carrier, ours)).toEqual(read)
        expect(trace.getSpanContext(theirs.extract(ROOT_CONTEXT, carrier, defaultTextMapGetter))).toEqual(
          read,
        )
      }
    })
    fc.assert(property)
  })

  test.each<Carrier>([
    { b3: `${ids}-d` },
    { b3: `${spanId}-${spanId}-1-${parentId}` },
    { ...several, 'x-b3-flags': '1' },
    { ...several, 'x-b3-sampled': 'true' },
    { ...several, b3: `${ids}-0`, 'x-b3-sampled': '1' },
  ])('the same is read: %j', (carrier) => {
    expect(spanContextOf(carrier)).toEqual(spanContextOf(carrier, official))
  })
})

test('of several propagators in a list the last one that finds a trace decides, and all of them write', () => {
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  const carrier = { traceparent, b3: `${ids}-1` }
  const first = compositePropagator([traceContextPropagator, b3Propagator])
  const last = compositePropagator([b3Propagator, traceContextPropagator])
  expect(spanContextOf(carrier, first)?.traceId).toBe(traceId)
  expect(spanContextOf(carrier, last)?.traceId).toBe('a'.repeat(32))
  expect(spanContextOf({ traceparent }, first)?.traceId).toBe('a'.repeat(32))
  expect(Object.keys(injected(holding(), first))).toEqual(['traceparent', 'b3'])
  expect(Object.keys(injected(holding(), last))).toEqual(['b3', 'traceparent'])
})
