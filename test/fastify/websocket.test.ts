import websocket from '@fastify/websocket'
import { trace } from '@opentelemetry/api'
import { span as manualSpan } from '@throughline/core'
import type { tracing } from '@throughline/fastify'
import fastify, { type FastifyInstance } from 'fastify'
import { once } from 'node:events'
import { ServerResponse, type IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { describe, expect, test } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { record } from '../recording.ts'
import { ask, ok, origin, traced, versions } from './app.ts'

type Options = Parameters<typeof tracing>[1]

/** An app whose route /rooms/:id answers each message with what `note` says of it. */
function rooms(options: Options = {}, note: () => string = () => ''): FastifyInstance {
  const app = traced(fastify, options)
  app.register(websocket)
  app.register(async (scope) => {
    scope.get('/rooms/:id', { websocket: true }, (socket) => {
      socket.on('message', () => socket.send(note()))
    })
    scope.get('/plain', ok)
  })
  return app
}

async function connected(app: FastifyInstance, path: string): Promise<WebSocket> {
  const socket = new WebSocket((await origin(app)).replace('http', 'ws') + path)
  await once(socket, 'open')
  return socket
}

async function closed(socket: WebSocket): Promise<void> {
  const closing = once(socket, 'close')
  socket.close()
  await closing
}

describe('a WebSocket by @fastify/websocket', () => {
  test('is one span of the handshake, which has ended while the socket is open', async () => {
    const app = rooms()
    const recording = record()
    const socket = await connected(app, '/rooms/7')
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /rooms/:id', kind: 1, status: { code: 0 }, events: [] })
    expect(span?.attributes).toMatchObject({ 'http.route': '/rooms/:id', 'http.response.status_code': 101 })
    expect(span?.attributes).not.toHaveProperty('error.type')
    await closed(socket)
    await ask(app, '/plain')
    expect((await recording.all(2))[1]?.name).toBe('GET /plain')
  })

  test('runs what listens to its messages in the trace of the handshake', async () => {
    const recording = record()
    const seen: (string | undefined)[] = []
    const app = rooms({}, () => {
      seen.push(trace.getActiveSpan()?.spanContext().spanId)
      manualSpan('message', () => {})
      return 'noted'
    })
    const [first, second] = [await connected(app, '/rooms/1'), await connected(app, '/rooms/2')]
    const [one, two] = await recording.all(2)
    for (const socket of [second, first]) {
      socket.send('hello')
      await once(socket, 'message')
    }
    expect(seen).toEqual([two?.spanContext().spanId, one?.spanContext().spanId])
    const messages = recording.spans.slice(2)
    expect(messages.map(({ parentSpanContext }) => parentSpanContext?.spanId)).toEqual(seen)
    await Promise.all([closed(first), closed(second)])
    await recording.all(4)
  })

  test('that a hook refuses has the status of the refusal', async () => {
    const app = traced(fastify)
    app.register(websocket)
    app.register(async (scope) => {
      scope.addHook('preValidation', async (_request, reply) => reply.code(401).send('who are you?'))
      scope.get('/rooms/:id', { websocket: true }, () => {})
    })
    const recording = record()
    const socket = new WebSocket((await origin(app)).replace('http', 'ws') + '/rooms/7')
    const [, response] = await once(
      socket.on('error', () => {}),
      'unexpected-response',
    )
    response.resume()
    const [span] = await recording.all(1)
    expect(response.statusCode).toBe(401)
    expect(span).toMatchObject({ name: 'GET /rooms/:id', status: { code: 0 } })
    expect(span?.attributes['http.response.status_code']).toBe(401)
  })

  test('at a path that nobody serves is a 404 without a route', async () => {
    const app = rooms()
    const recording = record()
    const socket = new WebSocket((await origin(app)).replace('http', 'ws') + '/nothing')
    const [, response] = await once(
      socket.on('error', () => {}),
      'unexpected-response',
    )
    response.resume()
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET', status: { code: 0 } })
    expect(span?.attributes['http.response.status_code']).toBe(404)
  })

  test('has a span when it is asked for by injectWS', async () => {
    const app = rooms({}, () => 'noted')
    await app.ready()
    const recording = record()
    const socket = await app.injectWS('/rooms/7')
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /rooms/:id', status: { code: 0 } })
    expect(span?.attributes['http.response.status_code']).toBe(101)
    socket.terminate()
    await app.close()
  })

  test('has the span of its handler when hooks and handlers have theirs, and it ends there too', async () => {
    const app = rooms({ middlewareSpans: true })
    const recording = record()
    const socket = await connected(app, '/rooms/7')
    const server = await recording.span(({ kind }) => kind === 1)
    expect(recording.spans.map(({ name }) => name)).toContain('handler /rooms/:id')
    expect(recording.spans.at(-1)).toBe(server)
    await closed(socket)
  })

  test('of a route that opts out has none, and neither have its messages', async () => {
    const app = traced(fastify)
    app.register(websocket)
    app.register(async (scope) => {
      scope.get('/rooms/:id', { websocket: true, config: { tracing: false } }, (socket) => {
        socket.on('message', () => socket.send('noted'))
      })
    })
    const recording = record()
    const socket = await connected(app, '/rooms/7')
    socket.send('hello')
    await once(socket, 'message')
    await closed(socket)
    expect(recording.spans).toEqual([])
  })

  test('is the same for the app: listeners of the server and of the socket', async () => {
    record()
    const counts: unknown[] = []
    for (const create of [() => fastify() as unknown as FastifyInstance, () => traced(fastify)]) {
      const app = create()
      app.register(websocket)
      app.register(async (scope) => {
        scope.get('/', { websocket: true }, (socket) => {
          const listeners = [app.websocketServer, socket, app.server].map((emitter) =>
            emitter.eventNames().map((name) => [String(name), emitter.listenerCount(name)]),
          )
          counts.push(
            listeners,
            Object.keys(app.websocketServer),
            Object.keys(socket).filter((key) => key !== 'emit'),
          )
        })
      })
      await closed(await connected(app, '/'))
    }
    expect(counts.slice(3)).toEqual(counts.slice(0, 3))
  })
})

describe.each(versions)('%s: a WebSocket that a route takes, as by @fastify/http-proxy', (_name, create) => {
  /** An app that has each handshake routed, and whose route takes it by a server of `ws` of its own. */
  function proxy(options: Options = {}, isWelcome = true): FastifyInstance {
    const app = traced(create, options)
    const server = new WebSocketServer({ noServer: true, verifyClient: () => isWelcome })
    app.server.on('upgrade', (request: IncomingMessage, socket: Socket) => {
      const response = new ServerResponse(request)
      response.assignSocket(socket)
      app.routing(request, response)
      response.on('finish', () => socket.destroy())
    })
    app.get('/rooms/:id', ({ raw }, reply) => {
      reply.hijack()
      server.handleUpgrade(raw, raw.socket, Buffer.alloc(0), (socket) => {
        socket.on('message', () => socket.send(Object.hasOwn(raw.socket, 'write') ? 'watched' : 'as before'))
      })
    })
    app.get('/closed', async (_request, reply) => reply.code(403).send('closed'))
    return app
  }

  test.each([false, true])(
    'is one span of the handshake, which has ended while the socket is open (middlewareSpans: %s)',
    async (middlewareSpans) => {
      const app = proxy({ middlewareSpans })
      const recording = record()
      const socket = await connected(app, '/rooms/7')
      const span = await recording.span(({ kind }) => kind === 1)
      expect(span).toMatchObject({ name: 'GET /rooms/:id', status: { code: 0 }, events: [] })
      expect(span.attributes).toMatchObject({ 'http.route': '/rooms/:id', 'http.response.status_code': 101 })
      expect(span.attributes).not.toHaveProperty('error.type')
      socket.send('hello')
      expect(String((await once(socket, 'message'))[0])).toBe('as before')
      await closed(socket)
    },
  )

  test.each([
    ['ws', '/rooms/7', 401],
    ['the route', '/closed', 403],
  ])('that %s refuses has the status of the refusal', async (_by, path, status) => {
    const app = proxy({}, false)
    const recording = record()
    const socket = new WebSocket((await origin(app)).replace('http', 'ws') + path)
    const [, response] = await once(
      socket.on('error', () => {}),
      'unexpected-response',
    )
    response.resume()
    const [span] = await recording.all(1)
    expect(response.statusCode).toBe(status)
    expect(span).toMatchObject({ status: { code: 0 } })
    expect(span?.attributes['http.response.status_code']).toBe(status)
    expect(span?.attributes).not.toHaveProperty('error.type')
  })
})

test.each(versions)(
  '%s: an upgrade that the app handles by itself is none of Fastify’s, and has no span',
  async (_name, create) => {
    const app = traced(create)
    const server = new WebSocketServer({ noServer: true })
    app.server.on('upgrade', (request, socket, head) =>
      server.handleUpgrade(request, socket, head, (accepted) => accepted.close()),
    )
    app.get('/', ok)
    const recording = record()
    const socket = new WebSocket((await origin(app)).replace('http', 'ws'))
    await once(socket, 'close')
    await ask(app, '/')
    expect((await recording.all(1))[0]?.attributes['http.response.status_code']).toBe(200)
  },
)
