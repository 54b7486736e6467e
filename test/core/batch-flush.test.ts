import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test, vi } from 'vitest'
import { announced, type ExportResult, type Handover } from '../../packages/core/src/batch.ts'
import { NEVER, OK, quick, setUp, Slow } from './batches.ts'
import { said } from './engine.ts'
import { flushing } from './exporter.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

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
    // In a turn of its own the next batch would leave, were it due.
    await turn()
    await turn()
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
