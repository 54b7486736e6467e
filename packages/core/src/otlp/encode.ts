/**
 * Spans to OTLP protobuf, written by hand: one pass over the spans into one buffer.
 *
 * The messages are those of opentelemetry-proto's `trace.proto`, `common.proto`, `resource.proto` and
 * `trace_service.proto`; each tag below is `field number << 3 | wire type`.
 *
 * Functions that write take the position to write at and return the position after what they wrote. That keeps
 * the position in a register, and undoing a half-written message is no more than forgetting the new position.
 */
import type { Attributes, Link, TraceState } from '@opentelemetry/api'
import { DEPTH_LIMIT, isPlain, textOf, VALUES_LIMIT } from '../attribute.ts'
import { writeHrTime } from '../clock.ts'
import { reportOnce } from '../report.ts'
import type { Resource } from '../resource.ts'
import { isOurs, type InstrumentationScope, type ReadableSpan, type TimedEvent } from '../span.ts'
import { borrow } from './memory.ts'

/** What does not go with a request. */
export interface Remainder {
  /** Spans for which there was no room, in no particular order. */
  readonly later: ReadableSpan[]
  /** How many could not be encoded. */
  leftOut: number
}

/** 150 spans or so; most flushes of a quiet service never grow the buffer. */
const INITIAL_BYTES = 64 * 1024

/** A buffer that grew beyond 512 spans of 2 KiB is released after the request that needed it. */
const KEPT_BYTES = 1024 * 1024

/** The most a padded length of four bytes can say, and four times what a collector accepts. */
const REQUEST_LIMIT = 2 ** 28 - 1

/** Keys come from code, so a process has a few dozen. One that makes them from data only costs itself the cache. */
const KEYS_LIMIT = 1024
const CACHED_KEY_LENGTH = 128

/** Up to here a loop over the characters is cheaper than the call into native code that writes UTF-8. */
const SHORT_TEXT = 56

/** From here the call into native code that moves memory is cheaper than a loop. */
const LONG_COPY = 128

/** Enough for all of a span's fields of fixed size, tags and lengths included. */
const SPAN_FIXED_BYTES = 160

const HAS_IS_REMOTE = 0x100
const IS_REMOTE = 0x200

/** A power of two, and no fewer than the spans of one pack, which may all be of different traces. */
const TRACE_SLOTS = 64

/** Character code to nibble; anything but a hexadecimal digit has a bit above the nibble's. */
const NIBBLES = new Uint8Array(256).fill(0x80)
for (let digit = 0; digit < 16; digit++) {
  NIBBLES[digit.toString(16).charCodeAt(0)] = digit
  NIBBLES[digit.toString(16).toUpperCase().charCodeAt(0)] = digit
}

interface Key {
  readonly name: string
  /** The key that followed it last: spans of one scope mostly have the same keys in the same order. */
  next: Key | undefined
  /** What begins a KeyValue of this key: the key's tag, length and bytes, and the tag of the value that follows. */
  readonly bytes: Uint8Array
  /** The same as little-endian words, the last one filled up with zeros. */
  readonly words: Uint32Array
  /** The last short text this request had under the key, and where its KeyValue stands in the buffer. */
  text: string | undefined
  from: number
  to: number
}

interface ScopeGroup {
  readonly scope: InstrumentationScope
  /** Indices of spans; the ones between are found through `nextSpan`. */
  readonly first: number
  last: number
}

interface ResourceGroup {
  readonly resource: Resource
  readonly scopes: ScopeGroup[]
}

let bytes = Buffer.allocUnsafeSlow(INITIAL_BYTES)
let view = new DataView(bytes.buffer)

const keys = new Map<string, Key>()
/** Stands before the first key of each set of attributes. */
const beforeAll: Pick<Key, 'next'> = { next: undefined }
const repeated: Key[] = []
let repeatedCount = 0

const resources = new WeakMap<Resource, Uint8Array>()
const scopes = new WeakMap<InstrumentationScope, Uint8Array>()

let nextSpan = new Int32Array(512)
/** Trace ids that were written last, by the last bits of them, and where they stand in the buffer. */
const traceIds = Array.from({ length: TRACE_SLOTS }, () => '')
const traceIdsAt = new Int32Array(TRACE_SLOTS)
let valuesLeft = 0
/** Bytes behind which there is no span but the first, and what has no place before them. */
let room = Infinity
let written = 0
let remainder: Remainder
let isEncoding = false
/** Whether Object.prototype has enumerable properties of the app's, which for-in loops visit. */
let hasInherited = false
const NOTHING = {}

