import {
  context,
  defaultTextMapGetter,
  propagation,
  SpanKind,
  SpanStatusCode,
  trace,
  TraceFlags,
  type Attributes,
  type Context,
  type Link,
  type Span,
} from '@opentelemetry/api'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { now, toHrTime } from './clock.ts'
import { emitIn, ignoreTracing, rpcMetadata, withSpan, type RpcMetadata } from './context.ts'
import { tracerFor } from './current.ts'
import { captureHeaders, pathOf, serverAttributes, spanName } from './http.ts'
import { randomIds } from './ids.ts'
import {
  BOOLEAN,
  expected,
  FUNCTION,
  guarded,
  MATCH,
  matcher,
  validated,
  type Match,
  type Shape,
} from './options.ts'
import { reportOnce } from './report.ts'
import { VERSION } from './resource.ts'
import * as semconv from './semconv.ts'
import { errorType, messageOf, type InstrumentationScope } from './span.ts'
import { formatTraceparent } from './trace-context.ts'
import { LazyOptions } from './tracer.ts'

/** What becomes of the trace that a request brings along. */
export type Inbound = 'continue' | 'restart' | 'ignore'

/**
 * The options of everything that receives requests. `Subject` is what the framework calls a request, `Given` what a
 * function of the app gets when the response has closed.
 */
export interface ReceivingOptions<Subject, Given extends unknown[]> {
  /** Requests that get no span, by a function or by their path; the trace they bring along is passed on as it is. */
  ignore?: Match<[Subject]> | undefined
  /** Attributes to add when the span ends. */
  attributes?: ((...given: Given) => Attributes) | undefined
  /** Headers to record, by name. */
  capture?: { requestHeaders?: string[]; responseHeaders?: string[] } | undefined
  /** The span's name, asked when the span ends. */
  spanName?: ((...given: Given) => string) | undefined
  /** `'continue'` the trace that comes in, `'restart'` with a new one linked to it, or `'ignore'` it. */
  inbound?: Inbound | ((subject: Subject) => Inbound) | undefined
  /** Whether to believe Forwarded and X-Forwarded-* headers. */
  trustProxy?: boolean | undefined
  /** Whether to answer with `Server-Timing: trace;desc=<traceparent>`. */
  serverTiming?: boolean | undefined
}

/** What the seam must know of a framework. */
export interface Framework<Subject, Given extends unknown[]> {
  readonly scope: InstrumentationScope
  /** What the app's functions are given. */
  given(subject: Subject, response: ServerResponse): Given
  /** The pattern that the router matched, mount points included; asked when the response has closed. */
  route?(subject: Subject): string | undefined
}

/** Runs `run`, which hands the request on, inside a SERVER span; returns what it returns. */
export type Receive<Subject> = <T>(
  request: IncomingMessage,
  response: ServerResponse,
  subject: Subject,
  run: () => T,
) => T

interface Exchange {
  readonly span: Span
  readonly end: (exchange: Exchange) => void
  hasEnded: boolean
  isComplete: boolean
  error: unknown
  errorTicks: number
}

// Shared by all copies of this package: a request has one SERVER span, however often tracing is mounted.
const EXCHANGE = Symbol.for('throughline.exchange')

type Received = IncomingMessage & { [EXCHANGE]?: Exchange | null }

const INBOUND = new Set<unknown>(['continue', 'restart', 'ignore'])

/** `error.type` of a request whose client went away before the answer was complete. */
const ABORTED = 'aborted'

function shape<Subject, Given extends unknown[]>(): Shape<ReceivingOptions<Subject, Given>> {
  return {
    ignore: MATCH("ignore: ['/health', /^\\/assets\\//]"),
    attributes: FUNCTION("attributes: () => ({ 'app.tenant': 'acme' })"),
    capture: expected(
      'lists of header names',
      "capture: { requestHeaders: ['x-request-id'], responseHeaders: ['content-type'] }",
      isCapture,
    ),
    spanName: FUNCTION("spanName: () => 'GET /orders'"),
    inbound: expected(
      "'continue', 'restart', 'ignore' or a function that returns one of them",
      "inbound: 'restart'",
      (value) => typeof value === 'function' || INBOUND.has(value),
    ),
    trustProxy: BOOLEAN('trustProxy'),
    serverTiming: BOOLEAN('serverTiming'),
  }
}

