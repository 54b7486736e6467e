import { ROOT_CONTEXT, trace, type HrTime, type TimeInput } from '@opentelemetry/api'
import { runInNewContext } from 'node:vm'
import { afterEach, expect, test, vi } from 'vitest'
import {
  anchorAt,
  between,
  checkedAnchor,
  hrTimeAt,
  now,
  readTime,
  toHrTime,
  writeElapsed,
} from '../../packages/core/src/clock.ts'
import type { Span } from '../../packages/core/src/span.ts'
import { engine, said } from './engine.ts'
import { app } from './process.ts'

// Before any test sets the clock.
const anchor = checkedAnchor(performance, performance.now())

const NS = 1_000_000_000n

function nanoseconds([seconds, nanos]: HrTime): bigint {
  return BigInt(seconds) * NS + BigInt(nanos)
}

function spanOf(startTime?: TimeInput, endTime?: TimeInput): Span {
  const span = engine().tracer.startSpan('work', startTime === undefined ? {} : { startTime }) as Span
  span.end(endTime)
  return span
}

/** What was seen of the wall clock is believed no longer. */
function untilLookedAtAgain(): void {
  const until = performance.now() + 21
  while (performance.now() < until);
}

afterEach(() => {
  vi.useRealTimers()
  // Spans of later tests have the real time of day again.
  untilLookedAtAgain()
  engine().tracer.startSpan('after')
})

test('a time given as [seconds, nanoseconds] is kept to the nanosecond', () => {
  const span = spanOf([1_700_000_000, 123_456_789], [1_700_000_002, 23_456_788])
  expect(span.startTime).toEqual([1_700_000_000, 123_456_789])
  expect(span.endTime).toEqual([1_700_000_002, 23_456_788])
  expect(span.duration).toEqual([1, 899_999_999])
})

test('a time may be given as a Date or as milliseconds since the epoch, fractions included', () => {
  expect(readTime(new Date(1_700_000_000_123), anchor)).toEqual([1_700_000_000, 123_000_000])
  expect(readTime(4_000_000_000_123, anchor)).toEqual([4_000_000_000, 123_000_000])
  expect(readTime(4_000_000_000_123.5, anchor)).toEqual([4_000_000_000, 123_500_000])
  expect(readTime(new Date(-1), anchor)).toEqual([-1, 999_000_000])
})

test('milliseconds since the epoch may be from before this process, as those of a message that waited are', () => {
  const enqueued = Math.floor(performance.timeOrigin) - 60_000
  expect(readTime(enqueued, anchor)).toEqual([Math.floor(enqueued / 1000), (enqueued % 1000) * 1e6])
  const span = spanOf(enqueued)
  expect(span.startTime).toEqual(readTime(new Date(enqueued), anchor))
  expect(span.duration[0]).toBeGreaterThanOrEqual(60)
})

test('a Date may be of another realm', () => {
  const date = runInNewContext('new Date(1_700_000_000_123)') as Date
  expect(readTime(date, anchor)).toEqual([1_700_000_000, 123_000_000])
  const span = engine().tracer.startSpan('work') as Span
  span.addEvent('paid', date)
  expect(span.events).toEqual([{ time: [1_700_000_000, 123_000_000], name: 'paid' }])
})

test.each([
  ['that stands still', 'const at = Date.now(); Date.now = () => at'],
  ['that stands still, and the monotonic one with it', 'Date.now = () => 5e11; performance.now = () => 7'],
  ['that is set back all the time', 'let at = Date.now(); Date.now = () => (at -= 1)'],
])('the package can be loaded beside a wall clock %s', async (_, fake) => {
  const { code, stdout } = await app(
    `${fake}; const { span } = await import('@throughline/core'); console.log(span('work', () => 'ran')); process.exit()`,
    { OTEL_TRACES_EXPORTER: 'none' },
  ).ended
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'ran' })
})

test('a time may be given as a reading of performance.now(), and is on the same clock as our own', () => {
  const before = toHrTime(now(), anchor)
  const given = readTime(performance.now(), anchor) as HrTime
  const after = toHrTime(now(), anchor)
  expect(nanoseconds(before) <= nanoseconds(given)).toBe(true)
  expect(nanoseconds(given) <= nanoseconds(after)).toBe(true)
})

test('a reading may be from before the process, and is written as any', () => {
  const time = toHrTime(-2000.5, anchor)
  expect(nanoseconds(time)).toBe(nanoseconds(toHrTime(0, anchor)) - 2_000_500_000n)
  expect(time[1]).toBeGreaterThanOrEqual(0)
  expect(time[1]).toBeLessThan(1e9)
})

test('no reading is yet to come: a larger number is milliseconds since the epoch, as for the official SDK', () => {
  expect(readTime(performance.now() + 3_600_000, anchor)?.[0]).toBeLessThan(1_000_000)
})

test('a time that is none is as good as not given', () => {
  for (const time of [Number.NaN, Infinity, new Date('never'), [Number.NaN, 0], 'noon', {}, null]) {
    expect(readTime(time as TimeInput, anchor)).toBeUndefined()
  }
  expect(spanOf(Number.NaN).startTime[0]).toBeGreaterThan(1_700_000_000)
})

