import { context, SpanStatusCode, type Attributes } from '@opentelemetry/api'
import { resourceFromAttributes } from '@opentelemetry/resources'
import * as fc from 'fast-check'
import { AsyncLocalStorage } from 'node:async_hooks'
import { EventEmitter, once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  announced,
  batchProcessor,
  type BatchOptions,
  type ExportResult,
  type Handover,
  type SpanExporter,
} from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import { readConfig } from '../../packages/core/src/config.ts'
import { alwaysOff, type Sampler } from '../../packages/core/src/sampling.ts'
import type { ReadableSpan, Span } from '../../packages/core/src/span.ts'
import { engine, finished, said } from './engine.ts'
import { flushing } from './exporter.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

const OPTIONS: BatchOptions = {
  scheduledDelayMillis: 5000,
  exportTimeoutMillis: 30_000,
  maxQueueSize: 100,
  maxExportBatchSize: 10,
}

/** A delay that no test waits for. */
const NEVER = { scheduledDelayMillis: 2 ** 30 }

interface Export {
  spans: ReadableSpan[]
  done: (result: ExportResult) => void
  late?: AbortSignal | undefined
  handover?: Handover | undefined
}

/** An exporter that answers when the test says so. */
class Slow extends EventEmitter implements SpanExporter {
  readonly exports: Export[] = []
  underWay = 0
  mostAtOnce = 0
  flushes = 0
  stops = 0

  export(spans: ReadableSpan[], done: Export['done'], late?: AbortSignal, handover?: Handover): void {
    this.underWay += 1
    this.mostAtOnce = Math.max(this.mostAtOnce, this.underWay)
    let isOpen = true
    const end = () => {
      if (isOpen) this.underWay -= 1
      isOpen = false
    }
    late?.addEventListener('abort', end)
    const answer = (result: ExportResult) => {
      end()
      done(result)
    }
    this.exports.push({ spans, done: answer, late, handover })
    this.emit('export')
  }

  /** The export with this number, now or later. */
  async nth(number: number): Promise<Export> {
    while (this.exports.length < number) await once(this, 'export')
    return this.exports[number - 1] as Export
  }

  forceFlush = async (): Promise<void> => void (this.flushes += 1)
  shutdown = async (): Promise<void> => void (this.stops += 1)
}

/** An exporter that answers at once. */
function quick(result: ExportResult = { code: 0 }): SpanExporter & { sizes: number[]; names: string[] } {
  const sizes: number[] = []
  const names: string[] = []
  return {
    sizes,
    names,
    export(spans, done) {
      sizes.push(spans.length)
      names.push(...spans.map(({ name }) => name))
      done(result)
    },
    shutdown: async () => {},
  }
}

function setUp<E extends SpanExporter>(exporter: E, options: Partial<BatchOptions> = {}, sampler?: Sampler) {
  const processor = batchProcessor(exporter, { ...OPTIONS, ...options })
  const { tracer } = engine({ processors: [processor], ...(sampler && { sampler }) })
  let made = 0
  const spans = (count: number) => {
    for (let index = 0; index < count; index += 1) tracer.startSpan(`${(made += 1)}`).end()
  }
  return { exporter, processor, spans, tracer }
}

const OK: ExportResult = { code: 0 }

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

