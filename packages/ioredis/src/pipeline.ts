import { override, semconv, type Attributes, type Call } from '@throughline/core'
import {
  attributesOf,
  fail,
  handOver,
  peerOf,
  traceCommand,
  type Client,
  type Command,
  type RedisSender,
} from './command.ts'
import { maskedBatch } from './mask.ts'

type Result = readonly [error: unknown, reply?: unknown]

/** A pipeline with what its typings do not tell: its results reach its promise through resolve and reject. */
export interface Pipeline {
  readonly isPipeline?: boolean
  readonly _queue: readonly Command[]
  /** How many MULTI in it lack their EXEC. */
  readonly _transactions: number
  resolve: (results: readonly Result[]) => unknown
  reject: (error: unknown) => unknown
  exec: (this: unknown, ...args: unknown[]) => unknown
  sendCommand: (this: unknown, command: Command, ...rest: unknown[]) => unknown
}

/** Has one span made when the pipeline is executed; those that are not, leave none. */
export function tracePipeline(
  send: RedisSender,
  client: Client,
  kind: 'PIPELINE' | 'MULTI',
  pipeline: Pipeline,
): Pipeline {
  let hasSpans = false

  // The pipelines that ioredis makes of commands issued one by one: each of these is a call of its own.
  override(pipeline, 'sendCommand', (original) => {
    return function sendCommand(this: unknown, ...args) {
      if (client._autoPipelines?.get('main') !== pipeline) return Reflect.apply(original, this, args)
      hasSpans = true
      return traceCommand(send, client, args[0], () => Reflect.apply(original, this, args))
    }
  })

  override(pipeline, 'exec', (original) => {
    return function exec(this: unknown, ...args) {
      // In a pipeline that has a MULTI the first exec() is the EXEC that belongs to it.
      const isCommand = kind === 'PIPELINE' && pipeline._transactions > 0
      if (hasSpans || isCommand || pipeline._queue.length === 0) return Reflect.apply(original, this, args)
      hasSpans = true
      return traceBatch(send, client, kind, pipeline, () => Reflect.apply(original, this, args))
    }
  })
  return pipeline
}

function traceBatch(
  send: RedisSender,
  client: Client,
  kind: 'PIPELINE' | 'MULTI',
  pipeline: Pipeline,
  submit: () => unknown,
): unknown {
  const commands = pipeline._queue.filter(
    ({ name }) => kind === 'PIPELINE' || (name !== 'multi' && name !== 'exec'),
  )
  const subject = { name: kind, args: commands.map(({ name, args }) => [name, ...args]) }
  const call = send.begin([kind, subject.args], operation, attributes)
  if (call === undefined) return submit()

  const wasReady = client.status === 'ready'
  return handOver(send, call, pipeline, submit, (results) => end(call, results))

  function operation(): string {
    const names = new Set(commands.map(({ name }) => name.toUpperCase()))
    return names.size === 1 ? `${kind} ${[...names][0]}` : kind
  }

  function attributes(): Attributes {
    const shared = { ...attributesOf(client, operation()), [semconv.DB_QUERY_TEXT]: maskedBatch(commands) }
    return commands.length > 1 ? { ...shared, [semconv.DB_OPERATION_BATCH_SIZE]: commands.length } : shared
  }

  function end(ended: Call, results: readonly Result[]): void {
    if (!ended.span.isRecording()) return
    if (!wasReady) ended.span.setAttributes(peerOf(client))
    const errors = results.flatMap(([error, reply], index) => {
      if (error) return [error]
      // What fails in a transaction is told by the reply to its EXEC.
      return pipeline._queue[index]?.name === 'exec' && Array.isArray(reply) ? reply.filter(isError) : []
    })
    const replies = kind === 'PIPELINE' ? results : results.at(-1)?.[1]
    if (errors.length === 0) send.succeed(ended, subject, replies)
    else fail(send, ended, errors, [subject, replies])
  }
}

function isError(value: unknown): value is Error {
  return value instanceof Error
}
