import { carriedBy, recordError, reportOnce } from '@throughline/core'
import type { ErrorRequestHandler, Request, RequestHandler, Response } from 'express'

/**
 * Express keeps a request's way through its layers to itself: `req.baseUrl` holds the values of a mount path's
 * parameters, not their names, `req.route` stays set when a route has passed the request on, and errors go from layer to
 * layer. So each layer object (never its prototype) reports when a request enters and leaves it.
 */
interface Layer {
  readonly handle: RequestHandler & Partial<Router> & Partial<App>
  readonly route?: { path: string | RegExp | readonly (string | RegExp)[] } | undefined
  /** Router 2.3 and newer. */
  readonly rawPath?: string | RegExp | readonly (string | RegExp)[]
  /** Express 4. */
  readonly regexp?: RegExp & { fast_slash?: boolean }
  readonly keys?: readonly { name: string | number }[]
  /** Router 2.0 to 2.2: parameters and text of the latest match. */
  readonly params?: Record<string, string>
  readonly path?: string | undefined
  match(path: string): unknown
  handleRequest?: RequestHandler
  handleError?: ErrorRequestHandler
  /** Express 4. */
  handle_request?: RequestHandler
  handle_error?: ErrorRequestHandler
}

interface Router {
  readonly stack: Layer[]
}

interface App {
  /** Express 4 throws when its long removed `router` is read, and makes this one late. */
  readonly _router?: Router
  readonly router?: Router
  readonly lazyrouter?: unknown
  /** The app that it was mounted in. */
  readonly parent?: App
}

/** A request's way through the layers. */
export interface Way {
  readonly request: Request
  /** The patterns of the mount paths that the request is below; undefined where one of them cannot be known. */
  mount: string | undefined
  /** The values that stand for it in `req.baseUrl`. */
  baseUrl: string
  /** The route that has the request; undefined when none took it, or one passed it on. */
  route: string | undefined
}

const watched = new WeakSet<Layer>()
const seen = new WeakMap<Layer[], number>()
/** Of requests that were below a mount path when they had not come to the tracing yet. */
const early = new WeakMap<object, Way>()
let hasEarly = false

/** The way of a request that comes to the tracing. */
export function wayOf(request: Request): Way {
  return (hasEarly ? early.get(request) : undefined) ?? newWay(request)
}

function newWay(request: Request): Way {
  return { request, mount: '', baseUrl: '', route: undefined }
}

/**
 * The request has come to `tracing`, the middleware. The layers that its app and those above it have by now are watched,
 * by each request, since layers come late too.
 */
export function startWay(way: Way, tracing: RequestHandler): void {
  const { request } = way
  try {
    for (let at: App | undefined = request.app as unknown as App; at !== undefined; at = at.parent)
      watch(stackOf(at))
    if (Boolean(request.baseUrl) && !(hasEarly && early.has(request))) enteredUnseen(way, tracing)
  } catch (error) {
    sayUnknown(error)
  }
}

/** The way of a request that has come to the tracing, or is below a mount path on its way to it. */
function knownWay(request: Request): Way | undefined {
  const carried = carriedBy(request)
  if (carried !== undefined) return isWay(carried) ? carried : undefined
  if (request.baseUrl === '') return undefined
  let way = early.get(request)
  if (way === undefined) early.set(request, (way = newWay(request)))
  hasEarly = true
  return way
}

// Not by class: a second copy of this package may have made it.
function isWay(carried: unknown): carried is Way {
  return typeof carried === 'object' && carried !== null && 'mount' in carried
}

/** Whatever an app has put among its layers, a request goes on, if need be without its route. */
function sayUnknown(error: unknown): void {
  reportOnce('express layers', 'warn', 'the route of a request could not be found out', error)
}

/** The app that has the request, after those that it is mounted in. */
function appsOf({ app }: Request): App[] {
  const apps: App[] = []
  for (let at: App | undefined = app as unknown as App; at !== undefined; at = at.parent) apps.unshift(at)
  return apps
}

function stackOf(app: App): Layer[] {
  return (app.lazyrouter === undefined ? app.router : app._router)?.stack ?? []
}