/**
 * The inbound seam: takes the trace context from the request's headers, starts the SERVER span, runs the framework in
 * its context, and ends it when the response has closed, with the route and the status as they are then.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function receiver<Subject, Given extends unknown[]>(
  framework: Framework<Subject, Given>,
  options: ReceivingOptions<Subject, Given> = {},
): Receive<Subject> {
  validated(`${framework.scope.name}: tracing()`, shape<Subject, Given>(), options)
  const { inbound = 'continue', trustProxy = false, serverTiming = false } = options
  const tracer = tracerFor(framework.scope)
  const requestHeaders = lowerCase(options.capture?.requestHeaders)
  const responseHeaders = lowerCase(options.capture?.responseHeaders)
  const moreAttributes = guarded('attributes', options.attributes)
  const nameOf = guarded('spanName', options.spanName)
  const inboundOf = typeof inbound === 'function' ? guarded('inbound', inbound) : () => inbound
  const routeOf = guarded('route', framework.route)
  const isIgnored =
    typeof options.ignore === 'function' ? matcher<[Subject]>('ignore', options.ignore, () => '') : undefined
  const isIgnoredPath =
    typeof options.ignore === 'function'
      ? undefined
      : matcher<[string]>('ignore', options.ignore, (path) => path)

  return function receive(request, response, subject, run) {
    const received = request as Received
    if (received[EXCHANGE] !== undefined) return run()
    let scope: Context
    try {
      scope = begin(received, response, subject)
    } catch (error) {
      reportOnce(`receive:${framework.scope.name}`, 'error', 'a request could not be traced', error)
      return run()
    }
    return context.with(scope, run)
  }

  /** The context for the request; from here on its listeners run in it, and its close ends the span. */
  function begin(request: Received, response: ServerResponse, subject: Subject): Context {
    // First of all: with the default start come the propagator and the context that the rest relies on.
    const maker = tracer()
    const active = context.active()
    const instrumented = rpcMetadata(active)
    if (instrumented?.span !== undefined) return enrich(request, response, subject, active, instrumented)

    // What is current here is at best what was current when the server was made: the parent comes from the headers.
    const base = trace.getSpan(active) === undefined ? active : withSpan(active, undefined)
    const extracted = propagation.extract(base, request.headers, defaultTextMapGetter)
    if (isIgnored?.(subject) === true || isIgnoredPath?.(pathOf(request)) === true) {
      return ignored(request, response, extracted)
    }

    const treatment = inboundOf?.(subject) ?? 'continue'
    const parent = treatment === 'continue' ? extracted : base
    const started = new LazyOptions(
      SpanKind.SERVER,
      () => serverAttributes(request, trustProxy, requestHeaders),
      treatment === 'restart' ? linkTo(extracted) : undefined,
    )
    const span = maker.startSpan(spanName(request.method ?? ''), started, parent)
    const scope = withSpan(parent, span)
    const exchange = exchangeOf(span, end)
    request[EXCHANGE] = exchange
    emitIn(scope, request, () => {
      if (isForsaken(request, response)) end(exchange)
    })
    emitIn(scope, response, () => end(exchange))
    if (responseHeaders.length > 0) rememberHeaders(response)
    if (serverTiming) announce(response, span)
    return scope

    function end(ending: Exchange): void {
      if (ending.hasEnded) return
      ending.hasEnded = true
      if (!span.isRecording()) return
      conclude(ending, request, response, subject)
      span.end()
    }
  }

  /** The official HTTP instrumentation has made the SERVER span and will end it: what we know better is added to it. */
  function enrich(
    request: Received,
    response: ServerResponse,
    subject: Subject,
    active: Context,
    metadata: RpcMetadata,
  ): Context {
    const exchange = exchangeOf(metadata.span, end)
    request[EXCHANGE] = exchange
    emitIn(active, request)
    emitIn(active, response, () => end(exchange))
    if (responseHeaders.length > 0) rememberHeaders(response)
    return active

    function end(ending: Exchange): void {
      if (ending.hasEnded) return
      ending.hasEnded = true
      const route = routeOf?.(subject)
      if (route !== undefined) metadata.route = route
      if (metadata.span.isRecording()) conclude(ending, request, response, subject)
    }
  }

  // Called while the app's own events are on their way: nothing may leave here.
  function conclude(exchange: Exchange, request: Received, response: ServerResponse, subject: Subject): void {
    try {
      describe(exchange, request, response, subject)
    } catch (error) {
      reportOnce(
        `conclude:${framework.scope.name}`,
        'error',
        'the end of a request could not be described',
        error,
      )
    }
  }

  function describe(exchange: Exchange, request: Received, response: ServerResponse, subject: Subject): void {
    const { span } = exchange
    const attributes: Attributes = {}
    const route = routeOf?.(subject)
    if (route !== undefined) attributes[semconv.HTTP_ROUTE] = route
    const wasSent = response.headersSent
    if (wasSent) attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = response.statusCode
    captureHeaders(attributes, semconv.HTTP_RESPONSE_HEADER, responseHeaders, (name) =>
      response.getHeader(name),
    )
    span.setAttributes(attributes)
    if (route !== undefined) span.updateName(spanName(request.method ?? '', route))

    // A response of HTTP/2 says that it is finished also when it was cut off: only the app can have ended it.
    const isComplete = exchange.isComplete || (response.writableEnded && response.writableFinished)
    if (!isComplete) span.setAttribute(semconv.INCOMPLETE, true)
    if (!isComplete || response.statusCode >= 500)
      fail(exchange, isComplete ? response.statusCode : undefined)

    const given = framework.given(subject, response)
    const more = moreAttributes?.(...given)
    if (typeof more === 'object' && more !== null) span.setAttributes(more)
    const name = nameOf?.(...given)
    if (typeof name === 'string') span.updateName(name)
  }
}

