import {
  ROOT_CONTEXT,
  SamplingDecision,
  SpanKind,
  trace,
  TraceFlags,
  createTraceState,
  type Attributes,
  type Context,
  type SamplingResult,
} from '@opentelemetry/api'
import {
  AlwaysOnSampler,
  InMemorySpanExporter,
  ParentBasedSampler,
  SimpleSpanProcessor,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base'
import { describe, expect, test } from 'vitest'
import { batchProcessor } from '../../packages/core/src/batch.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import {
  alwaysOff,
  alwaysOn,
  parentBased,
  probability,
  ruleBased,
  traceIdRatio,
  type Sampler,
} from '../../packages/core/src/sampling.ts'
import { LazyOptions, engine, processor, said } from './engine.ts'
import { ask, deciding, parent, stateAfter } from './samplers.ts'

const { NOT_RECORD, RECORD, RECORD_AND_SAMPLED } = SamplingDecision

describe('the samplers', () => {
  test('say their names as the standard has them', () => {
    expect(String(alwaysOn)).toBe('AlwaysOnSampler')
    expect(String(alwaysOff)).toBe('AlwaysOffSampler')
    expect(String(traceIdRatio(0.25))).toBe('TraceIdRatioBased{0.25}')
    expect(String(parentBased(alwaysOn))).toBe(
      String(new ParentBasedSampler({ root: new AlwaysOnSampler() })),
    )
    expect(String(new TraceIdRatioBasedSampler(0.25))).toBe(String(traceIdRatio(0.25)))
    expect(String(probability(0.25))).toBe('ProbabilitySampler{0.25}')
  })

  test.each([
    [0, '0'],
    [1, '1'],
    [0.0001, '0.0001'],
    [0.000_001, '0.000001'],
    [1e-7, '0.0000001'],
    [1.25e-9, '0.00000000125'],
    [2 ** -56, `0.${'0'.repeat(16)}13877787807814457`],
  ])('and a share as a decimal: %d', (ratio, decimal) => {
    expect(String(traceIdRatio(ratio))).toBe(`TraceIdRatioBased{${decimal}}`)
    expect(Number(decimal)).toBe(ratio)
  })

  test('always and never mean it', () => {
    expect(ask(alwaysOn)).toBe(RECORD_AND_SAMPLED)
    expect(ask(alwaysOff)).toBe(NOT_RECORD)
    expect(ask(alwaysOn, undefined, parent(0))).toBe(RECORD_AND_SAMPLED)
    expect(ask(alwaysOff, undefined, parent(1))).toBe(NOT_RECORD)
  })

  const rows: [string, Context, number, number][] = [
    ['no parent', ROOT_CONTEXT, RECORD_AND_SAMPLED, NOT_RECORD],
    ['a sampled parent elsewhere', parent(TraceFlags.SAMPLED), RECORD_AND_SAMPLED, RECORD_AND_SAMPLED],
    ['an unsampled parent elsewhere', parent(TraceFlags.NONE), NOT_RECORD, NOT_RECORD],
    ['a sampled parent here', parent(TraceFlags.SAMPLED, false), RECORD_AND_SAMPLED, RECORD_AND_SAMPLED],
    ['an unsampled parent here', parent(TraceFlags.NONE, false), NOT_RECORD, NOT_RECORD],
    ['an unsampled parent with a random id', parent(0x02), NOT_RECORD, NOT_RECORD],
    [
      'a parent that is none',
      trace.setSpanContext(ROOT_CONTEXT, { traceId: '0'.repeat(32), spanId: '0'.repeat(16), traceFlags: 1 }),
      RECORD_AND_SAMPLED,
      NOT_RECORD,
    ],
  ]
  test.each(rows)(
    'follow the parent, and ask the root sampler where there is none: %s',
    (_row, of, on, off) => {
      expect(ask(parentBased(alwaysOn), undefined, of)).toBe(on)
      expect(ask(parentBased(alwaysOff), undefined, of)).toBe(off)
    },
  )

  test('keep about the share of traces that was asked for', () => {
    let kept = 0
    for (let count = 0; count < 20_000; count += 1) {
      if (ask(traceIdRatio(0.1)) === RECORD_AND_SAMPLED) kept += 1
    }
    // 2,000 are expected; the standard deviation is 42.
    expect(Math.abs(kept - 2000)).toBeLessThan(420)
  })

  test('decide alike for the same trace in every service, and a higher share keeps all that a lower one keeps', () => {
    const ratios = [0, 0.001, 0.1, 0.5, 0.9, 1]
    for (let count = 0; count < 5000; count += 1) {
      const traceId = randomIds.generateTraceId()
      const kept = ratios.map((ratio) => ask(traceIdRatio(ratio), traceId) === RECORD_AND_SAMPLED)
      expect(kept).toEqual(ratios.map((ratio) => ask(traceIdRatio(ratio), traceId) === RECORD_AND_SAMPLED))
      expect(kept).toEqual(kept.toSorted())
      expect([kept[0], kept.at(-1)]).toEqual([false, true])
    }
  })

  test('a share looks at the random part of the id alone, and not at the parent', () => {
    said()
    const half = traceIdRatio(0.5)
    expect(ask(half, `${'f'.repeat(18)}${'0'.repeat(14)}`, parent(1))).toBe(NOT_RECORD)
    expect(ask(half, `${'0'.repeat(18)}80000000000000`, parent(0))).toBe(RECORD_AND_SAMPLED)
    expect(ask(half, `${'0'.repeat(18)}7fffffffffff00`)).toBe(NOT_RECORD)
    expect(ask(traceIdRatio(0), 'f'.repeat(32))).toBe(NOT_RECORD)
    expect(ask(traceIdRatio(1), '0'.repeat(31) + '1')).toBe(RECORD_AND_SAMPLED)
  })

  test('a share is compared to the last bit of an id', () => {
    // 2^53 and more: numbers that a double cannot tell from their neighbours.
    expect(ask(traceIdRatio(2 ** -56), `${'0'.repeat(18)}${'f'.repeat(13)}e`)).toBe(NOT_RECORD)
    expect(ask(traceIdRatio(2 ** -56), `${'0'.repeat(18)}${'f'.repeat(14)}`)).toBe(RECORD_AND_SAMPLED)
    expect(ask(traceIdRatio(2 ** -58), 'f'.repeat(32))).toBe(NOT_RECORD)
  })

  test('a share of spans that have parents is said once to be none of traces', () => {
    const reports = said()
    ask(parentBased(traceIdRatio(0.5)), undefined, parent(1))
    ask(traceIdRatio(0.5))
    expect(reports.lines).toEqual([])
    ask(traceIdRatio(0.5), undefined, parent(1))
    ask(traceIdRatio(0.5), undefined, parent(0, false))
    expect(reports.lines).toEqual([expect.stringContaining('parentbased_traceidratio')])
  })

  test('a share by TraceIdRatioBased says nothing in the tracestate', () => {
    expect(traceIdRatio(0.5).shouldSample(ROOT_CONTEXT, 'f'.repeat(32), 'work', 0, {}, [])).toEqual({
      decision: RECORD_AND_SAMPLED,
    })
  })

  test('never leaves a threshold with what it drops: it counts for nothing', () => {
    const sampled = parent(1, true, 'a=1,ot=th:c;rv:6e6d1a75832a2f,b=2')
    expect(stateAfter(alwaysOff, sampled)).toBe('ot=rv:6e6d1a75832a2f,a=1,b=2')
    expect(stateAfter(alwaysOff, parent(1, true, 'ot=rv:6e6d1a75832a2f'))).toBe('ot=rv:6e6d1a75832a2f')
  })

  test('never leaves one whose neighbour ends with a space, which no value may', () => {
    expect(stateAfter(alwaysOff, parent(1, true, 'ot=x y ;th:c,a=1'))).toBe('ot=x y,a=1')
    expect(stateAfter(alwaysOff, parent(1, true, 'ot= ;th:c,a=1'))).toBe('a=1')
    expect(stateAfter(parentBased(probability(0.1)), parent(0, true, 'ot=x ;th:c'))).toBe('ot=x')
  })

  test("decide also where the parent's tracestate is the app's own and cannot be changed", () => {
    const broken = () => {
      throw new Error('of the app')
    }
    for (const unset of [broken, undefined, () => undefined]) {
      const traceState = { get: () => 'th:c', set: broken, unset, serialize: () => 'a=1,ot=th:c' } as never
      const spanContext = { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1, traceState }
      const of = trace.setSpanContext(ROOT_CONTEXT, spanContext)
      const { tracer } = engine({ sampler: alwaysOff })
      const dropped = tracer.startSpan('work', {}, of).spanContext()
      expect(dropped.traceFlags & TraceFlags.SAMPLED).toBe(0)
      expect(dropped.traceState?.serialize()).toBe('a=1')
    }
  })
})

