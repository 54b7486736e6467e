import { isError, semconv, type Attributes, type Context } from '@throughline/core'
import {
  beginCommand,
  CommandCall,
  RedisCall,
  release,
  submitted,
  type Command,
  type Outcome,
  type Settling,
  type Subject,
  type Tracing,
} from './command.ts'
import type { Connection } from './connection.ts'
import { batchText, maskedMessage } from './mask.ts'
import { isOfScript, isUnknownScript } from './script.ts'
import { isOfLoop } from './worker.ts'

type Kind = 'PIPELINE' | 'MULTI'
type Result = readonly [error: unknown, reply?: unknown]

/** A pipeline, with properties that its typings lack: its results reach its promise through resolve and reject. */
export interface Pipeline extends Settling<readonly Result[]> {
  readonly isPipeline?: boolean
  readonly _queue: readonly Command[]
  /** How many MULTI in it lack their EXEC. */
  readonly _transactions: number
  exec: (this: unknown, ...args: unknown[]) => unknown
  sendCommand: (this: unknown, command: Command, ...rest: unknown[]) => unknown
}

/** Makes one span when the pipeline is executed; one that never is leaves none. */
export function tracePipeline(
  tracing: Tracing,
  connection: Connection,
  kind: Kind,
  pipeline: Pipeline,
): Pipeline {
  let isExecuted = false
  let calls: (CommandCall | undefined)[] | undefined
  const { exec: execOriginal, sendCommand: sendOriginal } = pipeline

  // Pipelines that ioredis makes of commands issued one by one: each command is a call of its own.
  if (connection.client.options.enableAutoPipelining === true) {
    replace(pipeline, 'sendCommand', function sendCommand(this: unknown, ...args) {
      const [command] = args
      if (isExecuted || (calls === undefined && !isAutoPipeline(connection, pipeline)))
        return Reflect.apply(sendOriginal, this, args)
      if (calls === undefined) endTogether((calls = []), pipeline)
      const call = beginCommand(tracing, connection, command)
      calls.push(call)
      call?.claim(command)
      watchScript(command, connection.unknownScripts)
      return submitted(call, sendOriginal, this, args)
    })
  }

  replace(pipeline, 'exec', function exec(this: unknown, ...args) {
    // In a pipeline that has a MULTI the first exec() is the EXEC that belongs to it.
    const isCommand = kind === 'PIPELINE' && pipeline._transactions > 0
    const isFirst = !isExecuted && !isCommand
    if (isFirst && pipeline._queue.length > 0) isExecuted = true
    if (!isFirst || !isExecuted || calls !== undefined) return Reflect.apply(execOriginal, this, args)
    return submitted(beginBatch(tracing, connection, kind, pipeline), execOriginal, this, args)
  })
  return pipeline
}

/** A pipeline lives for one call and need not be restored: an `override` would cost 4 µs. */
function replace<K extends 'exec' | 'sendCommand'>(pipeline: Pipeline, key: K, value: Pipeline[K]): void {
  Object.defineProperty(pipeline, key, { value, writable: true, configurable: true })
}

/** It is listed before its first command is put into it. A Cluster has one for every group of nodes. */
function isAutoPipeline({ client }: Connection, pipeline: Pipeline): boolean {
  for (const listed of client._autoPipelines?.values() ?? []) if (listed === pipeline) return true
  return false
}

/**
 * Ends the calls of an automatic pipeline as the app learns of them: all at once, when it is known whether a Cluster sends
 * them to another node.
 */
function endTogether(calls: (CommandCall | undefined)[], pipeline: Pipeline): void {
  const { resolve, reject } = pipeline
  const resolving: Pipeline['resolve'] = (results) => {
    const settled = resolve(results)
    for (const [index, call] of calls.entries()) {
      const [error, reply] = results[index] ?? [undefined]
      call?.end(error, reply)
    }
    letGo()
    return settled
  }
  const rejecting: Pipeline['reject'] = (error) => {
    for (const call of calls) call?.fail([error])
    letGo()
    return reject(error)
  }
  function letGo(): void {
    calls.length = 0
    release(pipeline, resolving, rejecting, resolve, reject)
  }
  pipeline.resolve = resolving
  pipeline.reject = rejecting
}

class BatchCall extends RedisCall {
  readonly #kind: Kind
  readonly #commands: readonly Command[]
  #children: readonly (CommandCall | undefined)[] = []
  #replies: unknown = undefined

  constructor(
    tracing: Tracing,
    caller: Context,
    connection: Connection,
    kind: Kind,
    commands: readonly Command[],
  ) {
    super(tracing, caller, connection)
    this.#kind = kind
    this.#commands = commands
  }

