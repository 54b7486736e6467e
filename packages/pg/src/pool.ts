import { context, isTraced, override, semconv, type Attributes, type Context } from '@throughline/core'
import { Call } from '@throughline/core/client'
import { isOfOthers, passOn, traceClient } from './client.ts'
import {
  clientsOf,
  isSamePlace,
  newest,
  NOWHERE,
  serverOf,
  SYSTEM,
  withOldNamesIfWanted,
  type Connected,
  type OpenPool,
  type Place,
} from './connection.ts'
import { failureOf } from './failure.ts'
import { answering, begin, callbackAt, ending, isQuery, type Method } from './form.ts'
import { gauge, gaugePool } from './gauge.ts'
import type { Tracing } from './options.ts'
import type { QueryCall } from './query.ts'
import { isSubmittable, watch } from './submittable.ts'

/** Context key for a query of a Pool subclass, which may call `connect()` later: the query that the call belongs to. */
const POOL_QUERY = Symbol('throughline.pg.query')

interface PoolQuery {
  readonly pool: OpenPool
  readonly call: QueryCall | null
  isTaken: boolean
}

export function tracePool(pool: OpenPool, tracing: Tracing): void {
  const isSubclass = hasQueryOfApp(pool)
  // The pool's query that is calling `connect()` at this moment: null for one without a span.
  let connecting: QueryCall | null | undefined
  // Whether a query that we leave to another instrumentation is calling `connect()` at this moment.
  let isLeft = false
  // The query whose `connect()` callback was intercepted, by which its end will be seen.
  let taken: QueryCall | null | undefined
  // What waits in the pool's queue. When the pool ends, it forgets them without calling back. Not a Set: V8 chains its old
  // tables to new ones; once one is in the old space, all later ones are kept with it, 0.3 KB a query.
  const queued: (QueryCall | ConnectCall)[] = []
  // Where its connections lead, kept while it has none: idle ones are closed after ten seconds.
  let place: Place = NOWHERE

  override(methodsOf(pool), 'query', (original, state) => {
    return function query(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      // Checked each time: another instrumentation may come after us, and go.
      if (isOfOthers(clientsOf(pool))) return leave(original, this, args)
      const first = args[0]
      const call = begin(tracing, args, newest(pool) ?? place)
      const position = callbackAt(args)
      const callback = args[position]
      const isOwn = isSubmittable(first)
      if (isOwn) watch(first, call, call?.caller ?? context.active())
      if (typeof callback === 'function' && (isOwn || isQuery(first)))
        args[position] = answering(call, callback as Method, call?.caller ?? context.active())
      connecting = call ?? null
      try {
        const result = isSubclass ? within(call, original, this, args) : Reflect.apply(original, this, args)
        // The pool's own promise: one more costs 1 µs where async hooks follow promises.
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
      gauge()
      const call = connecting === undefined && isSubclass ? callOfClass(pool) : connecting
      connecting = undefined
      const callback = args[0]
      if (call === undefined) return connectFor(isLeft ? undefined : tracing.connects, original, this, args)
      if (typeof callback !== 'function') return Reflect.apply(original, this, args)

      taken = call
      const askedAt = call !== null && hasToWait(pool) ? performance.now() : undefined
      const known = newest(pool)
      const { waitingCount } = pool
      let isQueued = false
      args[0] = acquired
      const result = Reflect.apply(original, this, args)
      if (call !== null) isQueued = enqueue(call, waitingCount)
      // At once: a connection that fails is not seen again.
      if (call !== null && newest(pool) !== known) call.on(newest(pool))
      return result

      function acquired(error: unknown, client: Connected | undefined, release: unknown): unknown {
        if (call && isQueued) unqueue(call)
        if (askedAt !== undefined) call?.waited(performance.now() - askedAt)
        if (error) call?.end(error)
        else call?.on(client)
        return passOn(callback as Method, error, client, release, call ?? undefined)
      }
    }
  })

  /** A subclass may call `connect()` later. */
  function within(call: QueryCall | undefined, original: Method, self: unknown, args: unknown[]): unknown {
    const own: PoolQuery = { pool, call: call ?? null, isTaken: false }
    const scope = (call?.caller ?? context.active()).setValue(POOL_QUERY, own)
    const result = context.with(scope, () => Reflect.apply(original, self, args))
    // It has called `connect()` already.
    if (connecting === undefined) own.isTaken = true
    return result
  }

  /** A query that has no span of ours here: the client's `query` decides for itself. */
  function leave(original: Method, self: unknown, args: unknown[]): unknown {
    isLeft = true
    try {
      return Reflect.apply(original, self, args)
    } finally {
      isLeft = false
    }
  }

  function connectFor(send: Tracing['connects'], original: Method, self: unknown, args: unknown[]): unknown {
    const call = beginConnect(send, newest(pool) ?? place)
    const callback = args[0]
    const isCalledBack = typeof callback === 'function'
    // On a busy pool this is called by whoever releases a client, in that one's context.
    const caller = isCalledBack && context.bind(call?.caller ?? context.active(), callback as Method)
    if (call === undefined) {
      if (caller) args[0] = caller
      return Reflect.apply(original, self, args)
    }

    let isQueued = false
    const end = (error: unknown, client?: unknown) => {
      if (isQueued) unqueue(call)
      call.end(error, client)
    }
    const acquired = (...outcome: unknown[]) => {
      end(outcome[0], outcome[1])
      return (caller as Method)(...outcome)
    }
    const known = newest(pool)
    const { waitingCount } = pool
    if (caller) args[0] = acquired
    const result = Reflect.apply(original, self, args)
    isQueued = enqueue(call, waitingCount)
    // At once: a connection that fails is not seen again.
    if (newest(pool) !== known) call.on(newest(pool))
    return caller ? result : ending({ end }, result)
  }

  /** Lists the call if the pool's queue has grown by it: `before` is how many waited until then. */
  function enqueue(call: QueryCall | ConnectCall, before: number): boolean {
    if (pool.waitingCount <= before) return false
    call.queuedAs = pool._pendingQueue?.at(-1)
    queued.push(call)
    return true
  }

  function unqueue(call: QueryCall | ConnectCall): void {
    // Nearly always the first, as in the pool's own queue.
    const index = queued.indexOf(call)
    if (index === 0) queued.shift()
    else if (index !== -1) queued.splice(index, 1)
  }

  override(methodsOf(pool), 'end', (original) => {
    return function end(this: unknown, ...args) {
      const result = Reflect.apply(original, this, args)
      // With this option each has a timer that calls it back.
      if (!pool.options.connectionTimeoutMillis) {
        // One for which a connection is being made has left the pool's queue, and will be called back.
        const forgotten = new Set(pool._pendingQueue)
        for (const call of queued.splice(0)) if (forgotten.has(call.queuedAs)) call.abandon()
      }
      return result
    }
  })

  // A pool announces a client before it hands it out; this way no listener is added and no promise touched.
  override(methodsOf(pool), 'emit', (original, state) => {
    return function emit(this: unknown, ...args) {
      if (!state.isOn) return Reflect.apply(original, this, args)
      const event = args[0]
      if (event === 'connect') {
        const { host, port, database } = args[1] as Place
        place = { host, port, database } as Place
      }
      if ((event === 'connect' || event === 'acquire') && !isTraced(args[1] as Connected))
        traceClient(args[1] as Connected, pool)
      return Reflect.apply(original, this, args)
    }
  })

  traceOnConnect(pool)
  gaugePool(pool)
}

/** The client that the option `onConnect` gets has not been announced yet: it is traced as soon as the pool has made it. */
function traceOnConnect(pool: OpenPool): void {
  if (typeof (pool.options as { onConnect?: unknown }).onConnect !== 'function') return
  override(methodsOf(pool), 'newClient', (original) => {
    return function newClient(this: unknown, ...args) {
      const result = Reflect.apply(original, this, args)
      const client = newest(pool)
      if (client !== undefined) traceClient(client, pool)
      return result
    }
  })
}

/** Whether `query` is overridden by a subclass of the app's. */
function hasQueryOfApp(pool: OpenPool): boolean {
  const owners: object[] = []
  for (let of: object | null = pool; of !== null; of = Object.getPrototypeOf(of) as object | null) {
    if (Object.hasOwn(of, 'query')) owners.push(of)
  }
  return owners.length > 1
}

/** The query for which the app's subclass asks for a connection, the first time only. */
function callOfClass(pool: OpenPool): QueryCall | null | undefined {
  const own = context.active().getValue(POOL_QUERY) as PoolQuery | undefined
  if (own === undefined || own.pool !== pool || own.isTaken) return undefined
  own.isTaken = true
  return own.call
}

/** Whether no connection is free now: one must be made, or returned. */
function hasToWait({ idleCount, waitingCount }: OpenPool): boolean {
  return idleCount <= waitingCount
}

// The overloads of pg's methods are many, and all pass through as they are.
function methodsOf(target: object): Record<'query' | 'connect' | 'newClient' | 'emit' | 'end', Method> {
  return target as Record<'query' | 'connect' | 'newClient' | 'emit' | 'end', Method>
}

/** What the span is named after: the call of the app. */
const NAME = 'pool.connect'

/** The app waits for a connection of a pool. */
class ConnectCall extends Call<[], []> {
  /** What the pool's queue has for it. */
  queuedAs: unknown = undefined
  readonly #send: NonNullable<Tracing['connects']>
  #place: Place

  constructor(send: NonNullable<Tracing['connects']>, caller: Context, place: Place) {
    super(caller)
    this.#send = send
    this.#place = place
  }

  override name(): string {
    return NAME
  }

  override subject(): [] {
    return []
  }

  override outcome(): [] {
    return []
  }

  override build(): Attributes {
    return withOldNamesIfWanted({ [semconv.DB_SYSTEM_NAME]: SYSTEM, ...serverOf(this.#place) })
  }

  end(error: unknown, client?: unknown): void {
    if (error) {
      const { status, type, message } = failureOf(error)
      if (status !== undefined) this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, status)
      this.#send.fail(this, type, message)
      return
    }
    this.on(client as Place)
    this.#send.succeed(this)
  }

  /** It waits, or has waited, for this client. */
  on(client: Place | undefined): void {
    if (client === undefined || isSamePlace(client, this.#place)) return
    this.#place = client
    this.span.setAttributes(withOldNamesIfWanted(serverOf(client)))
  }
}

/** Begins the span of a `pool.connect()`; undefined where the app wants none. */
function beginConnect(send: Tracing['connects'], place: Place): ConnectCall | undefined {
  const caller = send?.caller()
  if (send === undefined || caller === undefined) return undefined
  const call = new ConnectCall(send, caller, place)
  return send.begin(call) ? call : undefined
}
