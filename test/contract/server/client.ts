import { once } from 'node:events'
import {
  request,
  type Agent,
  type ClientRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
} from 'node:http'
import { connect } from 'node:net'
import type { Serving } from './app.ts'

export interface Asking {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
  /** For connections that last; without one, each request has its own. */
  readonly agent?: Agent
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

function requestOf(
  { port }: Serving,
  path: string,
  { method = 'GET', headers, agent }: Asking,
): ClientRequest {
  return request({ host: '127.0.0.1', port, path, method, headers: { ...headers }, agent: agent ?? false })
}

/** A request that is on its way; with a `part` of its body, which it never completes. */
export function asking(serving: Serving, path: string, asked: Asking = {}, part?: string): ClientRequest {
  const sending = requestOf(serving, path, asked).on('error', () => {})
  if (part === undefined) sending.end()
  else sending.write(part)
  return sending
}

/** Sends a request and reads the answer; where it has a connection of its own, until that is closed. */
export async function ask(serving: Serving, path: string, asked: Asking = {}): Promise<Answer> {
  const sending = requestOf(serving, path, asked)
  const closed = asked.agent === undefined ? once(sending, 'close') : undefined
  sending.end(asked.body)
  const [response] = (await once(sending, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response.setEncoding('utf8')) text += String(chunk)
  await closed
  return { status: response.statusCode ?? 0, headers: response.headers, body: text }
}

/** Sends these very bytes and returns those that come back, until the server closes the connection. */
export async function raw({ port }: Serving, text: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.write(text)
  let answer = ''
  for await (const chunk of socket.setEncoding('utf8')) answer += String(chunk)
  return answer
}
