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
import type { EventEmitter } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { now, toHrTime } from './clock.ts'
import {
  emitWithin,
  ignoreTracing,
  SCOPED,
  root,
  rpcMetadata,
  spanIn,
  withSpan,
  type Emission,
  type RpcMetadata,
  type Scoped,
  type ScopedEmit,
} from './context.ts'
import { tracerFor } from './current.ts'
import { captureHeaders, pathOf, serverAttributes, spanName, targetOf } from './http.ts'
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
import { errorType, messageOf } from './exception.ts'
import type { InstrumentationScope } from './span.ts'
import { formatTraceparent } from './trace-context.ts'
import { DeferredOptions } from './tracer.ts'

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

/** What the seam must know of a framework. `Carried` is what it is handed with each request, and hands back. */
export interface Framework<Subject, Given extends unknown[], Carried = Subject> {
  readonly scope: InstrumentationScope
  /** What `ignore` and `inbound` are asked with. */
  subject(carried: Carried): Subject
  /** What `attributes` and `spanName` are called with. */
  given(carried: Carried, response: ServerResponse): Given
  /** The pattern that the router matched, mount points included; asked when the response has closed. */
  route?(carried: Carried): string | undefined
  /** Called when a request has its span, if its route will be wanted. */
  following?(carried: Carried): void
}

/** Runs `run`, which hands the request on, inside a SERVER span; returns what it returns. */
export type Receive<Carried> = <T>(
  request: IncomingMessage,
  response: ServerResponse,
  carried: Carried,
  run: () => T,
) => T

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

/** What one use of the seam knows at set-up. */
interface Seam<Given extends unknown[], Carried> {
  readonly framework: Framework<unknown, Given, Carried>
  readonly trustProxy: boolean
  readonly requestHeaders: readonly string[]
  readonly responseHeaders: readonly string[]
  readonly routeOf: ((carried: Carried) => string | undefined) | undefined
  readonly moreAttributes: ((...given: Given) => Attributes | undefined) | undefined
  readonly nameOf: ((...given: Given) => string | undefined) | undefined
}

/**
 * One request from its headers to its close: the options of its SERVER span, and what ends it. One object instead of a
 * closure for each of these saves 1 µs a request.
 */
class Exchange<Given extends unknown[], Carried> extends DeferredOptions implements Scoped {
  readonly kind = SpanKind.SERVER
  readonly seam: Seam<Given, Carried>
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly carried: Carried
  readonly method: string
  /** Undefined where the app asked to ignore the request. */
  span: Span | undefined = undefined
  /** Of the official HTTP instrumentation, where that has made the span and will end it. */
  theirs: RpcMetadata | undefined = undefined
  /** Where listeners of the request and of the response run. */
  requestScope: Context = root
  responseScope: Context = root
  hasEnded = false
  isComplete = false
  error: unknown = undefined
  errorTicks = 0

  constructor(
    seam: Seam<Given, Carried>,
    request: IncomingMessage,
    response: ServerResponse,
    carried: Carried,
    links?: Link[],
  ) {
    super(links)
    this.seam = seam
    this.request = request
    this.response = response
    this.carried = carried
    this.method = request.method ?? ''
  }

  protected build(): Attributes {
    const { request, seam } = this
    return serverAttributes(request, targetOf(request), seam.trustProxy, seam.requestHeaders)
  }

  rescope(emitter: EventEmitter, scope: Context): void {
    if (emitter === this.request) this.requestScope = scope
    else this.responseScope = scope
  }

  /** Before the request's listeners of 'close' are called. */
  requestClosed(): void {
    if (!this.hasEnded && isForsaken(this.request, this.response)) this.end()
  }

