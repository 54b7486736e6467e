import {
  context,
  holdOptions,
  isTraced,
  maskErrors,
  override,
  ROOT_CONTEXT,
  trace,
  type Context,
} from '@throughline/core'
import { yieldsTo } from '@throughline/core/client'
import { beginCommand, isNew, submitted, type Command, type Tracing } from './command.ts'
import { Connection, type Client } from './connection.ts'
import { maskedReply } from './mask.ts'
import { isOfLibrary, ownCommands } from './noise.ts'
import { tracePipeline, type Pipeline } from './pipeline.ts'

const SUBSCRIBES = new Set(['subscribe', 'psubscribe', 'ssubscribe'])

/** The current context, or the root where a span is current: a context without one is the app's own choice. */
function outsideOfSpans(): Context {
  const active = context.active()
  return trace.getSpan(active) === undefined ? active : ROOT_CONTEXT
}

/** Events of messages: the connection that they come by may have been made in a request. */
const OF_NOBODY: ReadonlySet<unknown> = new Set([
  'message',
  'messageBuffer',
  'pmessage',
  'pmessageBuffer',
  'smessage',
  'smessageBuffer',
])

/** Whether another instrumentation traces this client already. */
export function isOfOthers(client: Client): boolean {
  return yieldsTo(client.sendCommand, 'ioredis', 'traceIORedis')
}

/** Makes a Cluster yield to another instrumentation of its nodes, once it has some. */
function yielding(tracing: Tracing, cluster: Client): Tracing {
  const { send } = tracing
  // All nodes are of one class, and another instrumentation of that may come later, and go again.
  let node: Client | undefined
  const caller = () => {
    node ??= cluster.nodes?.()[0]
    return node !== undefined && isOfOthers(node) ? undefined : send.caller()
  }
  return { ...tracing, send: { ...send, caller } }
}

/** Traces the commands of this client, and of those that `duplicate()` makes of it. */
export function traceClient(given: Tracing, client: Client): void {
  const tracing = client.isCluster ? yielding(given, client) : given
  maskErrors(maskedReply)
  holdOptions(client, given.options)
  const connection = new Connection(client)
  const { unknownScripts } = connection
  const isOwn = ownCommands(client)

  override(client, 'sendCommand', (original, state) => {
    return function sendCommand(this: unknown, ...args) {
      const command = args[0] as Command
      // Those of a pipeline come with a stream.
      if (args[1] || !isNew(command)) return Reflect.apply(original, this, args)
      const unknown = unknownScripts.take(command)
      if (unknown !== undefined) unknown.owner?.watch(command, true)
      if (unknown !== undefined || !state.isOn || isOwn(command)) return Reflect.apply(original, this, args)
      const call = beginCommand(tracing, connection, command)
      call?.watch(command)
      // A Cluster connects the client that it subscribes by when that is needed.
      return client.isCluster && SUBSCRIBES.has(command.name)
        ? context.with(outsideOfSpans(), submitted, undefined, call, original, this, args)
        : submitted(call, original, this, args)
    }
  })

  // A connection outlives the caller that first needed it: messages that arrive later belong to nobody.
  override(client, 'connect', (original) => {
    return function connect(this: unknown, ...args) {
      return context.with(outsideOfSpans(), original as () => unknown, this, ...bound(args))
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

  // It connects as it is made.
  override(client, 'duplicate', (original) => {
    return function duplicate(this: unknown, ...args) {
      return context.with(outsideOfSpans(), () => {
        const twin = Reflect.apply(original, this, args) as Client
        if (!isOfLibrary(twin) && !isTraced(twin) && !isOfOthers(twin)) traceClient(given, twin)
        return twin
      })
    }
  })

  // One that has connected as the app made it listens in the context of that.
  override(client, 'emit', (original, state) => {
    return function emit(this: unknown, ...args) {
      return state.isOn && OF_NOBODY.has(args[0])
        ? context.with(outsideOfSpans(), original, this, ...args)
        : Reflect.apply(original, this, args)
    }
  })

  if (client.delayUntilReady === undefined) return
  // Commands for auto-pipelining wait here until the slots are known, and are then issued in their caller's context.
  override(client as Required<Client>, 'delayUntilReady', (original) => {
    return function delayUntilReady(this: unknown, ...args) {
      return Reflect.apply(original, this, bound(args))
    }
  })
}

/** The arguments, with the callback bound to the current context. */
function bound(args: readonly unknown[]): unknown[] {
  const active = context.active()
  return args.map((arg) => (typeof arg === 'function' ? context.bind(active, arg) : arg))
}
