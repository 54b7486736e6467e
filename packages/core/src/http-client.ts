import { context, SpanKind, type Attributes, type Context } from '@opentelemetry/api'
import { sender, SENDING_SHAPE, type SendingOptions } from './client.ts'
import { captureHeaders, lowerCased, withOldNames } from './http.ts'
import {
  HttpAttempt,
  type Outcome,
  type Settings,
  type Subject,
  type WatchBody,
} from './http-client/attempt.ts'
import {
  headerChanges,
  NO_CHANGES,
  plainChanges,
  type HeaderChanges,
  type HeaderReader,
  type HeadersRule,
} from './http-client/headers.ts'
import { urlOf, type HttpRequest } from './http-client/origin.ts'
import { Unread } from './http-client/unread.ts'
import type { DurationMetric } from './metrics.ts'
import {
  BOOLEAN,
  CAPTURE,
  choice,
  expected,
  FUNCTION,
  guarded,
  type HeadersToCapture,
  isStrings,
  MATCH,
  matcher,
  type Match,
  type Shape,
} from './options.ts'
import * as semconv from './semconv.ts'
import type { InstrumentationScope } from './span.ts'

export type { HttpAttempt, HttpResponse } from './http-client/attempt.ts'
export type { HeaderChanges, HeaderReader, HeadersRule } from './http-client/headers.ts'
export { headerValue } from './http-client/headers.ts'
export type { HttpRequest } from './http-client/origin.ts'

/** Selects URLs: a string by their beginning, with the scheme, a RegExp, a list of both, or a function. */
export type UrlMatch = Match<[url: string]>

/** `ignore` gets `(url, method)`; `attributes` gets the request and, unless it failed, the response. */
export interface HttpClientOptions extends SendingOptions<Subject, Outcome> {
  /** Headers to record, by name. */
  capture?: HeadersToCapture | undefined
  /** Whether our headers take the place of trace headers that a request has already (the default), or those are kept. */
  headers?: HeadersRule | undefined
  /** The URLs that get our headers; by default all. */
  propagateTo?: UrlMatch | undefined
  /** Query keys whose values are not shown, in place of the conventions' list. Case counts. */
  redactQueryKeys?: readonly string[] | undefined
  /** `url.template` of a request, which its span is then named by: `/users/{id}`; undefined for one that has none. */
  urlTemplate?: ((url: string, method: string) => string | undefined) | undefined
  /** Whether the span gets an event when the response begins to arrive. */
  firstByteEvent?: boolean | undefined
}

/** A request that is to have no span. */
export interface Untraced {
  readonly isTraced: false
  headers: HeaderChanges
  /** The caller's. */
  readonly context: Context
}

/** What traces the requests of one client library. */
export interface HttpClient {
  /**
   * Begins a request, whose own headers are read from `from`. The end of one that `isOpen` must be reported once, by
   * `completed`, `aborted` or `failed`.
   */
  begin<From>(request: HttpRequest, from: From, read: HeaderReader<From>): HttpAttempt | Untraced
  /**
   * `begin` for a client whose headers can be changed until they are sent: there are none yet. `complete` must be called just
   * before they are sent.
   */
  open(request: HttpRequest): HttpAttempt | Untraced
  /** Takes the headers of an opened request: records them if wanted, and returns our changes. */
  complete<From>(
    opened: HttpAttempt | Untraced,
    request: HttpRequest,
    from: From,
    read: HeaderReader<From>,
  ): HeaderChanges
}

