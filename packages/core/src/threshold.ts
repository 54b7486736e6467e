import type { TraceState } from '@opentelemetry/api'
import { reportOnce } from './report.ts'
import { emptyTraceState } from './trace-context.ts'

// A share of all traces as a threshold, and how it travels: the sub-keys `th` and `rv` of the tracestate's member `ot`
// (OpenTelemetry, "TraceState Handling" and "TraceState: Probability Sampling"). Whoever compares a trace's randomness R
// with a threshold T by R >= T keeps the same traces, and all that a lower share keeps.
//
// R and T are 56 bits, more than a number holds. Here they are texts of hex digits, R of 14, T without the zeros at its end:
// compared as texts they are compared as the numbers that they stand for.

const MEMBER = 'ot'
const DIGITS = 14
const SPACE = 2 ** 56
const BITS_OF_A_DIGIT = 4n

/** What the specification recommends: 4 digits of T, counted behind those that only say how small the share is. */
const PRECISION = 4

/** Of the whole member (TraceState Handling). */
const MOST_CHARACTERS = 256

const RANDOMNESS = /^[0-9a-f]{14}$/
const THRESHOLD = /^[0-9a-f]{1,14}$/

/**
 * The threshold that keeps this share of all traces, 0 to 1, as exactly as 56 bits can; undefined where it keeps none, which
 * a share below 2^-57 does too.
 */
export function exactThreshold(share: number): string | undefined {
  // 2^56 times a number is exact.
  const rejected = BigInt(SPACE) - BigInt(Math.round(share * SPACE))
  return rejected === BigInt(SPACE) ? undefined : textOf(rejected)
}

/** The same, rounded to the precision that is propagated, so that a decision by it is the one that `th` tells of. */
export function roundedThreshold(share: number): string | undefined {
  const exact = exactThreshold(share)
  if (exact === undefined) return undefined
  const leading = exact.length - exact.replace(/^f+/, '').length
  const cut = BITS_OF_A_DIGIT * BigInt(Math.max(0, DIGITS - PRECISION - leading))
  const half = (1n << cut) >> 1n
  return textOf(((BigInt(`0x${exact.padEnd(DIGITS, '0')}`) + half) >> cut) << cut)
}

function textOf(bits: bigint): string {
  return bits.toString(16).padStart(DIGITS, '0').replace(/0+$/, '') || '0'
}

/** The member of the tracestate; undefined also where the app has made one that does not do what it should. */
export function otOf(state: TraceState | undefined): string | undefined {
  try {
    const ot: unknown = state?.get(MEMBER)
    return typeof ot === 'string' ? ot : undefined
  } catch {
    return undefined
  }
}

/** The randomness of a trace: what `rv` says, else the last 56 bits of its id. */
export function randomnessOf(traceId: string, ot?: string): string {
  return explicitRandomness(ot) ?? traceId.slice(-DIGITS)
}

/** What `rv` says; undefined where there is none, or none of 14 lower-case hex digits. */
export function explicitRandomness(ot: string | undefined): string | undefined {
  const value = subKey(ot, 'rv:')
  return value !== undefined && RANDOMNESS.test(value) ? value : undefined
}

/** What `th` says: the threshold, null for a value that is none, undefined where there is no `th`. */
export function thresholdIn(ot: string | undefined): string | null | undefined {
  const value = subKey(ot, 'th:')
  return value === undefined || THRESHOLD.test(value) ? value : null
}

/**
 * The state with this `th` as the last sub-key of its `ot`, which moves to the front; with no `th` where none is given. The
 * other sub-keys, `rv` among them, stay as they are, and so do the members of others. Where the member would become too
 * long, it gets no `th`, and that is said once.
 */
export function withThreshold(state: TraceState | undefined, th: string | undefined): TraceState {
  const before = state ?? emptyTraceState
  const others = (otOf(state) ?? '')
    .split(';')
    .filter((sub) => sub !== '' && !sub.startsWith('th:'))
    .join(';')
  let ot = others
  if (th !== undefined) ot = others === '' ? `th:${th}` : `${others};th:${th}`
  if (ot.length > MOST_CHARACTERS) {
    reportOnce(
      'ot too long',
      'warn',
      "a tracestate's ot has no room for th: its spans do not say how they were sampled",
    )
    ot = others
  }
  return ot === '' ? before.unset(MEMBER) : before.set(MEMBER, ot)
}

// The left-most, should there be two. Asked of every request that comes with a tracestate: nothing is made on the way.
function subKey(ot: string | undefined, key: 'th:' | 'rv:'): string | undefined {
  if (ot === undefined) return undefined
  let at = ot.indexOf(key)
  while (at > 0 && ot.charAt(at - 1) !== ';') at = ot.indexOf(key, at + 1)
  if (at < 0) return undefined
  const end = ot.indexOf(';', at)
  return ot.slice(at + key.length, end < 0 ? undefined : end)
}