/** What is mounted by this layer: a router, or an app that was mounted in a router. */
function stackIn({ handle }: Layer): Layer[] | undefined {
  return handle.stack ?? ('lazyrouter' in handle || 'router' in handle ? stackOf(handle) : undefined)
}

function watch(stack: Layer[]): void {
  if (seen.get(stack) === stack.length) return
  seen.set(stack, stack.length)
  for (const layer of stack) {
    if (watched.has(layer)) continue
    watched.add(layer)
    if (layer.handleRequest !== undefined) layer.handleRequest = entered(layer, layer.handleRequest)
    if (layer.handleError !== undefined) layer.handleError = failed(layer.handleError)
    if (layer.handle_request !== undefined) layer.handle_request = entered(layer, layer.handle_request)
    if (layer.handle_error !== undefined) layer.handle_error = failed(layer.handle_error)
  }
}

function entered(layer: Layer, handle: RequestHandler): RequestHandler {
  const isRoute = layer.route !== undefined

  return function handleRequest(this: Layer, request, response, next) {
    const way = knownWay(request)
    if (way === undefined) return handle.call(this, request, response, next)
    const { mount, baseUrl } = way
    // A route mounts nothing: of an Express request each look costs 0.3 µs.
    const app = isRoute ? undefined : request.app
    try {
      goInto(layer, way, response)
    } catch (error) {
      sayUnknown(error)
    }

    handle.call(this, request, response, function left(error?: unknown) {
      way.mount = mount
      way.baseUrl = baseUrl
      // An error handler answers for the route that failed; after a pass, somebody else answers.
      if (Boolean(error) && error !== 'route' && error !== 'router') recordError(request, error)
      else if (isRoute && !response.headersSent) way.route = undefined
      next(error)
    })
    if (!isRoute && request.app !== app) metApps(way)
  }
}

/** Notes which route or mount the request enters with this layer, and watches what is mounted there. */
function goInto(layer: Layer, way: Way, response: Response): void {
  const { request, mount, baseUrl } = way
  const { baseUrl: taken } = request
  if (layer.route !== undefined) {
    // Once there is an answer, whoever sees the request after that has not given it.
    if (!response.headersSent)
      way.route = taken.length === baseUrl.length ? joined(mount, routePattern(layer, request)) : undefined
    return
  }
  if (taken.length !== baseUrl.length) {
    // More than this layer matches is what a mount that was not seen took.
    const segment = taken.slice(baseUrl.length)
    way.mount =
      matchedText(layer, segment) === segment ? joined(mount, mountPattern(layer, segment)) : undefined
    way.baseUrl = taken
  }
  const mounted = stackIn(layer)
  if (mounted !== undefined) watch(mounted)
}

/** Errors that come from no layer, such as those in loading a parameter, are seen where they go. */
function failed(handle: ErrorRequestHandler): ErrorRequestHandler {
  return function handleError(this: Layer, error, request, response, next) {
    recordError(request, error)
    handle.call(this, error, request, response, next)
  }
}

/** A mounted app shows itself only by having taken the request; what it did with the first one is found out afterwards. */
function metApps(way: Way): void {
  try {
    const { request } = way
    const apps = appsOf(request).filter((app) => !seen.has(stackOf(app)))
    const [first, ...inner] = apps
    if (first === undefined) return
    for (const app of apps) watch(stackOf(app))
    const { route } = request
    if (way.route !== undefined || route === undefined) return
    const path = pathOf(request).slice(way.baseUrl.length)
    const found = locate(stackOf(first), way.baseUrl, path, inner, (layer, _base, rest) =>
      layer.route === route && matchedText(layer, rest) !== undefined
        ? routePattern(layer, { path: rest })
        : undefined,
    )
    if (found !== undefined) way.route = joined(way.mount, found)
  } catch (error) {
    sayUnknown(error)
  }
}

/** Tracing is in something mounted, whose layers were not watched when this request went by. */
function enteredUnseen(way: Way, tracing: RequestHandler): void {
  const { request } = way
  const [top, ...inner] = appsOf(request)
  way.baseUrl = request.baseUrl
  way.mount = locate(stackOf(top as App), '', pathOf(request), inner, (layer, base) => {
    if (layer.handle !== tracing) return undefined
    way.baseUrl = base
    return '/'
  })
}

