import { isPlain } from '../attribute.ts'
import { shownName } from '../report.ts'

/** What a collector says when it took the request but not all of its spans. */
export interface PartialSuccess {
  rejectedSpans: number
  errorMessage: string
}

/** How messages are written, as ours say it. */
export type Form = 'protobuf' | 'JSON'

const FORMS = new Map<string, Form>([
  ['application/x-protobuf', 'protobuf'],
  ['application/json', 'JSON'],
])

/** Enough to say what it begins with. */
const SHOWN_BYTES = 400

/**
 * Reads an ExportTraceServiceResponse that says of what form it is (OTLP/HTTP, response); else it is of `form`, as the request was.
 * @returns undefined when it says nothing: a full success
 * @throws TypeError when it is not such a message
 */
export function readPartialSuccess(
  body: Buffer,
  contentType: string | undefined,
  form: Form,
): PartialSuccess | undefined {
  const [type = ''] = (contentType ?? '').split(';', 1)
  const said = FORMS.get(type.trim().toLowerCase()) ?? form
  try {
    return said === 'JSON' ? parsePartialSuccess(body.toString()) : decodePartialSuccess(body)
  } catch (cause) {
    const what = contentType === undefined ? '' : `${shownName(contentType)}: `
    const start = shownName(body.toString('utf8', 0, SHOWN_BYTES))
    throw new TypeError(`expected an ExportTraceServiceResponse as ${said}, received ${what}"${start}"`, {
      cause,
    })
  }
}

function malformed(): SyntaxError {
  return new SyntaxError('no ExportTraceServiceResponse')
}

interface Reader {
  readonly bytes: Uint8Array
  at: number
}

/**
 * Reads an ExportTraceServiceResponse { partial_success = 1 { int64 rejected_spans = 1, string error_message = 2 } }.
 * Undefined when it says nothing.
 * @throws SyntaxError when it is not such a message
 */
export function decodePartialSuccess(response: Uint8Array): PartialSuccess | undefined {
  const reader: Reader = { bytes: response, at: 0 }
  const result: PartialSuccess = { rejectedSpans: 0, errorMessage: '' }
  while (reader.at < response.length) {
    const tag = readVarint(reader)
    if (tag !== 0x0a) {
      if (!skip(reader, tag)) throw malformed()
      continue
    }
    const length = readVarint(reader)
    const end = reader.at + length
    // Written so that a NaN, which is what an unreadable varint gives, is refused as well.
    if (!(end <= response.length)) throw malformed()
    while (reader.at < end) {
      const inner = readVarint(reader)
      if (inner === 0x08) {
        const rejected = readVarint(reader)
        if (Number.isNaN(rejected)) throw malformed()
        result.rejectedSpans = rejected < 2 ** 63 ? rejected : 0 // A negative count is none.
      } else if (inner === 0x12) {
        const size = readVarint(reader)
        if (!(reader.at + size <= end)) throw malformed()
        const text = Buffer.from(response.buffer, response.byteOffset + reader.at, size)
        result.errorMessage = text.toString()
        reader.at += size
      } else if (!skip(reader, inner)) throw malformed()
    }
    if (reader.at !== end) throw malformed()
  }
  return result.rejectedSpans === 0 && result.errorMessage === '' ? undefined : result
}

/** NaN when the bytes end inside it or it is longer than ten bytes. Above 2^53 the value is rounded. */
function readVarint(reader: Reader): number {
  let value = 0
  for (let index = 0; index < 10; index++) {
    const byte = reader.bytes[reader.at]
    if (byte === undefined) return Number.NaN
    reader.at++
    value += (byte & 0x7f) * 2 ** (7 * index)
    if (byte < 0x80) return value
  }
  return Number.NaN
}

/** Skips an unknown field; false if its tag is invalid or its wire type is not 0, 1, 2 or 5. */
function skip(reader: Reader, tag: number): boolean {
  if (!(tag >= 8)) return false
  switch (tag % 8) {
    case 0:
      return !Number.isNaN(readVarint(reader))
    case 1:
      reader.at += 8
      break
    case 2: {
      const size = readVarint(reader)
      reader.at += size
      break
    }
    case 5:
      reader.at += 4
      break
    default:
      return false
  }
  return reader.at <= reader.bytes.length
}

/**
 * Reads the text of an ExportTraceServiceResponse. Undefined when it says nothing.
 * @throws SyntaxError when it is not such a message
 */
export function parsePartialSuccess(text: string): PartialSuccess | undefined {
  const response: unknown = JSON.parse(text)
  if (!isPlain(response)) throw malformed()
  const partial = property(response, 'partialSuccess')
  if (partial != null && !isPlain(partial)) throw malformed()
  const rejected = property(partial, 'rejectedSpans')
  const message = property(partial, 'errorMessage')
  // An int64 is a string in this mapping, and a number is accepted.
  const count = typeof rejected === 'string' || typeof rejected === 'number' ? Number(rejected) : 0
  const rejectedSpans = Number.isInteger(count) && count > 0 ? count : 0
  const errorMessage = typeof message === 'string' ? message : ''
  return rejectedSpans === 0 && errorMessage === '' ? undefined : { rejectedSpans, errorMessage }
}

function property(value: unknown, name: string): unknown {
  return isPlain(value) && Object.hasOwn(value, name) ? value[name] : undefined
}
