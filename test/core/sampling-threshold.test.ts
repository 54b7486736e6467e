import { ROOT_CONTEXT, SamplingDecision, SpanKind, trace, type Context } from '@opentelemetry/api'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
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
import { engine, said } from './engine.ts'
import { ask, deciding, parent, stateAfter } from './samplers.ts'

const { NOT_RECORD, RECORD, RECORD_AND_SAMPLED } = SamplingDecision

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
