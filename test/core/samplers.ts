import { ROOT_CONTEXT, SpanKind, trace, type Context, type SamplingResult } from '@opentelemetry/api'
import { randomIds } from '../../packages/core/src/ids.ts'
import type { Sampler } from '../../packages/core/src/sampling.ts'
import { emptyTraceState, parseTracestate } from '../../packages/core/src/trace-context.ts'
import { engine } from './engine.ts'

/** What this sampler decides about a span under this parent. */
export function ask(
  sampler: Sampler,
  traceId = randomIds.generateTraceId(),
  context: Context = ROOT_CONTEXT,
) {
  return sampler.shouldSample(context, traceId, 'work', SpanKind.INTERNAL, {}, []).decision
}

/** A context with a parent of these flags and this tracestate. */
export function parent(traceFlags: number, isRemote = true, list = '', traceId = 'a'.repeat(32)): Context {
  const spanContext = { traceId, spanId: 'b'.repeat(16), traceFlags, isRemote }
  const traceState = parseTracestate(list)
  return trace.setSpanContext(
    ROOT_CONTEXT,
    traceState === undefined || traceState === emptyTraceState ? spanContext : { ...spanContext, traceState },
  )
}

/** A sampler that always gives this. */
export function deciding(result: SamplingResult): Sampler {
  return { shouldSample: () => result, toString: () => 'Fixed' }
}

/** The tracestate that a span has under this parent. */
export function stateAfter(
  sampler: Sampler,
  of: Context,
  { traceId }: { traceId?: string } = {},
): string | undefined {
  const { tracer } = engine({
    sampler,
    ...(traceId !== undefined && {
      idGenerator: { generateTraceId: () => traceId, generateSpanId: randomIds.generateSpanId },
    }),
  })
  return tracer.startSpan('work', {}, of).spanContext().traceState?.serialize()
}
