import { override, receiver, recordError, type ReceivingOptions } from '@throughline/core'
import type Application from 'koa'
import type { Context, Middleware } from 'koa'

/** What `tracing()` takes: `ignore` and `inbound` are asked with `(ctx)`, `attributes` and `spanName` too. */
export type TracingOptions = ReceivingOptions<Context, [Context]>

/** A layer of @koa/router or koa-router: a route, or middleware of the router, which has no methods. */
interface Layer {
  readonly path: string | RegExp
  readonly regexp: RegExp
  readonly methods: readonly string[]
}

/** What the routers, and koa-mount, leave on the context. */
interface Routed {
  readonly matched?: readonly Layer[]
  readonly _matchedRoute?: Layer['path']
  readonly mountPath?: string
}

const scope = { name: '@throughline/koa', version: '0.1.0' }

/**
 * Koa middleware that makes a SERVER span of every request. Mount it first: what runs before it is not seen.
 *
 * @example
 * app.use(tracing())
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function tracing(options: TracingOptions = {}): Middleware {
  const receive = receiver<Context, [Context]>(
    { scope, subject: (ctx) => ctx, given: (ctx) => [ctx], route: routeOf },
    options,
  )

  return function tracing(ctx, next) {
    const { app, req } = ctx
    watchErrors(app)
    return receive(req, ctx.res, ctx, next).catch((error: unknown) => {
      recordError(req, error)
      throw error
    })
  }
}

const watched = new WeakSet<Application>()

// What fails after all middleware has returned (a body that cannot be serialised, a stream that breaks) comes up as the
// app's 'error' event and nowhere else, as does what an app's own error middleware reports. A listener of ours would be
// one that the app can see, and could stand in for the one that it forgot.
function watchErrors(app: Application): void {
  if (watched.has(app)) return
  watched.add(app)
  override(
    app,
    'emit',
    (emit) =>
      function (event: string | symbol, ...args: unknown[]) {
        const [error, ctx] = args as [unknown, Context | undefined]
        // The error of a connection that the client reset is an abort. It is known by a response that can no longer be
        // written, though nobody here has destroyed it.
        if (event === 'error' && ctx?.req !== undefined && (ctx.writable || ctx.res.destroyed))
          recordError(ctx.req, error)
        return emit.call(app, event, ...args)
      },
  )
}

const NONE: readonly Layer[] = []

// `_matchedRoute` is the path of the layer that was entered last. That may be middleware of the router, which has
// answered or thrown: then the first route that would take the request stands for it.
function routeOf(ctx: Context & Routed): string | undefined {
  const { matched = NONE, _matchedRoute: entered, method } = ctx
  let layer: Layer | undefined
  for (const candidate of matched) {
    if (!candidate.methods.includes(method)) continue
    if (candidate.path === entered) {
      layer = candidate
      break
    }
    layer ??= candidate
  }
  if (layer === undefined) return undefined
  const mount = mountOf(ctx, layer)
  const path = typeof layer.path === 'string' ? layer.path : String(layer.path)
  return path === '/' && mount !== '' ? mount : mount + path
}

// koa-mount cuts its prefix off the path that the router sees, and leaves `mountPath` behind even when the mounted app
// passed the request on: it counts where the route alone does not match the path that was asked for.
function mountOf({ mountPath, originalUrl }: Context & Routed, { regexp }: Layer): string {
  if (mountPath === undefined || !originalUrl.startsWith(mountPath)) return ''
  const [path = ''] = originalUrl.split('?', 1)
  return path.search(regexp) === -1 ? mountPath.replace(/\/$/, '') : ''
}
