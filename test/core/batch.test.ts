import { context, SpanStatusCode, type Attributes } from '@opentelemetry/api'
import { resourceFromAttributes } from '@opentelemetry/resources'
import { AsyncLocalStorage } from 'node:async_hooks'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, describe, expect, test, vi } from 'vitest'
import type { SpanExporter } from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import { readConfig } from '../../packages/core/src/config.ts'
import { alwaysOff } from '../../packages/core/src/sampling.ts'
import type { Span } from '../../packages/core/src/span.ts'
import { NEVER, OK, quick, setUp, Slow } from './batches.ts'
import { engine, finished, said } from './engine.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

afterEach(() => {
  vi.useRealTimers()
})

describe('a batch leaves', () => {
  test('when it is full, without waiting for the delay', async () => {
    const { exporter, spans } = setUp(new Slow())
    spans(10)
    expect((await exporter.nth(1)).spans.map(({ name }) => name)).toEqual(
      Array.from({ length: 10 }, (_, index) => `${index + 1}`),
    )
  })

  test('when the delay has passed since its first span, and not before', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const { exporter, spans } = setUp(new Slow(), { scheduledDelayMillis: 1234 })
    spans(1)
    vi.advanceTimersByTime(1000)
    spans(2)
    vi.advanceTimersByTime(233)
    await turn()
    expect(exporter.exports).toHaveLength(0)
    vi.advanceTimersByTime(1)
    expect((await exporter.nth(1)).spans).toHaveLength(3)
  })

  test('when the delay has passed, also where that was in the middle of the export before it', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const { exporter, spans } = setUp(new Slow(), { scheduledDelayMillis: 1000 })
    spans(10)
    for (let number = 1; number <= 3; number += 1) {
      const { done } = await exporter.nth(number)
      spans(1)
      vi.advanceTimersByTime(1000)
      done(OK)
    }
    spans(1)
    await exporter.nth(4)
    expect(exporter.exports.map((each) => each.spans.length)).toEqual([10, 1, 1, 2])
  })

  test('when the delay has passed since what came behind a full one', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const { exporter, spans } = setUp(new Slow(), { scheduledDelayMillis: 1000 })
    spans(1)
    vi.advanceTimersByTime(900)
    spans(10)
    ;(await exporter.nth(1)).done(OK)
    await turn()
    vi.advanceTimersByTime(999)
    await turn()
    expect(exporter.exports).toHaveLength(1)
    vi.advanceTimersByTime(1)
    expect((await exporter.nth(2)).spans).toHaveLength(1)
  })

  test('as its span ends for a minute, counted from the last time that the process may be about to exit', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const { exporter, processor, spans } = setUp(quick())
    const leaves = async () => {
      const before = exporter.sizes.length
      spans(1)
      await turn()
      return exporter.sizes.length > before
    }
    expect(await leaves()).toBe(false)
    processor.hasten()
    await vi.advanceTimersByTimeAsync(50_000)
    expect(await leaves()).toBe(true)
    processor.hasten()
    await vi.advanceTimersByTimeAsync(50_000)
    expect(await leaves()).toBe(true)
    await vi.advanceTimersByTimeAsync(10_000)
    expect(await leaves()).toBe(false)
  })

  test('when somebody flushes, together with what is in the queue behind it', async () => {
    const { exporter, processor, spans } = setUp(quick())
    spans(25)
    await processor.forceFlush()
    expect(exporter.sizes).toEqual([10, 10, 5])
    expect(exporter.names).toHaveLength(25)
  })

  test('not in the middle of the request that filled it', async () => {
    const { exporter, spans } = setUp(new Slow())
    spans(10)
    await Promise.resolve()
    expect(exporter.exports).toHaveLength(0)
    await exporter.nth(1)
  })

  test('only with spans that are sampled', async () => {
    const { exporter, processor, spans } = setUp(
      quick(),
      {},
      {
        shouldSample: () => ({ decision: 1 }),
        toString: () => 'RecordOnly',
      },
    )
    spans(25)
    await processor.forceFlush()
    expect(exporter.sizes).toEqual([])
    const off = setUp(quick(), {}, alwaysOff)
    off.spans(25)
    await off.processor.forceFlush()
    expect(off.exporter.sizes).toEqual([])
  })

  test('from where nothing is traced, whoever wrote the exporter, and without the context of any request', async () => {
    context.setGlobalContextManager(new AsyncContextManager())
    const seen: unknown[] = []
    const look = () => seen.push(isSuppressed(context.active()), context.active().getValue(key))
    const key = Symbol('request')
    const exporter: SpanExporter = {
      export(_spans, done) {
        look()
        done(OK)
      },
      forceFlush: async () => void look(),
      shutdown: async () => void look(),
    }
    const { processor, spans } = setUp(exporter)
    await context.with(context.active().setValue(key, 'a request'), async () => {
      spans(10)
      await processor.forceFlush()
      await processor.shutdown()
    })
    context.disable()
    expect(seen).toEqual([true, undefined, true, undefined, true, undefined, true, undefined])
  })

  test('without what the app keeps by AsyncLocalStorage for the request that filled it', async () => {
    const requests = new AsyncLocalStorage<string>()
    const seen: unknown[] = []
    const exporter: SpanExporter = {
      export(_spans, done) {
        seen.push(requests.getStore())
        done(OK)
      },
      shutdown: async () => {},
    }
    const { processor, spans } = setUp(exporter)
    requests.run('a request', () => spans(10))
    await processor.forceFlush()
    requests.run('a request', () => spans(1))
    await requests.run('another', () => processor.forceFlush())
    expect(seen).toEqual([undefined, undefined])
  })

  test('by timers that keep nothing of the request that started them', () => {
    const requests = new AsyncLocalStorage<string>()
    const seen: unknown[] = []
    const timer = { unref: () => timer }
    const setTimer = vi.spyOn(globalThis, 'setTimeout')
    setTimer.mockImplementation(((_work: () => void, milliseconds: number) => {
      seen.push([milliseconds, requests.getStore()])
      return timer
    }) as unknown as typeof setTimeout)
    const { spans } = setUp(new Slow(), { maxQueueSize: 2, maxExportBatchSize: 2 })
    // The third is dropped, which is said by the minute.
    requests.run('a request', () => spans(3))
    setTimer.mockRestore()
    expect(seen).toEqual([
      [5000, undefined],
      [60_000, undefined],
    ])
  })

  test('in a turn of the loop of its own, so that a full queue holds up nobody for longer than one batch', async () => {
    const turns: number[] = []
    const clock = { now: 0, isOver: false }
    const exporter: SpanExporter = {
      export(_spans, done) {
        turns.push(clock.now)
        done(OK)
      },
      shutdown: async () => {},
    }
    const { processor, spans } = setUp(exporter, readConfig({}, {}).batch)
    spans(16_384)
    const flushed = processor.forceFlush().then(() => (clock.isOver = true))
    while (!clock.isOver) {
      await turn()
      clock.now += 1
    }
    await flushed
    expect(turns).toHaveLength(32)
    expect(new Set(turns).size).toBe(32)
  })

  test('when its resource is complete: a detector may still be asking', async () => {
    const { exporter, processor } = setUp(quick())
    let answer = (_zone: string) => {}
    const resource = resourceFromAttributes({ zone: new Promise<string>((resolve) => (answer = resolve)) })
    engine({ processors: [processor], resource })
      .tracer.startSpan('work')
      .end()
    const flushed = processor.forceFlush()
    await turn()
    await turn()
    expect(exporter.sizes).toEqual([])
    answer('eu-1')
    await flushed
    expect(exporter.sizes).toEqual([1])
  })

  test('also where the detector of its resource fails: what is known is sent', async () => {
    const { exporter, processor } = setUp(quick())
    const resource = {
      attributes: {},
      asyncAttributesPending: true,
      waitForAsyncAttributes: () => Promise.reject(new Error('no metadata server')),
    }
    engine({ processors: [processor], resource })
      .tracer.startSpan('work')
      .end()
    await processor.forceFlush()
    expect(exporter.sizes).toEqual([1])
  })
})

