import {
  errorType,
  semconv,
  type Attributes,
  type Call,
  type Sender,
  type SendingOptions,
} from '@throughline/core'
import { maskedCommand, maskedMessage } from './mask.ts'

const DEFAULT_PORT = 6379

/** A command as it goes to the server. That of a pipeline or transaction is called PIPELINE or MULTI. */
export interface RedisCommand {
  /** In upper case. */
  readonly name: string
  /** With `keyPrefix`; of a pipeline or transaction its commands, each a list of its name and arguments. */
  readonly args: readonly unknown[]
}

type Subject = [command: string, args: readonly unknown[]]
type Outcome = [command: RedisCommand, reply: unknown]

/** `ignore` gets a command's name in upper case and its arguments; `attributes` gets the command and its reply. */
export type IORedisOptions = SendingOptions<Subject, Outcome>
export type RedisSender = Sender<Subject, Outcome>

type Method = (this: unknown, ...args: unknown[]) => unknown

/** A Redis with what its typings do not tell. */
export interface Client {
  readonly status: string
  readonly isCluster: boolean
  readonly options: Readonly<{
    host?: string
    port?: number
    path?: string
    db?: number
    sentinels?: unknown
  }>
  /** Its own state of the connection: the database that is selected. */
  readonly condition?: { readonly select?: number } | null
  readonly stream?: { readonly remoteAddress?: string; readonly remotePort?: number } | null
  readonly _autoPipelines?: ReadonlyMap<string, unknown>
  sendCommand(command: Command, stream?: unknown, ...rest: unknown[]): unknown
  pipeline: Method
  multi: Method
  duplicate: Method
  setStatus: Method
}

/** A command with what its typings do not tell: a reply, or an error, reaches its promise through these two. */
export interface Command {
  readonly name: string
  readonly args: readonly unknown[]
  resolve: (reply: unknown) => unknown
  reject: (error: unknown) => unknown
  transformReply(reply: unknown): unknown
}

/** Commands that run something which has a name: the first argument. */
const STORED_PROCEDURE = new Set(['EVALSHA', 'EVALSHA_RO', 'FCALL', 'FCALL_RO'])

/** Has `submit` hand a command over, in a span that ends when the command is answered. */
export function traceCommand<Result>(
  send: RedisSender,
  client: Client,
  command: Command,
  submit: () => Result,
): Result {
  const { args } = command
  const name = String(command.name).toUpperCase()
  const call = send.begin([name, args], () => name, attributes)
  if (call === undefined) return submit()

  const wasReady = client.status === 'ready'
  const { transformReply } = command
  let shown: unknown
  command.transformReply = (reply) => (shown = Reflect.apply(transformReply, command, [reply]))
  return handOver(send, call, command, submit, () => {
    if (!wasReady && call.span.isRecording()) call.span.setAttributes(peerOf(client))
    send.succeed(call, { name, args }, shown)
  })

  function attributes(): Attributes {
    const shared = { ...attributesOf(client, name), [semconv.DB_QUERY_TEXT]: maskedCommand(name, args) }
    return STORED_PROCEDURE.has(name)
      ? { ...shared, [semconv.DB_STORED_PROCEDURE_NAME]: String(args[0]) }
      : shared
  }
}

/** What waits for the server: a reply, or an error, reaches its promise through these two. */
interface Waiting<Reply> {
  resolve: (reply: Reply) => unknown
  reject: (error: unknown) => unknown
}

/** Hands over by `submit`, and ends the span when there is an answer (by `answered`) or an error. */
export function handOver<Reply, Result>(
  send: RedisSender,
  call: Call,
  waiting: Waiting<Reply>,
  submit: () => Result,
  answered: (reply: Reply) => void,
): Result {
  const { resolve, reject } = waiting
  // Not by handlers on the promise: a rejection that nobody handles must remain one.
  waiting.resolve = (reply) => {
    const settled = resolve(reply)
    answered(reply)
    return settled
  }
  waiting.reject = (error) => {
    fail(send, call, [error])
    return reject(error)
  }
  try {
    return submit()
  } catch (error) {
    fail(send, call, [error])
    throw error
  }
}

/** Ends the span of a call that met these errors; `outcome` is given where the app got an answer all the same. */
export function fail(send: RedisSender, call: Call, errors: readonly unknown[], outcome?: Outcome): void {
  if (!call.span.isRecording()) return
  const codes = errors.map(replyCode).filter((code) => code !== undefined)
  if (codes.length > 0) call.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, joined(codes))
  const type = joined(errors.map((error) => replyCode(error) ?? errorType(error) ?? '_OTHER'))
  const failure = { type, message: maskedMessage(errors[0]) }
  send.conclude(call, outcome === undefined ? { failure } : { failure, outcome })
}

/** What a span of this client says, whatever it is about. */
export function attributesOf(client: Client, operation: string): Attributes {
  const { options, condition } = client
  const attributes: Attributes = {
    [semconv.DB_SYSTEM_NAME]: 'redis',
    [semconv.DB_NAMESPACE]: String(condition?.select ?? options.db ?? 0),
    [semconv.DB_OPERATION_NAME]: operation,
    ...peerOf(client),
  }
  // Behind sentinels the server is whichever they name.
  if (options.sentinels) return attributes
  const { path, host = 'localhost', port = DEFAULT_PORT } = options
  attributes[semconv.SERVER_ADDRESS] = path ?? host
  if (!path && port !== DEFAULT_PORT) attributes[semconv.SERVER_PORT] = port
  return attributes
}

export function peerOf({ stream, options }: Client): Attributes {
  const { remoteAddress, remotePort } = stream ?? {}
  if (remoteAddress === undefined || remotePort === undefined) return {}
  const peer = { [semconv.NETWORK_PEER_ADDRESS]: remoteAddress, [semconv.NETWORK_PEER_PORT]: remotePort }
  if (!options.sentinels) return peer
  return { ...peer, [semconv.SERVER_ADDRESS]: remoteAddress, [semconv.SERVER_PORT]: remotePort }
}

/** The first word of what the server answers instead of a reply: WRONGTYPE. */
function replyCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || error.name !== 'ReplyError') return undefined
  return /^[A-Z][A-Z0-9_]*(?=\s|$)/.exec(error.message)?.[0]
}

function joined(codes: readonly string[]): string {
  return [...new Set(codes)].join('/')
}
