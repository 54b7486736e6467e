import {
  context,
  createTraceState,
  defaultTextMapGetter,
  defaultTextMapSetter,
  propagation,
  ROOT_CONTEXT,
  trace,
  type Context,
  type SpanContext,
} from '@opentelemetry/api'
import * as fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { AsyncContextManager, root, suppressTracing } from '../../packages/core/src/context.ts'
import {
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
} from '../../packages/core/src/propagation.ts'
import { said } from './engine.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const spanId = '00f067aa0ba902b7'
const traceparent = `00-${traceId}-${spanId}-01`

function holding(more: Partial<SpanContext> = {}): Context {
  return trace.setSpanContext(root, { traceId, spanId, traceFlags: 1, ...more })
}

function injected(from: Context): Record<string, string> {
  const carrier = {}
  propagation.inject(from, carrier)
  return carrier
}

beforeEach(() => {
  context.setGlobalContextManager(new AsyncContextManager())
  propagation.setGlobalPropagator(compositePropagator([traceContextPropagator, baggagePropagator]))
})
afterEach(() => {
  context.disable()
  propagation.disable()
})

describe('what goes out', () => {
  test('is the current trace, its tracestate and the baggage', () => {
    const from = propagation.setBaggage(
      holding({ traceState: createTraceState('vendor=x') }),
      propagation.createBaggage({ tenant: { value: 'acme' } }),
    )
    expect(injected(from)).toEqual({ traceparent, tracestate: 'vendor=x', baggage: 'tenant=acme' })
    expect(context.with(from, () => injected(context.active()))).toEqual(injected(from))
  })

  test('is in lower case, as a header must be, whatever a parent of others has its ids in', () => {
    const capitals = { traceId: traceId.toUpperCase(), spanId: spanId.toUpperCase() }
    expect(injected(holding(capitals))).toEqual({ traceparent })
    expect(capitals.traceId).not.toBe(traceId)
  })

  test('is no header at all for what is empty', () => {
    expect(injected(holding())).toEqual({ traceparent })
    expect(injected(holding({ traceState: createTraceState('') }))).toEqual({ traceparent })
    expect(injected(propagation.setBaggage(holding(), propagation.createBaggage()))).toEqual({ traceparent })
    expect(injected(root)).toEqual({})
    expect(injected(holding({ traceId: '0'.repeat(32) }))).toEqual({})
  })

  test('keeps whether the trace is sampled and whether its id is random', () => {
    for (const [traceFlags, digits] of [
      [0, '00'],
      [1, '01'],
      [2, '02'],
      [3, '03'],
    ] as const) {
      expect(injected(holding({ traceFlags }))['traceparent']).toBe(`00-${traceId}-${spanId}-${digits}`)
    }
  })

  test('is nothing where tracing is suppressed', () => {
    const from = propagation.setBaggage(holding(), propagation.createBaggage({ tenant: { value: 'acme' } }))
    expect(injected(suppressTracing(from))).toEqual({})
  })
})

