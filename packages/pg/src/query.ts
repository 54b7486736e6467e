import {
  semconv,
  type Attributes,
  type Context,
  type NamedAttributes,
  type NamedWriter,
} from '@throughline/core'
import { Call } from '@throughline/core/client'
import { describeSql, type SqlDescription } from '@throughline/core/sql'
import type { QueryResult } from 'pg'
import { isDefault, isSamePlace, serverOf, SYSTEM, withOldNamesIfWanted, type Place } from './connection.ts'
import { failureOf } from './failure.ts'
import type { Outcome, Tracing } from './options.ts'

const MS_PER_SECOND = 1000

const writeWait: NamedWriter = (into, seconds) => {
  into['throughline.db.pool.wait'] = seconds
}

/** One query that is under way. */
export class QueryCall extends Call<[text: string], Outcome> {
  /** What the queue of a pool has for it. */
  queuedAs: unknown = undefined
  private readonly tracing: Tracing
  private readonly text: string
  private readonly values: readonly unknown[]
  private readonly statement: string | undefined
  /** The database that the span names. */
  private place: Place
  private result: unknown = undefined
  private status: string | undefined = undefined
  private description: SqlDescription | undefined = undefined

  constructor(
    tracing: Tracing,
    caller: Context,
    text: string,
    values: readonly unknown[],
    name: string | undefined,
    place: Place,
  ) {
    super(caller)
    this.tracing = tracing
    this.text = text
    this.values = values
    this.statement = name
    this.place = place
    if (tracing.showsParameters) this.mostAttributes += values.length
  }

  override name(): string {
    return this.describe().summary || SYSTEM
  }

  override subject(): [string] {
    return [this.text]
  }

  override outcome(): Outcome {
    const query = { text: this.text, values: this.values, name: this.statement }
    return [query, this.result as QueryResult]
  }

  override dimensions(): Attributes {
    const { summary } = this.describe()
    const counted: Attributes = { [semconv.DB_SYSTEM_NAME]: SYSTEM, ...serverOf(this.place) }
    if (summary !== '') counted[semconv.DB_QUERY_SUMMARY] = summary
    if (this.status !== undefined) counted[semconv.DB_RESPONSE_STATUS_CODE] = this.status
    return counted
  }

  override build(): Attributes {
    const attributes = this.literal()
    if (this.tracing.showsParameters) addParameters(attributes, this.values)
    return withOldNamesIfWanted(attributes)
  }

  private literal(): Attributes {
    const { text, summary } = this.describe()
    // Parameterised text holds no values; any other is shown without its literals.
    const shown = this.values.length > 0 && !this.tracing.sanitizesAlways ? this.text : text
    const { host, port, database } = this.place
    // One literal with what nearly every query has, its keys written out: see NamedAttributes.
    if (text !== '' && summary !== '' && database && host && !host.startsWith('/') && isDefault(port)) {
      return {
        'db.system.name': SYSTEM,
        'db.namespace': database,
        'server.address': host,
        'db.query.text': shown,
        'db.query.summary': summary,
      } satisfies NamedAttributes
    }
    const attributes: Attributes = { [semconv.DB_SYSTEM_NAME]: SYSTEM, ...serverOf(this.place) }
    if (text !== '') attributes[semconv.DB_QUERY_TEXT] = shown
    if (summary !== '') attributes[semconv.DB_QUERY_SUMMARY] = summary
    return attributes
  }

  private describe(): SqlDescription {
    return (this.description ??= describeSql(this.text))
  }

  /** The text that is sent: with a comment behind it, where the app wants one and the statement can have it. */
  sent(): string {
    const { comment } = this.tracing
    return comment === undefined || this.statement !== undefined ? this.text : comment(this.text, this)
  }

  /** The query runs, or would have run, on this client. */
  on(client: Place | undefined): void {
    const known = this.place
    if (client === undefined || client === known) return
    this.place = client
    // A pool's clients nearly always have the same database: then there is nothing to add.
    if (!isSamePlace(client, known)) this.span.setAttributes(withOldNamesIfWanted(serverOf(client)))
  }

  /** It had to wait for a connection of its pool. */
  waited(milliseconds: number): void {
    if (!this.span.isRecording()) return
    const seconds = milliseconds / MS_PER_SECOND
    if (!this.putNamed(writeWait, seconds)) this.span.setAttribute(semconv.POOL_WAIT, seconds)
  }

  /** Ends the span, with the error or the result. The first end counts. */
  end(error: unknown, result?: unknown): void {
    const { send } = this.tracing
    if (!error) {
      if (send.asksOutcome) this.result = result
      send.succeed(this)
      return
    }
    const { status, type, message } = failureOf(error)
    this.status = status
    if (status !== undefined && this.span.isRecording())
      this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, status)
    send.fail(this, type, message)
  }
}

/** Adds `db.query.parameter.0` and so on: each value as text, as it was given. */
function addParameters(attributes: Attributes, values: readonly unknown[]): void {
  for (const [index, value] of values.entries())
    attributes[`${semconv.DB_QUERY_PARAMETER}${index}`] = textOf(value)
}

function textOf(value: unknown): string {
  try {
    if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString('hex')}`
    if (value instanceof Date) return value.toISOString()
    if (typeof value === 'object' && value !== null) return JSON.stringify(value) ?? ''
    return String(value)
  } catch {
    return 'a value without text'
  }
}