describe('a batch of large spans is cut', () => {
  const text = 'x'.repeat(100_000)
  const link = { context: { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 } }

  test.each<[string, number, (span: Span) => unknown]>([
    ['a long text', 5, (span) => span.setAttribute('text', text)],
    [
      'an array of texts',
      5,
      (span) => span.setAttribute('texts', [text.slice(0, 50_000), text.slice(0, 50_000)]),
    ],
    [
      'a list of many numbers',
      6,
      (span) => span.setAttribute('numbers', Array.from({ length: 10_000 }, Number)),
    ],
    [
      'many attributes',
      10,
      (span) => {
        for (let index = 0; index < 100; index += 1) span.setAttribute(`key ${index}`, text.slice(0, 500))
      },
    ],
    [
      'attributes with long names',
      10,
      (span) => {
        for (let index = 0; index < 100; index += 1) span.setAttribute(`${text.slice(0, 500)}${index}`, true)
      },
    ],
    ['an event with a stack', 5, (span) => span.addEvent('exception', { stack: text })],
    ['an event with a long name', 5, (span) => span.addEvent(text)],
    ['a status that says much', 5, (span) => span.setStatus({ code: SpanStatusCode.ERROR, message: text })],
    ['a link that says much', 5, (span) => span.addLink({ ...link, attributes: { text } })],
    ['one text that is larger than any batch', 1, (span) => span.setAttribute('text', text.repeat(10))],
    [
      'maps, as spans of other libraries may',
      5,
      (span) => {
        span.attributes = { map: { inner: [{ text }] } } as unknown as Attributes
      },
    ],
    [
      'maps with long names',
      5,
      (span) => {
        span.attributes = { map: { [text]: 1 } } as unknown as Attributes
      },
    ],
    [
      'bytes',
      5,
      (span) => {
        span.attributes = { bytes: new Uint8Array(text.length) } as unknown as Attributes
      },
    ],
    [
      'maps that hold themselves twice, which are cut where they are encoded',
      1,
      (span) => {
        const map: Record<string, unknown> = {}
        map['a'] = map
        map['b'] = map
        span.attributes = { map } as unknown as Attributes
      },
    ],
    ['nothing of note', 24, (span) => span.setAttribute('text', 'x')],
  ])('where they hold %s', async (_title, size, fill) => {
    const { exporter, processor, tracer } = setUp(quick(), { maxExportBatchSize: 24 })
    for (let index = 0; index < 60; index += 1) {
      const span = tracer.startSpan(String(index)) as Span
      fill(span)
      span.end()
    }
    await processor.forceFlush()
    expect(exporter.names).toEqual(Array.from({ length: 60 }, (_, index) => String(index)))
    expect(Math.max(...exporter.sizes)).toBe(size)
    expect(exporter.sizes.length).toBeGreaterThanOrEqual(60 / size)
  })

  test('and to weigh a span makes nothing of it', async () => {
    const { processor, tracer } = setUp(quick(), { maxExportBatchSize: 24 })
    const span = tracer.startSpan('ordinary') as Span
    span.setAttribute('a', 1).end()
    await processor.forceFlush()
    expect(span.isPlain).toBe(true)
  })

  test('and what is left of it stands in front of what came later', async () => {
    const { exporter, processor, tracer } = setUp(new Slow(), { maxExportBatchSize: 10 })
    for (let index = 0; index < 15; index += 1) tracer.startSpan(`${index}`, { attributes: { text } }).end()
    const flushed = processor.forceFlush()
    const sizes: number[] = []
    for (const number of [1, 2, 3]) {
      const { spans, done } = await exporter.nth(number)
      sizes.push(spans.length)
      tracer.startSpan('later').end()
      done(OK)
    }
    await flushed
    const names = exporter.exports.flatMap(({ spans }) => spans.map(({ name }) => name))
    expect(names.slice(0, 15)).toEqual(Array.from({ length: 15 }, (_, index) => `${index}`))
    // Two that came later are so light that they find room.
    expect(sizes).toEqual([5, 5, 7])
  })

  test('but a span whose attributes cannot be read is the exporter’s affair', async () => {
    const { exporter, processor } = setUp(quick())
    const odd = Object.defineProperty({}, 'secret', {
      enumerable: true,
      get: () => {
        throw new Error('no')
      },
    })
    const span = finished()
    processor.onEnd({
      ...span,
      spanContext: () => span.spanContext(),
      resource: span.resource,
      attributes: odd,
    } as never)
    await processor.forceFlush()
    expect(exporter.sizes).toEqual([1])
  })
})