/**
 * The spans as an ExportTraceServiceRequest, one ResourceSpans for each resource object and in it one ScopeSpans for
 * each scope object, both in the order of their first span. No spans are no bytes.
 *
 * The bytes are the caller's: a copy, because a request waits for its answer and its retries while the next ones are
 * encoded, and to hand over the buffer instead would cost an allocation of a whole buffer for a flush of three spans.
 * Resources and scopes are encoded once in their life, so they must not change afterwards.
 *
 * Attributes that are `undefined` or `null` are left out; in an array they keep their place, as empty values, and so
 * does `null` in an object. Integers are int64 as long as they fit, other numbers (and -0) are doubles; a bigint
 * that does not fit is written as its digits. What is neither text, number, boolean, bytes, array nor plain object is
 * written as `String()` gives it, and as an empty value if that throws.
 *
 * The spans are no more than `most` bytes, but where the first of them is more by itself: those that are left are in `rest`.
 *
 * Never throws: a span that cannot be encoded (a getter that throws, a request above 256 MiB) is left out, which is
 * said once and counted in `rest`.
 */
export function encodeProtobuf(
  spans: readonly ReadableSpan[],
  most = Infinity,
  rest: Remainder = { later: [], leftOut: 0 },
): Uint8Array {
  // Joined before the next encoding, so no copy is needed.
  return joinSections(encode(spans, most, rest, viewed))
}

/** Spans of one scope, encoded in memory borrowed together with the other sections, with their encoded resource and scope. */
export interface Section {
  /** The same object for the same resource. */
  readonly resource: Uint8Array
  /** The same object for the same scope. */
  readonly scope: Uint8Array
  readonly spans: Uint8Array
}

/**
 * The same spans in parts, before it is known what else goes into the request: `joinSections` joins them. All said of
 * `encodeProtobuf` holds for these two.
 */
export function encodeSections(spans: readonly ReadableSpan[], most: number, rest: Remainder): Section[] {
  return encode(spans, most, rest, copied)
}

/** Where the spans of a section are in the buffer. */
interface Part extends Omit<Section, 'spans'> {
  readonly from: number
  readonly to: number
}

/** Takes so many bytes out of the buffer. */
type Take = (size: number) => Uint8Array

function copied(size: number): Uint8Array {
  const copy = borrow(size)
  bytes.copy(copy, 0, 0, size)
  return copy
}

function viewed(size: number): Uint8Array {
  return bytes.subarray(0, size)
}

/** The buffer is of one encoding at a time. */
function encode(spans: readonly ReadableSpan[], most: number, rest: Remainder, take: Take): Section[] {
  if (isEncoding) return encodeNested(spans, most, rest, take)
  isEncoding = true
  try {
    return sectionsOf(spans, most, rest, take)
  } finally {
    isEncoding = false
  }
}

/** A value's `toString` may log, and that may be traced and fill a batch, which is then encoded in a buffer of its own. */
function encodeNested(spans: readonly ReadableSpan[], most: number, rest: Remainder, take: Take): Section[] {
  const outer = { bytes, view, nextSpan, valuesLeft, room, written, remainder }
  nextSpan = new Int32Array(spans.length)
  resize(INITIAL_BYTES, 0)
  forget()
  try {
    return sectionsOf(spans, most, rest, take)
  } finally {
    ;({ bytes, view, nextSpan, valuesLeft, room, written, remainder } = outer)
  }
}

function sectionsOf(spans: readonly ReadableSpan[], most: number, rest: Remainder, take: Take): Section[] {
  room = most
  written = 0
  remainder = rest
  hasInherited = false
  for (const _ in NOTHING) hasInherited = true
  const parts: Part[] = []
  let at = 0
  for (const { resource, scopes: scopeGroups } of grouped(spans)) {
    for (const scopeGroup of scopeGroups) {
      const { scope, first } = scopeGroup
      try {
        const resourceHead = resources.get(resource) ?? encodeResource(resource, at)
        const scopeHead = scopes.get(scope) ?? encodeScope(scope, at)
        const end = writeSpans(scopeGroup, spans, at)
        if (end > at) parts.push({ resource: resourceHead, scope: scopeHead, from: at, to: end })
        at = end
      } catch (error) {
        // The trouble is the resource's or the scope's: a span's costs that span alone.
        forget()
        remainder.leftOut += countFrom(first)
        reportOnce('encode', 'error', 'the spans of a scope could not be encoded and are left out', error)
      }
    }
  }
  forget()
  const sections = taken(parts, take)
  if (bytes.length > KEPT_BYTES) resize(INITIAL_BYTES, 0)
  return sections
}

/**
 * All in one piece of memory: one for each of four scopes would cost a batch 20 µs. If there is not enough, all are left out:
 * the little that is free belongs to the app.
 */
function taken(parts: readonly Part[], take: Take): Section[] {
  const last = parts.at(-1)
  if (last === undefined) return []
  try {
    const memory = take(last.to)
    return parts.map(({ resource, scope, from, to }) => ({
      resource,
      scope,
      spans: memory.subarray(from, to),
    }))
  } catch (error) {
    remainder.leftOut += written
    reportOnce('encode:memory', 'error', 'there is no memory for encoded spans, and they are left out', error)
    return []
  }
}

