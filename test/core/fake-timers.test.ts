import { span, start, type StartOptions, type Tracing } from '@throughline/core'
import { setTimeout as later } from 'node:timers'
import { setTimeout as passed } from 'node:timers/promises'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { said } from './engine.ts'
import { receiver, type Receiver } from './receiver.ts'

const BATCH = { scheduledDelayMillis: 20, exportTimeoutMillis: 200 }

let tracing: Tracing | undefined

function started(collector: Receiver, options: StartOptions = {}): Tracing {
  tracing = start({ signals: false, endpoint: collector.url, batch: BATCH, ...options })
  return tracing
}

afterEach(async () => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
  await tracing?.shutdown()
})

const names = (collector: Receiver) => collector.spans().map(({ name }) => name)

test('the timers of jsdom, which are numbers, are not asked', async () => {
  const reports = said()
  const collector = await receiver()
  const real = new Map<number, NodeJS.Timeout>()
  vi.stubGlobal('setTimeout', (work: () => void, milliseconds: number) => {
    real.set(real.size + 1, later(work, milliseconds))
    return real.size
  })
  vi.stubGlobal('setInterval', () => 1)
  vi.stubGlobal('clearInterval', () => {})
  const { flush } = started(collector)
  span('by the delay', () => {})
  await collector.nth(1)
  span('by a flush', () => {})
  await flush()
  expect(names(collector)).toEqual(['by the delay', 'by a flush'])
  expect(real.size).toBe(0)
  expect(reports.lines).toEqual([])
})

describe('while the app has fake timers', () => {
  test('a span that ends starts the delay, which passes all the same', async () => {
    const collector = await receiver()
    started(collector)
    vi.useFakeTimers()
    span('under fake timers', () => {})
    vi.useRealTimers()
    await collector.nth(1)
    span('later', () => {})
    await collector.nth(2)
    expect(names(collector)).toEqual(['under fake timers', 'later'])
  })

  test('a flush ends though the collector does not answer', async () => {
    const reports = said()
    const collector = await receiver(() => {})
    const { flush } = started(collector, { timeoutMillis: 100 })
    vi.useFakeTimers()
    span('work', () => {})
    await flush()
    expect(reports.lines).toEqual([expect.stringMatching(/spans are being lost: .* the export timed out$/)])
  })

  test('and one ends though its exporter does not answer', async () => {
    const reports = said()
    const exporter = { export() {}, shutdown: async () => {} }
    tracing = start({ signals: false, exporter, batch: BATCH })
    vi.useFakeTimers()
    span('work', () => {})
    await tracing.flush()
    expect(reports.lines).toEqual([
      'throughline: spans are being lost: no answer from the exporter within 200 ms',
    ])
  })
})

test('an export that was under way when the fake timers went keeps none from leaving after it', async () => {
  said()
  let isSilent = true
  const collector = await receiver((response) => {
    if (!isSilent) response.end()
  })
  started(collector, { timeoutMillis: 100 })
  vi.useFakeTimers()
  span('unanswered', () => {})
  await collector.nth(1)
  vi.useRealTimers()
  isSilent = false
  // The export's time is over.
  await passed(BATCH.exportTimeoutMillis)
  span('later', () => {})
  await collector.nth(2)
  expect(names(collector)).toEqual(['unanswered', 'later'])
})
