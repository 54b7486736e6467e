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
  type TraceState,
} from '@opentelemetry/api'
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  InMemorySpanExporter,
  ParentBasedSampler,
  SimpleSpanProcessor,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { batchProcessor } from '../../packages/core/src/batch.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import {
  alwaysOff,
  alwaysOn,
  guardedSampler,
  parentBased,
  probability,
  ruleBased,
  traceIdRatio,
  type Sampler,
} from '../../packages/core/src/sampling.ts'
import { emptyTraceState, parseTracestate } from '../../packages/core/src/trace-context.ts'
import { LazyOptions, engine, processor, said } from './engine.ts'

const { NOT_RECORD, RECORD, RECORD_AND_SAMPLED } = SamplingDecision

function ask(sampler: Sampler, traceId = randomIds.generateTraceId(), context: Context = ROOT_CONTEXT) {
  return sampler.shouldSample(context, traceId, 'work', SpanKind.INTERNAL, {}, []).decision
}

function parent(traceFlags: number, isRemote = true, list = '', traceId = 'a'.repeat(32)): Context {
  const spanContext = { traceId, spanId: 'b'.repeat(16), traceFlags, isRemote }
  const traceState = parseTracestate(list)
  return trace.setSpanContext(
    ROOT_CONTEXT,
    traceState === undefined || traceState === emptyTraceState ? spanContext : { ...spanContext, traceState },
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

/** The tracestate that a span has under this parent. */
function stateAfter(
  sampler: Sampler,
  of: Context,
  { traceId }: { traceId?: string } = {},
): string | undefined {
  const { tracer } = engine({
    sampler,
    ...(traceId !== undefined && {
      idGenerator: { generateTraceId: () => traceId, generateSpanId: randomIds.generateSpanId },
    }),
  })
  return tracer.startSpan('work', {}, of).spanContext().traceState?.serialize()
}

describe('a share that is kept consistently', () => {
  const SPACE = 2n ** 56n
  const high = 'f'.repeat(14)
  const low = '0'.repeat(14)

  /** The threshold that a `th` stands for, by the specification's own words, with none of our code. */
  function threshold(th: string): bigint {
    expect(th).toMatch(/^(0|[0-9a-f]{0,13}[1-9a-f])$/)
    return BigInt(`0x${th.padEnd(14, '0')}`)
  }

  /** The threshold of a share: 4 digits of it, and as many more as there are f's in front of them. */
  function oracle(share: number): bigint {
    const exact = SPACE - BigInt(Math.round(share * 2 ** 56))
    let unit = 16n ** 10n
    for (let rest = SPACE / 16n; unit > 1n && exact >= SPACE - rest; rest /= 16n) unit /= 16n
    return ((exact + unit / 2n) / unit) * unit
  }

  function thOf(state: string | undefined): string | undefined {
    const ot = state?.split(',').find((member) => member.startsWith('ot='))
    return ot
      ?.slice(3)
      .split(';')
      .find((sub) => sub.startsWith('th:'))
      ?.slice(3)
  }

  // TraceState: Probability Sampling, table of thresholds of precision 4.
  test.each([
    [1, '0'],
    [1 / 2, '8'],
    [1 / 3, 'aaab'],
    [1 / 4, 'c'],
    [1 / 5, 'cccd'],
    [1 / 8, 'e'],
    [1 / 10, 'e666'],
    [1 / 16, 'f'],
    [1 / 100, 'fd70a'],
    [1 / 1000, 'ffbe77'],
    [1 / 10_000, 'fff9724'],
    [1 / 100_000, 'ffff583a'],
    [1 / 1_000_000, 'ffffef39'],
    [2 ** -55, 'fffffffffffffe'],
    [2 ** -56, 'ffffffffffffff'],
    // Closer to all than 4 digits can say is all.
    [1 - 2 ** -30, '0'],
  ])('is told as the specification tells it: %d as th:%s', (share, th) => {
    expect(stateAfter(probability(share), ROOT_CONTEXT, { traceId: 'f'.repeat(32) })).toBe(`ot=th:${th}`)
  })

  test('of nothing, or of less than a trace id can tell, keeps nothing', () => {
    for (const share of [0, 2 ** -58, Number.MIN_VALUE]) {
      expect(ask(probability(share), 'f'.repeat(32))).toBe(NOT_RECORD)
      expect(stateAfter(probability(share), ROOT_CONTEXT, { traceId: 'f'.repeat(32) })).toBeUndefined()
      expect(stateAfter(probability(share), parent(3, true, `ot=th:c;rv:${high}`))).toBe(`ot=rv:${high}`)
    }
    expect(ask(probability(1), '0'.repeat(31) + '1')).toBe(RECORD_AND_SAMPLED)
  })

  const anyShare = fc.oneof(
    fc.double({ min: 0, max: 1, noNaN: true }),
    fc.nat(56).map((power) => 2 ** -power),
    fc.nat(9).map((power) => 10 ** -power),
    fc.nat(50).map((power) => 1 - 2 ** -power),
  )
  const anyRandomness = fc.bigInt({ min: 0n, max: SPACE - 1n })
  const hex14 = (bits: bigint) => bits.toString(16).padStart(14, '0')

  test('keeps a trace if, and only if, its randomness reaches the threshold that is told', () => {
    const property = fc.property(
      anyShare,
      anyRandomness,
      fc.constantFrom(-1n, 0n, 1n, undefined),
      fc.boolean(),
      (share, anyR, besideThreshold, isExplicit) => {
        const sampler = probability(share)
        const th = thOf(stateAfter(sampler, ROOT_CONTEXT, { traceId: 'f'.repeat(32) }))
        fc.pre(th !== undefined)
        const t = threshold(th as string)
        expect(t).toBe(oracle(share))
        // Whatever is generated seldom lies at the threshold itself.
        const r = besideThreshold === undefined ? anyR : t + besideThreshold
        fc.pre(r >= 0n && r < SPACE)
        const digits = hex14(r)
        const opposite = hex14(SPACE - 1n - r)
        const traceId = `1${'0'.repeat(17)}${isExplicit ? opposite : digits}`
        const of = parent(2, true, isExplicit ? `v=1,ot=rv:${digits},w=2` : 'v=1,w=2', traceId)
        expect(ask(sampler, traceId, of) === RECORD_AND_SAMPLED).toBe(r >= t)
        const rv = isExplicit ? `rv:${digits}` : ''
        const kept = isExplicit ? `ot=${rv};th:${th},v=1,w=2` : `ot=th:${th},v=1,w=2`
        const dropped = isExplicit ? `v=1,ot=${rv},w=2` : 'v=1,w=2'
        expect(stateAfter(sampler, of)).toBe(r >= t ? kept : dropped)
      },
    )
    fc.assert(property, { numRuns: 2000 })
  })

  test('is as large as was asked for, to 4 digits, and a larger one keeps all that a smaller one keeps', () => {
    const property = fc.property(anyShare, anyShare, (one, other) => {
      const thresholds = [one, other].map((share) => {
        const th = thOf(stateAfter(probability(share), ROOT_CONTEXT, { traceId: 'f'.repeat(32) }))
        return th === undefined ? SPACE : threshold(th)
      })
      const [mine = 0n, others = 0n] = thresholds
      // One in 2^56 is the least that there is; 4 digits are at least 13 significant bits.
      const kept = Number(SPACE - mine) / Number(SPACE)
      expect(Math.abs(kept - one)).toBeLessThanOrEqual(Math.max(one * 2 ** -12, 2 ** -57))
      if (one <= other) expect(mine).toBeGreaterThanOrEqual(others)
      if (one >= other) expect(mine).toBeLessThanOrEqual(others)
    })
    fc.assert(property, { numRuns: 2000 })
  })

  test('keeps about that share of traces', () => {
    const sampler = probability(0.1)
    let kept = 0
    for (let count = 0; count < 20_000; count += 1) if (ask(sampler) === RECORD_AND_SAMPLED) kept += 1
    // 2,000 are expected; the standard deviation is 42.
    expect(Math.abs(kept - 2000)).toBeLessThan(420)
  })

  test.each([
    // R, and what else `ot` holds; what the half that is kept says; what is said where it is dropped.
    ['other concerns of ot', `ot=p:8;r:62,foo=1`, 'ot=p:8;r:62;th:8,foo=1', 'ot=p:8;r:62,foo=1'],
    ['an old threshold', `foo=1,ot=th:c;rv:RV`, 'ot=rv:RV;th:8,foo=1', 'ot=rv:RV,foo=1'],
    ['two thresholds', `ot=th:c;rv:RV;th:1`, 'ot=rv:RV;th:8', 'ot=rv:RV'],
    ['nothing but a threshold', `a=1,ot=th:c,b=2`, 'ot=th:8,a=1,b=2', 'a=1,b=2'],
    ['nothing else at all', `ot=th:c`, 'ot=th:8', ''],
    ['no threshold in th', `ot=th:;x:1`, 'ot=x:1;th:8', 'ot=x:1'],
    ['a threshold of 15 digits', `ot=th:123456789abcdef`, 'ot=th:8', ''],
    ['a threshold in capitals', `ot=th:C`, 'ot=th:8', ''],
    ['members that are none', `ot=;;x;:`, 'ot=x;:;th:8', 'ot=;;x;:'],
    ['a key that only begins like one', `ot=the:1;rvx:2`, 'ot=the:1;rvx:2;th:8', 'ot=the:1;rvx:2'],
    ['a key that only ends like one', `ot=orv:${low}`, `ot=orv:${low};th:8`, `ot=orv:${low}`],
    ['a randomness of 13 digits', `ot=rv:0000000000000`, 'ot=rv:0000000000000;th:8', 'ot=rv:0000000000000'],
    ['one in capitals', `ot=rv:FFFFFFFFFFFFFF`, 'ot=rv:FFFFFFFFFFFFFF;th:8', 'ot=rv:FFFFFFFFFFFFFF'],
  ])('leaves what is not its own as it was: %s', (_row, state, kept, dropped) => {
    for (const [digits, expected] of [
      [high, kept],
      [low, dropped],
    ] as const) {
      const traceId = `1${'0'.repeat(17)}${digits}`
      const of = parent(2, true, state.replace('RV', digits), traceId)
      expect(stateAfter(probability(0.5), of)).toBe(expected.replace('RV', digits))
    }
  })

  test('tells no threshold where ot has no room for it, and says so once', () => {
    const reports = said()
    const traceId = 'f'.repeat(32)
    const long = `x:${'y'.repeat(252)}`
    const stale = `th:8;x:${'y'.repeat(249)}`
    for (const [before, after] of [
      [long, long],
      [stale, stale.slice(5)],
    ]) {
      expect(stateAfter(probability(0.01), parent(2, true, `ot=${before},b=2`, traceId))).toBe(
        `ot=${after},b=2`,
      )
    }
    expect(reports.lines).toEqual([expect.stringContaining('no room')])
  })

  test('presumes that an id is random where nobody says so, and says that once', () => {
    const reports = said()
    ask(probability(0.5), undefined, parent(2))
    ask(probability(0.5), undefined, parent(0, true, `ot=rv:${high}`))
    ask(probability(1), undefined, parent(0))
    ask(probability(0.5), undefined, ROOT_CONTEXT)
    expect(reports.lines).toEqual([])
    ask(probability(0.5), undefined, parent(0))
    ask(probability(0.5), undefined, parent(1))
    expect(reports.lines).toEqual([expect.stringContaining('presumed to be')])
  })

  test('is told once for a trace: whoever follows passes on what the root said', () => {
    const { tracer } = engine({ sampler: parentBased(probability(0.5)) })
    for (let count = 0; count < 100; count += 1) {
      const root = tracer.startSpan('root')
      const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, root)).spanContext()
      expect(child.traceFlags).toBe(root.spanContext().traceFlags)
      expect(child.traceState?.serialize()).toBe(root.isRecording() ? 'ot=th:8' : undefined)
    }
  })
})

