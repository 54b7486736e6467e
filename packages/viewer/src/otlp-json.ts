import { checkSpans } from './options.ts'
import { spanKinds, statusCodes } from './span.ts'
import type { Attributes, AttributeValue, Resource, Scope, Span, SpanEvent, SpanLink } from './span.ts'

/**
 * Spans as one line of OTLP/JSON: an ExportTraceServiceRequest, its spans grouped by resource and by scope. What it
 * gives, the receiver reads back as the same spans. JavaScript has one kind of number, so a double without a
 * fraction is written as an integer. (opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding)
 */
export function toOtlpJson(spans: readonly Span[]): string {
  checkSpans('toOtlpJson', spans)
  const byResource = groupBy(spans, (span) => writeResource(span.resource))
  const resourceSpans = byResource.map(([resource, ofResource]) => {
    const byScope = groupBy(ofResource, (span) => writeScope(span.scope))
    const scopeSpans = byScope.map(([scope, ofScope]) => ({ ...scope, spans: ofScope.map(writeSpan) }))
    return { ...resource, scopeSpans }
  })
  return JSON.stringify({ resourceSpans }).replace(
    CONTROLS,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

/** JSON escapes the control characters of ASCII only. A terminal takes orders from the others too, and some readers end lines. */
const CONTROLS = /[\p{Cc}\u2028\u2029]/gu

/** By what is written, not by identity: a process sends its resource anew with every request. */
function groupBy<K extends object>(spans: readonly Span[], write: (span: Span) => K): [K, Span[]][] {
  const groups = new Map<string, [K, Span[]]>()
  for (const span of spans) {
    const head = write(span)
    const key = JSON.stringify(head)
    const group = groups.get(key)
    if (group) group[1].push(span)
    else groups.set(key, [head, [span]])
  }
  return [...groups.values()]
}

function writeResource(resource: Resource) {
  const { attributes, droppedAttributesCount, schemaUrl } = resource
  return {
    resource: {
      attributes: writeAttributes(attributes),
      ...(droppedAttributesCount > 0 && { droppedAttributesCount }),
    },
    ...(schemaUrl && { schemaUrl }),
  }
}

function writeScope(scope: Scope) {
  const { name, version, attributes, droppedAttributesCount, schemaUrl } = scope
  return {
    scope: {
      name,
      ...(version && { version }),
      ...ifAny('attributes', writeAttributes(attributes)),
      ...(droppedAttributesCount > 0 && { droppedAttributesCount }),
    },
    ...(schemaUrl && { schemaUrl }),
  }
}

function writeSpan(span: Span) {
  const { traceId, spanId, parentSpanId, traceState, name, status, flags } = span
  const { droppedAttributesCount, droppedEventsCount, droppedLinksCount } = span
  return {
    traceId,
    spanId,
    ...(parentSpanId && { parentSpanId }),
    ...(traceState && { traceState }),
    ...(flags > 0 && { flags }),
    name,
    kind: spanKinds.indexOf(span.kind),
    startTimeUnixNano: span.startTimeUnixNano.toString(),
    endTimeUnixNano: span.endTimeUnixNano.toString(),
    ...ifAny('attributes', writeAttributes(span.attributes)),
    ...(droppedAttributesCount > 0 && { droppedAttributesCount }),
    ...ifAny('events', span.events.map(writeEvent)),
    ...(droppedEventsCount > 0 && { droppedEventsCount }),
    ...ifAny('links', span.links.map(writeLink)),
    ...(droppedLinksCount > 0 && { droppedLinksCount }),
    ...((status.code !== 'unset' || status.message) && {
      status: {
        ...(status.message && { message: status.message }),
        code: statusCodes.indexOf(status.code),
      },
    }),
  }
}

function writeEvent(event: SpanEvent) {
  return {
    timeUnixNano: event.timeUnixNano.toString(),
    name: event.name,
    ...ifAny('attributes', writeAttributes(event.attributes)),
    ...(event.droppedAttributesCount > 0 && { droppedAttributesCount: event.droppedAttributesCount }),
  }
}

function writeLink(link: SpanLink) {
  return {
    traceId: link.traceId,
    spanId: link.spanId,
    ...(link.traceState && { traceState: link.traceState }),
    ...ifAny('attributes', writeAttributes(link.attributes)),
    ...(link.droppedAttributesCount > 0 && { droppedAttributesCount: link.droppedAttributesCount }),
    ...(link.flags > 0 && { flags: link.flags }),
  }
}

function ifAny<T>(key: string, items: T[]): { [key: string]: T[] } {
  return items.length > 0 ? { [key]: items } : {}
}

function writeAttributes(attributes: Attributes): object[] {
  return Object.entries(attributes).map(([key, value]) => ({ key, value: writeValue(value) }))
}

function writeValue(value: AttributeValue): object {
  if (value === null) return {}
  if (typeof value === 'string') return { stringValue: value }
  if (typeof value === 'boolean') return { boolValue: value }
  if (typeof value === 'bigint') return { intValue: value.toString() }
  if (typeof value === 'number') return writeNumber(value)
  if (value instanceof Uint8Array) return { bytesValue: Buffer.from(value).toString('base64') }
  if (Array.isArray(value)) return { arrayValue: { values: value.map(writeValue) } }
  return { kvlistValue: { values: writeAttributes(value) } }
}

/** JSON has no NaN, no Infinity and no negative zero; protobuf's JSON writes them as strings. */
function writeNumber(value: number): object {
  if (Object.is(value, -0)) return { doubleValue: '-0' }
  if (Number.isSafeInteger(value)) return { intValue: value.toString() }
  return { doubleValue: Number.isFinite(value) ? value : String(value) }
}
