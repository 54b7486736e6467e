import {
  ROOT_CONTEXT,
  SamplingDecision,
  trace,
  createTraceState,
  type Context,
  type TraceState,
} from '@opentelemetry/api'
import { AlwaysOffSampler, AlwaysOnSampler, ParentBasedSampler } from '@opentelemetry/sdk-trace-base'
import { describe, expect, test } from 'vitest'
import { alwaysOn, guardedSampler, type Sampler } from '../../packages/core/src/sampling.ts'
import { engine, said } from './engine.ts'
import { ask, deciding, parent, stateAfter } from './samplers.ts'

const { NOT_RECORD, RECORD, RECORD_AND_SAMPLED } = SamplingDecision

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
