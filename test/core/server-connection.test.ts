import { traceRequest } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { Agent, createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ask, listening, raw, type Serving } from '../contract/server.ts'
import { signal } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { serve, spanOf, type Listener } from './served.ts'

test.each<[string, (response: ServerResponse) => void]>([
  ['hints', (response) => response.writeEarlyHints({ link: '</a.css>; rel=preload; as=style' })],
  ['the word that it is at work', (response) => response.writeProcessing()],
])('a request that may be upgraded, and is sent %s first, ends with its answer', async (_what, precede) => {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => {
      precede(response)
      response.writeHead(404).end()
    }),
  )
  // As the HTTP client of Java asks.
  await ask(serving, '/', { headers: { connection: 'Upgrade, HTTP2-Settings', upgrade: 'h2c' } })
  const [span] = await recording.all(1)
  expect(span?.attributes['http.response.status_code']).toBe(404)
})

test('a request whose connection sends the answer to another one has a span of its own', async () => {
  const recording = record()
  const serving = await serve((request, response) => {
    const { emit }: EventEmitter = request
    ;(request as EventEmitter).emit = (...given) => emit.apply(request, given)
    traceRequest(request, response, () => setImmediate(() => response.end()))
  })
  const one = 'GET / HTTP/1.1\r\nHost: a\r\n'
  await raw(serving, `${one}\r\n${one}Connection: close\r\n\r\n`)
  expect(new Set((await recording.all(2)).map((span) => span.spanContext().spanId)).size).toBe(2)
})

test('a request that is handed on with another `emit` has one span', async () => {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => {
      const { emit }: EventEmitter = request
      ;(request as EventEmitter).emit = (...given) => emit.apply(request, given)
      traceRequest(request, response, () => response.end())
    }),
  )
  for (let count = 0; count < 2; count += 1) await ask(serving, '/')
  await recording.all(2)
  expect(recording.spans).toHaveLength(2)
})

test("a 'finish' that the app emits itself is no answer", async () => {
  const recording = record()
  const { port } = await serve((request, response) =>
    traceRequest(request, response, () => {
      response.emit('finish')
      response.destroy()
    }),
  )
  await fetch(`http://127.0.0.1:${port}/`).catch(() => {})
  const [span] = await recording.all(1)
  expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
})

describe('a client that is too slow for the server’s limits', () => {
  /** What it is sent, and the spans that there are then. */
  async function slow(text: string, listener: Listener) {
    const recording = record()
    const limits = { connectionsCheckingInterval: 5, requestTimeout: 20, headersTimeout: 20 }
    const server = createServer(limits, (request, response) =>
      traceRequest(request, response, () => listener(request, response)),
    )
    const serving = await listening(server)
    onTestFinished(() => serving.close())
    const answer = await raw(serving, text)
    // Node answers by itself.
    expect(answer).toMatch(/^HTTP\/1\.1 408 /)
    // What has ended by the end of the next request, which may take its time, is all that there is to end.
    Object.assign(server, { requestTimeout: 0, headersTimeout: 0 })
    await ask(serving, '/')
    return recording
  }

  const answering: Listener = (request, response) => void request.on('end', () => response.end('ok')).resume()

  test('with its body ends its span as an abort that the app has not answered, once', async () => {
    const recording = await slow('POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n', answering)
    const [late, next] = await recording.all(2)
    expect(recording.spans).toHaveLength(2)
    expect(late?.attributes).toMatchObject({
      'url.path': '/slow',
      'error.type': 'aborted',
      'throughline.incomplete': true,
    })
    expect(late?.attributes).not.toHaveProperty('http.response.status_code')
    expect(next?.attributes).toMatchObject({ 'url.path': '/', 'http.response.status_code': 200 })
  })

  test('with its headers has no span, since no request has come', async () => {
    const recording = await slow('POST /slow HTTP/1.1\r\nHost: a\r\n', answering)
    const [next] = await recording.all(1)
    expect(recording.spans).toHaveLength(1)
    expect(next?.attributes['url.path']).toBe('/')
  })
})

test('a response of HTTP/1 that the app has given a stream of its own is answered as any other', async () => {
  const { attributes, status } = await spanOf((_request, response) => {
    Object.assign(response, { stream: new EventEmitter() })
    response.writeHead(201).end('ok')
  })
  expect(status.code).toBe(0)
  expect(attributes).toMatchObject({ 'http.response.status_code': 201 })
  expect(attributes).not.toHaveProperty('throughline.incomplete')
})

test('a request whose client has left before it comes to us has a span, which ends', async () => {
  const recording = record()
  const arrived = signal()
  const serving = await serve(async (request, response) => {
    arrived.give()
    await once(request.socket, 'close')
    traceRequest(request, response, () => {})
  })
  const client = connect(serving.port, '127.0.0.1')
  client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
  await arrived.given
  client.destroy()
  const [span] = await recording.all(1)
  expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
})

test('a request that was answered before it comes to us has a span, which ends', async () => {
  const recording = record()
  const serving = await serve(async (request, response) => {
    response.writeHead(503).end()
    await once(response, 'close')
    traceRequest(request, response, () => {})
  })
  const agent = new Agent({ keepAlive: true })
  onTestFinished(() => agent.destroy())
  expect((await ask(serving, '/', { agent })).status).toBe(503)
  const [span] = await recording.all(1)
  expect(span?.attributes['http.response.status_code']).toBe(503)
  expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
})

describe('a request that waits behind another one, and whose body was read before it comes to us,', () => {
  const READ_FIRST = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi'

  /** Serves GET when `first` says so, and POST when its body was read. */
  async function serving(first: Promise<void>, traced: (request: IncomingMessage) => void): Promise<Serving> {
    return serve(async (request, response) => {
      if (request.method === 'GET') await first
      else await once(request.resume(), 'close')
      traceRequest(request, response, () => response.end('ok'))
      if (request.method === 'POST') traced(request)
    })
  }

  test('has a span, which ends with their connection', async () => {
    const recording = record()
    const traced = signal<IncomingMessage>()
    const { port } = await serving(new Promise(() => {}), traced.give)
    const client = connect(port, '127.0.0.1')
    client.write(`GET / HTTP/1.1\r\nHost: a\r\n\r\n${READ_FIRST}`)
    await traced.given
    client.destroy()
    const [span] = await recording.all(1)
    expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'http.request.method': 'POST' })
  })

  test('is let go of when it is answered, though their connection lasts', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    record()
    const first = signal()
    const traced = signal<WeakRef<object>>()
    const { port } = await serving(first.given, (request) => traced.give(new WeakRef(request)))
    const client = connect(port, '127.0.0.1')
    onTestFinished(() => void client.destroy())
    let answers = 0
    const answered = new Promise<void>((resolve) => {
      client.setEncoding('latin1').on('data', (text: string) => {
        answers += text.split('HTTP/1.1 200').length - 1
        if (answers === 3) resolve()
      })
    })
    // The last one takes the place that Node's parser keeps for the newest.
    client.write(`GET / HTTP/1.1\r\nHost: a\r\n\r\n${READ_FIRST}GET / HTTP/1.1\r\nHost: a\r\n\r\n`)
    const request = await traced.given
    first.give()
    await answered
    for (let turns = 0; turns < 20 && request.deref() !== undefined; turns += 1) {
      await new Promise((resolve) => setImmediate(resolve))
      collect()
    }
    expect(request.deref()).toBeUndefined()
  })
})
