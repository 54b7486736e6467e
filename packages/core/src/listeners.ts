import { context, type Context } from '@opentelemetry/api'
import { EventEmitter } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { now } from './clock.ts'
import {
  activeContext,
  emitWithin,
  isEmpty,
  requestSpanIn,
  SCOPED,
  type Emission,
  type Scoped,
  type ScopedEmit,
} from './context.ts'
import type { AnyExchange, Connection } from './exchange.ts'
import { reportOnce } from './report.ts'

/**
 * The exchange of a request is kept by the `emit` that the request was given: a request has one SERVER span, however often
 * tracing is mounted, by whichever copy of this package. A property of its own beside `emit` would cost an Express app
 * 3 µs on Node up to 22: Express changes the prototypes of requests and responses, after which V8 makes a new hidden class
 * there for each property that is added to one.
 */
export function exchangeOf(request: IncomingMessage): AnyExchange | undefined {
  const { emit } = request as { readonly emit?: ScopedEmit }
  const exchange = exchangeIn(emit)
  if (exchange !== undefined || emit === PLAIN_EMIT || emit === inheritedEmit) return exchange
  return hiddenExchange(request)
}

function exchangeIn(emit: ScopedEmit | undefined): AnyExchange | undefined {
  const scoped = emit?.[SCOPED]
  return scoped !== undefined && 'carried' in scoped ? (scoped as AnyExchange) : undefined
}

/** Requests whose `emit` somebody may replace, as cls-hooked does. */
const keptSeparately = new WeakMap<IncomingMessage, AnyExchange>()
/** Whether this has ever happened. Registering every request in case it does would cost 0.3 µs each. */
let areKeptSeparately = false

/** For a request whose `emit` is no longer ours: its response may still have ours, and a wrapper may name the original. */
function hiddenExchange(request: Wrapped): AnyExchange | undefined {
  try {
    const kept = keptSeparately.get(request)
    if (kept !== undefined) return kept
    const exchange = wrappedIn(request) ?? wrappedIn(request.res ?? request.socket?._httpMessage)
    return exchange?.request === request ? exchange : undefined
  } catch {
    // What is made up may be anything.
    return undefined
  }
}

function wrappedIn(emitter: { readonly emit?: unknown } | null | undefined): AnyExchange | undefined {
  let emit = emitter?.emit as WrappedEmit | null | undefined
  for (let depth = 0; typeof emit === 'function' && depth < MOST_WRAPPERS; depth++) {
    const exchange = exchangeIn(emit)
    if (exchange !== undefined) return exchange
    emit = emit.__original
  }
  return undefined
}

const MOST_WRAPPERS = 10

/** A method as shimmer wraps it. */
type WrappedEmit = ScopedEmit & { readonly __original?: WrappedEmit }

/** Express keeps the response on the request. */
type Wrapped = IncomingMessage & {
  readonly res?: EventEmitter
  readonly socket?: Connection
}

/** What the adapter passed in with this request; null if nobody will want its route, undefined if the seam has not seen it. */
export function carriedBy(request: IncomingMessage): unknown {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return undefined
  return wantsRoute(exchange) ? exchange.carried : null
}

/** Metrics, ours and the official instrumentation's, want the routes of unsampled requests too. */
function wantsRoute({
  span,
  theirs,
  measurement,
}: Pick<AnyExchange, 'span' | 'theirs' | 'measurement'>): boolean {
  return theirs !== undefined || measurement !== undefined || span?.isRecording() === true
}

/**
 * Makes the listeners of a request and its response run in its context, and its close end the span. Events without a listener
 * of the app skip the context switch: 0.2 to 0.8 µs each.
 */
