import {
  Call,
  captureHeaders,
  context,
  errorType,
  expected,
  headersOf,
  MATCH,
  matcher,
  messageOf,
  methodAttribute,
  redactUrl,
  semconv,
  sender,
  SENDING_SHAPE,
  spanName,
  type Attributes,
  type Context,
  type Sender,
  type SendingOptions,
  type Shape,
  type NamedAttributes,
} from '@throughline/core'
import { Unread, type Answered } from './unread.ts'

/** A request as undici knows it. */
export interface HttpRequest {
  readonly method: string
  readonly origin: string | URL
  readonly path: string
}

/** What came back: the status, and the headers with names in lower case. */
export interface HttpResponse {
  readonly statusCode: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}

/** Selects URLs: a string by their beginning, a RegExp, a list of both, or a function. */
export type UrlMatch = string | RegExp | readonly (string | RegExp)[] | ((url: string) => boolean)

type Subject = [url: string, method: string]
type Outcome = [request: HttpRequest, response: HttpResponse | undefined]

/** `ignore` gets `(url, method)`; `attributes` gets the request and, unless it failed, the response. */
export interface TracingOptions extends SendingOptions<Subject, Outcome> {
  /** Headers to record, by name. */
  capture?: { requestHeaders?: string[]; responseHeaders?: string[] } | undefined
  /** Who gets our headers; everybody, where it is left out. */
  propagateTo?: UrlMatch | undefined
}

/** Reads a header by its name in lower case from where this form of tracing has them. */
export type HeaderReader<From> = (from: From, name: string) => string | undefined

/** A request that is to have no span. */
export interface Untraced {
  readonly isTraced: false
  /** The headers to send in place of those of the same name. */
  readonly headers: Record<string, string>
}

export interface RequestTracer {
  /** Begins the span of a request, whose own headers are read `from` there. It may be one that does not record. */
  begin<From>(request: HttpRequest, from: From, read: HeaderReader<From>): Attempt | Untraced
}

const scope = { name: '@throughline/undici', version: '0.1.0' }

const shape: Shape<TracingOptions> = {
  ...SENDING_SHAPE,
  capture: expected(
    'lists of header names',
    "capture: { requestHeaders: ['x-request-id'], responseHeaders: ['content-type'] }",
    (value) => typeof value === 'object' && value !== null && Object.values(value).every(Array.isArray),
  ),
  propagateTo: MATCH("propagateTo: ['https://api.example.com/']"),
}

/** Statuses from here on are errors of the client's or of the server's. */
const FIRST_ERROR = 400
const SLASH = 0x2f
/** More than most services have others to ask. */
const MOST_ORIGINS = 100

const NO_HEADERS: Record<string, string> = {}

/** What all requests of one way of tracing undici have in common. */
class Settings implements RequestTracer {
  readonly send: Sender<Subject, Outcome>
  readonly unread = new Unread()
  readonly requestHeaders: readonly string[]
  readonly responseHeaders: readonly string[]
  readonly #isWelcome: ((url: string) => boolean) | undefined

  constructor(caller: string, options: TracingOptions) {
    const { capture, propagateTo } = options
    this.send = sender<Subject, Outcome, TracingOptions>(
      { scope, text: (url) => url },
      caller,
      options,
      shape,
    )
    this.#isWelcome = matcher<[string]>('propagateTo', byBeginning(propagateTo), (url) => url)
    this.requestHeaders = capture?.requestHeaders?.map((name) => name.toLowerCase()) ?? []
    this.responseHeaders = capture?.responseHeaders?.map((name) => name.toLowerCase()) ?? []
  }

  begin<From>(request: HttpRequest, from: From, read: HeaderReader<From>): Attempt | Untraced {
    const caller = this.send.caller()
    if (caller === undefined) return { isTraced: false, headers: this.#headers(request, context.active()) }
    const attempt = new Attempt(this, caller, request)
    if (this.requestHeaders.length > 0) {
      attempt.captured = {}
      captureHeaders(attempt.captured, semconv.HTTP_REQUEST_HEADER, this.requestHeaders, (name) =>
        read(from, name),
      )
    }
    this.send.begin(attempt)
    const { context: within } = attempt
    const headers = this.#headers(request, within)
    // An ignored one has begun no span, not even one that does not record.
    if (within === caller) return { isTraced: false, headers }
    attempt.headers = headers
    return attempt
  }

  #headers(request: HttpRequest, from: Context): Record<string, string> {
    const sends = this.#isWelcome === undefined || this.#isWelcome(urlOf(request))
    return sends ? headersOf(from) : NO_HEADERS
  }
}

/** One request that is under way, and has a span. */
export class Attempt extends Call<Subject, Outcome> implements Answered {
  readonly isTraced = true
  /** The headers to send in place of those of the same name. */
  headers = NO_HEADERS
  /** Request headers, as attributes. */
  captured: Attributes | undefined = undefined
  answeredAt = 0
  previous: Answered | undefined = undefined
  next: Answered | undefined = undefined
  readonly #settings: Settings
  readonly #request: HttpRequest
  #status = 0
  #response: HttpResponse | undefined = undefined

