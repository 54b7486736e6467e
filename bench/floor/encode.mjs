/**
 * Spans as an OTLP ExportTraceServiceRequest: one pass into one buffer that is used again. Each tag below is
 * `field number << 3 | wire type` of opentelemetry-proto's messages. Lengths are written after what they count, as
 * varints padded to a fixed width.
 */

/** More than a batch of 512 needs; it grows when it has to. */
const INITIAL_BYTES = 256 * 1024
/** What a span needs at most, its texts apart. */
const SPAN_BYTES = 256
/** An attribute's tags and lengths, and the longest number. */
const ATTRIBUTE_BYTES = 32
/** Up to here a loop over the characters is cheaper than the call into native code that writes UTF-8. */
const SHORT_TEXT = 48
/** A text of so few characters takes at most 126 bytes: its length, and that of the message around it, is one byte. */
const ONE_BYTE_TEXT = 40

let bytes = Buffer.allocUnsafeSlow(INITIAL_BYTES)
let view = new DataView(bytes.buffer)

const NIBBLES = new Uint8Array(128)
for (let digit = 0; digit < 16; digit++) NIBBLES[digit.toString(16).charCodeAt(0)] = digit

// The wall-clock time of tick zero in nanoseconds, as two halves: a double holds no product of today's date.
const zero = BigInt(Math.round((Date.now() - performance.now()) * 1e3)) * 1000n
const zeroLow = Number(zero & 0xffffffffn)
const zeroHigh = Number(zero >> 32n)

/** Key → its tag, length and bytes, and the tag of the value that follows. @type {Map<string, Uint8Array>} */
const keys = new Map()

/**
 * @param {Record<string, string | number>} resource
 * @param {string} scopeName
 * @returns {(spans: import('./span.mjs').Span[]) => Buffer} the bytes are the caller's
 */
export function encoder(resource, scopeName) {
  // Resource { attributes = 1 }, ScopeSpans.scope = 1 { name = 1 }: encoded once.
  let at = 5
  for (const key of Object.keys(resource)) at = writeAttribute(0x0a, key, resource[key], at)
  bytes[0] = 0x0a
  patchLength(1, 4, at - 5)
  const resourceBytes = Buffer.from(bytes.subarray(0, at))
  at = writeText(0x0a, scopeName, 5)
  bytes[0] = 0x0a
  patchLength(1, 4, at - 5)
  const scopeBytes = Buffer.from(bytes.subarray(0, at))

  return function encode(spans) {
    // ExportTraceServiceRequest.resource_spans = 1
    bytes[0] = 0x0a
    bytes.set(resourceBytes, 5)
    const scopeAt = 5 + resourceBytes.length
    // ResourceSpans.scope_spans = 2
    bytes[scopeAt] = 0x12
    bytes.set(scopeBytes, scopeAt + 5)
    let at = scopeAt + 5 + scopeBytes.length
    for (let index = 0; index < spans.length; index++) at = writeSpan(spans[index], at)
    patchLength(scopeAt + 1, 4, at - scopeAt - 5)
    patchLength(1, 4, at - 5)
    const copy = Buffer.allocUnsafeSlow(at)
    copy.set(bytes.subarray(0, at))
    return copy
  }
}

/** ScopeSpans.spans = 2. @param {import('./span.mjs').Span} span @param {number} start */
function writeSpan(span, start) {
  if (start + SPAN_BYTES > bytes.length) grow(start + SPAN_BYTES)
  bytes[start] = 0x12
  let at = start + 4
  bytes[at] = 0x0a // trace_id = 1
  bytes[at + 1] = 16
  writeHex(span.traceId, 32, at + 2)
  bytes[at + 18] = 0x12 // span_id = 2
  bytes[at + 19] = 8
  writeHex(span.spanId, 16, at + 20)
  at += 28
  if (span.parentId !== '') {
    bytes[at] = 0x22 // parent_span_id = 4
    bytes[at + 1] = 8
    writeHex(span.parentId, 16, at + 2)
    at += 10
  }
  at = writeText(0x2a, span.name, at) // name = 5
  bytes[at] = 0x30 // kind = 6
  bytes[at + 1] = span.kind
  bytes[at + 2] = 0x39 // start_time_unix_nano = 7
  writeTime(span.start, at + 3)
  bytes[at + 11] = 0x41 // end_time_unix_nano = 8
  writeTime(span.end, at + 12)
  at += 20
  const { attributes } = span
  for (const key in attributes) {
    const value = attributes[key]
    if (value !== undefined) at = writeAttribute(0x4a, key, value, at)
  }
  if (at + 16 > bytes.length) grow(at + 16)
  if (span.isError) {
    bytes[at] = 0x7a // status = 15 { code = 3 }
    bytes[at + 1] = 2
    bytes[at + 2] = 0x18
    bytes[at + 3] = 2
    at += 4
  }
  bytes[at] = 0x85 // flags = 16, fixed32: a tag of two bytes
  bytes[at + 1] = 0x01
  view.setUint32(at + 2, span.flags, true)
  at += 6
  patchLength(start + 1, 3, at - start - 4)
  return at
}

