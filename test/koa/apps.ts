import { Router } from '@koa/router'
import { tracing, type TracingOptions } from '@throughline/koa'
import type { ReadableSpan } from '@throughline/core'
import Koa from 'koa'
import { once } from 'node:events'
import type { Server } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { afterEach } from 'vitest'
import { record } from '../recording.ts'

const require = createRequire(import.meta.url)
const Koa2 = require('koa2') as typeof Koa

/** What has no types of its own, or only those of another major. */
export const load = <T>(name: string): T => require(name) as T

/** koa-router 14 is written as @koa/router is, without types. */
export const KoaRouter = load<typeof Router>('koa-router')

export const applications: [name: string, Application: typeof Koa][] = [
  ['Koa 3', Koa],
  ['Koa 2', Koa2],
]

export const withRouters: [name: string, Application: typeof Koa, Routes: typeof Router][] =
  applications.flatMap(([name, Application]) => [
    [`${name} with @koa/router`, Application, Router],
    [`${name} with koa-router`, Application, KoaRouter],
  ])

/** An app with tracing mounted first, which prints no errors. */
export function traced(Application: typeof Koa, options?: TracingOptions): Koa {
  const app = new Application()
  app.silent = true
  return app.use(tracing(options))
}

export function ok(ctx: Koa.Context): void {
  ctx.body = 'ok'
}

export const pass: Koa.Middleware = (_ctx, next) => next()

const servers: Server[] = []

afterEach(() => {
  for (const server of servers.splice(0)) {
    server.close()
    server.closeAllConnections()
  }
})

export async function listen(app: Pick<Koa, 'listen'>): Promise<Server> {
  const server = app.listen(0)
  servers.push(server)
  await once(server, 'listening')
  return server
}

export function url(server: Server, path: string, scheme = 'http'): string {
  return `${scheme}://localhost:${(server.address() as AddressInfo).port}${path}`
}

export interface Asked {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
}

export interface Answer {
  readonly status: number
  readonly body: string
  readonly headers: Headers
}

export async function ask(
  server: Server,
  path: string,
  { method = 'GET', headers, body }: Asked = {},
): Promise<Answer> {
  const response = await fetch(url(server, path), {
    method,
    headers: { connection: 'close', ...headers },
    body: body ?? null,
    redirect: 'manual',
  })
  return { status: response.status, body: await response.text(), headers: response.headers }
}

/** The one span of one request. */
export async function trace1(
  app: Pick<Koa, 'listen'>,
  path: string,
  asked: Asked = {},
): Promise<ReadableSpan> {
  const recording = record()
  await ask(await listen(app), path, asked)
  const [span] = await recording.all(1)
  await recording.stop()
  if (span === undefined) throw new Error('there is no span')
  return span
}
