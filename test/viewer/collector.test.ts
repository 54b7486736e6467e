import { collect } from '@throughline/viewer'
import type { Span, Trace } from '@throughline/viewer'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { checkout, hex, span, traceId } from './sample.ts'

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

/** A collector, and what it handed over so far. */
function collected(options: Parameters<typeof collect>[0] = {}) {
  const handed: Trace[] = []
  const collector = collect({ quiet: 100, onTrace: (trace) => handed.push(trace), ...options })
  return { collector, handed }
}

/** The trace of that number, with one span. */
function oneOf(number: number, id = 1) {
  return span(id, 'shop', `GET /${number}`, [0, 1], { traceId: `${number}`.padStart(32, '0') })
}

function ids(traces: readonly Trace[]): number[] {
  return traces.map((trace) => Number(trace.traceId))
}

function isWhole(trace: Trace): boolean {
  return trace.spans.length === 10
}

describe('a trace', () => {
  it('is handed over whole when it has been quiet, whichever requests brought its spans', () => {
    const { collector, handed } = collected()
    const [first, ...rest] = checkout()
    collector.add(first ? [first] : [])
    vi.advanceTimersByTime(99)
    collector.add(rest)
    vi.advanceTimersByTime(99)
    expect(handed).toEqual([])
    vi.advanceTimersByTime(1)
    expect(handed).toMatchObject([
      { traceId, spans: checkout(), revision: 1, lateSpans: 10, droppedSpans: 0, forgotten: false },
    ])
    vi.advanceTimersByTime(10_000)
    expect(handed).toHaveLength(1)
  })

  it('waits six seconds when nothing else is said', () => {
    const handed: Trace[] = []
    const collector = collect({ onTrace: (trace) => handed.push(trace) })
    collector.add(checkout())
    vi.advanceTimersByTime(5999)
    expect(handed).toHaveLength(0)
    vi.advanceTimersByTime(1)
    expect(handed).toHaveLength(1)
  })

  it('is handed over again, whole, when a span comes late', () => {
    const { collector, handed } = collected()
    const spans = checkout()
    collector.add(spans.slice(0, 9))
    vi.advanceTimersByTime(100)
    collector.add(spans.slice(9))
    vi.advanceTimersByTime(100)
    expect(handed).toMatchObject([
      { revision: 1, lateSpans: 9 },
      { revision: 2, lateSpans: 1, spans },
    ])
  })

  it('has a span once that an exporter sent twice', () => {
    const { collector, handed } = collected()
    collector.add([...checkout(), ...checkout()])
    vi.advanceTimersByTime(100)
    collector.add(checkout())
    vi.advanceTimersByTime(100)
    expect(handed.map((trace) => trace.spans.length)).toEqual([10])
  })

  it('keeps both the client and the server span that share one id', () => {
    const { collector } = collected()
    collector.add([
      span(1, 'shop', 'GET', [0, 9], { kind: 'client' }),
      span(1, 'stock', 'GET', [1, 8], { kind: 'server' }),
    ])
    expect(collector.traces()[0]?.spans).toHaveLength(2)
  })
})