  override name(): string {
    const names = new Set(this.#commands.map(({ name }) => name.toUpperCase()))
    return names.size === 1 ? `${this.#kind} ${[...names][0]}` : this.#kind
  }

  /** A worker renews its locks by scripts, several at once. */
  override needsParent(): boolean {
    return (
      this.connection.isOfWorker &&
      this.#commands.every(({ name, args }) => isOfLoop(name.toUpperCase(), args))
    )
  }

  override subject(): Subject {
    return [this.#kind, this.#commands.map(({ name, args }) => [name, ...args])]
  }

  override outcome(): Outcome {
    const [name, args] = this.subject()
    return [{ name, args }, this.#replies]
  }

  override build(): Attributes {
    const commands = this.#commands
    const attributes = this.connection.attributes(this.name(), batchText(commands, this.tracing.text))
    if (commands.length > 1) attributes[semconv.DB_OPERATION_BATCH_SIZE] = commands.length
    return attributes
  }

  /** Not by handlers on the promise: an unhandled rejection must stay unhandled. */
  watch(pipeline: Pipeline): void {
    const { unknownScripts } = this.connection
    const [first] = pipeline._queue
    if (first !== undefined) this.claim(first)
    for (const command of this.#commands) watchScript(command, unknownScripts)
    if (this.tracing.commandSpans) this.#beginChildren()
    const { resolve, reject } = pipeline
    const resolving: Pipeline['resolve'] = (results) => {
      const settled = resolve(results)
      this.#end(results)
      release(pipeline, resolving, rejecting, resolve, reject)
      return settled
    }
    const rejecting: Pipeline['reject'] = (error) => {
      this.fail([error])
      release(pipeline, resolving, rejecting, resolve, reject)
      return reject(error)
    }
    pipeline.resolve = resolving
    pipeline.reject = rejecting
  }

  override fail(errors: readonly unknown[], hasOutcome = false): void {
    for (const child of this.#children) child?.fail(errors)
    super.fail(errors, hasOutcome)
  }

  override abandon(): void {
    for (const child of this.#children) child?.abandon()
    super.abandon()
  }

  #beginChildren(): void {
    if (!this.span.isRecording()) return
    const within = this.context
    this.#children = this.#commands.map((command) => {
      const { name, args } = command
      const child = new CommandCall(this.tracing, within, this.connection, name.toUpperCase(), args)
      const isOpen = this.tracing.send.begin(child)
      // The pipeline as a whole is already measured.
      child.measurement = undefined
      if (isOpen) child.locate(command)
      return isOpen ? child : undefined
    })
  }

  #end(results: readonly Result[]): void {
    if (!this.isOpen) return
    const isMulti = this.#kind === 'MULTI'
    const last = isMulti ? results.at(-1) : undefined
    const errors = results.flatMap(([error, reply], index) => {
      if (error) return [error]
      const isExec = isMulti ? index === results.length - 1 : this.#commands[index]?.name === 'exec'
      return isExec && Array.isArray(reply) ? this.#failed(reply, isMulti ? 0 : index - reply.length) : []
    })
    for (const [index, child] of this.#children.entries()) {
      // In a transaction each command is answered by QUEUED, and EXEC by the results.
      const [error, reply] = results[isMulti ? index + 1 : index] ?? [undefined]
      const executed = isMulti ? (last?.[1] as readonly unknown[] | null | undefined)?.[index] : reply
      child?.end(error ?? last?.[0] ?? (isError(executed) ? executed : undefined), executed)
    }
    this.#replies = isMulti ? last?.[1] : results
    this.answer(errors)
  }

  /** An error within a transaction comes in the reply to EXEC, without the command, which is needed to mask its message. */
  #failed(replies: readonly unknown[], first: number): Error[] {
    for (const [index, reply] of replies.entries())
      if (isError(reply)) maskedMessage(reply, this.#commands[first + index])
    return replies.filter(isError)
  }
}

/** A script that ioredis sends again is still part of the pipeline. */
function watchScript(command: Command, unknownScripts: Connection['unknownScripts']): void {
  if (!isOfScript(command)) return
  const { reject } = command
  let isRejected = false
  const rejecting: Command['reject'] = (error) => {
    if (!isRejected && isUnknownScript(command, error)) unknownScripts.add(command, undefined)
    isRejected = true
    return reject(error)
  }
  command.reject = rejecting
}

function beginBatch(
  tracing: Tracing,
  connection: Connection,
  kind: Kind,
  pipeline: Pipeline,
): RedisCall | undefined {
  const { send } = tracing
  const caller = send.caller()
  if (caller === undefined) return undefined
  const commands = pipeline._queue.filter(
    ({ name }) => kind === 'PIPELINE' || (name !== 'multi' && name !== 'exec'),
  )
  const call = new BatchCall(tracing, caller, connection, kind, commands)
  if (!send.begin(call)) return undefined
  call.watch(pipeline)
  return call
}