test.each<[HrTime, HrTime]>([
  [
    [5, 3_500_000_000],
    [8, 500_000_000],
  ],
  [
    [5, -1],
    [4, 999_999_999],
  ],
  [
    [5, -1_000_000_000],
    [4, 0],
  ],
  [
    [1_700_000_000.5, 0],
    [1_700_000_000, 500_000_000],
  ],
  [
    [1_700_000_000.5, 700_000_000],
    [1_700_000_001, 200_000_000],
  ],
  [
    [5, 0.4],
    [5, 0],
  ],
  [
    [5, 999_999_999.6],
    [6, 0],
  ],
  [
    [-0.25, 0],
    [-1, 750_000_000],
  ],
])('a time of seconds and nanoseconds is carried over where that was not done: %o', (given, expected) => {
  expect(readTime(given, anchor)).toEqual(expected)
})

test('a span never ends before it starts, whatever it is told', () => {
  const span = spanOf([1_700_000_000, 500], [1_700_000_000, 499])
  expect(span.endTime).toEqual([1_700_000_000, 500])
  expect(span.duration).toEqual([0, 0])
  expect(spanOf(undefined, new Date(0)).duration).toEqual([0, 0])
  const notNormalised = spanOf([1_700_000_011, 0], [1_700_000_010, 1_500_000_000])
  expect(notNormalised.endTime).toEqual([1_700_000_011, 500_000_000])
  expect(notNormalised.duration).toEqual([0, 500_000_000])
})

test('spans that follow one another are in order, and their durations are never negative', () => {
  let last = 0n
  for (let count = 0; count < 10_000; count += 1) {
    const span = spanOf()
    const start = nanoseconds(span.startTime)
    const end = nanoseconds(span.endTime)
    expect(start >= last && end >= start).toBe(true)
    expect(nanoseconds(span.duration)).toBe(end - start)
    last = end
  }
})

test('nanoseconds stay between zero and a full second', () => {
  for (const rest of [0, 437.123, 999.999_999]) {
    for (const ticks of [0, 562.877, 999.999_999_999_999_9, 99_999_999.999_999_99, 123_456_789_012.999_98]) {
      const [seconds, nanos] = toHrTime(ticks, anchorAt(rest))
      expect(Number.isInteger(seconds)).toBe(true)
      expect(nanos).toBeGreaterThanOrEqual(0)
      expect(nanos).toBeLessThan(1e9)
    }
  }
})

test('a time is written as it is told, wherever the halves of its 64 bits change', () => {
  const half = 2n ** 32n
  const view = new DataView(new ArrayBuffer(8))
  // Times at tick zero, just before and just behind such a change.
  for (const zero of [-2_000_000n, -1_000_000n, 0n, 1_000_000n].map((off) => 400_000_000n * half + off)) {
    const anchor = anchorAt(Number(zero / 1_000_000n))
    for (const elapsed of [
      0,
      999_999,
      1_000_000,
      2_000_001,
      2 ** 32 - 1,
      2 ** 32,
      2 ** 32 + 1_000_000,
      8.64e15,
    ]) {
      writeElapsed(elapsed, anchor, view, 0)
      expect(view.getBigUint64(0, true)).toBe(nanoseconds(hrTimeAt(elapsed, anchor)))
    }
  }
})

test('after a process of many days a reading is still told apart from the next microsecond', () => {
  const thirtyDays = 30 * 24 * 3600 * 1000
  const at = (ticks: number) => nanoseconds(toHrTime(ticks, anchorAt(1_700_000_000_123.456)))
  expect(Number(at(thirtyDays + 0.001) - at(thirtyDays))).toBeCloseTo(1000, -1)
})

test('a wall clock that is set while a span runs changes neither its duration nor its start', () => {
  const span = engine().tracer.startSpan('work') as Span
  const start = span.startTime
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 3_600_000 })
  untilLookedAtAgain()
  engine().tracer.startSpan('somebody notices')
  span.end()
  expect(span.startTime).toEqual(start)
  expect(span.duration[0]).toBe(0)
})

test('nor does it change the order of the spans of one trace, whose children are of its time', () => {
  const { tracer } = engine()
  const root = tracer.startSpan('root') as Span
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 3_600_000 })
  untilLookedAtAgain()
  engine().tracer.startSpan('somebody notices')
  const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, root)) as Span
  child.end()
  root.end()
  expect(nanoseconds(child.startTime)).toBeGreaterThanOrEqual(nanoseconds(root.startTime))
  expect(nanoseconds(child.endTime)).toBeLessThanOrEqual(nanoseconds(root.endTime))
})

