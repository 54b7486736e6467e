import {
  SpanKind,
  trace,
  TraceFlags,
  type Attributes,
  type Context,
  type Link,
  type Span,
  type SpanContext,
  type Tracer,
} from '@opentelemetry/api'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'
import {
  activeContext,
  claim,
  ignoreTracing,
  passThrough,
  requestSpanIn,
  root,
  rpcMetadata,
  runIn,
  spanIn,
  withRequestSpan,
  withSpan,
  type RpcMetadata,
} from './context.ts'
import { tracerFor } from './current.ts'
import { isPromise } from './exception.ts'
import { Exchange, NODES_FINISH_LISTENERS, type AnyExchange, type Framework, type Seam } from './exchange.ts'
import { lowerCased, pathOf, targetOf } from './http.ts'
import { RANDOM_FLAG, randomIds } from './ids.ts'
import { bindListeners, endAtHandshake, exchangeOf, recordError, recordRejection } from './listeners.ts'
import { isMetered, requestMeasurements } from './metrics.ts'
import type { MiddlewareSpans } from './middleware.ts'
import {
  BOOLEAN,
  CAPTURE,
  dropOptions,
  entries,
  expected,
  FUNCTION,
  guarded,
  holdOptions,
  MATCH,
  matcher,
  show,
  validated,
  type HeadersToCapture,
  type Match,
  type Shape,
} from './options.ts'
import { announce, extractRequest } from './propagation.ts'
import { reportOnce } from './report.ts'
import { VERSION } from './resource.ts'
import type { InstrumentationScope } from './span.ts'
import { parseTraceContext, TRACEPARENT_LENGTH } from './trace-context.ts'
import { isOurTracer } from './tracer.ts'

/** What to do with a request's incoming trace. */
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
  capture?: HeadersToCapture | undefined
  /** The span's name, asked when the span ends. */
  spanName?: ((...given: Given) => string) | undefined
  /** `'continue'` the trace that comes in, `'restart'` with a new one linked to it, or `'ignore'` it. */
  inbound?: Inbound | ((subject: Subject) => Inbound) | undefined
  /** Whether to believe Forwarded and X-Forwarded-* headers. */
  trustProxy?: boolean | undefined
  /** Whether to answer with `Server-Timing: trace;desc=<traceparent>`. */
  serverTiming?: boolean | undefined
  /** Whether `http.server.active_requests` is among the metrics, for apps that have a MeterProvider. */
  activeRequests?: boolean | undefined
  /** Spans of the framework's middleware, hooks and handlers: none, all, or those slower than so many milliseconds. */
  middlewareSpans?: MiddlewareSpans | undefined
}

/** Runs `run`, which hands the request on, inside a SERVER span; returns what it returns. */
export type Receive<Carried> = <T>(
  request: IncomingMessage,
  response: ServerResponse,
  carried: Carried,
  run: () => T,
) => T

const SLOWER_THAN = entries(
  'true, false or { slowerThan: milliseconds }',
  'middlewareSpans: { slowerThan: 10 }',
  (key, value) => key === 'slowerThan' && typeof value === 'number' && value >= 0,
  show,
)

const INBOUND = new Set<unknown>(['continue', 'restart', 'ignore'])