/**
 * The patterns on the way down this path to the layer for which `end` has one, that one included; the layers on the way
 * are watched. Layers that mount an app do not show which: `apps` are those on the way, from the outermost.
 */
function locate(
  stack: Layer[],
  base: string,
  path: string,
  apps: App[],
  end: (layer: Layer, base: string, path: string) => string | undefined,
): string | undefined {
  for (const layer of stack) {
    const found = end(layer, base, path)
    if (found !== undefined) return found
    const [app, ...inner] = apps
    const isApp = app !== undefined && layer.handle.name === 'mounted_app'
    const mounted = isApp ? stackOf(app) : stackIn(layer)
    const segment = mounted === undefined ? undefined : matchedText(layer, path)
    if (mounted === undefined || segment === undefined) continue
    const rest = path.slice(segment.length) || '/'
    const below = locate(mounted, base + segment, rest, isApp ? inner : apps, end)
    if (below === undefined) continue
    watch(mounted)
    return joined(mountPattern(layer, segment), below)
  }
  return undefined
}

function pathOf({ originalUrl }: Request): string {
  return originalUrl.replace(/\?.*/, '')
}

/** The pattern of a route's own path; of several, the one that this path matches. */
function routePattern(layer: Layer, request: { readonly path: string }): string | undefined {
  const own = layer.route?.path
  if (!Array.isArray(own)) return String(own)
  const { path } = request
  return layer.regexp === undefined ? newPattern(layer, path) : substituted(layer, layer.regexp, path)
}

/** The pattern of a mount path, where `segment` is what it matched. */
function mountPattern(layer: Layer, segment: string): string | undefined {
  if (layer.rawPath !== undefined) return newPattern(layer, segment)
  if (layer.regexp !== undefined) return substituted(layer, layer.regexp, segment)
  // Router 2.0 to 2.2 keep the pattern in closures. Without parameters, what was matched is the pattern.
  return Object.keys(layer.params ?? {}).length === 0 ? segment : undefined
}

/** Router 2.3: the pattern is kept, and of several the match tells which. */
function newPattern(layer: Layer, path: string): string | undefined {
  if (!Array.isArray(layer.rawPath) && layer.rawPath !== undefined) return String(layer.rawPath)
  const match = layer.match(path)
  const isMatch = typeof match === 'object' && match !== null && 'pattern' in match
  return isMatch ? String(match.pattern) : undefined
}

/** Express 4 keeps only what it made of the pattern: in the matched text, what the groups caught gives way to their names. */
function substituted({ keys = [] }: Layer, regexp: RegExp, path: string): string | undefined {
  // A pattern that the app gave as a RegExp is its own name; those made of text end in a look-ahead or in `$`.
  if (!/(\(\?=\\\/\|\$\)|\$)$/.test(regexp.source)) return String(regexp)
  const match = new RegExp(regexp.source, `${regexp.flags}d`).exec(path)
  if (match?.indices === undefined) return undefined
  let pattern = match[0]
  for (let group = keys.length; group >= 1; group -= 1) {
    const at = match.indices[group]
    const name = keys[group - 1]?.name
    if (at !== undefined)
      pattern = pattern.slice(0, at[0]) + (typeof name === 'string' ? `:${name}` : '*') + pattern.slice(at[1])
  }
  return pattern
}

function matchedText(layer: Layer, path: string): string | undefined {
  if (layer.regexp?.fast_slash === true) return ''
  if (layer.regexp !== undefined) return layer.regexp.exec(path)?.[0].replace(/\/$/, '')
  const match = layer.match(path)
  if (typeof match === 'object' && match !== null && 'path' in match) return String(match.path)
  return match === true ? layer.path : undefined
}

/** `/api` and `/users` → `/api/users`; `/api` and `/` → `/api`. */
function joined(mount: string | undefined, path: string | undefined): string | undefined {
  if (mount === undefined || path === undefined) return undefined
  if (mount === '') return path
  const start = mount.replace(/\/+$/, '')
  return path === '/' && start !== '' ? start : start + path
}
