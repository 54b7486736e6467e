import { semconv, wantsOldNames, type Attributes } from '@throughline/core'
import { withOldDatabaseNames } from '@throughline/core/database'
import type { ClientBase, Pool } from 'pg'

/** Where a client is connected to, or is going to be. */
export interface Place {
  readonly host?: string
  readonly port?: number
  readonly database?: string | null
}

/** A client, with properties that its typings lack. */
export type Connected = ClientBase &
  Place & {
    readonly _ended?: boolean
    readonly _ending?: boolean
    readonly _queryable?: boolean
    readonly connectionParameters?: { readonly query_timeout?: unknown }
  }

/** A Pool, with properties that its typings lack. */
export type OpenPool = Pool & {
  readonly _clients?: readonly Connected[]
  readonly _pendingQueue?: readonly unknown[]
  readonly Client?: { readonly prototype?: Partial<ClientBase> }
}

/** The client that the pool made last. All have the pool's options, so it stands for the others until one is picked. */
export function newest(pool: OpenPool): Connected | undefined {
  return pool._clients?.at(-1)
}

/** The prototype of the pool's clients. An app's class may have no `query` there, but one on each client. */
export function clientsOf(pool: OpenPool): Partial<ClientBase> | undefined {
  return pool.Client?.prototype
}

export const SYSTEM = 'postgresql'
const DEFAULT_PORT = 5432

export const NOWHERE: Place = {}

/** Whether a span need not say the port. */
export function isDefault(port: number | undefined): boolean {
  return port === undefined || port === DEFAULT_PORT
}

/** Whether both are the same database. */
export function isSamePlace(one: Place, other: Place): boolean {
  return one.host === other.host && one.port === other.port && one.database === other.database
}

/** The attributes of a connection. A Unix socket has its path for an address, and no port. */
export function serverOf({ host, port, database }: Place): Attributes {
  const attributes: Attributes = {}
  if (database) attributes[semconv.DB_NAMESPACE] = database
  if (!host) return attributes
  const isSocket = host.startsWith('/')
  attributes[semconv.SERVER_ADDRESS] = isSocket ? `${host}/.s.PGSQL.${port}` : host
  if (!isSocket && port !== undefined && port !== DEFAULT_PORT) attributes[semconv.SERVER_PORT] = port
  return attributes
}

/** The attributes, with their old names too if those are wanted. */
export function withOldNamesIfWanted(attributes: Attributes): Attributes {
  return wantsOldNames('database') ? withOldDatabaseNames(attributes, SYSTEM) : attributes
}

/** The name of a pool as the conventions make it: `server.address:server.port/db.namespace`. */
export function poolNameOf({ host, port = DEFAULT_PORT, database }: Place): string {
  return `${host}:${port}/${database}`
}
