import * as fc from 'fast-check'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import type { ExportResult } from '../../packages/core/src/batch.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { OK, quick, setUp, Slow, type Export } from './batches.ts'
import { engine, said } from './engine.ts'
import { flushing } from './exporter.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

afterEach(() => {
  vi.useRealTimers()
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
