import { context, isTraced, override, reportOnce, untrace, type Context } from '@throughline/core'
import type {
  HeaderChanges,
  HttpAttempt,
  HttpClient,
  HttpResponse,
  Untraced,
} from '@throughline/core/http-client'
import { channel, subscribe } from 'node:diagnostics_channel'
import type { Dispatcher } from 'undici'
import { endWith } from './failure.ts'
import { FINAL, headerOf, readHeaders, setHeaders, tellPeer, type PublishedRequest } from './published.ts'

type Options = Dispatcher.DispatchOptions
type Headers = Options['headers']
type Method = (...args: unknown[]) => unknown
type Abort = (reason?: unknown) => void
type Socket = Parameters<typeof tellPeer>[1]

/** What handlers of undici 7 end their request with. */
interface Controller {
  abort: Abort
}

/** What all copies of this package have in common: they see the same requests. */
interface Shared {
  /** The attempts whose spans this form has made, by the traceparent that they send. */
  readonly covered: Map<string, HttpAttempt>
  /** Those that are sent without our headers, by the context that they are made in. */
  readonly coveredContexts: WeakMap<Context, HttpAttempt>
  /** Listens for all traced dispatchers. */
  keepHeaders?: (message: unknown) => void
  /** Ends the process-wide form, while it is on. */
  stop?: (() => void) | undefined
}

export const shared = ((globalThis as Record<symbol, unknown>)[Symbol.for('throughline.undici')] ??= {
  covered: new Map(),
  coveredContexts: new WeakMap(),
}) as Shared
const { covered, coveredContexts } = shared

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
    setHeaders(request, attempt.headers, isAlone())
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

// Who listens there, as it was when they were last looked at: a list that changes is another list, or of another length.
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
    isOfficial = listeners.some(({ name }: Method) => name === 'bound onRequestCreated')
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

/** Whether this request is one that a traced dispatcher has under way. */
export function isCovered(request: PublishedRequest): boolean {
  return coveredBy(request) !== undefined
}

function coveredBy(request: PublishedRequest): HttpAttempt | undefined {
  const attempt = coveredContexts.get(context.active())
  if (attempt !== undefined || covered.size === 0) return attempt
  return covered.get(headerOf(request, 'traceparent') ?? '')
}

/** Overrides `dispatch` on this instance: undici's other methods come through it. */
export function traceDispatcher<D extends Dispatcher>(dispatcher: D, tracer: HttpClient): D {
  if (isTraced(dispatcher)) return dispatcher
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
      const prepared = yieldsToOfficial() ? undefined : prepare(this, options, tracer)
      if (prepared === undefined) return original.call(this, options, handler)
      const { attempt, sent } = prepared
      if (!attempt.isTraced) return original.call(this, sent, handler)

      const { traceparent } = attempt.headers
      const within = attempt.context
      if (traceparent === undefined) coveredContexts.set(within, attempt)
      else covered.set(traceparent, attempt)
      const watched = watch(handler, options, attempt, () => covered.delete(traceparent as string))
      try {
        return context.with(within, () => original.call(this, sent, watched))
      } catch (error) {
        covered.delete(traceparent as string)
        attempt.failed(error)
        throw error
      }
    }
  })
  if (!isOverridden(dispatcher)) {
    untrace(dispatcher)
    throw new TypeError(
      'traceUndici(dispatcher): expected a dispatcher that has its own dispatch(), received what compose() has made of one; example: traceUndici(new Agent()).compose(interceptors.retry())',
    )
  }
  return dispatcher
}

/** What `compose()` makes is a view of the dispatcher that it was called on, and answers a `dispatch` of its own. */
function isOverridden(dispatcher: Dispatcher): boolean {
  return Object.getOwnPropertyDescriptor(dispatcher, 'dispatch')?.value === dispatcher.dispatch
}

/** The attempt, and the options with its headers; undefined for what undici will refuse in its own words. */
function prepare(
  dispatcher: Dispatcher,
  options: Options,
  tracer: HttpClient,
): { attempt: HttpAttempt | Untraced; sent: Options } | undefined {
  if (typeof options?.path !== 'string' || typeof options.method !== 'string') return undefined
  const { method, path, headers, origin = originOf(dispatcher) } = options
  // It opens a tunnel to somebody else: what goes through that is the request.
  if (method === 'CONNECT') return undefined
  try {
    const attempt = tracer.begin({ method, path, origin: origin ?? '' }, headers, headerIn)
    return { attempt, sent: { ...options, headers: withHeaders(headers, attempt.headers) } as Options }
  } catch (error) {
    reportOnce('undici:dispatch', 'error', 'a request could not be traced', error)
    return undefined
  }
}

