import type { HrTime, TimeInput } from '@opentelemetry/api'
import { isDate } from 'node:util/types'

/**
 * Ticks are milliseconds of the monotonic clock (`performance.now()`): they never run backwards, and a read costs
 * 0.05 µs. They become wall-clock time through an anchor, so that durations and the order of spans are right even when
 * the wall clock is set while they run.
 */
export type Ticks = number

/** Whole nanoseconds since tick zero: exact for the first hundred days of a process, to two of them for the next hundred. */
export type Elapsed = number

/** The wall-clock time at tick zero, since the Unix epoch. A span keeps the one that it started with. */
export interface Anchor {
  readonly seconds: number
  /** Above the seconds. */
  readonly nanoseconds: number
  // All in nanoseconds, as the halves of 64 bits: what a double does not hold, and exporters send.
  readonly high: number
  readonly low: number
  /**
   * The clock that counts from there. A trace keeps it, so that a test's fake clock applies only to traces begun under it.
   * Also, the global name is a getter: reading it each time would cost a request with a few calls 1 µs.
   */
  readonly clock: Clock
}

/** Tells milliseconds since the process began: `performance`, or a test's replacement. */
export interface Clock {
  now(): Ticks
}

export const MS_PER_SECOND = 1000
export const NS_PER_MS = 1e6
export const NS_PER_SECOND = 1e9
const TWO_32 = 2 ** 32

/** How exactly the first anchor is to be known, and how often it is tried. */
const GOOD_MS = 0.02
const MOST_TRIES = 3
/** Far more readings than fit into a millisecond: in a test the clock may stand still. */
const MOST_READINGS = 200_000
/** A larger drift means that the machine slept or the clock was set: time servers adjust by less. */
const MOST_DRIFT_MS = 1000
/** How long a reading of the wall clock is trusted. Reading it for each request of a busy server costs 0.5 µs. */
const BELIEVED_MS = 20

let anchor = firstAnchor()
let lookedAt: Ticks = -Infinity

/** The clock for what begins now. */
export function currentClock(): Clock {
  return performance
}

/** For times outside of spans; a span reads its anchor's clock. */
export function now(): Ticks {
  return performance.now()
}

export function elapsedAt(ticks: Ticks): Elapsed {
  return Math.floor(ticks * NS_PER_MS)
}

/**
 * The anchor for traces that enter the process now. The monotonic clock stands still while a machine sleeps: this looks at
 * the wall clock and notices, and traces from then on have the time of day again.
 */
export function checkedAnchor(clock: Clock, ticks: Ticks): Anchor {
  if (ticks - lookedAt > BELIEVED_MS || clock !== anchor.clock) lookAtWallClock(clock, ticks)
  return anchor
}

function lookAtWallClock(clock: Clock, ticks: Ticks): void {
  lookedAt = ticks
  const zero = Date.now() - ticks
  const known = anchor.seconds * MS_PER_SECOND + anchor.nanoseconds / NS_PER_MS
  if (clock !== anchor.clock || Math.abs(zero - known) > MOST_DRIFT_MS) anchor = anchorAt(zero, clock)
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
    let readings = 0
    while (Date.now() < turned) {
      readings += 1
      if (readings > MOST_READINGS) return anchorAt(best.zero)
      before = after
      after = performance.now()
    }
    const error = performance.now() - before
    if (error < best.error) best = { error, zero: Date.now() - (before + error / 2) }
  }
  return anchorAt(best.zero)
}

/** @param epochMs the time at tick zero, in milliseconds */
export function anchorAt(epochMs: number, clock: Clock = performance): Anchor {
  const seconds = Math.floor(epochMs / MS_PER_SECOND)
  const nanoseconds = Math.floor((epochMs - seconds * MS_PER_SECOND) * NS_PER_MS)
  const all = BigInt(seconds) * BigInt(NS_PER_SECOND) + BigInt(nanoseconds)
  return { seconds, nanoseconds, high: Number(all >> 32n), low: Number(all & 0xffffffffn), clock }
}

/** Ticks as [seconds, nanoseconds] since the Unix epoch. */
export function toHrTime(ticks: Ticks, from: Anchor): HrTime {
  return hrTimeAt(elapsedAt(ticks), from)
}

/** The same of what has elapsed since tick zero. */
export function hrTimeAt(elapsed: Elapsed, from: Anchor): HrTime {
  const all = from.nanoseconds + elapsed
  // Not from the quotient, which is rounded: up to a second that has not begun, where the sum is large.
  const nanoseconds = ((all % NS_PER_SECOND) + NS_PER_SECOND) % NS_PER_SECOND
  return [from.seconds + Math.round((all - nanoseconds) / NS_PER_SECOND), nanoseconds]
}

/** Writes that time as little-endian nanoseconds of 64 bits, by one addition and without an array between. */
export function writeElapsed(elapsed: Elapsed, from: Anchor, into: DataView, at: number): void {
  const upper = Math.floor(elapsed / TWO_32)
  const low = from.low + (elapsed - upper * TWO_32)
  const carry = low < TWO_32 ? 0 : 1
  into.setUint32(at, low - carry * TWO_32, true)
  into.setUint32(at + 4, from.high + upper + carry, true)
}

/** [seconds, nanoseconds] as little-endian nanoseconds of 64 bits; 0 for a time that does not fit. */
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
  const high = Math.floor(upper / 0x10000) + Math.floor(sum / TWO_32)
  const isWithin = high < TWO_32
  into.setUint32(at, isWithin ? sum >>> 0 : 0, true)
  into.setUint32(at + 4, isWithin ? high : 0, true)
}

function fromMilliseconds(ms: number): HrTime {
  const seconds = Math.floor(ms / MS_PER_SECOND)
  return normalized(seconds, (ms - seconds * MS_PER_SECOND) * NS_PER_MS)
}

/** Both whole, and the nanoseconds normalised to within a second. */
function normalized(seconds: number, nanoseconds: number): HrTime {
  const whole = Math.floor(seconds)
  const all = Math.round((seconds - whole) * NS_PER_SECOND + nanoseconds)
  const carried = Math.floor(all / NS_PER_SECOND)
  return [whole + carried, all - carried * NS_PER_SECOND]
}

/**
 * A time in any of the API's forms (HrTime, Date, epoch milliseconds, `performance.now()` milliseconds) as [seconds,
 * nanoseconds] since the Unix epoch; undefined for anything else. A number counts as a reading of `performance.now()` if it is
 * not above the current one, as in the official SDK: even dates from before this process are larger.
 *
 * @param from the anchor of such a reading
 * @throws what a Date or an array of the app's throws when it is read
 */
export function readTime(time: TimeInput | undefined, from: Anchor): HrTime | undefined {
  if (typeof time === 'number') {
    if (!Number.isFinite(time)) return undefined
    return time <= performance.now() ? toHrTime(time, from) : fromMilliseconds(time)
  }
  if (typeof time !== 'object') return undefined
  if (Array.isArray(time))
    return Number.isFinite(time[0]) && Number.isFinite(time[1]) ? normalized(time[0], time[1]) : undefined
  if (isDate(time)) return Number.isNaN(time.getTime()) ? undefined : fromMilliseconds(time.getTime())
  return undefined
}

/** `to - from`, never below zero: a span that says it ended before it began has lasted no time. */
export function between(from: HrTime, to: HrTime): HrTime {
  const borrowed = to[1] < from[1] ? 1 : 0
  const seconds = to[0] - from[0] - borrowed
  return seconds < 0 ? [0, 0] : [seconds, to[1] - from[1] + borrowed * NS_PER_SECOND]
}
