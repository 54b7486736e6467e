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
import { ParentBasedSampler, AlwaysOnSampler, TraceIdRatioBasedSampler } from '@opentelemetry/sdk-trace-base'
import { describe, expect, test } from 'vitest'
import { randomIds } from '../../packages/core/src/ids.ts'
import {
  alwaysOff,
  alwaysOn,
  parentBased,
  traceIdRatio,
  type Sampler,
} from '../../packages/core/src/sampling.ts'
import { LazyOptions } from '../../packages/core/src/tracer.ts'
import { engine, processor, said } from './engine.ts'

const { NOT_RECORD, RECORD, RECORD_AND_SAMPLED } = SamplingDecision

function ask(sampler: Sampler, traceId = randomIds.generateTraceId(), context: Context = ROOT_CONTEXT) {
  return sampler.shouldSample(context, traceId, 'work', SpanKind.INTERNAL, {}, []).decision
}

function parent(traceFlags: number, isRemote = true, traceState = ''): Context {
  const spanContext = { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags, isRemote }
  return trace.setSpanContext(
    ROOT_CONTEXT,
    traceState === '' ? spanContext : { ...spanContext, traceState: createTraceState(traceState) },
  )
}

function deciding(result: SamplingResult): Sampler {
  return { shouldSample: () => result, toString: () => 'Fixed' }
}

describe('the samplers', () => {
  test('say their names as the standard has them', () => {
    expect(String(alwaysOn)).toBe('AlwaysOnSampler')
    expect(String(alwaysOff)).toBe('AlwaysOffSampler')
    expect(String(traceIdRatio(0.25))).toBe('TraceIdRatioBased{0.25}')
    expect(String(parentBased(alwaysOn))).toBe(
      String(new ParentBasedSampler({ root: new AlwaysOnSampler() })),
    )
    expect(String(new TraceIdRatioBasedSampler(0.25))).toBe(String(traceIdRatio(0.25)))
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
    const half = traceIdRatio(0.5)
    expect(ask(half, `${'f'.repeat(18)}${'0'.repeat(14)}`, parent(1))).toBe(NOT_RECORD)
    expect(ask(half, `${'0'.repeat(18)}80000000000000`, parent(0))).toBe(RECORD_AND_SAMPLED)
    expect(ask(half, `${'0'.repeat(18)}7fffffffffff00`)).toBe(NOT_RECORD)
    expect(ask(traceIdRatio(0), 'f'.repeat(32))).toBe(NOT_RECORD)
    expect(ask(traceIdRatio(1), '0'.repeat(31) + '1')).toBe(RECORD_AND_SAMPLED)
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
    expect(lazily(parentBased(alwaysOn), parent(0)).built).toBe(0)
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
