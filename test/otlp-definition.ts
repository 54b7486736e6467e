/**
 * OTLP's trace messages for protobufjs, transcribed from opentelemetry-proto 1.x (`trace.proto`, `common.proto`, `resource.proto`,
 * `trace_service.proto`): the decoder that judges our own encoder, and shares no line with it.
 */
import protobuf from 'protobufjs'

// An attribute may be nested 64 deep, at two or three messages a level; protobufjs stops at 100 messages.
protobuf.Reader.recursionLimit = 300
protobuf.util.recursionLimit = 300

const root = protobuf.parse(
  `syntax = "proto3";
package otlp;

message ExportTraceServiceRequest { repeated ResourceSpans resource_spans = 1; }
message ExportTraceServiceResponse { ExportTracePartialSuccess partial_success = 1; }
message ExportTracePartialSuccess { int64 rejected_spans = 1; string error_message = 2; }

message ResourceSpans { Resource resource = 1; repeated ScopeSpans scope_spans = 2; string schema_url = 3; }
message ScopeSpans { InstrumentationScope scope = 1; repeated Span spans = 2; string schema_url = 3; }
message Resource { repeated KeyValue attributes = 1; uint32 dropped_attributes_count = 2; }
message InstrumentationScope {
  string name = 1;
  string version = 2;
  repeated KeyValue attributes = 3;
  uint32 dropped_attributes_count = 4;
}

message Span {
  bytes trace_id = 1;
  bytes span_id = 2;
  string trace_state = 3;
  bytes parent_span_id = 4;
  string name = 5;
  int32 kind = 6;
  fixed64 start_time_unix_nano = 7;
  fixed64 end_time_unix_nano = 8;
  repeated KeyValue attributes = 9;
  uint32 dropped_attributes_count = 10;
  repeated Event events = 11;
  uint32 dropped_events_count = 12;
  repeated Link links = 13;
  uint32 dropped_links_count = 14;
  Status status = 15;
  fixed32 flags = 16;

  message Event {
    fixed64 time_unix_nano = 1;
    string name = 2;
    repeated KeyValue attributes = 3;
    uint32 dropped_attributes_count = 4;
  }
  message Link {
    bytes trace_id = 1;
    bytes span_id = 2;
    string trace_state = 3;
    repeated KeyValue attributes = 4;
    uint32 dropped_attributes_count = 5;
    fixed32 flags = 6;
  }
}
message Status { string message = 2; int32 code = 3; }

message KeyValue { string key = 1; AnyValue value = 2; }
message AnyValue {
  oneof value {
    string string_value = 1;
    bool bool_value = 2;
    int64 int_value = 3;
    double double_value = 4;
    ArrayValue array_value = 5;
    KeyValueList kvlist_value = 6;
    bytes bytes_value = 7;
  }
}
message ArrayValue { repeated AnyValue values = 1; }
message KeyValueList { repeated KeyValue values = 1; }
`,
).root

const ExportTraceServiceRequest = root.lookupType('otlp.ExportTraceServiceRequest')
const ExportTraceServiceResponse = root.lookupType('otlp.ExportTraceServiceResponse')

/** An attribute's value, the one field that is set; none is an empty value. 64-bit integers are decimal strings. */
export interface OtlpValue {
  stringValue?: string
  boolValue?: boolean
  intValue?: string
  doubleValue?: number
  arrayValue?: { values?: OtlpValue[] }
  kvlistValue?: { values?: OtlpKeyValue[] }
  bytesValue?: Uint8Array
}

export interface OtlpKeyValue {
  key: string
  value?: OtlpValue
}

export interface OtlpEvent {
  timeUnixNano?: string
  name?: string
  attributes?: OtlpKeyValue[]
  droppedAttributesCount?: number
}

export interface OtlpLink {
  traceId?: Uint8Array
  spanId?: Uint8Array
  traceState?: string
  attributes?: OtlpKeyValue[]
  droppedAttributesCount?: number
  flags?: number
}

export interface OtlpSpan {
  traceId?: Uint8Array
  spanId?: Uint8Array
  traceState?: string
  parentSpanId?: Uint8Array
  name?: string
  kind?: number
  startTimeUnixNano?: string
  endTimeUnixNano?: string
  attributes?: OtlpKeyValue[]
  droppedAttributesCount?: number
  events?: OtlpEvent[]
  droppedEventsCount?: number
  links?: OtlpLink[]
  droppedLinksCount?: number
  status?: { message?: string; code?: number }
  flags?: number
}

export interface OtlpScopeSpans {
  scope?: { name?: string; version?: string; attributes?: OtlpKeyValue[] }
  spans?: OtlpSpan[]
  schemaUrl?: string
}

export interface OtlpResourceSpans {
  resource?: { attributes?: OtlpKeyValue[]; droppedAttributesCount?: number }
  scopeSpans?: OtlpScopeSpans[]
  schemaUrl?: string
}

export interface OtlpRequest {
  resourceSpans?: OtlpResourceSpans[]
}

/** What is on the wire and nothing else: a field that is absent is absent. Throws when the bytes are no such message. */
export function decodeRequest(bytes: Uint8Array): OtlpRequest {
  const message = ExportTraceServiceRequest.decode(bytes)
  return ExportTraceServiceRequest.toObject(message, { longs: String }) as OtlpRequest
}

/** A collector's answer, as bytes. */
export function encodeResponse(response: {
  partialSuccess?: { rejectedSpans?: number; errorMessage?: string }
}): Uint8Array {
  return ExportTraceServiceResponse.encode(ExportTraceServiceResponse.create(response)).finish()
}
