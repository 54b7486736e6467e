import { middlewareSpans, receiver, type ReceivingOptions } from '@throughline/core'
import type { NextFunction, Request, RequestHandler, Response } from 'express'
import { endWay, isUpgraded, ours, startWay, wayOf, withoutSuffix, type Way } from './layers.ts'

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
      hasMiddleware: true,
      subject: ({ request }) => request,
      given: ({ request }, response) => [request, response as Response],
      route: endWay,
      following: (way) => startWay(way, tracing),
    },
    options,
  )
  const begin = middlewareSpans(scope, options.middlewareSpans)
  ours.add(tracing)
  return tracing

  function tracing(request: Request, response: Response, next: NextFunction): void {
    const way = wayOf(request, begin)
    if (isUpgraded(request)) upgraded(request, response, way, next)
    else receive(request, response, way, next)
  }

  /** The span has the URL that the client asked for, the app the one that it is routed by. */
  function upgraded(request: Request, response: Response, way: Way, next: NextFunction): void {
    const { originalUrl } = request
    request.originalUrl = withoutSuffix(originalUrl)
    receive(request, response, way, () => {
      request.originalUrl = originalUrl
      next()
    })
  }
}
