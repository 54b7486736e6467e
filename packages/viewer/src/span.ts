/**
 * A value of an attribute. 64-bit integers are numbers while a number holds them exactly, and bigints beyond
 * ±(2^53 - 1); bytes are a Uint8Array; an attribute that was sent with no value at all is null.
 */
export type AttributeValue =
  | string
  | number
  | boolean
  | bigint
  | null
  | Uint8Array
  | AttributeValue[]
  | { [key: string]: AttributeValue }

export type Attributes = { [key: string]: AttributeValue }

/** SpanKind of OTLP, by name; its numbers are the places in this list. */
export const spanKinds = ['unspecified', 'internal', 'server', 'client', 'producer', 'consumer'] as const
export type SpanKind = (typeof spanKinds)[number]

/** Status.StatusCode of OTLP, by name; its numbers are the places in this list. */
export const statusCodes = ['unset', 'ok', 'error'] as const
export type StatusCode = (typeof statusCodes)[number]

/** Who made the spans: one process of one service. Spans of one request share the object. */
export type Resource = {
  attributes: Attributes
  droppedAttributesCount: number
  schemaUrl: string
}

/** The instrumentation that made the spans. Spans of one request share the object. */
export type Scope = {
  name: string
  version: string
  attributes: Attributes
  droppedAttributesCount: number
  schemaUrl: string
}

export type SpanEvent = {
  timeUnixNano: bigint
  name: string
  attributes: Attributes
  droppedAttributesCount: number
}

export type SpanLink = {
  /** 32 lower-case hex characters. */
  traceId: string
  /** 16 lower-case hex characters. */
  spanId: string
  traceState: string
  attributes: Attributes
  droppedAttributesCount: number
  flags: number
}

/**
 * One span, as plain data, whichever encoding brought it. It holds everything the OTLP message
 * (opentelemetry/proto/trace/v1/trace.proto) holds; what was absent has the message's default.
 */
export type Span = {
  /** 32 lower-case hex characters. */
  traceId: string
  /** 16 lower-case hex characters. */
  spanId: string
  /** 16 lower-case hex characters; undefined for a root. */
  parentSpanId: string | undefined
  name: string
  kind: SpanKind
  /** Nanoseconds since 1970; 0n when the sender gave none. */
  startTimeUnixNano: bigint
  /** Nanoseconds since 1970; 0n when the sender gave none. */
  endTimeUnixNano: bigint
  attributes: Attributes
  events: SpanEvent[]
  links: SpanLink[]
  status: { code: StatusCode; message: string }
  /** The tracestate header's value, untouched. */
  traceState: string
  /** Bits 0-7: trace flags; bit 8: it is known whether the parent is remote; bit 9: it is. */
  flags: number
  droppedAttributesCount: number
  droppedEventsCount: number
  droppedLinksCount: number
  /** `service.name` of the resource, or `unknown_service`. */
  serviceName: string
  resource: Resource
  scope: Scope
}
