import { span } from '@throughline/core'
import { context, SpanKind, SpanStatusCode, trace, type Context, type Span } from '@opentelemetry/api'
import { BasicTracerProvider } from '@opentelemetry/sdk-trace-base'
import { setImmediate as turn } from 'node:timers/promises'
import { runInNewContext } from 'node:vm'
import { afterEach, describe, expect, onTestFinished, test } from 'vitest'
import { AsyncContextManager } from '../../packages/core/src/context.ts'
import { complaints } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { processor, said } from './engine.ts'

describe('span()', () => {
  test('of a sync function stays sync: result and end are there when it returns', () => {
    const { spans } = record()
    expect(span('work', (s) => [s.isRecording(), trace.getActiveSpan() === s])).toEqual([true, true])
    expect(spans).toMatchObject([
      { name: 'work', kind: SpanKind.INTERNAL, attributes: {}, status: { code: SpanStatusCode.UNSET } },
    ])
    expect(trace.getActiveSpan()).toBeUndefined()
  })

  test('of an async function ends when the promise has settled, and is current until then', async () => {
    const { spans } = record()
    const result = span('work', { 'order.id': 7 }, async (s) => {
      await turn()
      s.addEvent('half')
      return trace.getActiveSpan() === s
    })
    expect(result).toBeInstanceOf(Promise)
    expect(spans).toEqual([])
    expect(await result).toBe(true)
    expect(spans).toMatchObject([{ attributes: { 'order.id': 7 }, events: [{ name: 'half' }] }])
  })

  test('of a function that returns a thenable ends when that has settled', async () => {
    const { spans } = record()
    let settle: (value: string) => void = () => {}
    // oxlint-disable-next-line unicorn/no-thenable -- what query builders return
    const thenable = { then: (resolve: (value: string) => void) => void (settle = resolve) }
    void span('query', () => thenable)
    expect(spans).toEqual([])
    settle('rows')
    await turn()
    expect(spans).toHaveLength(1)
  })

  test('of a function that returns what begins when it is waited for is current when that begins', async () => {
    record()
    let current: unknown
    const lazy = {
      // oxlint-disable-next-line unicorn/no-thenable -- what superagent and query builders return
      then(resolve: (value: string) => void) {
        current = trace.getActiveSpan()
        resolve('rows')
      },
    }
    let made: unknown
    await span('query', (s) => {
      made = s
      return lazy
    })
    expect(current).toBe(made)
    expect(trace.getActiveSpan()).toBeUndefined()
  })

  test('tells of an error of another realm, as all of Node’s are in jest, what it tells of any', async () => {
    const { spans } = record()
    const error = runInNewContext("Object.assign(new Error('refused'), { code: 'ECONNREFUSED' })") as Error
    await expect(span('work', () => Promise.reject(error))).rejects.toBe(error)
    expect(spans).toMatchObject([
      {
        status: { code: SpanStatusCode.ERROR, message: 'refused' },
        events: [
          {
            name: 'exception',
            attributes: { 'exception.message': 'refused', 'exception.stacktrace': error.stack },
          },
        ],
      },
    ])
  })

  test.each([
    [
      'a throw',
      (error: unknown) =>
        span('work', () => {
          throw error
        }),
    ],
    [
      'a rejection',
      (error: unknown) =>
        span('work', async () => {
          throw error
        }),
    ],
  ])('records %s, sets Error, and passes the very same error on', async (_name, work) => {
    const { spans } = record()
    const error = new RangeError('too far')
    const caught = await Promise.resolve()
      .then(() => work(error))
      .catch((thrown: unknown) => thrown)
    expect(caught).toBe(error)
    expect(spans).toMatchObject([
      {
        attributes: { 'error.type': 'RangeError' },
        status: { code: SpanStatusCode.ERROR, message: 'too far' },
        events: [{ name: 'exception', attributes: { 'exception.type': 'RangeError' } }],
      },
    ])
  })

  test('takes anything that can be thrown', () => {
    const { spans } = record()
    for (const thrown of ['text', null, undefined, 7, Symbol('s')]) {
      let caught: unknown = 'nothing'
      try {
        span('work', () => {
          throw thrown
        })
      } catch (error) {
        caught = error
      }
      expect(caught).toBe(thrown)
    }
    expect(spans.map(({ status }) => status.message)).toEqual(['text', 'null', 'undefined', '7', 'Symbol(s)'])
    expect(spans.every(({ attributes }) => attributes['error.type'] === '_OTHER')).toBe(true)
  })

  test("nests with itself and with the API's own spans, in both directions", async () => {
    const recording = record()
    await span('outer', () =>
      trace.getTracer('app').startActiveSpan('middle', async (middle) => {
        await span('inner', async () => turn())
        middle.end()
      }),
    )
    const [inner, middle, outer] = await recording.all(3)
    expect(inner?.parentSpanContext?.spanId).toBe(middle?.spanContext().spanId)
    expect(middle?.parentSpanContext?.spanId).toBe(outer?.spanContext().spanId)
    expect(new Set(recording.spans.map((each) => each.spanContext().traceId)).size).toBe(1)
  })

  test('in parallel gives each its own parent', async () => {
    const recording = record()
    await span('all', () =>
      Promise.all(
        ['a', 'b'].map((name) =>
          span(name, async () => {
            await turn()
            await span(`${name}.child`, async () => turn())
          }),
        ),
      ),
    )
    for (const name of ['a', 'b']) {
      const parent = await recording.span((each) => each.name === name)
      const child = await recording.span((each) => each.name === `${name}.child`)
      expect(child.parentSpanContext?.spanId).toBe(parent.spanContext().spanId)
    }
  })

  test.each<[string, unknown, string]>([
    ['a text', 's3cret', 'a string'],
    ['a number', 7, 'a number'],
    ['a list', ['s3cret'], 'an array'],
    ['a function', function options() {}, 'a function (options)'],
  ])('with %s in the place of its attributes runs, and that is said once', async (_title, given, shown) => {
    const recording = record()
    const said = complaints()
    const misuse = span as (...given: unknown[]) => unknown
    expect(misuse('work', given, () => 1)).toBe(1)
    expect(await misuse('work', given, async () => 2)).toBe(2)
    expect((await recording.all(2)).map(({ attributes }) => attributes)).toEqual([{}, {}])
    expect(said).toEqual([
      expect.stringMatching(/span\(\): expected attributes in an object, received .*; for example span\(/),
    ])
    expect(said[0]).toContain(`received ${shown},`)
    expect(said[0]).not.toContain('s3cret')
  })

  test('without attributes, though there is a place for them, says nothing', async () => {
    const recording = record()
    const said = complaints()
    const misuse = span as (...given: unknown[]) => unknown
    for (const given of [undefined, null, {}]) expect(misuse('work', given, () => 1)).toBe(1)
    await recording.all(3)
    expect(said).toEqual([])
  })

  test('without a name or a function is a TypeError that says what was expected and received, with an example', () => {
    record()
    const misuse = span as (...given: unknown[]) => unknown
    for (const given of [[], ['work'], ['work', {}], [() => {}], [7, () => {}]]) {
      expect(() => misuse(...given)).toThrow(
        expect.objectContaining({
          name: 'TypeError',
          message: expect.stringMatching(
            /^span\(\): expected a name and a function, received .*; example: span\(/,
          ),
        }),
      )
    }
    expect(trace.getSpan(context.active())).toBeUndefined()
  })
})

test.each([
  ['an object that has no text', Object.create(null) as unknown],
  [
    'an error whose message cannot be read',
    Object.defineProperty(new Error('x'), 'message', { get: thrower }),
  ],
  ['nothing', undefined],
])('whatever was thrown goes on to the caller as it is: %s', async (_what, thrown) => {
  const recording = record()
  const caught: unknown[] = []
  try {
    span('sync', () => {
      throw thrown
    })
  } catch (error) {
    caught.push(error)
  }
  await span('async', () => Promise.reject(thrown)).catch((error: unknown) => caught.push(error))
  expect(caught[0]).toBe(thrown)
  expect(caught[1]).toBe(thrown)
  expect((await recording.all(2)).map(({ status }) => status.code)).toEqual([2, 2])
})

test('a span that the function ends itself is ended once, without a word, also where it fails then', async () => {
  const recording = record()
  const said = complaints()
  const endAndFail = (s: Span) => {
    s.end()
    throw new Error('after the end')
  }
  span('early', (s) => s.end())
  await span('early', async (s) => s.end())
  expect(() => span('early', endAndFail)).toThrow('after the end')
  await expect(span('early', async (s) => endAndFail(s))).rejects.toThrow('after the end')
  const spans = await recording.all(4)
  expect(spans.map(({ status, events }) => [status.code, events])).toEqual([1, 2, 3, 4].map(() => [0, []]))
  expect(said).toEqual([])
})

describe('on another SDK the app gets what its function returned or threw', () => {
  afterEach(() => trace.disable())

  test.each(['onStart', 'onEnd'] as const)('where a processor throws in %s: that is said', async (step) => {
    const reports = said()
    const throwing = processor({
      [step]() {
        throw new Error('of the processor')
      },
    })
    trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [throwing] }))
    const fail = () => {
      throw new Error('of the app')
    }
    expect(span('work', () => 1)).toBe(1)
    expect(await span('work', async () => 2)).toBe(2)
    expect(() => span('work', fail)).toThrow('of the app')
    await expect(span('work', async () => fail())).rejects.toThrow('of the app')
    expect(reports.lines).toHaveLength(1)
  })

  test('and where a tracer gives no span, for which one stands in', async () => {
    const reports = said()
    trace.setGlobalTracerProvider({ getTracer: () => ({ startSpan() {} }) as never })
    const fail = () => {
      throw new Error('of the app')
    }
    expect(span('work', (made) => made.setAttribute('a', 1).isRecording())).toBe(false)
    expect(() => span('work', fail)).toThrow('of the app')
    await expect(span('work', async () => fail())).rejects.toThrow('of the app')
    expect(reports.lines).toEqual([expect.stringContaining('a span could not be started')])
  })

  test('and where the current span cannot be asked for its context, neither by that SDK nor by us', () => {
    const reports = said()
    context.setGlobalContextManager(new AsyncContextManager())
    onTestFinished(() => context.disable())
    trace.setGlobalTracerProvider({
      getTracer: () => ({
        startSpan: (_name: string, _options: unknown, parent: Context) => trace.getSpanContext(parent),
      }),
    } as never)
    const broken = { spanContext: thrower } as unknown as Span
    const scope = trace.setSpan(context.active(), broken)
    expect(context.with(scope, () => span('work', () => 'done'))).toBe('done')
    expect(reports.lines).toEqual([expect.stringContaining('a span could not be started')])
  })
})

function thrower(): never {
  throw new Error('of the getter')
}
