/**
 * OTLP protobuf, read by code that shares nothing with the encoders that are measured.
 *
 * @typedef {object} DecodedSpan
 * @property {string} traceId
 * @property {string} spanId
 * @property {string} parentSpanId empty for a root
 * @property {string} name
 * @property {number} kind OTLP's: 2 is SERVER, 3 is CLIENT
 * @property {bigint} start nanoseconds since the Unix epoch
 * @property {bigint} end
 * @property {Map<string, unknown>} attributes
 */

/**
 * The fields of a message: numbers as bigints, everything else as bytes.
 *
 * @param {Buffer} message
 * @returns {Generator<[field: number, value: any]>}
 */
function* fieldsOf(message) {
  let at = 0
  while (at < message.length) {
    const tag = Number(varint())
    const field = tag >> 3
    const wireType = tag & 7
    if (wireType === 0) {
      yield [field, varint()]
    } else if (wireType === 1) {
      yield [field, message.readBigUInt64LE(at)]
      at += 8
    } else if (wireType === 5) {
      yield [field, BigInt(message.readUInt32LE(at))]
      at += 4
    } else if (wireType === 2) {
      const length = Number(varint())
      if (at + length > message.length) throw new Error('a field is longer than its message')
      yield [field, message.subarray(at, at + length)]
      at += length
    } else {
      throw new Error(`wire type ${wireType}`)
    }
  }

  function varint() {
    let value = 0n
    let shift = 0n
    for (;;) {
      const byte = message[at++]
      if (byte === undefined) throw new Error('the message ends inside of a number')
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) return value
      shift += 7n
    }
  }
}

/** How many spans an ExportTraceServiceRequest holds, without a look inside of them. @param {Buffer} message */
export function countSpans(message) {
  return count(message, 0, message.length, [1, 2, 2])
}

// The path of field numbers from the request to a span: resource_spans, scope_spans, spans. All are messages, and so is
// everything beside them but the schema URLs, so that only lengths have to be read.
function count(bytes, from, to, [field, ...inner]) {
  let found = 0
  let at = from
  while (at < to) {
    const tag = bytes[at++]
    let length = 0
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]
      length |= (byte & 0x7f) << shift
      if (byte < 0x80) break
    }
    if (tag >> 3 === field) found += inner.length === 0 ? 1 : count(bytes, at, at + length, inner)
    at += length
  }
  return found
}

/** @param {Buffer} message an ExportTraceServiceRequest @returns {DecodedSpan[]} */
export function decodeSpans(message) {
  const spans = []
  for (const [field, resourceSpans] of fieldsOf(message)) {
    if (field !== 1) continue
    for (const [inner, scopeSpans] of fieldsOf(resourceSpans)) {
      if (inner !== 2) continue
      for (const [innermost, span] of fieldsOf(scopeSpans)) if (innermost === 2) spans.push(decodeSpan(span))
    }
  }
  return spans
}

function decodeSpan(message) {
  const span = {
    traceId: '',
    spanId: '',
    parentSpanId: '',
    name: '',
    kind: 0,
    start: 0n,
    end: 0n,
    attributes: new Map(),
  }
  for (const [field, value] of fieldsOf(message)) {
    if (field === 1) span.traceId = value.toString('hex')
    else if (field === 2) span.spanId = value.toString('hex')
    else if (field === 4) span.parentSpanId = value.toString('hex')
    else if (field === 5) span.name = value.toString()
    else if (field === 6) span.kind = Number(value)
    else if (field === 7) span.start = value
    else if (field === 8) span.end = value
    else if (field === 9) span.attributes.set(...decodeAttribute(value))
  }
  return span
}

function decodeAttribute(message) {
  let key = ''
  let value
  for (const [field, content] of fieldsOf(message)) {
    if (field === 1) key = content.toString()
    else if (field === 2) value = decodeValue(content)
  }
  return [key, value]
}

function decodeValue(message) {
  for (const [field, value] of fieldsOf(message)) {
    if (field === 1) return value.toString()
    if (field === 2) return value === 1n
    if (field === 3) return Number(BigInt.asIntN(64, value))
    if (field === 4) return new DataView(new BigUint64Array([value]).buffer).getFloat64(0, true)
    return value
  }
  return undefined
}
