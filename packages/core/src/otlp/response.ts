/** Thrown for an answer that is not valid HTTP. The message continues a sentence begun by the caller. */
export class NoHttpError extends Error {
  constructor(what: string, protocol = 'no valid HTTP') {
    super(`could not be understood, for it is ${protocol}: ${what}`)
  }
}

/** A longer head is invalid: Node's own limit. */
const MOST_HEAD_BYTES = 16 * 1024
/** How much of the received bytes a message shows. */
const SHOWN = 40
const HEAD_END = '\r\n\r\n'
const LINE_END = '\r\n'
const STATUS_LINE = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?$/
// The value is trimmed afterwards: a RegExp that did it would backtrack endlessly on many blanks.
const FIELD = /^([!#$%&'*+.^_`|~\w-]+):([\t\x20-\x7e\x80-\xff]*)$/
const BARE_LINE_FEED = /(?:^|[^\r])\n/
const NOTHING = Buffer.alloc(0)

type Step = 'head' | 'body' | 'chunk size' | 'chunk' | 'chunk end' | 'trailer' | 'done'

/**
 * Reads one response to a POST, as the connection hands it on (RFC 9112, 2 to 7). Of the headers it keeps what somebody asks for.
 *
 * An error after the head only ends the body: the status is already known.
 */
export class ResponseReader {
  /** 0 until the head has come. */
  status = 0
  retryAfter: string | undefined
  contentType: string | undefined
  /** What the body was packed with, in lower case. */
  encodings: readonly string[] = []
  /** Whether the body is longer than it may be: no more of it is read. */
  isTooLong = false
  /** Whether another request can be sent when this response is complete. */
  isLasting = false
  readonly #mostBytes: number
  #body: Buffer = NOTHING
  /** How much of that has come. */
  #size = 0
  /** Received bytes that cannot be read yet. */
  #pending: Buffer = NOTHING
  #step: Step = 'head'
  /** Bytes of the body, or of the chunk. */
  #left = 0

  constructor(mostBytes: number) {
    this.#mostBytes = mostBytes
  }

  /** Whether nothing has come. */
  get isEmpty(): boolean {
    return this.#step === 'head' && this.#pending.length === 0
  }

  get isComplete(): boolean {
    return this.#step === 'done'
  }

  get body(): Buffer {
    return this.#body.subarray(0, this.#size)
  }

  /** @throws NoHttpError for an invalid head */
  read(bytes: Buffer): void {
    this.#pending = this.#pending.length === 0 ? bytes : Buffer.concat([this.#pending, bytes])
    while (this.#step !== 'done' && this.#next()) {
      // Each step takes what is its own.
    }
    // Data after the response, which nobody requested.
    if (this.isComplete && this.#pending.length > 0) this.isLasting = false
  }

  /** Whether there may be more to read in what has come. */
  #next(): boolean {
    switch (this.#step) {
      case 'head':
        return this.#readHead()
      case 'body':
      case 'chunk':
        return this.#readBody()
      case 'chunk size':
        return this.#readChunkSize()
      case 'chunk end':
        return this.#readChunkEnd()
      default:
        return this.#readTrailer()
    }
  }

  #readHead(): boolean {
    // Some servers send an empty line more, as some clients do (RFC 9112, 2.2).
    while (this.#pending.length >= 2 && this.#pending.indexOf(LINE_END) === 0)
      this.#pending = this.#pending.subarray(LINE_END.length)
    const end = this.#pending.indexOf(HEAD_END)
    if ((end === -1 ? this.#pending.length : end) > MOST_HEAD_BYTES)
      throw new NoHttpError('no end of the headers')
    if (end === -1) {
      // Another protocol may never send an empty line.
      const said = this.#pending.toString('latin1')
      if (said === '\r') return false
      const begin = said.slice(0, HTTP.length)
      if (!HTTP.startsWith(begin) || BARE_LINE_FEED.test(said)) throw otherProtocol(said)
      return false
    }
    const { fields, status, isNewer } = headOf(this.#pending.toString('latin1', 0, end))
    this.#pending = this.#pending.subarray(end + HEAD_END.length)
    if (status === 101) throw new NoHttpError('another protocol, which nobody asked for')
    // Interim responses come before the answer (RFC 9110, 15.2).
    if (status < 200) return true
    this.#begin(fields, isNewer, status)
    this.status = status
    this.retryAfter = fields.get('retry-after')
    this.contentType = fields.get('content-type')
    this.encodings = listOf(fields.get('content-encoding')).filter((coding) => coding !== 'identity')
    return true
  }

  /** How long the body is (RFC 9112, 6.3), and whether the connection lasts (9.3). */
  #begin(fields: ReadonlyMap<string, string>, isNewer: boolean, status: number): void {
    const options = listOf(fields.get('connection'))
    const length = fields.get(LENGTH)
    const codings = listOf(fields.get('transfer-encoding'))
    this.isLasting = isNewer ? !options.includes('close') : options.includes('keep-alive')
    if (status === 204 || status === 304) this.#step = 'done'
    else if (codings.length > 0) {
      // Both at once is a sign of request smuggling.
      if (length !== undefined) this.isLasting = false
      if (codings.at(-1) === 'chunked') this.#step = 'chunk size'
      else this.#untilClose()
    } else if (length === undefined) this.#untilClose()
    else this.#expect(lengthSaid(length), 'body')
  }

  #untilClose(): void {
    this.isLasting = false
    this.#step = 'body'
    this.#left = Infinity
  }

  #expect(count: number, step: 'body' | 'chunk'): void {
    this.#step = step
    this.#left = count
    if (this.#size + count > this.#mostBytes) this.#stop(true)
    else if (count === 0) this.#step = 'done'
  }

  #readBody(): boolean {
    const part = this.#pending.subarray(0, this.#left)
    if (part.length === 0) return false
    this.#pending = this.#pending.subarray(part.length)
    this.#left -= part.length
    if (this.#size + part.length > this.#mostBytes) this.#stop(true)
    else {
      this.#keep(part)
      if (this.#left === 0) this.#step = this.#step === 'body' ? 'done' : 'chunk end'
    }
    return true
  }

  /** Copied, since even a slice of one byte keeps its whole chunk alive. Doubling the room makes copies rare. */
  #keep(part: Buffer): void {
    const size = this.#size + part.length
    if (size > this.#body.length) {
      const larger = Buffer.allocUnsafe(Math.max(size, Math.min(2 * size, this.#mostBytes)))
      this.#body.copy(larger, 0, 0, this.#size)
      this.#body = larger
    }
    part.copy(this.#body, this.#size)
    this.#size = size
  }

  #readChunkSize(): boolean {
    const line = this.#line()
    if (line === undefined) return false
    const [, digits] = /^0*([\da-f]{1,8})(?:;.*)?$/i.exec(line) ?? []
    if (digits === undefined) this.#stop()
    else if (Number.parseInt(digits, 16) === 0) this.#step = 'trailer'
    else this.#expect(Number.parseInt(digits, 16), 'chunk')
    return true
  }

  #readChunkEnd(): boolean {
    const line = this.#line()
    if (line === undefined) return false
    if (line === '') this.#step = 'chunk size'
    else this.#stop()
    return true
  }

  #readTrailer(): boolean {
    const line = this.#line()
    if (line === undefined) return false
    if (line === '') this.#step = 'done'
    return true
  }

  /** A line without its end; undefined while that has not come. */
  #line(): string | undefined {
    const end = this.#pending.indexOf(LINE_END)
    if (end === -1) {
      if (this.#pending.length > MOST_HEAD_BYTES) this.#stop()
      return undefined
    }
    const line = this.#pending.toString('latin1', 0, end)
    this.#pending = this.#pending.subarray(end + LINE_END.length)
    return line
  }

  /** Nothing of what follows is read. */
  #stop(isTooLong = false): void {
    this.isTooLong = isTooLong
    this.isLasting = false
    this.#step = 'done'
  }
}

const HTTP = 'HTTP/1.'
/**
 * What a server of HTTP/2 begins with is a frame of SETTINGS (RFC 9113, 3.4 and 4.1): behind the three bytes of its length its
 * type, no flags, and stream 0.
 */
const SETTINGS = '\u0004\0\0\0\0\0'
const SETTINGS_AT = 3

function otherProtocol(said: string): NoHttpError {
  if (said.startsWith(SETTINGS, SETTINGS_AT))
    return new NoHttpError('OTLP over HTTP is as a rule at port 4318', 'HTTP/2, which gRPC speaks')
  return new NoHttpError(`"${said.slice(0, SHOWN)}"`)
}

/** What the head of a response says. */
interface Head {
  readonly status: number
  /** Of HTTP/1.1, and not 1.0. */
  readonly isNewer: boolean
  readonly fields: ReadonlyMap<string, string>
}

let latestText = ''
let latest: Head | undefined

/**
 * The head that came last is remembered: those of one collector differ by their date, once a second. Reading one takes 80 µs where
 * it is read once for 512 spans, since V8 does not compile that.
 *
 * @throws NoHttpError for one that is invalid
 */
function headOf(text: string): Head {
  if (latest === undefined || text !== latestText) {
    latest = readHead(text)
    latestText = text
  }
  return latest
}

function readHead(text: string): Head {
  const [first = '', ...lines] = text.split(LINE_END)
  const [, minor, digits] = STATUS_LINE.exec(first) ?? []
  if (digits === undefined) throw otherProtocol(first)
  return { status: Number(digits), isNewer: minor === '1', fields: fieldsOf(lines) }
}

function fieldsOf(lines: readonly string[]): Map<string, string> {
  const fields = new Map<string, string>()
  for (const line of unfolded(lines)) {
    const [, name = '', padded = ''] = FIELD.exec(line) ?? []
    if (name === '') throw new NoHttpError(`a header "${line.slice(0, SHOWN)}"`)
    const key = name.toLowerCase()
    const value = padded.trim()
    const known = fields.get(key)
    if (known === undefined) fields.set(key, value)
    else if (LISTS.has(key)) fields.set(key, `${known}, ${value}`)
  }
  return fields
}

/** A line that begins with a blank goes on with the one before; their break is as good as blanks (RFC 9112, 5.2). */
function unfolded(lines: readonly string[]): string[] {
  const whole: string[] = []
  for (const line of lines) {
    const last = whole.length - 1
    // Before the first header there is none to continue (RFC 9112, 2.2).
    if (/^[\t ]/.test(line) && last >= 0) whole[last] += ` ${line}`
    else whole.push(line)
  }
  return whole
}

/** The same length may be repeated, on one line or on several (RFC 9112, 6.3). */
function lengthSaid(said: string): number {
  const [length = '', ...others] = new Set(said.split(',').map((each) => each.trim()))
  if (others.length > 0 || !/^\d{1,15}$/.test(length))
    throw new NoHttpError(`Content-Length: ${said.slice(0, SHOWN)}`)
  return Number(length)
}

const LENGTH = 'content-length'
/** Of any other header the first one counts. */
const LISTS = new Set(['connection', LENGTH, 'transfer-encoding'])

function listOf(value = ''): string[] {
  return value
    .split(',')
    .map((item) => item.trim().toLowerCase())
    .filter((item) => item !== '')
}
