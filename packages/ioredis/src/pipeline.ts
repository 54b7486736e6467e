import { override, semconv, type Attributes, type Context } from '@throughline/core'
import {
  beginCommand,
  RedisCall,
  submitted,
  type Command,
  type Outcome,
  type RedisSender,
  type Subject,
} from './command.ts'
import type { Connection } from './connection.ts'
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
  connection: Connection,
  kind: 'PIPELINE' | 'MULTI',
  pipeline: Pipeline,
): Pipeline {
  let hasSpans = false

  // The pipelines that ioredis makes of commands issued one by one: each of these is a call of its own.
  override(pipeline, 'sendCommand', (original) => {
    return function sendCommand(this: unknown, ...args) {
      if (connection.client._autoPipelines?.get('main') !== pipeline)
        return Reflect.apply(original, this, args)
      hasSpans = true
      return submitted(beginCommand(send, connection, args[0]), original, this, args)
    }
  })

  override(pipeline, 'exec', (original) => {
    return function exec(this: unknown, ...args) {
      // In a pipeline that has a MULTI the first exec() is the EXEC that belongs to it.
      const isCommand = kind === 'PIPELINE' && pipeline._transactions > 0
      if (hasSpans || isCommand || pipeline._queue.length === 0) return Reflect.apply(original, this, args)
      hasSpans = true
      return submitted(beginBatch(send, connection, kind, pipeline), original, this, args)
    }
  })
  return pipeline
}

class BatchCall extends RedisCall {
  readonly #kind: 'PIPELINE' | 'MULTI'
  readonly #commands: readonly Command[]
  #replies: unknown = undefined

  constructor(
    send: RedisSender,
    caller: Context,
    connection: Connection,
    kind: 'PIPELINE' | 'MULTI',
    commands: readonly Command[],
  ) {
    super(send, caller, connection)
    this.#kind = kind
    this.#commands = commands
  }

  override name(): string {
    const names = new Set(this.#commands.map(({ name }) => name.toUpperCase()))
    return names.size === 1 ? `${this.#kind} ${[...names][0]}` : this.#kind
  }

  override subject(): Subject {
    return [this.#kind, this.#commands.map(({ name, args }) => [name, ...args])]
  }

  override outcome(): Outcome {
    const [name, args] = this.subject()
    return [{ name, args }, this.#replies]
  }

  protected override build(): Attributes {
    const commands = this.#commands
    const attributes = this.connection.attributes(this.name(), maskedBatch(commands))
    if (commands.length > 1) attributes[semconv.DB_OPERATION_BATCH_SIZE] = commands.length
    return attributes
  }

  /** Not by handlers on the promise: a rejection that nobody handles must remain one. */
  watch(pipeline: Pipeline): void {
    const [first] = pipeline._queue
    if (first !== undefined) this.locate(first)
    const { resolve, reject } = pipeline
    pipeline.resolve = (results) => {
      const settled = resolve(results)
      this.#end(pipeline, results)
      return settled
    }
    pipeline.reject = (error) => {
      this.fail([error])
      return reject(error)
    }
  }

  #end(pipeline: Pipeline, results: readonly Result[]): void {
    if (!this.isOpen) return
    const errors = results.flatMap(([error, reply], index) => {
      if (error) return [error]
      // What fails in a transaction is told by the reply to its EXEC.
      return pipeline._queue[index]?.name === 'exec' && Array.isArray(reply) ? reply.filter(isError) : []
    })
    this.#replies = this.#kind === 'PIPELINE' ? results : results.at(-1)?.[1]
    this.answer(errors)
  }
}

function beginBatch(
  send: RedisSender,
  connection: Connection,
  kind: 'PIPELINE' | 'MULTI',
  pipeline: Pipeline,
): RedisCall | undefined {
  const caller = send.caller()
  if (caller === undefined) return undefined
  const commands = pipeline._queue.filter(
    ({ name }) => kind === 'PIPELINE' || (name !== 'multi' && name !== 'exec'),
  )
  const call = new BatchCall(send, caller, connection, kind, commands)
  if (!send.begin(call)) return undefined
  call.watch(pipeline)
  return call
}

function isError(value: unknown): value is Error {
  return value instanceof Error
}
