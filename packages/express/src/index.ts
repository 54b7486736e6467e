import {
  handOn,
  inheritedEmit,
  middlewareSpans,
  receiver,
  reportOnce,
  type ReceivingOptions,
} from '@throughline/core'
import type { NextFunction, Request, RequestHandler, Response } from 'express'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { EventEmitter } from 'node:events'
import type { Server } from 'node:net'
import { setImmediate } from 'node:timers'
import { endWay, ours, startWay, wayOf, withoutSuffix, type Way } from './layers.ts'

/** `ignore` and `inbound` get the request; `attributes` and `spanName` get request and response when it has closed. */
export type TracingOptions = ReceivingOptions<Request, [request: Request, response: Response]>

const scope = { name: '@throughline/express', version: '0.1.0' }

/**
 * Middleware that makes a SERVER span of each request and continues its incoming trace. Mount it first: what is mounted before
 * it is not timed.
 *
 * @example
 * app.use(tracing())
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function tracing(options?: TracingOptions): RequestHandler
export function tracing(options: TracingOptions = {}, ...uncalled: unknown[]): unknown {
  // With `app.use(tracing)`, Express calls it with request, response and next.
  if (typeof uncalled.at(-1) === 'function') return handOn(scope, 'Express', [options, ...uncalled])
  const receive = receiver<Request, [Request, Response], Way>(
    {
      scope,
      hasMiddleware: true,
      subject: ({ request }) => request,
      given: ({ request }, response) => [request, response as Response],
      route: endWay,
      following: (way) => startWay(way, tracing),
    },
    options,
  )
  const begin = middlewareSpans(scope, options.middlewareSpans)
  ours.add(tracing)
  return tracing

  function tracing(request: Request, response: Response, next: NextFunction): unknown {
    // Koa has no third argument, and what Fastify calls plugins and hooks with has no version of HTTP.
    if (typeof next !== 'function' || (request.httpVersion === undefined && isOfFastify(request)))
      return handOn(scope, 'Express', [request, response, next])
    if (makesClasses) expectMore(request)
    const way = wayOf(request, begin)
    // What takes middleware as Express does, such as Socket.IO, has no such URL.
    if (way.isUpgraded && typeof request.originalUrl === 'string') upgraded(request, response, way, next)
    else receive(request, response, way, next)
    return undefined
  }

  /** The span gets the URL that the client asked for, the app the one that it routes by. */
  function upgraded(request: Request, response: Response, way: Way, next: NextFunction): void {
    const { originalUrl } = request
    request.originalUrl = withoutSuffix(originalUrl)
    receive(request, response, way, () => {
      request.originalUrl = originalUrl
      next()
    })
  }
}

function isOfFastify(request: object): boolean {
  return 'addHook' in request || 'raw' in request
}

// ---- Room for `emit` ----

/**
 * Express replaces the prototypes of requests and responses; V8 before 13 (Node 20, 22) then makes a new hidden class for every
 * added property, 2.5 to 7 µs each. `emit`, the one that tracing adds, is therefore put there before Express: saves 14 µs a
 * request.
 */
const makesClasses = Number.parseInt(process.versions.v8, 10) < 13

const STARTS = 'http.server.request.start'

/** The servers whose requests reach `tracing`. Whether they were listening: one that is handed its connections never is. */
const servers = new WeakMap<object, boolean>()

/** The last one that was added, while their requests are prepared. */
let newest: WeakRef<object> | undefined

/** Prepares further requests of this request's server. */
function expectMore(request: Request): void {
  try {
    if (Object.hasOwn(request, 'emit')) return
    // A made-up request has no socket, or one that no server has accepted.
    const { server } = (request.socket ?? {}) as { server?: unknown }
    if (typeof server !== 'object' || server === null) return
    if (newest === undefined) subscribe(STARTS, makeRoom)
    else if (servers.has(server)) return
    servers.set(server, servers.get(server) === true || isListening(server))
    newest = new WeakRef(server)
  } catch (error) {
    sayUnprepared(error)
  }
}

function makeRoom(arrival: unknown): void {
  try {
    const { request, response, server } = arrival as Record<'request' | 'response' | 'server', EventEmitter>
    if (!servers.has(server)) {
      if (newest !== undefined && isClosed(newest.deref())) endRoom()
      return
    }
    if (!Object.hasOwn(request, 'emit')) request.emit = inheritedEmit
    if (!Object.hasOwn(response, 'emit')) response.emit = inheritedEmit
  } catch (error) {
    sayUnprepared(error)
  }
}

function isListening(server: object): boolean {
  return (server as Server).listening
}

function isClosed(server: object | undefined): boolean {
  return server === undefined || (!isListening(server) && servers.get(server) === true)
}

/**
 * When the servers are closed, as those of a file of jest's tests, all that it has loaded would be kept as long as the process
 * lives. Not at once: whoever listens behind us would not be told of this request.
 */
function endRoom(): void {
  newest = undefined
  setImmediate(() => unsubscribe(STARTS, makeRoom))
}

function sayUnprepared(error: unknown): void {
  reportOnce('express arrival', 'warn', 'a request could not be prepared to be traced', error)
}
