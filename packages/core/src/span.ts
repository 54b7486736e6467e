import type { Attributes, HrTime, Link, SpanContext, SpanKind, SpanStatus } from '@opentelemetry/api'
import type { Resource } from './resource.ts'

/** What made the span: a package's name and version. One object per tracer: official serializers group by identity. */
export interface InstrumentationScope {
  readonly name: string
  readonly version?: string | undefined
  readonly schemaUrl?: string | undefined
}

/** An event on a span, `time` as [seconds, nanoseconds] since the Unix epoch. */
export interface TimedEvent {
  time: HrTime
  name: string
  attributes?: Attributes
  droppedAttributesCount?: number
}

/** A finished span as exporters read it; the shape of the official SDK's ReadableSpan. */
export interface ReadableSpan {
  readonly name: string
  readonly kind: SpanKind
  readonly spanContext: () => SpanContext
  readonly parentSpanContext?: SpanContext | undefined
  readonly startTime: HrTime
  readonly endTime: HrTime
  readonly status: SpanStatus
  readonly attributes: Attributes
  readonly links: Link[]
  readonly events: TimedEvent[]
  readonly duration: HrTime
  readonly ended: boolean
  readonly resource: Resource
  readonly instrumentationScope: InstrumentationScope
  readonly droppedAttributesCount: number
  readonly droppedEventsCount: number
  readonly droppedLinksCount: number
}
