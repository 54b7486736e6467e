import { flush, span, type SpanProcessor } from '@throughline/core'
import { setTimeout as later } from 'node:timers/promises'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { registeredProvider } from '../../packages/core/src/current.ts'
import { said } from './engine.ts'
import { deadPort, receiver } from './receiver.ts'
import { started } from './tracing.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

describe('start()', () => {
  test('has flush and shutdown that neither reject nor wait for ever, whatever the pipeline does', async () => {
    const reports = said()
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const tracing = started({
      spanProcessors: [
        {
          onStart() {},
          onEnd() {},
          forceFlush: () => new Promise(() => {}),
          shutdown: () => Promise.reject(new Error('cannot')),
        },
      ],
    })
    const flushed = Promise.all([flush(), tracing.flush()])
    vi.advanceTimersByTime(5000)
    await flushed
    await tracing.shutdown()
    vi.useRealTimers()
    expect(reports.lines).toEqual([
      'throughline: the spans could not all be sent within 5000 ms',
      'throughline: the spans could not be flushed',
    ])
  })

  test('has a shutdown that ends though the collector never answers', async () => {
    said()
    const collector = await receiver(() => {})
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const stopped = tracing.shutdown()
    await collector.nth(1)
    vi.advanceTimersByTime(5000)
    await expect(stopped).resolves.toBeUndefined()
    vi.useRealTimers()
  })

  test('leaves a batch its time where a collector asks for more than a flush has, but not where all ends', async () => {
    const reports = said()
    const collector = await receiver((response) => response.writeHead(429, { 'Retry-After': '8' }).end())
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    const flushed = tracing.flush()
    await collector.nth(1)
    // What others fetch takes longer than the answer.
    const others = await receiver()
    for (let count = 0; count < 4; count += 1) await fetch(others.url)
    expect(reports.lines).toEqual([])
    await tracing.shutdown()
    await flushed
    expect(reports.lines.join()).toMatch(/answered 429/)
    expect(reports.lines.join()).not.toMatch(/could not all be sent/)
    expect(collector.requests).toHaveLength(1)
  })

  test('has a flush that does not wait for a collector that is not there to come back', async () => {
    const reports = said()
    const tracing = started({ endpoint: `http://127.0.0.1:${await deadPort()}` })
    span('work', () => {})
    await tracing.flush()
    // Were it to try again, it would not be done within its deadline, and that would be said too.
    expect(reports.lines.join()).toMatch(/could not be reached/)
    expect(reports.lines.join()).not.toMatch(/could not all be sent/)
  })

  test('costs each who flushes the same, however many wait: an app may do it at the end of each request', async () => {
    const collector = await receiver()
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    // What all have in common is found by this.
    const compared = vi.spyOn(Math, 'min')
    onTestFinished(() => compared.mockRestore())
    await Promise.all(Array.from({ length: 1000 }, () => tracing.flush()))
    expect(Math.max(...compared.mock.calls.map((values) => values.length))).toBeLessThan(10)
  })

  test('is shared by those who ask for it while one is at work, each of whom waits until their own spans have left', async () => {
    let release = () => {}
    const flushes: number[] = []
    let ended = 0
    const processor: SpanProcessor = {
      onStart() {},
      onEnd: () => void (ended += 1),
      forceFlush: () => new Promise((resolve) => void ((release = resolve), flushes.push(ended))),
      shutdown: async () => {},
    }
    const tracing = started({ spanProcessors: [processor] })
    const one = () => {
      span('work', () => {})
      return tracing.flush()
    }
    const first = one()
    const rest = Promise.all(Array.from({ length: 100 }, one))
    expect(flushes).toEqual([1])
    release()
    await first
    await vi.waitFor(() => expect(flushes).toEqual([1, 101]))
    release()
    await rest
    expect(flushes).toEqual([1, 101])
  })

  test('keeps the process alive for as long as somebody waits for it, also where it is shared', async () => {
    said()
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const flushes = vi.fn<() => Promise<void>>(() => new Promise(() => {}))
    const tracing = started({
      spanProcessors: [{ onStart() {}, onEnd() {}, forceFlush: flushes, shutdown: async () => {} }],
    })
    const first = tracing.flush()
    vi.advanceTimersByTime(1000)
    const second = tracing.flush()
    const timers: NodeJS.Timeout[] = []
    const { setTimeout: faked } = globalThis
    vi.stubGlobal('setTimeout', (work: () => void, milliseconds: number) => {
      const timer = faked(work, milliseconds)
      timers.push(timer)
      return timer
    })
    vi.advanceTimersByTime(4000)
    await first
    await vi.waitFor(() => expect(flushes).toHaveBeenCalledTimes(2))
    vi.unstubAllGlobals()
    vi.advanceTimersByTime(1000)
    await second
    vi.useRealTimers()
    // Of the flush that nobody waits for any more.
    expect(timers.map((timer) => timer.hasRef())).toEqual([false])
  })

  test('looks no further than to the first connection of the app while a collector takes its time', async () => {
    const collector = await receiver((response) => later(1000).then(() => response.end()))
    const looks = vi.fn<() => void>()
    const resources = new Proxy(
      Array.from({ length: 1000 }, () => 'TCPSocketWrap'),
      {
        get(names, name, receiver) {
          if (Number.isInteger(Number(String(name)))) looks()
          return Reflect.get(names, name, receiver) as unknown
        },
      },
    )
    const listed = vi.spyOn(process, 'getActiveResourcesInfo').mockReturnValue(resources)
    onTestFinished(() => listed.mockRestore())
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    await tracing.flush()
    expect(listed).toHaveBeenCalled()
    expect(looks).toHaveBeenCalledTimes(listed.mock.calls.length)
  })
})

test('flush() without anything started ends, and starts nothing', async () => {
  await flush()
  expect(registeredProvider()).toBeUndefined()
})
