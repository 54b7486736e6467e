import type { Span } from '../../packages/core/src/span.ts'
import { engine, LIMITS } from './engine.ts'

/** A span that has not ended, held to these limits. */
export function started(limits: Partial<typeof LIMITS> = {}): Span {
  return engine({ limits: { ...LIMITS, ...limits } }).tracer.startSpan('work') as Span
}

/** A link to a span that is sampled. */
export const link = { context: { traceId: 'c'.repeat(32), spanId: 'd'.repeat(16), traceFlags: 1 } }
