import { context, isTraced, override, sender, show, yieldsTo } from '@throughline/core'
import type { ClientBase, Pool } from 'pg'
import {
  begin,
  finish,
  queryOf,
  serverOf,
  type Connected,
  type Method,
  type PgOptions,
  type PgSender,
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

/** The client that is about to run a query of its Pool, which has its span already. */
let passing: ClientBase | undefined

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
  const send: PgSender = sender({ scope: SCOPE, text: (text: string) => text }, 'tracePg', options)
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
  override(methodsOf(client), 'query', (original) => {
    return function query(this: unknown, ...args) {
      const isOfPool = passing === client
      if (isOfPool) passing = undefined
      const send = isOfPool || !isTraced(owner) ? undefined : senders.get(owner)
      const asked = send && queryOf(args)
      if (send === undefined || asked === undefined) return Reflect.apply(original, this, args)
      const call = begin(send, asked, client)
      const { callback } = args[0] as { callback?: unknown }
      return finish(send, call, asked, original, this, args, callback)
    }
  })
}

function tracePool(pool: OpenPool): void {
  const send = senders.get(pool) as PgSender
  // The query of the pool that is calling connect() at this moment.
  let connecting: { readonly call: ReturnType<typeof begin> } | undefined

  override(methodsOf(pool), 'query', (original) => {
    return function query(this: unknown, ...args) {
      const asked = queryOf(args)
      if (asked === undefined) return Reflect.apply(original, this, args)
      const call = begin(send, asked, newest(pool))
      connecting = { call }
      try {
        return finish(send, call, asked, original, this, args)
      } finally {
        connecting = undefined
      }
    }
  })

  override(methodsOf(pool), 'connect', (original) => {
    return function connect(this: unknown, ...args) {
      const query = connecting
      connecting = undefined
      const [callback, ...rest] = args
      if (typeof callback !== 'function') return Reflect.apply(original, this, args)
      // On a busy pool whoever releases a client calls this back, in a context of his own.
      if (query === undefined)
        return Reflect.apply(original, this, [context.bind(context.active(), callback), ...rest])

      const known = newest(pool)
      const result = Reflect.apply(original, this, [acquired, ...rest])
      // At once, for a connection that fails is not seen again.
      if (newest(pool) !== known) query.call?.span.setAttributes(serverOf(newest(pool)))
      return result

      function acquired(error: unknown, client: Connected | undefined, release: unknown): unknown {
        if (client !== known) query?.call?.span.setAttributes(serverOf(client))
        passing = client
        try {
          return (callback as (...args: unknown[]) => unknown)(error, client, release)
        } finally {
          passing = undefined
        }
      }
    }
  })

  // A pool announces a client before it hands it out; this way no listener is added and no promise touched.
  override(methodsOf(pool), 'emit', (original) => {
    return function emit(this: unknown, ...args) {
      const [event, client] = args
      if (event === 'connect' || event === 'acquire') traceClient(client as Connected, pool)
      return Reflect.apply(original, this, args)
    }
  })
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
