import {
  Call,
  context,
  errorType,
  messageOf,
  semconv,
  type Attributes,
  type Context,
  type Sender,
  type SendingOptions,
  type NamedAttributes,
} from '@throughline/core'
import { describeSql, type SqlDescription } from '@throughline/core/sql'
import type { ClientBase, QueryResult } from 'pg'

const DEFAULT_PORT = 5432

/** A query as the app gave it, in whichever form. */
export interface Query {
  /** Empty where a prepared statement is run by its name alone. */
  readonly text: string
  readonly values: readonly unknown[]
  readonly name: string | undefined
}

type Outcome = [query: Query, result: QueryResult | QueryResult[]]

/**
 * `ignore` gets the text of a query; `attributes` gets the query and its result, which is a list if the text held several
 * statements.
 */
export type PgOptions = SendingOptions<[text: string], Outcome>
export type PgSender = Sender<[text: string], Outcome>

/** A client with what the typings of all clients do not tell: where it is connected to. */
export type Connected = ClientBase & {
  readonly host?: string
  readonly port?: number
  readonly database?: string | null
}

export type Method = (this: unknown, ...args: unknown[]) => unknown

const SYSTEM = 'postgresql'
const NO_VALUES: readonly unknown[] = []
const NOWHERE: Partial<Pick<Connected, 'host' | 'port' | 'database'>> = {}

/** One query that is under way. */
export class QueryCall extends Call<[text: string], Outcome> {
  readonly #send: PgSender
  readonly #text: string
  readonly #values: readonly unknown[]
  readonly #name: string | undefined
  /** The one that the span tells of. */
  #client: Connected | undefined
  #result: unknown = undefined
  #description: SqlDescription | undefined = undefined

  constructor(
    send: PgSender,
    caller: Context,
    text: string,
    values: readonly unknown[],
    name: string | undefined,
    client: Connected | undefined,
  ) {
    super(caller)
    this.#send = send
    this.#text = text
    this.#values = values
    this.#name = name
    this.#client = client
  }

  override name(): string {
    return this.#describe().summary || SYSTEM
  }

