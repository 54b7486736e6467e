import protobuf from 'protobufjs/light.js'

/**
 * The messages of opentelemetry/proto/{trace,common,resource}/v1 that an exporter sends, and the two it gets back.
 * Each line is a message; each entry `name: [number, type]`, with `[]` after the type of a repeated field.
 */
const messages: Record<string, Record<string, [id: number, type: string]>> = {
  ExportTraceServiceRequest: { resourceSpans: [1, 'ResourceSpans[]'] },
  ResourceSpans: { resource: [1, 'Resource'], scopeSpans: [2, 'ScopeSpans[]'], schemaUrl: [3, 'string'] },
  Resource: { attributes: [1, 'KeyValue[]'], droppedAttributesCount: [2, 'uint32'] },
  ScopeSpans: { scope: [1, 'InstrumentationScope'], spans: [2, 'Span[]'], schemaUrl: [3, 'string'] },
  InstrumentationScope: {
    name: [1, 'string'],
    version: [2, 'string'],
    attributes: [3, 'KeyValue[]'],
    droppedAttributesCount: [4, 'uint32'],
  },
  Span: {
    traceId: [1, 'bytes'],
    spanId: [2, 'bytes'],
    traceState: [3, 'string'],
    parentSpanId: [4, 'bytes'],
    name: [5, 'string'],
    kind: [6, 'int32'],
    startTimeUnixNano: [7, 'fixed64'],
    endTimeUnixNano: [8, 'fixed64'],
    attributes: [9, 'KeyValue[]'],
    droppedAttributesCount: [10, 'uint32'],
    events: [11, 'Event[]'],
    droppedEventsCount: [12, 'uint32'],
    links: [13, 'Link[]'],
    droppedLinksCount: [14, 'uint32'],
    status: [15, 'Status'],
    flags: [16, 'fixed32'],
  },
  Event: {
    timeUnixNano: [1, 'fixed64'],
    name: [2, 'string'],
    attributes: [3, 'KeyValue[]'],
    droppedAttributesCount: [4, 'uint32'],
  },
  Link: {
    traceId: [1, 'bytes'],
    spanId: [2, 'bytes'],
    traceState: [3, 'string'],
    attributes: [4, 'KeyValue[]'],
    droppedAttributesCount: [5, 'uint32'],
    flags: [6, 'fixed32'],
  },
  Status: { message: [2, 'string'], code: [3, 'int32'] },
  KeyValue: { key: [1, 'string'], value: [2, 'AnyValue'] },
  AnyValue: {
    stringValue: [1, 'string'],
    boolValue: [2, 'bool'],
    intValue: [3, 'int64'],
    doubleValue: [4, 'double'],
    arrayValue: [5, 'ArrayValue'],
    kvlistValue: [6, 'KeyValueList'],
    bytesValue: [7, 'bytes'],
  },
  ArrayValue: { values: [1, 'AnyValue[]'] },
  KeyValueList: { values: [1, 'KeyValue[]'] },
  RpcStatus: { code: [1, 'int32'], message: [2, 'string'] },
}

// A field of a oneof is on the wire even when it holds its type's default ("", 0, false).
const oneofs: Record<string, protobuf.IOneOf> = {
  AnyValue: { oneof: Object.keys(messages['AnyValue'] ?? {}) },
}

function field([id, type]: [number, string]): protobuf.IField {
  return type.endsWith('[]') ? { id, type: type.slice(0, -2), rule: 'repeated' } : { id, type }
}

function message(name: string): protobuf.IType {
  const entries = Object.entries(messages[name] ?? {}).map(([key, value]) => [key, field(value)] as const)
  const oneof = oneofs[name]
  return { fields: Object.fromEntries(entries), ...(oneof && { oneofs: { value: oneof } }) }
}

const root = protobuf.Root.fromJSON({
  nested: Object.fromEntries(Object.keys(messages).map((name) => [name, message(name)])),
})
const exportTraceServiceRequest = root.lookupType('ExportTraceServiceRequest')
const rpcStatus = root.lookupType('RpcStatus')

/**
 * The bytes of an ExportTraceServiceRequest as an object of the shape that OTLP/JSON has, with ids and bytes as
 * Uint8Array and 64-bit integers as protobufjs' Long. Throws what protobufjs throws when the bytes are broken.
 */
export function decodeRequest(bytes: Uint8Array): object {
  return exportTraceServiceRequest.decode(bytes)
}

/** A google.rpc.Status, the body of every OTLP answer that is not 200. */
export function encodeStatus(status: { code: number; message: string }): Uint8Array {
  return rpcStatus.encode(status).finish()
}
