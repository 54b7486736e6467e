import { SpanStatusCode, trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import { once } from 'node:events'
import { readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import { createSecureServer } from 'node:http2'
import {
  connect,
  createServer as createNetServer,
  type AddressInfo,
  type Server as NetServer,
  type Socket,
} from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as undici from 'undici'
import * as undici6 from 'undici6'
import { describe, expect, onTestFinished, test } from 'vitest'
import { WebSocketServer } from 'ws'
import { traceparents } from '../contract/http-client.ts'
import { record } from '../recording.ts'

const CHUNKED = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'

const pem = (name: string) => readFileSync(new URL(`../core/certificates/${name}.pem`, import.meta.url))

async function listening(server: NetServer, at: number | string = 0): Promise<number> {
  await once(typeof at === 'string' ? server.listen(at) : server.listen(at, '127.0.0.1'), 'listening')
  onTestFinished(() => {
    if ('closeAllConnections' in server) (server as Server).closeAllConnections()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

function answering(): { server: Server; requests: IncomingMessage[] } {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    response.end('hello')
  })
  return { server, requests }
}

describe.each([
  ['undici 7', undici],
  ['undici 6', undici6 as unknown as typeof undici],
])('%s', (version, library) => {
  describe.each<[string, <D extends undici.Dispatcher>(dispatcher: D) => D]>([
    [
      'in a process that is traced',
      (dispatcher) => {
        onTestFinished(traceUndici())
        return dispatcher
      },
    ],
    ['through a dispatcher that is', (dispatcher) => traceUndici(dispatcher)],
    [
      'through a dispatcher that is, in a process that is',
      (dispatcher) => {
        onTestFinished(traceUndici())
        return traceUndici(dispatcher)
      },
    ],
  ])('%s', (_form, traced) => {
    function opened<D extends undici.Dispatcher>(dispatcher: D): D {
      onTestFinished(() => dispatcher.destroy())
      return traced(dispatcher)
    }

    test.each(['http', 'https'])(
      'a request to %s by way of a proxy is one span, and CONNECT is none',
      async (scheme) => {
        const recording = record()
        const requests: IncomingMessage[] = []
        const answer = (request: IncomingMessage, response: { end(text: string): unknown }) => {
          requests.push(request)
          response.end('hello')
        }
        const server =
          scheme === 'http'
            ? createServer(answer)
            : (await import('node:https')).createServer({ key: pem('app.key'), cert: pem('app') }, answer)
        const port = await listening(server)
        const tunnels: IncomingMessage[] = []
        const proxy = createServer()
        proxy.on('connect', (request: IncomingMessage, socket: Socket) => {
          tunnels.push(request)
          const through = connect(port, '127.0.0.1', () => {
            socket.write('HTTP/1.1 200 Connection Established\r\n\r\n')
            through.pipe(socket).pipe(through)
          })
          for (const end of [through, socket]) end.on('error', () => {})
        })
        const proxyPort = await listening(proxy)
        const dispatcher = opened(
          new library.ProxyAgent({
            uri: `http://127.0.0.1:${proxyPort}`,
            proxyTunnel: true,
            requestTls: { rejectUnauthorized: false },
          }),
        )
        const url = `${scheme}://127.0.0.1:${port}/a`
        const text = await span('caller', async () =>
          (await library.request(url, { dispatcher })).body.text(),
        )
        expect(text).toBe('hello')
        const spans = await recording.all(2)
        expect(spans.map(({ name }) => name)).toEqual(['GET', 'caller'])
        expect(spans[0]?.attributes).toMatchObject({
          'url.full': url,
          'server.address': '127.0.0.1',
          'server.port': port,
          'http.response.status_code': 200,
        })
        expect(traceparents(requests[0] as IncomingMessage)).toEqual([
          expect.stringContaining(spans[0]?.spanContext().spanId ?? 'none'),
        ])
        expect(tunnels.flatMap(traceparents)).toEqual([])
      },
    )

    test.each(['request', 'fetch'] as const)(
      'a tunnel that a proxy refuses fails the %s, which nobody has given up',
      async (name) => {
        const recording = record()
        const proxy = createServer()
        proxy.on('connect', (_request: IncomingMessage, socket: Socket) =>
          socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n'),
        )
        const uri = `http://127.0.0.1:${await listening(proxy)}`
        const dispatcher = opened(new library.ProxyAgent({ uri, proxyTunnel: true }))
        const call: (url: string, options: object) => Promise<unknown> = library[name]
        await expect(call('http://nobody.invalid/', { dispatcher })).rejects.toThrow(/fetch failed|407/)
        const [sent] = await recording.all(1)
        expect(sent?.attributes).toMatchObject({ 'error.type': 'UND_ERR_ABORTED' })
        expect(sent?.status).toMatchObject({
          code: SpanStatusCode.ERROR,
          message: expect.stringMatching(/^Proxy response \(407\)/),
        })
      },
    )

    test('a request over a Unix socket goes to the host of its URL', async () => {
      const recording = record()
      const path = join(tmpdir(), `throughline-${process.pid}-${Math.random().toString(36).slice(2)}.sock`)
      const { server, requests } = answering()
      await listening(server, path)
      onTestFinished(() => rmSync(path, { force: true }))
      const dispatcher = opened(new library.Client('http://service', { socketPath: path }))
      await (await dispatcher.request({ method: 'GET', path: '/a' })).body.text()
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({
        'url.full': 'http://service/a',
        'server.address': 'service',
        'network.protocol.version': '1.1',
      })
      expect(call?.attributes).not.toHaveProperty('network.peer.address')
      expect(requests.flatMap(traceparents)).toHaveLength(1)
    })

    test('a request over HTTP/2 says so', async () => {
      const recording = record()
      const requests: { rawHeaders: string[] }[] = []
      const server = createSecureServer({ key: pem('app.key'), cert: pem('app') }, (request, response) => {
        requests.push(request)
        response.end('hello')
      })
      await once(server.listen(0, '127.0.0.1'), 'listening')
      onTestFinished(() => void server.close())
      const { port } = server.address() as AddressInfo
      const dispatcher = opened(new library.Agent({ allowH2: true, connect: { rejectUnauthorized: false } }))
      const answer = await library.request(`https://127.0.0.1:${port}/a`, { dispatcher })
      expect(await answer.body.text()).toBe('hello')
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({
        'http.response.status_code': 200,
        // undici 6 does not publish what it sends over HTTP/2.
        ...(version === 'undici 6' ? {} : { 'network.protocol.version': '2', 'network.peer.port': port }),
      })
      expect(requests.flatMap(traceparents)).toHaveLength(1)
      await dispatcher.destroy()
    })

    test('a request that waits for 100 Continue is one span of its answer', async () => {
      const recording = record()
      const { server, requests } = answering()
      const port = await listening(server)
      const dispatcher = opened(new library.Client(`http://127.0.0.1:${port}`))
      const answer = await dispatcher.request({
        method: 'POST',
        path: '/',
        body: 'text',
        expectContinue: true,
      } as never)
      expect(await answer.body.text()).toBe('hello')
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'http.response.status_code': 200 })
      expect(requests.flatMap(traceparents)).toHaveLength(1)
    })

    test('requests in a pipeline of one connection each have their own span and caller', async () => {
      const recording = record()
      const { server, requests } = answering()
      const port = await listening(server)
      const dispatcher = opened(new library.Client(`http://127.0.0.1:${port}`, { pipelining: 10 }))
      await Promise.all(
        Array.from({ length: 10 }, (_, index) =>
          span(`caller ${index}`, async () =>
            (await dispatcher.request({ method: 'GET', path: `/${index}` })).body.text(),
          ),
        ),
      )
      const spans = await recording.all(20)
      for (const call of spans.filter(({ name }) => name === 'GET')) {
        const index = String(call.attributes['url.full']).at(-1)
        const caller = spans.find(({ name }) => name === `caller ${index}`)
        expect(call.parentSpanContext?.spanId).toBe(caller?.spanContext().spanId)
        const request = requests.find(({ url }) => url === `/${index}`)
        expect(request?.headers['traceparent']).toContain(call.spanContext().spanId)
      }
    })

    test.each([
      ['no HTTP at all', 'NOT HTTP\r\n\r\n'],
      ['a status that is no number', 'HTTP/1.1 2x0 OK\r\n\r\n'],
      ['a length that is no number', 'HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n'],
      ['a body that goes wrong', `${CHUNKED}5\r\nhello\r\nzz\r\n`],
    ])('an answer that cannot be read is an error: %s', async (_what, answer) => {
      const recording = record()
      const server = createNetServer((socket) => {
        socket.on('error', () => {})
        socket.once('data', () => socket.end(answer))
      })
      const dispatcher = opened(new library.Agent())
      const url = `http://127.0.0.1:${await listening(server)}/a`
      for (const call of [library.request, library.fetch] as const) {
        const { body } = await call(url, { dispatcher } as object).catch(() => ({ body: null }))
        if (body !== null) await expect(new Response(body as ReadableStream).text()).rejects.toThrow(/\S/)
      }
      for (const { status, attributes } of await recording.all(2)) {
        expect(status.code).toBe(SpanStatusCode.ERROR)
        expect(status.message).toMatch(/\S/)
        expect(attributes['error.type']).toMatch(/^(HTTPParserError|HPE_[A-Z_]+)$/)
        expect(attributes['http.response.status_code']).toBe(answer.startsWith(CHUNKED) ? 200 : undefined)
      }
    })

    test('an upgrade is a span to the handshake', async () => {
      const recording = record()
      const server = createServer()
      server.on('upgrade', (_request, socket: Socket) => {
        socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n')
      })
      const port = await listening(server)
      const dispatcher = opened(new library.Client(`http://127.0.0.1:${port}`))
      const { socket } = await dispatcher.upgrade({ path: '/', protocol: 'echo' })
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'http.response.status_code': 101 })
      expect(call?.status.code).toBe(0)
      socket.destroy()
    })

    test('a WebSocket is a span to the handshake', async () => {
      const recording = record()
      const server = createServer()
      const port = await listening(server)
      const sockets = new WebSocketServer({ server })
      const asked: IncomingMessage[] = []
      sockets.on('connection', (socket, request) => {
        asked.push(request)
        socket.send('hello')
      })
      const dispatcher = opened(new library.Agent())
      const socket = new library.WebSocket(`ws://127.0.0.1:${port}/live`, { dispatcher } as never)
      const message = await new Promise<unknown>((resolve, reject) => {
        socket.addEventListener('message', ({ data }) => resolve(data))
        socket.addEventListener('error', reject)
      })
      expect(message).toBe('hello')
      const [call] = await recording.all(1)
      expect(call?.name).toBe('GET')
      expect(call?.attributes).toMatchObject({ 'http.response.status_code': 101 })
      expect(asked.flatMap(traceparents)).toHaveLength(1)
      const closed = new Promise((resolve) => socket.addEventListener('close', resolve))
      socket.close()
      await closed
    })

    test('the messages of a WebSocket come in the span that has opened it, not in that of its handshake', async () => {
      const recording = record()
      const server = createServer()
      const port = await listening(server)
      const sockets = new WebSocketServer({ server })
      sockets.on('connection', (socket) => socket.on('message', (data) => socket.send(String(data))))
      const dispatcher = opened(new library.Agent())
      const url = `ws://127.0.0.1:${port}/live`
      const seen: (string | undefined)[] = []
      async function talk(): Promise<void> {
        const socket = new library.WebSocket(url, { dispatcher } as never)
        await new Promise<void>((resolve, reject) => {
          socket.addEventListener('open', () => socket.send('first'))
          socket.addEventListener('error', reject)
          socket.addEventListener('message', ({ data }) => {
            seen.push(trace.getActiveSpan()?.spanContext().spanId)
            if (data === 'first') socket.send('second')
            else resolve()
          })
        })
        socket.close()
      }
      await talk()
      expect(seen).toEqual([undefined, undefined])
      const opener = await span('opener', async (within) => {
        await talk()
        return within.spanContext().spanId
      })
      expect(seen.slice(2)).toEqual([opener, opener])
      expect(await recording.all(3)).toHaveLength(3)
    })

    test.each([
      ['headersTimeout', 'UND_ERR_HEADERS_TIMEOUT', false],
      ['bodyTimeout', 'UND_ERR_BODY_TIMEOUT', true],
    ])('what %s ends is an error of that code', async (option, code, begins) => {
      const recording = record()
      const server = createServer((_request, response) => {
        if (begins) response.write('the first of two')
      })
      const port = await listening(server)
      const dispatcher = opened(new library.Client(`http://127.0.0.1:${port}`, { [option]: 50 }))
      const asked = dispatcher.request({ method: 'GET', path: '/' }).then(({ body }) => body.text())
      await expect(asked).rejects.toMatchObject({ code })
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'error.type': code })
      expect(call?.status.code).toBe(2)
    })
  })
})
