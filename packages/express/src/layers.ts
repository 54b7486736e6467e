import {
  beforeEvent,
  carriedBy,
  endRequest,
  forgetError,
  recordError,
  rejoin,
  reportOnce,
  type BeginLayer,
} from '@throughline/core'
import type { ErrorRequestHandler, NextFunction, Request, RequestHandler, Response } from 'express'
import { joined, matchedText, mountPattern, routePattern, type Patterned } from './pattern.ts'
import { endSpans, inSpan, isFailure, spansOf, type Spans } from './spans.ts'

/**
 * Express keeps a request's way through its layers to itself: `req.baseUrl` holds the values of a mount path's
 * parameters, not their names, `req.route` stays set when a route has passed the request on, and errors go from layer to
 * layer. So each layer object (never its prototype) reports when a request enters and leaves it.
 */
interface Layer extends Patterned {
  readonly handle: RequestHandler & Partial<Router> & Partial<App>
  /** Of the function, or `<anonymous>`. */
  readonly name: string
  readonly route?: (Patterned['route'] & Router) | undefined
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
  /** Express 4 throws when its long removed `router` is read, and creates `_router` late. */
  readonly _router?: Router
  readonly router?: Router
  readonly lazyrouter?: unknown
  /** The app that it was mounted in. */
  readonly parent?: App
}

/** A request's way through the layers. */
export interface Way {
  readonly request: Request
  /** Whether the connection is no longer one of HTTP: nobody will see a response. */
  isUpgraded: boolean
  /** The patterns of the mount paths that the request is below; undefined where one of them cannot be known. */
  mount: string | undefined
  /** The same part of the path with its values, as in `req.baseUrl`. */
  baseUrl: string
  /** The route that has the request; undefined when none took it, or one passed it on. */
  route: string | undefined
  /** Spans of the layers that have the request, if wanted. */
  spans: Spans | undefined
}

/** Middleware made by `tracing()`: it gets no spans of its own. */
export const ours = new WeakSet<RequestHandler>()

const watched = new WeakSet<Layer>()
/** The length and the last layer of each stack when it was watched. */
const seen = new WeakMap<Layer[], { readonly length: number; readonly last: Layer | undefined }>()
/** For requests seen below a mount path before they reached the tracing. */
const early = new WeakMap<object, Way>()
let hasEarly = false

/** The way of a request that reaches the tracing. */
export function wayOf(request: Request, begin: BeginLayer | undefined): Way {
  const way = (hasEarly ? early.get(request) : undefined) ?? newWay(request)
  way.isUpgraded = isUpgraded(request)
  // The options of the first call hold: a second one, in the same route, finds the request known.
  if (begin !== undefined && carriedBy(request) === undefined) way.spans = spansOf(begin)
  return way
}

function newWay(request: Request): Way {
  return { request, isUpgraded: false, mount: '', baseUrl: '', route: undefined, spans: undefined }
}

/**
 * The request has reached the middleware `tracing`. Each request watches the layers of its app and of those above, since apps
 * add layers late.
 */
export function startWay(way: Way, tracing: RequestHandler): void {
  const { request } = way
  try {
    for (let at: App | undefined = request.app as unknown as App; at !== undefined; at = at.parent)
      watch(stackOf(at))
    if (Boolean(request.baseUrl) && !(hasEarly && early.has(request))) enteredUnseen(way, tracing)
    // Its response never closes, nor does the request once the parser has released the socket.
    if (way.isUpgraded) beforeEvent(request.socket, 'close', () => endRequest(request, 101))
  } catch (error) {
    sayUnknown(error)
  }
}

/** The route that had the request when it closed. */
export function endWay(way: Way): string | undefined {
  if (way.spans !== undefined) endSpans(way.spans)
  return routeOf(way)
}

/** The route as the app wrote it, without the suffix of express-ws. */
function routeOf({ isUpgraded, route }: Way): string | undefined {
  return route !== undefined && isUpgraded ? withoutSuffix(route) : route
}

/** The way of a request that has reached the tracing, or is on its way there: below a mount path, or in the route of it. */
function knownWay(request: Request, isNear = false): Way | undefined {
  const carried = carriedBy(request)
  if (carried !== undefined) return isWay(carried) ? carried : undefined
  let way = hasEarly ? early.get(request) : undefined
  if (way !== undefined || (request.baseUrl === '' && !isNear)) return way
  way = newWay(request)
  early.set(request, way)
  hasEarly = true
  return way
}

