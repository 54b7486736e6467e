import { SpanStatusCode } from '@opentelemetry/api'
import type { ReadableSpan } from '@throughline/core'
import { once } from 'node:events'
import * as http from 'node:http'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { PassThrough } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setImmediate } from 'node:timers/promises'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { record } from '../recording.ts'
import { answerTo, close, served, traced } from './served.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

/** More than a socket and the streams on both ends keep. */
const MUCH = Buffer.alloc(4 * 2 ** 20, 'x')

const silent: http.RequestListener = () => {}

/** Answers with the head and the beginning of a body, of which the rest never comes. */
const halting: http.RequestListener = (_request, response) => void response.write('the first of two')

/** Writes these bytes to whoever asks. */
async function raw(text: string, after: (socket: Socket) => void = () => {}): Promise<string> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.write(text, () => after(socket)))
  })
  const sockets: Socket[] = []
  server.on('connection', (socket: Socket) => sockets.push(socket))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
}

async function responseTo(request: http.ClientRequest): Promise<http.IncomingMessage> {
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  return response
}

const noError = (call: ReadableSpan | undefined) => {
  expect(call?.status).toEqual({ code: SpanStatusCode.UNSET })
  expect(call?.attributes).not.toHaveProperty('error.type')
}

describe('a response', () => {
  test.each([
    ['without a body, that nobody reads', 204, 'GET'],
    ['to HEAD, that nobody reads', 200, 'HEAD'],
    ['that is not modified', 304, 'GET'],
  ])('%s ends its span at once', async (_form, status, method) => {
    const recording = record()
    const { url } = await served((_request, response) => response.writeHead(status).end())
    traced()
    const response = await responseTo(http.request(url, { method }).end())
    const [call] = await recording.all(1)
    expect(call?.attributes['http.response.status_code']).toBe(status)
    noError(call)
    expect(response.readableEnded).toBe(false)
    response.resume()
  })

  test('that has come whole ends its span, though nobody has read it', async () => {
    const recording = record()
    const { url } = await served()
    traced()
    const response = await responseTo(http.get(url))
    await recording.all(1)
    expect(response.readableDidRead).toBe(false)
    response.resume()
  })

  test('that nobody listens for is thrown away by Node, and ends its span', async () => {
    const recording = record()
    const { url } = await served((_request, response) => response.end(MUCH))
    traced()
    await once(http.get(url), 'close')
    const [call] = await recording.all(1)
    expect(call?.attributes['http.response.status_code']).toBe(200)
  })

  test('that its server ends by closing the connection, as of old, is complete', async () => {
    const recording = record()
    const url = await raw('HTTP/1.0 200 OK\r\n\r\nhello', (socket) => socket.end())
    traced()
    expect(await answerTo(http.get(url))).toBe('hello')
    const [call] = await recording.all(1)
    noError(call)
    expect(call?.attributes['network.protocol.version']).toBe('1.0')
  })

  test('is not what says that there will be one', async () => {
    const recording = record()
    const hints = 'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n'
    const url = await raw(`${hints}HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi`)
    traced()
    const request = http.get(url)
    const told: number[] = []
    request.on('information', ({ statusCode }) => told.push(statusCode))
    expect(await answerTo(request)).toBe('hi')
    const [call] = await recording.all(1)
    expect(told).toEqual([103, 102])
    expect(call?.attributes['http.response.status_code']).toBe(201)
  })

  test('that breaks off is an error, with the status that it had', async () => {
    const recording = record()
    const url = await raw('HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf', (socket) => socket.end())
    traced()
    await expect(answerTo(http.get(url))).rejects.toThrow('aborted')
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNRESET', 'http.response.status_code': 200 })
  })

  test('that breaks off is an error also where the app, when it hears of it, destroys the request', async () => {
    const recording = record()
    const url = await raw('HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf', (socket) => socket.end())
    traced()
    const request = http.get(url, (response) => {
      response.on('aborted', () => request.destroy()).resume()
    })
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNRESET' })
  })

  test('that nobody reads is left on the wire as before', async () => {
    record()
    const { url } = await served((_request, response) => response.end(MUCH))
    traced()
    const request = http.get(url)
    const response = await responseTo(request)
    while (!response.complete && request.socket?.isPaused() !== true) await setImmediate()
    expect(response.complete).toBe(false)
  })

  test('that breaks off while nobody reads it is an error', async () => {
    const recording = record()
    const url = await raw('HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf', (socket) => socket.end())
    traced()
    http.get(url, () => {})
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNRESET' })
  })

  test.each<[string, (response: http.IncomingMessage, request: http.ClientRequest) => unknown]>([
    ['response.destroy()', (response) => response.destroy()],
    ['request.destroy()', (_response, request) => request.destroy()],
    [
      'a break out of its iteration',
      async (response) => {
        for await (const chunk of response) if (chunk !== undefined) break
      },
    ],
  ])('that the app wants no more of, by %s, is no error', async (_form, leave) => {
    const recording = record()
    const { url } = await served(halting)
    traced()
    const request = http.get(url)
    const response = await responseTo(request)
    response.on('error', () => {})
    await leave(response, request)
    const [call] = await recording.all(1)
    noError(call)
    expect(call?.attributes['http.response.status_code']).toBe(200)
  })

  test('that the app destroys with an error is one', async () => {
    const recording = record()
    const { url } = await served(halting)
    traced()
    const request = http.get(url).on('error', () => {})
    const response = await responseTo(request)
    response.on('error', () => {}).destroy(new RangeError('too large'))
    const [call] = await recording.all(1)
    expect(call?.attributes['error.type']).toBe('RangeError')
    expect(call?.status.message).toBe('too large')
  })

  test('that is piped on arrives whole, and ends its span', async () => {
    const recording = record()
    const { url } = await served((_request, response) => response.end(MUCH))
    traced()
    let size = 0
    const target = new PassThrough()
    target.on('data', (chunk: Buffer) => (size += chunk.length))
    await pipeline(await responseTo(http.get(url)), target)
    expect(size).toBe(MUCH.length)
    await recording.all(1)
  })
})

