import { rejoin } from '@throughline/core'
import { HOOKS, notFoundOf, type Done, type Route, type Step } from './route.ts'

// Shared by all registrations.
const seen = new WeakSet<Route>()
const joined = new WeakSet<Step>()
/** Hooks and handlers that have a span, as layers.ts gives them one. */
export const traced = new WeakSet<Step>()

/**
 * Lets the hooks of a route hand the request on in its own context, also where another request calls their `done`: a
 * limiter that lets the next one in. In place of what Fastify has bound when it was ready. A hook by the name `own`
 * is left as it is.
 */
export function joinHooks(route: Route, own: string): void {
  if (seen.has(route)) return
  seen.add(route)
  for (const hook of [...HOOKS, 'onError'] as const) {
    const steps = route[hook] ?? []
    // In place: Fastify goes through this very list already. An async hook has no `done`.
    for (const [i, step] of steps.entries())
      if (nameOf(step) !== own && step.constructor.name !== 'AsyncFunction') steps[i] = joinedHook(step)
  }
  const notFound = notFoundOf(route)
  if (notFound !== undefined) joinHooks(notFound, own)
}

/** Routes share lists and hooks, those of their 404s above all: what has a span keeps it, and gets no second. */
function joinedHook(hook: Step): Step {
  if (joined.has(hook)) return hook
  const step: Step = (request, reply, ...rest) => {
    const done = rest.pop() as Done
    return hook(request, reply, ...rest, (...given: Parameters<Done>) => rejoin(request.raw, done, ...given))
  }
  likened(step, hook)
  joined.add(step)
  if (traced.has(hook)) traced.add(step)
  return step
}

/** The name of a hook or handler before Fastify has bound it to its instance. */
export function nameOf(step: Step): string {
  return step.name.replace(/^(?:bound )+/, '')
}

/** Gives a replacement the name and number of parameters of the function that it replaces. */
export function likened(fn: object, { name, length }: { name: string; length: number }): void {
  Object.defineProperties(fn, { name: { value: name }, length: { value: length } })
}
