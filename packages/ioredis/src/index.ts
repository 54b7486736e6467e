import { isTraced, override, sender, show, yieldsTo } from '@throughline/core'
import { DATABASE_DURATION } from '@throughline/core/database'
import type { Redis } from 'ioredis'
import {
  beginCommand,
  isNew,
  submitted,
  type Command,
  type IORedisOptions,
  type RedisSender,
} from './command.ts'
import { Connection, type Client } from './connection.ts'
import { tracePipeline, type Pipeline } from './pipeline.ts'

export type { IORedisOptions, RedisCommand } from './command.ts'

const SCOPE = { name: '@throughline/ioredis', version: '0.1.0' }

/** What ioredis sends by itself to set up a connection, and what it sends as soon as one is ready. */
const HANDSHAKE = new Set(['auth', 'client', 'hello', 'himport', 'info', 'readonly', 'select'])
const RESUMPTION = new Set(['client', 'psubscribe', 'readonly', 'select', 'ssubscribe', 'subscribe'])

/**
 * Traces the commands of a Redis client, each as a CLIENT span (semantic conventions, redis), a pipeline or a transaction
 * as one, and gives the same object back. Twice is once. A `duplicate()` is another client: it is not traced by itself.
 *
 * @throws TypeError for what is no Redis of ioredis, and for an option that is unknown or of the wrong shape.
 */
export function traceIORedis<Target extends Pick<Redis, 'status' | 'isCluster' | 'disconnect'>>(
  redis: Target,
  options: IORedisOptions = {},
): Target {
  if (!isRedis(redis)) {
    throw new TypeError(
      `traceIORedis: expected a Redis of ioredis, received ${received(redis)}; example: traceIORedis(new Redis())`,
    )
  }
  const send: RedisSender = sender(
    {
      scope: SCOPE,
      isSilent: true,
      duration: DATABASE_DURATION,
      text: (command: string, _args: readonly unknown[]) => command,
    },
    'traceIORedis',
    options,
  )
  if (isTraced(redis) || yieldsTo((redis as Client).sendCommand, 'ioredis', 'traceIORedis')) return redis
  const client: Client = redis
  const connection = new Connection(client)
  let isResuming = false

  override(client, 'sendCommand', (original, state) => {
    return function sendCommand(this: unknown, ...args) {
      const [command, stream] = args as [Command, unknown]
      if (!state.isOn) return Reflect.apply(original, this, args)
      // Those of a pipeline come with a stream.
      if (stream || !isNew(command) || isOfLibrary(command)) return Reflect.apply(original, this, args)
      return submitted(beginCommand(send, connection, command), original, this, args)
    }
  })

  override(client, 'pipeline', (original) => {
    return function pipeline(this: unknown, ...args) {
      return tracePipeline(send, connection, 'PIPELINE', Reflect.apply(original, this, args) as Pipeline)
    }
  })

  override(client, 'multi', (original) => {
    return function multi(this: unknown, ...args) {
      const result = Reflect.apply(original, this, args) as Pipeline
      // With `pipeline: false` it is a command like others.
      return result.isPipeline === true ? tracePipeline(send, connection, 'MULTI', result) : result
    }
  })

  // When a connection is ready ioredis restores what the last one had, at once, before anybody can be told.
  override(client, 'setStatus', (original) => {
    return function setStatus(this: unknown, ...args) {
      if (args[0] === 'ready') {
        isResuming = true
        queueMicrotask(() => {
          isResuming = false
        })
      }
      return Reflect.apply(original, this, args)
    }
  })

  return redis

  function isOfLibrary({ name }: Command): boolean {
    return client.status === 'connect' ? HANDSHAKE.has(name) : isResuming && RESUMPTION.has(name)
  }
}

function isRedis(target: unknown): target is Client {
  const { sendCommand, duplicate, isCluster } = (target ?? {}) as Partial<Client>
  return typeof sendCommand === 'function' && typeof duplicate === 'function' && isCluster !== true
}

// ioredis mixes an EventEmitter into its Cluster, constructor included, so its class does not tell.
function received(target: unknown): string {
  return (target as { isCluster?: boolean } | undefined)?.isCluster === true ? 'a Cluster' : show(target)
}