/**
 * Says which error a request met. It is recorded on the SERVER span when the request ends in failure; an error that the
 * app recovered from is not.
 */
export function recordError(request: IncomingMessage, error: unknown): void {
  const exchange = (request as Received)[EXCHANGE]
  if (exchange === undefined || exchange === null || exchange.error !== undefined) return
  exchange.error = error
  exchange.errorTicks = now()
}

/** Ends the SERVER span of a request whose response is complete, for responses that do not close, or say so too late. */
export function endRequest(request: IncomingMessage): void {
  const exchange = (request as Received)[EXCHANGE]
  if (exchange === undefined || exchange === null) return
  exchange.isComplete = true
  exchange.end(exchange)
}

function exchangeOf(span: Span, end: Exchange['end']): Exchange {
  return { span, end, hasEnded: false, isComplete: false, error: undefined, errorTicks: 0 }
}

type Plain = [request: IncomingMessage, response: ServerResponse]

const plain: Framework<IncomingMessage, Plain> = {
  scope: { name: '@throughline/core', version: VERSION },
  given: (request, response) => [request, response],
}

const receivers = new WeakMap<object, Receive<IncomingMessage>>()
const NO_OPTIONS = {}

/**
 * Traces one request of a plain `node:http` server, or of a framework that there is no package for: runs `run` inside
 * the request's SERVER span and returns what it returns. An error that it throws or rejects with is recorded.
 *
 * @param options are read once for each object: keep it outside of the handler.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 * @example
 * createServer((req, res) => traceRequest(req, res, () => handle(req, res)))
 */
export function traceRequest<T>(
  request: IncomingMessage,
  response: ServerResponse,
  run: () => T,
  options: ReceivingOptions<IncomingMessage, Plain> = NO_OPTIONS,
): T {
  let receive = receivers.get(options)
  if (receive === undefined) {
    receive = receiver(plain, options)
    receivers.set(options, receive)
  }
  return receive(request, response, request, () => {
    try {
      const result = run()
      // The caller's promise settles as the one that `run` made: a rejection that nobody handles still surfaces, once.
      if (result instanceof Promise) return watched(request, result) as T
      return result
    } catch (error) {
      recordError(request, error)
      throw error
    }
  })
}

async function watched<T>(request: IncomingMessage, result: Promise<T>): Promise<T> {
  try {
    return await result
  } catch (error) {
    recordError(request, error)
    throw error
  }
}

/** No span here and none from our clients underneath; what came in goes out as it came, or else an unsampled trace. */
function ignored(request: Received, response: ServerResponse, extracted: Context): Context {
  request[EXCHANGE] = null
  const carried = trace.getSpan(extracted) === undefined ? withSpan(extracted, unsampledSpan()) : extracted
  const scope = ignoreTracing(carried)
  emitIn(scope, request)
  emitIn(scope, response)
  return scope
}

function unsampledSpan(): Span {
  const traceId = randomIds.generateTraceId()
  return trace.wrapSpanContext({ traceId, spanId: randomIds.generateSpanId(), traceFlags: TraceFlags.NONE })
}

function fail({ span, error, errorTicks }: Exchange, status: number | undefined): void {
  const seen = errorType(error)
  const wasSeen = error !== undefined
  const message = wasSeen ? messageOf(error) : undefined
  if (error instanceof Error) span.recordException(error, toHrTime(errorTicks))
  else if (message !== undefined) span.recordException(message, toHrTime(errorTicks))
  span.setAttribute(semconv.ERROR_TYPE, seen ?? (status === undefined ? ABORTED : String(status)))
  span.setStatus(
    message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
  )
}

function linkTo(extracted: Context): Link[] | undefined {
  const spanContext = trace.getSpanContext(extracted)
  return spanContext === undefined ? undefined : [{ context: spanContext }]
}

// A response that waits behind another one on its connection is not told when the client leaves; its request is.
function isForsaken(request: IncomingMessage, response: ServerResponse): boolean {
  return response.socket === null && !response.writableFinished && request.socket.destroyed
}

// Headers that are all given to `writeHead` cannot be asked for later, unless the response had one of its own before.
function rememberHeaders(response: ServerResponse): void {
  if (response.headersSent || response.getHeaderNames().length > 0) return
  response.setHeader('server-timing', '')
  response.removeHeader('server-timing')
}

function announce(response: ServerResponse, span: Span): void {
  if (!response.headersSent)
    response.appendHeader('Server-Timing', `trace;desc=${formatTraceparent(span.spanContext())}`)
}

function lowerCase(names: readonly string[] = []): string[] {
  return names.map((name) => name.toLowerCase())
}

function isCapture(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  return Object.entries(value).every(
    ([key, names]) =>
      (key === 'requestHeaders' || key === 'responseHeaders') &&
      Array.isArray(names) &&
      names.every((name) => typeof name === 'string'),
  )
}
