import { messageOf } from '@throughline/core'

/** What English messages of the server quote that is a name and no value. */
const NAMED = 'relation|column|constraint|table|type|function|schema|database|role|user'

/** The rest goes from its first quotation mark to the last: a value may hold quotation marks, and these words, itself. */
const QUOTED = new RegExp(`(\\b(?:${NAMED}) "[^"]*")|["«»„“”][^]*["«»„“”]`, 'g')

/** An error's message without the values that it quotes. */
export function maskedMessage(error: unknown): string {
  // Where all addresses of a name refuse, the message of the whole is empty.
  if (error instanceof AggregateError && error.message === '')
    return error.errors.map(maskedMessage).join('; ')
  return messageOf(error).replace(QUOTED, (_, name: string | undefined) => name ?? '"?"')
}