describe('what comes in', () => {
  test('becomes the parent, of another service', () => {
    const carrier = { traceparent, tracestate: 'vendor=x', baggage: 'tenant=acme' }
    const extracted = propagation.extract(ROOT_CONTEXT, carrier)
    expect(trace.getSpanContext(extracted)).toMatchObject({ traceId, spanId, traceFlags: 1, isRemote: true })
    expect(trace.getSpanContext(extracted)?.traceState?.serialize()).toBe('vendor=x')
    expect(propagation.getBaggage(extracted)?.getEntry('tenant')?.value).toBe('acme')
  })

  test('leaves the context as it was where it is not valid or not there', () => {
    const before = holding()
    for (const carrier of [{}, { traceparent: 'nonsense' }, { tracestate: 'vendor=x' }, { baggage: '' }]) {
      expect(propagation.extract(before, carrier)).toBe(before)
    }
  })

  test.each(['tracestate', 'baggage'])('costs nothing but itself where it cannot be read: %s', (broken) => {
    const reports = said()
    const carrier = {
      traceparent,
      tracestate: 'a=1',
      baggage: 'user=1',
      get [broken](): string {
        throw new Error('no')
      },
    }
    const both = compositePropagator([traceContextPropagator, baggagePropagator])
    const extracted = both.extract(root, carrier, defaultTextMapGetter)
    expect(trace.getSpanContext(extracted)).toMatchObject({ traceId, spanId })
    expect(trace.getSpanContext(extracted)?.traceState?.get('a')).toBe(
      broken === 'tracestate' ? undefined : '1',
    )
    expect(propagation.getBaggage(extracted)?.getEntry('user')?.value).toBe(
      broken === 'baggage' ? undefined : '1',
    )
    expect(reports.lines).toHaveLength(1)
  })

  test('costs nothing but itself where it cannot be written, and the app nothing', () => {
    const reports = said()
    const both = compositePropagator([traceContextPropagator, baggagePropagator])
    const from = both.extract(root, { traceparent, baggage: 'user=1' }, defaultTextMapGetter)
    const carrier = Object.defineProperty({}, 'traceparent', { value: 'mine', enumerable: true })
    both.inject(from, carrier, defaultTextMapSetter)
    expect(carrier).toEqual({ traceparent: 'mine', baggage: 'user=1' })
    both.inject(from, Object.freeze({}), defaultTextMapSetter)
    expect(reports.lines).toEqual([expect.stringContaining('could not be written')])
  })

  test('goes out again as it came, where nobody makes spans', () => {
    const carrier = { traceparent, tracestate: 'vendor=x', baggage: 'tenant=acme' }
    const extracted = propagation.extract(root, carrier)
    expect(injected(extracted)).toEqual(carrier)
    const passing = trace.getTracer('nobody').startSpan('work', {}, extracted)
    expect(injected(trace.setSpan(extracted, passing))).toEqual(carrier)
  })
})

test('a carrier may hold anything, and its getter may answer anything: nothing throws, and what is read is valid', () => {
  const long = 'a'.repeat(16_384)
  const values = fc.oneof(
    fc.anything(),
    fc.string({ unit: 'binary' }),
    fc.constantFrom(traceparent, [traceparent], [traceparent, traceparent], `${traceparent}, ${traceparent}`),
    fc.constantFrom(long, ','.repeat(16_384), 'a=b,'.repeat(4096), `${traceparent}-${long}`, Symbol('none')),
    fc.array(fc.constantFrom('a=b', '%', 7, null, Buffer.from('c=d'))),
    fc.uint8Array().map((bytes) => Buffer.from(bytes)),
  )
  const fields = ['traceparent', 'tracestate', 'baggage']
  const carriers = fc.record(Object.fromEntries(fields.map((field) => [field, values])), { requiredKeys: [] })
  const property = fc.property(carriers, (carrier: Record<string, unknown>) => {
    const getter = { get: (_carrier: unknown, key: string) => carrier[key] as string, keys: () => [] }
    const extracted = propagation.extract(root, carrier, getter)
    const spanContext = trace.getSpanContext(extracted)
    expect(spanContext === undefined || trace.isSpanContextValid(spanContext)).toBe(true)
    for (const value of Object.values(injected(extracted))) expect(value).toBeTypeOf('string')
  })
  fc.assert(property, { numRuns: 1000 })
})

test('several propagators are asked in turn, each with what the one before it made', () => {
  const seen: unknown[] = []
  const own = {
    inject: (_from: Context, carrier: unknown) => defaultTextMapSetter.set(carrier as never, 'x-own', '1'),
    extract(into: Context) {
      seen.push(trace.getSpanContext(into)?.traceId)
      return into
    },
    fields: () => ['x-own'],
  }
  const both = compositePropagator([traceContextPropagator, own])
  const carrier = {}
  both.inject(holding(), carrier, defaultTextMapSetter)
  both.extract(root, carrier, defaultTextMapGetter)
  expect(carrier).toEqual({ traceparent, 'x-own': '1' })
  expect(seen).toEqual([traceId])
  expect(both.fields()).toEqual(['traceparent', 'tracestate', 'x-own'])
})
