import { BOOLEAN, dropOptions, expected, isTraced, show, type Shape } from '@throughline/core'
import { sender, SENDING_SHAPE } from '@throughline/core/client'
import { DATABASE_DURATION } from '@throughline/core/database'
import type { Cluster, Redis } from 'ioredis'
import { isOfOthers, traceClient } from './client.ts'
import type { IORedisOptions, Outcome, Subject, Tracing } from './command.ts'
import type { Client } from './connection.ts'
import { textOf } from './mask.ts'

export type { IORedisOptions, QueryText, RedisCommand } from './command.ts'

const SCOPE = { name: '@throughline/ioredis', version: '0.1.0' }

const LIBRARY = {
  scope: SCOPE,
  isSilent: true,
  duration: DATABASE_DURATION,
  text: (command: string) => command,
  isUpperCase: true,
}

const SHAPE: Shape<IORedisOptions> = {
  ...SENDING_SHAPE,
  queryText: expected(
    "'masked', 'full', 'none' or a function",
    "queryText: 'none'",
    (value) => typeof value === 'function' || ['masked', 'full', 'none'].includes(value as string),
  ),
  commandSpans: BOOLEAN('commandSpans'),
}

/**
 * Traces the commands of a Redis client or of a Cluster, each as a CLIENT span (semantic conventions, redis), a pipeline
 * or a transaction as one, and gives the same object back. Twice is once: the options of the first call hold, until
 * `untrace()` ends it. What `duplicate()` makes of it is traced too, by the same options.
 *
 * @throws TypeError for what is no client of ioredis, and for an option that is unknown or of the wrong shape.
 */
export function traceIORedis<
  Target extends
    | Pick<Redis, 'status' | 'isCluster' | 'disconnect'>
    | Pick<Cluster, 'status' | 'isCluster' | 'disconnect'>,
>(redis: Target, options: IORedisOptions = {}): Target {
  if (!isClient(redis)) {
    throw new TypeError(
      `${SCOPE.name}: traceIORedis(): expected a Redis or a Cluster of ioredis, received ${show(redis)}; example: traceIORedis(new Redis())`,
    )
  }
  const tracing: Tracing = {
    options,
    send: sender<Subject, Outcome, IORedisOptions>(LIBRARY, 'traceIORedis()', options, SHAPE),
    text: textOf(options.queryText),
    commandSpans: options.commandSpans === true,
  }
  const client: Client = redis
  if (isTraced(client)) {
    const example = 'untrace(redis); traceIORedis(redis, { requireParent: true })'
    dropOptions(client, options, 'traceIORedis()', example)
  } else if (!isOfOthers(client)) traceClient(tracing, client)
  return redis
}

// ioredis mixes an EventEmitter into its Cluster, constructor included, so its class does not tell.
function isClient(target: unknown): target is Client {
  const { sendCommand, duplicate } = (target ?? {}) as Partial<Client>
  return typeof sendCommand === 'function' && typeof duplicate === 'function'
}