  /** Ends the span, once. Called while the app's own events are on their way: nothing may leave here. */
  end(): void {
    if (this.hasEnded) return
    this.hasEnded = true
    const { span, theirs, seam } = this
    try {
      if (theirs !== undefined) this.#tellTheirs(theirs)
      if (span?.isRecording() !== true) return
      try {
        this.#describe(span)
      } finally {
        if (theirs === undefined) span.end()
      }
    } catch (error) {
      reportOnce(
        `conclude:${seam.framework.scope.name}`,
        'error',
        'the end of a request could not be recorded',
        error,
      )
    }
  }

  #tellTheirs(theirs: RpcMetadata): void {
    const route = this.seam.routeOf?.(this.carried)
    if (route !== undefined) theirs.route = route
  }

  #describe(span: Span): void {
    const { seam, response, carried } = this
    const route = seam.routeOf?.(carried)
    if (route !== undefined) {
      span.setAttribute(semconv.HTTP_ROUTE, route)
      span.updateName(spanName(this.method, route))
    }
    // A response of HTTP/2 says that it is finished also when it was cut off: only the app can have ended it.
    const isComplete = this.isComplete || (response.writableFinished && response.writableEnded)
    const { statusCode } = response
    if (isComplete || response.headersSent) span.setAttribute(semconv.HTTP_RESPONSE_STATUS_CODE, statusCode)
    if (seam.responseHeaders.length > 0) this.#describeHeaders(span)
    if (!isComplete) span.setAttribute(semconv.INCOMPLETE, true)
    if (!isComplete || statusCode >= 500) this.#fail(span, isComplete ? statusCode : undefined)
    if (seam.moreAttributes !== undefined || seam.nameOf !== undefined) this.#ask(span)
  }

  #describeHeaders(span: Span): void {
    const { seam, response } = this
    const headers: Attributes = {}
    captureHeaders(headers, semconv.HTTP_RESPONSE_HEADER, seam.responseHeaders, (name) =>
      response.getHeader(name),
    )
    span.setAttributes(headers)
  }

  #fail(span: Span, status: number | undefined): void {
    const { error, errorTicks } = this
    const seen = errorType(error)
    const message = error === undefined ? undefined : messageOf(error)
    if (error instanceof Error) span.recordException(error, toHrTime(errorTicks))
    else if (message !== undefined) span.recordException(message, toHrTime(errorTicks))
    span.setAttribute(semconv.ERROR_TYPE, seen ?? (status === undefined ? ABORTED : String(status)))
    span.setStatus(
      message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
    )
  }

  /** Asks the app's functions. */
  #ask(span: Span): void {
    const { seam, carried, response } = this
    const given = seam.framework.given(carried, response)
    const more = seam.moreAttributes?.(...given)
    if (typeof more === 'object' && more !== null) span.setAttributes(more)
    const name = seam.nameOf?.(...given)
    if (typeof name === 'string') span.updateName(name)
  }
}

// ---- Listeners ----

type AnyExchange = Exchange<unknown[], unknown>

/**
 * The exchange of a request is kept by the `emit` that the request was given: a request has one SERVER span, however often
 * tracing is mounted, by whichever copy of this package. A property of its own beside `emit` would cost an Express app
 * 3 µs: Express changes the prototypes of requests and responses, after which V8 makes a new hidden class for each
 * property that is added to one.
 */
function exchangeOf(request: IncomingMessage): AnyExchange | undefined {
  const scoped = (request.emit as ScopedEmit | undefined)?.[SCOPED]
  return scoped !== undefined && 'carried' in scoped ? (scoped as AnyExchange) : undefined
}

/**
 * What the seam was handed with this request; null where nobody will want its route, and undefined where the seam has not
 * seen it.
 */
export function carriedBy(request: IncomingMessage): unknown {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return undefined
  return wantsRoute(exchange) ? exchange.carried : null
}

/** The official instrumentation has metrics, which want the routes of unsampled requests too. */
function wantsRoute({ span, theirs }: Pick<AnyExchange, 'span' | 'theirs'>): boolean {
  return theirs !== undefined || span?.isRecording() === true
}

