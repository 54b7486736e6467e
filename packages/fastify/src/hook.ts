import { rejoin } from '@throughline/core'
import { types } from 'node:util'
import { HOOKS, notFoundOf, type Done, type Route, type Step } from './route.ts'

// Shared by all registrations.
const seen = new WeakSet<Route>()
const joined = new WeakSet<Step>()
/** Hooks and handlers that have a span, as layers.ts gives them one. */
export const traced = new WeakSet<Step>()

/** Those that `reply.send()` calls, and it may be called from anywhere: by the callback of a connection, by another request. */
const OF_ANSWER: ReadonlySet<string> = new Set(['preSerialization', 'onSend', 'onError'])

/**
 * Lets the hooks of a route run and hand the request on in its own context, also where another request calls their `done`, as a
 * limiter that lets the next one in, or has answered this one. In place of what Fastify has bound when it was ready. A hook
 * by the name `own` is left as it is.
 */
export function joinHooks(route: Route, own: string): void {
  if (seen.has(route)) return
  seen.add(route)
  for (const hook of [...HOOKS, 'onError'] as const) {
    const steps = route[hook] ?? []
    // In place: Fastify goes through this very list already.
    for (const [i, step] of steps.entries())
      if (nameOf(step) !== own) steps[i] = joinedHook(step, OF_ANSWER.has(hook))
  }
  const notFound = notFoundOf(route)
  if (notFound !== undefined) joinHooks(notFound, own)
}

/** Routes share lists and hooks, those of their 404s above all: what has a span keeps it, and gets no second. */
function joinedHook(hook: Step, isOfAnswer: boolean): Step {
  if (joined.has(hook)) return hook
  // An async hook has no `done`, and hands on in the context that it was called in.
  const isAsync = hook.constructor.name === 'AsyncFunction'
  if (isAsync && !isOfAnswer) return hook
  const step: Step = (request, reply, ...rest) => {
    const { raw } = request
    if (isAsync) return rejoin(raw, hook, request, reply, ...rest)
    const done = rest.pop() as Done
    const next = (...given: Parameters<Done>): void => rejoin(raw, done, ...given)
    const result = isOfAnswer
      ? rejoin(raw, hook, request, reply, ...rest, next)
      : hook(request, reply, ...rest, next)
    // A reply is itself thenable.
    if (result === undefined || result === reply || types.isPromise(result) || !isThenable(result))
      return result
    return settled(result)
  }
  likened(step, hook)
  joined.add(step)
  if (traced.has(hook)) traced.add(step)
  return step
}

/** Settles in the context in which it is asked for: bluebird's promises call back in that of another one. */
async function settled(result: PromiseLike<unknown>): Promise<unknown> {
  return result
}

export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}

/** The name of a hook or handler before Fastify has bound it to its instance. */
export function nameOf(step: Step): string {
  return step.name.replace(/^(?:bound )+/, '')
}

/** Gives a replacement the name and number of parameters of the function that it replaces. */
export function likened(fn: object, { name, length }: { name: string; length: number }): void {
  Object.defineProperties(fn, { name: { value: name }, length: { value: length } })
}
