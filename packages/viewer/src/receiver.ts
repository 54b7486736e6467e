import { createServer } from 'node:http'
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createGunzip } from 'node:zlib'
import { callback, limit, mistake, reasonOf, validated, whole } from './options.ts'
import type { Shape } from './options.ts'
import { encodeStatus } from './protobuf.ts'
import { spansFromJson, spansFromProtobuf } from './request.ts'
import type { Span } from './span.ts'

export type ReceiveOptions = {
  /** Called once per request with its spans, before the sender gets its 200. */
  onSpans: (spans: Span[]) => void
  /** Default 4318, where exporters send when nothing is configured; 0 takes a free one. */
  port?: number | undefined
  /** Default 127.0.0.1: nobody but this machine. */
  host?: string | undefined
  /** The largest body in bytes, before and after decompression. Default 64 MiB. */
  maxBytes?: number | undefined
}

export type Receiver = {
  /** What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to, e.g. `http://127.0.0.1:4318`. */
  url: string
  port: number
  /** Stops listening and cuts the connections that are open, idle or not. */
  close: () => Promise<void>
}

type Format = 'application/x-protobuf' | 'application/json'

/** Why a request was refused: status, text for a person, and headers that the status asks for. */
type Refusal = { status: number; message: string; headers?: OutgoingHttpHeaders }

/** What the OTLP specification has exporters send at most. */
const maxBytesDefault = 64 * 1024 * 1024

const shape: Shape<ReceiveOptions> = {
  onSpans: callback('onSpans: (spans) => collector.add(spans)'),
  port: whole('port', 0, 65_535, 4318),
  host: {
    wanted: 'an address',
    example: "host: '127.0.0.1'",
    accepts: (value) => typeof value === 'string' && value !== '',
  },
  maxBytes: limit('maxBytes', maxBytesDefault),
}

/** A sender that takes longer than this for one body is cut off; exporters give up after 10 s by default. */
const requestTimeout = 60_000

/** google.rpc.Code, for the `code` of an answer's google.rpc.Status. */
const rpcCodes = new Map([
  [400, 3], // INVALID_ARGUMENT
  [403, 7], // PERMISSION_DENIED
  [404, 5], // NOT_FOUND
  [405, 12], // UNIMPLEMENTED
  [413, 8], // RESOURCE_EXHAUSTED
  [415, 3], // INVALID_ARGUMENT
  [500, 13], // INTERNAL
])

/** An address that nobody but this machine reaches. */
const LOOPBACK = /^(?:::1|(?:::ffff:)?127(?:\.\d+){3})$/
/** A page's host that no name server answers for: `localhost` and addresses. */
const NO_NAME = /^(?:(?:.+\.)?localhost|\[.+\]|\d+(?:\.\d+){3})$/

/**
 * Listens for OTLP/HTTP at POST /v1/traces, protobuf or JSON, plain or gzip, and hands every request's spans to
 * `onSpans`. Rejects when it cannot listen, with a message that names the port and the way out, and with a TypeError for
 * options that are unknown or wrong.
 * (opentelemetry.io/docs/specs/otlp/#otlphttp)
 */
export async function receive(options: ReceiveOptions): Promise<Receiver> {
  const {
    onSpans,
    port = 4318,
    host = '127.0.0.1',
    maxBytes = maxBytesDefault,
  } = validated('receive()', shape, options)
  if (onSpans === undefined) {
    throw mistake('receive()', 'onSpans to be a function', 'none', `{ ${shape.onSpans.example} }`)
  }
  let isPrivate = true
  const server = createServer({ requestTimeout }, (request, response) => {
    void handle(request, response, onSpans, maxBytes, isPrivate)
  })

  function close(): Promise<void> {
    return new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  }

  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(cannotListen(error, host, port)))
    server.listen(port, host, () => {
      // What the name or the short form of the host stands for.
      const { address, port: listening } = server.address() as AddressInfo
      isPrivate = LOOPBACK.test(address)
      resolve({
        url: `http://${host.includes(':') ? `[${host}]` : host}:${listening}`,
        port: listening,
        close,
      })
    })
  })
}

function cannotListen(error: NodeJS.ErrnoException, host: string, port: number): Error {
  if (error.code === 'EADDRINUSE') {
    const other = port < 65535 ? port + 1 : port - 1
    const reason = `port ${port} on ${host} is already in use, by another viewer or a collector?`
    return new Error(`${reason} Stop it, or choose another port: --port ${other}`, { cause: error })
  }
  if (error.code === 'EACCES') {
    const reason = `port ${port} on ${host} is not allowed for this user.`
    return new Error(`${reason} Choose one above 1023: --port 4318`, { cause: error })
  }
  return new Error(`cannot listen on ${host}, port ${port}: ${error.message}`, { cause: error })
}

async function handle(
  request: IncomingMessage,
  response: ServerResponse,
  onSpans: (spans: Span[]) => void,
  maxBytes: number,
  isPrivate: boolean,
): Promise<void> {
  const format = formatOf(request)
  const refusal = refuse(request, format, maxBytes, isPrivate)
  if (refusal) return answerRefusal(request, response, format, refusal)

  const body = await readBody(request, isGzip(request), maxBytes)
  if (body === 'aborted') return
  if ('status' in body) return answerRefusal(request, response, format, body)

  const spans = decode(body, format)
  if ('status' in spans) return answerRefusal(request, response, format, spans)
  try {
    onSpans(spans)
  } catch (error) {
    return answerRefusal(request, response, format, { status: 500, message: reasonOf(error) })
  }
  // An ExportTraceServiceResponse with nothing set: all of it was accepted.
  answer(response, 200, format ?? 'application/json', format === 'application/json' ? '{}' : '')
}