/** Tag and length in front of a message. */
const FRAME_BYTES = 5

/**
 * Sections as one ExportTraceServiceRequest, with one ResourceSpans for each resource and one ScopeSpans for each scope, in
 * memory that is borrowed.
 */
export function joinSections(sections: readonly Section[]): Uint8Array {
  const byResource = new Map<Uint8Array, Map<Uint8Array, Uint8Array[]>>()
  for (const { resource, scope, spans } of sections) {
    let byScope = byResource.get(resource)
    if (byScope === undefined) byResource.set(resource, (byScope = new Map()))
    const parts = byScope.get(scope)
    if (parts === undefined) byScope.set(scope, [spans])
    else parts.push(spans)
  }

  const pieces: Uint8Array[] = []
  for (const [resource, byScope] of byResource) {
    const inner: Uint8Array[] = [resource]
    for (const [scope, parts] of byScope) {
      const message = [scope, ...parts]
      inner.push(frame(0x12, message), ...message) // ResourceSpans.scope_spans = 2
    }
    pieces.push(frame(0x0a, inner), ...inner) // ExportTraceServiceRequest.resource_spans = 1
  }
  return joined(pieces)
}

function joined(pieces: readonly Uint8Array[]): Uint8Array {
  if (pieces.length === 0) return new Uint8Array(0)
  const whole = borrow(lengthOf(pieces))
  let at = 0
  for (const piece of pieces) {
    whole.set(piece, at)
    at += piece.length
  }
  return whole
}

function lengthOf(pieces: readonly Uint8Array[]): number {
  return pieces.reduce((sum, { length }) => sum + length, 0)
}

function frame(tag: number, message: readonly Uint8Array[]): Uint8Array {
  const head = new Uint8Array(FRAME_BYTES)
  head[0] = tag
  setLength(head, 1, FRAME_BYTES - 1, lengthOf(message))
  return head
}

// ---- Groups ----

/** Chains spans of one scope by index (`nextSpan`) instead of collecting them in arrays: no allocation per span. */
function grouped(spans: readonly ReadableSpan[]): ResourceGroup[] {
  if (nextSpan.length < spans.length || nextSpan.length > 8 * Math.max(spans.length, 512)) {
    nextSpan = new Int32Array(Math.max(spans.length, 512))
  }
  const groups: ResourceGroup[] = []
  let scopeGroup: ScopeGroup | undefined
  let resourceGroup: ResourceGroup | undefined
  let index = 0
  for (const span of spans) {
    let resource: Resource
    let scope: InstrumentationScope
    try {
      ;({ resource, instrumentationScope: scope } = span)
    } catch (error) {
      leaveOut(remainder, error)
      index++
      continue
    }
    if (resourceGroup === undefined || resourceGroup.resource !== resource) {
      resourceGroup = groupOfResource(groups, resource)
      scopeGroup = undefined
    }
    if (scopeGroup === undefined || scopeGroup.scope !== scope)
      scopeGroup = groupOfScope(resourceGroup.scopes, scope, index)
    nextSpan[scopeGroup.last] = index
    nextSpan[index] = -1
    scopeGroup.last = index
    index++
  }
  return groups
}

// A process has one resource and a handful of scopes: a walk over them is cheaper than a Map.

/** The group of this resource, which is added where there is none. */
function groupOfResource(groups: ResourceGroup[], resource: Resource): ResourceGroup {
  for (const known of groups) if (known.resource === resource) return known
  const group: ResourceGroup = { resource, scopes: [] }
  groups.push(group)
  return group
}

/** The group of this scope, which is added where there is none, with the span at `index` as its first. */
function groupOfScope(groups: ScopeGroup[], scope: InstrumentationScope, index: number): ScopeGroup {
  for (const known of groups) if (known.scope === scope) return known
  const group: ScopeGroup = { scope, first: index, last: index }
  groups.push(group)
  return group
}

function isFull(at: number): boolean {
  return at > room && written > 0
}

/** How many spans there are of one scope, from this one on. */
function countFrom(first: number): number {
  let count = 0
  for (let index = first; index !== -1; index = nextSpan[index] ?? -1) count++
  return count
}

/** Leaves the spans of one scope for later, from this one on. One by one: a call has room for some 120,000 arguments. */
function leave(spans: readonly ReadableSpan[], first: number): void {
  for (let index = first; index !== -1; index = nextSpan[index] ?? -1)
    remainder.later.push(spans[index] as ReadableSpan)
}