describe('a tracer asks the sampler', () => {
  test('with the trace id, name, kind, attributes and links, and adds the attributes that it gives', () => {
    let asked: unknown[] = []
    const sampler: Sampler = {
      shouldSample(_context, ...rest) {
        asked = rest
        return { decision: RECORD_AND_SAMPLED, attributes: { 'sampling.rule': 'vip' } }
      },
      toString: () => 'Asking',
    }
    const { tracer, ended } = engine({ sampler })
    const links = [{ context: { traceId: 'c'.repeat(32), spanId: 'd'.repeat(16), traceFlags: 1 } }]
    const span = tracer.startSpan('work', { kind: SpanKind.CLIENT, attributes: { a: 1 }, links })
    span.end()
    expect(asked).toEqual([span.spanContext().traceId, 'work', SpanKind.CLIENT, { a: 1 }, links])
    expect(ended[0]?.attributes).toEqual({ a: 1, 'sampling.rule': 'vip' })
  })

  test('without a parent in its context for a span that is to be a root', () => {
    const seen: unknown[] = []
    const sampler: Sampler = {
      shouldSample(context) {
        seen.push(trace.getSpan(context))
        return { decision: RECORD_AND_SAMPLED }
      },
      toString: () => 'Seeing',
    }
    const { tracer } = engine({ sampler })
    const span = tracer.startSpan('work', { root: true }, parent(1))
    expect(seen).toEqual([undefined])
    expect(span.spanContext().traceId).not.toBe('a'.repeat(32))
  })

  const verdicts: [string, number, boolean, number][] = [
    ['dropped: neither recorded nor sampled', NOT_RECORD, false, 0],
    ['recorded only', RECORD, true, 0],
    ['recorded and sampled', RECORD_AND_SAMPLED, true, 1],
  ]
  test.each(verdicts)('and the span is %s', (_row, decision, isRecording, sampled) => {
    const started: unknown[] = []
    const { tracer } = engine({
      sampler: deciding({ decision }),
      processors: [processor({ onStart: (span) => started.push(span) })],
    })
    const span = tracer.startSpan('work')
    expect(span.isRecording()).toBe(isRecording)
    expect(span.spanContext().traceFlags & TraceFlags.SAMPLED).toBe(sampled)
    expect(started).toHaveLength(isRecording ? 1 : 0)
  })

  test('and what is recorded only reaches the processors, but no exporter: not ours, not the official one', async () => {
    const ended: string[] = []
    const ours: string[] = []
    const official = new InMemorySpanExporter()
    const exporter = {
      export(spans: { name: string }[], done: (result: { code: 0 }) => void) {
        ours.push(...spans.map(({ name }) => name))
        done({ code: 0 })
      },
      shutdown: async () => {},
    }
    const options = {
      scheduledDelayMillis: 0,
      exportTimeoutMillis: 0,
      maxQueueSize: 10,
      maxExportBatchSize: 10,
    }
    const byName: Sampler = {
      shouldSample: (_context, _traceId, name) => ({
        decision: name === 'kept' ? RECORD_AND_SAMPLED : RECORD,
      }),
      toString: () => 'ByName',
    }
    const { tracer, provider } = engine({
      sampler: byName,
      processors: [
        processor({ onEnd: (span) => ended.push(span.name) }),
        batchProcessor(exporter, options),
        new SimpleSpanProcessor(official) as never,
      ],
    })
    tracer.startSpan('recorded').end()
    tracer.startSpan('kept').end()
    await provider.forceFlush()
    expect(ended).toEqual(['recorded', 'kept'])
    expect(ours).toEqual(['kept'])
    expect(official.getFinishedSpans().map(({ name }) => name)).toEqual(['kept'])
  })

  test('and a dropped span has a new id of its own in the same trace, to be passed on', () => {
    const { tracer } = engine({ sampler: alwaysOff })
    const first = tracer.startSpan('work', {}, parent(1)).spanContext()
    const second = tracer.startSpan('work', {}, parent(1)).spanContext()
    expect(first.traceId).toBe('a'.repeat(32))
    expect(first.spanId).toMatch(/^[0-9a-f]{16}$/)
    expect(new Set(['b'.repeat(16), first.spanId, second.spanId]).size).toBe(3)
  })

  test("and the parent's tracestate goes on, unless the sampler gives another or clears it", () => {
    const inherited = engine({ sampler: deciding({ decision: RECORD_AND_SAMPLED }) })
    const changed = engine({
      sampler: deciding({ decision: NOT_RECORD, traceState: createTraceState('vendor=new') }),
    })
    const cleared = engine({ sampler: deciding({ decision: RECORD, traceState: createTraceState('') }) })
    const stateOf = ({ tracer }: typeof inherited) =>
      tracer
        .startSpan('work', {}, parent(1, true, 'vendor=old'))
        .spanContext()
        .traceState?.serialize()
    expect([inherited, changed, cleared].map(stateOf)).toEqual(['vendor=old', 'vendor=new', ''])
  })

  test('and one that throws, or gives no decision, costs the app nothing: the default decides, and it is said once', () => {
    const throwing: Sampler = {
      shouldSample() {
        throw new Error('no rules')
      },
      toString() {
        throw new Error('no name')
      },
    }
    const speechless = deciding(undefined as unknown as SamplingResult)
    const wrong = deciding({ decision: 7 as SamplingDecision })
    for (const sampler of [throwing, speechless, wrong]) {
      const reports = said()
      const { tracer } = engine({ sampler })
      expect(tracer.startSpan('root').isRecording()).toBe(true)
      expect(tracer.startSpan('child', {}, parent(0)).isRecording()).toBe(false)
      expect(reports.lines).toHaveLength(1)
    }
  })
})

