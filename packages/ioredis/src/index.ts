import {
  BOOLEAN,
  context,
  expected,
  isTraced,
  maskErrors,
  override,
  ROOT_CONTEXT,
  show,
  yieldsTo,
  type Shape,
} from '@throughline/core'
import { sender, SENDING_SHAPE } from '@throughline/core/client'
import { DATABASE_DURATION } from '@throughline/core/database'
import type { Cluster, Redis } from 'ioredis'
import {
  beginCommand,
  isNew,
  submitted,
  type Command,
  type IORedisOptions,
  type Outcome,
  type Subject,
  type Tracing,
} from './command.ts'
import { Connection, type Client } from './connection.ts'
import { maskedReply, textOf } from './mask.ts'
import { isOfLibrary, ownCommands } from './noise.ts'
import { tracePipeline, type Pipeline } from './pipeline.ts'

export type { IORedisOptions, QueryText, RedisCommand } from './command.ts'

const SCOPE = { name: '@throughline/ioredis', version: '0.1.0' }

const LIBRARY = {
  scope: SCOPE,
  isSilent: true,
  duration: DATABASE_DURATION,
  text: (command: string) => command,
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

const SUBSCRIBES = new Set(['subscribe', 'psubscribe', 'ssubscribe'])

/**
 * Traces the commands of a Redis client or of a Cluster, each as a CLIENT span (semantic conventions, redis), a pipeline
 * or a transaction as one, and gives the same object back. Twice is once. What `duplicate()` makes of it is traced too.
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
      `traceIORedis: expected a Redis or a Cluster of ioredis, received ${show(redis)}; example: traceIORedis(new Redis())`,
    )
  }
  const tracing: Tracing = {
    send: sender<Subject, Outcome, IORedisOptions>(LIBRARY, 'traceIORedis', options, SHAPE),
    text: textOf(options.queryText),
    commandSpans: options.commandSpans === true,
  }
  const client: Client = redis
  if (!isTraced(client) && !isOfOthers(client)) traceClient(tracing, client)
  return redis
}

/** Whether another instrumentation traces this client already. */
function isOfOthers(client: Client): boolean {
  return yieldsTo(client.sendCommand, 'ioredis', 'traceIORedis')
}

/** Has a Cluster yield to who traces its nodes: that is known as soon as it has some. */
function yielding(tracing: Tracing, cluster: Client): Tracing {
  const { send } = tracing
  let isLeft: boolean | undefined
  const caller = () => {
    isLeft ??= cluster.nodes?.().slice(0, 1).map(isOfOthers)[0]
    return isLeft === true ? undefined : send.caller()
  }
  return { ...tracing, send: { ...send, caller } }
}

function traceClient(given: Tracing, client: Client): void {
  const tracing = client.isCluster ? yielding(given, client) : given
  maskErrors(maskedReply)
  const connection = new Connection(client)
  const { unknownScripts } = connection
  const isOwn = ownCommands(client)

  override(client, 'sendCommand', (original, state) => {
    return function sendCommand(this: unknown, ...args) {
      const [command, stream] = args as [Command, unknown]
      // Those of a pipeline come with a stream.
      if (stream || !isNew(command)) return Reflect.apply(original, this, args)
      const unknown = unknownScripts.take(command)
      if (unknown !== undefined) unknown.owner?.watch(command, true)
      if (unknown !== undefined || !state.isOn || isOwn(command)) return Reflect.apply(original, this, args)
      const call = beginCommand(tracing, connection, command)
      call?.watch(command)
      // A Cluster connects the client that it subscribes by when that is needed.
      return client.isCluster && SUBSCRIBES.has(command.name)
        ? context.with(ROOT_CONTEXT, submitted, undefined, call, original, this, args)
        : submitted(call, original, this, args)
    }
  })

  // A connection outlives the one who was the first to need it: what arrives by it later, messages, belongs to nobody.
  override(client, 'connect', (original) => {
    return function connect(this: unknown, ...args) {
      return context.with(ROOT_CONTEXT, original as () => unknown, this, ...bound(args))
    }
  })

  override(client, 'pipeline', (original) => {
    return function pipeline(this: unknown, ...args) {
      return tracePipeline(tracing, connection, 'PIPELINE', Reflect.apply(original, this, args) as Pipeline)
    }
  })

  override(client, 'multi', (original) => {
    return function multi(this: unknown, ...args) {
      const result = Reflect.apply(original, this, args) as Pipeline
      // With `pipeline: false` it is a command like others.
      return result.isPipeline === true ? tracePipeline(tracing, connection, 'MULTI', result) : result
    }
  })

  override(client, 'duplicate', (original) => {
    return function duplicate(this: unknown, ...args) {
      const twin = Reflect.apply(original, this, args) as Client
      if (!isOfLibrary(twin) && !isTraced(twin)) traceClient(given, twin)
      return twin
    }
  })

  if (client.delayUntilReady === undefined) return
  // What is to be pipelined automatically waits here until the slots are known, and is issued for its caller then.
  override(client as Required<Client>, 'delayUntilReady', (original) => {
    return function delayUntilReady(this: unknown, ...args) {
      return Reflect.apply(original, this, bound(args))
    }
  })
}

/** These arguments with a callback that runs in the context of now. */
function bound(args: readonly unknown[]): unknown[] {
  const active = context.active()
  return args.map((arg) => (typeof arg === 'function' ? context.bind(active, arg) : arg))
}

// ioredis mixes an EventEmitter into its Cluster, constructor included, so its class does not tell.
function isClient(target: unknown): target is Client {
  const { sendCommand, duplicate } = (target ?? {}) as Partial<Client>
  return typeof sendCommand === 'function' && typeof duplicate === 'function'
}