export function bindListeners(exchange: AnyExchange, scope: Context): boolean {
  const { request, response } = exchange
  exchange.requestScope = scope
  exchange.responseScope = scope
  const isWanted = wantsRoute(exchange)
  const requestEmit = previousEmit(request, scope)
  const responseEmit = previousEmit(response, scope)
  const countOfRequest = counterOf(request, requestEmit)
  const countOfResponse = counterOf(response, responseEmit)
  // Made-up and HTTP/2 responses have fewer, which may go before they finish: the app's must not be taken for them.
  const { finishListeners: expected } = exchange.seam
  const finishListeners = countOfResponse.call(response, 'finish') < expected ? 0 : expected
  // Node adds one when the response finishes, to release the request.
  let endListeners = 0

  function emitOfRequest(this: IncomingMessage, ...args: Emission): boolean {
    if (isWanted && args[0] === 'close' && !exchange.hasEnded) exchange.requestClosed()
    const count = countOfRequest.call(this, args[0])
    if (count === 0 && isUnheard(requestEmit, args[0])) return false
    if (count === 0 || (count <= endListeners && args[0] === 'end'))
      return Reflect.apply(requestEmit, this, args)
    return emitWithin(exchange.requestScope, this, requestEmit, args)
  }
  emitOfRequest[SCOPED] = exchange as Scoped
  request.emit = emitOfRequest
  if (areKeptSeparately) keptSeparately.set(request, exchange)

  function emitOfResponse(this: ServerResponse, ...args: Emission): boolean {
    if (isWanted) {
      if (args[0] === 'prefinish') exchange.answered()
      else if (args[0] === 'finish') exchange.handedOver()
      else if (args[0] === 'close') {
        if (request.emit !== emitOfRequest) areKeptSeparately = true
        exchange.end()
      }
    }
    const count = countOfResponse.call(this, args[0])
    if (count === 0 && isUnheard(responseEmit, args[0])) return false
    if (count === 0) return Reflect.apply(responseEmit, this, args)
    if (count <= finishListeners && args[0] === 'finish') {
      const before = countOfRequest.call(request, 'end')
      const isHeard = Reflect.apply(responseEmit, this, args)
      endListeners = countOfRequest.call(request, 'end') - before
      return isHeard
    }
    return emitWithin(exchange.responseScope, this, responseEmit, args)
  }
  emitOfResponse[SCOPED] = exchange as Scoped
  response.emit = emitOfResponse
  if (isWanted) exchange.hear()
  return isWanted
}

const { emit: PLAIN_EMIT, listenerCount: PLAIN_COUNT } = EventEmitter.prototype

/** Whether this is Node's own `emit`, recognised by the internals its source names. */
const IS_PLAIN = /\bkErrorMonitor\b[^]*\baddCatch\b/.test(String(PLAIN_EMIT))

/**
 * Whether `emit` would do nothing without listeners. Not for 'error', which throws, nor for a foreign `emit`. Skipping it saves
 * 0.6 µs a request.
 */
function isUnheard(emit: EventEmitter['emit'], event: string | symbol): boolean {
  return IS_PLAIN && emit === PLAIN_EMIT && event !== 'error'
}

/**
 * An emitter with Node's own `emit` is counted with Node's own `listenerCount`, without looking it up: at the end of a
 * prototype chain that Express has changed, that costs 0.5 µs on Node up to 22.
 */
function counterOf(
  emitter: Partial<EventEmitter>,
  emit: EventEmitter['emit'],
): EventEmitter['listenerCount'] {
  // What is made up for a test may be no emitter.
  return (emit === PLAIN_EMIT ? undefined : emitter.listenerCount) ?? PLAIN_COUNT
}

/** The `emit` in place; if it is already ours, its listeners run in the newest context. */
function previousEmit(emitter: EventEmitter, scope: Context): EventEmitter['emit'] {
  const { emit: own } = emitter
  if (own === PLAIN_EMIT) return own
  const emit = own === inheritedEmit ? prototypeOf(emitter).emit : own
  // What is made up for a test may have none.
  const scoped = (emit as ScopedEmit | undefined)?.[SCOPED]
  scoped?.rescope(emitter, scope)
  return emit
}

/**
 * Reserves the property for our `emit`: as an emitter's own it changes nothing, calling what the emitter inherits at that
 * moment, whatever its prototype has become.
 */
export function inheritedEmit(this: EventEmitter, ...args: Emission): boolean {
  return Reflect.apply(prototypeOf(holderOf(this)).emit, this, args)
}

/** The object whose own `emit` this emitter uses: an object created from a request inherits the request's. */
function holderOf(emitter: EventEmitter): EventEmitter {
  return Object.hasOwn(emitter, 'emit') ? emitter : holderOf(prototypeOf(emitter))
}