/** ScopeSpans.spans = 2 of one scope, as many as there is room for. */
function writeSpans({ first }: ScopeGroup, spans: readonly ReadableSpan[], start: number): number {
  let at = start
  let last = first
  let lastAt = start
  let rest = -1
  for (let index = first; index !== -1; index = nextSpan[index] ?? -1) {
    if (isFull(at)) {
      rest = index
      break
    }
    last = index
    lastAt = at
    try {
      at = writeSpan(spans[index] as ReadableSpan, at)
      written += 1
    } catch (error) {
      forget() // What is remembered may stand in the part that is about to be overwritten.
      leaveOut(remainder, error)
    }
  }
  // What is first in a request goes whatever it weighs: should a collector not take it, it costs none of the others anything.
  if (at > room && written > 1) {
    forget()
    at = lastAt
    written -= 1
    rest = last
  }
  leave(spans, rest)
  return at
}

/** Counts and reports a span that cannot be encoded. */
export function leaveOut(rest: Pick<Remainder, 'leftOut'>, error: unknown): void {
  rest.leftOut += 1
  reportOnce('encode', 'error', 'a span could not be encoded and is left out', error)
}

/** ResourceSpans { resource = 1 { attributes = 1 }, schema_url = 3 }; `start` is where the buffer is free. */
function encodeResource(resource: Resource, start: number): Uint8Array {
  reserve(start, 5)
  let at = start + 5
  at = writeAttributes(0x0a, resource.attributes, at)
  bytes[start] = 0x0a
  writeLength(start + 1, 4, at - start - 5)
  if (resource.schemaUrl) at = writeTextField(0x1a, textOf(resource.schemaUrl), at)
  forget()
  const encoded = Uint8Array.prototype.slice.call(bytes, start, at)
  resources.set(resource, encoded)
  return encoded
}

/** ScopeSpans { scope = 1 { name = 1, version = 2 }, schema_url = 3 }; `start` is where the buffer is free. */
function encodeScope(scope: InstrumentationScope, start: number): Uint8Array {
  reserve(start, 5)
  let at = writeTextField(0x0a, textOf(scope.name), start + 5)
  if (scope.version) at = writeTextField(0x12, textOf(scope.version), at)
  bytes[start] = 0x0a
  writeLength(start + 1, 4, at - start - 5)
  if (scope.schemaUrl) at = writeTextField(0x1a, textOf(scope.schemaUrl), at)
  const encoded = Uint8Array.prototype.slice.call(bytes, start, at)
  scopes.set(scope, encoded)
  return encoded
}

// ---- Span ----

/** ScopeSpans.spans = 2, a Span of at most 16 fields, written in the order of their numbers. */
function writeSpan(span: ReadableSpan, start: number): number {
  reserve(start, SPAN_FIXED_BYTES)
  // Our spans have the fields of their context; `spanContext()` would allocate an object.
  const context = isOurs(span) ? span : span.spanContext()
  const parent = span.parentSpanContext
  bytes[start] = 0x12
  let at = start + 5
  at = writeTraceId(context.traceId, at)
  if (isOurs(span) && span.writeId(view, at + 2)) {
    bytes[at] = 0x12
    bytes[at + 1] = 8
    at += 10
  } else at = writeSpanId(0x12, context.spanId, at)
  const traceState = stateText(context)
  if (traceState) at = reserved(writeTextField(0x1a, traceState, at), SPAN_FIXED_BYTES)
  if (parent !== undefined) {
    const withParent = writeSpanId(0x22, parent.spanId, at)
    // An id of zeros is no id: whatever writeSpanId could not read, it wrote as zeros.
    if (hasNonZero(at + 2, withParent)) at = withParent
  }
  at = reserved(writeTextField(0x2a, span.name, at), SPAN_FIXED_BYTES)
  const kind = span.kind
  if (kind >= 0 && kind <= 4) {
    bytes[at] = 0x30
    bytes[at + 1] = kind + 1
    at += 2
  }
  bytes[at] = 0x39
  bytes[at + 9] = 0x41
  if (isOurs(span)) {
    span.writeTimes(view, at + 1, at + 10)
  } else {
    writeHrTime(span.startTime, view, at + 1)
    writeHrTime(span.endTime, view, at + 10)
  }
  at = writeAttributes(0x4a, span.attributes, at + 18)
  if (!(isOurs(span) && span.isPlain)) at = writeDetails(span, at)
  reserve(at, 6)
  bytes[at] = 0x85 // flags = 16, fixed32: a tag of two bytes
  bytes[at + 1] = 0x01
  view.setUint32(at + 2, flagsOf(context.traceFlags, parent?.isRemote), true)
  at += 6
  writeLength(start + 1, 4, at - start - 5)
  return at
}