/**
 * The handler with its end noticed, in either of undici's interfaces: `onHeaders` and so on, or from version 7
 * `onResponseStart` and so on. What it calls runs in the caller's context, not in that of whoever freed a connection.
 */
function watch(
  handler: Dispatcher.DispatchHandler,
  options: Options,
  attempt: HttpAttempt,
  forget: () => void,
): Dispatcher.DispatchHandler {
  const caller = attempt.caller
  let isAborted = false
  const end = (finish: () => void) => {
    forget()
    finish()
  }
  const notice: Record<string, (...args: never[]) => void> = {
    onRequestStart: (controller: Controller) => noteAbort(controller),
    onHeaders: (status: number, raw: readonly Buffer[]) => answered(status, readHeaders(raw)),
    onResponseStart: (_controller: unknown, status: number, headers: HttpResponse['headers']) =>
      answered(status, headers),
    onUpgrade: (status: number, raw: readonly Buffer[]) => upgraded(status, readHeaders(raw)),
    onRequestUpgrade: (_controller: unknown, status: number, headers: HttpResponse['headers']) =>
      upgraded(status, headers),
    onComplete: () => end(() => attempt.completed()),
    onResponseEnd: () => end(() => attempt.completed()),
    onError: (error: unknown) => end(() => fail(error)),
    onResponseError: (_controller: unknown, error: unknown) => end(() => fail(error)),
  }
  function noteAbort(controller: Controller): void {
    const { abort } = controller
    controller.abort = function (this: unknown, reason) {
      isAborted = true
      abort.call(this, reason)
    }
  }
  // The reason that a signal was aborted with need not be the error that comes of it.
  function fail(error: unknown): void {
    const { signal } = options as { signal?: Partial<AbortSignal> }
    const isOwn = isAborted || signal?.aborted === true
    endWith(attempt, (isOwn ? signal?.reason : undefined) ?? error, isOwn)
  }
  function answered(statusCode: number, headers: HttpResponse['headers']): void {
    if (statusCode >= FINAL) attempt.answered(statusCode, undefined, headers, itself)
  }
  function upgraded(statusCode: number, headers: HttpResponse['headers']): void {
    attempt.answered(statusCode, undefined, headers, itself)
    end(() => attempt.completed())
  }

  return new Proxy(handler, {
    get(target, name) {
      const method: unknown = Reflect.get(target, name, target)
      if (typeof method !== 'function') return method
      const before = notice[String(name)] as Method | undefined
      return (...args: unknown[]) => {
        if (name === 'onConnect') {
          const [abort, ...rest] = args as [Abort, ...unknown[]]
          const noted: Abort = (reason) => {
            isAborted = true
            abort(reason)
          }
          return context.with(caller, () => Reflect.apply(method as Method, target, [noted, ...rest]))
        }
        before?.(...args)
        return context.with(caller, () => Reflect.apply(method as Method, target, args))
      }
    },
  })
}

/** A Client and a Pool know where they lead to, and keep it under a symbol of their own; an Agent is told each time. */
function originOf(dispatcher: Dispatcher): string {
  const key = Object.getOwnPropertySymbols(dispatcher).find(({ description }) => description === 'url')
  const url: unknown = key === undefined ? undefined : Reflect.get(dispatcher, key)
  return url instanceof URL ? url.origin : ''
}

/** A copy of the headers, in whichever of undici's forms they came, with these in place of those of the same name. */
function withHeaders(given: Headers, changes: HeaderChanges): Headers {
  const names = Object.keys(changes)
  // What undici refuses is not mended here.
  const isOdd = Array.isArray(given) && (Array.isArray(given[0]) || given.length % 2 === 1)
  if (names.length === 0 || isOdd) return given
  const kept = pairsOf(given).filter(([name]) => !names.includes(name.toLowerCase()))
  const added = Object.entries(changes).filter(([, value]) => value !== undefined)
  return [...kept, ...added].flat() as string[]
}

function headerIn(given: Headers, name: string): string | undefined {
  return pairsOf(given).find(([candidate]) => candidate.toLowerCase() === name)?.[1] as string | undefined
}

function pairsOf(given: Headers): [string, unknown][] {
  if (given === undefined || given === null) return []
  if (Array.isArray(given)) {
    if (Array.isArray(given[0])) return given as unknown as [string, unknown][]
    return given.flatMap((name, index) =>
      index % 2 === 0 ? [[String(name), given[index + 1]] as [string, unknown]] : [],
    )
  }
  if (Symbol.iterator in given) return [...(given as Iterable<[string, unknown]>)]
  return Object.entries(given)
}

function itself(headers: HttpResponse['headers']): HttpResponse['headers'] {
  return headers
}
