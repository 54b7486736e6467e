import { isPlain } from '../attribute.ts'
import { shownName } from '../report.ts'

/** What a collector says when it took the request but not all of its spans. */
export interface PartialSuccess {
  rejectedSpans: number
  errorMessage: string
}

/** How messages are encoded, by the name that our reports use. */
type Form = 'protobuf' | 'JSON'

const OPENING_BRACE = 0x7b
const FORMS = new Map<string, Form>([
  ['application/x-protobuf', 'protobuf'],
  ['application/json', 'JSON'],
])

/** Enough to say what it begins with. */
const SHOWN_BYTES = 400

/**
 * Reads an ExportTraceServiceResponse in the form that its Content-Type names (OTLP/HTTP, response), else in that of the request.
 * @returns undefined when it says nothing: a full success
 * @throws TypeError when it is not such a message
 */
export function readPartialSuccess(
  body: Buffer,
  contentType: string | undefined,
  form: Form,
): PartialSuccess | undefined {
  const said = formOf(body, mediaType(contentType), form)
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

/**
 * Reads why a collector refuses: the message of a `google.rpc.Status` (OTLP/HTTP, failures) in the form that its Content-Type
 * names, or the first line of a text. Empty for anything else, such as the page of a proxy.
 */
export function readRefusal(body: Buffer, contentType: string | undefined, form: Form): string {
  const type = mediaType(contentType)
  if (type.startsWith('text/')) return type === 'text/html' ? '' : firstLine(body.toString())
  try {
    const said = formOf(body, type, form)
    return said === 'JSON' ? parseStatus(body.toString()) : decodeStatus(body)
  } catch {
    return ''
  }
}

/**
 * A server that sets no Content-Type leaves it to its library, which may call JSON a text. No protobuf message begins with a
 * brace.
 */
function formOf(body: Buffer, type: string, form: Form): Form {
  return FORMS.get(type) ?? (body[0] === OPENING_BRACE ? 'JSON' : form)
}

/** In lower case, without parameters; empty where none was given. */
function mediaType(contentType = ''): string {
  const [type = ''] = contentType.split(';', 1)
  return type.trim().toLowerCase()
}

/** Empty for markup, whatever it was called. */
function firstLine(text: string): string {
  const [line = ''] = text.trim().split(/[\r\n]/, 1)
  return line.startsWith('<') ? '' : line.trimEnd()
}

function malformed(): SyntaxError {
  return new SyntaxError('no such message')
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
        result.errorMessage = readText(reader, end)
      } else if (!skip(reader, inner)) throw malformed()
    }
    if (reader.at !== end) throw malformed()
  }
  return result.rejectedSpans === 0 && result.errorMessage === '' ? undefined : result
}

/**
 * Reads the message of a `google.rpc.Status` { int32 code = 1, string message = 2, repeated Any details = 3 }; empty without one.
 * @throws SyntaxError when it is not such a message
 */
function decodeStatus(status: Uint8Array): string {
  const reader: Reader = { bytes: status, at: 0 }
  let message = ''
  while (reader.at < status.length) {
    const tag = readVarint(reader)
    if (tag === 0x12) message = readText(reader, status.length)
    else if (!skip(reader, tag)) throw malformed()
  }
  return message
}

function readText(reader: Reader, end: number): string {
  const size = readVarint(reader)
  if (!(reader.at + size <= end)) throw malformed()
  const text = Buffer.from(reader.bytes.buffer, reader.bytes.byteOffset + reader.at, size)
  reader.at += size
  return text.toString()
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

/** @throws SyntaxError when it is no JSON */
function parseStatus(text: string): string {
  const message = property(JSON.parse(text), 'message')
  return typeof message === 'string' ? message : ''
}

function property(value: unknown, name: string): unknown {
  return isPlain(value) && Object.hasOwn(value, name) ? value[name] : undefined
}
