import {
  carriedBy,
  endRequest,
  handOn,
  inheritedEmit,
  middlewareSpans,
  receiver,
  recordRejection,
  reportOnce,
  type ReceivingOptions,
} from '@throughline/core'
import type Application from 'koa'
import type { Context, Middleware } from 'koa'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { hearErrors } from './failure.ts'
import { endLayers, layered } from './layers.ts'
import { noteEarlier, noteMounts, routeOf } from './route.ts'

/** What `tracing()` takes: `ignore` and `inbound` are asked with `(ctx)`, `attributes` and `spanName` too. */
export type TracingOptions = ReceivingOptions<Context, [Context]>

const scope = { name: '@throughline/koa', version: '0.1.0' }

/**
 * Koa middleware that makes a SERVER span of every request. Mount it first: what runs before it is not seen.
 *
 * With koa-websocket, `app.ws.use(tracing())` makes one of every connection's request.
 *
 * @example
 * app.use(tracing())
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function tracing(options?: TracingOptions): Middleware
export function tracing(options: TracingOptions = {}, ...uncalled: unknown[]): unknown {
  // By `app.use(tracing)` Koa calls it with ctx and next.
  if (typeof uncalled.at(-1) === 'function') return handOn(scope, 'Koa', [options, ...uncalled])
  const receive = receiver<Context, [Context]>(
    {
      scope,
      hasMiddleware: true,
      subject: (ctx) => ctx,
      given: (ctx) => [ctx],
      route: endRoute,
      // By which Koa learns of a socket that fails. It has been called outside of all requests, and does nothing on finish.
      finishListeners: 1,
    },
    options,
  )
  const begin = middlewareSpans(scope, options.middlewareSpans)
  const downstream = begin === undefined ? undefined : layered(begin, () => tracing)
  // Nearly always there is one app: it need not be looked up.
  let lastApp: Application | undefined
  let isHeard = false

  // With a default the third parameter does not count: Koa's middleware has two.
  const tracing = (ctx: Context, next: () => Promise<unknown>, done: unknown = null): unknown => {
    const { app, req } = ctx
    // Express and Fastify call it with something else, and have a third argument.
    if (req === undefined) return handOn(scope, 'Koa', [ctx, next, done])
    if (app !== lastApp) {
      isHeard = watch(app, ctx)
      lastApp = app
    }
    const res = ctx.res as ServerResponse | undefined
    if (res === undefined) return upgraded(req, () => receive(req, unsent(req), ctx, next))

    let run: () => unknown = next
    if (downstream !== undefined && carriedBy(req) === undefined)
      run = () => (isRecorded(req) ? downstream(ctx, next) : next())
    const answered = isAsAsked(ctx) ? receive(req, res, ctx, run) : receiveAsAsked(req, res, ctx, run)
    // An error that leaves the outermost middleware is heard by `hearErrors`. A promise of ours would cost 1 to 3 µs.
    if ((isHeard && app.middleware[0] === tracing) || !isRecorded(req)) return answered
    return answered instanceof Promise ? recordRejection(req, answered) : answered
  }
  return tracing

  /** The span gets the URL that the client asked for, the app the one that koa-mount or the app itself has made of it. */
  function receiveAsAsked(req: Mounted, res: ServerResponse, ctx: Context, run: () => unknown): unknown {
    // First, as the seam adds it: V8 before 13 (Node 20, 22) makes no dictionary of a request that loses its last property.
    if (!Object.hasOwn(req, 'emit')) req.emit = inheritedEmit
    req.originalUrl = ctx.originalUrl
    return receive(req, res, ctx, () => {
      delete req.originalUrl
      return run()
    })
  }

  /** Asked when the request has closed. */
  function endRoute(ctx: Context): string | undefined {
    if (begin !== undefined) endLayers(ctx)
    return routeOf(ctx)
  }
}

/** Express keeps there what was asked for, also for a Koa app that is mounted in one. */
type Mounted = IncomingMessage & { originalUrl?: string }

function isAsAsked({ originalUrl, req }: Context): boolean {
  if (originalUrl === req.url || typeof originalUrl !== 'string') return true
  return 'originalUrl' in req || !Object.isExtensible(req)
}

const apps = new WeakMap<Application, boolean>()

/** Whether all errors of the app are heard. */
function watch(app: Application, ctx: Context): boolean {
  let isHeard = apps.get(app)
  if (isHeard === undefined) {
    isHeard = false
    try {
      noteMounts(app.context)
      noteEarlier(ctx)
      isHeard = hearErrors(app)
    } catch (error) {
      reportOnce('koa app', 'warn', 'the errors that an app tells could not be heard', error)
    }
    apps.set(app, isHeard)
  }
  return isHeard
}

function isRecorded(req: IncomingMessage): boolean {
  return carriedBy(req) != null
}

/**
 * A response that nobody will see. Its class is not imported: importing `node:http` into a module makes Node load undici,
 * HTTP/2 and TLS too, 12 MB.
 */
function unsent(req: IncomingMessage): ServerResponse {
  return new (process.getBuiltinModule('node:http').ServerResponse)(req)
}

// koa-websocket runs its middleware when the handshake is done, without a response. The route is known already if the
// router was reached without waiting.
function upgraded(req: IncomingMessage, run: () => unknown): unknown {
  const served = run()
  endRequest(req, 101)
  return served
}