// Not by class: a second copy of this package may have made it.
function isWay(carried: unknown): carried is Way {
  return typeof carried === 'object' && carried !== null && 'mount' in carried
}

/** Whatever an app puts among its layers, the request must go on, if need be without its route. */
function sayUnknown(error: unknown): void {
  reportOnce('express layers', 'warn', 'the route of a request could not be found out', error)
}

/** The apps around the request, the innermost last. */
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
  if (Array.isArray(handle.stack)) return handle.stack
  return isApp(handle) ? stackOf(handle) : undefined
}

function isApp(handle: object): handle is App {
  return 'lazyrouter' in handle || 'router' in handle
}

// ---- Layers ----

type Kind = 'route' | 'mount' | 'middleware'

function watch(stack: Layer[]): void {
  if (!isSeen(stack)) watchAll(stack)
}

function watchAll(stack: Layer[]): void {
  for (const [index, layer] of stack.entries()) {
    if (watched.has(layer)) continue
    watched.add(layer)
    // One whose function cannot be read costs the others nothing.
    try {
      watchLayer(layer, kindOf(layer, index))
    } catch (error) {
      sayUnknown(error)
    }
  }
}

function watchLayer(layer: Layer, kind: Kind): void {
  replace(layer, 'handleRequest', 'handle_request', (handle) => {
    const enter = entered(layer, kind, handle)
    return hasParameters(layer) ? afterParameters(enter) : enter
  })
  replace(layer, 'handleError', 'handle_error', (handle) => failed(layer, kind, handle))
}