describe('a request', () => {
  test('that fails with an error of another realm, as all of Node’s are in jest, is an error', async () => {
    const recording = record()
    traced()
    const error = runInNewContext("Object.assign(new Error('refused'), { code: 'ECONNREFUSED' })") as Error
    expect(error).not.toBeInstanceOf(Error)
    const request = http.get('http://api.example', {
      createConnection: (_options, made) => void made(error, undefined as never),
    })
    expect(await once(request, 'error')).toEqual([error])
    const [span] = await recording.all(1)
    expect(span?.status).toEqual({ code: SpanStatusCode.ERROR, message: 'refused' })
    expect(span?.attributes['error.type']).toBe('ECONNREFUSED')
  })

  test.each([
    [
      'is not accepted',
      async () => {
        const { url, server } = await served()
        await close(server)
        return url
      },
      'ECONNREFUSED',
    ],
    ['is closed before there is an answer', () => raw('', (socket) => socket.end()), 'ECONNRESET'],
    ['is reset', () => raw('', (socket) => void socket.resetAndDestroy()), 'ECONNRESET'],
  ])('whose connection %s is an error with the code of the system', async (_form, open, type) => {
    const recording = record()
    const url = await open()
    traced()
    const error = (await once(http.get(url), 'error'))[0] as Error
    const [call] = await recording.all(1)
    expect(call?.attributes['error.type']).toBe(type)
    expect(call?.attributes).not.toHaveProperty('http.response.status_code')
    expect(call?.status).toEqual({ code: SpanStatusCode.ERROR, message: error.message })
  })

  test.each([
    ['closes', (socket: Socket) => void socket.end()],
    ['resets', (socket: Socket) => void socket.resetAndDestroy()],
    ['answers with what is no HTTP', (socket: Socket) => void socket.write('no HTTP')],
  ])('that the server %s in the place of an answer has the peer that it was sent to', async (_form, end) => {
    const recording = record()
    const url = await raw('', end)
    traced()
    await once(http.get(url), 'error')
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'network.peer.address': '127.0.0.1',
      'network.peer.port': Number(new URL(url).port),
    })
  })

  test.each<[string, (request: http.ClientRequest) => void]>([
    ['destroy', (request) => void request.destroy()],
    ['abort', (request) => request.abort()],
  ])('that the app gives up by %s is no error, at any time', async (_form, leave) => {
    const recording = record()
    const { url } = await served(silent)
    traced()
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
    onTestFinished(() => agent.destroy())
    // The first is given up when it has arrived, the second while it waits for the connection, the third before that.
    const requests = [http.get(url, { agent }), http.get(url, { agent }), http.get(url)]
    for (const request of requests) request.on('error', () => {})
    leave(requests[2] as http.ClientRequest)
    await once(requests[0] as http.ClientRequest, 'finish')
    leave(requests[1] as http.ClientRequest)
    expect(recording.spans).toHaveLength(2)
    leave(requests[0] as http.ClientRequest)
    for (const call of await recording.all(3)) noError(call)
  })

  test('that a signal of the app aborts is no error, before it is made or after that', async () => {
    const recording = record()
    const { url } = await served(silent)
    traced()
    const controller = new AbortController()
    const late = once(http.get(url, { signal: controller.signal }), 'error')
    controller.abort(new Error('not needed any more'))
    const early = once(http.get(url, { signal: AbortSignal.abort() }), 'error')
    expect((await Promise.all([late, early])).flat()).toEqual([
      expect.objectContaining({ name: 'AbortError' }),
      expect.objectContaining({ name: 'AbortError' }),
    ])
    for (const call of await recording.all(2)) noError(call)
  })

  test('that takes too long for its signal is an error', async () => {
    const recording = record()
    const { url } = await served(silent)
    traced()
    const [error] = await once(http.get(url, { signal: AbortSignal.timeout(20) }), 'error')
    expect(error).toMatchObject({ name: 'AbortError' })
    const [call] = await recording.all(1)
    expect(call?.attributes['error.type']).toBe('TimeoutError')
  })

  test('that takes too long goes on until the app destroys it, which is an error when it says so', async () => {
    const recording = record()
    const { url, port } = await served(silent)
    traced()
    const request = http.get(url, { timeout: 20 })
    await once(request, 'timeout')
    expect(recording.spans).toEqual([])
    request.destroy(Object.assign(new Error('20 ms are over'), { code: 'ETIMEDOUT' }))
    await expect(once(request, 'response')).rejects.toThrow('20 ms are over')
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'error.type': 'ETIMEDOUT', 'network.peer.port': port })
  })

  test('whose body fails is given up by the pipeline, as by the app', async () => {
    const recording = record()
    const { url } = await served(silent)
    traced()
    const body = new PassThrough()
    const sent = pipeline(
      body,
      http.request(url, { method: 'POST' }).on('error', () => {}),
    )
    body.destroy(new RangeError('no file'))
    await expect(sent).rejects.toThrow('no file')
    const [call] = await recording.all(1)
    noError(call)
  })

  test('that is answered before its body has been sent ends when the answer has come', async () => {
    const recording = record()
    const { url } = await served((_request, response) => response.writeHead(413).end('too large'))
    traced()
    const request = http.request(url, { method: 'POST' })
    request.write('the first of many')
    expect(await answerTo(request)).toBe('too large')
    const [call] = await recording.all(1)
    expect(call?.attributes['error.type']).toBe('413')
    request.destroy()
    await once(request, 'close')
    expect(recording.spans).toHaveLength(1)
  })

  test('for another protocol ends with the handshake, also when nobody listens for that', async () => {
    const recording = record()
    const url = await raw('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
    traced()
    const headers = { connection: 'Upgrade', upgrade: 'echo' }
    const upgraded = http.get(url, { headers })
    const seen = new Promise<number>((resolve) => {
      upgraded.on('upgrade', () => resolve(recording.spans.length))
    })
    const [, socket] = (await once(upgraded, 'upgrade')) as [unknown, Socket]
    expect(await seen).toBe(1)
    const [call] = await recording.all(1)
    socket.destroy()
    await once(http.get(url, { headers }), 'close')
    for (const each of [call, (await recording.all(2))[1]]) {
      expect(each?.attributes['http.response.status_code']).toBe(101)
      noError(each)
    }
  })

  test('of a WebSocket is one span to the handshake', async () => {
    const recording = record()
    const { url, server } = await served()
    const sockets = new WebSocketServer({ server: server as http.Server })
    sockets.on('connection', (socket) => socket.on('message', (text) => socket.send(text)))
    traced()
    const client = new WebSocket(url.replace('http', 'ws'))
    await once(client, 'open')
    const [call] = await recording.all(1)
    expect(call?.attributes['http.response.status_code']).toBe(101)
    client.send('hello')
    expect(String((await once(client, 'message'))[0])).toBe('hello')
    client.terminate()
    await once(client, 'close')
    expect(recording.spans).toHaveLength(1)
  })

  test('on a connection that was closed meanwhile, which the app makes again, is a span each time', async () => {
    const recording = record()
    const { url } = await served((request, response) => {
      if (request.url === '/broken' && request.socket.bytesWritten > 0) request.socket.destroy()
      else response.end('hello')
    })
    traced()
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
    onTestFinished(() => agent.destroy())
    await answerTo(http.get(url, { agent }))
    const retry = async (): Promise<string> => {
      const request = http.get(`${url}/broken`, { agent })
      try {
        return await answerTo(request)
      } catch (error) {
        if (!request.reusedSocket) throw error
        return retry()
      }
    }
    expect(await retry()).toBe('hello')
    expect((await recording.all(3)).map((each) => each.attributes['error.type'])).toEqual([
      undefined,
      'ECONNRESET',
      undefined,
    ])
  })
})
