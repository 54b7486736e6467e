import { EventEmitter, once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { gunzipSync } from 'node:zlib'
import { onTestFinished } from 'vitest'
import { decodeRequest, type OtlpSpan } from '../otlp-definition.ts'

export interface Received {
  method: string | undefined
  path: string | undefined
  headers: IncomingHttpHeaders
  body: Buffer
  socket: Socket
}

export interface Receiver {
  url: string
  port: number
  requests: Received[]
  /** How many connections were made. */
  connections: number
  /** The request with this number, now or later. */
  nth(number: number): Promise<Received>
  /** All spans of all requests, in order. */
  spans(): OtlpSpan[]
}

export type Answer = (response: ServerResponse, request: Received, number: number) => void

/** A real OTLP/HTTP endpoint on a port of its own; what it answers is up to the test. Closed after the test. */
export async function receiver(answer: Answer = (response) => response.end()): Promise<Receiver> {
  const arrived = new EventEmitter()
  const requests: Received[] = []
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const { method, url: path, headers, socket } = request
    const received = { method, path, headers, body: Buffer.concat(chunks), socket }
    requests.push(received)
    arrived.emit('request')
    answer(response, received, requests.length)
  })
  const result: Receiver = {
    url: '',
    port: 0,
    requests,
    connections: 0,
    async nth(number) {
      while (requests.length < number) await once(arrived, 'request')
      return requests[number - 1] as Received
    },
    spans() {
      return requests.flatMap(({ headers, body }) => {
        const bytes = headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body
        const { resourceSpans = [] } = decodeRequest(bytes)
        return resourceSpans.flatMap(({ scopeSpans = [] }) => scopeSpans.flatMap(({ spans = [] }) => spans))
      })
    },
  }
  server.on('connection', () => {
    result.connections += 1
  })
  // Whoever keeps a connection keeps it for ever: a process that waits for us to close it would hang.
  server.keepAliveTimeout = 0
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  result.port = (server.address() as AddressInfo).port
  result.url = `http://127.0.0.1:${result.port}`
  return result
}

/** A port at which nobody listens. */
export async function deadPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
