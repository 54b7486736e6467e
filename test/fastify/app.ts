import type { ReadableSpan } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { once } from 'node:events'
import { request as asked, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { afterEach } from 'vitest'
import { record } from '../recording.ts'

export const fastify4 = createRequire(import.meta.url)('fastify4') as typeof fastify

/** Both supported majors, for `describe.each`. */
export const versions: [name: string, create: typeof fastify][] = [
  ['Fastify 5', fastify],
  ['Fastify 4', fastify4],
]

/** An app with the one line. */
export function traced(
  create: typeof fastify,
  options: Parameters<typeof tracing>[1] = {},
  server: FastifyServerOptions = {},
): FastifyInstance {
  const app = create(server) as unknown as FastifyInstance
  app.register(tracing, options)
  return app
}

export async function ok(): Promise<string> {
  return 'ok'
}

const apps: FastifyInstance[] = []

afterEach(async () => {
  await Promise.all(apps.splice(0).map((app) => app.close()))
})

export async function origin(app: FastifyInstance): Promise<string> {
  if (!apps.includes(app)) {
    apps.push(app)
    await app.listen()
  }
  return `http://localhost:${(app.server.address() as AddressInfo).port}`
}

export async function ask(app: FastifyInstance, path: string, init: RequestInit = {}): Promise<Response> {
  const response = await fetch((await origin(app)) + path, init)
  await response.text()
  return response
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
  readonly trailers: Record<string, string | undefined>
}

/** For what `fetch` does not do: paths as they are, methods of any name, trailers. */
export async function askPlainly(
  app: FastifyInstance,
  path: string,
  { method = 'GET', headers = {} }: { method?: string; headers?: Record<string, string> } = {},
): Promise<Answer> {
  const { port } = new URL(await origin(app))
  const sending = asked({ port, path, method, headers, agent: false }).end()
  const [response] = (await once(sending, 'response')) as [IncomingMessage]
  let body = ''
  for await (const chunk of response.setEncoding('utf8')) body += String(chunk)
  const { statusCode = 0, trailers } = response
  return { status: statusCode, headers: response.headers, body, trailers }
}

/** The one span of one request. */
export async function trace1(app: FastifyInstance, path: string, init?: RequestInit): Promise<ReadableSpan> {
  const recording = record()
  await ask(app, path, init)
  const [span] = await recording.all(1)
  return span as ReadableSpan
}

/** Something that a handler tells the test, or the test a handler. */
export function signal(): { readonly given: Promise<void>; give(): void } {
  let give = (): void => {}
  const given = new Promise<void>((resolve) => {
    give = resolve
  })
  return { given, give: () => give() }
}
