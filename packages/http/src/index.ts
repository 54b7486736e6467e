import { httpClient, type HttpClientOptions as TracingOptions } from '@throughline/core/http-client'
import { onRequests } from './hook.ts'
import { traceRequest } from './request.ts'

export type { HttpRequest, HttpResponse, UrlMatch } from '@throughline/core/http-client'
export type { TracingOptions }

const SCOPE = { name: '@throughline/http', version: '0.1.0' }

/**
 * Traces the requests that this process makes with `node:http` and `node:https`, also those of the libraries that are made
 * of these: a CLIENT span for each, and its trace context in the headers. Calling it again while it is on changes
 * nothing: the options of the first call hold.
 *
 * @returns a function that ends it, and gives `node:http` and `node:https` back as they were; while it is on, the same
 *   one to every caller, so that whoever calls it ends it for all. Called again it does nothing, also where tracing has
 *   been switched on anew.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function traceHttp(options: TracingOptions = {}): () => void {
  const tracer = httpClient(SCOPE, 'traceHttp()', options)
  return onRequests(options, (request) => traceRequest(request, tracer))
}
