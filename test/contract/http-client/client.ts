import type { ReadableSpan } from '@throughline/core'
import type { HttpClientOptions } from '@throughline/core/http-client'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http'
import type { AddressInfo, Server as NetServer } from 'node:net'
import { expect, onTestFinished } from 'vitest'

/** A request in terms that every client has. */
export interface Asking {
  readonly url: string
  /** GET, if not given. */
  readonly method?: string | undefined
  /** In one of the forms of `HEADER_FORMS`. */
  readonly headers?: unknown
  readonly body?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What came back, as soon as its headers have come. */
export interface Answer {
  readonly status: number
  /** Reads the body to its end. */
  text(): Promise<string>
  /** Gives the body up. */
  cancel(): unknown
}

/** A client that is ready to be asked. */
export interface OpenClient {
  ask(asking: Asking): Promise<Answer>
  close(): unknown
}

/** The forms in which clients take headers, made of names and values. */
export const HEADER_FORMS = {
  'a frozen object': (own: Pairs) => Object.freeze(Object.fromEntries(own)),
  'an object without a prototype': (own: Pairs) =>
    Object.assign(Object.create(null), Object.fromEntries(own)),
  Headers: (own: Pairs) => new Headers(own.map(([name, value]): [string, string] => [name, value])),
  'a Map': (own: Pairs) => new Map(own),
  'a list of pairs': (own: Pairs) => Object.freeze(own.map((pair) => Object.freeze([...pair]))),
  'a flat list': (own: Pairs) => Object.freeze(own.flat()),
}

type Pairs = readonly (readonly [name: string, value: string])[]

export type HeaderForm = keyof typeof HEADER_FORMS

/** What one client cannot do. The contract then holds it to the opposite. */
export interface Gaps {
  /** Forms of headers that it refuses, or takes for something else: then traced as untraced. */
  readonly headers?: readonly HeaderForm[]
  /** It takes no URL with credentials, or takes it and sends none. */
  readonly credentials?: 'refused' | 'dropped'
  /** It writes `get` as `GET`. */
  readonly lowerCase?: true
  /** It does not tell a time limit from the will of its caller once the body has begun. */
  readonly timeLimit?: true
  /** Its spans do not say which peer was connected to. */
  readonly peer?: true
}

export interface HttpClientUnderTest {
  /** The instrumentation scope of its spans. */
  readonly scope: string
  /** Opens a client that is traced with these options; untraced for undefined. */
  open(options: HttpClientOptions | undefined): Promise<OpenClient>
  readonly gaps?: Gaps
}

/** What a part of the contract is written with. */
export interface Contract {
  readonly name: string
  readonly scope: string
  readonly gaps: Gaps
  /** A client that is traced with these options until the end of the test. */
  traced(options?: HttpClientOptions): Promise<OpenClient['ask']>
  untraced(): Promise<OpenClient['ask']>
}

export interface Serving {
  /** `http://127.0.0.1:1234` */
  readonly url: string
  readonly port: number
  readonly requests: IncomingMessage[]
  readonly server: Server
}

const hello: RequestListener = (_request, response) => response.end('hello')

/** Serves on a free port of this machine until the end of the test. */
export async function served(answer: RequestListener = hello): Promise<Serving> {
  const requests: IncomingMessage[] = []
  // Headers in a flat list are all that node:http sends: mostly there is no Host.
  const server = createServer({ requireHostHeader: false }, (request, response) => {
    requests.push(request)
    answer(request, response)
  })
  const port = await listening(server)
  onTestFinished(() => server.closeAllConnections())
  return { url: `http://127.0.0.1:${port}`, port, requests, server }
}

/** Listens on a free port of this machine until the end of the test. */
export async function listening(server: NetServer): Promise<number> {
  await once(server.listen(0, '127.0.0.1'), 'listening')
  onTestFinished(() => void server.close())
  return (server.address() as AddressInfo).port
}

/** All values that a header has on the wire. */
export function sentAs({ rawHeaders }: Pick<IncomingMessage, 'rawHeaders'>, name: string): string[] {
  return rawHeaders.filter((_, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === name)
}

export function traceparents(request: Pick<IncomingMessage, 'rawHeaders'> | undefined): string[] {
  return request === undefined ? [] : sentAs(request, 'traceparent')
}

/** A port that nobody listens on. */
export async function refusedPort(): Promise<number> {
  const server = createServer()
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** All values of a header as they arrived. */
export function valuesOf({ rawHeaders }: IncomingMessage | { rawHeaders: string[] }, name: string): string[] {
  return rawHeaders.filter(
    (_value, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === name,
  )
}

/** What a span's request must have had as its traceparent. */
export function traceparentOf(span: ReadableSpan | undefined): string {
  const { traceId, spanId } = span?.spanContext() ?? {}
  return `00-${traceId}-${spanId}-03`
}

export async function failure(promise: Promise<unknown>): Promise<Error & { code?: unknown }> {
  const outcome = await promise.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  )
  expect(outcome).toHaveProperty('error')
  return (outcome as { error: Error & { code?: unknown } }).error
}

/** The code of the system or of the library, which some clients wrap. */
export function codeOf(error: Error & { code?: unknown }): unknown {
  return error.code ?? (error.cause === undefined ? undefined : codeOf(error.cause as Error))
}

/** One whole request. */
export async function read(asked: Promise<Answer>): Promise<string> {
  return (await asked).text()
}
