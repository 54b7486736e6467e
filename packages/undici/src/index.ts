import { maskErrors } from '@throughline/core'
import { httpClient, type HttpClientOptions as TracingOptions } from '@throughline/core/http-client'
import type { Dispatcher } from 'undici'
import { onAttempts } from './attempts.ts'
import { traceDispatcher } from './dispatcher.ts'
import { maskedRefusal } from './failure.ts'
import { noticeData, type PublishedRequest } from './published.ts'

export type { HttpRequest, HttpResponse, UrlMatch } from '@throughline/core/http-client'
export type { TracingOptions }

/** Agent, Pool, Client and all others of undici's. Not by its own type: who uses `fetch` alone need not have it installed. */
export interface Dispatching {
  dispatch(options: never, handler: never): boolean
}

const SCOPE = { name: '@throughline/undici', version: '0.1.0' }

/**
 * Traces the HTTP requests of this process that undici makes, global `fetch` included: a CLIENT span for each attempt on
 * the wire, and its trace context in the headers. Calling it again while it is on changes nothing: the options of the
 * first call hold.
 *
 * @returns a function that ends it; while it is on, the same one to every caller, so that whoever calls it ends it for
 *   all. Called again it does nothing, also where tracing has been switched on anew.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function traceUndici(options?: TracingOptions): () => void
/**
 * Traces what is sent through this dispatcher (Agent, Pool, Client, …) and gives the same object back. The parent is the
 * span that is current when the request is made, also on a pool that is busy. Twice is once: the options of the first
 * call hold, until `untrace()` ends it.
 *
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function traceUndici<D extends Dispatching>(dispatcher: D, options?: TracingOptions): D
export function traceUndici<D extends Dispatching>(
  target: D | TracingOptions = {},
  options: TracingOptions = {},
): D | (() => void) {
  maskErrors(maskedRefusal)
  if (isDispatcher(target))
    return traceDispatcher(
      target as D & Dispatcher,
      options,
      httpClient(SCOPE, 'traceUndici(dispatcher)', options),
    )
  return onAttempts(
    target,
    httpClient(SCOPE, 'traceUndici()', target, (request, came) =>
      noticeData(request as PublishedRequest, came),
    ),
  )
}

function isDispatcher(target: object): target is Dispatching {
  return (
    typeof target === 'object' &&
    target !== null &&
    'dispatch' in target &&
    typeof target.dispatch === 'function'
  )
}
