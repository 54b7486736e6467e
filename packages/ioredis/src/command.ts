import { errorType, isError, reportOnce, semconv, type Attributes, type Context } from '@throughline/core'
import { Call, type Sender, type SendingOptions } from '@throughline/core/client'
import type { Connection, Stream } from './connection.ts'
import { maskedMessage, REPLY_CODE, type TextOf, worded } from './mask.ts'
import { isUnknownScript, type Watcher } from './script.ts'
import { isOfLoop } from './worker.ts'

/** A command as it goes to the server. That of a pipeline or transaction is called PIPELINE or MULTI. */
export interface RedisCommand {
  /** In upper case. */
  readonly name: string
  /** With `keyPrefix`; of a pipeline or transaction its commands, each a list of its name and arguments. */
  readonly args: readonly unknown[]
}

export type Subject = [command: string, args: readonly unknown[]]
export type Outcome = [command: RedisCommand, reply: unknown]

/**
 * How much of a command `db.query.text` shows: keys and fields, everything, nothing, or what a function returns, given the
 * command's name in upper case and its arguments. For a pipeline it is called for each command.
 */
export type QueryText =
  | 'masked'
  | 'full'
  | 'none'
  | ((command: string, args: readonly unknown[]) => string | undefined)

/**
 * `ignore` gets a command's name in upper case and its arguments; names to compare with may be in any case.
 * `attributes` gets the command and its reply.
 */
export interface IORedisOptions extends SendingOptions<Subject, Outcome> {
  /** Default: `'masked'`. */
  queryText?: QueryText | undefined
  /** Whether each command of a pipeline or transaction has a span of its own under that of the whole. */
  commandSpans?: boolean | undefined
}

/** How commands are traced: the options as they are applied. */
export interface Tracing {
  readonly options: IORedisOptions
  readonly send: Sender<Subject, Outcome>
  readonly text: TextOf
  readonly commandSpans: boolean
}

/** What ioredis settles by two methods of its own: a command, or a pipeline. */
export interface Settling<Reply> {
  resolve: (reply: Reply) => unknown
  reject: (error: unknown) => unknown
}

/**
 * A command, with properties that its typings lack: a reply, or an error, reaches its promise through the two of `Settling`.
 */
export interface Command extends Settling<unknown> {
  readonly name: string
  readonly args: readonly unknown[]
  transformReply(reply: unknown): unknown
  /** What is written to this socket. */
  toWritable(socket: Stream): unknown
  /**
   * The call that it belongs to; 'none' if we have seen it and it has none. Not in a WeakSet: that would cost 2 µs a command,
   * most of it in garbage collection.
   */
  [CALL]?: RedisCall | 'none'
}

const CALL = Symbol('throughline.call')

/** Whether the first argument names what the command runs. Not by a Set: 0.1 µs a command. */
function runsProcedure(name: string): boolean {
  return name === 'EVALSHA' || name === 'EVALSHA_RO' || name === 'FCALL' || name === 'FCALL_RO'
}

/**
 * Whether a command comes for the first time: one that waits for a connection, or is sent again on a new one, passes here more
 * than once.
 */
export function isNew(command: Command): boolean {
  if (command[CALL] !== undefined) return false
  command[CALL] = 'none'
  return true
}

/** Ends the span of a command that ioredis has dropped silently, marked as incomplete. */
export function abandon(command: Command): void {
  const call = command[CALL]
  if (call !== undefined && call !== 'none') call.abandon()
}

/** A call to a Redis server: one command or several. */
export abstract class RedisCall extends Call<Subject, Outcome> {
  protected readonly connection: Connection
  protected readonly tracing: Tracing
  /** The socket that it was to be written to when it was issued, if that was ready. */
  readonly #readyStream: Stream | null | undefined
  #statusCode: string | undefined = undefined
  #stream: Stream | undefined = undefined
  /** Releases the command that it is located by: see `release`. */
  #unlocate: (() => void) | undefined = undefined

  constructor(tracing: Tracing, caller: Context, connection: Connection) {
    super(caller)
    this.connection = connection
    this.tracing = tracing
    const { status, stream } = connection.client
    this.#readyStream = status === 'ready' ? stream : undefined
  }

  /** Whether the reply is asked for. */
  protected get asksOutcome(): boolean {
    return this.tracing.send.asksOutcome
  }