/** A tracestate as text; an unreadable one, from an app's sampler, is left out without its span. */
export function stateText({ traceState }: { readonly traceState?: TraceState | undefined }): string {
  if (traceState === undefined) return ''
  try {
    const text: unknown = traceState.serialize()
    return typeof text === 'string' ? text : ''
  } catch {
    return ''
  }
}

/** What most spans do without: dropped counts, events, links and status. */
function writeDetails(span: ReadableSpan, start: number): number {
  let at = start
  at = writeCount(0x50, span.droppedAttributesCount, at)
  const { events, links, status } = span
  for (const event of events) at = writeEvent(event, at)
  at = writeCount(0x60, span.droppedEventsCount, at)
  for (const link of links) at = writeLink(link, at)
  at = writeCount(0x70, span.droppedLinksCount, at)
  if (status.code === 1 || status.code === 2) {
    // Status { message = 2, code = 3 }
    const statusAt = reserved(at, 7)
    at = statusAt + 5
    if (status.message) at = writeTextField(0x12, status.message, at)
    reserve(at, 2)
    bytes[at] = 0x18
    bytes[at + 1] = status.code
    at += 2
    bytes[statusAt] = 0x7a
    writeLength(statusAt + 1, 4, at - statusAt - 5)
  }
  return at
}

/** Span.Event { time_unix_nano = 1, name = 2, attributes = 3, dropped_attributes_count = 4 } */
function writeEvent(event: TimedEvent, start: number): number {
  reserve(start, 14)
  bytes[start] = 0x5a
  bytes[start + 5] = 0x09
  writeHrTime(event.time, view, start + 6)
  let at = writeTextField(0x12, event.name, start + 14)
  if (event.attributes) at = writeAttributes(0x1a, event.attributes, at)
  at = writeCount(0x20, event.droppedAttributesCount, at)
  writeLength(start + 1, 4, at - start - 5)
  return at
}

/** Span.Link { trace_id = 1, span_id = 2, trace_state = 3, attributes = 4, dropped_attributes_count = 5, flags = 6 } */
function writeLink(link: Link, start: number): number {
  reserve(start, SPAN_FIXED_BYTES)
  const { context } = link
  bytes[start] = 0x6a
  let at = writeTraceId(context.traceId, start + 5)
  at = writeSpanId(0x12, context.spanId, at)
  const traceState = stateText(context)
  if (traceState) at = writeTextField(0x1a, traceState, at)
  if (link.attributes) at = writeAttributes(0x22, link.attributes, at)
  at = writeCount(0x28, link.droppedAttributesCount, at)
  reserve(at, 5)
  bytes[at] = 0x35
  view.setUint32(at + 1, flagsOf(context.traceFlags, context.isRemote), true)
  at += 5
  writeLength(start + 1, 4, at - start - 5)
  return at
}

/** Whether a number is sent as int64, and not as double: a whole one in its range, and not -0, which it has none for. */
export function fitsInt64(value: number): boolean {
  return Number.isInteger(value) && value >= -(2 ** 63) && value < 2 ** 63 && !Object.is(value, -0)
}

/** Bits 0-7 the trace flags, bit 8 "bit 9 is meant", bit 9 whether the span's parent (the link's context) is remote. */
export function flagsOf(traceFlags: number, isRemote: boolean | undefined): number {
  return (traceFlags & 0xff) | HAS_IS_REMOTE | (isRemote === true ? IS_REMOTE : 0)
}

/** A uint32 that is left out when it is 0, as proto3 leaves out defaults. */
function writeCount(tag: number, count: number | undefined, start: number): number {
  if (!count) return start
  reserve(start, 6)
  bytes[start] = tag
  return writeVarint(count >>> 0, 0, start + 1)
}

/**
 * trace_id = 1, 16 bytes. A trace's spans are near each other within their scopes: a recently written id is copied, a tenth of
 * the work of reading 32 digits.
 */
function writeTraceId(id: string, at: number): number {
  bytes[at] = 0x0a
  bytes[at + 1] = 16
  // Reading past the end of a string makes V8 use a slower path for good.
  if (id.length !== 32) {
    writeHex(id, 16, at + 2)
    return at + 18
  }
  const lastByte = ((NIBBLES[id.charCodeAt(30)] ?? 0) << 4) | (NIBBLES[id.charCodeAt(31)] ?? 0)
  const slot = lastByte & (TRACE_SLOTS - 1)
  if (traceIds[slot] === id) {
    copyWords(traceIdsAt[slot] as number, at + 2, 16)
  } else {
    writeHex(id, 16, at + 2)
    traceIds[slot] = id
    traceIdsAt[slot] = at + 2
  }
  return at + 18
}

function writeSpanId(tag: number, id: string, at: number): number {
  bytes[at] = tag
  bytes[at + 1] = 8
  writeHex(id, 8, at + 2)
  return at + 10
}