function shape<Subject, Given extends unknown[]>(): Shape<ReceivingOptions<Subject, Given>> {
  return {
    ignore: MATCH(
      "ignore: ['/health', /^\\/assets\\//]",
      "a path from '/' up to the query",
      /^(\/[^?#]*|\*)$/,
    ),
    attributes: FUNCTION("attributes: () => ({ 'app.tenant': 'acme' })"),
    capture: CAPTURE,
    spanName: FUNCTION("spanName: () => 'GET /orders'"),
    inbound: expected(
      "'continue', 'restart', 'ignore' or a function that returns one of them",
      "inbound: 'restart'",
      (value) => typeof value === 'function' || INBOUND.has(value),
    ),
    trustProxy: BOOLEAN('trustProxy'),
    serverTiming: BOOLEAN('serverTiming'),
    activeRequests: BOOLEAN('activeRequests'),
    middlewareSpans: {
      ...SLOWER_THAN,
      accepts: (value) =>
        typeof value === 'boolean' || (SLOWER_THAN.accepts(value) && 'slowerThan' in (value as object)),
    },
  }
}

/**
 * The inbound seam: takes the trace context from the request's headers, starts the SERVER span, runs the framework in
 * its context, and ends it when the response has closed, with the route and the status as they are then.
 *
 * @param caller what the app has called with these options, for messages.
 * @param given those of the app's options that only one call can apply to a request.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function receiver<Subject, Given extends unknown[], Carried = Subject>(
  framework: Framework<Subject, Given, Carried>,
  options: ReceivingOptions<Subject, Given> = {},
  caller = 'tracing()',
  given: object = options,
): Receive<Carried> {
  checkOptions(framework, options, caller)
  const { inbound = 'continue', trustProxy = false, serverTiming = false, activeRequests = false } = options
  const tracer = tracerFor(framework.scope)
  const measure = requestMeasurements(framework.scope, trustProxy, activeRequests)
  const seam: Seam<Given, Carried> = {
    framework,
    trustProxy,
    finishListeners: NODES_FINISH_LISTENERS + (framework.finishListeners ?? 0),
    requestHeaders: lowerCased(options.capture?.requestHeaders),
    responseHeaders: lowerCased(options.capture?.responseHeaders),
    moreAttributes: guarded('attributes', options.attributes),
    nameOf: guarded('spanName', options.spanName),
  }
  const inboundOf = typeof inbound === 'function' ? guarded('inbound', inbound) : undefined
  const inboundAlways = typeof inbound === 'function' ? 'continue' : inbound
  const ignores = ignoring(framework, options.ignore)

  holdOptions(seam, given)
  let isCompared = false

  return function receive(request, response, carried, run) {
    const held = exchangeOf(request)
    if (held !== undefined) {
      if (!isCompared && held.seam !== (seam as object)) compareTo(held)
      return run()
    }
    let scope: Context
    try {
      scope = begin(request, response, carried)
    } catch (error) {
      reportOnce(`receive:${framework.scope.name}`, 'error', 'a request could not be traced', error)
      return run()
    }
    return runIn(scope, run)
  }

  /** Options are dropped where another call has the request already. One request says it for all. */
  function compareTo({ seam: first }: AnyExchange): void {
    isCompared = true
    try {
      dropOptions(first, given, `${framework.scope.name}: ${caller}`, "{ ignore: '/health' }", '')
    } catch (error) {
      reportOnce('options compared', 'warn', 'the options of two calls could not be compared', error)
    }
  }

  /** The context for the request; from here on its listeners run in it, and its close ends the span. */
  function begin(request: IncomingMessage, response: ServerResponse, carried: Carried): Context {
    // First: the default start registers the propagator and the context manager that the rest relies on.
    const maker = tracer()
    const active = activeContext()
    // Nearly always the root context is current, which has no metadata.
    const instrumented = active === root ? undefined : rpcMetadata(active)
    if (instrumented?.span !== undefined && claim(instrumented)) {
      if (ignores?.(request, carried) === true)
        return attach(new Exchange(seam, request, response, carried), ignoreTracing(active))
      return enrich(request, response, carried, active, instrumented)
    }

    const made = framework.madeSpan?.(carried)
    if (made !== undefined) {
      const exchange = new Exchange(seam, request, response, carried)
      if (ignores?.(request, carried) === true) return attach(exchange, ignoreTracing(active))
      exchange.span = made
      if (serverTiming || isMetered()) prepare(exchange)
      return attach(exchange, active)
    }

    const base = active === root ? root : baseOf(active)
    const extracted = extractRequest(base, request)
    const treatment =
      inboundOf === undefined ? inboundAlways : treatmentOf(inboundOf(framework.subject(carried)))
    const links = treatment === 'restart' ? linkTo(extracted) : undefined
    const exchange = new Exchange(seam, request, response, carried, links)
    if (ignores?.(request, carried) === true) return attach(exchange, ignoredScope(extracted, maker, request))
    const parent = treatment === 'continue' ? extracted : base
    exchange.route = framework.routeAtStart?.(carried)
    const span = isOurTracer(maker)
      ? maker.startDeferred(exchange, parent, SpanKind.SERVER)
      : maker.startSpan(exchange.name(), exchange, parent)
    exchange.span = span
    if (serverTiming || isMetered()) prepare(exchange)
    return attach(exchange, withRequestSpan(parent, span))
  }

  function prepare(exchange: Exchange<Given, Carried>): void {
    const { request, response, span } = exchange
    try {
      if (isMetered()) exchange.measurement = measure(request)
      if (serverTiming && span !== undefined) announce(response, span.spanContext())
    } catch (error) {
      // What is made up for a test may have no headers.
      reportOnce(`prepare:${framework.scope.name}`, 'error', 'a response could not be prepared', error)
    }
  }

  /** The official HTTP instrumentation has made the SERVER span and will end it; we add what we know better. */
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
    return attach(exchange, active)
  }

  function attach(exchange: Exchange<Given, Carried>, scope: Context): Context {
    let isWanted: boolean
    try {
      isWanted = bindListeners(exchange as unknown as AnyExchange, scope)
    } catch (error) {
      // The request or its response is frozen, so nothing else would end it.
      exchange.end()
      throw error
    }
    if (isWanted) {
      endAtHandshake(exchange as unknown as AnyExchange)
      framework.following?.(exchange.carried)
    }
    return scope
  }
}

