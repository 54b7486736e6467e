import { isError, redactUrl, showNoUrl } from '@throughline/core'
import type { HttpAttempt } from '@throughline/core/http-client'
import type { PublishedRequest } from './published.ts'

/** How undici begins to say that a proxy refuses a tunnel, in an error with the name and the code of an abort. */
const NO_TUNNEL = 'Proxy response ('

/** The end of an attempt that has no answer, or not all of it; `isOwn`: it was the caller who wanted no more. */
export function endWith(attempt: HttpAttempt, error: unknown, isOwn: boolean): void {
  const { message, code }: { message?: unknown; code?: unknown } = isError(error) ? error : {}
  if (typeof message === 'string' && message.startsWith(NO_TUNNEL)) {
    attempt.failed(Object.assign(new Error(message), { code }))
    return
  }
  // The reason of `AbortSignal.timeout()` is an error, unlike an abort by the caller.
  const isTimeout = isError(error) && error.name === 'TimeoutError'
  if (isOwn && !isTimeout) attempt.aborted()
  else attempt.failed(error)
}

/**
 * Whether an error that undici publishes is what the caller has aborted with. What undici and the system report has a code,
 * but for an answer that its parser cannot read, and what the body's stream has failed with is known by that.
 */
export function isOwn({ body }: PublishedRequest, error: unknown): boolean {
  if (!isError(error) || error.name === 'AbortError') return true
  if (error.name === 'HTTPParserError') return false
  return typeof (error as { code?: unknown }).code !== 'string' && body?.errored !== error
}

const NO_CREDENTIALS = 'Request cannot be constructed from a URL that includes credentials: '
const NO_URL = 'Failed to parse URL from '
const NO_HEADER = '" is an invalid header value.'

/**
 * What `fetch` says where it refuses to send, which no span of ours sees, without what it quotes: of a URL that cannot be
 * read it is not known where its credentials end, and a header may be one.
 */
export function maskedRefusal({ message }: { readonly message?: unknown }): string | undefined {
  if (typeof message !== 'string') return undefined
  if (message.startsWith(NO_CREDENTIALS)) {
    // As it was given, with blanks in the password and any number of slashes before it: read as `fetch` has read it.
    const url = message.slice(NO_CREDENTIALS.length)
    return NO_CREDENTIALS + (URL.canParse(url) ? redactUrl(new URL(url).href) : showNoUrl(url))
  }
  if (message.startsWith(NO_URL)) {
    const url = message.slice(NO_URL.length)
    return /[@?]/.test(url) ? NO_URL + showNoUrl(url) : undefined
  }
  if (message.endsWith(NO_HEADER)) return `${message.slice(0, message.indexOf('"'))}"?${NO_HEADER}`
  return undefined
}
