import {
  context,
  messageOf,
  semconv,
  type Attributes,
  type Call,
  type Sender,
  type SendingOptions,
} from '@throughline/core'
import { describeSql } from '@throughline/core/sql'
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

/**
 * The query that the arguments ask for. Undefined for a Submittable (a cursor, a stream), which has a life of its own, and
 * for what pg is going to refuse.
 */
export function queryOf([first, second]: unknown[]): Query | undefined {
  const config = typeof first === 'string' ? { text: first } : first
  if (typeof config !== 'object' || config === null) return undefined
  const { text, name, values, submit } = config as Record<string, unknown>
  if (typeof submit === 'function') return undefined
  if (typeof text !== 'string' && typeof name !== 'string') return undefined
  const given = Array.isArray(second) ? second : values
  return {
    text: typeof text === 'string' ? text : '',
    values: Array.isArray(given) ? given : [],
    name: typeof name === 'string' ? name : undefined,
  }
}

export function begin(send: PgSender, query: Query, client: Connected | undefined): Call | undefined {
  return send.begin([query.text], name, attributes)

  function name(): string {
    return describeSql(query.text).summary || 'postgresql'
  }

  function attributes(): Attributes {
    const { text, summary } = describeSql(query.text)
    const attributes: Attributes = { [semconv.DB_SYSTEM_NAME]: 'postgresql', ...serverOf(client) }
    // Parameterised text holds no values; any other is shown without its literals.
    if (text !== '') attributes[semconv.DB_QUERY_TEXT] = query.values.length > 0 ? query.text : text
    if (summary !== '') attributes[semconv.DB_QUERY_SUMMARY] = summary
    return attributes
  }
}

/** Runs a query whose span has begun (or that has none), in any of pg's forms, and ends the span with it. */
export function finish(
  send: PgSender,
  call: Call | undefined,
  query: Query,
  original: Method,
  self: unknown,
  args: unknown[],
  configured?: unknown,
): unknown {
  const position = typeof args[2] !== 'function' && typeof args[1] === 'function' ? 1 : 2
  const callback = args[position] ?? configured
  try {
    if (typeof callback === 'function') {
      const bound = context.bind(call?.caller ?? context.active(), callback as Method)
      const calledBack = function (this: unknown, ...outcome: unknown[]): unknown {
        end(outcome[0], outcome[1])
        return Reflect.apply(bound, this, outcome)
      }
      const config = args[0] as { callback?: unknown }
      args[position] = calledBack
      const result = Reflect.apply(original, self, args)
      // pg writes the callback it is given into the app's config object, which is to hold the app's own.
      if (config.callback === calledBack) config.callback = callback
      return result
    }
    const promise = Reflect.apply(original, self, args) as Promise<unknown> | undefined
    return call === undefined ? promise : promise?.then(resolved, failed)
  } catch (error) {
    return failed(error)
  }

  function resolved(result: unknown): unknown {
    end(undefined, result)
    return result
  }

  function failed(error: unknown): never {
    end(error)
    throw error
  }

  function end(error: unknown, result?: unknown): void {
    if (call === undefined) return
    if (!error) return send.succeed(call, query, result as QueryResult)
    const { code, severity } = error as { code?: unknown; severity?: unknown }
    const known = typeof code === 'string' ? code : undefined
    // Only what the server reports has a severity: then the code is its SQLSTATE.
    if (known !== undefined && severity !== undefined)
      call.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, known)
    send.fail(call, error, known, maskedMessage(error))
  }
}

export function serverOf(client: Connected | undefined): Attributes {
  if (client === undefined) return {}
  const { host, port, database } = client
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