/** An id that is not hexadecimal or not of that many bytes is written as zeros: collectors refuse any other length. */
function writeHex(id: string, count: number, at: number): void {
  if (id.length === count * 2) {
    const buffer = bytes
    let seen = 0
    for (let index = 0; index < count; index++) {
      const high = NIBBLES[id.charCodeAt(index * 2)] ?? 0x80
      const low = NIBBLES[id.charCodeAt(index * 2 + 1)] ?? 0x80
      seen |= high | low
      buffer[at + index] = (high << 4) | low
    }
    if (seen < 0x80) return
  }
  bytes.fill(0, at, at + count)
}

function hasNonZero(from: number, to: number): boolean {
  for (let at = from; at < to; at++) if (bytes[at] !== 0) return true
  return false
}

// ---- Attributes ----

/** Repeated KeyValue { key = 1, value = 2 } under the tag of the field they belong to. Own enumerable keys only. */
function writeAttributes(tag: number, attributes: Attributes, start: number): number {
  let at = start
  // Checking each key with `hasOwn` costs a tenth of a span.
  const isPlain = !hasInherited && Object.getPrototypeOf(attributes) === Object.prototype
  let before = beforeAll
  for (const name in attributes) {
    if (!isPlain && !Object.hasOwn(attributes, name)) continue
    const value: unknown = attributes[name]
    if (value == null) continue
    const key = keyAfter(before, name)
    at = writeAttribute(tag, key, value, 1, at)
    before = key
  }
  return at
}

/** A KeyValue of any value. */
function writeAttribute(tag: number, key: Key, value: unknown, depth: number, start: number): number {
  if (typeof value === 'string') return writeTextAttribute(tag, key, value, start)
  if ((typeof value === 'number' || typeof value === 'boolean') && key.bytes.length < 112) {
    // Short form: with at most 11 bytes of value, both lengths are one byte.
    reserve(start, 128)
    const buffer = bytes
    const valueAt = writeKey(key, start + 2)
    let end = valueAt + 3
    if (typeof value === 'boolean') {
      buffer[valueAt + 1] = 0x10 // AnyValue.bool_value = 2
      buffer[valueAt + 2] = value ? 1 : 0
    } else end = writeNumber(value, valueAt + 1)
    buffer[start] = tag
    buffer[start + 1] = end - start - 2
    buffer[valueAt] = end - valueAt - 1
    return end
  }
  reserve(start, 5)
  if (depth === 1) valuesLeft = VALUES_LIMIT
  const valueAt = writeBytes(key.bytes, start + 5)
  const end = writeValue(value, depth, reserved(valueAt, 4) + 4)
  bytes[start] = tag
  writeLength(start + 1, 4, end - start - 5)
  writeLength(valueAt, 4, end - valueAt - 4)
  return end
}

/**
 * Optimistic short form: when key and text are short, all three lengths are one byte if the text is ASCII, so it is
 * written as if it were, and again in the long form if it was not. Saves measuring the text first.
 *
 * Repeated text: when the key's last text in this request was the same, its whole KeyValue is copied. Methods,
 * schemes, hosts and statement texts are the same in most spans of a request.
 */
function writeTextAttribute(tag: number, key: Key, text: string, start: number): number {
  const { length } = text
  if (key.text === text) {
    const { from, to } = key
    const size = to - from
    reserve(start, size + 4)
    bytes[start] = tag
    if (size > LONG_COPY) bytes.copyWithin(start + 1, from, to)
    else copyWords(from, start + 1, size)
    return start + 1 + size
  }
  if (length <= SHORT_TEXT && key.bytes.length + length < 124) {
    reserve(start, 256)
    const buffer = bytes
    const valueAt = writeKey(key, start + 2)
    const textAt = valueAt + 3
    let index = 0
    for (; index < length; index++) {
      const code = text.charCodeAt(index)
      if (code > 0x7f) break
      buffer[textAt + index] = code
    }
    if (index === length) {
      const end = textAt + length
      buffer[start] = tag
      buffer[start + 1] = end - start - 2
      buffer[valueAt] = length + 2
      buffer[valueAt + 1] = 0x0a // AnyValue.string_value = 1
      buffer[valueAt + 2] = length
      remember(key, text, start + 1, end)
      return end
    }
  }
  const keyLength = key.bytes.length
  const size = length < 1024 ? length * 3 : Buffer.byteLength(text)
  const width = widthOf(keyLength + size + 16)
  reserve(start, keyLength + size + 16)
  const valueAt = writeBytes(key.bytes, start + 1 + width)
  const textAt = valueAt + 2 * width + 1
  const end = textAt + bytes.write(text, textAt)
  bytes[start] = tag
  writeLength(start + 1, width, end - start - 1 - width)
  writeLength(valueAt, width, end - valueAt - width)
  bytes[valueAt + width] = 0x0a
  writeLength(valueAt + width + 1, width, end - textAt)
  if (length <= 1024) remember(key, text, start + 1, end)
  return end
}

