import { receiver, type ReceivingOptions } from '@throughline/core'
import type { NextFunction, Request, RequestHandler, Response } from 'express'
import { startWay, wayOf, type Way } from './layers.ts'

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
  const receive = receiver<Request, [Request, Response], Way>(
    {
      scope,
      subject: ({ request }) => request,
      given: ({ request }, response) => [request, response as Response],
      route: ({ route }) => route,
      following: (way) => startWay(way, tracing),
    },
    options,
  )
  return tracing

  function tracing(request: Request, response: Response, next: NextFunction): void {
    receive(request, response, wayOf(request), next)
  }
}
