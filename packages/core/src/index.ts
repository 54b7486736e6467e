/**
 * The shared core of Throughline. Apps use `span`, `start`, `flush` and `untrace`; adapters are made of the seams.
 */

// For apps.
export { span } from './current.ts'
export { flush, start, type Tracing } from './start.ts'
export type { StartOptions } from './config.ts'
export type { RuleMatch, SamplingRule } from './sampling.ts'
export { untrace } from './patch.ts'
export { traceRequest } from './server.ts'

// The seams that adapters are made of: inbound, and what the outbound ones behind doors of their own need as well.
export { beforeEvent } from './context.ts'
export type { Framework } from './exchange.ts'
export {
  beforeEnd,
  carriedBy,
  endRequest,
  forgetError,
  inheritedEmit,
  recordError,
  recordRejection,
  rejoin,
} from './listeners.ts'
export { handOn, receiver, type Inbound, type Receive, type ReceivingOptions } from './server.ts'
export { middlewareSpans, type BeginLayer, type LayerSpan, type MiddlewareSpans } from './middleware.ts'
export { wantsOldNames } from './http.ts'
export { instrumentsFor, type DurationMetric } from './metrics.ts'
export { isTraced, override, symbolOf } from './patch.ts'
export { redactUrl } from './redact.ts'
export {
  BOOLEAN,
  dropOptions,
  expected,
  guarded,
  holdOptions,
  matcher,
  show,
  showNoUrl,
  type Match,
  type Shape,
} from './options.ts'
export { reportOnce } from './report.ts'
export type { NamedAttributes, NamedWriter } from './attribute.ts'
export { errorType, isError, maskErrors, rawMessageOf, showAs } from './exception.ts'
export * as semconv from './semconv.ts'

// What adapters need of the API, so that they depend on this package alone.
export {
  context,
  ROOT_CONTEXT,
  trace,
  type Attributes,
  type Context,
  type Span as ApiSpan,
} from '@opentelemetry/api'

// Propagation, for carriers of one's own.
export {
  b3MultiPropagator,
  b3Propagator,
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
} from './propagation.ts'
export { formatTraceparent, parseTraceContext } from './trace-context.ts'

// The shapes of what `start()` takes, equal to the official SDK's.
export type { ExportResult, SpanExporter } from './batch.ts'
export type { IdGenerator } from './ids.ts'
export type { Resource } from './resource.ts'
export type { Sampler } from './sampling.ts'
export type { InstrumentationScope, ReadableSpan, Span, SpanProcessor, TimedEvent } from './span.ts'
