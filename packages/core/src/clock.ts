import type { HrTime, TimeInput } from '@opentelemetry/api'

/**
 * Ticks are milliseconds of the monotonic clock (`performance.now()`): they never run backwards, and a read costs
 * 0.05 µs. They become wall-clock time through an anchor, so that durations and the order of spans are right even when
 * the wall clock is set while they run.
 */
export type Ticks = number

/** The wall-clock time at tick zero. A span keeps the one that it started with. */
export interface Anchor {
  // Whole seconds and the milliseconds above them: ticks added to a small number keep their sub-microsecond digits,
  // which ticks added to 1.8e12 milliseconds would lose.
  readonly seconds: number
  readonly rest: number
}

const MS_PER_SECOND = 1000
export const NS_PER_MS = 1e6
const NS_PER_SECOND = 1e9

/** How exactly the first anchor is to be known, and how often it is tried. */
const GOOD_MS = 0.02
const MOST_TRIES = 3
/** A laptop that slept, or a clock that was set; what time servers adjust by and by is less. */
const MOST_DRIFT_MS = 1000

let anchor = firstAnchor()

export function now(): Ticks {
  return performance.now()
}

/** The anchor for spans that start now. */
export function latestAnchor(): Anchor {
  return anchor
}

/**
 * The same, after a look at the wall clock. The monotonic clock stands still while a machine sleeps: asked where a trace
 * enters the process, this notices, and spans from then on have the time of day again.
 */
export function checkedAnchor(ticks: Ticks): Anchor {
  const zero = Date.now() - ticks
  if (Math.abs(zero - (anchor.seconds * MS_PER_SECOND + anchor.rest)) > MOST_DRIFT_MS) anchor = anchorAt(zero)
  return anchor
}

// `Date.now()` counts whole milliseconds, so it is read at the moment when it turns, once per process and for at most a
// millisecond: with that, services on one machine agree on what came first. A turn that was not seen at once, because
// the machine was busy, is not used.
function firstAnchor(): Anchor {
  let best = { error: Infinity, zero: Date.now() - performance.now() }
  for (let tries = 0; tries < MOST_TRIES && best.error > GOOD_MS; tries += 1) {
    const turned = Date.now() + 1
    let before = performance.now()
    let after = before
    while (Date.now() < turned) {
      before = after
      after = performance.now()
    }
    const error = performance.now() - before
    if (error < best.error) best = { error, zero: Date.now() - (before + error / 2) }
  }
  return anchorAt(best.zero)
}

function anchorAt(epochMs: number): Anchor {
  const seconds = Math.floor(epochMs / MS_PER_SECOND)
  return { seconds, rest: epochMs - seconds * MS_PER_SECOND }
}

/** Ticks as [seconds, nanoseconds] since the Unix epoch. */
export function toHrTime(ticks: Ticks, from: Anchor = anchor): HrTime {
  const ms = from.rest + ticks
  const seconds = Math.floor(ms / MS_PER_SECOND)
  return [from.seconds + seconds, nanosecondsOf(ms, seconds)]
}

function nanosecondsOf(ms: number, seconds: number): number {
  return Math.floor((ms - seconds * MS_PER_SECOND) * NS_PER_MS)
}

/** Writes the same as little-endian nanoseconds of 64 bits, without the array between: 0.02 µs. */
export function writeTicks(ticks: Ticks, from: Anchor, into: DataView, at: number): void {
  const ms = from.rest + ticks
  const seconds = Math.floor(ms / MS_PER_SECOND)
  writeNanoseconds(from.seconds + seconds, nanosecondsOf(ms, seconds), into, at)
}

/** [seconds, nanoseconds] as little-endian nanoseconds of 64 bits; 0 for what is no time that they can hold. */
export function writeHrTime(time: HrTime, into: DataView, at: number): void {
  const seconds = Math.trunc(time[0])
  const nanoseconds = Math.trunc(time[1])
  const isTime = seconds >= 0 && nanoseconds >= 0 && seconds < 2 ** 35 && nanoseconds < 2 ** 52
  writeNanoseconds(isTime ? seconds : 0, isTime ? nanoseconds : 0, into, at)
}

// A double holds no product of today's seconds and 10^9, so the seconds are multiplied in two parts, and neither product
// passes 2^53.
function writeNanoseconds(seconds: number, nanoseconds: number, into: DataView, at: number): void {
  const upper = Math.floor(seconds / 0x10000) * NS_PER_SECOND
  const sum = (upper & 0xffff) * 0x10000 + (seconds & 0xffff) * NS_PER_SECOND + nanoseconds
  const high = Math.floor(upper / 0x10000) + Math.floor(sum / 2 ** 32)
  const isWithin = high < 2 ** 32
  into.setUint32(at, isWithin ? sum >>> 0 : 0, true)
  into.setUint32(at + 4, isWithin ? high : 0, true)
}

function fromMilliseconds(ms: number): HrTime {
  const seconds = Math.floor(ms / MS_PER_SECOND)
  const nanos = Math.round((ms - seconds * MS_PER_SECOND) * NS_PER_MS)
  return nanos < NS_PER_SECOND ? [seconds, nanos] : [seconds + 1, 0]
}

/**
 * A time in any of the API's forms (HrTime, Date, epoch milliseconds, `performance.now()` milliseconds) as
 * [seconds, nanoseconds] since the Unix epoch; undefined for anything else. A number is a reading of
 * `performance.now()` when it is too small to be a date of this process's lifetime, as the official SDK takes it.
 */
export function readTime(time: TimeInput | undefined): HrTime | undefined {
  if (typeof time === 'number') {
    if (!Number.isFinite(time)) return undefined
    return time < performance.timeOrigin ? toHrTime(time) : fromMilliseconds(time)
  }
  if (typeof time !== 'object') return undefined
  if (Array.isArray(time))
    return Number.isFinite(time[0]) && Number.isFinite(time[1]) ? [time[0], time[1]] : undefined
  if (time instanceof Date) return Number.isNaN(time.getTime()) ? undefined : fromMilliseconds(time.getTime())
  return undefined
}

/** `to - from`, never below zero: a span that says it ended before it began has lasted no time. */
export function between(from: HrTime, to: HrTime): HrTime {
  const given = to[1] - from[1]
  // Given times need not be normalised: more than one second may be carried, in either direction.
  const carried = Math.floor(given / NS_PER_SECOND)
  const seconds = to[0] - from[0] + carried
  return seconds < 0 ? [0, 0] : [seconds, given - carried * NS_PER_SECOND]
}