test('a trace that begins while a test has stopped the clock is of that clock, and so are its children', () => {
  vi.useFakeTimers({ toFake: ['performance'] })
  const { tracer } = engine()
  const root = tracer.startSpan('root') as Span
  const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, root)) as Span
  vi.advanceTimersByTime(1500)
  child.end()
  vi.advanceTimersByTime(500)
  root.end()
  expect([child.duration, root.duration]).toEqual([
    [1, 500_000_000],
    [2, 0],
  ])
  vi.useRealTimers()
  const later = tracer.startSpan('later') as Span
  const real = performance.now()
  expect(nanoseconds(later.startTime)).toBeLessThanOrEqual(nanoseconds(toHrTime(real, later.anchor)))
  expect(nanoseconds(later.startTime)).toBeGreaterThan(nanoseconds(toHrTime(real - 1000, later.anchor)))
})

test('one that began before goes on by the clock that it began with', () => {
  const { tracer } = engine()
  const root = tracer.startSpan('root') as Span
  vi.useFakeTimers({ toFake: ['performance'], now: 0 })
  vi.advanceTimersByTime(3_600_000)
  const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, root)) as Span
  child.end()
  root.end()
  expect([child.duration[0], root.duration[0]]).toEqual([0, 0])
  expect(nanoseconds(child.startTime)).toBeGreaterThanOrEqual(nanoseconds(root.startTime))
  expect(nanoseconds(child.startTime)).toBeLessThanOrEqual(nanoseconds(root.endTime))
})

test('readings of the monotonic clock that a span is given are of its time, too', () => {
  const span = engine().tracer.startSpan('work') as Span
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 3_600_000 })
  untilLookedAtAgain()
  engine().tracer.startSpan('somebody notices')
  span.addEvent('event', performance.now())
  span.recordException(new Error('boom'), performance.now())
  span.end(performance.now())
  expect(span.duration[0]).toBe(0)
  for (const { time } of span.events) {
    expect(nanoseconds(time)).toBeGreaterThanOrEqual(nanoseconds(span.startTime))
    expect(nanoseconds(time)).toBeLessThanOrEqual(nanoseconds(span.endTime))
  }
})

test.each([
  ['start', (time: TimeInput) => spanOf(time)],
  ['end', (time: TimeInput) => spanOf(undefined, time)],
  ['exception', withException],
])('a time that throws when it is read costs itself alone: %s', async (_, spanAt) => {
  const reports = said()
  const time = new Date(0)
  time.getTime = () => {
    throw new Error('no time')
  }
  const span = spanAt(time)
  expect(span.ended).toBe(true)
  expect(Math.abs(span.startTime[0] - Date.now() / 1000)).toBeLessThan(60)
  expect(span.duration[0]).toBe(0)
  expect(reports.lines).toEqual(['throughline: left out, since to read it threw: a time'])
})

function withException(time: TimeInput): Span {
  const span = engine().tracer.startSpan('work') as Span
  span.recordException(new Error('boom'), time)
  expect(span.events).toHaveLength(1)
  span.end()
  return span
}

test('a busy server looks at the wall clock fifty times a second, and not for each request', () => {
  untilLookedAtAgain()
  const looks = vi.spyOn(Date, 'now')
  const began = performance.now()
  for (let count = 0; count < 1000; count += 1) spanOf()
  const lasted = performance.now() - began
  expect(looks.mock.calls.length).toBeGreaterThan(0)
  expect(looks.mock.calls.length).toBeLessThanOrEqual(1 + lasted / 20)
  looks.mockRestore()
})

test('after a machine has slept, traces that begin have the time of day again', () => {
  untilLookedAtAgain()
  const wakes = Date.now() + 8 * 3_600_000
  vi.useFakeTimers({ toFake: ['Date'], now: wakes })
  const [seconds] = spanOf().startTime
  expect(Math.abs(seconds - wakes / 1000)).toBeLessThan(60)
})

test('so they have when the clock has been set by two seconds', () => {
  untilLookedAtAgain()
  const set = Date.now() + 2000
  vi.useFakeTimers({ toFake: ['Date'], now: set })
  const [seconds, nanos] = spanOf().startTime
  expect(Math.abs(seconds * 1000 + nanos / 1e6 - set)).toBeLessThan(1000)
})

test('the time of day is that of the system, so that services on one machine agree on what came first', async () => {
  const off: number[] = []
  // A machine that is busy may stop us between two readings, and its clock may be adjusted after the first one.
  for (let process = 0; process < 5; process++) {
    vi.resetModules()
    const clock = await import('../../packages/core/src/clock.ts')
    const fresh = clock.checkedAnchor(performance, performance.now())
    const before = Date.now()
    const [seconds, nanos] = clock.toHrTime(clock.now(), fresh)
    const after = Date.now()
    const ms = seconds * 1000 + nanos / 1e6
    // Date.now() counts whole milliseconds.
    off.push(Math.max(before - ms, ms - after - 1))
  }
  expect(Math.min(...off)).toBeLessThan(1)
})

test('between is never below zero and borrows a second where it must', () => {
  expect(between([5, 900], [7, 100])).toEqual([1, 999_999_200])
  expect(between([5, 900], [5, 900])).toEqual([0, 0])
  expect(between([5, 900], [4, 999])).toEqual([0, 0])
})