/** Whether functions of `app.param()` may be called before the layer. */
function hasParameters({ regexp, keys, slash, rawPath, route }: Layer): boolean {
  if (regexp !== undefined) return keys !== undefined && keys.length > 0
  const path = rawPath ?? route?.path
  return slash !== true && (typeof path !== 'string' || /[:*{]/.test(path))
}

/** What loads a parameter may have waited for another request, too. */
function afterParameters(enter: RequestHandler): RequestHandler {
  return function handleRequest(this: Layer, request, response, next) {
    rejoin(request, enterAs, enter, this, request, response, next)
  }
}

function enterAs(
  enter: RequestHandler,
  layer: Layer,
  request: Request,
  response: Response,
  next: NextFunction,
): void {
  Reflect.apply(enter, layer, [request, response, next])
}

/** Whether a stack has been watched and is unchanged since: an app may add layers at any time. */
function isSeen(stack: Layer[]): boolean {
  const { length } = stack
  const last = stack[length - 1]
  const was = seen.get(stack)
  if (was?.length === length && was.last === last) return true
  seen.set(stack, { length, last })
  return false
}

/** Handlers of a route are watched only if they get spans, or if there are several, which hand the request on to one another. */
function watchHandlers(stack: Layer[]): void {
  if (isSeen(stack)) return
  for (const layer of stack) {
    if (watched.has(layer) || isTracing(layer)) continue
    watched.add(layer)
    replace(layer, 'handleRequest', 'handle_request', (handle) => handled(layer, handle))
    replace(layer, 'handleError', 'handle_error', (handle) => failed(layer, 'route', handle))
  }
}

/** Replaces this method under its current name or that of Express 4, hidden from enumeration. */
function replace<Now extends 'handleRequest' | 'handleError', Old extends 'handle_request' | 'handle_error'>(
  layer: Layer,
  now: Now,
  old: Old,
  by: (method: NonNullable<Layer[Now]>) => NonNullable<Layer[Now]>,
): void {
  for (const name of [now, old]) {
    const method = layer[name] as Layer[Now]
    if (method === undefined) continue
    Object.defineProperty(layer, name, { value: by(method), configurable: true, writable: true })
  }
}

// By the layer's name: express-async-errors replaces every `handle` with a function of its own.
function kindOf({ route, handle, name, regexp }: Layer, index: number): Kind {
  if (route !== undefined) return 'route'
  // Neither Express 4's first two layers nor `tracing` itself count as the app's middleware.
  if (regexp !== undefined && index < 2 && (name === 'query' || name === 'expressInit')) return 'mount'
  const isMount = Array.isArray(handle.stack) || isApp(handle) || name === 'mounted_app'
  return isMount || ours.has(handle) ? 'mount' : 'middleware'
}

function isTracing({ handle }: Layer): boolean {
  return ours.has(handle)
}

/**
 * Express keeps the current layer's `next` in `req.next`, for `res.format`, `res.render` and `res.sendFile`: it must be the
 * `next` that the layer was given.
 */
function entered(layer: Layer, kind: Kind, handle: RequestHandler): RequestHandler {
  const isRoute = kind === 'route'
  const isTraced = isRoute && Array.isArray(layer.route?.stack) && layer.route.stack.some(isTracing)
  const hasSpan = kind === 'middleware' && layer.handle.length <= 3

  return function handleRequest(this: Layer, request, response, next) {
    const way = knownWay(request, isTraced)
    if (way === undefined) {
      const isOurs = kind === 'middleware' && carriedBy(request) === null
      return handle.call(this, request, response, isOurs ? rejoining(request, next) : next)
    }
    const { mount, baseUrl, spans } = way
    // A route mounts nothing, so `request.app` is not read: 0.2 to 0.3 µs per read of an Express request.
    const app = isRoute ? undefined : request.app
    try {
      goInto(layer, way, response)
    } catch (error) {
      sayUnknown(error)
    }

    const isKept = request.next === next
    const passOn = (error?: unknown): void => {
      if (request.next === given) request.next = next
      way.mount = mount
      way.baseUrl = baseUrl
      // After an error, the error handler answers for this route; after a plain `next()`, another one answers.
      if (isFailure(error)) recordError(request, error)
      else if (!response.headersSent) way.route = undefined
      // The layer may have waited for another request, whose context is now current.
      rejoin(request, next as (error: unknown) => void, error)
    }
    let given: NextFunction = passOn
    if (spans === undefined || !hasSpan) {
      if (isKept) request.next = given
      handle.call(this, request, response, passOn)
    } else
      inSpan(spans, `middleware ${layer.name}`, layer.handle, passOn, (leave) => {
        given = leave
        if (isKept) request.next = given
        handle.call(this, request, response, leave)
      })
    if (isRoute) {
      if (way.isUpgraded) socketTaken(way)
    } else if (request.app !== app) metApps(way)
  }
}

/** Nobody wants this request's route, but what follows must not run in another request's context. */
function rejoining(request: Request, next: NextFunction): NextFunction {
  const isKept = request.next === next
  const passOn = (error?: unknown): void => {
    if (request.next === passOn) request.next = next
    rejoin(request, next as (error: unknown) => void, error)
  }
  if (isKept) request.next = passOn
  return passOn
}

/** Notes which route or mount the request enters with this layer, and watches what is mounted there. */
function goInto(layer: Layer, way: Way, response: Response): void {
  const { request, mount, baseUrl } = way
  const { baseUrl: taken } = request
  if (layer.route !== undefined) {
    // Once there is an answer, later layers have not given it.
    if (!response.headersSent)
      way.route = taken.length === baseUrl.length ? joined(mount, ownPattern(layer, request)) : undefined
    const { stack } = layer.route
    if (way.spans !== undefined || stack.length > 1) watchHandlers(stack)
    return
  }
  if (taken.length !== baseUrl.length) {
    // If it is longer than what this layer matches, an unseen mount took part of it.
    const segment = taken.slice(baseUrl.length)
    way.mount =
      matchedText(layer, segment) === segment ? joined(mount, mountPattern(layer, segment)) : undefined
    way.baseUrl = taken
  }
  const mounted = stackIn(layer)
  if (mounted !== undefined) watch(mounted)
}

function ownPattern(layer: Layer, request: Request): string | undefined {
  const path = layer.route?.path
  // Nearly always; this makes no closure.
  return typeof path === 'string' ? path : routePattern(layer, () => request.path)
}

/** A handler of a route, in its span. */
function handled(layer: Layer, handle: RequestHandler): RequestHandler {
  return function handleRequest(this: Layer, request, response, next) {
    const way = knownWay(request)
    // As in a layer of the app: it may have waited for another request.
    const passOn = (error?: unknown): void => rejoin(request, next as (error: unknown) => void, error)
    if (way?.spans === undefined || layer.handle.length > 3)
      return handle.call(this, request, response, passOn)
    inSpan(way.spans, `handler ${routeOf(way) ?? layer.name}`, layer.handle, passOn, (leave) =>
      handle.call(this, request, response, leave),
    )
  }
}

/** Errors from outside the layers, such as in loading a parameter, are seen where they are handled. */
function failed(layer: Layer, kind: Kind, handle: ErrorRequestHandler): ErrorRequestHandler {
  return function handleError(this: Layer, error, request, response, next) {
    recordError(request, error)
    const way = layer.handle.length === 4 ? knownWay(request) : undefined
    if (way === undefined) {
      const isOurs = layer.handle.length === 4 && carriedBy(request) === null
      return handle.call(this, error, request, response, isOurs ? rejoining(request, next) : next)
    }
    const { spans } = way
    const name = kind === 'route' ? `handler ${routeOf(way) ?? layer.name}` : `middleware ${layer.name}`
    const isKept = request.next === next
    const passOn = (again?: unknown): void => {
      if (request.next === given) request.next = next
      // The request has recovered: a later error, or a 503 of the app's own, is something else.
      if (!isFailure(again)) forgetError(request, error)
      // A request that recovers outside of its route is answered by another one.
      if (kind !== 'route' && !isFailure(again) && !response.headersSent) way.route = undefined
      rejoin(request, next as (again: unknown) => void, again)
    }
    let given: NextFunction = passOn
    if (spans === undefined) {
      if (isKept) request.next = given
      handle.call(this, error, request, response, passOn)
    } else
      inSpan(
        spans,
        name,
        layer.handle,
        passOn,
        (leave) => {
          given = leave
          if (isKept) request.next = given
          handle.call(this, error, request, response, leave)
        },
        error,
      )
  }
}

/** Ends an upgraded request whose route has taken its socket, unless it may still be refused. */
function socketTaken({ request, route }: Way): void {
  const { wsHandled, socket } = request as Upgraded
  if (route !== undefined && (wsHandled ?? Boolean(socket?.bytesWritten))) endRequest(request, 101)
}

/** A mounted app is only seen when it has taken a request; the route of that first one is found afterwards. */
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
        ? routePattern(layer, () => rest)
        : undefined,
    )
    if (found !== undefined) way.route = joined(way.mount, found)
  } catch (error) {
    sayUnknown(error)
  }
}

