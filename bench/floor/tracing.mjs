import { AsyncLocalStorage } from 'node:async_hooks'
import { Batch, poster } from './batch.mjs'
import { encoder } from './encode.mjs'
import { newTraceId } from './ids.mjs'
import { CLIENT, SERVER, Span } from './span.mjs'
import { formatTraceparent, parseTraceparent } from './trace-context.mjs'

/** @type {AsyncLocalStorage<Span>} */
const storage = new AsyncLocalStorage()

/**
 * The least that traces an app: for each request the traceparent read and checked, random ids, one
 * `AsyncLocalStorage.run`, two clock reads, 12 attributes; for each call of a client a span and, over HTTP, a traceparent;
 * batches of OTLP protobuf, posted.
 *
 * @param {string} endpoint
 */
export function floor(endpoint) {
  const { post, settled } = poster(endpoint)
  const encode = encoder({ 'service.name': 'bench', 'process.pid': process.pid }, 'floor')
  const batch = new Batch((spans) => post(encode(spans)))

  /** Runs `next` in the span of a request; `routeOf` is asked when the response has closed. */
  function receive(request, response, subject, routeOf, next) {
    const { headers, socket, method } = request
    const parent = parseTraceparent(headers.traceparent)
    const { host } = headers
    const colon = host.indexOf(':')
    const peer = socket.remoteAddress
    const span = new Span(
      method,
      SERVER,
      parent === undefined ? newTraceId() : parent.traceId,
      parent === undefined ? '' : parent.spanId,
      parent === undefined ? 1 : parent.flags,
      {
        'http.request.method': method,
        'url.path': pathOf(request.url),
        'url.scheme': socket.encrypted === true ? 'https' : 'http',
        'network.protocol.version': request.httpVersion,
        'server.address': colon === -1 ? host : host.slice(0, colon),
        'server.port': colon === -1 ? undefined : Number(host.slice(colon + 1)),
        'client.address': peer,
        'network.peer.address': peer,
        'network.peer.port': socket.remotePort,
        'user_agent.original': headers['user-agent'],
        'http.route': undefined,
        'http.response.status_code': undefined,
      },
    )
    response.on('close', () => {
      const route = routeOf(subject)
      span.attributes['http.route'] = route
      span.attributes['http.response.status_code'] = response.statusCode
      if (route !== undefined) span.name = `${method} ${route}`
      span.isError = response.statusCode >= 500
      batch.add(span.finish())
    })
    return storage.run(span, next)
  }

  /** Starts the span of a call under that of the request. */
  function begin(name, attributes) {
    const parent = storage.getStore()
    if (parent === undefined) return new Span(name, CLIENT, newTraceId(), '', 1, attributes)
    return new Span(name, CLIENT, parent.traceId, parent.spanId, parent.flags, attributes)
  }

  /** @template T @param {Span} span @param {Promise<T>} promise */
  function ending(span, promise) {
    return promise.then(
      (result) => {
        batch.add(span.finish())
        return result
      },
      (error) => {
        span.isError = true
        batch.add(span.finish())
        throw error
      },
    )
  }

  const summaries = new Map()

  return {
    express: () => (request, response, next) => receive(request, response, request, expressRoute, next),
    koa: () => (ctx, next) => receive(ctx.req, ctx.res, ctx, koaRoute, next),
    fastify: () => (request, reply, done) => receive(request.raw, reply.raw, request, fastifyRoute, done),

    /** Calls `query(text, values)` in a span. */
    pg:
      ({ host, port, database }, query) =>
      (text, values) => {
        let summary = summaries.get(text)
        if (summary === undefined) summaries.set(text, (summary = summarise(text)))
        const span = begin(summary, {
          'db.system.name': 'postgresql',
          'db.namespace': database,
          'server.address': host,
          'server.port': port,
          'db.query.text': text,
          'db.query.summary': summary,
        })
        return ending(span, query(text, values))
      },

    /** Calls `get(key)` in a span. */
    redis: ({ host, port, db }, get) => {
      const namespace = String(db)
      return (key) => {
        const span = begin('GET', {
          'db.system.name': 'redis',
          'db.namespace': namespace,
          'db.operation.name': 'GET',
          'server.address': host,
          'server.port': port,
          'db.query.text': 'get ?',
        })
        return ending(span, get(key))
      }
    },

    /** Calls `fetch(url, { headers })` in a span that the headers carry on. */
    http: (fetch) => (url) => {
      const { hostname, port } = new URL(url)
      const span = begin('GET', {
        'http.request.method': 'GET',
        'url.full': url,
        'server.address': hostname,
        'server.port': Number(port),
        'http.response.status_code': undefined,
      })
      const promise = fetch(url, { headers: { traceparent: formatTraceparent(span) } })
      return ending(
        span,
        promise.then((response) => {
          span.attributes['http.response.status_code'] = response.status
          return response
        }),
      )
    },

    async flush() {
      batch.flush()
      await settled()
    },
  }
}

function pathOf(url) {
  const query = url.indexOf('?')
  return query === -1 ? url : url.slice(0, query)
}

const expressRoute = (request) =>
  request.route === undefined ? undefined : request.baseUrl + request.route.path
const koaRoute = (ctx) => ctx._matchedRoute
const fastifyRoute = (request) => request.routeOptions.url

/** `SELECT … FROM products …` → `SELECT products`. */
function summarise(text) {
  const [, verb = '', table = ''] = /^(\w+)[^]*?\bfrom\s+(\w+)/i.exec(text) ?? []
  return `${verb} ${table}`
}