describe('a threshold from elsewhere', () => {
  const keeping = guardedSampler(deciding({ decision: RECORD_AND_SAMPLED }))
  const recording = guardedSampler(deciding({ decision: RECORD }))

  const rows: [string, number, string, string][] = [
    [
      'explains why the trace is sampled',
      1,
      'a=1,ot=rv:c0000000000000;th:c',
      'a=1,ot=rv:c0000000000000;th:c',
    ],
    ['does not', 1, 'a=1,ot=rv:bfffffffffffff;th:c,b=2', 'ot=rv:bfffffffffffff,a=1,b=2'],
    ['does by the id', 1, 'ot=th:aaaaaaaaaaaaaa', 'ot=th:aaaaaaaaaaaaaa'],
    ['does not by the id', 1, 'ot=th:aaaaaaaaaaaaab', ''],
    ['is none', 1, 'ot=th:xyz;p:1', 'ot=p:1'],
    ['is not there', 1, 'a=1,ot=p:8', 'a=1,ot=p:8'],
    ['is none, though less than any', 1, 'ot=th:0g;p:1', 'ot=p:1'],
    ['has a digit too many', 1, 'ot=th:000000000000000;p:1', 'ot=p:1'],
    ['is another key', 1, 'a=1,ot=oth:f', 'a=1,ot=oth:f'],
    ['comes after other keys', 1, 'ot=oth:0;pth:0;th:f', 'ot=oth:0;pth:0'],
    ['is of a trace that is not sampled', 0, 'ot=rv:00000000000000;th:c', 'ot=rv:00000000000000'],
    ['is of a trace that ought to be sampled', 0, 'ot=rv:ffffffffffffff;th:c', 'ot=rv:ffffffffffffff'],
  ]
  test.each(rows)('is passed on where it %s', (_row, flags, state, expected) => {
    const of = parent(flags, true, state)
    for (const sampler of [probability(0.5), ruleBased([])].map(parentBased)) {
      expect(ask(sampler, 'a'.repeat(32), of)).toBe(flags === 1 ? RECORD_AND_SAMPLED : NOT_RECORD)
      expect(stateAfter(sampler, of)).toBe(expected)
    }
  })

  test("is nobody's business where the parent is followed and no share was asked for: the tracestate passes as it came", () => {
    for (const [, flags, state] of rows) {
      expect(stateAfter(parentBased(alwaysOn), parent(flags, true, state))).toBe(state)
      expect(stateAfter(parentBased(traceIdRatio(0.5)), parent(flags, true, state))).toBe(state)
    }
  })

  test.each<[string, Sampler, number, string, string]>([
    ['all are kept, as the parent was', alwaysOn, 1, 'a=1,ot=p:8;th:8', 'a=1,ot=p:8;th:8'],
    ['all are kept, and the parent was not', alwaysOn, 0, 'a=1,ot=p:8;th:8', 'ot=p:8,a=1'],
    ['none is kept', alwaysOff, 1, 'a=1,ot=th:0', 'a=1'],
    ['the id alone says keep', traceIdRatio(0.9), 1, 'a=1,ot=th:0', 'a=1'],
    ['the id alone says drop', traceIdRatio(0.1), 1, 'a=1,ot=th:0', 'a=1'],
    ["the app's sampler keeps, as the parent was", keeping, 1, 'a=1,ot=th:8', 'a=1,ot=th:8'],
    ["the app's sampler keeps, and the parent was not", keeping, 0, 'a=1,ot=th:0', 'a=1'],
    ["the app's sampler drops", guardedSampler(deciding({ decision: NOT_RECORD })), 1, 'a=1,ot=th:0', 'a=1'],
    ["the app's sampler records and does not sample", recording, 1, 'a=1,ot=th:0', 'a=1'],
  ])('is passed on where it can be true of the decision: %s', (_row, sampler, flags, state, expected) => {
    said()
    expect(stateAfter(sampler, parent(flags, true, state))).toBe(expected)
  })

  test('in a tracestate that is none does no harm', () => {
    const throwing = {
      get() {
        throw new Error('of the app')
      },
    }
    for (const traceState of [{}, 'text', throwing, { get: () => 7 }] as never[]) {
      const spanContext = { traceId: 'f'.repeat(32), spanId: 'b'.repeat(16), isRemote: true, traceState }
      for (const traceFlags of [0, 1]) {
        const of = trace.setSpanContext(ROOT_CONTEXT, { ...spanContext, traceFlags })
        expect(ask(alwaysOff, undefined, of)).toBe(NOT_RECORD)
        expect(ask(parentBased(probability(0.5)), undefined, of)).toBe(
          traceFlags === 1 ? RECORD_AND_SAMPLED : NOT_RECORD,
        )
      }
    }
  })

  test('costs a request without a tracestate nothing: the verdicts are the same objects', () => {
    const verdict = (sampler: Sampler, of: Context) =>
      sampler.shouldSample(of, 'f'.repeat(32), 'work', SpanKind.SERVER, {}, [])
    for (const sampler of [
      parentBased(alwaysOn),
      parentBased(probability(0.5)),
      probability(0.5),
      alwaysOff,
    ]) {
      for (const of of [ROOT_CONTEXT, parent(2), parent(3)]) {
        expect(verdict(sampler, of)).toBe(verdict(sampler, of))
      }
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

describe("the app's own sampler", () => {
  const stateOf = (sampler: Sampler, of: Context) => stateAfter(guardedSampler(sampler), of)
  const state = createTraceState('vendor=new')

  test('is taken by its word: decision, attributes, tracestate and name', () => {
    const own: Sampler = {
      shouldSample: () => ({ decision: RECORD_AND_SAMPLED, attributes: { rule: 'vip' }, traceState: state }),
      toString: () => 'Mine',
    }
    const { tracer, ended } = engine({ sampler: guardedSampler(own) })
    const span = tracer.startSpan('work', { attributes: { a: 1 } })
    span.end()
    expect(span.spanContext().traceState).toBe(state)
    expect(ended[0]?.attributes).toEqual({ a: 1, rule: 'vip' })
    expect(String(guardedSampler(own))).toBe('Mine')
  })

  test.each<[string, () => unknown]>([
    ['a promise', async () => ({ decision: RECORD_AND_SAMPLED })],
    ['a promise that is rejected', () => Promise.reject(new Error('of the app'))],
    ['nothing', () => undefined],
    ['null', () => null],
    ['a number', () => 2],
    ['a decision that is none', () => ({ decision: '2' })],
    [
      'an error',
      () => {
        throw new Error('of the app')
      },
    ],
    [
      'an error, when it is looked at',
      () => ({
        get decision() {
          throw new Error('of the app')
        },
      }),
    ],
  ])('that answers %s costs the app nothing: the default decides, and it is said once', (_row, answer) => {
    const reports = said()
    const own = { shouldSample: answer, toString: () => 'Broken' } as unknown as Sampler
    const { tracer } = engine({ sampler: guardedSampler(own) })
    for (let count = 0; count < 2; count += 1) {
      expect(tracer.startSpan('root').isRecording()).toBe(true)
      expect(tracer.startSpan('child', {}, parent(0)).isRecording()).toBe(false)
    }
    expect(reports.lines).toHaveLength(1)
  })

  test.each<[string, object]>([
    ['attributes that are none', { attributes: 'text' }],
    ['attributes that are null', { attributes: null }],
    ['a tracestate that is none', { traceState: 'vendor=1' }],
    ['a tracestate that is null', { traceState: null }],
  ])('that gives %s decides all the same; they are ignored, and that is said once', (_row, more) => {
    const reports = said()
    const sampler = guardedSampler(deciding({ decision: RECORD_AND_SAMPLED, ...more }))
    const { tracer, ended } = engine({ sampler })
    tracer.startSpan('work', { attributes: { a: 1 } }, parent(0, true, 'vendor=old')).end()
    expect(ended).toMatchObject([{ attributes: { a: 1 } }])
    expect(ended[0]?.spanContext().traceState?.serialize()).toBe('vendor=old')
    expect(reports.lines).toHaveLength(1)
  })

  test('leaves no threshold with what it decides otherwise, unless it says what the tracestate is', () => {
    const of = parent(1, true, 'ot=th:c;rv:6e6d1a75832a2f')
    expect(stateOf(deciding({ decision: NOT_RECORD }), of)).toBe('ot=rv:6e6d1a75832a2f')
    expect(stateOf(deciding({ decision: NOT_RECORD, traceState: state }), of)).toBe('vendor=new')
    expect(stateOf(deciding({ decision: RECORD_AND_SAMPLED }), of)).toBe('ot=th:c;rv:6e6d1a75832a2f')
    // A sampler that gives the parent's back, as the standard says is usual, says nothing of it.
    const given = trace.getSpanContext(of)?.traceState as TraceState
    expect(stateOf(deciding({ decision: NOT_RECORD, traceState: given }), of)).toBe('ot=rv:6e6d1a75832a2f')
  })

  test('may keep and change what it is shown: neither the app’s own nor what others are shown changes', () => {
    const seen: unknown[] = []
    const meddling: Sampler = {
      shouldSample(_context, _traceId, _name, _kind, attributes, links) {
        seen.push(structuredClone([attributes, links]))
        ;(attributes['list'] as number[] | undefined)?.push(9)
        attributes['more'] = 1
        links.push({ context: { traceId: '', spanId: '', traceFlags: 0 } })
        return { decision: RECORD_AND_SAMPLED }
      },
      toString: () => 'Meddling',
    }
    for (const head of [{}, { ignoresAttributes: true }, { ignoresAttributes: false }]) {
      seen.length = 0
      const { tracer, ended } = engine({ sampler: guardedSampler(Object.assign({}, meddling, head)) })
      const given = { attributes: { list: [1] }, links: [] }
      for (let count = 0; count < 2; count += 1) tracer.startSpan('work', given).end()
      tracer.startSpan('work').end()
      tracer.startSpan('work', { attributes: 'xy', links: 7 } as never).end()
      const shown = 'ignoresAttributes' in head && head.ignoresAttributes ? {} : { list: [1] }
      expect(seen).toEqual([
        [shown, []],
        [shown, []],
        [{}, []],
        [{}, []],
      ])
      expect(given).toEqual({ attributes: { list: [1] }, links: [] })
      expect(ended.map(({ attributes }) => attributes)).toEqual([{ list: [1] }, { list: [1] }, {}, {}])
    }
  })

  test('decides also where the parent cannot be asked', () => {
    const reports = said()
    const broken = {
      spanContext() {
        throw new Error('of the app')
      },
    }
    const of = trace.setSpan(ROOT_CONTEXT, broken as never)
    for (const decision of [NOT_RECORD, RECORD, RECORD_AND_SAMPLED]) {
      expect(ask(guardedSampler(deciding({ decision })), undefined, of)).toBe(decision)
    }
    expect(ask(alwaysOn, undefined, of)).toBe(RECORD_AND_SAMPLED)
    expect(reports.lines).toEqual([])
  })

  test('may be an official one, also with others for each kind of parent', () => {
    const reports = said()
    const official = new ParentBasedSampler({
      root: new AlwaysOnSampler(),
      remoteParentNotSampled: new AlwaysOnSampler(),
      localParentSampled: new AlwaysOffSampler(),
    })
    const sampler = guardedSampler(official)
    expect(String(sampler)).toBe(String(official))
    for (const [of, decision] of [
      [ROOT_CONTEXT, RECORD_AND_SAMPLED],
      [parent(1), RECORD_AND_SAMPLED],
      [parent(0), RECORD_AND_SAMPLED],
      [parent(1, false), NOT_RECORD],
      [parent(0, false), NOT_RECORD],
    ] as const) {
      expect(ask(sampler, undefined, of)).toBe(decision)
    }
    expect(reports.lines).toEqual([])
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