/** Tracing is inside a mount whose layers were not yet watched when this request passed. */
function enteredUnseen(way: Way, tracing: RequestHandler): void {
  const { request } = way
  const [top, ...inner] = appsOf(request)
  way.baseUrl = request.baseUrl
  way.mount = locate(stackOf(top as App), '', pathOf(request), inner, (layer, base) => {
    if (!isLayerOf(tracing, layer) || (layer.handle !== tracing && base !== request.baseUrl)) return undefined
    way.baseUrl = base
    return '/'
  })
}

/** Also if the layer's handle was replaced by a function of another name. */
function isLayerOf(fn: RequestHandler, { handle, name }: Layer): boolean {
  return handle === fn || (name === fn.name && handle.name !== name)
}

/**
 * The patterns along this path down to and including the layer for which `end` returns one; layers on the way are watched. A
 * layer does not show which app it mounts: `apps` are those on the way, outermost first.
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
    const isApp = app !== undefined && layer.name === 'mounted_app'
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

/** The whole path as the app has it now: middleware may have rewritten the client's. */
function pathOf({ baseUrl, path }: Request): string {
  return baseUrl + path
}

// ---- Upgraded requests ----

/** The suffix that express-ws adds to the requested path and to the path of each WebSocket route. */
const SUFFIX = /\/\.websocket(?=\?|$)/

/** express-ws says whether one of its handlers has the socket; other routers of upgraded requests do not. */
interface Upgraded {
  readonly upgrade?: boolean
  readonly wsHandled?: boolean
  /** What is made up may have none. */
  readonly socket?: { readonly bytesWritten: number }
}

/** Method and headers are read later anyway, so these checks are nearly free. */
function isUpgraded(request: Request): boolean {
  const mayBe = request.method === 'CONNECT' || request.headers?.upgrade !== undefined
  return mayBe && (request as Upgraded).upgrade === true
}

/** The path or the pattern as it was before express-ws. */
export function withoutSuffix(path: string): string {
  const before = path.replace(SUFFIX, '')
  return before === path || before.startsWith('/') ? before : `/${before}`
}
