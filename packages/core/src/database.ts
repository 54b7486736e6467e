import type { Attributes } from '@opentelemetry/api'
import type { DurationMetric } from './metrics.ts'
import * as semconv from './semconv.ts'

// What all clients of databases have in common, behind a door of its own: web apps do not load it.

/** The buckets that the conventions give to durations of database calls, as upper bounds in seconds. */
const BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]

/** `db.client.operation.duration` (OpenTelemetry semantic conventions, database metrics). It had no older form. */
export const DATABASE_DURATION: DurationMetric = {
  name: semconv.DB_CLIENT_OPERATION_DURATION,
  description: 'Duration of database client operations.',
  buckets: BUCKETS,
}

const OLD_NAMES = new Map<string, string>([
  [semconv.DB_SYSTEM_NAME, semconv.OLD_DB_SYSTEM],
  [semconv.DB_NAMESPACE, semconv.OLD_DB_NAME],
  [semconv.DB_QUERY_TEXT, semconv.OLD_DB_STATEMENT],
  [semconv.DB_OPERATION_NAME, semconv.OLD_DB_OPERATION],
  [semconv.DB_COLLECTION_NAME, semconv.OLD_DB_SQL_TABLE],
  [semconv.SERVER_ADDRESS, semconv.OLD_NET_PEER_NAME],
  [semconv.SERVER_PORT, semconv.OLD_NET_PEER_PORT],
  [semconv.NETWORK_PEER_ADDRESS, semconv.OLD_NET_SOCK_PEER_ADDR],
  [semconv.NETWORK_PEER_PORT, semconv.OLD_NET_SOCK_PEER_PORT],
])

/** Redis databases are numbers, which had an old name of their own. */
const REDIS = 'redis'

/**
 * The attributes of a call of a database, and what of them had another name before the conventions were stable, under that
 * name too (OpenTelemetry semantic conventions, database migration). For those whose `wantsOldNames('database')` is true.
 * `system` is the `db.system.name` of the call, for attributes that are added later.
 */
export function withOldDatabaseNames(attributes: Attributes, system: string): Attributes {
  const all: Attributes = { ...attributes }
  for (const [name, old] of OLD_NAMES) {
    const value = attributes[name]
    if (value === undefined) continue
    if (name === semconv.DB_NAMESPACE && system === REDIS)
      all[semconv.OLD_DB_REDIS_DATABASE_INDEX] = Number(value)
    else all[old] = value
  }
  return all
}
