import {
  propagation,
  ROOT_CONTEXT,
  trace,
  type Baggage,
  type Context,
  type SpanContext,
  type TextMapGetter,
  type TextMapPropagator,
  type TextMapSetter,
} from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { parseB3, parseB3Fields } from '../../packages/core/src/b3.ts'
import { formatBaggage, parseBaggage } from '../../packages/core/src/baggage.ts'
import { root } from '../../packages/core/src/context.ts'
import {
  b3MultiPropagator,
  b3Propagator,
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
} from '../../packages/core/src/propagation.ts'
import {
  parseTraceContext,
  parseTraceparent,
  parseTracestate,
  serializeTracestate,
} from '../../packages/core/src/trace-context.ts'

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const spanId = '00f067aa0ba902b7'
const traceparent = `00-${traceId}-${spanId}-01`

function boom(): never {
  throw new Error('not to be read')
}

/** Throws at whatever is asked of it. */
function mine(target: object = {}): object {
  return new Proxy(target, {
    get: boom,
    has: boom,
    ownKeys: boom,
    getPrototypeOf: boom,
    getOwnPropertyDescriptor: boom,
  })
}

function revoked(target: object): object {
  const { proxy, revoke } = Proxy.revocable(target, {})
  revoke()
  return proxy
}

/** What a carrier should never hold, and sometimes does. */
const nonsense: [string, unknown][] = [
  ['nothing', undefined],
  ['null', null],
  ['a number', 7],
  ['NaN', Number.NaN],
  ['a bigint', 7n],
  ['true', true],
  ['a symbol', Symbol('s')],
  ['a function', boom],
  ['an object', { traceparent }],
  ['an object of no class', Object.create(null)],
  ['an object whose text throws', { toString: boom, valueOf: boom, [Symbol.toPrimitive]: boom }],
  ['an object whose fields throw', Object.defineProperty({}, 'length', { get: boom })],
  ['a String object', new String(traceparent)],
  ['a Date', new Date(Number.NaN)],
  ['an empty array', []],
  ['an array of arrays', [[traceparent]]],
  [
    'an array that holds itself',
    (() => {
      const list: unknown[] = []
      list.push(list)
      return list
    })(),
  ],
  ['an array of holes', Array.from({ length: 3 }).fill(undefined)],
  ['a sparse array', Object.assign([], { length: 4_000_000_000 })],
  ['an array of numbers', [1, 2, 3]],
  ['an array of objects whose text throws', [{ toString: boom }]],
  ['an array that cannot be walked', Object.assign(['x', 'y'], { [Symbol.iterator]: boom })],
  ['two traceparents', [traceparent, traceparent]],
  ['bytes', new Uint8Array([0x30, 0x30])],
  ['a Buffer of nothing', Buffer.alloc(0)],
  ['a Buffer of zeros', Buffer.alloc(55)],
  ['a Buffer whose text throws', Object.assign(Buffer.from(traceparent), { toString: boom })],
  ['a Buffer of 2 MiB', Buffer.alloc(2_097_152, 0x61)],
  ['a proxy that throws', mine()],
  ['a proxy of an array that throws', mine([])],
  ['a proxy of a Buffer', new Proxy(Buffer.from(traceparent), {})],
  ['a revoked proxy', revoked({})],
  ['a revoked proxy of an array', revoked([])],
  ['an empty text', ''],
  ['a text of NUL', '\0'.repeat(55)],
  ['half a surrogate pair', '\ud800'],
  ['16 KiB of commas', ','.repeat(16_384)],
  ['16 KiB of commas and blanks', ', \t'.repeat(5461)],
  ['1 MiB of text', 'a'.repeat(1_048_576)],
  ['1 MiB and a character', 'a'.repeat(1_048_577)],
  ['64 MiB of text', 'a'.repeat(67_108_864)],
]

const FIELDS = [
  'traceparent',
  'tracestate',
  'baggage',
  'b3',
  'x-b3-traceid',
  'x-b3-spanid',
  'x-b3-sampled',
  'x-b3-flags',
  'x-b3-parentspanid',
]

const everyone = compositePropagator([
  traceContextPropagator,
  baggagePropagator,
  b3Propagator,
  b3MultiPropagator,
])

/** Gives whatever the carrier holds, as getters of message brokers do. */
const getter: TextMapGetter<Record<string, unknown>> = {
  get: (carrier, key) => carrier[key] as string,
  keys: (carrier) => Object.keys(carrier),
}