describe('a flush', () => {
  test('waits for what is already on its way', async () => {
    const { exporter, processor, spans } = setUp(new Slow())
    spans(10)
    const { done } = await exporter.nth(1)
    let isFlushed = false
    const flushed = processor.forceFlush().then(() => (isFlushed = true))
    await turn()
    expect(isFlushed).toBe(false)
    done(OK)
    await flushed
    expect(exporter.flushes).toBe(1)
  })

  test('does not wait for spans that come after it', async () => {
    const { exporter, processor, spans } = setUp(new Slow())
    spans(3)
    const flushed = processor.forceFlush()
    const first = await exporter.nth(1)
    spans(3)
    first.done(OK)
    await flushed
    expect(exporter.exports).toHaveLength(1)
  })

  test('says how many of those that it was to export were lost, and why; of others nothing', async () => {
    said()
    const { exporter, processor, spans } = setUp(new Slow())
    spans(10)
    const first = await exporter.nth(1)
    spans(3)
    const before = flushing(processor)
    first.done({ code: 1, error: new Error('disk full') })
    const second = await exporter.nth(2)
    const after = flushing(processor)
    second.done(OK)
    expect([await before, await after]).toEqual(['Error: 10 spans were lost: disk full', ''])
    expect(await flushing(processor)).toBe('')
  })

  test('says no more than it waits for, and the first cause, of an export that has lost a part of it, too', async () => {
    said()
    const { exporter, processor, spans } = setUp(new Slow())
    spans(1)
    const one = flushing(processor)
    spans(9)
    const all = flushing(processor)
    ;(await exporter.nth(1)).done({ code: 0, lost: 3 })
    expect([await one, await all]).toEqual([
      'Error: 1 span was lost: the exporter failed and did not say why',
      'Error: 3 spans were lost: the exporter failed and did not say why',
    ])
  })

  test('flushes the exporter all the same, whose trouble does not hide what was lost', async () => {
    said()
    let flushes = 0
    const failing = {
      export: (_spans: unknown, done: (result: ExportResult) => void) =>
        done({ code: 1, error: new Error('down') }),
      forceFlush: () => {
        flushes += 1
        return Promise.reject(new Error('disk full'))
      },
      shutdown: async () => {},
    }
    const { processor, spans } = setUp(failing)
    spans(2)
    expect([await flushing(processor), flushes]).toEqual(['Error: 2 spans were lost: down', 1])
  })

  test('of nothing ends at once, and one that the exporter fails says so', async () => {
    const { processor } = setUp(quick())
    await processor.forceFlush()
    const failing = { ...quick(), forceFlush: () => Promise.reject(new Error('disk full')) }
    await expect(setUp(failing).processor.forceFlush()).rejects.toThrow('disk full')
  })
})

test('who gives up waits for nothing that is still in the queue, and nothing of that is sent', async () => {
  const reports = said()
  const { exporter, processor, spans } = setUp(new Slow(), NEVER)
  spans(25)
  await exporter.nth(1)
  await processor.giveUp()
  processor.sayLosses()
  for (let turns = 0; turns < 3; turns += 1) await turn()
  expect(exporter.exports).toHaveLength(1)
  expect(reports.lines).toEqual(['throughline: 25 spans were lost because they could not be exported'])
})

test('the end of the process is told what has not left, without what the other end has already', async () => {
  const reports = said()
  const { exporter, processor, spans } = setUp(new Slow(), NEVER)
  spans(10)
  const { handover } = await exporter.nth(1)
  ;(handover as Handover).delivered = 4
  spans(1)
  processor.abandon()
  expect(reports.lines).toEqual([
    expect.stringContaining('throughline: 7 spans had not been sent and acknowledged when the process ended'),
  ])
})

test('nor is it told that again where the exporter has said that nobody is there', async () => {
  const { exporter, processor, spans } = setUp(new Slow(), NEVER)
  spans(10)
  ;(await exporter.nth(1)).done({ code: 1, error: announced('nobody listens') })
  await turn()
  const reports = said()
  spans(1)
  processor.abandon()
  expect(reports.lines).toEqual([])
})

test('a span that ends after the shutdown is said not to be exported, once', async () => {
  const reports = said()
  const { exporter, processor, tracer } = setUp(quick())
  const spans = ['one', 'two'].map((name) => tracer.startSpan(name))
  await processor.shutdown()
  for (const span of spans) span.end()
  expect(exporter.names).toEqual([])
  expect(reports.lines).toEqual(['throughline: a span ended after shutdown() and is not exported: "one"'])
})

