import { context, holdOptions, isTraced, override, ROOT_CONTEXT, yieldsTo } from '@throughline/core'
import type { ClientBase } from 'pg'
import type { Connected } from './connection.ts'
import { begin, isQuery, run, runWith, type Method } from './form.ts'
import type { Tracing } from './options.ts'
import type { QueryCall } from './query.ts'
import { isSubmittable, watch } from './submittable.ts'

/** How each target is traced. The clients of a Pool ask here, for they stay wrapped when it is untraced. */
const tracings = new WeakMap<object, Tracing>()

export function setTracing(target: object, tracing: Tracing): void {
  tracings.set(target, tracing)
  holdOptions(target, tracing.options)
}

/** What a connection tells by itself. It outlives the one who was the first to need it, in whose context it tells this. */
const OF_NOBODY: ReadonlySet<unknown> = new Set(['end', 'error', 'notice', 'notification'])

/** The client that is about to run a query of its Pool, and the span that this has already. */
let passing: ClientBase | undefined
let passingCall: QueryCall | undefined

/** Runs the pool's callback, marking the client so that its `query` is not counted twice. */
export function passOn(
  callback: Method,
  error: unknown,
  client: ClientBase | undefined,
  release: unknown,
  call: QueryCall | undefined,
): unknown {
  passing = client
  passingCall = call
  try {
    return (callback as (...args: unknown[]) => unknown)(error, client, release)
  } finally {
    // A pool of a class of the app's may do without a query; then this was all.
    if (passing !== undefined) passingCall?.end(undefined)
    passing = undefined
    passingCall = undefined
  }
}

/**
 * Whether another instrumentation traces the queries of what begins with this, so that ours yields, and says so once. A class
 * of the app's may have a `query` of its own in front of the one that is traced.
 */
export function isOfOthers(target: { readonly query?: unknown } | null | undefined): boolean {
  let of = target
  while (typeof of?.query === 'function') {
    if (yieldsTo(of.query, 'pg', 'tracePg')) return true
    of = Object.getPrototypeOf(of) as typeof target
  }
  return false
}

/** Traces a client for as long as its owner is traced: itself, or its Pool. A Pool may lend what has no query. */
export function traceClient(client: Connected, owner: object): void {
  if (isTraced(client) || typeof client.query !== 'function' || isOfOthers(client)) return
  holdOptions(client, tracings.get(owner)?.options ?? {})
  override(client as unknown as Record<'query', Method>, 'query', (original, state) => {
    return function query(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      if (passing === client) {
        const call = passingCall
        passing = undefined
        passingCall = undefined
        return call === undefined || isSubmittable(args[0])
          ? Reflect.apply(original, this, args)
          : runOfPool(call, original, this, args)
      }
      const tracing = isTraced(owner) ? tracings.get(owner) : undefined
      if (tracing === undefined) return Reflect.apply(original, this, args)
      const first = args[0]
      const call = begin(tracing, args, client)
      if (isSubmittable(first)) {
        watch(first, call, call?.caller ?? context.active())
        return Reflect.apply(original, this, args)
      }
      // Without a span, only a callback has to be seen to.
      if (call === undefined && !isQuery(first)) return Reflect.apply(original, this, args)
      return run(call, original, this, args, (first as { callback?: unknown }).callback)
    }
  })

  if (typeof client.emit !== 'function') return
  override(client as unknown as Record<'emit', Method>, 'emit', (original, state) => {
    return function emit(this: unknown, ...args) {
      return state.isOn && OF_NOBODY.has(args[0]) && isTraced(owner)
        ? context.with(ROOT_CONTEXT, original, this, ...args)
        : Reflect.apply(original, this, args)
    }
  })
}

/** Runs a query of the pool's on its client, and ends the span with it. */
function runOfPool(call: QueryCall, original: Method, self: unknown, args: unknown[]): unknown {
  const callback = args[2] as Method | undefined
  if (typeof callback !== 'function') return run(call, original, self, args, undefined)
  try {
    return runWith(original, self, args, 2, answered, callback)
  } catch (error) {
    call.end(error)
    throw error
  }

  // The pool's own callback, which has no context to mind.
  function answered(this: unknown, error: unknown, result: unknown): unknown {
    call.end(error, result)
    return Reflect.apply(callback as Method, this, [error, result])
  }
}