describe('a carrier', () => {
  test.each(nonsense)('that holds %s has no context in it', (_, value) => {
    const found = FIELDS.filter((field) => everyone.extract(root, { [field]: value }, getter) !== root)
    expect(found).toEqual([])
    const all = Object.fromEntries(FIELDS.map((field) => [field, value]))
    expect(everyone.extract(root, all, getter)).toBe(root)
  })

  test.each(nonsense)('that holds %s beside a good traceparent costs no more than that', (_, value) => {
    const others = Object.fromEntries(FIELDS.slice(1).map((field) => [field, value]))
    const extracted = everyone.extract(root, { ...others, traceparent }, getter)
    expect(trace.getSpanContext(extracted)).toEqual({ traceId, spanId, traceFlags: 1, isRemote: true })
    expect(propagation.getBaggage(extracted)).toBeUndefined()
  })

  test('may have no prototype', () => {
    const carrier: Record<string, unknown> = Object.assign(Object.create(null), { traceparent })
    expect(trace.getSpanContext(everyone.extract(root, carrier, getter))?.traceId).toBe(traceId)
    expect(everyone.extract(root, Object.create(null), getter)).toBe(root)
  })

  test('of 10,000 baggage members gives the 180 that a header has room for, in their order', () => {
    const baggage = Array.from({ length: 10_000 }, (_, i) => `key${i}=${i}`)
    for (const value of [baggage.join(','), baggage, baggage.map((member) => Buffer.from(member))]) {
      const extracted = everyone.extract(root, { baggage: value }, getter)
      const entries = propagation.getBaggage(extracted)!.getAllEntries()
      expect(entries.map(([key]) => key)).toEqual(Array.from({ length: 180 }, (_, i) => `key${i}`))
    }
  })

  test('of more lists than there can be members is discarded, however they are cut up', () => {
    const lists = Array.from({ length: 10_000 }, (_, i) => `k${i}=1`)
    for (const tracestate of [lists, lists.join(), lists.map((list) => Buffer.from(list))]) {
      expect(parseTraceContext(traceparent, tracestate)).toEqual({
        traceId,
        spanId,
        traceFlags: 1,
        isRemote: true,
      })
    }
  })

  test('that goes on for ever is given up', () => {
    function* endless(): Generator<string> {
      for (;;) yield 'a=1'
    }
    const list = Object.assign(['a=1'], { [Symbol.iterator]: endless })
    expect(parseTraceContext(traceparent, list)).toEqual({ traceId, spanId, traceFlags: 1, isRemote: true })
    expect(parseBaggage(list)).toBeUndefined()
  })
})

describe('what is sent', () => {
  const setter: TextMapSetter<Record<string, unknown>> = {
    set: (carrier, key, value) => void (carrier[key] = value),
  }
  function sent(from: Context, by: TextMapPropagator = everyone): Record<string, unknown> {
    const carrier: Record<string, unknown> = {}
    by.inject(from, carrier, setter)
    return carrier
  }
  const under = (traceState: unknown) =>
    trace.setSpanContext(ROOT_CONTEXT, { traceId, spanId, traceFlags: 1, traceState } as SpanContext)

  test.each<[string, unknown]>([
    ['cannot be written', { serialize: boom }],
    ['is written as a number', { serialize: () => 7 }],
    ['is written as nothing', { serialize: () => undefined }],
    ['is written as no list', { serialize: () => 'a=1\r\nx: y' }],
    ['is written as 2 MiB', { serialize: () => 'a=1,'.repeat(524_288) }],
    ['is no tracestate', 'a=1'],
    ['is an object', {}],
  ])('leaves out a tracestate of the app that %s', (_, state) => {
    expect(sent(under(state), traceContextPropagator)).toEqual({ traceparent })
  })

  test('leaves out what of an app’s baggage cannot be read or written, and nothing else', () => {
    const good = propagation.createBaggage({ good: { value: '1' } })
    const odd: Baggage = Object.assign(Object.create(good) as Baggage, {
      getAllEntries: () => [
        [null, { value: 'x' }],
        [Symbol('s'), { value: 'x' }],
        [7, { value: 'x' }],
        ['none', undefined],
        ['throws', Object.defineProperty({}, 'value', { get: boom })],
        ['metadata', { value: 'x', metadata: { toString: boom } }],
        ['symbol', { value: Symbol('s') }],
        ['number', { value: 7 }],
        ['loud', { value: '1', metadata: { toString: () => 7 } }],
        ...good.getAllEntries(),
      ],
    })
    expect(sent(propagation.setBaggage(root, odd))).toEqual({ baggage: 'loud=1,good=1' })
    expect(formatBaggage(odd)).toBe('loud=1,good=1')
  })
})

