import { BOOLEAN, expected, type Shape } from '@throughline/core'
import { sender, SENDING_SHAPE, type Sender, type SendingOptions } from '@throughline/core/client'
import { DATABASE_DURATION } from '@throughline/core/database'
import type { QueryResult } from 'pg'
import { commenter, type Commenter, type SqlComment } from './comment.ts'

/** A query as the app gave it, in whichever form. */
export interface Query {
  /** Empty where a prepared statement is run by its name alone. */
  readonly text: string
  readonly values: readonly unknown[]
  readonly name: string | undefined
}

export type Outcome = [query: Query, result: QueryResult | QueryResult[]]

/**
 * `ignore` gets the text of a query; `attributes` gets the query and its result, which is a list if the text held several
 * statements.
 */
export interface PgOptions extends SendingOptions<[text: string], Outcome> {
  /** `always`: parameterised text is shown without its literals, too; any other always is. */
  sanitize?: 'always' | undefined
  /** Whether the values of parameters are shown: `db.query.parameter.0` and so on. They may be anybody's secrets. */
  parameters?: boolean | undefined
  /** Whether each `pool.connect()` has a span of its own. */
  connectSpans?: boolean | undefined
  /**
   * What is told the server in a comment behind the text of a query (sqlcommenter): `true` for the trace context of its
   * span, or a function of the span that returns the tags.
   */
  sqlcomment?: SqlComment | undefined
}

export const SCOPE = { name: '@throughline/pg', version: '0.1.0' }

const SHAPE: Shape<PgOptions> = {
  ...SENDING_SHAPE,
  ignore: { ...SENDING_SHAPE.ignore, example: "ignore: ['SELECT 1', /^LISTEN /]" },
  sanitize: expected("'always'", "sanitize: 'always'", (value) => value === 'always'),
  parameters: BOOLEAN('parameters'),
  connectSpans: BOOLEAN('connectSpans'),
  sqlcomment: expected(
    'true, false or a function',
    'sqlcomment: true',
    (value) => typeof value === 'boolean' || typeof value === 'function',
  ),
}

/** What the queries of one target have in common. */
export interface Tracing {
  readonly options: PgOptions
  readonly send: Sender<[text: string], Outcome>
  readonly sanitizesAlways: boolean
  readonly showsParameters: boolean
  readonly comment: Commenter | undefined
  /** Where the app wants spans of `pool.connect()`. */
  readonly connects: Sender<[], []> | undefined
}

/** @throws TypeError for an option that is unknown or of the wrong shape. */
export function tracingBy(options: PgOptions): Tracing {
  const send = sender<[text: string], Outcome, PgOptions>(
    { scope: SCOPE, isSilent: true, duration: DATABASE_DURATION, text: (text) => text },
    'tracePg()',
    options,
    SHAPE,
  )
  const { requireParent, sqlcomment } = options
  return {
    options,
    send,
    sanitizesAlways: options.sanitize === 'always',
    showsParameters: options.parameters === true,
    comment: commenter(sqlcomment),
    connects:
      options.connectSpans === true
        ? sender<[], []>({ scope: SCOPE, isSilent: true, text: () => '' }, 'tracePg()', { requireParent })
        : undefined,
  }
}