/** The inside of an AnyValue. */
function writeValue(value: unknown, depth: number, start: number): number {
  reserve(start, 16)
  switch (typeof value) {
    case 'string':
      return writeTextField(0x0a, value, start)
    case 'boolean':
      bytes[start] = 0x10
      bytes[start + 1] = value ? 1 : 0
      return start + 2
    case 'number':
      return writeNumber(value, start)
    case 'bigint':
      if (BigInt.asIntN(64, value) !== value) return writeTextField(0x0a, value.toString(), start)
      bytes[start] = 0x18
      return writeVarint(Number(value & 0xffffffffn), Number((value >> 32n) & 0xffffffffn), start + 1)
    case 'undefined':
      return start
    default:
      if (value === null || depth > DEPTH_LIMIT) return start
      try {
        return writeObject(value, depth, start)
      } catch {
        forget() // What is remembered may stand in the part that is about to be overwritten.
        return start
      }
  }
}

/** int_value = 3 for integers that fit in 64 bits, double_value = 4 for all others. */
function writeNumber(value: number, start: number): number {
  if ((value & 0xfffff) === value && value !== 0) {
    // Status codes, ports, counts: one to three bytes, without halves.
    const buffer = bytes
    buffer[start] = 0x18
    if (value < 0x80) {
      buffer[start + 1] = value
      return start + 2
    }
    buffer[start + 1] = (value & 0x7f) | 0x80
    if (value < 0x4000) {
      buffer[start + 2] = value >>> 7
      return start + 3
    }
    buffer[start + 2] = ((value >>> 7) & 0x7f) | 0x80
    buffer[start + 3] = value >>> 14
    return start + 4
  }
  if (fitsInt64(value)) {
    bytes[start] = 0x18
    // Both halves are exact: >>> takes an integer modulo 2^32, and a division by a power of two loses nothing.
    return writeVarint(value >>> 0, Math.floor(value / 2 ** 32) >>> 0, start + 1)
  }
  bytes[start] = 0x21
  view.setFloat64(start + 1, value, true)
  return start + 9
}

/** bytes_value = 7, array_value = 5 { values = 1 }, kvlist_value = 6 { values = 1 }; all else as text. */
function writeObject(value: unknown, depth: number, start: number): number {
  if (value instanceof Uint8Array) {
    reserve(start, value.length + 5)
    bytes[start] = 0x3a
    bytes.set(value, start + 5)
    writeLength(start + 1, 4, value.length)
    return start + 5 + value.length
  }
  let at = start + 5
  if (Array.isArray(value)) {
    bytes[start] = 0x2a
    for (let index = 0; index < value.length && valuesLeft-- > 0; index++) {
      const itemAt = reserved(at, 5)
      at = writeValue(value[index], depth + 1, at + 5)
      bytes[itemAt] = 0x0a
      writeLength(itemAt + 1, 4, at - itemAt - 5)
    }
  } else if (isPlain(value)) {
    bytes[start] = 0x32
    for (const key in value) {
      if (!Object.hasOwn(value, key)) continue
      const item = value[key]
      if (item === undefined) continue
      if (valuesLeft-- <= 0) break
      at = writeAttribute(0x0a, keys.get(key) ?? learn(key), item, depth + 1, at)
    }
  } else {
    return writeTextField(0x0a, String(value), start)
  }
  writeLength(start + 1, 4, at - start - 5)
  return at
}

// ---- Keys and repeated text ----

/** The key of that name, after this one: looked up only if another one followed last, 20 ns each. */
function keyAfter(before: Pick<Key, 'next'>, name: string): Key {
  const { next } = before
  if (next !== undefined && next.name === name) return next
  const key = keys.get(name) ?? learn(name)
  if (name.length <= CACHED_KEY_LENGTH) before.next = key
  return key
}

function learn(name: string): Key {
  const length = Buffer.byteLength(name)
  const width = widthOf(length)
  const encoded = Buffer.alloc(length + width + 2)
  encoded[0] = 0x0a // KeyValue.key = 1
  setLength(encoded, 1, width, length)
  encoded.write(name, 1 + width)
  encoded[length + width + 1] = 0x12 // KeyValue.value = 2
  const words = new Uint32Array(Math.ceil(encoded.length / 4))
  for (const [index, byte] of encoded.entries()) {
    words[index >> 2] = (words[index >> 2] ?? 0) | (byte << (8 * (index & 3)))
  }
  const key: Key = { name, next: undefined, bytes: encoded, words, text: undefined, from: 0, to: 0 }
  if (name.length <= CACHED_KEY_LENGTH) {
    // Cleared, not closed: keys made from data must not lock the real ones out.
    if (keys.size >= KEYS_LIMIT) {
      keys.clear()
      // It would keep unreachable keys alive.
      beforeAll.next = undefined
    }
    keys.set(name, key)
  }
  return key
}

