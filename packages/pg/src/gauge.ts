import { instrumentsFor, isTraced, semconv } from '@throughline/core'
import { newest, poolNameOf, type OpenPool } from './connection.ts'
import { SCOPE } from './options.ts'

/** The pools that are measured, for as long as the app has them. */
const pools = new Set<WeakRef<OpenPool>>()
/** Names of pools that have had a connection: their options do not hold it. */
const names = new WeakMap<OpenPool, string>()

/**
 * The names reported, and how many times in a row as zero: a MeterProvider repeats the last value of a name that is no longer
 * reported, so it must be set to zero. Several times, as there may be several collectors; not for ever, as an app may have a
 * pool for each tenant.
 */
const told = new Map<string, number>()
const MOST_ZEROS = 10

interface Load {
  readonly idle: number
  readonly used: number
  readonly pending: number
  readonly max: number
}

const NOBODY: Load = { idle: 0, used: 0, pending: 0, max: 0 }

/** Starts counting the pools' connections, if the app has a MeterProvider. */
export const gauge = instrumentsFor(SCOPE, (meter) => {
  const count = meter.createObservableUpDownCounter(semconv.DB_CLIENT_CONNECTION_COUNT, {
    description: 'The number of connections that are in the given state.',
    unit: '{connection}',
  })
  const pending = meter.createObservableUpDownCounter(semconv.DB_CLIENT_CONNECTION_PENDING_REQUESTS, {
    description: 'The number of requests that wait for a connection.',
    unit: '{request}',
  })
  const max = meter.createObservableUpDownCounter(semconv.DB_CLIENT_CONNECTION_MAX, {
    description: 'The most connections that are open at the same time.',
    unit: '{connection}',
  })
  meter.addBatchObservableCallback(
    (observed) => {
      for (const [name, load] of loads()) {
        const pool = { [semconv.DB_CLIENT_CONNECTION_POOL_NAME]: name }
        observed.observe(count, load.idle, { ...pool, [semconv.DB_CLIENT_CONNECTION_STATE]: 'idle' })
        observed.observe(count, load.used, { ...pool, [semconv.DB_CLIENT_CONNECTION_STATE]: 'used' })
        observed.observe(pending, load.pending, pool)
        observed.observe(max, load.max, pool)
      }
    },
    [count, pending, max],
  )
  return true
})

/** Counts the connections of this pool until it is untraced, ended or garbage. */
export function gaugePool(pool: OpenPool): void {
  // A pool that is traced again may still be listed.
  if (!counted().includes(pool)) pools.add(new WeakRef(pool))
  gauge()
}

/** The pools to count. Forgets the others: an app may create pools without end and have no MeterProvider. */
function counted(): OpenPool[] {
  return [...pools].flatMap((reference) => {
    const pool = reference.deref()
    if (pool !== undefined && !pool.ended && isTraced(pool)) return [pool]
    pools.delete(reference)
    return []
  })
}

/** The pools by name. Several to the same database have the same name, and count together. */
function loads(): Map<string, Load> {
  const found = new Map<string, Load>()
  for (const [name, zeros] of told) {
    if (zeros >= MOST_ZEROS) told.delete(name)
    else {
      told.set(name, zeros + 1)
      found.set(name, NOBODY)
    }
  }
  for (const pool of counted()) {
    const name = nameOf(pool)
    if (name === undefined) continue
    const { idle, used, pending, max } = found.get(name) ?? NOBODY
    told.set(name, 0)
    found.set(name, {
      idle: idle + pool.idleCount,
      used: used + pool.totalCount - pool.idleCount,
      pending: pending + pool.waitingCount,
      max: max + (pool.options.max ?? 0),
    })
  }
  return found
}

function nameOf(pool: OpenPool): string | undefined {
  const client = newest(pool)
  if (client !== undefined) names.set(pool, poolNameOf(client))
  return names.get(pool)
}