describe('memory', () => {
  it('holds so many spans of a trace and counts the rest', () => {
    const { collector, handed } = collected({ maxSpansPerTrace: 4 })
    collector.add(checkout())
    vi.advanceTimersByTime(100)
    expect(handed).toMatchObject([{ spans: checkout().slice(0, 4), droppedSpans: 6 }])
  })

  it('lets go of the oldest trace that was handed over, and keeps one that was not', () => {
    const { collector, handed } = collected({ maxTraces: 2 })
    collector.add([oneOf(1), oneOf(2)])
    vi.advanceTimersByTime(100)
    collector.add([oneOf(1, 2)])
    collector.add([oneOf(3)])
    expect(ids(collector.traces())).toEqual([1, 3])
    expect(ids(handed)).toEqual([1, 2])
    vi.advanceTimersByTime(100)
    expect(ids(handed)).toEqual([1, 2, 1, 3])
  })

  it('shows a trace early rather than never when all of them wait', () => {
    const { collector, handed } = collected({ maxTraces: 3 })
    collector.add([1, 2, 3, 4, 5].map((number) => oneOf(number)))
    expect(ids(handed)).toEqual([1, 2])
    expect(ids(collector.traces())).toEqual([3, 4, 5])
  })

  it('is bounded over all traces together too', () => {
    const { collector, handed } = collected({ maxSpans: 10 })
    collector.add(checkout())
    collector.add([oneOf(1)])
    expect(handed).toMatchObject([{ traceId, spans: checkout() }])
    expect(ids(collector.traces())).toEqual([1])
  })

  describe('of long texts', () => {
    // One text in the memory of the test, counted wherever it is.
    const long = 'x'.repeat(8 * 2 ** 20)
    const { resource, scope } = oneOf(1)
    const places: [string, Partial<Span>][] = [
      ['an attribute', { attributes: { prompt: [{ long }] } }],
      [
        'an event',
        { events: [{ timeUnixNano: 0n, name: '', attributes: { long }, droppedAttributesCount: 0 }] },
      ],
      ['bytes', { attributes: { bytes: new Uint8Array(long.length) } }],
      ['a message', { status: { code: 'error', message: long } }],
      ['the resource', { resource: { ...resource, attributes: { long } } }],
      ['the scope', { scope: { ...scope, attributes: { long } } }],
    ]

    it.each(places)('is bounded too: %s', (_place, more) => {
      const { collector, handed } = collected()
      for (let number = 1; number <= 40; number += 1) collector.add([{ ...oneOf(number), ...more }])
      expect(ids(collector.traces())).toEqual(Array.from({ length: 31 }, (_, index) => index + 10))
      expect(ids(handed)).toEqual(Array.from({ length: 9 }, (_, index) => index + 1))
    })

    it('leaves out what one trace has too much of, and counts it', () => {
      const { collector, handed } = collected()
      collector.add(Array.from({ length: 10 }, (_, index) => span(index + 1, 'shop', long, [0, 1])))
      vi.advanceTimersByTime(100)
      expect(handed).toMatchObject([{ droppedSpans: 3 }])
      expect(handed[0]?.spans).toHaveLength(7)
    })

    it('counts once what the spans of one request share', () => {
      const { collector } = collected()
      const shared = {
        resource: { ...resource, attributes: { long } },
        scope: { ...scope, attributes: { long } },
      }
      collector.add(
        Array.from({ length: 10 }, (_, index) => ({ ...oneOf(1), spanId: hex(index + 1), ...shared })),
      )
      expect(collector.traces()).toMatchObject([{ droppedSpans: 0 }])
    })

    it('has room again when they were let go', () => {
      const { collector } = collected({ maxTraces: 1 })
      for (let number = 1; number <= 100; number += 1)
        collector.add([{ ...oneOf(number), attributes: { long } }])
      expect(collector.traces()).toMatchObject([{ droppedSpans: 0, spans: [{ name: 'GET /100' }] }])
    })
  })

  it('says of late spans that the earlier ones are gone', () => {
    const { collector } = collected({ maxTraces: 1 })
    collector.add([oneOf(1)])
    collector.add([oneOf(2)])
    collector.add([oneOf(1, 2)])
    expect(collector.traces()).toMatchObject([{ forgotten: true, spans: [{ spanId: hex(2) }] }])
  })
})

describe('waiting for a trace', () => {
  it('ends when the trace is as wished, before it is quiet', async () => {
    const { collector, handed } = collected()
    const whole = collector.when(isWhole)
    collector.add(checkout().slice(0, 5))
    collector.add(checkout().slice(5))
    await expect(whole).resolves.toMatchObject({ traceId, spans: checkout() })
    expect(handed).toEqual([])
  })

  it('ends at once when the trace is there already', async () => {
    const { collector } = collected()
    collector.add(checkout())
    await expect(collector.when(isWhole)).resolves.toMatchObject({ traceId })
  })

  it('fails with the reason of the signal', async () => {
    const { collector } = collected()
    const abort = new AbortController()
    const whole = collector.when(isWhole, { signal: abort.signal })
    abort.abort(new Error('ten seconds are enough'))
    await expect(whole).rejects.toThrow('ten seconds are enough')
    await expect(collector.when(isWhole, { signal: abort.signal })).rejects.toThrow('ten seconds are enough')
  })

  it('fails when the predicate does, and harms no other', async () => {
    const { collector } = collected()
    const broken = collector.when(() => {
      throw new Error('my mistake')
    })
    const whole = collector.when(isWhole)
    collector.add(checkout())
    await expect(broken).rejects.toThrow('my mistake')
    await expect(whole).resolves.toMatchObject({ traceId })
  })

  it('fails when the collector is closed', async () => {
    const { collector } = collected()
    const whole = collector.when(isWhole)
    collector.close()
    await expect(whole).rejects.toThrow('the collector was closed before such a trace came')
  })
})

it('flush hands over at once what waits, and only that', () => {
  const { collector, handed } = collected()
  collector.add([oneOf(1)])
  vi.advanceTimersByTime(100)
  collector.add([oneOf(2)])
  collector.flush()
  collector.flush()
  vi.advanceTimersByTime(100)
  expect(ids(handed)).toEqual([1, 2])
})

it('close hands nothing over any more', () => {
  const { collector, handed } = collected()
  collector.add(checkout())
  collector.close()
  vi.advanceTimersByTime(1000)
  expect(handed).toEqual([])
  expect(collector.traces()).toEqual([])
  expect(vi.getTimerCount()).toBe(0)
})
