import {
  context,
  propagation,
  ROOT_CONTEXT,
  SamplingDecision,
  SpanStatusCode,
  trace,
  type Attributes,
  type Baggage,
  type Context,
  type Exception,
  type HrTime,
  type Link,
  type SpanContext,
  type SpanOptions,
  type TextMapGetter,
  type TextMapPropagator,
  type TextMapSetter,
  type TimeInput,
} from '@opentelemetry/api'
import { describe, expect, onTestFinished, test } from 'vitest'
import { parseB3, parseB3Fields } from '../../packages/core/src/b3.ts'
import { formatBaggage, parseBaggage } from '../../packages/core/src/baggage.ts'
import { AsyncContextManager, root, withSpan } from '../../packages/core/src/context.ts'
import { encodeProtobuf } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import {
  b3MultiPropagator,
  b3Propagator,
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
} from '../../packages/core/src/propagation.ts'
import { errorType, messageOf } from '../../packages/core/src/exception.ts'
import type { ReadableSpan, Span } from '../../packages/core/src/span.ts'
import {
  parseTraceContext,
  parseTracestate,
  serializeTracestate,
} from '../../packages/core/src/trace-context.ts'
import { expectNoQuadraticGrowth } from '../growth.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { LazyOptions, engine, processor, said } from './engine.ts'

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
  test.each(texts)('of %s', async (_, make) => {
    await expectNoQuadraticGrowth((size) => {
      const text = make(size)
      // A longer one is refused unread.
      expect(text.length).toBeLessThanOrEqual(1_048_576)
      const fields = { traceId: text, spanId: text, sampled: text, flags: text }
      return () => {
        parseTraceContext(text, undefined)
        parseTraceContext(`cc${traceparent.slice(2)}-${text}`, undefined)
        parseTracestate(text)
        parseBaggage(text)
        parseB3(text)
        parseB3Fields(fields as never)
      }
    }, 65_000)
  })

  test('of many fields', async () => {
    await expectNoQuadraticGrowth((size) => {
      const fields = Array.from({ length: size }, () => ' ')
      return () => {
        parseTraceContext(traceparent, fields)
        parseBaggage(fields)
      }
    }, 16_384)
  })

  test('of what an app hands over to be sent', async () => {
    await expectNoQuadraticGrowth((size) => {
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

describe('a span', () => {
  /** The one span of a request, decoded; it must have arrived. */
  function arrived(span: ReadableSpan) {
    const sent = decodeRequest(encodeProtobuf([span])).resourceSpans?.[0]?.scopeSpans?.[0]?.spans
    expect(sent).toHaveLength(1)
    expect(JSON.parse(encodeJson([span])).resourceSpans[0].scopeSpans[0].spans).toHaveLength(1)
    return sent![0]!
  }
  /** The span as it arrives after it was used like this, which has not hindered what came after. */
  function made(use: (span: Span) => void, options?: SpanOptions): ReturnType<typeof arrived> {
    said()
    const { tracer, ended } = engine()
    const span = tracer.startSpan('work', options) as Span
    use(span)
    span.setAttribute('after', true).end()
    expect(ended).toHaveLength(1)
    const sent = arrived(ended[0]!)
    expect(sent.attributes?.at(-1)).toEqual({ key: 'after', value: { boolValue: true } })
    return sent
  }

  const cyclic: unknown[] = ['a']
  cyclic.push(cyclic)
  const throwing = Object.defineProperty({ first: 1 }, 'second', { enumerable: true, get: boom })
  const values: [string, unknown][] = [
    ...nonsense.filter(([title]) => !/MiB|sparse/.test(title)),
    ['an array that holds itself twice', cyclic],
    ['a sparse array of texts', Object.assign(['a'], { 3: 'b' })],
    ['a map', new Map([['a', 1]])],
    ['a class', Map],
    ['a regular expression', /x/],
    ['a promise', Promise.resolve()],
  ]
  test.each(values)('takes or leaves %s as the value of an attribute, and does not throw', (_, value) => {
    const sent = made((span) => {
      span.setAttribute('value', value as never)
      span.setAttributes({ value } as unknown as Attributes)
      span.addEvent('event', { value } as unknown as Attributes)
      span.addLink({
        context: { traceId, spanId, traceFlags: 1 },
        attributes: { value } as unknown as Attributes,
      })
    })
    expect([sent.events?.length, sent.links?.length]).toEqual([1, 1])
  })

  test.each(values)('takes or leaves %s where attributes belong', (_, value) => {
    const sent = made(
      (span) => {
        span.setAttributes(value as Attributes)
        span.addEvent('event', value as Attributes)
        span.addLink({ context: { traceId, spanId, traceFlags: 1 }, attributes: value as Attributes })
        span.recordException(new Error('x'), value as TimeInput)
      },
      { attributes: value as Attributes },
    )
    expect(sent.events?.at(-1)?.name).toBe('exception')
  })

  test('keeps the attributes that it could read before one that throws', () => {
    const sent = made((span) => span.setAttributes(throwing as Attributes))
    expect(sent.attributes?.[0]).toEqual({ key: 'first', value: { intValue: '1' } })
  })

  test.each<[string, unknown]>([
    ['a symbol', Symbol('key')],
    ['an object whose text throws', { toString: boom }],
    ['null', null],
    ['nothing', ''],
  ])('has no attribute under %s', (_, key) => {
    const sent = made((span) => span.setAttribute(key as string, 'x'))
    expect(sent.attributes).toHaveLength(1)
    expect(({} as { x?: unknown }).x).toBeUndefined()
  })

  test('has an attribute under the name of the prototype, which stays as it is', () => {
    const sent = made((span) => span.setAttribute('__proto__', 'x'))
    expect(sent.attributes).toContainEqual({ key: '__proto__', value: { stringValue: 'x' } })
    expect(({} as { x?: unknown }).x).toBeUndefined()
  })

  test.each<[string, unknown, string]>([
    ['a number', 7, '7'],
    ['undefined', undefined, 'undefined'],
    ['null', null, 'null'],
    ['a symbol', Symbol('s'), 'Symbol(s)'],
    ['an object whose text throws', { toString: boom }, ''],
    ['a String object', new String('x'), 'x'],
  ])('is called something, and so are its events, where the name is %s', (_, name, expected) => {
    const { tracer, ended } = engine()
    const span = tracer.startSpan(name as string) as Span
    expect(arrived((span.end(), ended[0]!)).name ?? '').toBe(expected)
    const sent = made((other) => void other.updateName(name as string).addEvent(name as string))
    expect(sent.name ?? '').toBe(expected)
    expect(sent.events?.[0]?.name ?? '').toBe(expected)
  })

  test.each<[string, unknown]>([
    ['nothing', undefined],
    ['null', null],
    ['an object without a context', {}],
    ['a context of null', { context: null }],
    ['a context of a number', { context: 7 }],
    ['a context without ids', { context: {} }],
    ['ids of numbers', { context: { traceId: 7, spanId: 7, traceFlags: 1 } }],
    ['a context that throws', mine()],
    ['a context whose ids throw', { context: mine() }],
  ])('has no link to %s', (_, link) => {
    const sent = made((span) => {
      span.addLink(link as Link)
      span.addLinks([link as Link])
    })
    expect(sent.links).toBeUndefined()
    expect(made(() => {}, { links: [link as Link] }).links).toBeUndefined()
  })

  test.each(
    nonsense.filter(
      ([title]) => !/MiB|sparse|walked|NUL|surrogate|commas|text|Buffer|bytes|traceparents|holes/.test(title),
    ),
  )('has no links where %s is given for them', (_, links) => {
    expect(made((span) => span.addLinks(links as Link[])).links).toBeUndefined()
    expect(made(() => {}, { links: links as Link[] }).links).toBeUndefined()
  })

  test.each<[string, unknown]>([
    ['NaN', Number.NaN],
    ['Infinity', Infinity],
    ['-Infinity', -Infinity],
    ['no date', new Date(Number.NaN)],
    ['a text', 'noon'],
    ['a bigint', 7n],
    ['half a time', [1]],
    ['a time of texts', ['1', '2']],
    ['a time of NaN', [Number.NaN, 0]],
    ['an object', {}],
    ['null', null],
    ['a time before the start', new Date(0)],
    ['a time below zero', [-5, 0]],
  ])('has a time, and not less than no duration, when it is given %s', (_, time) => {
    const { tracer, ended } = engine()
    tracer.startSpan('end').end(time as TimeInput)
    tracer.startSpan('start', { startTime: time as TimeInput }).end()
    tracer.startSpan('both', { startTime: time as TimeInput }).end(time as TimeInput)
    const [end, , both] = ended
    for (const span of ended) {
      arrived(span)
      for (const part of [span.startTime, span.endTime, span.duration].flat()) expect(part).not.toBeNaN()
      expect(span.duration[0]).toBeGreaterThanOrEqual(0)
      expect(span.duration[1]).toBeGreaterThanOrEqual(0)
    }
    expect(end!.startTime[0]).toBeGreaterThan(1_700_000_000)
    expect(both!.duration[0]).toBe(0)
    const event = made((span) => span.addEvent('event', time as TimeInput)).events
    expect(event).toHaveLength(1)
  })

  test('lasts what lies between times that are not normalised', () => {
    const { tracer, ended } = engine()
    const pairs: [HrTime, HrTime, HrTime][] = [
      [
        [1, 2e9],
        [4, 0],
        [1, 0],
      ],
      [
        [1, 0],
        [2, 3.5e9],
        [4, 5e8],
      ],
      [
        [1, 2e9],
        [2, 0],
        [0, 0],
      ],
    ]
    for (const [startTime, endTime] of pairs) tracer.startSpan('work', { startTime }).end(endTime)
    expect(ended.map(({ duration }) => duration)).toEqual(pairs.map(([, , duration]) => duration))
  })

  test.each<[string, unknown]>([
    ['nothing', undefined],
    ['null', null],
    ['a number', 2],
    ['no code', { message: 'x' }],
    ['a code of NaN', { code: Number.NaN }],
    ['a code of 3', { code: 3 }],
    ['a code of -1', { code: -1 }],
    ['a code of 1.5', { code: 1.5 }],
    ['a code that is a text', { code: '2' }],
    ['a code that throws', Object.defineProperty({}, 'code', { get: boom })],
  ])('has no status after it was given %s', (_, status) => {
    expect(made((span) => span.setStatus(status as never)).status).toBeUndefined()
  })

  test.each([7, null, {}, Symbol('s'), ['x']])('has an error without a description of %s', (message) => {
    const sent = made((span) => span.setStatus({ code: SpanStatusCode.ERROR, message: message as string }))
    expect(sent.status).toEqual({ code: 2 })
  })

  test.each<[string, unknown]>([
    ...nonsense.filter(([title]) => !/MiB|sparse/.test(title)),
    ['an error whose message throws', Object.defineProperty(new Error('x'), 'message', { get: boom })],
    ['an error whose stack throws', Object.defineProperty(new Error('x'), 'stack', { get: boom })],
    ['an error whose code throws', Object.defineProperty(new Error('x'), 'code', { get: boom })],
    ['an error whose name throws', Object.defineProperty(new Error('x'), 'name', { get: boom })],
    ['an error whose class throws', Object.defineProperty(new Error('x'), 'constructor', { get: boom })],
    ['an error with a message of a number', Object.assign(new Error('x'), { message: 7 })],
  ])('has the event of an exception when %s was thrown', (_, thrown) => {
    const sent = made((span) => span.recordException(thrown as Exception))
    expect(sent.events).toHaveLength(1)
    expect(sent.events?.[0]?.name).toBe('exception')
    expect(errorType(thrown) ?? '').toBeTypeOf('string')
    expect(messageOf(thrown)).toBeTypeOf('string')
  })

  test.each<[string, unknown]>([
    ['null', null],
    ['a number', 7],
    ['a text', 'x'],
    ['attributes that throw', { attributes: throwing }],
    ['options that throw', mine()],
    ['a kind of nonsense', { kind: 'SERVER' }],
    ['attributes of null', { attributes: null }],
  ])('can be started with %s for options', (_, options) => {
    said()
    const { tracer } = engine()
    const span = tracer.startSpan('work', options as SpanOptions)
    span.setAttribute('a', 1).addEvent('b').end()
    expect(span.spanContext().traceId).toMatch(/^[0-9a-f]{32}$/)
  })

  test('can be started in a context that is none', () => {
    said()
    for (const parent of [null, {}, 7, mine()]) {
      const span = engine().tracer.startSpan('work', {}, parent as Context)
      expect(() => span.end()).not.toThrow()
    }
  })

  test('can be started below one that cannot be asked, and the app is told nothing of it', () => {
    const reports = said()
    const manager = new AsyncContextManager().enable()
    context.setGlobalContextManager(manager)
    onTestFinished(() => context.disable())
    const { tracer } = engine()
    context.with(withSpan(root, { spanContext: boom } as never), () => {
      expect(() => tracer.startSpan('work').end()).not.toThrow()
    })
    expect(reports.lines).toHaveLength(1)
  })

  test('of attributes that a seam could not build is a span all the same', () => {
    said()
    const span = engine().tracer.startSpan('work', new LazyOptions(1, boom))
    expect(() => span.end()).not.toThrow()
  })

  test('of a name, a value, an event and a link of 16 MiB in all arrives as it is', () => {
    const huge = 'x'.repeat(4_194_304)
    const sent = made((span) => {
      span.updateName(huge).setAttribute('huge', huge).addEvent(huge)
      span.setAttribute(huge, 1)
    })
    expect([sent.name, sent.events?.[0]?.name].map((text) => text?.length)).toEqual([
      huge.length,
      huge.length,
    ])
  })

  test('of a list of four thousand million holes is not walked through', () => {
    const sparse = Object.assign([], { length: 4_294_967_295 })
    const sent = made((span) => span.setAttribute('sparse', sparse))
    // Left out, or cut to what the encoder writes.
    expect(sent.attributes?.length).toBeLessThanOrEqual(2)
  })
})

describe('what an app plugs in', () => {
  test('throws, and the span is made, ends and reaches the others', () => {
    const reports = said()
    const reached: string[] = []
    const { tracer } = engine({
      sampler: { shouldSample: boom, toString: () => 'Boom' },
      idGenerator: { generateTraceId: boom, generateSpanId: boom },
      processors: [
        processor({ onStart: boom, onEnding: boom, onEnd: boom }),
        processor({
          onStart: () => reached.push('start'),
          onEnding: () => reached.push('ending'),
          onEnd: (span) => reached.push(span.name),
        }),
      ],
    })
    tracer.startSpan('work').end()
    expect(reached).toEqual(['start', 'ending', 'work'])
    // The sampler, two kinds of ids and three steps, once each.
    expect(reports.lines).toHaveLength(6)
    tracer.startSpan('work').end()
    expect(reports.lines).toHaveLength(6)
  })

  test('answers nonsense, and the default does', () => {
    said()
    for (const answer of [undefined, null, 7, {}, { decision: 'yes' }, { decision: 7 }, mine()]) {
      const { tracer, ended } = engine({
        sampler: { shouldSample: () => answer as never, toString: () => 'Odd' },
        idGenerator: { generateTraceId: () => answer as never, generateSpanId: () => 'x' },
      })
      tracer.startSpan('work').end()
      expect(ended).toHaveLength(1)
      expect(trace.isSpanContextValid(ended[0]!.spanContext())).toBe(true)
    }
  })

  test('gives attributes and a tracestate that cannot be read, with a decision that can', () => {
    said()
    const { tracer, ended } = engine({
      sampler: {
        shouldSample: () => ({
          decision: SamplingDecision.RECORD_AND_SAMPLED,
          attributes: mine() as Attributes,
          traceState: { serialize: boom } as never,
        }),
        toString: () => 'Odd',
      },
    })
    const span = tracer.startSpan('work')
    const carrier: Record<string, unknown> = {}
    traceContextPropagator.inject(withSpan(root, span), carrier, {
      set: (to: Record<string, unknown>, key, value) => void (to[key] = value),
    })
    expect(Object.keys(carrier)).toEqual(['traceparent'])
    span.end()
    expect(ended).toHaveLength(1)
    expect(JSON.stringify(decodeRequest(encodeProtobuf(ended)))).toContain('"work"')
  })

  test('gives ids in upper case, which go out in lower case', () => {
    const { tracer } = engine({
      idGenerator: {
        generateTraceId: () => traceId.toUpperCase(),
        generateSpanId: () => spanId.toUpperCase(),
      },
    })
    expect(tracer.startSpan('work').spanContext()).toMatchObject({ traceId, spanId })
  })
})
