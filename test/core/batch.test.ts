import { context } from '@opentelemetry/api'
import { EventEmitter, once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  batchProcessor,
  type BatchOptions,
  type ExportResult,
  type SpanExporter,
} from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import { readConfig } from '../../packages/core/src/config.ts'
import { alwaysOff, type Sampler } from '../../packages/core/src/sampling.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { engine, said } from './engine.ts'

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
}

/** An exporter that answers when the test says so. */
class Slow extends EventEmitter implements SpanExporter {
  readonly exports: Export[] = []
  underWay = 0
  mostAtOnce = 0
  flushes = 0
  stops = 0

  export(spans: ReadableSpan[], done: Export['done']): void {
    this.underWay += 1
    this.mostAtOnce = Math.max(this.mostAtOnce, this.underWay)
    const answer = (result: ExportResult) => {
      this.underWay -= 1
      done(result)
    }
    this.exports.push({ spans, done: answer })
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

  test('when its resource is complete: a detector may still be asking', async () => {
    const { exporter, processor } = setUp(quick())
    let pending = true
    let complete = () => {}
    const waiting = new Promise<void>((resolve) => {
      complete = () => {
        pending = false
        resolve()
      }
    })
    const resource = {
      attributes: {},
      get asyncAttributesPending() {
        return pending
      },
      waitForAsyncAttributes: () => waiting,
    }
    engine({ processors: [processor], resource })
      .tracer.startSpan('work')
      .end()
    const flushed = processor.forceFlush()
    await turn()
    await turn()
    expect(exporter.sizes).toEqual([])
    complete()
    await flushed
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

  test('of nothing ends at once, and one that the exporter fails says so', async () => {
    const { processor } = setUp(quick())
    await processor.forceFlush()
    const failing = { ...quick(), forceFlush: () => Promise.reject(new Error('disk full')) }
    await expect(setUp(failing).processor.forceFlush()).rejects.toThrow('disk full')
  })
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
    await processor.forceFlush()
    expect(exporter.exports.map((each) => each.spans.length)).toEqual([3])
    expect(exporter.stops).toBe(1)
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

describe('trouble', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  })

  test('an exporter that never answers costs its batch after the timeout, and the next one goes', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow(), { exportTimeoutMillis: 777 })
    spans(10)
    await exporter.nth(1)
    spans(1)
    const flushed = processor.forceFlush()
    vi.advanceTimersByTime(777)
    const second = await exporter.nth(2)
    second.done(OK)
    await flushed
    expect(second.spans).toHaveLength(1)
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 777 ms',
      'throughline: spans are exported again; 10 were lost',
    ])
  })

  test('an exporter that throws, rejects nothing and breaks nothing', async () => {
    const reports = said()
    const exporter = {
      ...quick(),
      export() {
        throw new TypeError('not today')
      },
    }
    const { processor, spans } = setUp(exporter)
    spans(25)
    await processor.forceFlush()
    await processor.shutdown()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: not today',
      'throughline: 25 spans were lost because they could not be exported',
    ])
  })

  test('an exporter that fails is said when it begins and when it is over, not once per batch', async () => {
    const reports = said()
    const { exporter, processor, spans } = setUp(new Slow())
    spans(40)
    const flushed = processor.forceFlush()
    for (const number of [1, 2, 3]) (await exporter.nth(number)).done({ code: 1, error: new Error('down') })
    ;(await exporter.nth(4)).done(OK)
    await flushed
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: down',
      'throughline: spans are exported again; 30 were lost',
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
    spans(7)
    const stopped = processor.shutdown()
    // The one under way has timed out meanwhile; the queue of 20 goes in two.
    for (const number of [2, 3]) (await exporter.nth(number)).done(OK)
    await stopped
    expect(reports.lines).toContain('throughline: 5 spans were dropped because the queue was full')
    expect(exporter.exports.slice(1).flatMap((each) => each.spans)).toHaveLength(20)
  })
})