describe('exports', () => {
  test('are never two at a time', async () => {
    const { exporter, processor, spans } = setUp(new Slow())
    spans(35)
    const flushes = [processor.forceFlush(), processor.forceFlush()]
    for (let number = 1; number <= 4; number += 1) {
      const { done } = await exporter.nth(number)
      spans(number === 1 ? 5 : 0)
      await turn()
      expect(exporter.exports).toHaveLength(number)
      done(OK)
    }
    await Promise.all(flushes)
    expect(exporter.mostAtOnce).toBe(1)
  })

  test('lose nothing of a burst of 10,000 spans in one tick at default settings', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(quick(), readConfig({}, {}).batch)
    spans(10_000)
    await processor.forceFlush()
    expect(exporter.names).toEqual(Array.from({ length: 10_000 }, (_, index) => `${index + 1}`))
    expect(Math.max(...exporter.sizes)).toBe(512)
    expect(reports.lines).toEqual([])
  })

  test('obey the OTEL_BSP_* variables exactly', async () => {
    const { batch } = readConfig(
      {},
      {
        OTEL_BSP_MAX_QUEUE_SIZE: '7',
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '3',
        OTEL_BSP_SCHEDULE_DELAY: '20',
        OTEL_BSP_EXPORT_TIMEOUT: '40',
      },
    )
    expect(batch).toEqual({
      maxQueueSize: 7,
      maxExportBatchSize: 3,
      scheduledDelayMillis: 20,
      exportTimeoutMillis: 40,
    })
    said()
    const { exporter, spans } = setUp(new Slow(), batch)
    spans(3)
    const first = await exporter.nth(1)
    // Three are under way; seven find room, and the rest none.
    spans(20)
    first.done(OK)
    for (const number of [2, 3, 4]) (await exporter.nth(number)).done(OK)
    expect(exporter.exports.map((each) => each.spans.length)).toEqual([3, 3, 3, 1])
  })

  test('are no larger than the queue', async () => {
    const { exporter, spans } = setUp(new Slow(), { ...NEVER, maxQueueSize: 4, maxExportBatchSize: 512 })
    spans(4)
    expect((await exporter.nth(1)).spans).toHaveLength(4)
  })
})