  override dimensions(): Attributes {
    const counted = this.connection.dimensions(this.name(), this.#servedBy())
    if (this.#statusCode !== undefined) counted[semconv.DB_RESPONSE_STATUS_CODE] = this.#statusCode
    return counted
  }

  /** Ends the span of a call that was answered. */
  answer(errors: readonly unknown[] = []): void {
    if (errors.length > 0) return this.fail(errors, true)
    if (!this.isOpen) return
    this.#sayServer()
    this.#unlocate?.()
    this.tracing.send.succeed(this)
  }

  /** Ends the span of a call that met these errors. `hasOutcome`: the app got an answer nevertheless. */
  fail(errors: readonly unknown[], hasOutcome = false): void {
    if (!this.isOpen) return
    this.#sayServer()
    this.#unlocate?.()
    const { codes, type, message } = this.#read(errors)
    if (codes.length > 0) {
      this.#statusCode = joined(codes)
      this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, this.#statusCode)
    }
    this.tracing.send.fail(this, type, message, hasOutcome)
  }

  /** They may be of the app's: what transforms its replies may throw anything, and the command must settle all the same. */
  #read(errors: readonly unknown[]): {
    codes: string[]
    type: string | undefined
    message: string | undefined
  } {
    try {
      const messages = errors.map((error) => maskedMessage(error))
      const codes = errors.map((error, index) => replyCode(error, messages[index] as string))
      const types = errors.map((error, index) => codes[index] ?? this.#typeOf(error))
      return { codes: codes.filter((code) => code !== undefined), type: joined(types), message: messages[0] }
    } catch (trouble) {
      reportOnce('ioredis:error', 'error', 'an error could not be read', trouble)
      return { codes: [], type: undefined, message: undefined }
    }
  }

  /** ioredis reports a failed connection by a plain Error without a code: the type comes from why it failed. */
  #typeOf(error: unknown): string {
    const type = errorType(error) ?? semconv.OTHER
    if (type !== 'Error') return type
    const { trouble } = this.connection
    return replyCode(trouble, maskedMessage(trouble)) ?? errorType(trouble) ?? type
  }

  override abandon(): void {
    this.#unlocate?.()
    super.abandon()
  }

  /** Marks the command as belonging to this call. */
  claim(command: Command): void {
    command[CALL] = this
    this.locate(command)
  }

  /** In a Cluster the node is known by the socket that a command is written to, the last of several. */
  locate(command: Command): void {
    if (!this.connection.isCluster) return
    this.#unlocate?.()
    this.#unlocate = RedisCall.#notice(this, command)
  }

  /** Notes each socket that the command is written to, until the returned function is called. */
  static #notice(call: RedisCall | undefined, command: Command): () => void {
    const { toWritable } = command
    const noticing: Command['toWritable'] = (socket) => {
      if (call !== undefined) call.#stream = socket
      return Reflect.apply(toWritable, command, [socket])
    }
    command.toWritable = noticing
    return () => {
      call = undefined
      if (command.toWritable === noticing) command.toWritable = toWritable
    }
  }

