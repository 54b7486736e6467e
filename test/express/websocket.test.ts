import { trace } from '@opentelemetry/api'
import { tracing } from '@throughline/express'
import type { Express, Response } from 'express'
import expressWs, { type Application } from 'express-ws'
import { EventEmitter, once } from 'node:events'
import { createServer, ServerResponse, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { ask } from '../contract/server.ts'
import { record } from '../recording.ts'
import { ok, pass, serve, traced, versions, type Create } from './app.ts'

describe.each(versions)('%s: a tunnel', (_name, create) => {
  test('is one span, which ends with its connection', async () => {
    const recording = record()
    const application = traced(create).use(({ socket }) => {
      socket.resume().end('HTTP/1.1 200 OK\r\n\r\n')
    })
    const server = createServer(application)
    server.on('connect', (request) => application(request, new ServerResponse(request)))
    const { port } = await serve(server)
    const client = connect(port, '127.0.0.1', () => client.write('CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n'))
    await once(client.resume(), 'close')
    const [span] = await recording.all(1)
    expect(span?.attributes['http.request.method']).toBe('CONNECT')
  })
})

describe.each(versions)('%s: a handshake that the server hands to the app', (_name, create) => {
  test.each<[string, (answer: () => void) => unknown]>([
    ['at once', (answer) => answer()],
    ['when the route has looked who asks', setImmediate],
  ])('is one span with the status that is answered on the socket %s', async (_when, soon) => {
    const recording = record()
    const application = traced(create).get('/rooms/:room', ({ socket }) => {
      soon(() => socket.end('HTTP/1.1 401 Unauthorized\r\n\r\n'))
    })
    const server = createServer(application)
    server.on('upgrade', (request) => application(request, new ServerResponse(request)))
    const { port } = await serve(server)
    const client = new WebSocket(`ws://127.0.0.1:${port}/rooms/1`).on('error', () => {})
    const [, response] = (await once(client, 'unexpected-response')) as [unknown, IncomingMessage]
    response.resume()
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /rooms/:room')
    expect(span?.attributes['http.response.status_code']).toBe(401)
  })

  test('does not take the answer of an earlier request of its connection for its own', async () => {
    const recording = record()
    let earlier: Response | undefined
    const application = traced(create)
      .get('/earlier', (_request, response) => void (earlier = response))
      .get('/rooms/:room', ({ socket }) => {
        earlier?.send('ok')
        socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n')
      })
    const server = createServer(application)
    server.on('upgrade', (request) => application(request, new ServerResponse(request)))
    const { port } = await serve(server)
    const handshake = 'GET /rooms/1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n'
    const client = connect(port, '127.0.0.1', () =>
      client.write(`GET /earlier HTTP/1.1\r\nHost: a\r\n\r\n${handshake}`),
    )
    await once(client.resume(), 'close')
    const spans = await recording.all(2)
    expect(
      spans.map(({ name, attributes }) => [name, attributes['http.response.status_code']]).toSorted(),
    ).toEqual([
      ['GET /earlier', 200],
      ['GET /rooms/:room', 101],
    ])
  })

  test('that was accepted before is one span that ends as soon as a route has it', async () => {
    const recording = record()
    const application = traced(create).get('/rooms/:room', () => {})
    const server = createServer(application)
    const sockets = new WebSocketServer({ noServer: true })
    server.on('upgrade', (request, stream: Socket, head) => {
      sockets.handleUpgrade(request, stream, head, () => application(request, new ServerResponse(request)))
    })
    await connected(server, '/rooms/1')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /rooms/:room')
    expect(span?.attributes['http.response.status_code']).toBe(101)
  })
})

describe.each(versions)('%s: a WebSocket of express-ws', (_name, create) => {
  test('is one span that ends at the handshake, with the path that was asked for and the route that was written', async () => {
    const recording = record()
    const { application, server } = app(create)
    application.ws('/rooms/:room', (socket) => {
      socket.on('message', (text) => socket.send(String(text)))
    })
    const socket = await connected(server, '/rooms/7?token=1')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /rooms/:room')
    expect(span?.attributes).toMatchObject({
      'url.path': '/rooms/7',
      'url.query': 'token=1',
      'http.route': '/rooms/:room',
      'http.response.status_code': 101,
    })
    expect(span?.status).toEqual({ code: 0 })
    expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
    socket.send('hello')
    expect(String((await once(socket, 'message'))[0])).toBe('hello')
    socket.close()
    await once(socket, 'close')
    await recording.all(1)
  })

  test('continues the trace that it came with, and has the current span in its handler', async () => {
    const recording = record()
    const { application, server } = app(create)
    const current: unknown[] = []
    application.ws('/', (socket) => {
      current.push(trace.getActiveSpan()?.spanContext().spanId)
      socket.close()
    })
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
    const socket = await connected(server, '/', { traceparent })
    await once(socket, 'close')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /')
    expect(span?.attributes['url.path']).toBe('/')
    expect(span?.parentSpanContext?.spanId).toBe('b'.repeat(16))
    expect(current).toEqual([span?.spanContext().spanId])
  })

  test('in a router, after middleware that takes its time, and routes that let it by', async () => {
    const recording = record()
    const { application, server, applyTo } = app(create)
    const router = create.Router() as ReturnType<Create['Router']> & Pick<Application, 'ws'>
    // Express-ws knows the routers of one copy of Express.
    applyTo(router)
    application.use((_request, _response, next) => void setImmediate(next))
    application.all(/.*/, (_request, _response, next) => void setImmediate(next))
    router.ws(
      '/rooms/:room',
      (_socket, _request, next) => void setImmediate(next),
      (socket) => socket.close(),
    )
    application.use('/orgs/:org', router)
    await once(await connected(server, '/orgs/1/rooms/2'), 'close')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /orgs/:org/rooms/:room')
    expect(span?.attributes['http.response.status_code']).toBe(101)
  })

  test('that no route takes has none, and ends with its connection', async () => {
    const recording = record()
    const { application, server } = app(create)
    application.use(pass).get('/rooms/:room', ok)
    await once(await connected(server, '/rooms/1'), 'close')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET')
    expect(span?.attributes).toMatchObject({ 'url.path': '/rooms/1', 'http.response.status_code': 101 })
    expect(span?.status).toEqual({ code: 0 })
  })

  test('whose handler throws is no less connected', async () => {
    const recording = record()
    const { application, server } = app(create)
    application.ws('/rooms/:room', () => {
      throw new RangeError('it broke')
    })
    const socket = await connected(server, '/rooms/1')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /rooms/:room')
    expect(span?.attributes['http.response.status_code']).toBe(101)
    socket.terminate()
  })

  test('leaves req.url and req.originalUrl as express-ws has made them', async () => {
    const seen = async (make: () => ReturnType<typeof app>) => {
      const { application, server } = make()
      const urls: unknown[] = []
      application.ws('/rooms/:room', (socket, { url, originalUrl, params }) => {
        urls.push(url, originalUrl, params)
        socket.close()
      })
      await once(await connected(server, '/rooms/1?x=1'), 'close')
      return urls
    }
    record()
    expect(await seen(() => app(create))).toEqual(await seen(() => bare(create)))
  })

  test('has spans of its middleware and its handler that end no later', async () => {
    const recording = record()
    const { application, server } = withWebSockets(traced(create, { middlewareSpans: true }))
    application.use(pass)
    application.ws('/rooms/:room', () => {})
    const socket = await connected(server, '/rooms/1')
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual([
      'middleware pass',
      'handler /rooms/:room',
      'GET /rooms/:room',
    ])
    socket.terminate()
  })

  test('is beside requests of HTTP to the same path', async () => {
    const recording = record()
    const { application, server } = app(create)
    application.get('/rooms/:room', ok)
    application.ws('/rooms/:room', (socket) => socket.close())
    const serving = await serve(server)
    await ask(serving, '/rooms/1')
    const socket = new WebSocket(`ws://127.0.0.1:${serving.port}/rooms/1`)
    await once(socket, 'close')
    const spans = await recording.all(2)
    expect(spans.map(({ name, attributes }) => [name, attributes['http.response.status_code']])).toEqual([
      ['GET /rooms/:room', 200],
      ['GET /rooms/:room', 101],
    ])
  })

  test('is the same for the app: listeners of the request and of its connection', async () => {
    record()
    const counts: unknown[] = []
    for (const { application, server } of [bare(create), app(create)]) {
      application.ws('/', (socket, request) => {
        counts.push(
          [request, request.socket, socket, server].map((emitter) =>
            emitter.eventNames().map((name) => [String(name), emitter.listenerCount(name)]),
          ),
        )
        socket.close()
      })
      const socket = await connected(server, '/')
      await once(socket, 'close')
    }
    expect(counts).toHaveLength(2)
    expect(counts[1]).toEqual(counts[0])
  })

  test('is no span where the server has a listener of its own, which the app never sees', async () => {
    const recording = record()
    const server = createServer(traced(create).get('/', ok))
    const sockets = new WebSocketServer({ noServer: true })
    server.on('upgrade', (request, stream: Socket, head) => {
      sockets.handleUpgrade(request, stream, head, (socket) => socket.close())
    })
    const serving = await serve(server)
    await once(new WebSocket(`ws://127.0.0.1:${serving.port}/`), 'close')
    await ask(serving, '/')
    await recording.all(1)
    expect(recording.spans[0]?.attributes['http.response.status_code']).toBe(200)
  })

  test('asked for where nobody upgrades is a request like any other', async () => {
    const recording = record()
    await ask(await serve(traced(create).get('/rooms/:room', ok)), '/rooms/1', {
      headers: { connection: 'upgrade', upgrade: 'websocket' },
    })
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /rooms/:room')
    expect(span?.attributes['http.response.status_code']).toBe(200)
  })
})

test('a handshake in what takes middleware without being Express, as Socket.IO does, is one span, and goes on', async () => {
  const recording = record()
  const middleware = tracing() as (...given: unknown[]) => unknown
  const server = createServer()
  const sockets = new WebSocketServer({ noServer: true })
  server.on('upgrade', (request, stream: Socket, head) => {
    const response = Object.assign(new EventEmitter(), { req: request, socket: stream })
    middleware(request, response, () => {
      expect(request).not.toHaveProperty('originalUrl')
      sockets.handleUpgrade(request, stream, head, (socket) => socket.close())
    })
  })
  await once(await connected(server, '/engine.io/?EIO=4'), 'close')
  const [span] = await recording.all(1)
  expect(span?.name).toBe('GET')
  expect(span?.attributes).toMatchObject({ 'url.path': '/engine.io/', 'http.response.status_code': 101 })
})

const open: WebSocket[] = []

// A server does not close while they are there.
afterEach(() => {
  for (const socket of open.splice(0)) socket.terminate()
})

function app(create: Create) {
  return withWebSockets(traced(create))
}

function bare(create: Create) {
  return withWebSockets(create())
}

function withWebSockets(express: Express) {
  const server = createServer(express)
  const { app: application, applyTo } = expressWs(express, server)
  return { application, server, applyTo }
}

async function connected(
  server: ReturnType<typeof createServer>,
  path: string,
  headers: Record<string, string> = {},
): Promise<WebSocket> {
  const { port } = await serve(server)
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`, { headers })
  open.push(socket)
  await once(socket, 'open')
  return socket
}
