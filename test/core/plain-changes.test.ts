import {
  propagation,
  ROOT_CONTEXT,
  SamplingDecision,
  SpanKind,
  trace,
  type Context,
  type TextMapPropagator,
} from '@opentelemetry/api'
import { afterEach, describe, expect, test } from 'vitest'
import { suppressTracing, withSpan } from '../../packages/core/src/context.ts'
import { headerChanges, plainChanges } from '../../packages/core/src/http-client/headers.ts'
import {
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
  w3cPropagator,
} from '../../packages/core/src/propagation.ts'
import { alwaysOn, parentBased } from '../../packages/core/src/sampling.ts'
import { parseTracestate } from '../../packages/core/src/trace-context.ts'
import { engine, LazyOptions } from './engine.ts'

afterEach(() => propagation.disable())

const BAGGAGE = propagation.createBaggage({ tenant: { value: 'acme' } })
const KEY = Symbol('of the app')
const PARENT = { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 }

function below(parent: typeof PARENT & { traceState?: ReturnType<typeof parseTracestate> }): Context {
  return withSpan(ROOT_CONTEXT, trace.wrapSpanContext(parent as never))
}

const CALLERS: [name: string, caller: Context, isPlain: boolean][] = [
  ['nobody', withSpan(ROOT_CONTEXT, undefined), true],
  ['a sampled parent', below(PARENT), true],
  ['a parent that is not', below({ ...PARENT, traceFlags: 0 }), true],
  ['a parent whose ids are random', below({ ...PARENT, traceFlags: 3 }), true],
  ['a parent with a tracestate', below({ ...PARENT, traceState: parseTracestate('a=1,b=2') }), false],
  ['one with baggage', propagation.setBaggage(below(PARENT), BAGGAGE), false],
  ['one with a value of the app', below(PARENT).setValue(KEY, 1), false],
  ['one in which nothing is traced', suppressTracing(below(PARENT)), false],
  ["a context of the API's own", trace.setSpan(ROOT_CONTEXT, trace.wrapSpanContext(PARENT)), false],
]

const NEVER_READ = (): never => {
  throw new Error('nothing is read where all is replaced')
}

describe('plain changes of headers are those that the propagator makes', () => {
  test.each(CALLERS)('for %s', (_, caller, isPlain) => {
    propagation.setGlobalPropagator(w3cPropagator)
    const { tracer } = engine({ sampler: parentBased(alwaysOn) })
    const span = tracer.startDeferred(new LazyOptions(SpanKind.CLIENT, () => ({})), caller, SpanKind.CLIENT)
    const plain = plainChanges(caller, span)
    expect(plain !== undefined).toBe(isPlain)
    if (plain !== undefined)
      expect(plain).toEqual(headerChanges(withSpan(caller, span), 'replace', undefined, NEVER_READ))
  })

  test.each<[name: string, register: () => void]>([
    ['nobody', () => {}],
    ['one of its parts', () => propagation.setGlobalPropagator(traceContextPropagator)],
    [
      'one that is put together as it is',
      () => propagation.setGlobalPropagator(compositePropagator([traceContextPropagator, baggagePropagator])),
    ],
    [
      "one of the app's",
      () =>
        propagation.setGlobalPropagator({
          inject() {},
          extract: (into) => into,
          fields: () => [],
        } satisfies TextMapPropagator),
    ],
  ])('and there are none where %s is registered', (_, register) => {
    register()
    const caller = below(PARENT)
    const span = engine().tracer.startSpan('work', {}, caller)
    expect(plainChanges(caller, span)).toBeUndefined()
  })

  test('nor for a span of others, whose ids nobody has checked', () => {
    propagation.setGlobalPropagator(w3cPropagator)
    expect(
      plainChanges(below(PARENT), trace.wrapSpanContext({ ...PARENT, spanId: 'nonsense' })),
    ).toBeUndefined()
  })

  test('nor where a sampler has given the span a tracestate', () => {
    propagation.setGlobalPropagator(w3cPropagator)
    const traceState = parseTracestate('vendor=1')
    if (traceState === undefined) throw new Error('it is a tracestate')
    const sampler = {
      shouldSample: () => ({ decision: SamplingDecision.RECORD_AND_SAMPLED, traceState }),
      toString: () => 'test',
    }
    const { tracer } = engine({ sampler })
    const caller = below(PARENT)
    expect(plainChanges(caller, tracer.startSpan('work', {}, caller))).toBeUndefined()
  })
})
