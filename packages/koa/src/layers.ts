import {
  override,
  rejoin,
  semconv,
  type Attributes,
  type BeginLayer,
  type LayerSpan,
} from '@throughline/core'
import type Application from 'koa'
import type { Context, Middleware, Next } from 'koa'
import { setImmediate } from 'node:timers'
import type { Layer } from './route.ts'

/** koa-convert keeps the name of what it has converted; a router says which parameter a handler is for. */
type Named = Middleware & {
  readonly _name?: string
  readonly param?: string
  readonly _originalFn?: { readonly name: string }
  readonly router?: Router
}

/** What @koa/router and koa-router have in common. */
interface Router {
  readonly opts?: { readonly prefix?: string }
  match(path: string, method: string): { readonly pathAndMethod: readonly RouterLayer[] }
}

interface RouterLayer extends Layer {
  readonly stack: readonly Named[]
}

/** How to run the layers of the router that is being entered. */
interface Gate {
  replace: ((layer: RouterLayer) => RouterLayer) | undefined
}

interface Chain {
  /** The app's middleware that this was made from. */
  readonly of: readonly Middleware[]
  readonly run: Middleware
}

type Downstream = (ctx: Context, next: Next) => unknown

const ANONYMOUS = '<anonymous>'

/**
 * Runs what the app has mounted behind a middleware with a span for each. Koa has put its middleware together before the
 * first request tells us which app it is, and keeps a copy: so ours is called in place of what Koa would call next. The
 * list that the app can see stays as it is, and a middleware that is not in it hands on as ever.
 */
export function layered(begin: BeginLayer, first: () => Middleware): Downstream {
  const chains = new WeakMap<Application, Chain>()

  return (ctx, next) => {
    const { app } = ctx
    let chain = chains.get(app)
    if (chain === undefined || !isSame(chain.of, app.middleware)) {
      const behind = behindOf(app.middleware, first())
      if (behind === undefined) return next()
      const { compose = composed } = app as { compose?: typeof composed }
      chain = { of: [...app.middleware], run: compose(behind.map(spannedInApp)) }
      chains.set(app, chain)
    }
    return chain.run(ctx, resolved)
  }

  function spannedInApp(fn: Named): Middleware {
    const { router } = fn
    if (router === undefined) return spanned(fn, `middleware ${nameOf(fn)}`, nameOf(fn))
    const gate = gateOf(router)
    const entering: Middleware = (ctx, next) => {
      gate.replace = spannedLayer
      try {
        return fn(ctx, next)
      } finally {
        gate.replace = undefined
      }
    }
    const prefix = router.opts?.prefix ?? ''
    return spanned(fn, prefix === '' ? 'router' : `router ${prefix}`, ANONYMOUS, entering)
  }

  function spannedLayer(layer: RouterLayer): RouterLayer {
    const isRoute = layer.methods.length > 0
    const stack = layer.stack.map((fn) => {
      if (fn.param !== undefined) return spanned(fn, `param ${fn.param}`, fn._originalFn?.name ?? '')
      const name = nameOf(fn)
      return spanned(fn, isRoute ? `handler ${String(layer.path)}` : `middleware ${name}`, name)
    })
    return Object.create(layer, { stack: { value: stack } }) as RouterLayer
  }

  /** `run`, which is `fn` unless said otherwise, with a span that ends when what it returns has settled. */
  function spanned(fn: Middleware, spanName: string, name: string, run = fn): Middleware {
    const attributes: Attributes =
      name === '' || name === ANONYMOUS ? {} : { [semconv.CODE_FUNCTION_NAME]: name }
    const enter: Middleware = (ctx, next) => {
      const span = begin(spanName, attributes)
      return span === undefined ? fn(ctx, next) : settled(span, ctx, () => run(ctx, next))
    }
    // The one in front of it may have been called back by another request.
    const traced: Middleware = (ctx, next) => rejoin(ctx.req, enter, ctx, next)
    Object.defineProperty(traced, 'name', { value: fn.name, configurable: true })
    return traced
  }
}

const gates = new WeakMap<Router, Gate>()

// A router asks itself which layers match as soon as it is entered, and runs those. What it has in its own list, and what
// it answers to anybody else, stays as it is.
function gateOf(router: Router): Gate {
  const known = gates.get(router)
  if (known !== undefined) return known
  const gate: Gate = { replace: undefined }
  gates.set(router, gate)
  if (typeof router.match !== 'function' || !Object.isExtensible(router)) return gate
  override(
    router,
    'match',
    (match) =>
      function (...args) {
        const matched = match.apply(router, args)
        const { replace } = gate
        if (replace === undefined) return matched
        gate.replace = undefined
        return { ...matched, pathAndMethod: matched.pathAndMethod.map(replace) }
      },
  )
  return gate
}

/** The layers of a request that have not settled. */
const layersOf = new WeakMap<Context, Set<LayerSpan>>()

function openOf(ctx: Context): Set<LayerSpan> {
  let open = layersOf.get(ctx)
  if (open === undefined) layersOf.set(ctx, (open = new Set()))
  return open
}

/**
 * The request has closed: what has not settled may never do so. It gets one turn of the loop more, as what fails by the close
 * settles after it, with an error.
 */
export function endLayers(ctx: Context): void {
  const open = layersOf.get(ctx)
  if (open === undefined || open.size === 0) return
  setImmediate(() => {
    for (const span of [...open].toReversed()) span.end()
    open.clear()
  })
}

function settled(span: LayerSpan, ctx: Context, run: () => unknown): unknown {
  let result: unknown
  try {
    result = span.within(run)
  } catch (error) {
    span.end(failureOf(error))
    throw error
  }
  if (!isThenable(result)) {
    span.end()
    return result
  }
  const open = openOf(ctx)
  open.add(span)
  return Promise.resolve(result).then(
    (value) => {
      open.delete(span)
      span.end()
      return value
    },
    (error: unknown) => {
      open.delete(span)
      span.end(failureOf(error))
      throw error
    },
  )
}

/** `ctx.throw(404)` is an answer: no failure of the middleware, nor of the request. */
function failureOf(error: unknown): unknown {
  try {
    const { status } = (error ?? {}) as { status?: unknown }
    return typeof status === 'number' && status < 500 ? undefined : error
  } catch {
    // An app may throw anything, and what is above gets that very thing.
    return error
  }
}

function isThenable(value: unknown): boolean {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}

function nameOf(fn: Named): string {
  const name = fn._name ?? fn.name
  return name === '' ? ANONYMOUS : name
}

/** Undefined where `first` is not in the list, or has a list behind it, which koa-compose 4.2 takes for its middleware. */
function behindOf(middleware: readonly Named[], first: Middleware): readonly Named[] | undefined {
  const index = middleware.indexOf(first)
  if (index === -1) return undefined
  const behind = middleware.slice(index + 1)
  return behind.every((each) => typeof each === 'function') ? behind : undefined
}

/** Asked in each request. */
function isSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  if (a.length !== b.length) return false
  for (let index = 0; index < a.length; index++) if (a[index] !== b[index]) return false
  return true
}

const resolved: Next = () => Promise.resolve()

/** koa-compose, which Koa 2 does not export. */
function composed(middleware: readonly Middleware[]): Middleware {
  return (ctx, next) => {
    let last = -1
    const dispatch = (index: number): Promise<unknown> => {
      if (index <= last) return Promise.reject(new Error('next() called multiple times'))
      last = index
      const fn = middleware[index]
      try {
        return Promise.resolve(fn === undefined ? next() : fn(ctx, () => dispatch(index + 1)))
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return dispatch(0)
  }
}