/** Makes the listeners of a request and its response run in its context, and its close end the span. */
function bindListeners(exchange: AnyExchange, scope: Context): void {
  const { request, response } = exchange
  exchange.requestScope = scope
  exchange.responseScope = scope
  const requestEmit = previousEmit(request, scope)
  const responseEmit = previousEmit(response, scope)

  function emitOfRequest(this: IncomingMessage, ...args: Emission): boolean {
    if (isUnheard(this, args)) return Reflect.apply(requestEmit, this, args)
    if (args[0] === 'close') exchange.requestClosed()
    return emitWithin(exchange.requestScope, this, requestEmit, args)
  }
  emitOfRequest[SCOPED] = exchange as Scoped
  request.emit = emitOfRequest

  function emitOfResponse(this: ServerResponse, ...args: Emission): boolean {
    if (isUnheard(this, args)) return Reflect.apply(responseEmit, this, args)
    if (args[0] === 'close') exchange.end()
    return emitWithin(exchange.responseScope, this, responseEmit, args)
  }
  emitOfResponse[SCOPED] = exchange as Scoped
  response.emit = emitOfResponse
}

/** What `emit` was; where that is one of ours already, its listeners run in the newest context. */
function previousEmit(emitter: EventEmitter, scope: Context): EventEmitter['emit'] {
  // What is made up for a test may have none.
  const emit = emitter.emit as ScopedEmit | undefined
  emit?.[SCOPED]?.rescope(emitter, scope)
  return emitter.emit
}

/** Whether an event concerns nobody: it is not the one that ends a request, and has no listeners. */
function isUnheard(emitter: EventEmitter, [name]: Emission): boolean {
  return name !== 'close' && emitter.listenerCount(name) === 0
}

// ---- The seam ----

/**
 * The inbound seam: takes the trace context from the request's headers, starts the SERVER span, runs the framework in
 * its context, and ends it when the response has closed, with the route and the status as they are then.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function receiver<Subject, Given extends unknown[], Carried = Subject>(
  framework: Framework<Subject, Given, Carried>,
  options: ReceivingOptions<Subject, Given> = {},
): Receive<Carried> {
  validated(`${framework.scope.name}: tracing()`, shape<Subject, Given>(), options)
  const { inbound = 'continue', trustProxy = false, serverTiming = false } = options
  const tracer = tracerFor(framework.scope)
  const seam: Seam<Given, Carried> = {
    framework,
    trustProxy,
    requestHeaders: lowerCase(options.capture?.requestHeaders),
    responseHeaders: lowerCase(options.capture?.responseHeaders),
    routeOf: guarded('route', framework.route),
    moreAttributes: guarded('attributes', options.attributes),
    nameOf: guarded('spanName', options.spanName),
  }
  const inboundOf = typeof inbound === 'function' ? guarded('inbound', inbound) : undefined
  const inboundAlways = typeof inbound === 'function' ? 'continue' : inbound
  const isIgnored =
    typeof options.ignore === 'function' ? matcher<[Subject]>('ignore', options.ignore, () => '') : undefined
  const isIgnoredPath =
    typeof options.ignore === 'function'
      ? undefined
      : matcher<[string]>('ignore', options.ignore, (path) => path)

  return function receive(request, response, carried, run) {
    if (exchangeOf(request) !== undefined) return run()
    let scope: Context
    try {
      scope = begin(request, response, carried)
    } catch (error) {
      reportOnce(`receive:${framework.scope.name}`, 'error', 'a request could not be traced', error)
      return run()
    }
    return context.with(scope, run)
  }

  /** The context for the request; from here on its listeners run in it, and its close ends the span. */
  function begin(request: IncomingMessage, response: ServerResponse, carried: Carried): Context {
    // First of all: with the default start come the propagator and the context that the rest relies on.
    const maker = tracer()
    const active = context.active()
    const instrumented = rpcMetadata(active)
    if (instrumented?.span !== undefined) return enrich(request, response, carried, active, instrumented)

    // What is current here is at best what was current when the server was made: the parent comes from the headers.
    const base = spanIn(active) === undefined ? active : withSpan(active, undefined)
    const extracted = propagation.extract(base, request.headers, defaultTextMapGetter)
    const treatment = inboundOf?.(framework.subject(carried)) ?? inboundAlways
    const links = treatment === 'restart' ? linkTo(extracted) : undefined
    const exchange = new Exchange(seam, request, response, carried, links)
    if (
      isIgnored?.(framework.subject(carried)) === true ||
      isIgnoredPath?.(pathOf(targetOf(request))) === true
    ) {
      return attach(exchange, ignoredScope(extracted))
    }
    const parent = treatment === 'continue' ? extracted : base
    const span = maker.startSpan(spanName(exchange.method), exchange, parent)
    exchange.span = span
    if (seam.responseHeaders.length > 0) rememberHeaders(response)
    if (serverTiming) announce(response, span)
    return attach(exchange, withSpan(parent, span))
  }

  /** The official HTTP instrumentation has made the SERVER span and will end it: what we know better is added to it. */
  function enrich(
    request: IncomingMessage,
    response: ServerResponse,
    carried: Carried,
    active: Context,
    metadata: RpcMetadata,
  ): Context {
    const exchange = new Exchange(seam, request, response, carried)
    exchange.span = metadata.span
    exchange.theirs = metadata
    if (seam.responseHeaders.length > 0) rememberHeaders(response)
    return attach(exchange, active)
  }

  function attach(exchange: Exchange<Given, Carried>, scope: Context): Context {
    try {
      bindListeners(exchange as unknown as AnyExchange, scope)
    } catch (error) {
      // Nobody would end it: the request or its response is frozen.
      exchange.end()
      throw error
    }
    if (wantsRoute(exchange)) framework.following?.(exchange.carried)
    return scope
  }
}