function remember(key: Key, text: string, from: number, to: number): void {
  if (key.text === undefined) repeated[repeatedCount++] = key
  key.text = text
  key.from = from
  key.to = to
}

/** Positions are of one request, and a text must not be kept alive by a cache of keys. */
function forget(): void {
  for (let index = 0; index < repeatedCount; index++) (repeated[index] as Key).text = undefined
  if (repeated.length > KEYS_LIMIT) repeated.length = 0
  repeatedCount = 0
  traceIds.fill('')
}

// ---- Wire ----

/** A string field under a tag of one byte. */
function writeTextField(tag: number, text: string, start: number): number {
  const { length } = text
  if (length <= SHORT_TEXT) {
    reserve(start, 256)
    const buffer = bytes
    let index = 0
    for (; index < length; index++) {
      const code = text.charCodeAt(index)
      if (code > 0x7f) break
      buffer[start + 2 + index] = code
    }
    if (index === length) {
      buffer[start] = tag
      buffer[start + 1] = length
      return start + 2 + length
    }
  }
  const size = length < 1024 ? length * 3 : Buffer.byteLength(text)
  const width = widthOf(size)
  reserve(start, size + 5)
  const written = bytes.write(text, start + 1 + width)
  bytes[start] = tag
  writeLength(start + 1, width, written)
  return start + 1 + width + written
}

function writeBytes(from: Uint8Array, at: number): number {
  reserve(at, from.length)
  bytes.set(from, at)
  return at + from.length
}

/**
 * Word copy: four bytes a store, for the short runs of bytes where a call into native code costs more than the bytes.
 * Up to three bytes behind the key are overwritten; they are room that is reserved and not yet written.
 */
function writeKey(key: Key, at: number): number {
  const { words } = key
  const target = view
  for (let index = 0; index < words.length; index++) {
    target.setUint32(at + index * 4, words[index] as number, true)
  }
  return at + key.bytes.length
}

/** A word copy inside the buffer, from what stands before `at`. */
function copyWords(from: number, at: number, size: number): void {
  const target = view
  for (let offset = 0; offset < size; offset += 4) {
    target.setUint32(at + offset, target.getUint32(from + offset, true), true)
  }
}

/** A 64-bit integer of two unsigned halves in as few bytes as it takes; ten for a negative one. */
function writeVarint(low: number, high: number, start: number): number {
  let at = start
  let rest = low
  let upper = high
  while (upper !== 0) {
    bytes[at++] = (rest & 0x7f) | 0x80
    rest = ((rest >>> 7) | (upper << 25)) >>> 0
    upper >>>= 7
  }
  while (rest > 0x7f) {
    bytes[at++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  bytes[at++] = rest
  return at
}

/** How many bytes a padded length needs that will be at most `size`. */
function widthOf(size: number): number {
  return size < 2 ** 7 ? 1 : size < 2 ** 14 ? 2 : 4
}

/**
 * Padded length: a varint in more bytes than it needs, by continuation bits with nothing behind them, which the wire
 * format allows. It can be written after its message without moving the message, so nothing is measured beforehand.
 */
function writeLength(at: number, width: number, length: number): void {
  setLength(bytes, at, width, length)
}

function setLength(target: Uint8Array, at: number, width: number, length: number): void {
  if (width === 1) {
    target[at] = length
  } else if (width === 2) {
    target[at] = (length & 0x7f) | 0x80
    target[at + 1] = length >>> 7
  } else {
    target[at] = (length & 0x7f) | 0x80
    target[at + 1] = ((length >>> 7) & 0x7f) | 0x80
    target[at + 2] = ((length >>> 14) & 0x7f) | 0x80
    target[at + 3] = length >>> 21
  }
}

// ---- Buffer ----

function reserve(at: number, size: number): void {
  if (at + size > bytes.length) grow(at, size)
}

/** `at`, with room for so many bytes behind it. */
function reserved(at: number, size: number): number {
  reserve(at, size)
  return at
}

/** @throws RangeError when the request would pass REQUEST_LIMIT; the span at hand is then left out. */
function grow(at: number, size: number): void {
  // The lengths that are still to be written, tags included, must also stay below the limit.
  if (at + size > REQUEST_LIMIT)
    throw new RangeError(`The request would be larger than ${REQUEST_LIMIT} bytes`)
  let length = bytes.length * 2
  while (length < at + size) length *= 2
  resize(length, at)
}

function resize(length: number, kept: number): void {
  const larger = Buffer.allocUnsafeSlow(length)
  if (kept > 0) bytes.copy(larger, 0, 0, kept)
  bytes = larger
  view = new DataView(larger.buffer)
}
