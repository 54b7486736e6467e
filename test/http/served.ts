import { traceHttp, type TracingOptions } from '@throughline/http'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import * as http from 'node:http'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import { onTestFinished } from 'vitest'

export interface Listening {
  url: string
  port: number
  /** What has arrived, oldest first. */
  requests: http.IncomingMessage[]
  server: http.Server | https.Server
}

const pem = (name: string) => readFileSync(new URL(`../core/certificates/${name}.pem`, import.meta.url))

/** Who vouches for the servers with a certificate. */
export const authority = pem('authority')

const respond: http.RequestListener = (request, response) => {
  response.statusCode = request.url?.startsWith('/none') === true ? 404 : 200
  response.end('hello')
}

/** A server on a port of its own, of plain HTTP or with a certificate for 127.0.0.1. */
export async function listen(
  answer: http.RequestListener = respond,
  scheme: 'http' | 'https' = 'http',
): Promise<Listening> {
  const requests: http.IncomingMessage[] = []
  const server =
    scheme === 'http'
      ? // Headers in a list are all that is sent: mostly there is no Host.
        http.createServer({ requireHostHeader: false })
      : https.createServer({ cert: pem('collector'), key: pem('collector.key') })
  server.on('request', (request, response) => {
    requests.push(request)
    answer(request, response)
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  return { url: `${scheme}://127.0.0.1:${port}`, port, requests, server }
}

export function close(server: http.Server | https.Server): Promise<unknown> {
  server.closeAllConnections()
  return new Promise((resolve) => server.close(resolve))
}

/** The same until the end of the test. */
export async function served(answer?: http.RequestListener, scheme?: 'http' | 'https'): Promise<Listening> {
  const listening = await listen(answer, scheme)
  onTestFinished(async () => void (await close(listening.server)))
  return listening
}

export async function textOf(response: http.IncomingMessage): Promise<string> {
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return text
}

/** The body of what `make` asks for. */
export async function answerTo(request: http.ClientRequest): Promise<string> {
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  return textOf(response)
}

/** Traces the process until the end of the test. */
export function traced(options?: TracingOptions): () => void {
  const stop = traceHttp(options)
  onTestFinished(stop)
  return stop
}

/** Whether this Node publishes the requests that it makes, those of `new ClientRequest()` too. */
export function isPublished(): boolean {
  let isSeen = false
  const see = () => void (isSeen = true)
  subscribe('http.client.request.created', see)
  // Its agent connects it to nobody.
  void new http.ClientRequest({ agent: { addRequest() {} } } as unknown as string)
  unsubscribe('http.client.request.created', see)
  return isSeen
}
