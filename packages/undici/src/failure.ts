import { isError } from '@throughline/core'
import type { HttpAttempt } from '@throughline/core/http-client'
import type { PublishedRequest } from './published.ts'

/** The end of an attempt that has no answer, or not all of it; `isOwn`: it was the caller who wanted no more. */
export function endWith(attempt: HttpAttempt, error: unknown, isOwn: boolean): void {
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
