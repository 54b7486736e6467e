import {
  dropOptions,
  holdOptions,
  isTraced,
  override,
  reportOnce,
  symbolOf,
  untrace,
} from '@throughline/core'
import type {
  HttpAttempt,
  HttpClient,
  HttpClientOptions,
  HttpRequest,
  Untraced,
} from '@throughline/core/http-client'
import { channel, subscribe } from 'node:diagnostics_channel'
import type { Dispatcher } from 'undici'
import { cover, coveredBy, shared, tellServer } from './covered.ts'
import { isWatched, watched } from './handler.ts'
import { sendFrom, setHeaders, tellPeer, type PublishedRequest } from './published.ts'
import { changed, headerIn, pathOf, readable, withHeaders } from './sent.ts'

type Options = Dispatcher.DispatchOptions
type Socket = Parameters<typeof tellPeer>[1]

/** Where a request that is published has the attempt which a traced dispatcher has made of it. */
const COVERED = Symbol('throughline.covered')

type CoveredRequest = PublishedRequest & { [COVERED]?: HttpAttempt }

/** Tracers that we do not know add their headers to what a traced dispatcher sends: its own stay the only ones. */
function keepHeaders(message: unknown): void {
  try {
    const { request } = message as { request: CoveredRequest }
    const attempt = coveredBy(request)
    if (attempt === undefined) return
    request[COVERED] = attempt
    tellServer(attempt, request)
    setHeaders(request, attempt.headers, isAlone())
    sendFrom(request, attempt.caller)
  } catch (error) {
    reportOnce('undici:headers', 'error', 'a request could not be traced', error)
  }
}

function noticePeer(message: unknown): void {
  try {
    const { request, socket } = message as { request: CoveredRequest; socket?: Socket }
    tellPeer(request[COVERED], socket)
  } catch (error) {
    reportOnce('undici:peer', 'error', 'a connection could not be told of', error)
  }
}

const created = channel('undici:request:create')

// The listeners when last checked: a changed list is another array, or of another length.
let known: unknown
let knownCount = 0
let isOfficial = false

function look(): void {
  const { _subscribers: listeners } = created as { _subscribers?: unknown }
  if (!Array.isArray(listeners)) {
    isOfficial = false
    known = undefined
  } else if (listeners !== known || listeners.length !== knownCount) {
    known = listeners
    knownCount = listeners.length
    isOfficial = listeners.some(({ name }: { name?: string }) => name === 'bound onRequestCreated')
  }
}

/**
 * Whether the official instrumentation is at work: it makes a span of every request of the process and gives it headers,
 * so ours yields, and says so once. It may come after us, so this is asked each time. It is known by its listener's name.
 */
export function yieldsToOfficial(): boolean {
  look()
  if (isOfficial) {
    reportOnce(
      'instrumented:undici',
      'warn',
      'another instrumentation traces undici already, so traceUndici does not',
    )
  }
  return isOfficial
}

/** Whether nobody else is told of requests that are created. Where it cannot be seen, there may be somebody. */
export function isAlone(): boolean {
  look()
  const ours = (shared.stop === undefined ? 0 : 1) + (shared.keepHeaders === undefined ? 0 : 1)
  return known !== undefined && knownCount <= ours
}

