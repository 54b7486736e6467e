import { emitByPrototype, receiver, type ReceivingOptions } from '@throughline/core'
import type { Express, NextFunction, Request, RequestHandler, Response } from 'express'
import { startWay, wayOf, type App, type Way } from './layers.ts'

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
      isBound(way, isRecorded) {
        const app = way.request.app as Express
        if (isRecorded) startWay(way, app as unknown as App, tracing)
        return isBound(app)
      },
    },
    options,
  )
  return tracing

  function tracing(request: Request, response: Response, next: NextFunction): void {
    receive(request, response, wayOf(request), next)
  }
}

const bound = new WeakMap<Express, boolean>()

/** Whether the requests of this app inherit an `emit` of ours, which they do from its first request on. */
function isBound(app: Express): boolean {
  let isOn = bound.get(app)
  if (isOn === undefined) {
    isOn = emitByPrototype(app.request, app.response)
    bound.set(app, isOn)
  }
  return isOn
}