function formatOf(request: IncomingMessage): Format | undefined {
  const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase()
  return type === 'application/x-protobuf' || type === 'application/json' ? type : undefined
}

function contentEncoding(request: IncomingMessage): string {
  return request.headers['content-encoding']?.trim().toLowerCase() || 'identity'
}

function isGzip(request: IncomingMessage): boolean {
  return contentEncoding(request) === 'gzip'
}

/** What the headers alone say against the request. */
function refuse(
  request: IncomingMessage,
  format: Format | undefined,
  maxBytes: number,
  isPrivate: boolean,
): Refusal | undefined {
  const { origin } = request.headers
  if (isPrivate && origin !== undefined && isForeign(origin)) {
    return { status: 403, message: `expected what this machine sends, received it from a page of ${origin}` }
  }
  const path = request.url?.split('?')[0]
  if (path !== '/v1/traces') {
    return { status: 404, message: `nothing at ${path}: this is a receiver of traces, at POST /v1/traces` }
  }
  if (request.method !== 'POST') {
    const message = `expected POST, received ${request.method}`
    return { status: 405, message, headers: { Allow: 'POST' } }
  }
  if (!format) {
    const received = request.headers['content-type'] ?? 'none'
    const message = `expected Content-Type application/x-protobuf or application/json, received ${received}`
    return { status: 415, message }
  }
  const encoding = contentEncoding(request)
  if (encoding !== 'gzip' && encoding !== 'identity') {
    const message = `expected Content-Encoding gzip or none, received ${encoding}`
    return { status: 415, message, headers: { 'Accept-Encoding': 'gzip, identity' } }
  }
  return Number(request.headers['content-length']) > maxBytes ? tooLarge(maxBytes) : undefined
}

/**
 * Whether a browser sends this for a page of somebody else. Its name server can say that their name is this machine, and then
 * the browser asks nobody whether the page may. Who is no browser says no origin, and may call this machine as it likes.
 */
function isForeign(origin: string): boolean {
  return !URL.canParse(origin) || !NO_NAME.test(new URL(origin).hostname)
}

function tooLarge(maxBytes: number): Refusal {
  return { status: 413, message: `expected at most ${maxBytes} bytes after decompression, received more` }
}

/**
 * The body, inflated; it stops at the first byte over the limit, so a small gzip that inflates to gigabytes costs
 * no more than `maxBytes`. After a refusal the rest of the upload is read and thrown away: a sender that still
 * writes would not hear the answer otherwise.
 */
function readBody(
  request: IncomingMessage,
  gzip: boolean,
  maxBytes: number,
): Promise<Buffer | Refusal | 'aborted'> {
  return new Promise((resolve) => {
    const gunzip = gzip ? createGunzip() : undefined
    const source = gunzip ?? request
    const chunks: Buffer[] = []
    let size = 0

    function take(chunk: Buffer): void {
      size += chunk.length
      if (size > maxBytes) stop(tooLarge(maxBytes))
      else chunks.push(chunk)
    }

    function stop(result: Refusal | 'aborted'): void {
      source.off('data', take)
      chunks.length = 0
      if (gunzip) request.unpipe(gunzip)
      gunzip?.destroy()
      request.resume()
      resolve(result)
    }

    source.on('data', take)
    source.once('end', () => resolve(Buffer.concat(chunks)))
    request.once('close', () => {
      if (!request.complete) stop('aborted')
    })
    gunzip?.once('error', (error) => stop({ status: 400, message: `the gzip is broken: ${error.message}` }))
    if (gunzip) request.pipe(gunzip)
  })
}

function decode(body: Buffer, format: Format | undefined): Span[] | Refusal {
  const isJson = format === 'application/json'
  try {
    return isJson ? spansFromJson(body) : spansFromProtobuf(body)
  } catch (error) {
    const message = `not an OTLP trace request in ${isJson ? 'JSON' : 'protobuf'}: ${reasonOf(error)}`
    return { status: 400, message }
  }
}

/** In the encoding of the request, and in JSON when that is not known. */
function answerRefusal(
  request: IncomingMessage,
  response: ServerResponse,
  format: Format | undefined,
  refusal: Refusal,
): void {
  const status = { code: rpcCodes.get(refusal.status) ?? 2, message: refusal.message }
  const isProtobuf = format === 'application/x-protobuf'
  const body = isProtobuf ? encodeStatus(status) : JSON.stringify(status)
  request.resume()
  answer(response, refusal.status, format ?? 'application/json', body, refusal.headers)
}

function answer(
  response: ServerResponse,
  status: number,
  format: Format,
  body: string | Uint8Array,
  headers: OutgoingHttpHeaders = {},
): void {
  const length = typeof body === 'string' ? Buffer.byteLength(body) : body.length
  response.writeHead(status, { ...headers, 'Content-Type': format, 'Content-Length': length }).end(body)
}
