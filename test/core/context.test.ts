import {
  context,
  createContextKey,
  propagation,
  ROOT_CONTEXT,
  trace,
  type Context,
  type Span,
} from '@opentelemetry/api'
import { EventEmitter, once } from 'node:events'
import { setImmediate as turn, setTimeout as later } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  AsyncContextManager,
  isSuppressed,
  root,
  suppressTracing,
  withSpan,
} from '../../packages/core/src/context.ts'

const KEY = createContextKey('a key of the app')
const OTHER = createContextKey('another key')
const SPAN_KEY = createContextKey('OpenTelemetry Context Key SPAN')
const SUPPRESS_KEY = createContextKey('OpenTelemetry SDK Context Key SUPPRESS_TRACING')
const RPC_KEY = createContextKey('OpenTelemetry SDK Context Key RPC_METADATA')

function spanNamed(digit: string): Span {
  return trace.wrapSpanContext({ traceId: digit.repeat(32), spanId: digit.repeat(16), traceFlags: 1 })
}

function contextWith(value: string): Context {
  return root.setValue(KEY, value)
}

const current = () => context.active().getValue(KEY)

describe('a context', () => {
  const values: [string, symbol, unknown][] = [
    ['the span', SPAN_KEY, spanNamed('1')],
    ['baggage', createContextKey('OpenTelemetry Baggage Key'), propagation.createBaggage()],
    ['RPC metadata', RPC_KEY, { type: 'http', span: spanNamed('2') }],
    ['suppression', SUPPRESS_KEY, true],
    ["a key of the app's own", KEY, { any: 'value' }],
  ]

  test.each(values)('holds %s, gives it back, and forgets it', (_name, key, value) => {
    const holding = root.setValue(key, value)
    expect(holding.getValue(key)).toBe(value)
    expect(holding.deleteValue(key).getValue(key)).toBeUndefined()
    expect(root.getValue(key)).toBeUndefined()
  })

  test.each(values)('keeps everything else when %s is set or deleted', (_name, key) => {
    let full: Context = root
    for (const [, each, value] of values) full = full.setValue(each, value)
    const changed = full.setValue(key, 'changed')
    const without = full.deleteValue(key)
    for (const [, each, value] of values) {
      expect(full.getValue(each)).toBe(value)
      expect(changed.getValue(each)).toBe(each === key ? 'changed' : value)
      expect(without.getValue(each)).toBe(each === key ? undefined : value)
    }
  })

  test('is never changed, also where a key is overwritten', () => {
    const first = root.setValue(KEY, 1)
    const second = first.setValue(KEY, 2).setValue(OTHER, 3)
    expect([first.getValue(KEY), first.getValue(OTHER)]).toEqual([1, undefined])
    expect([second.getValue(KEY), second.getValue(OTHER)]).toEqual([2, 3])
    expect(second.deleteValue(KEY).getValue(OTHER)).toBe(3)
  })

  test('can be told what it does not hold to be forgotten', () => {
    expect(root.deleteValue(KEY).getValue(KEY)).toBeUndefined()
    expect(root.deleteValue(SPAN_KEY).getValue(SPAN_KEY)).toBeUndefined()
  })

  test("is read and written by the API's own functions", () => {
    const span = spanNamed('3')
    const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
    const holding = propagation.setBaggage(trace.setSpan(root, span), baggage)
    expect(trace.getSpan(holding)).toBe(span)
    expect(propagation.getBaggage(holding)).toBe(baggage)
    expect(trace.getSpan(trace.deleteSpan(holding))).toBeUndefined()
  })

  test("takes a span also where the app made it from the API's own root or by a class of its own", () => {
    const span = spanNamed('4')
    const foreign = ROOT_CONTEXT.setValue(KEY, 'kept')
    for (const base of [root, ROOT_CONTEXT, foreign]) {
      const holding = withSpan(base, span)
      expect(trace.getSpan(holding)).toBe(span)
      expect(trace.getSpan(withSpan(holding, undefined))).toBeUndefined()
      expect(holding.getValue(KEY)).toBe(base.getValue(KEY))
    }
  })

  test('says that tracing is suppressed in the same words as the official SDK', () => {
    expect(suppressTracing(root).getValue(SUPPRESS_KEY)).toBe(true)
    expect(isSuppressed(ROOT_CONTEXT.setValue(SUPPRESS_KEY, true))).toBe(true)
    expect(isSuppressed(root)).toBe(false)
  })
})