describe('the attributes of a seam', () => {
  function lazily(sampler: Sampler, of: Context = ROOT_CONTEXT) {
    let built = 0
    const { tracer, ended } = engine({ sampler })
    const options = new LazyOptions(SpanKind.SERVER, (): Attributes => {
      built += 1
      return { 'url.path': '/orders' }
    })
    tracer.startSpan('GET', options, of).end()
    return { built, ended }
  }

  test('are not built for a span that is not recorded', () => {
    expect(lazily(alwaysOff).built).toBe(0)
    expect(lazily(traceIdRatio(0)).built).toBe(0)
    expect(lazily(parentBased(probability(0))).built).toBe(0)
    expect(lazily(parentBased(alwaysOn), parent(0)).built).toBe(0)
    // Nobody asks the rules about what the parent has decided.
    const rules = parentBased(ruleBased([{ match: { path: '/orders' }, rate: 1 }]))
    for (const isRemote of [true, false]) expect(lazily(rules, parent(0, isRemote)).built).toBe(0)
  })

  test('are built once for a span that is, also where the sampler reads them', () => {
    const reading: Sampler = {
      shouldSample(_context, _traceId, _name, _kind, attributes) {
        return { decision: attributes['url.path'] === '/orders' ? RECORD_AND_SAMPLED : NOT_RECORD }
      },
      toString: () => 'Reading',
    }
    for (const sampler of [alwaysOn, parentBased(alwaysOn), reading, parentBased(reading)]) {
      const { built, ended } = lazily(sampler)
      expect(built).toBe(1)
      expect(ended[0]?.attributes).toEqual({ 'url.path': '/orders' })
    }
  })

  test("are the span's own: a sampler that changes what it was shown changes nothing", () => {
    const meddling: Sampler = {
      shouldSample(_context, _traceId, _name, _kind, attributes) {
        attributes['url.path'] = 'changed'
        return { decision: RECORD_AND_SAMPLED }
      },
      toString: () => 'Meddling',
    }
    expect(lazily(meddling).ended[0]?.attributes).toEqual({ 'url.path': '/orders' })
  })
})