  constructor(settings: Settings, caller: Context, request: HttpRequest) {
    super(caller)
    this.#settings = settings
    this.#request = request
  }

  override name(): string {
    return spanName(this.#request.method)
  }

  override subject(): Subject {
    return [urlOf(this.#request), this.#request.method]
  }

  override outcome(): Outcome {
    return [this.#request, this.#response]
  }

  protected override build(): Attributes {
    const request = this.#request
    const { method } = request
    const known = methodAttribute(method)
    const url = redactUrl(urlOf(request))
    const { address, port } = serverOf(request)
    // One literal with what nearly every request has, its keys written out: see NamedAttributes.
    const attributes: Attributes =
      address === undefined
        ? ({ 'http.request.method': known, 'url.full': url } satisfies NamedAttributes)
        : ({
            'http.request.method': known,
            'url.full': url,
            'server.address': address,
            'server.port': port,
          } satisfies NamedAttributes)
    if (known !== method) attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
    return this.captured === undefined ? attributes : Object.assign(attributes, this.captured)
  }

  /** The headers of the response have come; they are read only where somebody asks for them. */
  answered<From>(statusCode: number, from: From, read: (from: From) => HttpResponse['headers']): void {
    const { send, unread, responseHeaders } = this.#settings
    this.#status = statusCode
    if (!this.span.isRecording()) return
    this.span.setAttribute(semconv.HTTP_RESPONSE_STATUS_CODE, statusCode)
    if (responseHeaders.length > 0) {
      const headers = read(from)
      const captured: Attributes = {}
      captureHeaders(captured, semconv.HTTP_RESPONSE_HEADER, responseHeaders, (name) => headers[name])
      this.span.setAttributes(captured)
    }
    if (send.asksOutcome) {
      this.#response = {
        statusCode,
        get headers() {
          return read(from)
        },
      }
    }
    unread.remove(this)
    unread.add(this)
  }

  /** The last byte has come. */
  completed(): void {
    this.#settings.unread.remove(this)
    this.#conclude()
  }

  abandoned(): void {
    this.#conclude(this.answeredAt)
  }

  failed(error: unknown): void {
    const { send, unread } = this.#settings
    unread.remove(this)
    // The caller's own abort is no error (semantic conventions, HTTP client spans); a timeout is.
    if (isAbort(error)) send.succeed(this)
    else send.fail(this, failureType(error), messageOf(error), true)
  }

  #conclude(endTime?: number): void {
    const { send } = this.#settings
    if (this.#status < FIRST_ERROR) send.succeed(this, endTime)
    else send.fail(this, String(this.#status), undefined, true, endTime)
  }
}

/** What both ways of tracing undici have in common: the span of one request, from its parts. */
export function requestTracer(caller: string, options: TracingOptions): RequestTracer {
  return new Settings(caller, options)
}

function urlOf({ origin, path }: HttpRequest): string {
  if (!isPath(path)) return path
  const base = String(origin)
  return (base.endsWith('/') ? base.slice(0, -1) : base) + path
}

// A proxy is asked with the whole URL as the path.
function isPath(path: string): boolean {
  return path.charCodeAt(0) === SLASH
}

interface Server {
  readonly address: string | undefined
  readonly port: number | undefined
}

const UNKNOWN: Server = { address: undefined, port: undefined }

/** The servers of the origins that were asked last: taking a URL apart costs 1 µs. */
const servers = new Map<string, Server>()

function serverOf({ origin, path }: HttpRequest): Server {
  if (!isPath(path)) return parsedServer(path)
  const key = String(origin)
  let server = servers.get(key)
  if (server === undefined) {
    server = parsedServer(key)
    if (servers.size >= MOST_ORIGINS) servers.clear()
    servers.set(key, server)
  }
  return server
}

function parsedServer(url: string): Server {
  if (!URL.canParse(url)) return UNKNOWN
  const { protocol, hostname, port } = new URL(url)
  return {
    address: hostname.replace(/^\[|\]$/g, ''),
    port: port === '' ? (protocol === 'https:' ? 443 : 80) : Number(port),
  }
}

function byBeginning(match: UrlMatch | undefined): ((url: string) => boolean) | undefined {
  if (match === undefined || typeof match === 'function') return match
  const tests = (Array.isArray(match) ? match : [match]) as readonly (string | RegExp)[]
  return (url) =>
    tests.some((test) => (typeof test === 'string' ? url.startsWith(test) : url.search(test) !== -1))
}

// What undici and the system report are errors; a reason that is none was given by the caller.
function isAbort(error: unknown): boolean {
  return !(error instanceof Error) || error.name === 'AbortError'
}

function failureType(error: unknown): string | undefined {
  const { code } = error as { code?: unknown }
  return typeof code === 'string' ? code : errorType(error)
}
