import { context } from '@opentelemetry/api'
import * as http from 'node:http'
import * as https from 'node:https'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import { announced, type ExportResult, type SpanExporter } from '../batch.ts'
import { root, suppressTracing } from '../context.ts'
import { report, reportOnce } from '../report.ts'
import { VERSION } from '../resource.ts'
import type { ReadableSpan } from '../span.ts'
import { decodePartialSuccess, encodeProtobuf } from './encode.ts'
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

/** OTLP/HTTP: a larger request is not sent. */
const MOST_REQUEST_BYTES = 64 * 2 ** 20
/** OTLP/HTTP: of a larger response nothing is read. */
const MOST_RESPONSE_BYTES = 4 * 2 ** 20

const compress = promisify(gzip)

type Answer =
  | { status: number; retryAfter: string | undefined; body: Buffer }
  | { failure: Error; isAbsent: boolean }

/** Posts batches as OTLP/HTTP. Its own requests are not traced, and its sockets keep no process alive. */
export function otlpExporter(options: OtlpOptions): OtlpExporter {
  const { protocol, timeoutMillis } = options
  const url = new URL(options.url)
  const client = url.protocol === 'https:' ? https : http
  const agent = new client.Agent({ keepAlive: true, maxSockets: 1 })
  const quiet = suppressTracing(root)
  let patience: Patience = 'patient'
  let hurry = new AbortController()

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
    if (encoded.length > MOST_REQUEST_BYTES) {
      return failure(`a batch of ${encoded.length} bytes is larger than OTLP allows (${MOST_REQUEST_BYTES})`)
    }
    const body = options.compression === 'gzip' ? await compress(encoded) : encoded

    for (let retries = 0; ; retries += 1) {
      const answer = await post(body, deadline)
      if ('status' in answer && answer.status >= 200 && answer.status < 300) return accepted(answer.body)
      const pause = pauseAfter(answer, retries)
      if (pause === undefined || performance.now() + pause > deadline) return refused(answer)
      await wait(pause, undefined, { ref: false, signal: hurry.signal }).catch(() => {})
    }
  }

  // Milliseconds until the next try; undefined for none.
  function pauseAfter(answer: Answer, retries: number): number | undefined {
    if (retries >= MOST_RETRIES || patience === 'once') return undefined
    if ('failure' in answer) {
      if (answer.isAbsent && patience === 'brief') return undefined
    } else if (!RETRYABLE.has(answer.status)) {
      return undefined
    }
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
      const fail = (error: NodeJS.ErrnoException) =>
        resolve({ failure: error, isAbsent: error.code === 'ECONNREFUSED' })
      const left = deadline === Infinity ? 0 : Math.max(1, deadline - performance.now())
      const late =
        left === 0 ? undefined : setTimeout(() => request.destroy(new Error('the export timed out')), left)
      late?.unref()
      const request = client.request(url, { method: 'POST', agent, headers })
      request.on('socket', (socket) => socket.unref())
      request.on('error', fail)
      request.on('close', () => clearTimeout(late))
      request.on('response', (response) => {
        const chunks: Buffer[] = []
        let size = 0
        response.on('data', (chunk: Buffer) => {
          size += chunk.length
          if (size > MOST_RESPONSE_BYTES)
            request.destroy(new Error(`the answer is over ${MOST_RESPONSE_BYTES} bytes`))
          else chunks.push(chunk)
        })
        response.on('error', fail)
        response.on('end', () => {
          const retryAfterHeader = response.headers['retry-after']
          resolve({
            status: response.statusCode ?? 0,
            retryAfter: retryAfterHeader,
            body: Buffer.concat(chunks),
          })
        })
      })
      request.end(body)
    })
  }

  function accepted(body: Buffer): ExportResult {
    const partial =
      protocol === 'http/json' ? parsePartialSuccess(body.toString()) : decodePartialSuccess(body)
    if (partial !== undefined && (partial.rejectedSpans > 0 || partial.errorMessage !== '')) {
      report('warn', `${options.url} rejected ${partial.rejectedSpans} spans: ${partial.errorMessage}`)
    }
    return { code: 0 }
  }

  function refused(answer: Answer): ExportResult {
    if ('status' in answer) return failure(`${options.url} answered ${answer.status}`)
    if (answer.isAbsent && options.isDefault) {
      const message = `nobody listens at ${options.url}, so traces go nowhere. To see them, run: npx @throughline/viewer (or set OTEL_EXPORTER_OTLP_ENDPOINT)`
      reportOnce('nobody listens', 'warn', message)
      return { code: 1, error: announced(message) }
    }
    return failure(`${options.url} could not be reached: ${reason(answer.failure)}`)
  }

  return {
    setPatience,
    export(spans, done) {
      context.with(quiet, () => {
        send(spans).then(done, (error: unknown) =>
          done(failure(`the batch could not be sent: ${String(error)}`)),
        )
      })
    },
    forceFlush: async () => {},
    shutdown: async () => agent.destroy(),
  }
}

function failure(message: string): ExportResult {
  return { code: 1, error: new Error(message) }
}

// A host with several addresses fails with one error that holds theirs.
function reason(error: Error): string {
  return error.message || ('code' in error ? String(error.code) : error.name)
}

/** `Retry-After` in either form, seconds or a date, as milliseconds from now. */
function retryAfter(value: string | undefined): number | undefined {
  if (value === undefined) return undefined
  const seconds = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now()
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds)
}
