import { context, isTraced, override, sender, show, yieldsTo } from '@throughline/core'
import type { ClientBase, Pool } from 'pg'
import {
  answering,
  begin,
  callbackAt,
  ending,
  isQuery,
  run,
  runWith,
  type Connected,
  type Method,
  type PgOptions,
  type PgSender,
  type QueryCall,
} from './query.ts'

export type { PgOptions, Query } from './query.ts'

const SCOPE = { name: '@throughline/pg', version: '0.1.0' }

/** A Pool with what its typings do not tell. */
type OpenPool = Pool & {
  readonly _clients?: readonly Connected[]
  readonly Client?: { prototype: ClientBase }
}

/** The sender of everything that is traced. The clients of a Pool ask here, for they stay wrapped when it is untraced. */
const senders = new WeakMap<object, PgSender>()

/** The client that is about to run a query of its Pool, and the span that this has already. */
let passing: ClientBase | undefined
let passingCall: QueryCall | undefined

/**
 * Traces the queries of a Pool or of a Client of pg, each as a CLIENT span (semantic conventions, database spans), and
 * gives the same object back. The clients of a Pool are traced with it, those of `pool.connect()` too. Twice is once.
 *
 * @throws TypeError for what is neither a Pool nor a Client, and for an option that is unknown or of the wrong shape.
 */
export function tracePg<Target extends Pool | ClientBase>(target: Target, options: PgOptions = {}): Target {
  if (typeof target?.query !== 'function' || typeof target.connect !== 'function') {
    throw new TypeError(
      `tracePg: expected a Pool or a Client of pg, received ${show(target)}; example: tracePg(new Pool())`,
    )
  }
  const send: PgSender = sender(
    { scope: SCOPE, isSilent: true, text: (text: string) => text },
    'tracePg',
    options,
  )
  const { query } = isPool(target) ? ((target as OpenPool).Client?.prototype ?? target) : target
  if (isTraced(target) || yieldsTo(query, 'pg', 'tracePg')) return target
  senders.set(target, send)
  if (isPool(target)) tracePool(target)
  else traceClient(target, target)
  return target
}

/** Traces a client for as long as its owner is traced: itself, or its Pool. */
function traceClient(client: Connected, owner: object): void {
  if (isTraced(client)) return
  override(methodsOf(client), 'query', (original, state) => {
    return function query(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      if (passing === client) {
        const call = passingCall
        passing = undefined
        passingCall = undefined
        return call === undefined
          ? Reflect.apply(original, this, args)
          : runOfPool(call, original, this, args)
      }
      const send = isTraced(owner) ? senders.get(owner) : undefined
      const call = send && begin(send, args, client)
      // Without a span, only a callback has to be seen to.
      if (send === undefined || (call === undefined && !isQuery(args[0]))) {
        return Reflect.apply(original, this, args)
      }
      return run(call, original, this, args, (args[0] as { callback?: unknown }).callback)
    }
  })
}

function tracePool(pool: OpenPool): void {
  const send = senders.get(pool) as PgSender
  // The query of the pool that is calling connect() at this moment: null for one that has no span.
  let connecting: QueryCall | null | undefined
  // The one that has found a callback of the pool there, by which its end will be seen.
  let taken: QueryCall | null | undefined

  override(methodsOf(pool), 'query', (original, state) => {
    return function query(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      const call = begin(send, args, newest(pool))
      const position = callbackAt(args)
      const callback = args[position]
      if (typeof callback === 'function' && isQuery(args[0])) {
        args[position] = answering(call, callback as Method, call?.caller ?? context.active())
      }
      connecting = call ?? null
      try {
        const result = Reflect.apply(original, this, args)
        // The pool's own promise: another one on top of it costs 1 µs where promises are followed by hooks.
        if (call === undefined || call === taken || typeof callback === 'function') return result
        return ending(call, result)
      } catch (error) {
        call?.end(error)
        throw error
      } finally {
        connecting = undefined
        taken = undefined
      }
    }
  })

  override(methodsOf(pool), 'connect', (original, state) => {
    return function connect(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      const call = connecting
      connecting = undefined
      const [callback, ...rest] = args
      if (typeof callback !== 'function') return Reflect.apply(original, this, args)
      // On a busy pool whoever releases a client calls this back, in a context of his own.
      if (call === undefined)
        return Reflect.apply(original, this, [context.bind(context.active(), callback), ...rest])

      taken = call
      const known = newest(pool)
      const result = Reflect.apply(original, this, [acquired, ...rest])
      // At once, for a connection that fails is not seen again.
      if (call !== null && newest(pool) !== known) call.on(newest(pool))
      return result

      function acquired(error: unknown, client: Connected | undefined, release: unknown): unknown {
        if (error) call?.end(error)
        else call?.on(client)
        passing = client
        passingCall = call ?? undefined
        try {
          return (callback as (...args: unknown[]) => unknown)(error, client, release)
        } finally {
          // A pool of a class of the app's may do without a query; then this was all.
          if (passing !== undefined) passingCall?.end(undefined)
          passing = undefined
          passingCall = undefined
        }
      }
    }
  })

  // A pool announces a client before it hands it out; this way no listener is added and no promise touched.
  override(methodsOf(pool), 'emit', (original, state) => {
    return function emit(this: unknown, ...args) {
      const [event, client] = args
      if (!state.isOn) return Reflect.apply(original, this, args)
      if (event === 'connect' || event === 'acquire') traceClient(client as Connected, pool)
      return Reflect.apply(original, this, args)
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

/** The client that the pool made last. All have the pool's options, so it stands for the others until one is picked. */
function newest(pool: OpenPool): Connected | undefined {
  return pool._clients?.at(-1)
}

function isPool(target: Pool | ClientBase): target is Pool {
  return 'totalCount' in target
}

// The overloads of pg's methods are many, and all pass through as they are.
function methodsOf(target: object): Record<'query' | 'connect' | 'emit', Method> {
  return target as Record<'query' | 'connect' | 'emit', Method>
}
