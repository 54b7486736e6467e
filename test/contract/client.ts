import { context, SpanKind, SpanStatusCode, trace, type Attributes } from '@opentelemetry/api'
import { span, untrace, type ReadableSpan } from '@throughline/core'
import { AsyncLocalStorage, createHook } from 'node:async_hooks'
import { afterEach, describe, expect, test } from 'vitest'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { complaints } from './server/watch.ts'

/** A client library as the contract sees it. `Target` is what the adapter wraps. */
export interface ClientUnderTest<Target> {
  /** A target that nobody has traced yet, connected to a real server. */
  open(): Promise<{ target: Target; close(): Promise<void> }>
  /** The adapter. `undefined` for its form that traces the whole process and answers a function that ends it. */
  trace(target: Target, options?: object): unknown
  isProcessWide?: boolean
  /** A call that goes well. */
  call(target: Target): Promise<unknown>
  /** What it comes to. */
  result: unknown
  /** The same call with a callback, where the library has that form. */
  callBack?(target: Target, done: (error: unknown, result: unknown) => void): void
  /** A call that the server refuses. */
  fail(target: Target): Promise<unknown>
  /** The span of `call`: its name, and attributes that it must have. */
  name: string
  attributes: Attributes
  /** `error.type` of the span of `fail`, and whether the library rejects it. */
  failure: { type: string; rejects: boolean }
  scope: string
  /** What the durations of calls are counted by; none are measured, if not given. */
  duration?: { metric: string; buckets: readonly number[]; attributes: Attributes; failed: Attributes }
  /** What `ignore` is given to ignore `call` by its text. */
  ignoredText: string | RegExp
  /** How many promises tracing adds to `call`; none, if not given. */
  promises?: number
  /** Its own methods that tracing overrides, by name. */
  overrides?: readonly string[]
  /** A value that `call` sends, and that must be found nowhere in a span. */
  secret?: string
}

const SUPPRESS = Symbol.for('OpenTelemetry SDK Context Key SUPPRESS_TRACING')

