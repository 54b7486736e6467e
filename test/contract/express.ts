import type { ErrorRequestHandler, Express, Request, RequestHandler, Response, Router } from 'express'
import { createServer } from 'node:http'
import { listening, type Adapter, type Exchange, type Handler, type Routes } from './server.ts'

interface Framework {
  (): Express
  Router(): Router
}

/** The adapter for this copy of Express. */
export function expressAdapter(express: Framework): Adapter {
  return {
    gaps: { routeAtStart: true },
    async serve({ routes = {}, mounted, onError }, options, mounts, later) {
      const { tracing } = await import('@throughline/express')
      const app = express()
      // Without it the default error handler writes to stderr.
      app.set('env', 'test')
      for (let i = 0; i < mounts; i += 1)
        app.use(tracing((i === 0 ? options : later) as Parameters<typeof tracing>[0]))
      add(app, routes)
      if (mounted !== undefined) {
        const router = express.Router()
        add(router, mounted.routes)
        app.use(mounted.prefix, router)
      }
      if (onError !== undefined) {
        const handler: ErrorRequestHandler = (error, request, response, _next) =>
          onError(error, exchange(request, response))
        app.use(handler)
      }
      return listening(createServer(app))
    },
  }
}

function add(router: Pick<Router, 'get' | 'post'>, routes: Routes): void {
  for (const [key, handler] of Object.entries(routes)) {
    const [method = '', path = ''] = key.split(' ')
    router[method.toLowerCase() as 'get' | 'post'](path, handled(handler))
  }
}

function handled(handler: Handler): RequestHandler {
  return function handle(request, response, next) {
    const result = handler(exchange(request, response))
    // Express 4 does not look at what a handler returns.
    if (result instanceof Promise) result.catch(next)
  }
}

function exchange(request: Request, response: Response): Exchange {
  return {
    params: request.params as Exchange['params'],
    request,
    response,
    answer: (status, body = '') => void response.status(status).type('text').send(body),
    stream: (body) => void body.pipe(response),
  }
}
