import * as http from 'node:http'
import * as https from 'node:https'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import { announced, type ExportResult, type SpanExporter } from '../batch.ts'
import { report, reportOnce } from '../report.ts'
import { VERSION } from '../resource.ts'
import type { ReadableSpan } from '../span.ts'
import { decodePartialSuccess, encodeProtobuf, type PartialSuccess } from './encode.ts'
import { encodeJson, parsePartialSuccess } from './json.ts'

export interface OtlpOptions {
  /** The whole URL to post to. */
  url: string
  headers: Record<string, string>
  protocol: 'http/protobuf' | 'http/json'
  compression: 'none' | 'gzip'
  /** Milliseconds for one batch, retries included; 0 for no limit. */
  timeoutMillis: number
  /** True when nobody chose the endpoint: then that nobody listens there is no fault. */
  isDefault: boolean
}

/**
 * How long a batch may be tried. `patient`: until its timeout. `brief`, while somebody waits for a flush: an endpoint
 * that is not there is not tried again. `once`, while the process is on its way out: nothing is tried again.
 */
export type Patience = 'patient' | 'brief' | 'once'

export interface OtlpExporter extends SpanExporter {
  setPatience(patience: Patience): void
}

// One policy for all failures that may pass (OTLP/HTTP, retryable responses): exponential, with jitter.
const RETRYABLE = new Set([429, 502, 503, 504])
const MOST_RETRIES = 5
const FIRST_BACKOFF_MS = 1000
const BACKOFF_FACTOR = 1.5
const MOST_BACKOFF_MS = 5000
const JITTER = 0.2

/** Collectors take 20 MiB by default, and OTLP/HTTP allows 64: a batch that is larger goes in two. */
const MOST_REQUEST_BYTES = 16 * 2 ** 20
/** OTLP/HTTP: of a larger response nothing is read. */
const MOST_RESPONSE_BYTES = 4 * 2 ** 20
/** A collector that rejects a part of every batch is said this often. */
const REJECTION_REPORT_INTERVAL_MS = 60_000

/** The longest time that a timer of Node can wait; a longer one would fire at once. */
const MOST_TIMER_MS = 2 ** 31 - 1

const compress = promisify(gzip)

type Answer =
  | { status: number; retryAfter: string | undefined; body: Buffer }
  | { failure: Error; cause: 'absent' | 'dropped' | 'stale' | 'final' }