function prototypeOf(emitter: EventEmitter): EventEmitter {
  return Object.getPrototypeOf(emitter) as EventEmitter
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

/** A promise that settles like `result`, whose rejection is recorded as `recordError` does. */
export function recordRejection<T>(request: IncomingMessage, result: Promise<T>): Promise<T> {
  return result.catch((error: unknown) => {
    recordError(request, error)
    throw error
  })
}

/** Takes back `recordError` of this very error: the app has recovered from it. */
export function forgetError(request: IncomingMessage, error: unknown): void {
  const exchange = exchangeOf(request)
  if (exchange !== undefined && exchange.error === error) exchange.error = undefined
}

/**
 * Calls `next`. If another request triggered it (a released queue, a busy pool's callback), it would run in that one's context,
 * and if something older than all requests did (a connection or a timer made at start-up, an AsyncResource made before ours), in
 * none, or in a span of the app's start that is over; here it runs in its own. A context that belongs to no request, with anything
 * else in it, is the app's choice.
 */
export function rejoin<G extends unknown[], T>(
  request: IncomingMessage,
  next: (...given: G) => T,
  ...given: G
): T {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return next(...given)
  const active = activeContext()
  const current = requestSpanIn(active)
  const isStray = current === undefined ? isEmpty(active) : current !== requestSpanIn(exchange.requestScope)
  return isStray ? context.with(exchange.requestScope, next, undefined, ...given) : next(...given)
}

/**
 * Ends the SERVER span of a request whose response is complete, for responses that close silently or too late.
 *
 * @param status if the response does not know it: 101 of an upgraded request
 */
export function endRequest(request: IncomingMessage, status?: number): void {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return
  exchange.isComplete = true
  exchange.status = status
  exchange.end()
}

/** Calls `act` before the request's SERVER span ends, whatever ends it: it may be of another framework that has the request, too. */
export function beforeEnd(request: IncomingMessage, act: () => void): void {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return
  const { ending: earlier } = exchange
  exchange.ending = () => {
    earlier?.()
    act()
  }
}

// ---- Handshakes ----

/** What is sent on a socket is sent by. */
const WRITERS = ['write', 'end'] as const
/** How an answer to a handshake begins; a proxy may pass on one of HTTP/1.0. */
const STATUS_LINE = /^HTTP\/1\.\d (\d{3})\b/
const STATUS_LINE_LENGTH = 'HTTP/1.1 101 '.length
const SWITCHING_PROTOCOLS = 101
const FIRST_FINAL = 200

/**
 * Ends the SERVER span of a request that wants another protocol as soon as somebody answers on the socket itself, past the
 * response: so `ws` accepts a handshake, and so it refuses one. A `ws` server that a library has for itself tells nobody else.
 */
export function endAtHandshake(exchange: AnyExchange): void {
  const { request } = exchange
  try {
    if (request.headers.upgrade !== undefined) watchSocket(request.socket, exchange)
  } catch {
    // Made up for a test.
  }
}

function answered(exchange: AnyExchange, sent: unknown): void {
  const { request, response } = exchange
  const socket = request.socket as Connection
  // What an earlier request is answered comes by the same way. A response of the app's may have no socket.
  if ((response.socket !== socket && socket._httpMessage) || response.headersSent) return
  const text =
    sent instanceof Uint8Array ? String.fromCharCode(...sent.subarray(0, STATUS_LINE_LENGTH)) : sent
  const [, digits] = (typeof text === 'string' ? STATUS_LINE.exec(text) : undefined) ?? []
  if (digits === undefined) return
  const status = Number(digits)
  // What only precedes the answer, as 103 Early Hints, is written past the response, too.
  if (status < FIRST_FINAL && status !== SWITCHING_PROTOCOLS) return watchSocket(socket, exchange)
  endRequest(request, status)
}

/** Looks at what is sent next on the socket. What is sent after that goes the way that it went. */
function watchSocket(socket: Socket, exchange: AnyExchange): void {
  // Filled one by one: a socket that is made up for a test may lack the second of them.
  const restore: (() => void)[] = []
  for (const name of WRITERS) {
    const own = Object.getOwnPropertyDescriptor(socket, name)
    const method = socket[name] as (...given: unknown[]) => unknown
    function watched(this: unknown, ...given: unknown[]): unknown {
      for (const giveBack of restore) giveBack()
      try {
        answered(exchange, given[0])
      } catch (error) {
        reportOnce('handshake', 'error', 'the end of a handshake could not be recorded', error)
      }
      return Reflect.apply(method, this, given)
    }
    Object.defineProperties(watched, { name: { value: method.name }, length: { value: method.length } })
    Object.defineProperty(socket, name, { value: watched, writable: true, configurable: true })
    restore.push(() => {
      // Somebody may have put a method of their own over it.
      if ((socket[name] as unknown) !== watched) return
      if (own === undefined) Reflect.deleteProperty(socket, name)
      else Object.defineProperty(socket, name, own)
    })
  }
}