describe('a shutdown', () => {
  test('exports what is there, stops the exporter once, and takes nothing any more', async () => {
    const { exporter, processor, spans } = setUp(new Slow())
    spans(3)
    const stopped = [processor.shutdown(), processor.shutdown()]
    spans(5)
    ;(await exporter.nth(1)).done(OK)
    await Promise.all(stopped)
    spans(20)
    await flushing(processor)
    expect(exporter.exports.map((each) => each.spans.length)).toEqual([3])
    expect([exporter.flushes, exporter.stops]).toEqual([1, 1])
  })

  test('stops the exporter also where its flush fails', async () => {
    let stops = 0
    const failing = {
      ...quick(),
      forceFlush: () => Promise.reject(new Error('disk full')),
      shutdown: async () => void (stops += 1),
    }
    await expect(setUp(failing).processor.shutdown()).rejects.toThrow('disk full')
    expect(stops).toBe(1)
  })
})

/** How many spans the lines say are gone, by what became of them. */
function counted(lines: readonly string[]): { lost: number; dropped: number } {
  const sum = (pattern: RegExp) =>
    lines.reduce((total, line) => total + Number(pattern.exec(line)?.[1] ?? 0), 0)
  return {
    lost: sum(/(\d+) (?:spans? )?(?:was|were) lost/),
    dropped: sum(/(\d+) spans? (?:was|were) dropped/),
  }
}

const DOWN: ExportResult = { code: 1, error: new Error('down') }

