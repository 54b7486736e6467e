import {
  beforeEnd,
  isError,
  semconv,
  type Attributes,
  type BeginLayer,
  type LayerSpan,
} from '@throughline/core'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { isThenable, likened, nameOf, traced } from './hook.ts'
import { HOOKS, notFoundOf, type Done, type Route, type Step } from './route.ts'

/** The layers that a request is in, on its raw request. */
const OPEN = Symbol('throughline.layers')

// Shared by all registrations, so that registering twice makes no second span.
const seen = new WeakSet<Route>()

type Carrier = object & { [OPEN]?: Set<LayerSpan> }

/**
 * Gives the hooks and the handler of a route spans of their own, in place of what Fastify has bound when it was ready:
 * those that were added before the plugin had loaded are among them. A hook by the name `own` is left as it is.
 */
export function layersOf(begin: BeginLayer, own: string): (route: Route) => void {
  return function trace(route) {
    if (seen.has(route)) return
    seen.add(route)
    for (const hook of HOOKS) {
      const steps = route[hook] ?? []
      // In place: Fastify goes through this very list already.
      for (const [i, step] of steps.entries()) {
        const name = nameOf(step)
        if (name !== own) steps[i] = once(step, `hook ${hook}${name && ` ${name}`}`, name, tracedHook)
      }
    }
    const { handler } = route
    if (handler !== undefined) {
      const url = route.config?.url
      route.handler = once(
        handler,
        url === undefined ? 'handler' : `handler ${url}`,
        nameOf(handler),
        tracedHandler,
      )
    }
    const notFound = notFoundOf(route)
    if (notFound !== undefined) trace(notFound)
  }

  /** Routes share lists and handlers. */
  function once(step: Step, name: string, functionName: string, wrap: typeof tracedHook): Step {
    if (traced.has(step)) return step
    const attributes = functionName === '' ? {} : { [semconv.CODE_FUNCTION_NAME]: functionName }
    const wrapped = wrap(begin, step, name, attributes)
    likened(wrapped, step)
    traced.add(wrapped)
    return wrapped
  }
}

/** Open until the hook says that it is done, by its callback or its promise, or has answered. */
function tracedHook(begin: BeginLayer, hook: Step, name: string, attributes: Attributes): Step {
  return function (request, reply, ...rest) {
    const layer = begin(name, attributes)
    if (layer === undefined) return hook(request, reply, ...rest)
    const end = opened(layer, request, reply)
    const done = rest.pop() as Done
    const next: Done = (...given) => {
      end(given[0])
      layer.outside(() => done(...given))
    }
    return run(layer, end, reply, () => hook(request, reply, ...rest, next))
  }
}

/** Open until the handler has answered or, where it returns a promise, until that has settled. */
function tracedHandler(begin: BeginLayer, handler: Step, name: string, attributes: Attributes): Step {
  return function (request, reply) {
    const layer = begin(name, attributes)
    if (layer === undefined) return handler(request, reply)
    const end = opened(layer, request, reply)
    const result = run(layer, end, reply, () => handler(request, reply))
    if (result !== undefined && !isThenable(result)) end()
    return result
  }
}

type End = (error?: unknown) => void

/** Returns what ends the layer; it also ends with the answer, or without one when the request's span does. */
function opened(layer: LayerSpan, { raw }: FastifyRequest, reply: FastifyReply): End {
  const carrier: Carrier = raw
  if (carrier[OPEN] === undefined) {
    carrier[OPEN] = new Set()
    watchSend(reply, raw)
    beforeEnd(raw, () => void endLayers(raw))
  }
  const open = carrier[OPEN]
  open.add(layer)
  return (error) => {
    if (open.delete(layer)) layer.end(error)
  }
}

/** Ends the layers that a request is in, and returns the innermost. */
function endLayers(raw: Carrier, error?: unknown): LayerSpan | undefined {
  const open = [...(raw[OPEN] ?? [])]
  raw[OPEN]?.clear()
  for (const layer of open) layer.end(error)
  return open.at(-1)
}

function watchSend(reply: FastifyReply, raw: Carrier): void {
  const { send } = reply
  function sendOutside(this: FastifyReply, ...given: [unknown]): FastifyReply {
    const layer = endLayers(raw, isError(given[0]) ? given[0] : undefined)
    const answer = () => Reflect.apply(send, this, given)
    return layer === undefined ? answer() : layer.outside(answer)
  }
  likened(sendOutside, send)
  Object.defineProperty(reply, 'send', { value: sendOutside, writable: true, configurable: true })
}

function run(layer: LayerSpan, end: End, reply: FastifyReply, work: () => unknown): unknown {
  let result: unknown
  try {
    result = layer.within(work)
  } catch (error) {
    end(error)
    throw error
  }
  // The app's promise is handed on as it is; Fastify handles its rejection.
  if (result instanceof Promise) result.then(() => end(), end)
  // A reply is itself thenable, and resolves when the response is over, long after the answer.
  else if (result !== reply && isThenable(result)) return watched(result, end)
  return result
}

/** A lazy thenable, such as a query builder, starts when `then` is called: only Fastify may do so, once. */
function watched(result: PromiseLike<unknown>, end: End): PromiseLike<unknown> {
  return {
    // oxlint-disable-next-line unicorn/no-thenable -- it stands for one
    then: (fulfilled, rejected) =>
      result.then(
        (value) => {
          end()
          return fulfilled?.(value) as never
        },
        (error: unknown) => {
          end(error)
          return rejected?.(error) as never
        },
      ),
  }
}
