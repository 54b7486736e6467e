import { context, trace } from '@opentelemetry/api'
import { Router } from '@koa/router'
import { span as manual } from '@throughline/core'
import { tracing } from '@throughline/koa'
import type Koa from 'koa'
import { once } from 'node:events'
import { request, type IncomingMessage, type Server } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { record } from '../recording.ts'
import { applications, listen, load, ok, pass, traced } from './apps.ts'

interface WebSocketApp extends Koa {
  ws: { use(middleware: unknown): unknown }
  server: Server
}

const websockify = load<(app: Koa) => WebSocketApp>('koa-websocket')

const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'

/** Asks for a WebSocket; resolves with the status when the server has upgraded. */
async function upgrade(server: Server, path: string, headers: Record<string, string> = {}): Promise<number> {
  const sent = request({
    host: 'localhost',
    port: (server.address() as AddressInfo).port,
    path,
    headers: {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
      'sec-websocket-version': '13',
      ...headers,
    },
  }).end()
  const [response, socket] = (await once(sent, 'upgrade')) as [IncomingMessage, Socket]
  onTestFinished(() => void socket.destroy())
  return response.statusCode ?? 0
}

describe.each(applications)('%s with koa-websocket', (_name, Application) => {
  function app(): WebSocketApp {
    const application = websockify(traced(Application))
    application.ws.use(tracing())
    return application
  }

  test('the request that opens a connection has one span, which ends with its handshake', async () => {
    const recording = record()
    const application = app()
    const router = new Router({ prefix: '/rooms' }).all('/:room', () => new Promise(() => {}))
    application.ws.use(pass)
    application.ws.use(router.routes())
    application.use(ok)
    const server = await listen(application)
    expect(await upgrade(server, '/rooms/7?x=1', { traceparent: TRACEPARENT })).toBe(101)
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /rooms/:room', kind: 1, status: { code: 0 }, events: [] })
    expect(span?.attributes).toMatchObject({
      'http.response.status_code': 101,
      'http.route': '/rooms/:room',
      'url.path': '/rooms/7',
      'url.query': 'x=1',
    })
    expect(span?.attributes).not.toHaveProperty('error.type')
    expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
    expect(span?.parentSpanContext?.spanId).toBe('b7ad6b7169203331')
  })

  test('has no route without a router, nor where the router is reached later', async () => {
    const recording = record()
    const application = app()
    application.ws.use(async (_ctx: Koa.Context, next: Koa.Next) => {
      await new Promise(setImmediate)
      await next()
    })
    application.ws.use(new Router().all('/a', ok).routes())
    const server = await listen(application)
    await upgrade(server, '/a')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET')
    expect(span?.attributes).not.toHaveProperty('http.route')
  })

  test('what is done for the connection is a child of its span', async () => {
    const recording = record()
    const application = app()
    application.ws.use(async () => {
      await new Promise(setImmediate)
      await manual('greet', () => {})
    })
    await upgrade(await listen(application), '/')
    const [server, greet] = await recording.all(2)
    expect(server?.attributes['http.response.status_code']).toBe(101)
    expect(greet?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
  })

  test('middleware that fails after the handshake fails no request', async () => {
    const recording = record()
    const application = app()
    application.ws.use(() => {
      throw new Error('it')
    })
    await upgrade(await listen(application), '/')
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ status: { code: 0 }, events: [] })
  })

  test('what that middleware emits as an error is heard by the app', async () => {
    record()
    const application = app()
    const heard = once(application, 'error')
    application.ws.use((ctx: Koa.Context) => {
      ctx.app.emit('error', new Error('it'), ctx)
    })
    await upgrade(await listen(application), '/')
    expect(await heard).toMatchObject([{ message: 'it' }, { path: '/' }])
  })

  test('the options of the line for connections hold, and tracing twice makes one span', async () => {
    const recording = record()
    const application = websockify(traced(Application, { middlewareSpans: true }))
    const line = tracing({
      ignore: '/quiet',
      attributes: (ctx) => ({ 'app.path': ctx.path }),
      spanName: (ctx) => `socket ${ctx.method}`,
    })
    application.ws.use(line)
    application.ws.use(line)
    application.ws.use(ok)
    const server = await listen(application)
    await upgrade(server, '/quiet')
    await upgrade(server, '/loud')
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'socket GET', attributes: { 'app.path': '/loud' } })
  })

  test('one tracing for requests and for connections is right for both', async () => {
    const recording = record()
    const line = tracing({ middlewareSpans: true })
    const application = websockify(new Application().use(line))
    application.use(function answer(ctx) {
      ctx.body = 'ok'
    })
    application.ws.use(line)
    let isServed = false
    application.ws.use(() => {
      isServed = true
    })
    const server = await listen(application)
    await upgrade(server, '/')
    expect(isServed).toBe(true)
    await fetch(`http://localhost:${(server.address() as AddressInfo).port}/`, {
      headers: { connection: 'close' },
    })
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual(['GET', 'middleware answer', 'GET'])
  })

  test('a server that something else upgrades has no span for it', async () => {
    const recording = record()
    const application = traced(Application).use(ok)
    const server = await listen(application)
    const current: unknown[] = []
    server.on('upgrade', (_request, socket: Socket) => {
      current.push(trace.getSpan(context.active()))
      socket.end('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n')
    })
    expect(await upgrade(server, '/')).toBe(101)
    await fetch(`http://localhost:${(server.address() as AddressInfo).port}/`, {
      headers: { connection: 'close' },
    })
    const [span] = await recording.all(1)
    expect(span?.attributes['http.response.status_code']).toBe(200)
    expect(current).toEqual([undefined])
  })
})
