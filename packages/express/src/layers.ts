import { recordError } from '@throughline/core'
import type { Request, RequestHandler } from 'express'

/**
 * Express keeps a request's way through its layers to itself: `req.baseUrl` holds the values of a mount path's
 * parameters, not their names, `req.route` stays set when a route has passed the request on, and errors go from layer to
 * layer. So each layer object (never its prototype) reports when a request enters and leaves it.
 */
interface Layer {
  readonly handle: RequestHandler & { stack?: Layer[] }
  readonly route?: { path: string | RegExp | readonly (string | RegExp)[] } | undefined
  /** Router 2.3 and newer. */
  readonly rawPath?: string | RegExp | readonly (string | RegExp)[]
  /** Express 4. */
  readonly regexp?: RegExp & { fast_slash?: boolean; fast_star?: boolean }
  readonly keys?: readonly { name: string | number }[]
  /** Router 2.0 to 2.2: parameters of the latest match. */
  readonly params?: Record<string, string>
  match(path: string): unknown
  handleRequest?: RequestHandler
  handle_request?: RequestHandler
}

interface Way {
  /** The patterns of the mount paths that the request is below; undefined where one of them cannot be known. */
  mount: string | undefined
  /** The values that stand for it in `req.baseUrl`. */
  baseUrl: string
  /** The route that has the request; undefined when none took it, or one passed it on. */
  route: string | undefined
}

interface Router {
  stack: Layer[]
}

const ways = new WeakMap<object, Way>()
const watched = new WeakSet<Layer>()
const seen = new WeakMap<Layer[], number>()

/** Watches the layers that the app's router has by now; to be called by each request, since layers come late too. */
export function watchRouter(request: Request): void {
  const stack = stackOf(request)
  if (stack !== undefined) watch(stack)
}

function stackOf({ app }: Request): Layer[] | undefined {
  const own = app as unknown as { _router?: Router; router?: Router }
  // Express 4 throws when its long removed `router` is read.
  return (own._router ?? own.router)?.stack
}

/** The pattern of the route that answered, mount paths included; undefined when no route did. */
export function routeOf(request: Request): string | undefined {
  return ways.get(request)?.route
}

function watch(stack: Layer[]): void {
  if (seen.get(stack) === stack.length) return
  seen.set(stack, stack.length)
  for (const layer of stack) {
    if (watched.has(layer)) continue
    watched.add(layer)
    if (layer.handleRequest !== undefined) layer.handleRequest = entered(layer, layer.handleRequest)
    else if (layer.handle_request !== undefined) layer.handle_request = entered(layer, layer.handle_request)
  }
}

function entered(layer: Layer, handle: RequestHandler): RequestHandler {
  return function handleRequest(this: Layer, request, response, next) {
    const way = wayOf(request)
    const { mount, baseUrl } = way
    if (layer.route !== undefined) {
      way.route = joined(mount, routePattern(layer, request.path))
    } else if (request.baseUrl.length > baseUrl.length) {
      way.mount = joined(mount, mountPattern(layer, request.baseUrl.slice(baseUrl.length)))
      way.baseUrl = request.baseUrl
    }
    if (layer.handle.stack !== undefined) watch(layer.handle.stack)
    const { app } = request

    handle.call(this, request, response, function left(error?: unknown) {
      way.mount = mount
      way.baseUrl = baseUrl
      const isError = error !== undefined && error !== null && error !== 'route' && error !== 'router'
      // An error handler answers for the route that failed; after a pass, somebody else answers.
      if (isError) recordError(request, error)
      else if (layer.route !== undefined) way.route = undefined
      next(error)
    })
    if (request.app !== app) metApp(request, way)
  }
}

/** A mounted app shows itself only by having taken the request; what it did with the first one is found out afterwards. */
function metApp(request: Request, way: Way): void {
  const stack = stackOf(request)
  if (stack === undefined || seen.has(stack)) return
  watch(stack)
  if (way.route === undefined && request.route !== undefined) {
    const found = locate(
      stack,
      request.route,
      request.originalUrl.slice(way.baseUrl.length).replace(/\?.*/, ''),
    )
    if (found !== undefined) way.route = joined(way.mount, found)
  }
}

function locate(stack: Layer[], route: unknown, path: string): string | undefined {
  for (const layer of stack) {
    if (layer.route !== undefined && layer.route === route) return routePattern(layer, path)
    const mounted = layer.handle.stack
    const segment = mounted === undefined ? undefined : matchedText(layer, path)
    const inner =
      segment === undefined ? undefined : locate(mounted as Layer[], route, path.slice(segment.length) || '/')
    if (inner !== undefined) return joined(mountPattern(layer, segment as string), inner)
  }
  return undefined
}

function wayOf(request: Request): Way {
  let way = ways.get(request)
  if (way === undefined) {
    way = { mount: '', baseUrl: '', route: undefined }
    ways.set(request, way)
  }
  return way
}

/** The pattern of a route's own path; of several, the one that this path matches. */
function routePattern(layer: Layer, path: string): string | undefined {
  const own = layer.route?.path
  if (!Array.isArray(own)) return String(own)
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
  return typeof match === 'object' && match !== null && 'path' in match ? String(match.path) : undefined
}

/** `/api` and `/users` → `/api/users`; `/api` and `/` → `/api`. */
function joined(mount: string | undefined, path: string | undefined): string | undefined {
  if (mount === undefined || path === undefined) return undefined
  const start = mount.replace(/\/+$/, '')
  return path === '/' && start !== '' ? start : start + path
}