  override subject(): [string] {
    return [this.#text]
  }

  override outcome(): Outcome {
    const query = { text: this.#text, values: this.#values, name: this.#name }
    return [query, this.#result as QueryResult]
  }

  protected override build(): Attributes {
    const { text, summary } = this.#describe()
    // Parameterised text holds no values; any other is shown without its literals.
    const shown = this.#values.length > 0 ? this.#text : text
    const { host, port, database } = this.#client ?? NOWHERE
    // One literal with what nearly every query has, its keys written out: see NamedAttributes.
    if (text !== '' && summary !== '' && database && host && !host.startsWith('/') && isPlain(port)) {
      return {
        'db.system.name': SYSTEM,
        'db.namespace': database,
        'server.address': host,
        'db.query.text': shown,
        'db.query.summary': summary,
      } satisfies NamedAttributes
    }
    const attributes: Attributes = { [semconv.DB_SYSTEM_NAME]: SYSTEM, ...serverOf(this.#client) }
    if (text !== '') attributes[semconv.DB_QUERY_TEXT] = shown
    if (summary !== '') attributes[semconv.DB_QUERY_SUMMARY] = summary
    return attributes
  }

  #describe(): SqlDescription {
    return (this.#description ??= describeSql(this.#text))
  }

  /** The query runs, or was to run, on this client. */
  on(client: Connected | undefined): void {
    const known = this.#client
    if (client === undefined || client === known) return
    this.#client = client
    // The clients of a pool are nearly always connected to the same: then there is nothing to add.
    const isSame = client.host === known?.host && client.port === known?.port
    if (!isSame || client.database !== known?.database) this.span.setAttributes(serverOf(client))
  }

  /** Ends the span, with the error or the result. */
  end(error: unknown, result?: unknown): void {
    const send = this.#send
    if (!error) {
      if (send.asksOutcome) this.#result = result
      send.succeed(this)
      return
    }
    const { code, severity } = error as { code?: unknown; severity?: unknown }
    const known = typeof code === 'string' ? code : undefined
    // Only what the server reports has a severity: then the code is its SQLSTATE.
    if (known !== undefined && severity !== undefined && this.span.isRecording())
      this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, known)
    send.fail(this, known ?? errorType(error), maskedMessage(error))
  }
}

/**
 * Whether this asks for a query: not so a Submittable (a cursor, a stream), which has a life of its own, and what pg is
 * going to refuse.
 */
export function isQuery(first: unknown): boolean {
  if (typeof first === 'string') return true
  if (typeof first !== 'object' || first === null) return false
  const { text, name, submit } = first as Record<string, unknown>
  return typeof submit !== 'function' && (typeof text === 'string' || typeof name === 'string')
}

/** Begins the span of the query that the arguments ask for; undefined where there is to be none. */
export function begin(
  send: PgSender,
  [first, second]: readonly unknown[],
  client: Connected | undefined,
): QueryCall | undefined {
  const caller = send.caller()
  if (caller === undefined || !isQuery(first)) return undefined
  const given = Array.isArray(second) ? second : undefined
  let call: QueryCall
  if (typeof first === 'string')
    call = new QueryCall(send, caller, first, given ?? NO_VALUES, undefined, client)
  else {
    const { text, name, values } = first as Record<string, unknown>
    call = new QueryCall(
      send,
      caller,
      typeof text === 'string' ? text : '',
      given ?? (Array.isArray(values) ? values : NO_VALUES),
      typeof name === 'string' ? name : undefined,
      client,
    )
  }
  return send.begin(call) ? call : undefined
}

/** Runs a query whose span has begun (or that has none), in any of pg's forms, and ends the span with it. */
export function run(
  call: QueryCall | undefined,
  original: Method,
  self: unknown,
  args: unknown[],
  configured: unknown,
): unknown {
  try {
    const position = callbackAt(args)
    const callback = args[position] ?? configured
    if (typeof callback === 'function') {
      const calledBack = answering(call, callback as Method, call?.caller ?? context.active())
      return runWith(original, self, args, position, calledBack, callback)
    }
    const promise = Reflect.apply(original, self, args)
    return call === undefined ? promise : ending(call, promise)
  } catch (error) {
    call?.end(error)
    throw error
  }
}

/** The place of the callback in the arguments of a query, if it has one. */
export function callbackAt(args: readonly unknown[]): 1 | 2 {
  return typeof args[2] !== 'function' && typeof args[1] === 'function' ? 1 : 2
}

/** The callback, run in this context, with the end of the span in front of it. */
export function answering(call: QueryCall | undefined, callback: Method, scope: Context): Method {
  return function (this: unknown, ...outcome) {
    call?.end(outcome[0], outcome[1])
    return context.with(scope, callback, this, ...outcome)
  }
}

/** Runs a query with another callback in place of the one that it has. */
export function runWith(
  original: Method,
  self: unknown,
  args: unknown[],
  position: number,
  calledBack: unknown,
  callback: unknown,
): unknown {
  const config = args[0] as { callback?: unknown }
  args[position] = calledBack
  const result = Reflect.apply(original, self, args)
  // pg writes the callback it is given into the app's config object, which is to hold the app's own.
  if (typeof config === 'object' && config.callback === calledBack) config.callback = callback
  return result
}

/** The promise of a query, with the end of the span in front of it. */
export function ending(call: QueryCall, promise: unknown): unknown {
  return (promise as Promise<unknown> | undefined)?.then(
    (result) => {
      call.end(undefined, result)
      return result
    },
    (error: unknown) => {
      call.end(error)
      throw error
    },
  )
}

function isPlain(port: number | undefined): boolean {
  return port === undefined || port === DEFAULT_PORT
}

function serverOf(client: Connected | undefined): Attributes {
  const { host, port, database } = client ?? NOWHERE
  const attributes: Attributes = {}
  if (database) attributes[semconv.DB_NAMESPACE] = database
  if (!host) return attributes
  const isSocket = host.startsWith('/')
  attributes[semconv.SERVER_ADDRESS] = isSocket ? `${host}/.s.PGSQL.${port}` : host
  if (!isSocket && port !== undefined && port !== DEFAULT_PORT) attributes[semconv.SERVER_PORT] = port
  return attributes
}

/** What English messages of the server quote that is a name and no value. */
const NAMED = 'relation|column|constraint|table|type|function|schema|database|role|user'

/** The rest goes from its first quotation mark to the last: a value may hold quotation marks, and these words, itself. */
const QUOTED = new RegExp(`(\\b(?:${NAMED}) "[^"]*")|["«»„“”][^]*["«»„“”]`, 'g')

/** An error's message without the values that it quotes. */
function maskedMessage(error: unknown): string {
  // Where all addresses of a name refuse, the message of the whole is empty.
  if (error instanceof AggregateError && error.message === '')
    return error.errors.map(maskedMessage).join('; ')
  return messageOf(error).replace(QUOTED, (_, name: string | undefined) => name ?? '"?"')
}
