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
  /** Whether the connection is no longer one of HTTP: nobody will see a response. */
  isUpgraded: boolean
  /** The patterns of the mount paths that the request is below; undefined where one of them cannot be known. */
  mount: string | undefined
  /** The values that stand for it in `req.baseUrl`. */
  baseUrl: string
  /** The route that has the request; undefined when none took it, or one passed it on. */
  route: string | undefined
  /** Of the layers that have the request, where they are wanted. */
  spans: Spans | undefined
}

/** What `tracing()` has made: layers that have no spans of their own. */
export const ours = new WeakSet<RequestHandler>()

const watched = new WeakSet<Layer>()
/** What was last of each stack, and how long it was. */
const seen = new WeakMap<Layer[], { readonly length: number; readonly last: Layer | undefined }>()
/** Of requests that were below a mount path when they had not come to the tracing yet. */
const early = new WeakMap<object, Way>()
let hasEarly = false

/** The way of a request that comes to the tracing. */
export function wayOf(request: Request, begin: BeginLayer | undefined): Way {
  const way = (hasEarly ? early.get(request) : undefined) ?? newWay(request)
  way.isUpgraded = isUpgraded(request)
  if (begin !== undefined) way.spans = spansOf(begin)
  return way
}

function newWay(request: Request): Way {
  return { request, isUpgraded: false, mount: '', baseUrl: '', route: undefined, spans: undefined }
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
    // Its response never closes, and the request does not either once the parser has let go of the socket.
    if (way.isUpgraded) beforeEvent(request.socket, 'close', () => endRequest(request, 101))
  } catch (error) {
    sayUnknown(error)
  }
}

/** The request has closed; the route that had it then. */
export function endWay(way: Way): string | undefined {
  if (way.spans !== undefined) endSpans(way.spans)
  return routeOf(way)
}

/** As the app wrote it, also where that was for WebSockets. */
function routeOf({ isUpgraded, route }: Way): string | undefined {
  return route !== undefined && isUpgraded ? withoutSuffix(route) : route
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
    const kind = kindOf(layer, index)
    replace(layer, 'handleRequest', 'handle_request', (handle) => entered(layer, kind, handle))
    replace(layer, 'handleError', 'handle_error', (handle) => failed(layer, kind, handle))
  }
}

/** Whether a stack has been watched as it is now: an app may add to it, or change it. */
function isSeen(stack: Layer[]): boolean {
  const { length } = stack
  const last = stack[length - 1]
  const was = seen.get(stack)
  if (was?.length === length && was.last === last) return true
  seen.set(stack, { length, last })
  return false
}

/** The handlers of a route are watched where they are to have spans. */
function watchHandlers(stack: Layer[]): void {
  if (isSeen(stack)) return
  for (const layer of stack) {
    if (watched.has(layer)) continue
    watched.add(layer)
    replace(layer, 'handleRequest', 'handle_request', (handle) => handled(layer, handle))
    replace(layer, 'handleError', 'handle_error', (handle) => failed(layer, 'route', handle))
  }
}

/** Puts another method in the place of this one, under its name of now or of Express 4. Who lists layers does not see it. */
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

// By the name that the layer was made with: express-async-errors puts functions of its own in the place of all handles.
function kindOf({ route, handle, name, regexp }: Layer, index: number): Kind {
  if (route !== undefined) return 'route'
  // Neither what Express 4 begins each app with, nor what we are, is middleware of the app's.
  if (regexp !== undefined && index < 2 && (name === 'query' || name === 'expressInit')) return 'mount'
  const isMount = Array.isArray(handle.stack) || isApp(handle) || name === 'mounted_app'
  return isMount || ours.has(handle) ? 'mount' : 'middleware'
}

/**
 * In `req.next` Express keeps what the layer that has the request hands on by, and `res.format`, `res.render` and
 * `res.sendFile` use that: it has to be what the layer was given.
 */