/** The app's `ignore` as a test of a request; undefined if the option is not set. */
function ignoring<Subject, Given extends unknown[], Carried>(
  framework: Framework<Subject, Given, Carried>,
  ignore: ReceivingOptions<Subject, Given>['ignore'],
): ((request: IncomingMessage, carried: Carried) => boolean) | undefined {
  if (typeof ignore === 'function') {
    const isIgnored = matcher<[Subject]>('ignore', ignore, () => '')
    return (_request, carried) => isIgnored?.(framework.subject(carried)) === true
  }
  const isIgnoredPath = matcher<[string]>('ignore', ignore, (path) => path)
  return isIgnoredPath && ((request) => isIgnoredPath(pathOf(targetOf(request))))
}

type Plain = [request: IncomingMessage, response: ServerResponse]

/** A plain server has no middleware. */
type PlainOptions = Omit<ReceivingOptions<IncomingMessage, Plain>, 'middlewareSpans'>

const plain: Framework<IncomingMessage, Plain> = {
  scope: { name: '@throughline/core', version: VERSION },
  subject: (request) => request,
  given: (request, response) => [request, response],
}

const receivers = new WeakMap<object, Receive<IncomingMessage>>()
const NO_OPTIONS = {}

/**
 * Traces one request of a plain `node:http` or `node:http2` server, or of a framework that there is no package for: runs `run`
 * inside the request's SERVER span and returns what it returns. An error that it throws or rejects with is recorded.
 *
 * @param options are read once for each object: keep it outside of the handler.
 * @throws TypeError where `run` is no function or there is no request, and for an option that is unknown or of the wrong
 *   shape: in each request, for there is no earlier call.
 * @example
 * createServer((req, res) => traceRequest(req, res, () => handle(req, res)))
 */
export function traceRequest<T>(
  request: IncomingMessage | Http2ServerRequest,
  response: ServerResponse | Http2ServerResponse,
  run: () => T,
  options: PlainOptions = NO_OPTIONS,
): T {
  if (typeof run !== 'function') throw misused('a function to run', run)
  if (typeof request !== 'object' || request === null) throw misused('a request of a server', request)
  let receive = receivers.get(options)
  if (receive === undefined) {
    receive = receiver(plain, options, 'traceRequest()')
    receivers.set(options, receive)
  }
  // An HTTP/2 request has all that is used here, though not all that an HTTP/1 request has.
  const incoming = request as IncomingMessage
  return receive(incoming, response as ServerResponse, incoming, () => {
    try {
      const result = run()
      // The returned promise settles like `run`'s: an unhandled rejection still surfaces, once.
      if (isPromise(result)) return recordRejection(incoming, result) as T
      return result
    } catch (error) {
      recordError(incoming, error)
      throw error
    }
  })
}

function misused(wanted: string, received: unknown): TypeError {
  return new TypeError(
    `${plain.scope.name}: traceRequest(): expected ${wanted}, received ${show(received)}; example: createServer((req, res) => traceRequest(req, res, () => res.end('hello')))`,
  )
}

/** A framework that there is a package for. */
type Home = 'Express' | 'Koa' | 'Fastify'

/**
 * For `tracing` that was mounted without being called, so that it gets requests in place of its options, or in another
 * framework than its own: reports that once, and hands on, untraced, by the `next` or `done` among what it was called with.
 */
export function handOn({ name }: InstrumentationScope, home: Home, given: readonly unknown[]): unknown {
  const [first] = given
  const next = given.findLast((each) => typeof each === 'function')
  const [found, received] = callerOf(first)
  // Connect and others hand on as Express does, and leave no app on a request.
  const isHome = found === home || (home === 'Express' && found === undefined && 'headers' in Object(first))
  if (isHome && next !== undefined)
    reportOnce(
      `uncalled:${name}`,
      'error',
      `${name}: nothing is traced by app.use(tracing): expected a call of tracing, received ${received} in the place of its options; example: app.use(tracing())`,
    )
  else {
    const example =
      found === undefined
        ? "import { traceRequest } from '@throughline/core'"
        : `import { tracing } from '@throughline/${found.toLowerCase()}'`
    reportOnce(
      `elsewhere:${name}`,
      'error',
      `${name}: nothing is traced: expected to be mounted in ${home}, received ${received}${next === undefined ? ' and no next' : ''}; example: ${example}`,
    )
  }
  return next?.()
}

