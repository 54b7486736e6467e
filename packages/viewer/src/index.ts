// Receiving: OTLP/HTTP in, plain spans out.
export { receive } from './receiver.ts'
export type { ReceiveOptions, Receiver } from './receiver.ts'

// The span model.
export type {
  Attributes,
  AttributeValue,
  Resource,
  Scope,
  Span,
  SpanEvent,
  SpanKind,
  SpanLink,
  StatusCode,
} from './span.ts'

// Collecting: spans in, traces out.
export { collect } from './collector.ts'
export type { CollectOptions, Collector, Trace } from './collector.ts'

// Showing: as a picture, and as a line that any OTLP tool reads.
export { terminal } from './terminal.ts'
export { waterfall } from './waterfall.ts'
export type { WaterfallOptions } from './waterfall.ts'
export { toOtlpJson } from './otlp-json.ts'
