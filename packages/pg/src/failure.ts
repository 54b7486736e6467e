import { errorType, rawMessageOf, reportOnce, showAs } from '@throughline/core'

/** What English messages of the server quote that is a name and no value. */
const NAMED =
  'relation|table|index|sequence|view|column|column reference|constraint|type|function|schema|database|role|user'

/**
 * One set for both ends, for languages differ in which mark opens. It also has all but the last of them meet a closing one at
 * once: of a mark that none can close, each would be searched for to the end of the message, which is time without bounds.
 */
const QUOTATION_MARK = '["«»„“”「」]'

/**
 * Names are kept. The rest goes from its first quotation mark to the last: a value may hold quotation marks, and these words,
 * itself.
 */
const QUOTED_VALUE = new RegExp(`(\\b(?:${NAMED}) "[^"]*")|${QUOTATION_MARK}[^]*${QUOTATION_MARK}`, 'g')

/** Nothing is known of who quotes what: all that may be quotation marks, apostrophes too. */
const QUOTED = new RegExp(`${QUOTATION_MARK}[^]*${QUOTATION_MARK}|'[^]*'`, 'g')

/** What the server passes on where the app gives up a COPY: why, in the words of the app, and not quoted. */
const GIVEN_UP = { code: '57014', routine: 'CopyGetData' }
const BEHIND_COLON = /: [^]*/

/** The class of SQLSTATEs that are about data. */
const DATA_EXCEPTION = /^22/

/** Numbers, dates, times and bytes that stand alone; not those of a type, `varying(8)`, nor of a name or a position. */
const BARE_VALUE = /(?<![\w(.$"]|position )-?(?:0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*|\d[\d:.-]*)/g

/** Files of the server that pass on what functions of the app say, by RAISE or in another language than SQL. */
const APPS_OWN = /^(pl_exec|plpy|plperl|pltcl|plv8)/

/** What a span may say of an error. */
interface Failure {
  /** The SQLSTATE of what the server reported. */
  readonly status: string | undefined
  /** `error.type`: the SQLSTATE, or what went wrong before the server could answer. */
  readonly type: string | undefined
  readonly message: string | undefined
}

/**
 * Reads an error, which may be of the app's (`verify`, `onConnect`, a parser of values). All spans that tell of this one will
 * have its message so, without the values in it, also those of the requests and functions that it goes through.
 */
export function failureOf(error: unknown): Failure {
  try {
    const { code, severity } = error as { code?: unknown; severity?: unknown }
    const known = typeof code === 'string' ? code : undefined
    const message = showAs(error, masked(error))
    // Only what the server reports has a severity.
    return { status: severity === undefined ? undefined : known, type: known ?? errorType(error), message }
  } catch (trouble) {
    reportOnce('pg:error', 'error', 'an error could not be read', trouble)
    return { status: undefined, type: errorType(error), message: undefined }
  }
}

/** What the server reported, as it may be shown, where the query that it is of had no span. */
export function maskedReport(error: object): string | undefined {
  const { severity, code } = error as { severity?: unknown; code?: unknown }
  return typeof severity === 'string' && typeof code === 'string' ? masked(error) : undefined
}

function masked(error: unknown): string {
  // Where all addresses of a name refuse, the message of the whole is empty.
  if (error instanceof AggregateError && error.message === '') return error.errors.map(masked).join('; ')
  const message = rawMessageOf(error)
  const { severity, file, code, routine } = error as Record<'severity' | 'file' | 'code' | 'routine', unknown>
  if (severity === undefined) return firstLine(message.replace(QUOTED, '"?"'))
  if (typeof file === 'string' && APPS_OWN.test(file))
    return firstLine(message.replace(QUOTED, '"?"').replace(BARE_VALUE, '?'))
  if (code === GIVEN_UP.code && routine === GIVEN_UP.routine) return message.replace(BEHIND_COLON, ': ?')
  const unquoted = message.replace(QUOTED_VALUE, (_, name: string | undefined) => name ?? '"?"')
  return DATA_EXCEPTION.test(String(code)) ? unquoted.replace(BARE_VALUE, '?') : unquoted
}

/** Behind it libpq shows the line of the query that is wrong, and the detail. */
function firstLine(message: string): string {
  return message.slice(0, /[\r\n]|$/.exec(message)?.index)
}
