import { errorType, messageOf } from '@throughline/core'

/** What English messages of the server quote that is a name and no value. */
const NAMED =
  'relation|table|index|sequence|view|column|column reference|constraint|type|function|schema|database|role|user'

const OPENING = '["«»„“”「]'
const CLOSING = '["«»„“”」]'

/**
 * Names are kept. The rest goes from its first quotation mark to the last: a value may hold quotation marks, and these words,
 * itself.
 */
const QUOTED_VALUE = new RegExp(`(\\b(?:${NAMED}) "[^"]*")|${OPENING}[^]*${CLOSING}`, 'g')

/** Nothing is known of who quotes what: all that may be quotation marks, apostrophes too. */
const QUOTED = new RegExp(`${OPENING}[^]*${CLOSING}|'[^]*'`, 'g')

/** Files of the server that pass on what functions of the app say, by RAISE or in another language than SQL. */
const APPS_OWN = /^(pl_exec|plpy|plperl|pltcl|plv8)/

/** An error's message without the values that it quotes. */
export function maskedMessage(error: unknown): string {
  // Where all addresses of a name refuse, the message of the whole is empty.
  if (error instanceof AggregateError && error.message === '')
    return error.errors.map(maskedMessage).join('; ')
  const message = messageOf(error)
  const { severity, file } = error as { severity?: unknown; file?: unknown }
  const isServers = severity !== undefined && !(typeof file === 'string' && APPS_OWN.test(file))
  return isServers
    ? message.replace(QUOTED_VALUE, (_, name: string | undefined) => name ?? '"?"')
    : firstLine(message.replace(QUOTED, '"?"'))
}

/** Behind it libpq shows the line of the query that is wrong, and the detail. */
function firstLine(message: string): string {
  return message.slice(0, /[\r\n]|$/.exec(message)?.index)
}

/** The SQLSTATE of what the server reported; it alone has a severity. */
export function sqlStateOf(error: unknown): string | undefined {
  const { code, severity } = error as { code?: unknown; severity?: unknown }
  return typeof code === 'string' && severity !== undefined ? code : undefined
}

/** `error.type`: the SQLSTATE, or what went wrong before the server could answer. */
export function failureType(error: unknown): string | undefined {
  const { code } = error as { code?: unknown }
  return typeof code === 'string' ? code : errorType(error)
}
