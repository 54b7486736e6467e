import { context, holdOptions, isTraced, override, ROOT_CONTEXT } from '@throughline/core'
import { yieldsTo } from '@throughline/core/client'
import type { ClientBase } from 'pg'
import type { Connected } from './connection.ts'
import { begin, isQuery, run, runWith, type Method } from './form.ts'
import type { Tracing } from './options.ts'
import type { QueryCall } from './query.ts'
import { isSubmittable, watch } from './submittable.ts'

/** How each target is traced. Looked up by the clients of a Pool, which stay wrapped when it is untraced. */
const tracings = new WeakMap<object, Tracing>()

export function setTracing(target: object, tracing: Tracing): void {
  tracings.set(target, tracing)
  holdOptions(target, tracing.options)
}

/** Events that no query causes. They would be emitted in the context that first needed the connection, which outlives it. */
const OF_NOBODY: ReadonlySet<unknown> = new Set(['end', 'error', 'notice', 'notification'])

/** The client that is about to run its Pool's query, and the call that this already has. */
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
    // An app's own Pool class may run no query: then the call ends here.
    if (passing !== undefined) passingCall?.end(undefined)
    passing = undefined
    passingCall = undefined
  }
}

/**
 * Whether another instrumentation already traces the queries of this target; ours then yields, and says so once. An app's own
 * class may override the traced `query`, so the prototypes are searched too.
 */
export function isOfOthers(target: { readonly query?: unknown } | null | undefined): boolean {
  let of = target
  while (typeof of?.query === 'function') {
    if (yieldsTo(of.query, 'pg', 'tracePg')) return true
    of = Object.getPrototypeOf(of) as typeof target
  }
  return false
}

/** Traces a client for as long as its owner is traced: itself, or its Pool. What a Pool lends may have no `query`. */
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
          ? submit(call, original, this, args)
          : runOfPool(call, original, this, args)
      }
      const tracing = isTraced(owner) ? tracings.get(owner) : undefined
      if (tracing === undefined) return Reflect.apply(original, this, args)
      const first = args[0]
      const call = begin(tracing, args, client)
      if (call !== undefined && isKeptForEver(client, first)) call.abandon()
      if (isSubmittable(first)) {
        watch(first, call, call?.caller ?? context.active())
        return submit(call, original, this, args)
      }
      // Without a span, only the callback's context matters.
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

/** What is asked of a connection that could not be made, pg never answers, unless by a timeout of the query. */
function isKeptForEver(client: Connected, query: unknown): boolean {
  if (!client._ended || !client._queryable || client._ending) return false
  const { query_timeout: own } = Object(query) as { query_timeout?: unknown }
  return !own && !client.connectionParameters?.query_timeout
}

/** A cursor throws on a client of pg.native. */
function submit(call: QueryCall | undefined, original: Method, self: unknown, args: unknown[]): unknown {
  try {
    return Reflect.apply(original, self, args)
  } catch (error) {
    call?.end(error)
    throw error
  }
}

/** Runs a pool's query on its client, and ends the span with it. */
function runOfPool(call: QueryCall, original: Method, self: unknown, args: unknown[]): unknown {
  const callback = args[2] as Method | undefined
  if (typeof callback !== 'function') return run(call, original, self, args, undefined)
  try {
    return runWith(original, self, args, 2, answered, callback)
  } catch (error) {
    call.end(error)
    throw error
  }

  // The pool's own callback, which needs no context.
  function answered(this: unknown, error: unknown, result: unknown): unknown {
    call.end(error, result)
    return Reflect.apply(callback as Method, this, [error, result])
  }
}