/**
 * Holds the cost of `run` against that for an input 16 times as long: linear growth makes it 16 times as much, quadratic
 * growth 256 times. The least of several runs is taken, and what a clock cannot tell counts as much as it can.
 */
function expectNoQuadraticGrowth(run: (size: number) => () => void, size: number): void {
  const least = (work: () => void): number => {
    let best = Infinity
    for (let times = 0; times < 3; times++) {
      const before = performance.now()
      work()
      best = Math.min(best, performance.now() - before)
    }
    return best
  }
  const FLOOR_MS = 0.05
  // A machine that is busy for a moment makes one of them too slow; growth makes the second one too slow every time.
  const LIMIT = (16 * 16) / 2
  let ratio = Infinity
  for (let tries = 0; tries < 4 && ratio >= LIMIT; tries++) {
    const short = Math.max(least(run(size)), FLOOR_MS)
    ratio = least(run(size * 16)) / short
  }
  expect(ratio).toBeLessThan(LIMIT)
}

describe('a header 16 times as long costs about 16 times as much', () => {
  const texts: [string, (size: number) => string][] = [
    ['commas', (size) => ','.repeat(size)],
    ['commas and blanks', (size) => ', '.repeat(size / 2)],
    ['tabs', (size) => '\t'.repeat(size)],
    ['blanks that end in a letter', (size) => `a=1${' '.repeat(size)}x`],
    ['blanks around nothing', (size) => `a=${' '.repeat(size)}`],
    ['a long key', (size) => 'a'.repeat(size)],
    ['a long value', (size) => `a=${'b'.repeat(size)}`],
    ['values of spaces', (size) => 'a= ,'.repeat(size / 4)],
    ['traceparents', (size) => `${traceparent},`.repeat(size / 56)],
    ['one member many times', (size) => 'a=1,'.repeat(size / 4)],
    ['many members', (size) => Array.from({ length: size / 8 }, (_, i) => `k${i % 9999}=1`).join()],
    ['members that are no pairs', (size) => 'a,'.repeat(size / 2)],
    ['semicolons', (size) => `a=1${';'.repeat(size)}`],
    ['equals signs', (size) => `a${'='.repeat(size)}`],
    ['members without room', (size) => `a=1${',a='.padEnd(8300, 'v').repeat(size / 8300)}`],
    ['percent signs', (size) => `a=${'%'.repeat(size)}`],
    ['percent signs that announce bytes', (size) => `a=1${',b=%C3'.repeat(size / 6)}`],
    ['dashes', (size) => '-'.repeat(size)],
    ['hexadecimal digits', (size) => '0123456789abcdef'.repeat(size / 16)],
  ]
  test.each(texts)('of %s', (_, make) => {
    expectNoQuadraticGrowth((size) => {
      const text = make(size)
      // A longer one is refused unread.
      expect(text.length).toBeLessThanOrEqual(1_048_576)
      const fields = { traceId: text, spanId: text, sampled: text, flags: text }
      return () => {
        parseTraceparent(text)
        parseTraceparent(`cc${traceparent.slice(2)}-${text}`)
        parseTracestate(text)
        parseBaggage(text)
        parseB3(text)
        parseB3Fields(fields as never)
      }
    }, 65_000)
  })

  test('of many fields', () => {
    expectNoQuadraticGrowth((size) => {
      const fields = Array.from({ length: size }, () => ' ')
      return () => {
        parseTraceContext(traceparent, fields)
        parseBaggage(fields)
      }
    }, 16_384)
  })

  test('of what an app hands over to be sent', () => {
    expectNoQuadraticGrowth((size) => {
      const state = { serialize: () => 'a=1,'.repeat(size / 4) }
      const baggage = propagation.createBaggage(
        Object.fromEntries(Array.from({ length: size / 64 }, (_, i) => [`k${i}`, { value: 'é'.repeat(8) }])),
      )
      return () => {
        serializeTracestate(state as never)
        formatBaggage(baggage)
      }
    }, 65_536)
  })
})