/** What the options of a client of HTTP must be. */
const HTTP_CLIENT_SHAPE: Shape<HttpClientOptions> = {
  ...SENDING_SHAPE,
  ignore: MATCH(
    "ignore: ['https://api.example.com/health', /^https:\\/\\/internal\\./]",
    'a URL from http:// or https:// to its path',
    /^https?:\/\/[^/?#]+\//,
  ),
  capture: CAPTURE,
  headers: choice('headers', ['replace', 'keep']),
  propagateTo: MATCH(
    "propagateTo: ['https://api.example.com/']",
    'the beginning of a URL, from its scheme on',
    /^(?:https?:\/\/.*|https?:?\/?)?$/,
  ),
  redactQueryKeys: expected('a list of query keys', "redactQueryKeys: ['token', 'sig']", isStrings),
  urlTemplate: FUNCTION("urlTemplate: (url) => (url.includes('/users/') ? '/users/{id}' : undefined)"),
  firstByteEvent: BOOLEAN('firstByteEvent'),
}

const DURATION: DurationMetric = {
  name: semconv.HTTP_CLIENT_REQUEST_DURATION,
  description: 'Duration of HTTP client requests.',
  old: {
    area: 'http',
    name: semconv.OLD_HTTP_CLIENT_DURATION,
    description: 'Measures the duration of outbound HTTP requests.',
    attributes: oldAttributes,
  },
}

/**
 * The seam for HTTP clients: each request on the wire is a CLIENT span, with one trace in its headers. A client that does not
 * call `dataCame` itself passes `watchBody`.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function httpClient(
  scope: InstrumentationScope,
  wrapper: string,
  options: HttpClientOptions,
  watchBody?: WatchBody,
): HttpClient {
  const send = sender<Subject, Outcome, HttpClientOptions>(
    { scope, text: (url) => url, isText: isUrl, duration: DURATION },
    wrapper,
    options,
    HTTP_CLIENT_SHAPE,
  )
  const { capture, headers: rule = 'replace', propagateTo, redactQueryKeys } = options
  const requestHeaders = lowerCased(capture?.requestHeaders)
  const isWelcome = matcher<[string]>('propagateTo', propagateTo, (url) => url, isBeginning)
  const settings: Settings = {
    send,
    unread: new Unread(),
    responseHeaders: lowerCased(capture?.responseHeaders),
    redactedKeys: redactQueryKeys && new Set(redactQueryKeys),
    templateOf: guarded('urlTemplate', options.urlTemplate),
    marksFirstByte: options.firstByteEvent === true,
    watchBody,
  }

  function open(request: HttpRequest): HttpAttempt | Untraced {
    const caller = send.caller()
    if (caller === undefined) return { isTraced: false, headers: NO_CHANGES, context: context.active() }
    const attempt = new HttpAttempt(settings, caller, request)
    const isOpen = send.begin(attempt)
    // An ignored request has no span at all, not even a non-recording one.
    return isOpen || attempt.context !== caller
      ? attempt
      : { isTraced: false, headers: NO_CHANGES, context: caller }
  }

  function complete<From>(
    opened: HttpAttempt | Untraced,
    request: HttpRequest,
    from: From,
    read: HeaderReader<From>,
  ): HeaderChanges {
    if (requestHeaders.length > 0 && opened.isTraced && opened.span.isRecording()) {
      const captured: Attributes = {}
      captureHeaders(captured, semconv.HTTP_REQUEST_HEADER, requestHeaders, (name) => shown(read(from, name)))
      opened.span.setAttributes(captured)
    }
    const sends = isWelcome === undefined || isWelcome(urlOf(request))
    opened.headers = sends ? changesOf(opened, from, read) : NO_CHANGES
    return opened.headers
  }

  function changesOf<From>(
    opened: HttpAttempt | Untraced,
    from: From,
    read: HeaderReader<From>,
  ): HeaderChanges {
    const plain = opened.isTraced && rule === 'replace' ? plainChanges(opened.caller, opened.span) : undefined
    return plain ?? headerChanges(opened.context, rule, from, read)
  }

  return {
    begin(request, from, read) {
      const opened = open(request)
      complete(opened, request, from, read)
      return opened
    },
    open,
    complete,
  }
}

function shown(header: unknown): string | string[] | undefined {
  if (header === undefined) return undefined
  return Array.isArray(header) ? header.map(String) : String(header)
}

/** A text that has no query is a URL with any. */
function isUrl(given: string, url: string): boolean {
  return url === given || (url[given.length] === '?' && !given.includes('?') && url.startsWith(given))
}

function isBeginning(given: string, url: string): boolean {
  return url.startsWith(given)
}

function oldAttributes(attributes: Attributes): Attributes {
  const all = withOldNames(attributes, SpanKind.CLIENT)
  return Object.fromEntries(Object.entries(all).filter(([name]) => !Object.hasOwn(attributes, name)))
}
