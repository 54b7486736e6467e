import {
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
  type Call,
  type SendingOptions,
  type Shape,
} from '@throughline/core'

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

/** `ignore` gets `(url, method)`; `attributes` gets the request and, unless it failed, the response. */
export interface TracingOptions extends SendingOptions<
  [url: string, method: string],
  [request: HttpRequest, response: HttpResponse | undefined]
> {
  /** Headers to record, by name. */
  capture?: { requestHeaders?: string[]; responseHeaders?: string[] } | undefined
  /** Who gets our headers; everybody, where it is left out. */
  propagateTo?: UrlMatch | undefined
}

/** One request that is under way. */
export interface Attempt {
  /** Undefined where the request is to have no span. */
  readonly call: Call | undefined
  /** The headers to send in place of those of the same name. */
  readonly headers: Record<string, string>
  answered(response: HttpResponse): void
  /** The last byte has come. */
  completed(): void
  failed(error: unknown): void
}

export type RequestTracer = (
  request: HttpRequest,
  requestHeader: (name: string) => string | undefined,
) => Attempt

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

// A body that nobody reads never ends: its span then ends at the time of the headers.
const UNREAD_BODY_MS = 30_000

/** What both ways of tracing undici have in common: the span of one request, from its parts. */
export function requestTracer(caller: string, options: TracingOptions): RequestTracer {
  const { capture, propagateTo } = options
  const client = sender<
    [url: string, method: string],
    [request: HttpRequest, response: HttpResponse | undefined],
    TracingOptions
  >({ scope, text: (url) => url }, caller, options, shape)
  const isWelcome = matcher<[string]>('propagateTo', byBeginning(propagateTo), (url) => url)
  const requestHeaders = capture?.requestHeaders?.map((name) => name.toLowerCase()) ?? []
  const responseHeaders = capture?.responseHeaders?.map((name) => name.toLowerCase()) ?? []

  return function begin(request, requestHeader) {
    const { method } = request
    const url = urlOf(request)
    const call = client.begin([url, method], () => spanName(method), startAttributes)
    const sends = isWelcome === undefined || isWelcome(url)
    const headers = sends ? headersOf(call?.context ?? context.active()) : {}
    if (call === undefined) return { call, headers, answered() {}, completed() {}, failed() {} }

    const { span } = call
    let response: HttpResponse | undefined
    let unread: NodeJS.Timeout | undefined

    return {
      call,
      headers,
      answered(given) {
        response = given
        if (!span.isRecording()) return
        const attributes: Attributes = { [semconv.HTTP_RESPONSE_STATUS_CODE]: given.statusCode }
        captureHeaders(
          attributes,
          semconv.HTTP_RESPONSE_HEADER,
          responseHeaders,
          (name) => given.headers[name],
        )
        span.setAttributes(attributes)
        const answeredAt = Date.now()
        unread = setTimeout(() => conclude(answeredAt), UNREAD_BODY_MS).unref()
      },
      completed: () => conclude(),
      failed(error) {
        clearTimeout(unread)
        // The caller's own abort is no error (semantic conventions, HTTP client spans); a timeout is.
        const failure = isAbort(error) ? {} : { failure: failureOf(error) }
        client.conclude(call, { outcome: [request, response], ...failure })
      },
    }

    function conclude(endTime?: number): void {
      clearTimeout(unread)
      const isFailure = response !== undefined && response.statusCode >= 400
      client.conclude(call as Call, {
        outcome: [request, response],
        endTime,
        ...(isFailure ? { failure: { type: String(response?.statusCode) } } : {}),
      })
    }

    function startAttributes(): Attributes {
      const known = methodAttribute(method)
      const attributes: Attributes = {
        [semconv.HTTP_REQUEST_METHOD]: known,
        [semconv.URL_FULL]: redactUrl(url),
      }
      if (known !== method) attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
      Object.assign(attributes, serverOf(url))
      captureHeaders(attributes, semconv.HTTP_REQUEST_HEADER, requestHeaders, requestHeader)
      return attributes
    }
  }
}

function urlOf({ origin, path }: HttpRequest): string {
  // A proxy is asked with the whole URL as the path.
  return path.startsWith('/') ? `${String(origin).replace(/\/$/, '')}${path}` : path
}

function serverOf(url: string): Attributes {
  if (!URL.canParse(url)) return {}
  const { protocol, hostname, port } = new URL(url)
  return {
    [semconv.SERVER_ADDRESS]: hostname.replace(/^\[|\]$/g, ''),
    [semconv.SERVER_PORT]: port === '' ? (protocol === 'https:' ? 443 : 80) : Number(port),
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

function failureOf(error: unknown): { type: string; message: string } {
  const { code } = error as { code?: unknown }
  return { type: typeof code === 'string' ? code : (errorType(error) ?? '_OTHER'), message: messageOf(error) }
}