describe('what is current', () => {
  let manager: AsyncContextManager

  beforeEach(() => {
    manager = new AsyncContextManager()
    context.setGlobalContextManager(manager.enable())
  })

  afterEach(() => {
    context.disable()
  })

  test('is the root where nobody set anything', () => {
    expect(trace.getSpan(context.active())).toBeUndefined()
    expect(current()).toBeUndefined()
  })

  test('is what was attached, by whoever cannot wrap a function, until that is disposed of', async () => {
    const outer = contextWith('outer')
    await context.with(outer, async () => {
      await turn()
      const token = manager.attach(contextWith('attached'))
      const inner = manager.attach(contextWith('inner'))
      expect(current()).toBe('inner')
      await turn()
      expect(current()).toBe('inner')
      inner.dispose()
      inner.dispose()
      expect(current()).toBe('attached')
      token.dispose()
      expect(context.active()).toBe(outer)
      inner.dispose()
      expect(context.active()).toBe(outer)
    })
    await turn()
    const before = context.active()
    manager.attach(outer).dispose()
    expect(context.active()).toBe(before)
  })

  test('follows promises, timers and callbacks, each its own, and ends with the function', async () => {
    async function work(name: string): Promise<unknown[]> {
      const seen = [current()]
      await turn()
      seen.push(current())
      await later(1)
      seen.push(current())
      await new Promise<void>((resolve) => queueMicrotask(resolve))
      return [...seen, current(), name]
    }
    const results = await Promise.all(
      ['a', 'b'].map((name) => context.with(contextWith(name), work, undefined, name)),
    )
    expect(results).toEqual([
      ['a', 'a', 'a', 'a', 'a'],
      ['b', 'b', 'b', 'b', 'b'],
    ])
    expect(current()).toBeUndefined()
  })

  test('nests, and comes back after a throw', () => {
    context.with(contextWith('outer'), () => {
      expect(() =>
        context.with(contextWith('inner'), () => {
          expect(current()).toBe('inner')
          throw new Error('inside')
        }),
      ).toThrow('inside')
      expect(current()).toBe('outer')
    })
  })

  test('a function that runs in a context gets its `this` and arguments, and gives its result', () => {
    const order = { id: 7, price: (...of: unknown[]) => of }
    function method(this: typeof order, ...given: number[]): unknown[] {
      return [this.id, ...given, current()]
    }
    expect(context.with(contextWith('x'), method, order, 1, 2)).toEqual([7, 1, 2, 'x'])
    expect(context.with(contextWith('x'), (a: number, b: number) => a + b, undefined, 1, 2)).toBe(3)
  })

  test('a bound function runs in its context with its `this`, arguments, result and number of parameters', () => {
    function handler(this: unknown, error: unknown, request: unknown, response: unknown, next: unknown) {
      return [this, error, request, response, next, current()]
    }
    const bound = context.bind(contextWith('bound'), handler)
    const caller = { bound }
    expect(bound).toHaveLength(4)
    expect(caller.bound(1, 2, 3, 4)).toEqual([caller, 1, 2, 3, 4, 'bound'])
    expect(context.with(contextWith('other'), () => caller.bound(1, 2, 3, 4))[5]).toBe('bound')
    expect(current()).toBeUndefined()
  })

  test('what is neither function nor emitter is given back as it is', () => {
    const plain = { plain: true }
    expect(context.bind(contextWith('x'), plain)).toBe(plain)
    expect(context.bind(contextWith('x'), 5)).toBe(5)
  })

  test('a bound emitter runs all its listeners in its context, however and whenever they were added', async () => {
    const emitter = new EventEmitter()
    const seen: unknown[] = []
    const note = (...given: unknown[]) => seen.push([current(), ...given])
    emitter.on('data', note)
    expect(context.bind(contextWith('bound'), emitter)).toBe(emitter)
    emitter.on('data', note)
    emitter.once('data', note)
    emitter.prependListener('data', note)
    const next = once(emitter, 'data')
    context.with(contextWith('elsewhere'), () => emitter.emit('data', 1, 2))
    expect(await next).toEqual([1, 2])
    expect(seen).toEqual(Array.from({ length: 4 }, () => ['bound', 1, 2]))
    expect(emitter.listenerCount('data')).toBe(3)
    expect(emitter.emit('nobody listens')).toBe(false)
  })

  test('a listener of a bound emitter has the emitter as its `this`', () => {
    const emitter = context.bind(contextWith('bound'), new EventEmitter())
    const selves: unknown[] = []
    emitter.on('data', function listener(this: unknown) {
      selves.push(this)
    })
    emitter.emit('data')
    expect(selves).toEqual([emitter])
  })

  test('an emitter that is bound twice, or overridden in between, still reaches its listeners once', () => {
    const emitter = new EventEmitter()
    const seen: unknown[] = []
    emitter.on('data', () => seen.push(current()))
    context.bind(contextWith('first'), emitter)
    const { emit } = emitter
    let passed = 0
    emitter.emit = function counted(this: EventEmitter, ...args: Parameters<typeof emit>) {
      passed += 1
      return Reflect.apply(emit, this, args) as boolean
    }
    context.bind(contextWith('second'), emitter)
    emitter.emit('data')
    expect(seen).toEqual(['second'])
    expect(passed).toBe(1)
  })

  test('an error that nobody listens to is thrown as ever, and a frozen emitter is left alone', () => {
    const emitter = context.bind(contextWith('bound'), new EventEmitter())
    expect(() => emitter.emit('error', new Error('unheard'))).toThrow('unheard')
    const frozen = Object.freeze(new EventEmitter())
    expect(context.bind(contextWith('bound'), frozen)).toBe(frozen)
  })

  test('is nothing any more once tracing was shut down', () => {
    context.with(contextWith('x'), () => {
      context.disable()
      expect(current()).toBeUndefined()
      expect(manager.active()).toBe(root)
    })
  })
})