/**
 * Says which error a request met. It is recorded on the SERVER span when the request ends in failure; an error that the
 * app recovered from is not.
 */
export function recordError(request: IncomingMessage, error: unknown): void {
  const exchange = exchangeOf(request)
  if (exchange === undefined || exchange.error !== undefined) return
  exchange.error = error
  exchange.errorTicks = now()
}

/** Ends the SERVER span of a request whose response is complete, for responses that do not close, or say so too late. */
export function endRequest(request: IncomingMessage): void {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return
  exchange.isComplete = true
  exchange.end()
}

type Plain = [request: IncomingMessage, response: ServerResponse]

const plain: Framework<IncomingMessage, Plain> = {
  scope: { name: '@throughline/core', version: VERSION },
  subject: (request) => request,
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

function watched<T>(request: IncomingMessage, result: Promise<T>): Promise<T> {
  return result.catch((error: unknown) => {
    recordError(request, error)
    throw error
  })
}

/** No span here and none from our clients underneath; what came in goes out as it came, or else an unsampled trace. */
function ignoredScope(extracted: Context): Context {
  return ignoreTracing(spanIn(extracted) === undefined ? withSpan(extracted, unsampledSpan()) : extracted)
}

function unsampledSpan(): Span {
  const traceId = randomIds.generateTraceId()
  return trace.wrapSpanContext({ traceId, spanId: randomIds.generateSpanId(), traceFlags: TraceFlags.NONE })
}

function linkTo(extracted: Context): Link[] | undefined {
  const spanContext = trace.getSpanContext(extracted)
  return spanContext === undefined ? undefined : [{ context: spanContext }]
}

// A response that waits behind another one on its connection is not told when the client leaves; its request is.
function isForsaken(request: Partial<IncomingMessage>, response: ServerResponse): boolean {
  return response.socket === null && !response.writableFinished && request.socket?.destroyed === true
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