/** The promise that is common to everything that sends. An adapter's own test holds only what is different there. */
export function clientContract<Target>(library: string, client: ClientUnderTest<Target>): void {
  const closing: (() => unknown)[] = []

  afterEach(async () => {
    for (const close of closing.splice(0).toReversed()) await close()
  })

  async function opened(): Promise<Target> {
    const { target, close } = await client.open()
    closing.push(close)
    return target
  }

  function traced(target: Target, options?: object): unknown {
    const answer = client.trace(target, options)
    if (client.isProcessWide === true) closing.push(answer as () => void)
    return answer
  }

  describe(`${library} keeps the promise of every client`, () => {
    test('a call is one CLIENT span under the span of its caller, and nothing more', async () => {
      const recording = record()
      const target = await opened()
      traced(target)
      await span('caller', () => client.call(target))

      const [call, caller] = await recording.all(2)
      expect(call).toMatchObject({
        name: client.name,
        kind: SpanKind.CLIENT,
        status: { code: SpanStatusCode.UNSET },
      })
      expect(call?.attributes).toMatchObject(client.attributes)
      expect(call?.attributes).not.toHaveProperty('error.type')
      expect(call?.instrumentationScope).toMatchObject({ name: client.scope, version: '0.1.0' })
      expect(call?.parentSpanContext?.spanId).toBe(caller?.spanContext().spanId)
      expect(call?.spanContext().traceId).toBe(caller?.spanContext().traceId)
    })

    test('the call comes to what it came to before', async () => {
      record()
      const target = await opened()
      traced(target)
      expect(await client.call(target)).toEqual(client.result)
    })

    test('a call outside of any span starts a trace', async () => {
      const recording = record()
      const target = await opened()
      traced(target)
      await client.call(target)
      const [call] = await recording.all(1)
      expect(call?.parentSpanContext).toBeUndefined()
    })

    test('calls that are made at the same time each have their own caller as parent', async () => {
      const recording = record()
      const target = await opened()
      traced(target)
      const callers = Array.from({ length: 20 }, (_, index) => `caller ${index}`)
      await Promise.all(callers.map((name) => span(name, () => client.call(target))))

      const spans = await recording.all(40)
      for (const name of callers) {
        const caller = spans.find((candidate) => candidate.name === name)
        expect(childrenOf(spans, caller)).toHaveLength(1)
      }
    })

    test('what follows a call runs in the context of its caller', async () => {
      record()
      const target = await opened()
      traced(target)
      await span('caller', async (caller) => {
        await client.call(target)
        expect(trace.getActiveSpan()).toBe(caller)
      })
    })

    test.skipIf(client.isProcessWide)('what nobody may change is refused in words that say so', async () => {
      const frozen = Object.freeze(Object.create((await opened()) as object)) as Target
      expect(() => traced(frozen)).toThrow(TypeError)
      expect(() => traced(frozen)).toThrow(
        /^expected an object that may be changed, received .+ frozen.*; example: /,
      )
    })

    test('a call that the server refuses is an error span with a type, and the same error for the app', async () => {
      const recording = record()
      const target = await opened()
      const before = await outcome(client.fail(target))
      traced(target)
      const after = await outcome(client.fail(target))

      expect(after).toEqual(before)
      expect('error' in after).toBe(client.failure.rejects)
      const [call] = await recording.all(1)
      expect(call?.status.code).toBe(SpanStatusCode.ERROR)
      expect(call?.attributes).toMatchObject({ 'error.type': client.failure.type })
    })

    test('an unsampled caller has no spans made for it, and nothing else changes', async () => {
      const recording = record({ sampling: 0 })
      const target = await opened()
      traced(target)
      await span('caller', async () => {
        expect(await client.call(target)).toEqual(client.result)
      })
      expect(recording.spans).toHaveLength(0)
    })

    test.each([
      ['sampled', 1],
      ['unsampled', 0],
    ])('a call that is %s makes no promise of ours, but where the contract says so', async (_, sampling) => {
      const recording = record({ sampling })
      const target = await opened()
      const before = await promisesOf(() => client.call(target))
      traced(target)
      const made = await promisesOf(() => client.call(target))
      expect(made).toBe(before + sampling * (client.promises ?? 0))
      await recording.stop()
      expect(recording.spans.length > 0).toBe(sampling === 1)
    })

    test('a call in a context where tracing is suppressed has no span', async () => {
      const recording = record()
      const target = await opened()
      traced(target)
      await context.with(context.active().setValue(SUPPRESS, true), () => client.call(target))
      await client.call(target)
      await recording.all(1)
    })

    test('with requireParent a call outside of any span has none', async () => {
      const recording = record()
      const target = await opened()
      traced(target, { requireParent: true })
      await client.call(target)
      await span('caller', () => client.call(target))
      expect((await recording.all(2)).map(({ name }) => name)).toEqual([client.name, 'caller'])
    })

    test.each([
      ['text', () => client.ignoredText],
      ['a function', () => () => true],
      ['a list', () => ['http://something.else/', client.ignoredText]],
    ])('a call that is ignored by %s has no span', async (_form, ignore) => {
      const recording = record()
      const target = await opened()
      traced(target, { ignore: ignore() })
      await span('caller', async () => {
        expect(await client.call(target)).toEqual(client.result)
      })
      expect((await recording.all(1))[0]?.name).toBe('caller')
    })

    test('attributes of the app are added when the call has ended', async () => {
      const recording = record()
      const target = await opened()
      traced(target, { attributes: (...given: unknown[]) => ({ 'app.given': given.length }) })
      await client.call(target)
      expect((await recording.all(1))[0]?.attributes).toMatchObject({ ...client.attributes, 'app.given': 2 })
    })

    test('a function of the app that throws costs its attributes and nothing else', async () => {
      const recording = record()
      const target = await opened()
      const broken = () => {
        throw new Error('of the app')
      }
      traced(target, { attributes: broken, ignore: broken })
      expect(await client.call(target)).toEqual(client.result)
      expect((await recording.all(1))[0]?.attributes).toMatchObject(client.attributes)
    })

    test('a function of the app that answers with a rejection ends no process', async () => {
      const recording = record()
      const target = await opened()
      traced(target, { attributes: () => Promise.reject(new Error('of the app')) })
      expect(await client.call(target)).toEqual(client.result)
      await recording.all(1)
    })

    test('values that the call sends are found nowhere in its span', async () => {
      const recording = record()
      const target = await opened()
      traced(target)
      await client.call(target)
      const [{ name, attributes, status, events } = {} as ReadableSpan] = await recording.all(1)
      if (client.secret !== undefined) {
        expect(JSON.stringify({ name, attributes, status, events })).not.toContain(client.secret)
      }
    })

    test('an option that does not exist, or of the wrong shape, is a TypeError at set-up', async () => {
      const target = await opened()
      expect(() => client.trace(target, { ignored: true })).toThrow(
        expect.objectContaining({
          name: 'TypeError',
          message: expect.stringMatching(/expected.*received.*"ignored"/),
        }),
      )
      expect(() => client.trace(target, { requireParent: 'yes' })).toThrow(
        /expected requireParent to be true or false, received "yes"; example: \{ requireParent: true \}/,
      )
    })

    test('options of a second call are dropped, and that is said once, unless they are those of the first', async () => {
      const recording = record()
      const said = complaints()
      const target = await opened()
      const options = { attributes: () => ({ 'app.call': 'first' }) }
      const first = { ...options, ignore: ['http://nothing/', /like this/] }
      const equal = { ignore: ['http://nothing/', /like this/] }
      const answer = traced(target, first)
      for (const same of [first, options, equal, {}, { ignore: undefined }, undefined]) traced(target, same)
      expect(said).toEqual([])
      for (const other of [{ requireParent: true }, { ...first, ignore: client.ignoredText }]) {
        expect(traced(target, other)).toBe(answer)
      }
      expect(said).toEqual([
        expect.stringMatching(
          /trace\w+.*: expected the options of the first call, .* received others: requireParent; .*; for example .*trace/,
        ),
      ])
      await client.call(target)
      expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'app.call': 'first' })
    })

    if (client.callBack !== undefined) {
      const callBack = client.callBack.bind(client)

      test('a callback gets what it got before, once, in the context of the caller', async () => {
        const recording = record()
        const target = await opened()
        traced(target)
        const result = await span(
          'caller',
          (caller) =>
            new Promise((resolve, reject) => {
              callBack(target, (error, value) => {
                expect(trace.getActiveSpan()).toBe(caller)
                if (error) reject(error)
                else resolve(value)
              })
            }),
        )
        expect(result).toEqual(client.result)
        const [call, caller] = await recording.all(2)
        expect(call?.parentSpanContext?.spanId).toBe(caller?.spanContext().spanId)
      })
    }

    if (client.duration !== undefined) {
      const { metric, buckets, attributes, failed } = client.duration

      test('a call counts in the metric of its kind, as long as its span, in the standard buckets', async () => {
        const measuring = measure()
        const recording = record()
        const target = await opened()
        traced(target)
        await client.call(target)
        const [{ duration: [seconds, nanoseconds] } = {} as ReadableSpan] = await recording.all(1)
        expect(await measuring.all(metric, 1)).toEqual([
          { attributes, value: seconds + nanoseconds / 1e9, count: 1 },
        ])
        expect(await measuring.metric(metric)).toMatchObject({
          descriptor: { unit: 's' },
          dataPoints: [{ value: { buckets: { boundaries: buckets } } }],
        })
      })

      test('a call that the server refuses counts with the type of its error', async () => {
        const measuring = measure()
        record()
        const target = await opened()
        traced(target)
        await outcome(client.fail(target))
        const [point] = await measuring.all(metric, 1)
        expect(point?.attributes).toEqual({ ...failed, 'error.type': client.failure.type })
      })

      test.each([
        ['of an unsampled caller', { sampling: 0 }, {}],
        ['that lacks the parent which it needs for a span', {}, { requireParent: true }],
      ])('a call %s counts all the same', async (_title, started, options) => {
        const measuring = measure()
        const recording = record(started)
        const target = await opened()
        traced(target, options)
        if ('sampling' in started) await span('caller', () => client.call(target))
        else await client.call(target)
        const [point] = await measuring.all(metric, 1)
        expect(point?.attributes).toEqual(attributes)
        expect(recording.spans).toHaveLength(0)
      })

      test('a call that is ignored does not count', async () => {
        const measuring = measure()
        record()
        const target = await opened()
        traced(target, { ignore: client.ignoredText })
        await client.call(target)
        expect(await measuring.points(metric)).toEqual([])
      })
    }

    if (client.isProcessWide === true) {
      test('tracing that is switched on twice makes one span, and ends when it is ended', async () => {
        const recording = record()
        const target = await opened()
        const stop = traced(target) as () => void
        traced(target)
        await client.call(target)
        await recording.all(1)
        stop()
        await client.call(target)
        expect(recording.spans).toHaveLength(1)
      })

      test('whoever switches it off does so for all, once: a second time is nothing, also to who comes later', async () => {
        const recording = record()
        const target = await opened()
        const [first, second] = [traced(target), traced(target)] as (() => void)[]
        second?.()
        await client.call(target)
        expect(recording.spans).toEqual([])
        const said = complaints()
        traced(target, { attributes: () => ({ 'app.life': 2 }) })
        expect(said).toEqual([])
        first?.()
        second?.()
        await client.call(target)
        expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'app.life': 2 })
      })
    } else {
      test('the same object comes back, and wrapping it twice is wrapping it once', async () => {
        const recording = record()
        const target = await opened()
        expect(traced(target)).toBe(target)
        expect(traced(target)).toBe(target)
        await client.call(target)
        await recording.all(1)
      })

      test('untrace gives back the object as it was', async () => {
        const recording = record()
        const target = (await opened()) as Target & object
        const before = Reflect.ownKeys(target)
        traced(target)
        untrace(target)
        expect(Reflect.ownKeys(target)).toEqual(before)
        expect(await client.call(target)).toEqual(client.result)
        expect(recording.spans).toHaveLength(0)
        const said = complaints()
        traced(target, { attributes: () => ({ 'app.life': 2 }) })
        await client.call(target)
        expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'app.life': 2 })
        expect(said).toEqual([])
      })

      test.each([undefined, null, 'pool'])('untrace of %j is a mistake that is told', (nothing) => {
        const undo = () => untrace(nothing as never)
        expect(undo).toThrow(TypeError)
        expect(undo).toThrow(/^untrace\(\): expected an object, received .*; example: untrace\(pool\)$/)
      })

      test('what somebody has put over our methods stays when it is untraced, and ours pass calls on', async () => {
        const recording = record()
        const target = (await opened()) as Target & Record<string, (...args: unknown[]) => unknown>
        traced(target)
        for (const name of client.overrides ?? []) {
          const ours = target[name] as (...args: unknown[]) => unknown
          const theirs = function (this: unknown, ...args: unknown[]) {
            return Reflect.apply(ours, this, args)
          }
          Object.assign(target, { [name]: theirs })
        }
        await client.call(target)
        await recording.all(1)
        untrace(target)
        expect(await client.call(target)).toEqual(client.result)
        expect(recording.spans).toHaveLength(1)
      })

      test('no property that can be enumerated is added to the object', async () => {
        const target = (await opened()) as Target & object
        const before = Object.keys(target)
        traced(target)
        expect(Object.keys(target)).toEqual(before)
      })
    }
  })
}

function childrenOf(spans: readonly ReadableSpan[], parent: ReadableSpan | undefined): ReadableSpan[] {
  return spans.filter((candidate) => candidate.parentSpanContext?.spanId === parent?.spanContext().spanId)
}

/** The least of promises that are made within a call, and by what follows in its context: some have to connect first. */
async function promisesOf(call: () => Promise<unknown>): Promise<number> {
  const within = new AsyncLocalStorage<{ count: number }>()
  const hook = createHook({
    init(_id, type) {
      const store = type === 'PROMISE' ? within.getStore() : undefined
      if (store !== undefined) store.count += 1
    },
  }).enable()
  const counts: number[] = []
  try {
    for (let calls = 0; calls < 5; calls += 1) {
      const store = { count: 0 }
      await within.run(store, call)
      counts.push(store.count)
    }
  } finally {
    hook.disable()
  }
  return Math.min(...counts)
}

async function outcome(promise: Promise<unknown>): Promise<{ value: unknown } | { error: unknown }> {
  try {
    return { value: await promise }
  } catch (error) {
    return { error }
  }
}
