import {
  SamplingDecision,
  trace,
  TraceFlags,
  type Attributes,
  type Context,
  type Link,
  type SamplingResult,
  type SpanKind,
} from '@opentelemetry/api'
import { reportOnce } from './report.ts'

/** Decides at a span's start whether it is recorded; the shape of the official SDK's Sampler. */
export interface Sampler {
  shouldSample(
    context: Context,
    traceId: string,
    spanName: string,
    spanKind: SpanKind,
    attributes: Attributes,
    links: Link[],
  ): SamplingResult
  toString(): string
}

/** A sampler that says it never looks at attributes: for it none are built before the decision. */
export interface HeadSampler extends Sampler {
  readonly ignoresAttributes: true
}

// The verdicts are shared: a decision allocates nothing.
const KEEP: SamplingResult = { decision: SamplingDecision.RECORD_AND_SAMPLED }
const DROP: SamplingResult = { decision: SamplingDecision.NOT_RECORD }

const DECISIONS = new Set<unknown>([
  SamplingDecision.NOT_RECORD,
  SamplingDecision.RECORD,
  SamplingDecision.RECORD_AND_SAMPLED,
])

// The right-most 14 digits of a trace id are its 56 random bits (W3C Trace Context Level 2, random-trace-id).
const RANDOM_DIGITS = 14
const RANDOM_SPACE = 2 ** 56

export const alwaysOn: HeadSampler = {
  ignoresAttributes: true,
  shouldSample: () => KEEP,
  toString: () => 'AlwaysOnSampler',
}

export const alwaysOff: HeadSampler = {
  ignoresAttributes: true,
  shouldSample: () => DROP,
  toString: () => 'AlwaysOffSampler',
}

/**
 * Keeps this share of all traces, 0 to 1, by the trace id alone: every service decides alike for the same trace, and a
 * higher ratio keeps all that a lower one keeps (OpenTelemetry trace SDK, TraceIdRatioBased).
 */
export function traceIdRatio(ratio: number): HeadSampler {
  const threshold = Math.round((1 - ratio) * RANDOM_SPACE)
  return {
    ignoresAttributes: true,
    shouldSample(_context, traceId) {
      return ratio > 0 && Number.parseInt(traceId.slice(-RANDOM_DIGITS), 16) >= threshold ? KEEP : DROP
    },
    toString: () => `TraceIdRatioBased{${ratio}}`,
  }
}

/** Follows the parent's decision; asks `rootSampler` where there is no parent. */
export function parentBased(rootSampler: Sampler): Sampler {
  const sampler: Sampler = {
    shouldSample(context, traceId, spanName, spanKind, attributes, links) {
      const parent = trace.getSpanContext(context)
      if (parent === undefined || !trace.isSpanContextValid(parent)) {
        return rootSampler.shouldSample(context, traceId, spanName, spanKind, attributes, links)
      }
      return (parent.traceFlags & TraceFlags.SAMPLED) === 0 ? DROP : KEEP
    },
    toString: () =>
      `ParentBased{root=${String(rootSampler)}, remoteParentSampled=AlwaysOnSampler, remoteParentNotSampled=AlwaysOffSampler, localParentSampled=AlwaysOnSampler, localParentNotSampled=AlwaysOffSampler}`,
  }
  return ignoresAttributes(rootSampler)
    ? Object.assign(sampler, { ignoresAttributes: true as const })
    : sampler
}

export function ignoresAttributes(sampler: Sampler): sampler is HeadSampler {
  return 'ignoresAttributes' in sampler
}

// What is asked where the app's sampler fails.
const fallback = parentBased(alwaysOn)

/** The sampler's verdict; where it throws or gives none, the default sampler's, and that is said once. */
export function decide(
  sampler: Sampler,
  ...asked: Parameters<Sampler['shouldSample']>
): ReturnType<Sampler['shouldSample']> {
  try {
    const verdict = sampler.shouldSample(...asked)
    if (DECISIONS.has(verdict.decision)) return verdict
    reportOnce('sampler', 'error', `the sampler gave no decision but ${String(verdict.decision)}`)
  } catch (error) {
    reportOnce('sampler', 'error', 'the sampler threw; the default one decides', error)
  }
  return fallback.shouldSample(...asked)
}