/** KeyValue { key = 1, value = 2 { string = 1, bool = 2, int = 3, double = 4 } } */
function writeAttribute(tag, key, value, start) {
  let known = keys.get(key)
  if (known === undefined) keys.set(key, (known = keyBytes(key)))
  const text = typeof value === 'string' ? value.length * 3 : 0
  const room = start + known.length + ATTRIBUTE_BYTES + text
  if (room > bytes.length) grow(room)
  bytes[start] = tag
  let at = start + 3
  for (let index = 0; index < known.length; index++) bytes[at + index] = known[index]
  at += known.length
  if (typeof value === 'string') {
    if (value.length <= ONE_BYTE_TEXT) {
      const end = writeCharacters(value, at + 3)
      bytes[at] = end - at - 1
      bytes[at + 1] = 0x0a
      bytes[at + 2] = end - at - 3
      at = end
    } else {
      const end = writeCharacters(value, at + 9)
      patchLength(at, 4, end - at - 4)
      bytes[at + 4] = 0x0a
      patchLength(at + 5, 4, end - at - 9)
      at = end
    }
  } else if (typeof value === 'boolean') {
    bytes[at] = 2
    bytes[at + 1] = 0x10
    bytes[at + 2] = value ? 1 : 0
    at += 3
  } else if (Number.isInteger(value) && value >= 0 && value <= 0x7fffffff) {
    bytes[at + 1] = 0x18
    const end = writeVarint(value, at + 2)
    bytes[at] = end - at - 1
    at = end
  } else {
    bytes[at] = 9
    bytes[at + 1] = 0x21
    view.setFloat64(at + 2, value, true)
    at += 10
  }
  const length = at - start - 3
  bytes[start + 1] = (length & 0x7f) | 0x80
  bytes[start + 2] = length >> 7
  return at
}

/** @param {string} key */
function keyBytes(key) {
  const text = Buffer.from(key)
  return Uint8Array.from([0x0a, text.length, ...text, 0x12])
}

/** A text with its tag and length. */
function writeText(tag, text, at) {
  const room = at + SPAN_BYTES + text.length * 3
  if (room > bytes.length) grow(room)
  bytes[at] = tag
  if (text.length <= ONE_BYTE_TEXT) {
    const end = writeCharacters(text, at + 2)
    bytes[at + 1] = end - at - 2
    return end
  }
  const end = writeCharacters(text, at + 5)
  patchLength(at + 1, 4, end - at - 5)
  return end
}

function writeCharacters(text, at) {
  const { length } = text
  if (length > SHORT_TEXT) return at + bytes.utf8Write(text, at)
  for (let index = 0; index < length; index++) {
    const code = text.charCodeAt(index)
    if (code > 0x7f) return at + bytes.utf8Write(text, at)
    bytes[at + index] = code
  }
  return at + length
}

function writeHex(digits, count, at) {
  for (let index = 0; index < count; index += 2) {
    bytes[at++] = (NIBBLES[digits.charCodeAt(index)] << 4) | NIBBLES[digits.charCodeAt(index + 1)]
  }
}

/** Ticks as fixed64 nanoseconds since the Unix epoch. */
function writeTime(ticks, at) {
  const nanoseconds = ticks * 1e6
  const upper = Math.floor(nanoseconds / 0x100000000)
  const low = zeroLow + Math.floor(nanoseconds - upper * 0x100000000)
  const carry = low >= 0x100000000 ? 1 : 0
  view.setUint32(at, low - carry * 0x100000000, true)
  view.setUint32(at + 4, zeroHigh + upper + carry, true)
}

function writeVarint(value, at) {
  while (value > 0x7f) {
    bytes[at++] = (value & 0x7f) | 0x80
    value >>>= 7
  }
  bytes[at] = value
  return at + 1
}

/** A length as a varint of exactly `width` bytes. */
function patchLength(at, width, length) {
  for (let index = 0; index < width - 1; index++) {
    bytes[at + index] = (length & 0x7f) | 0x80
    length >>>= 7
  }
  bytes[at + width - 1] = length
}

function grow(needed) {
  const larger = Buffer.allocUnsafeSlow(Math.max(needed, bytes.length * 2))
  larger.set(bytes)
  bytes = larger
  view = new DataView(bytes.buffer)
}
