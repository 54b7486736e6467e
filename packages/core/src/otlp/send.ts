import { setImmediate as turn, setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import {
  announced,
  countOfLight,
  lossPeriod,
  ownExporter,
  type ExportResult,
  type Handover,
  type Parcel,
  type SpanExporter,
} from '../batch.ts'
import { MOST_TIMER_MS } from '../environment.ts'
import { inOneLine, report, reportOnce, shownName, spansOf } from '../report.ts'
import { VERSION } from '../resource.ts'
import type { ReadableSpan } from '../span.ts'
import {
  connectionTo,
  isNoTls,
  RETRYABLE,
  secretsOf,
  type Answer,
  type Body,
  type Credentials,
  type Headers,
} from './connection.ts'
import { encodeSections, joinSections, type Remainder, type Section } from './encode.ts'
import type * as Json from './json.ts'
import { giveBack } from './memory.ts'
import type { PartialSuccess } from './partial-success.ts'

export interface OtlpOptions {
  /** The whole URL to post to. */
  url: string
  headers: Record<string, string>
  protocol: 'http/protobuf' | 'http/json'
  compression: 'none' | 'gzip'
  /** Milliseconds for one batch, retries included; 0 for no limit. */
  timeoutMillis: number
  /** True if nobody chose the endpoint: it is then no fault that nobody listens there. */
  isDefault: boolean
  /** For https, in PEM: who is trusted in place of the well-known authorities, and who we are. */
  tls?: Credentials
}

/**
 * How long a batch may be tried. `patient`: until its timeout. `brief`, while somebody waits for a flush or the process
 * has nothing left to do: an endpoint that is not there is not tried again. `once`, while a signal ends the process: nothing is.
 */
export type Patience = 'patient' | 'brief' | 'once'

export interface OtlpExporter extends SpanExporter {
  /** @param end when what is on its way will be given up, by `performance.now()`: what would be tried after that fails at once */
  setPatience(patience: Patience, end?: number): void
  /** Says what the collector has rejected, without waiting for the minute to pass. */
  sayRejected(): void
}

/** Statuses about the content of one request: the others of its batch may be taken. What is about us, or the URL, holds for all. */
const REFUSED = new Set([400, 413, 422, 500])
// One policy for all failures that may pass: exponential, with jitter.
const MOST_RETRIES = 5
const FIRST_BACKOFF_MS = 1000
const BACKOFF_FACTOR = 1.5
const MOST_BACKOFF_MS = 5000
const JITTER = 0.2

// What is encoded in about a millisecond: twice what 512 ordinary spans are as protobuf, and as JSON a quarter of them.
const BYTES_AT_ONCE = 512 * 1024
const JSON_WEIGHT_AT_ONCE = 64 * 1024

const SENT: ExportResult = { code: 0 }
/** No answer of two bytes says anything: an empty partial success of protobuf (`0a 00`), and the `{}` of JSON. */
const EMPTY_ANSWER_BYTES = 2
/** The Content-Type of a page, or of a few words: two bytes may be "OK" then. */
const TEXT = /^text\/[^\s;]+/i
const NO_COLLECTOR = '. Is a web page there, and the receiver at another port (4318 as a rule)?'

/** What is appended to a base URL (OTLP exporter, endpoint URLs for OTLP/HTTP). */
export const TRACES_PATH = '/v1/traces'

/** OTLP/HTTP: a request that is larger before compression is not sent. */
const MOST_REQUEST_BYTES = 64 * 2 ** 20
const compress = promisify(gzip)

/** The pause of a batch between two tries. `isAsked`: the collector said for how long. */
interface Pause {
  isAsked: boolean
  /** By `performance.now()`. */
  due: number
  wake: () => void
}

/** Spans that are encoded, and not sent. */
interface Packed extends Parcel {
  /** How many of them could not be encoded. */
  readonly leftOut: number
  /** In bytes. */
  readonly size: number
  readonly sections: readonly Section[]
}

/** An answer that came. */
type Answered = Extract<Answer, { status: number }>

/** The content of one request: spans without those left out. */
type Request = Omit<Packed, 'sections' | 'size'> & { readonly body: Uint8Array }

/** The part of a batch that is still to be sent. */
interface Rest {
  readonly parcels: Packed[]
  spans: readonly ReadableSpan[]
}

/**
 * Posts batches as OTLP/HTTP, each in as many requests as its size asks for. To be run where nothing is traced; its sockets
 * keep no process alive.
 *
 * A batch that was acknowledged, even in part, is not sent again, nor is one that was refused for good. One whose connection
 * broke before the answer came is: OTLP asks for that, since nobody can know whether the collector has seen it. There
 * and only there a span may arrive twice.
 */
export function otlpExporter(options: OtlpOptions): OtlpExporter {
  const { protocol, timeoutMillis } = options
  const url = new URL(options.url)
  // For messages: user names and keys are in the parts left out.
  const shown = url.origin + url.pathname
  const secrets = secretsOf(url, options.headers)
  // Loaded only if wanted. At the start, since Node does not retry a module that it once failed to open.
  const loading = protocol === 'http/json' ? import('./json.ts') : undefined
  loading?.catch(() => {})
  let json: typeof Json | undefined
  const connection = connectionTo(url, headers(), options.tls)
  let patience: Patience = 'patient'
  let lastEnd = Infinity
  let pausing: Pause | undefined
  /** Whether the endpoint has ever answered. */
  let isKnown = false
  let isStopped = false

  function setPatience(next: Patience, end = Infinity): void {
    // Only for the first of several concurrent flushes: waking for each would use up the retries at once.
    const isFirst = next === 'brief' && patience === 'patient'
    patience = next
    lastEnd = end
    // A pause that the collector asked for is only cut short for the last try, or where there will be none.
    if (next === 'once' || (pausing?.isAsked === true ? pausing.due > end : isFirst)) pausing?.wake()
  }

  async function pause(due: number, isAsked: boolean, late?: AbortSignal): Promise<void> {
    const alarm = new AbortController()
    const wake = () => alarm.abort()
    pausing = { isAsked, due, wake }
    late?.addEventListener('abort', wake)
    await wait(due - performance.now(), undefined, { ref: false, signal: alarm.signal }).catch(() => {})
    late?.removeEventListener('abort', wake)
    pausing = undefined
  }

  /**
   * A batch in requests of a size that no app feels, each in a turn of the loop. The first that fails is the last, but where it
   * is refused for what it holds.
   */
  async function send(
    spans: readonly ReadableSpan[],
    late: AbortSignal | undefined,
    handover: Handover,
  ): Promise<ExportResult> {
    if (loading !== undefined) json ??= await loading
    const deadline = timeoutMillis > 0 ? performance.now() + timeoutMillis : Infinity
    const parcels = handover.packed as readonly Packed[]
    const total = spans.length + parcels.reduce((sum, { count }) => sum + count, 0)
    const rest: Rest = { parcels: [...parcels], spans }
    let lost = 0
    let settled = 0
    let refusal: ExportResult | undefined
    while (settled < total) {
      if (settled > 0) await turn()
      const { body, count, leftOut } = nextRequest(rest)
      const sent = count - leftOut
      settled += count
      lost += leftOut
      const result = sent === 0 ? SENT : await sendRequest(body, sent, deadline, late)
      if (result.code !== 0) {
        if (result.isRefused !== true) return { ...result, lost: lost + sent + total - settled }
        refusal ??= result
        lost += sent
      }
      handover.delivered = settled - lost
    }
    if (lost === 0) return SENT
    return refusal === undefined ? { ...SENT, lost } : { ...refusal, isRefused: handover.delivered > 0, lost }
  }

  /** Takes from the rest what goes into one request: what is packed already, and then as many of the spans as are light enough. */
  function nextRequest(rest: Rest): Request {
    if (json !== undefined) return jsonRequest(rest, json)
    const sections: Section[] = []
    const lent: Uint8Array[] = []
    let size = 0
    let count = 0
    let leftOut = 0
    for (;;) {
      if (rest.parcels.length === 0 && rest.spans.length > 0) {
        const later: ReadableSpan[] = []
        rest.parcels.push(pack(rest.spans, later))
        rest.spans = later
      }
      const [parcel] = rest.parcels
      if (parcel === undefined || (count > 0 && size + parcel.size > BYTES_AT_ONCE)) break
      rest.parcels.shift()
      sections.push(...parcel.sections)
      // All sections of a parcel share one memory.
      const [first] = parcel.sections
      if (first !== undefined) lent.push(first.spans)
      size += parcel.size
      count += parcel.count
      leftOut += parcel.leftOut
    }
    const body = joinSections(sections)
    for (const memory of lent) giveBack(memory)
    return { body, count, leftOut }
  }

  function jsonRequest(rest: Rest, { encodeJson }: NonNullable<typeof json>): Request {
    const count = countOfLight(rest.spans, JSON_WEIGHT_AT_ONCE)
    const remainder: Remainder = { later: [], leftOut: 0 }
    const body = Buffer.from(encodeJson(rest.spans.slice(0, count), remainder))
    rest.spans = rest.spans.slice(count)
    return { body, count, leftOut: remainder.leftOut }
  }

  function pack(spans: readonly ReadableSpan[], later: ReadableSpan[]): Packed {
    const remainder: Remainder = { later, leftOut: 0 }
    const sections = encodeSections(spans, BYTES_AT_ONCE, remainder)
    const size = sections.reduce((sum, { spans: { length } }) => sum + length, 0)
    return { count: spans.length - later.length, leftOut: remainder.leftOut, size, sections }
  }

  async function sendRequest(
    encoded: Uint8Array,
    count: number,
    deadline: number,
    late?: AbortSignal,
  ): Promise<ExportResult> {
    // Of one span, but where another library's hold what nobody can weigh. It is never sent.
    if (encoded.length > MOST_REQUEST_BYTES) {
      return failure(`a request of ${encoded.length} bytes is larger than ${MOST_REQUEST_BYTES}`, true)
    }
    const bytes = options.compression === 'gzip' ? await compress(encoded) : encoded
    const body: Body = { bytes, isHeld: false }
    const result = await tryRequest(body, count, deadline, late)
    if (!body.isHeld) giveBack(encoded)
    return result
  }

  async function tryRequest(
    body: Body,
    count: number,
    deadline: number,
    late: AbortSignal | undefined,
  ): Promise<ExportResult> {
    let retries = 0
    for (;;) {
      if (isStopped) return failure('the exporter is shut down')
      const answer = await connection.post(body, deadline, late)
      if ('status' in answer) isKnown = true
      if ('status' in answer && answer.status >= 200 && answer.status < 300) {
        return accepted(answer, count)
      }
      // The collector had already closed the idle connection: that does not count as a try.
      if ('failure' in answer && answer.cause === 'stale') continue
      const told = 'status' in answer ? retryAfter(answer.retryAfter) : 0
      const due = performance.now() + Math.max(told, backoff(retries))
      const isWorthIt = retries < MOST_RETRIES && due <= Math.min(deadline, lastEnd)
      if (!isWorthIt || !mayPass(answer) || late?.aborted === true) return refused(answer)
      await pause(due, told > 0, late)
      // The end has come nearer meanwhile.
      if (told > 0 && due > lastEnd && patience !== 'once') return refused(answer)
      retries += 1
    }
  }

  /** Whether a retry may succeed, and there is time for one. */
  function mayPass(answer: Answer): boolean {
    if (patience === 'once') return false
    if ('status' in answer) return RETRYABLE.has(answer.status)
    if (answer.cause === 'absent') return patience === 'patient' && !isNobody()
    return answer.cause === 'dropped'
  }

  /** The same for all requests. */
  function headers(): Headers {
    return {
      'User-Agent': `throughline/${VERSION} OTel-OTLP-Exporter-JavaScript/${VERSION}`,
      Connection: 'keep-alive',
      // Without this header any encoding may be used (RFC 9110, 12.5.3), and an answer is only a few bytes.
      'Accept-Encoding': 'identity',
      ...options.headers,
      'Content-Type': protocol === 'http/json' ? 'application/json' : 'application/x-protobuf',
      ...(options.compression === 'gzip' && { 'Content-Encoding': 'gzip' }),
    }
  }

  const form = protocol === 'http/json' ? 'JSON' : 'protobuf'

  async function accepted(
    { status, body, contentType, encodings }: Answered,
    count: number,
  ): Promise<ExportResult> {
    // Nearly every answer says nothing: what reads the others is loaded with the first that does.
    if (body.length === 0) return SENT
    const [text] = TEXT.exec(contentType ?? '') ?? []
    if (body.length <= EMPTY_ANSWER_BYTES && text === undefined) return SENT
    const unread = `what ${shown} answered cannot be read`
    if (encodings.length > 0) {
      sayUnread(`${unread}: expected no Content-Encoding, received ${shownName(encodings.join(', '))}`)
      return SENT
    }
    try {
      const { readPartialSuccess } = await import('./partial-success.ts')
      const partial = readPartialSuccess(body, contentType, form)
      if (partial !== undefined) reject(partial, count)
    } catch (error) {
      if (text === undefined) sayUnread(`${unread}: ${told(reason(error as Error))}`)
      else
        sayUnread(
          `${shown} answered ${status} with ${shownName(text)}: expected an OTLP response`,
          NO_COLLECTOR,
        )
    }
    return SENT
  }

  /** The spans may have been taken: the status says so. */
  function sayUnread(what: string, hint = ''): void {
    reportOnce('answer', 'warn', `${what}; whether it took all spans is not known${hint}`)
  }

  let rejected = 0
  let complaint = ''
  const rejections = lossPeriod(sayRejected)

  function reject({ rejectedSpans, errorMessage }: PartialSuccess, count: number): void {
    // A collector cannot have rejected more than it was sent.
    rejected += Math.min(rejectedSpans, count)
    complaint = told(errorMessage)
    if (rejections.open()) sayRejected()
  }

  function sayRejected(): void {
    const detail = complaint === '' ? '' : `: ${complaint}`
    if (rejected > 0) report('warn', `${shown} rejected ${spansOf(rejected)}${detail}`)
    else if (complaint !== '') report('warn', `${shown} took all spans, and warns${detail}`)
    rejected = 0
    complaint = ''
  }

  /** A collector's words for one line of a log, where the keys that it may repeat do not belong. */
  function told(words: string): string {
    return inOneLine(
      secrets.reduce((text, secret) => text.replaceAll(secret, '?'), words),
      MOST_SHOWN,
    )
  }

  /** Whether there is no collector at all: one that has answered once is expected to come back. */
  function isNobody(): boolean {
    return options.isDefault && !isKnown
  }

  async function refused(answer: Answer): Promise<ExportResult> {
    if ('status' in answer) {
      const { status } = answer
      const why = [await whyOf(answer), hintFor(status)].filter((each) => each !== '').join('; ')
      return failure(`${shown} answered ${status}${why && `: ${why}`}`, REFUSED.has(status))
    }
    if (answer.cause === 'absent' && isNobody()) {
      const message = `nobody listens at ${shown}, so traces go nowhere. To see them, run: npx @throughline/viewer (or set OTEL_EXPORTER_OTLP_ENDPOINT)`
      reportOnce('nobody listens', 'warn', message)
      return { code: 1, error: announced(message) }
    }
    const why = reason(answer.failure)
    if (answer.cause === 'unread') return failure(`what ${shown} answered ${told(why)}`)
    return failure(`${shown} could not be reached: ${why}`)
  }

  /** What a collector says of its refusal; of one to be asked again only the head may have come. */
  async function whyOf({ body, contentType, encodings }: Answered): Promise<string> {
    if (body.length === 0 || encodings.length > 0) return ''
    try {
      const { readRefusal } = await import('./partial-success.ts')
      return told(readRefusal(body, contentType, form))
    } catch {
      return ''
    }
  }

  /** For 401 and 403: where credentials belong. For 404: the path is missing or doubled if the wrong one of two variables was set. */
  function hintFor(status: number): string {
    if (status === 401 || status === 403)
      return 'OTEL_EXPORTER_OTLP_HEADERS, or start({ headers }), authenticates'
    const isMistaken = url.pathname === '/' || url.pathname.endsWith(`${TRACES_PATH}${TRACES_PATH}`)
    if (status !== 404 || !isMistaken) return ''
    return `${TRACES_PATH} is appended to OTEL_EXPORTER_OTLP_ENDPOINT and to start({ endpoint }), and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is used as it is`
  }

  async function shutdown(): Promise<void> {
    isStopped = true
    setPatience('once')
    connection.close()
    rejections.close()
  }

  return {
    setPatience,
    sayRejected: rejections.close,
    [ownExporter]: protocol === 'http/protobuf' ? { pack } : {},
    export(spans, done, late, handover = { packed: [], delivered: 0 }) {
      send(spans, late, handover).then(done, (error: unknown) =>
        done(failure(`the batch could not be sent: ${String(error)}`)),
      )
    },
    forceFlush: async () => {},
    shutdown,
  }
}

/** Minimum milliseconds before the next try, whatever the collector said: with a fast clock its date may be past. */
function backoff(retries: number): number {
  const pause = Math.min(FIRST_BACKOFF_MS * BACKOFF_FACTOR ** retries, MOST_BACKOFF_MS)
  return pause * (1 - JITTER + Math.random() * 2 * JITTER)
}

function failure(message: string, isRefused?: boolean): ExportResult {
  return { code: 1, error: new Error(message), ...(isRefused === true && { isRefused }) }
}

// An AggregateError's message is empty, and OpenSSL's end with a newline.
function reason(error: Error): string {
  const code = 'code' in error ? String(error.code) : undefined
  if (isNoTls(error)) return 'what answers there speaks no TLS; for example http:// in the place of https://'
  return inOneLine(error.message.trim() || (code ?? error.name), MOST_SHOWN)
}

/** A collector's message is for one line of a log. */
const MOST_SHOWN = 1024

const SECONDS = /^\s*\d+\s*$/
/** The three forms of a date in HTTP begin with the day (RFC 9110, 5.6.7). `Date.parse` would take `-5` for one, too. */
const HTTP_DATE = /^\s*(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)/

/** `Retry-After` in either form, seconds or a date, as milliseconds from now; 0 where it is neither, or past. */
function retryAfter(value = ''): number {
  let milliseconds = 0
  if (SECONDS.test(value)) milliseconds = Number(value) * 1000
  // The oldest of the three forms lacks the GMT that it means.
  else if (HTTP_DATE.test(value)) {
    milliseconds = Date.parse(value.includes('GMT') ? value : `${value} GMT`) - Date.now()
  }
  return Number.isNaN(milliseconds) ? 0 : Math.min(Math.max(0, milliseconds), MOST_TIMER_MS)
}
