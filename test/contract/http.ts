import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { listening, type Adapter, type App, type Exchange, type Routes } from './server.ts'

/** Plain `node:http` through `traceRequest`. */
export const httpAdapter: Adapter = {
  gaps: { router: true, middleware: true, earlyChecks: true, routeAtStart: true },

  async serve({ routes = {}, mounted, onError }, options, mounts, later) {
    const { traceRequest } = await import('@throughline/core')
    const all: Routes = { ...routes, ...prefixed(mounted) }

    function handle(request: IncomingMessage, response: ServerResponse): unknown {
      const exchange = exchangeOf(request, response)
      const [handler] = Object.entries(all).flatMap(([key, found]) => {
        const params = match(key, request)
        return params === undefined ? [] : [() => found({ ...exchange, params })]
      })
      return handler === undefined ? exchange.answer(404, 'not found') : handler()
    }

    function traced(request: IncomingMessage, response: ServerResponse, depth: number): unknown {
      if (depth === 0) return handle(request, response)
      const given = depth === mounts ? options : later
      return traceRequest(request, response, () => traced(request, response, depth - 1), given)
    }

    const server = createServer(async (request, response) => {
      const exchange = exchangeOf(request, response)
      try {
        await traced(request, response, mounts)
      } catch (error) {
        if (response.headersSent) response.destroy()
        else recover(error, exchange, onError)
      }
    })
    return listening(server)
  },
}

function recover(error: unknown, exchange: Exchange, onError: App['onError']): void {
  const fail = ({ statusCode = 500, message }: Error & { statusCode?: number }) =>
    exchange.answer(statusCode, message)
  if (onError === undefined) {
    fail(error as Error)
    return
  }
  try {
    onError(error, exchange)
  } catch (another) {
    fail(another as Error)
  }
}

function prefixed(mounted: { prefix: string; routes: Routes } | undefined): Routes {
  return Object.fromEntries(
    Object.entries(mounted?.routes ?? {}).map(([key, handler]) => [
      key.replace(' ', ` ${mounted?.prefix}`),
      handler,
    ]),
  )
}

/** The parameters in the path where it is the pattern's. */
function match(key: string, { method, url = '' }: IncomingMessage): Record<string, string> | undefined {
  const [wanted, pattern = ''] = key.split(' ')
  const segments = url.replace(/\?.*/, '').split('/')
  const names = pattern.split('/')
  if (method !== wanted || segments.length !== names.length) return undefined
  const isMatch = names.every((name, i) => name.startsWith(':') || name === segments[i])
  if (!isMatch) return undefined
  return Object.fromEntries(
    names.flatMap((name, i) => (name.startsWith(':') ? [[name.slice(1), segments[i] ?? '']] : [])),
  )
}

function exchangeOf(request: IncomingMessage, response: ServerResponse): Exchange {
  return {
    params: {},
    request,
    response,
    answer: (status, body = '') => {
      response.writeHead(status, { 'content-type': 'text/plain' }).end(body)
    },
    stream: (body) => void body.pipe(response),
  }
}