/** Posts batches as OTLP/HTTP. To be run where nothing is traced; its sockets keep no process alive. */
export function otlpExporter(options: OtlpOptions): OtlpExporter {
  const { protocol, timeoutMillis } = options
  const url = new URL(options.url)
  // As messages show it: user names and keys are in the parts that are left out.
  const shown = url.origin + url.pathname
  const client = url.protocol === 'https:' ? https : http
  const agent = new client.Agent({ keepAlive: true, maxSockets: 1 })
  let patience: Patience = 'patient'
  let hurry = new AbortController()
  let rejected = 0
  let rejectionSaidAt = -Infinity

  function setPatience(next: Patience): void {
    patience = next
    if (next === 'patient') return
    // Whoever waits between two tries is woken.
    hurry.abort()
    hurry = new AbortController()
  }

  async function send(spans: readonly ReadableSpan[]): Promise<ExportResult> {
    const deadline = timeoutMillis > 0 ? performance.now() + timeoutMillis : Infinity
    const encoded = protocol === 'http/json' ? Buffer.from(encodeJson(spans)) : encodeProtobuf(spans)
    if (encoded.length > MOST_REQUEST_BYTES) return sendHalves(spans, encoded.length)
    const body = options.compression === 'gzip' ? await compress(encoded) : encoded

    for (let retries = 0; ; retries += 1) {
      const answer = await post(body, deadline)
      if ('status' in answer && answer.status >= 200 && answer.status < 300) return accepted(answer.body)
      const pause = pauseAfter(answer, retries)
      if (pause === undefined || performance.now() + pause > deadline) return refused(answer)
      if (pause > 0) await wait(pause, undefined, { ref: false, signal: hurry.signal }).catch(() => {})
    }
  }

  async function sendHalves(spans: readonly ReadableSpan[], size: number): Promise<ExportResult> {
    if (spans.length < 2) return failure(`a span of ${size} bytes is larger than ${MOST_REQUEST_BYTES}`)
    const half = spans.length >> 1
    const first = await send(spans.slice(0, half))
    const second = await send(spans.slice(half))
    return first.code === 0 ? second : first
  }

  // Milliseconds until the next try; undefined for none.
  function pauseAfter(answer: Answer, retries: number): number | undefined {
    if ('failure' in answer) {
      // The collector had closed the idle connection by the time that we used it: it has not seen the request.
      if (answer.cause === 'stale') return 0
      if (answer.cause === 'final') return undefined
      if (answer.cause === 'absent' && (patience === 'brief' || options.isDefault)) return undefined
    } else if (!RETRYABLE.has(answer.status)) {
      return undefined
    }
    if (retries >= MOST_RETRIES || patience === 'once') return undefined
    const told = 'status' in answer ? retryAfter(answer.retryAfter) : undefined
    const backoff = Math.min(FIRST_BACKOFF_MS * BACKOFF_FACTOR ** retries, MOST_BACKOFF_MS)
    return told ?? backoff * (1 - JITTER + Math.random() * 2 * JITTER)
  }

  function post(body: Uint8Array, deadline: number): Promise<Answer> {
    const headers: http.OutgoingHttpHeaders = {
      'User-Agent': `throughline/${VERSION} OTel-OTLP-Exporter-JavaScript/${VERSION}`,
      ...options.headers,
      'Content-Type': protocol === 'http/json' ? 'application/json' : 'application/x-protobuf',
      // Some collectors refuse chunked bodies.
      'Content-Length': body.length,
    }
    if (options.compression === 'gzip') headers['Content-Encoding'] = 'gzip'
    return new Promise((resolve) => {
      let isTooLong = false
      let isAnswered = false
      const request = client.request(url, { method: 'POST', agent, headers })
      const fail = (error: Error) => {
        const isUnseen = request.reusedSocket && !isAnswered
        resolve({ failure: error, cause: isTooLong ? 'final' : causeOf(error, isUnseen) })
      }
      const left = Math.min(Math.max(1, deadline - performance.now()), MOST_TIMER_MS)
      const late = setTimeout(() => request.destroy(new Error('the export timed out')), left).unref()
      request.on('socket', (socket) => socket.unref())
      request.on('error', fail)
      request.on('close', () => clearTimeout(late))
      request.on('response', (response) => {
        isAnswered = true
        const chunks: Buffer[] = []
        let size = 0
        response.on('data', (chunk: Buffer) => {
          size += chunk.length
          if (size <= MOST_RESPONSE_BYTES) {
            chunks.push(chunk)
            return
          }
          isTooLong = true
          request.destroy(new Error(`the answer is over ${MOST_RESPONSE_BYTES} bytes`))
        })
        response.on('error', fail)
        response.on('end', () => {
          const { statusCode = 0, headers } = response
          resolve({ status: statusCode, retryAfter: headers['retry-after'], body: Buffer.concat(chunks) })
        })
      })
      request.end(body)
    })
  }

  function accepted(body: Buffer): ExportResult {
    const partial =
      protocol === 'http/json' ? parsePartialSuccess(body.toString()) : decodePartialSuccess(body)
    if (partial !== undefined) sayRejected(partial)
    return { code: 0 }
  }

  function sayRejected({ rejectedSpans, errorMessage }: PartialSuccess): void {
    rejected += rejectedSpans
    if (performance.now() - rejectionSaidAt < REJECTION_REPORT_INTERVAL_MS) return
    report('warn', `${shown} rejected ${rejected} spans: ${errorMessage}`)
    rejected = 0
    rejectionSaidAt = performance.now()
  }

  function refused(answer: Answer): ExportResult {
    if ('status' in answer) return failure(`${shown} answered ${answer.status}`)
    if (answer.cause === 'absent' && options.isDefault) {
      const message = `nobody listens at ${shown}, so traces go nowhere. To see them, run: npx @throughline/viewer (or set OTEL_EXPORTER_OTLP_ENDPOINT)`
      reportOnce('nobody listens', 'warn', message)
      return { code: 1, error: announced(message) }
    }
    return failure(`${shown} could not be reached: ${reason(answer.failure)}`)
  }

  return {
    setPatience,
    export(spans, done) {
      send(spans).then(done, (error: unknown) =>
        done(failure(`the batch could not be sent: ${String(error)}`)),
      )
    },
    forceFlush: async () => {},
    shutdown: async () => agent.destroy(),
  }
}

function failure(message: string): ExportResult {
  return { code: 1, error: new Error(message) }
}

function causeOf(error: NodeJS.ErrnoException, isUnseen: boolean): 'absent' | 'dropped' | 'stale' {
  // A host with several addresses fails with one error that holds theirs.
  const errors: NodeJS.ErrnoException[] = error instanceof AggregateError ? error.errors : [error]
  if (errors.some(({ code }) => code === 'ECONNREFUSED')) return 'absent'
  return isUnseen && (error.code === 'ECONNRESET' || error.code === 'EPIPE') ? 'stale' : 'dropped'
}

// The message of an AggregateError is empty.
function reason(error: Error): string {
  return error.message || ('code' in error ? String(error.code) : error.name)
}

/** `Retry-After` in either form, seconds or a date, as milliseconds from now. */
function retryAfter(value: string | undefined): number | undefined {
  if (value === undefined) return undefined
  const milliseconds = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now()
  return Number.isNaN(milliseconds) ? undefined : Math.min(Math.max(0, milliseconds), MOST_TIMER_MS)
}
