import {
  Call,
  errorType,
  semconv,
  type Attributes,
  type Context,
  type Sender,
  type SendingOptions,
} from '@throughline/core'
import type { Connection, Stream } from './connection.ts'
import { maskedCommand, maskedMessage } from './mask.ts'

/** A command as it goes to the server. That of a pipeline or transaction is called PIPELINE or MULTI. */
export interface RedisCommand {
  /** In upper case. */
  readonly name: string
  /** With `keyPrefix`; of a pipeline or transaction its commands, each a list of its name and arguments. */
  readonly args: readonly unknown[]
}

export type Subject = [command: string, args: readonly unknown[]]
export type Outcome = [command: RedisCommand, reply: unknown]

/** `ignore` gets a command's name in upper case and its arguments; `attributes` gets the command and its reply. */
export type IORedisOptions = SendingOptions<Subject, Outcome>
export type RedisSender = Sender<Subject, Outcome>

/** A command with what its typings do not tell: a reply, or an error, reaches its promise through these two. */
export interface Command {
  readonly name: string
  readonly args: readonly unknown[]
  resolve: (reply: unknown) => unknown
  reject: (error: unknown) => unknown
  transformReply(reply: unknown): unknown
  /** What is written to this socket. */
  toWritable(socket: Stream): unknown
  /** That it has passed us once. Not in a WeakSet: that cost 2 µs a command, most of it in garbage collection. */
  [SEEN]?: true
}

const SEEN = Symbol('throughline.seen')

/** Commands that run something which has a name: the first argument. */
const STORED_PROCEDURE = new Set(['EVALSHA', 'EVALSHA_RO', 'FCALL', 'FCALL_RO'])

/**
 * Whether a command comes for the first time: one that has to wait for a connection, or that is sent again on a new one,
 * passes more than once.
 */
export function isNew(command: Command): boolean {
  if (command[SEEN] === true) return false
  command[SEEN] = true
  return true
}

/** A call of a Redis: of a command or of several. */
export abstract class RedisCall extends Call<Subject, Outcome> {
  protected readonly connection: Connection
  readonly #send: RedisSender
  readonly #wasReady: boolean
  #statusCode: string | undefined = undefined
  #stream: Stream | undefined = undefined

  constructor(send: RedisSender, caller: Context, connection: Connection) {
    super(caller)
    this.connection = connection
    this.#send = send
    this.#wasReady = connection.client.status === 'ready'
  }

  /** Whether the reply is asked for. */
  protected get asksOutcome(): boolean {
    return this.#send.asksOutcome
  }

  override dimensions(): Attributes {
    const counted = this.connection.dimensions(this.name(), this.#servedBy())
    if (this.#statusCode !== undefined) counted[semconv.DB_RESPONSE_STATUS_CODE] = this.#statusCode
    return counted
  }

  /** Ends the span of a call that was answered. */
  protected answer(errors: readonly unknown[] = []): void {
    if (errors.length > 0) return this.fail(errors, true)
    if (!this.isOpen) return
    this.#sayServer()
    this.#send.succeed(this)
  }

  /** Ends the span of a call that met these errors; with `hasOutcome` the app got an answer all the same. */
  fail(errors: readonly unknown[], hasOutcome = false): void {
    if (!this.isOpen) return
    this.#sayServer()
    const codes = errors.map(replyCode).filter((code) => code !== undefined)
    if (codes.length > 0) {
      this.#statusCode = joined(codes)
      this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, this.#statusCode)
    }
    const type = joined(errors.map((error) => replyCode(error) ?? errorType(error) ?? '_OTHER'))
    this.#send.fail(this, type, maskedMessage(errors[0]), hasOutcome)
  }

  /** In a Cluster the node is known by the socket that a command is written to, the last of several. */
  protected locate(command: Command): void {
    if (!this.connection.isCluster) return
    const { toWritable } = command
    command.toWritable = (socket) => {
      this.#stream = socket
      return Reflect.apply(toWritable, command, [socket])
    }
  }

  #servedBy(): Stream | null | undefined {
    return this.connection.isCluster ? this.#stream : this.connection.client.stream
  }

  /** One that had to wait for a connection learns at the end where that leads to. */
  #sayServer(): void {
    if (this.#wasReady && !this.connection.isCluster) return
    if (this.span.isRecording()) this.span.setAttributes(this.connection.reached(this.#servedBy()))
  }
}

class CommandCall extends RedisCall {
  readonly #name: string
  readonly #args: readonly unknown[]
  #reply: unknown = undefined

  constructor(
    send: RedisSender,
    caller: Context,
    connection: Connection,
    name: string,
    args: readonly unknown[],
  ) {
    super(send, caller, connection)
    this.#name = name
    this.#args = args
  }

  override name(): string {
    return this.#name
  }

  override subject(): Subject {
    return [this.#name, this.#args]
  }

  override outcome(): Outcome {
    return [{ name: this.#name, args: this.#args }, this.#reply]
  }

  protected override build(): Attributes {
    const name = this.#name
    const attributes = this.connection.attributes(name, maskedCommand(name, this.#args))
    if (STORED_PROCEDURE.has(name)) attributes[semconv.DB_STORED_PROCEDURE_NAME] = String(this.#args[0])
    return attributes
  }

  /** Not by handlers on the promise: a rejection that nobody handles must remain one. */
  watch(command: Command): void {
    this.locate(command)
    const { resolve, reject } = command
    command.resolve = (reply) => {
      const settled = resolve(reply)
      this.answer()
      return settled
    }
    command.reject = (error) => {
      this.fail([error])
      return reject(error)
    }
    if (!this.asksOutcome) return
    const { transformReply } = command
    command.transformReply = (reply) => (this.#reply = Reflect.apply(transformReply, command, [reply]))
  }
}

/** Begins the span of a command, which ends when that is answered; undefined where there is to be none. */
export function beginCommand(
  send: RedisSender,
  connection: Connection,
  command: Command,
): RedisCall | undefined {
  const caller = send.caller()
  if (caller === undefined) return undefined
  const call = new CommandCall(send, caller, connection, upperCase(command.name), command.args)
  if (!send.begin(call)) return undefined
  call.watch(command)
  return call
}

/** Hands over what has a span; where ioredis throws instead of rejecting, that ends the span. */
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

/** Most commands of an app are few, and each in turn the same: 0.1 µs. */
function upperCase(given: unknown): string {
  if (given !== latestName) {
    const name = String(given)
    latestUpperCase = name.toUpperCase()
    latestName = name
  }
  return latestUpperCase
}

/** The first word of what the server answers instead of a reply: WRONGTYPE. */
function replyCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || error.name !== 'ReplyError') return undefined
  return /^[A-Z][A-Z0-9_]*(?=\s|$)/.exec(error.message)?.[0]
}

function joined(codes: readonly string[]): string {
  return [...new Set(codes)].join('/')
}