  #servedBy(): Stream | null | undefined {
    return this.connection.isCluster ? this.#stream : this.connection.client.stream
  }

  /** A call that had to wait for a connection, or changed it, learns at its end which server it reached. */
  #sayServer(): void {
    const { client, isCluster } = this.connection
    if (!isCluster && this.#readyStream && this.#readyStream === client.stream) return
    if (this.span.isRecording()) this.span.setAttributes(this.connection.reached(this.#servedBy()))
  }
}

/** A call of one command. */
export class CommandCall extends RedisCall implements Watcher {
  readonly #name: string
  readonly #args: readonly unknown[]
  #reply: unknown = undefined

  constructor(
    tracing: Tracing,
    caller: Context,
    connection: Connection,
    name: string,
    args: readonly unknown[],
  ) {
    super(tracing, caller, connection)
    this.#name = name
    this.#args = args
  }

  override name(): string {
    return this.#name
  }

  override needsParent(): boolean {
    return this.connection.isOfWorker && isOfLoop(this.#name, this.#args)
  }

  override subject(): Subject {
    return [this.#name, this.#args]
  }

  override outcome(): Outcome {
    return [{ name: this.#name, args: this.#args }, this.#reply]
  }

  override build(): Attributes {
    const name = this.#name
    const attributes = this.connection.attributes(name, this.tracing.text(name, this.#args))
    if (runsProcedure(name)) attributes[semconv.DB_STORED_PROCEDURE_NAME] = worded(this.#args[0])
    return attributes
  }

  /** Ends the span of a command that was a part of a pipeline or transaction. */
  end(error: unknown, reply: unknown): void {
    this.#reply = reply
    if (error) this.fail([error])
    else this.answer()
  }

  /** Not by handlers on the promise: an unhandled rejection must stay unhandled. */
  watch(command: Command, isAgain = false): void {
    this.claim(command)
    CommandCall.#follow(this, command, isAgain)
  }

  /**
   * Forgets the call when the command is settled, since wrappers that others put around these functions, as a script does, keep
   * them alive.
   */
  static #follow(call: CommandCall | undefined, command: Command, isAgain: boolean): void {
    const isExec = call?.name() === 'EXEC'
    const { resolve, reject } = command
    const resolving: Command['resolve'] = (reply) => {
      const settled = resolve(reply)
      call?.answer(isExec && Array.isArray(reply) ? reply.filter(isError) : [])
      call = undefined
      release(command, resolving, rejecting, resolve, reject)
      return settled
    }
    const rejecting: Command['reject'] = (error) => {
      // A command that has already failed, by a timeout, is not sent again.
      if (!isAgain && call?.isOpen === true && isUnknownScript(command, error))
        call.connection.unknownScripts.add(command, call)
      else call?.fail([error])
      call = undefined
      release(command, resolving, rejecting, resolve, reject)
      return reject(error)
    }
    command.resolve = resolving
    command.reject = rejecting
    if (call?.asksOutcome !== true) return
    const { transformReply } = command
    const transforming: Command['transformReply'] = (reply) => {
      if (command.transformReply === transforming) command.transformReply = transformReply
      const transformed: unknown = Reflect.apply(transformReply, command, [reply])
      if (call !== undefined) call.#reply = transformed
      return transformed
    }
    command.transformReply = transforming
  }
}

/**
 * Restores the methods that ours replaced: a settled command, or the commands of a settled pipeline, must not refer to anything
 * of ours. ioredis assigns each command a function, so that V8 keeps it until the old space is collected; call, span and what
 * hangs on them, 1 KB, would be copied there with it.
 */
export function release<Reply>(
  settled: Settling<Reply> & { [CALL]?: Command[typeof CALL]; readonly _queue?: readonly Command[] },
  resolving: Settling<Reply>['resolve'],
  rejecting: Settling<Reply>['reject'],
  resolve: Settling<Reply>['resolve'],
  reject: Settling<Reply>['reject'],
): void {
  // A wrapper that somebody put around ours stays.
  if (settled.resolve === resolving) settled.resolve = resolve
  if (settled.reject === rejecting) settled.reject = reject
  if (settled[CALL] !== undefined) settled[CALL] = 'none'
  if (settled._queue === undefined) return
  for (const command of settled._queue) if (command[CALL] !== undefined) command[CALL] = 'none'
}

/** Begins the span of a command; undefined if it gets none. The caller must end it. */
export function beginCommand(
  tracing: Tracing,
  connection: Connection,
  command: Command,
): CommandCall | undefined {
  const { send } = tracing
  const caller = send.caller()
  if (caller === undefined) return undefined
  const call = new CommandCall(tracing, caller, connection, upperCase(command.name), command.args)
  return send.begin(call) ? call : undefined
}

/** Sends a command that has a span, which ends at once if ioredis throws instead of rejecting. */
export function submitted(
  call: RedisCall | undefined,
  original: (this: unknown, ...args: never[]) => unknown,
  self: unknown,
  args: readonly unknown[],
): unknown {
  if (call === undefined) return Reflect.apply(original, self, args)
  try {
    return Reflect.apply(original, self, args)
  } catch (error) {
    call.fail([error])
    throw error
  }
}

let latestName = ''
let latestUpperCase = ''

/** An app mostly repeats the same few commands: saves 0.1 µs. */
function upperCase(given: unknown): string {
  if (given !== latestName) {
    const name = String(given)
    latestUpperCase = name.toUpperCase()
    latestName = name
  }
  return latestUpperCase
}

/** What a Cluster says when it gives up; the server's last answer follows. */
const GIVEN_UP = 'Too many Cluster redirections. Last error: ReplyError: '

/** The first word of the server's error, WRONGTYPE, by its message without the values, of which a script may make the first word. */
function replyCode(error: unknown, message: string): string | undefined {
  const isGivenUp = message.startsWith(GIVEN_UP)
  if (!isGivenUp && !(isError(error) && error.name === 'ReplyError')) return undefined
  return REPLY_CODE.exec(isGivenUp ? message.slice(GIVEN_UP.length) : message)?.[0]
}

function joined(codes: readonly string[]): string {
  return [...new Set(codes)].join('/')
}