/** The framework whose first argument this is, and what that is. */
function callerOf(first: unknown): [found: Home | undefined, received: string] {
  const given = Object(first) as object
  if ('addHook' in given) return ['Fastify', 'a Fastify app']
  if ('raw' in given) return ['Fastify', 'a Fastify request']
  if ('req' in given) return ['Koa', 'a Koa context']
  if ('app' in given) return ['Express', 'an Express request']
  return [undefined, 'headers' in given ? 'a request of node:http' : show(first)]
}

/**
 * The context that a request begins in: at best what was current when the server was made, since the parent comes from the
 * headers. If another traced request is current, nothing of it, such as its baggage, is inherited.
 */
function baseOf(active: Context): Context {
  if (requestSpanIn(active) !== undefined || rpcMetadata(active) !== undefined) return root
  return spanIn(active) === undefined ? active : withSpan(active, undefined)
}

/** The answer of `inbound`; an invalid one means 'continue'. */
function treatmentOf(answer: unknown): Inbound {
  if (INBOUND.has(answer)) return answer as Inbound
  // Undefined: it threw, which has been reported.
  if (answer !== undefined)
    reportOnce(
      'inbound answer',
      'error',
      `inbound: expected 'continue', 'restart' or 'ignore', received ${show(answer)}; the trace is continued; for example inbound: () => 'restart'`,
    )
  return 'continue'
}

/**
 * No span here, nor from our clients underneath. The incoming trace goes out unchanged; without one, an unsampled trace does.
 */
function ignoredScope(extracted: Context, maker: Tracer, request: IncomingMessage): Context {
  const parent = spanIn(extracted)
  const scope = ignoreTracing(withRequestSpan(extracted, parent ?? unsampledSpan(maker)))
  return parent === undefined ? scope : asItCame(scope, parent, request)
}

/**
 * Passes the headers themselves on, if they say what the context says: another propagator may have read it. A traceparent that is
 * longer, as later versions may be, and a tracestate that is invalid or so long that the next server may refuse it, are passed on as
 * parsed.
 */
function asItCame(scope: Context, parent: Span, request: IncomingMessage): Context {
  try {
    const { traceparent, tracestate } = request.headers
    const read = parseTraceContext(traceparent, tracestate)
    if (read === undefined || typeof traceparent !== 'string') return scope
    if (traceparent.length !== TRACEPARENT_LENGTH || !isSameContext(read, parent.spanContext())) return scope
    if (read.traceState === undefined) return passThrough(scope, { span: parent, traceparent })
    if (typeof tracestate !== 'string' || tracestate.length > PASSED_LIMIT) return scope
    return passThrough(scope, { span: parent, traceparent, tracestate })
  } catch {
    // Made up for a test.
    return scope
  }
}

/** Node's server accepts twice as much in all headers together. */
const PASSED_LIMIT = 8192

function isSameContext(one: SpanContext, other: SpanContext): boolean {
  return (
    one.traceId === other.traceId &&
    one.spanId === other.spanId &&
    one.traceFlags === other.traceFlags &&
    one.traceState?.serialize() === other.traceState?.serialize()
  )
}

function unsampledSpan(maker: Tracer): Span {
  const traceId = randomIds.generateTraceId()
  const traceFlags = isOurTracer(maker) && maker.home.flagsRandom ? RANDOM_FLAG : TraceFlags.NONE
  return trace.wrapSpanContext({ traceId, spanId: randomIds.generateSpanId(), traceFlags })
}

/** The link to the trace that `restart` leaves. */
function linkTo(extracted: Context): Link[] | undefined {
  const spanContext = trace.getSpanContext(extracted)
  return spanContext === undefined ? undefined : [{ context: spanContext }]
}

/** @throws TypeError for an option that is unknown, or of the wrong shape. */
function checkOptions<Subject, Given extends unknown[], Carried>(
  { scope, hasMiddleware }: Framework<Subject, Given, Carried>,
  options: ReceivingOptions<Subject, Given>,
  caller: string,
): void {
  const { middlewareSpans, ...others } = shape<Subject, Given>()
  const expectations = hasMiddleware === true ? { ...others, middlewareSpans } : others
  validated<object>(`${scope.name}: ${caller}`, expectations, options)
}