/** Overrides `dispatch` on this instance: undici's other methods come through it. */
export function traceDispatcher<D extends Dispatcher>(
  dispatcher: D,
  options: HttpClientOptions,
  tracer: HttpClient,
): D {
  if (isTraced(dispatcher)) {
    const example = "untrace(pool); traceUndici(pool, { headers: 'keep' })"
    dropOptions(dispatcher, options, 'traceUndici(dispatcher)', example)
    return dispatcher
  }
  holdOptions(dispatcher, options)
  // While the process-wide form is off, nobody else of ours listens. Once for all dispatchers and all copies.
  if (shared.keepHeaders === undefined) {
    shared.keepHeaders = keepHeaders
    subscribe('undici:request:create', keepHeaders)
    subscribe('undici:client:sendHeaders', noticePeer)
  }
  override(dispatcher as Dispatcher, 'dispatch', (original) => {
    return function dispatch(
      this: Dispatcher,
      options: Options,
      handler: Dispatcher.DispatchHandler,
    ): boolean {
      // What undici refuses, it refuses in its own words.
      const isWhole = typeof handler === 'object' && handler !== null
      const prepared = isWhole && !yieldsToOfficial() ? prepare(this, options, handler, tracer) : undefined
      if (prepared === undefined) return original.call(this, options, handler)
      const { request, isLost, attempt, sent } = prepared
      if (!attempt.isTraced) return original.call(this, sent, handler)

      const forget = cover(attempt, request, isLost)
      const { signal } = options as { signal?: Partial<AbortSignal> }
      const watching = watched(handler, signal, attempt, forget)
      try {
        // In the caller's context, as untraced: a connection that is opened in here outlives the request, and keeps it.
        return original.call(this, sent, watching)
      } catch (error) {
        forget()
        attempt.failed(error)
        throw error
      }
    }
  })
  if (!isOverridden(dispatcher)) {
    untrace(dispatcher)
    throw new TypeError(
      '@throughline/undici: traceUndici(dispatcher): expected a dispatcher that has its own dispatch(), received what compose() has made of one; example: traceUndici(new Agent()).compose(interceptors.retry())',
    )
  }
  return dispatcher
}

/** What `compose()` makes is a view of the dispatcher that it was called on, and answers a `dispatch` of its own. */
function isOverridden(dispatcher: Dispatcher): boolean {
  return Object.getOwnPropertyDescriptor(dispatcher, 'dispatch')?.value === dispatcher.dispatch
}

interface Prepared {
  readonly request: HttpRequest
  /** Whether the request's origin is unknown or guessed. */
  readonly isLost: boolean
  readonly attempt: HttpAttempt | Untraced
  /** The options with the attempt's headers. */
  readonly sent: Options
}

/** Undefined for what undici will refuse in its own words, and for what needs no span. */
function prepare(
  dispatcher: Dispatcher,
  options: Options,
  handler: Dispatcher.DispatchHandler,
  tracer: HttpClient,
): Prepared | undefined {
  try {
    if (typeof options?.path !== 'string' || typeof options.method !== 'string') return undefined
    const { method } = options
    // A CONNECT only opens a tunnel; the request goes through it.
    if (method === 'CONNECT') return undefined
    // It has its span: a SnapshotAgent puts it off, others lead to one that is traced.
    if (isWatched(handler)) return undefined
    const origin = options.origin ?? originOf(dispatcher)
    const request = { method, path: pathOf(options), origin: origin ?? upstreamOf(dispatcher) }
    const headers = readable(options.headers)
    const attempt = tracer.begin(request, headers, headerIn)
    return {
      request,
      isLost: origin === undefined,
      attempt,
      sent: withHeaders(options, changed(headers, attempt.headers)),
    }
  } catch (error) {
    reportOnce('undici:dispatch', 'error', 'a request could not be traced', error)
    return undefined
  }
}

/** A Client and a Pool keep their origin under a symbol; an Agent gets it with each request. */
function originOf(dispatcher: Dispatcher): string | undefined {
  const key = symbolOf(dispatcher, 'url')
  const url: unknown = key === undefined ? undefined : Reflect.get(dispatcher, key)
  return url instanceof URL ? url.origin : undefined
}

/** A BalancedPool has several upstreams; which one it uses is known when the request is published. */
function upstreamOf(dispatcher: Dispatcher): string {
  const { upstreams } = dispatcher as { upstreams?: unknown }
  const first: unknown = Array.isArray(upstreams) ? upstreams[0] : undefined
  return typeof first === 'string' ? first : ''
}