describe('trouble', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  })

  test('an exporter that never answers costs its batch after the timeout, and the next one goes', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow(), { exportTimeoutMillis: 777 })
    spans(10)
    const first = await exporter.nth(1)
    spans(1)
    const flushed = flushing(processor)
    vi.advanceTimersByTime(776)
    await turn()
    expect([exporter.exports.length, first.late?.aborted]).toEqual([1, false])
    vi.advanceTimersByTime(1)
    const second = await exporter.nth(2)
    expect(first.late?.aborted).toBe(true)
    // Nobody hears it any more.
    first.done(OK)
    second.done(OK)
    expect(await flushed).toBe('Error: 10 spans were lost: no answer from the exporter within 777 ms')
    expect(second.spans).toHaveLength(1)
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 777 ms',
      'throughline: spans are exported again; 10 were lost',
    ])
  })

  test('whoever flushes many batches, or shuts down, waits no longer than two exports may take, and what is left then is lost and counted', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow(), { exportTimeoutMillis: 777 })
    spans(60)
    const flushed = flushing(processor)
    for (const number of [1, 2]) {
      await exporter.nth(number)
      vi.advanceTimersByTime(777)
    }
    expect(await flushed).toBe('Error: the spans could not all be exported within 1554 ms')
    const stopped = processor.shutdown()
    for (const number of [3, 4]) {
      await exporter.nth(number)
      vi.advanceTimersByTime(777)
    }
    await stopped
    expect(exporter.stops).toBe(1)
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 777 ms',
      'throughline: 60 spans were lost because they could not be exported',
    ])
  })

  test('an exporter may take as long as it likes where the timeout is 0', async () => {
    const { exporter, processor, spans } = setUp(new Slow(), { exportTimeoutMillis: 0 })
    spans(10)
    const { done, late } = await exporter.nth(1)
    const flushed = flushing(processor)
    vi.advanceTimersByTime(2 ** 31 - 1)
    await turn()
    expect([exporter.exports.length, late?.aborted]).toEqual([1, false])
    done(OK)
    await flushed
  })

  test('a resource that is never complete costs the batch, which is not sent after all when it is', async () => {
    const reports = said()
    const { exporter, processor } = setUp(quick())
    let complete = () => {}
    const resource = {
      attributes: {},
      asyncAttributesPending: true,
      waitForAsyncAttributes: () => new Promise<void>((resolve) => (complete = resolve)),
    }
    engine({ processors: [processor], resource })
      .tracer.startSpan('work')
      .end()
    const flushed = flushing(processor)
    await turn()
    await turn()
    vi.advanceTimersByTime(30_000)
    await flushed
    complete()
    await turn()
    expect(exporter.sizes).toEqual([])
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 30000 ms',
    ])
  })

  test('what was taken of a batch whose time is over is not among the lost', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow())
    spans(10)
    const { handover } = await exporter.nth(1)
    if (handover !== undefined) handover.delivered = 7
    vi.advanceTimersByTime(30_000)
    await flushing(processor)
    processor.sayLosses()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 30000 ms',
      'throughline: 3 spans were lost because they could not be exported',
    ])
  })

  test.each<[string, (done: Export['done']) => void, string | undefined]>([
    [
      'throws',
      () => {
        throw new TypeError('not today')
      },
      'not today',
    ],
    [
      'throws a string',
      () => {
        throw 'a string'
      },
      'a string',
    ],
    [
      'throws what has no text',
      () => {
        throw Object.create(null)
      },
      'an error without text',
    ],
    [
      'fails with an error that cannot be read',
      (done) => {
        const error = Object.defineProperty(new Error(), 'message', {
          get: () => {
            throw new Error('no')
          },
        })
        done({ code: 1, error })
      },
      'an error without text',
    ],
    ['answers with no result', (done) => done(undefined as never), 'the exporter failed and did not say why'],
    ['fails without a reason', (done) => done({ code: 1 }), 'the exporter failed and did not say why'],
    ['fails with a string', (done) => done({ code: 1, error: 'a string' as never }), 'a string'],
    ['fails twice', (done) => [done(DOWN), done(DOWN)], 'down'],
    ['fails and then throws', (done) => [done(DOWN), Reflect.apply(undefined as never, 0, [])], 'down'],
    ['takes it, and then says that it did not', (done) => [done(OK), done(DOWN)], undefined],
    [
      'takes it, and then throws',
      (done) => {
        done(OK)
        throw new Error('too late')
      },
      undefined,
    ],
  ])('an exporter that %s breaks nothing, and each span is counted once', async (_title, answer, reason) => {
    const reports = said()
    const { processor, spans } = setUp({ ...quick(), export: (_spans, done) => answer(done) })
    spans(25)
    await flushing(processor)
    await processor.shutdown()
    expect(reports.lines).toEqual(
      reason === undefined
        ? []
        : [
            `throughline: spans are being lost: ${reason}`,
            'throughline: 25 spans were lost because they could not be exported',
          ],
    )
  })

  test('an exporter whose flush or shutdown never ends holds up ours for no longer than an export may take', async () => {
    const never = () => new Promise<void>(() => {})
    const { processor, spans } = setUp({ ...quick(), forceFlush: never, shutdown: never })
    spans(1)
    let ends = 0
    const ended = () => (ends += 1)
    const flushed = processor.forceFlush().catch(ended)
    const stopped = processor.shutdown().catch(ended)
    for (let count = 0; count < 4; count += 1) await turn()
    expect(ends).toBe(0)
    vi.advanceTimersByTime(30_000)
    await flushed
    await turn()
    expect(ends).toBe(1)
    vi.advanceTimersByTime(30_000)
    await stopped
    expect(ends).toBe(2)
  })

  test('an exporter that fails is said when it begins and when it is over, not once per batch', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow())
    spans(40)
    const flushed = flushing(processor)
    for (const number of [1, 2, 3]) (await exporter.nth(number)).done(DOWN)
    ;(await exporter.nth(4)).done(OK)
    await flushed
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: down',
      'throughline: spans are exported again; 30 were lost',
    ])
  })

  test('an exporter that is an async function and rejects has failed, and the app hears nothing of it', async () => {
    const reports = said()
    const exporter = {
      ...quick(),
      async export() {
        throw new Error('disk full')
      },
    }
    const { processor, spans } = setUp(exporter)
    spans(20)
    // Were the promise left alone, the test run would fail of it, and this would wait for ever.
    await processor.shutdown()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: disk full',
      'throughline: 20 spans were lost because they could not be exported',
    ])
  })

  test('one that fails every other batch is said once per minute, with all that were lost in it', async () => {
    const reports = said()
    let number = 0
    const { processor, spans } = setUp({
      ...quick(),
      export: (_spans, done) => done((number += 1) % 2 === 1 ? DOWN : OK),
    })
    const flap = async () => {
      spans(100)
      await flushing(processor)
    }
    await flap()
    await flap()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: down',
      'throughline: spans are exported again; 10 were lost',
    ])
    vi.advanceTimersByTime(60_000)
    expect(reports.lines.slice(2)).toEqual([
      'throughline: 90 spans were lost because they could not be exported',
    ])
    await flap()
    await processor.shutdown()
    expect(reports.lines.slice(3)).toEqual([
      'throughline: spans are being lost: down',
      'throughline: spans are exported again; 10 were lost',
      'throughline: 40 spans were lost because they could not be exported',
    ])
  })

  test('one that is down all night is not said by the minute', async () => {
    const reports = said()
    const { processor, spans } = setUp({ ...quick(), export: (_spans, done) => done(DOWN) })
    for (let minute = 0; minute < 10; minute += 1) {
      spans(10)
      await flushing(processor)
      vi.advanceTimersByTime(60_000)
    }
    expect(reports.lines).toEqual(['throughline: spans are being lost: down'])
    await processor.shutdown()
    expect(counted(reports.lines)).toEqual({ lost: 100, dropped: 0 })
  })

  test('one span is one span, wherever it is counted', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow(), { maxQueueSize: 1, maxExportBatchSize: 1 })
    spans(1)
    ;(await exporter.nth(1)).done(DOWN)
    spans(1)
    const second = await exporter.nth(2)
    spans(2)
    second.done(OK)
    ;(await exporter.nth(3)).done(DOWN)
    await processor.shutdown()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: down',
      'throughline: the queue of 1 span is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)',
      'throughline: spans are exported again; 1 was lost',
      'throughline: 1 span was dropped because the queue was full',
      'throughline: 1 span was lost because it could not be exported',
    ])
  })

  test('spans that find the queue full are dropped and counted, and that is said at once and then by the minute', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow(), { maxQueueSize: 20 })
    spans(10)
    await exporter.nth(1)
    spans(25)
    expect(reports.lines).toEqual([
      'throughline: the queue of 20 spans is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)',
    ])
    vi.advanceTimersByTime(60_000)
    expect(reports.lines.slice(1)).toEqual(['throughline: 5 spans were dropped because the queue was full'])
    spans(7)
    const stopped = processor.shutdown()
    // The one under way has timed out meanwhile; the queue of 20 goes in two.
    for (const number of [2, 3]) (await exporter.nth(number)).done(OK)
    await stopped
    expect(exporter.exports.slice(1).flatMap((each) => each.spans)).toHaveLength(20)
    expect(counted(reports.lines)).toEqual({ lost: 10, dropped: 12 })
  })

  test('whatever comes in whatever order, each span is exported once, lost or dropped, and the counts say which', async () => {
    const step = fc.oneof(
      fc.record({ make: fc.integer({ min: 1, max: 60 }) }),
      fc.record({ answer: fc.constantFrom(OK, DOWN, undefined as never) }),
      fc.constant('flush' as const),
      fc.constant('minute' as const),
      fc.constant('turn' as const),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const reports = said()
        const { exporter, processor, spans } = setUp(new Slow(), { maxQueueSize: 50 })
        let made = 0
        const taken: ReadableSpan[] = []
        const answer = (result: ExportResult) => {
          const open = exporter.exports.at(-1)
          if (open === undefined || exporter.underWay === 0) return
          if (result?.code === 0) taken.push(...open.spans)
          open.done(result)
        }
        for (const each of steps) {
          if (each === 'flush') void processor.forceFlush().catch(() => {})
          else if (each === 'turn') await turn()
          else if (each === 'minute') {
            // No time passes between an answer and what follows from it.
            await turn()
            vi.advanceTimersByTime(60_000)
          } else if ('answer' in each) answer(each.answer)
          else {
            spans(each.make)
            made += each.make
          }
        }
        const end = { isReached: false }
        void processor.shutdown().then(() => (end.isReached = true))
        while (!end.isReached) {
          await turn()
          answer(OK)
        }
        const { lost, dropped } = counted(reports.lines)
        expect(new Set(taken).size).toBe(taken.length)
        expect(taken.length + lost + dropped).toBe(made)
        expect(exporter.mostAtOnce).toBeLessThanOrEqual(1)
      }),
      { numRuns: 200 },
    )
  })
})