function entered(layer: Layer, kind: Kind, handle: RequestHandler): RequestHandler {
  const isRoute = kind === 'route'
  const hasSpan = kind === 'middleware' && layer.handle.length <= 3

  return function handleRequest(this: Layer, request, response, next) {
    const way = knownWay(request)
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
      // An error handler answers for the route that failed; after a pass, somebody else answers.
      if (isFailure(error)) recordError(request, error)
      else if (!response.headersSent) way.route = undefined
      // It may be in the context of another request, for which this one had waited.
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

/** Nobody wants this request's route, but what it goes on to is not to be another's. */
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
    // Once there is an answer, whoever sees the request after that has not given it.
    if (!response.headersSent)
      way.route = taken.length === baseUrl.length ? joined(mount, ownPattern(layer, request)) : undefined
    if (way.spans !== undefined) watchHandlers(layer.route.stack)
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

function ownPattern(layer: Layer, request: Request): string | undefined {
  const path = layer.route?.path
  // Nearly always: no function is made for it.
  return typeof path === 'string' ? path : routePattern(layer, () => request.path)
}

/** A handler of a route, in its span. */
function handled(layer: Layer, handle: RequestHandler): RequestHandler {
  return function handleRequest(this: Layer, request, response, next) {
    const way = knownWay(request)
    if (way?.spans === undefined || layer.handle.length > 3) return handle.call(this, request, response, next)
    inSpan(way.spans, `handler ${routeOf(way) ?? layer.name}`, layer.handle, next, (leave) =>
      handle.call(this, request, response, leave),
    )
  }
}

/** Errors that come from no layer, such as those in loading a parameter, are seen where they go. */
function failed(layer: Layer, kind: Kind, handle: ErrorRequestHandler): ErrorRequestHandler {
  return function handleError(this: Layer, error, request, response, next) {
    recordError(request, error)
    const way = layer.handle.length === 4 ? knownWay(request) : undefined
    if (way === undefined) return handle.call(this, error, request, response, next)
    const { spans } = way
    const name = kind === 'route' ? `handler ${routeOf(way) ?? layer.name}` : `middleware ${layer.name}`
    const isKept = request.next === next
    const passOn = (again?: unknown): void => {
      if (request.next === given) request.next = next
      // It may meet another one, or answer 503 all by itself.
      if (!isFailure(again)) forgetError(request, error)
      // Outside of its route, a request that is well again is somebody else's.
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

/** A route that has taken the socket of an upgraded request is what the handshake was for. */
function socketTaken({ request, route }: Way): void {
  if (route !== undefined && hasSocketTaken(request)) endRequest(request, 101)
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
        ? routePattern(layer, () => rest)
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
    if (!isLayerOf(tracing, layer) || (layer.handle !== tracing && base !== request.baseUrl)) return undefined
    way.baseUrl = base
    return '/'
  })
}

/** Also where something has put another function in its place, which then has another name. */
function isLayerOf(fn: RequestHandler, { handle, name }: Layer): boolean {
  return handle === fn || (name === fn.name && handle.name !== name)
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

/** The whole path as the app has it by now: middleware may have put another one in the place of the client's. */
function pathOf({ baseUrl, path }: Request): string {
  return baseUrl + path
}

// ---- Upgraded requests ----

/** What express-ws puts behind the path that was asked for, and behind that of each route for WebSockets. */
const SUFFIX = /\/\.websocket(?=\?|$)/

/** Express-ws says whether one of its handlers has got the socket; whoever else routes upgraded requests does not. */
interface Upgraded {
  readonly upgrade?: boolean
  readonly wsHandled?: boolean
}

/** Method and headers are read later anyway, so these checks are nearly free. */
function isUpgraded(request: Request): boolean {
  const mayBe = request.method === 'CONNECT' || request.headers?.upgrade !== undefined
  return mayBe && (request as Upgraded).upgrade === true
}

/** Whether the route that has an upgraded request is the one that takes its socket. */
function hasSocketTaken(request: Request): boolean {
  return (request as Upgraded).wsHandled !== false
}

/** The path or the pattern as it was before express-ws. */
export function withoutSuffix(path: string): string {
  const before = path.replace(SUFFIX, '')
  return before === path || before.startsWith('/') ? before : `/${before}`
}
