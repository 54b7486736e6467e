import { receiver, type ReceivingOptions } from '@throughline/core'
import type { Request, RequestHandler, Response } from 'express'
import { routeOf, watchRouter } from './layers.ts'

/** `ignore` and `inbound` get the request; `attributes` and `spanName` get request and response when it has closed. */
export type TracingOptions = ReceivingOptions<Request, [request: Request, response: Response]>

const scope = { name: '@throughline/express', version: '0.1.0' }

/**
 * Middleware that makes a SERVER span of each request and continues the trace that it brings along. Mount it first: what
 * is mounted before it is not timed.
 *
 * @example
 * app.use(tracing())
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function tracing(options: TracingOptions = {}): RequestHandler {
  const receive = receiver<Request, [Request, Response]>(
    {
      scope,
      given: (request, response) => [request, response as Response],
      route: routeOf,
    },
    options,
  )
  return function tracing(request, response, next) {
    watchRouter(request, tracing)
    receive(request, response, request, next)
  }
}
