import { tracing, type TracingOptions } from '@throughline/express'
import type { ReadableSpan } from '@throughline/core'
import express, { type Express, type Request, type RequestHandler, type Response } from 'express'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { afterEach } from 'vitest'
import { ask, listening, type Asking, type Serving } from '../contract/server.ts'
import { record } from '../recording.ts'

export type Create = typeof express

export const express4 = createRequire(import.meta.url)('express4') as Create

/** Both majors; a test that is run for each tells them by the name. */
export const versions: [name: 'Express 5' | 'Express 4', create: Create][] = [
  ['Express 5', express],
  ['Express 4', express4],
]

/** Of router 2.0 to 2.2: a mount path whose case does not matter is then written in lower case. */
export function forgetsMountPaths(create: Create): boolean {
  const router = create.Router().use('/x', ok) as unknown as { stack: object[] }
  return router.stack.every((layer) => !('rawPath' in layer) && !('regexp' in layer))
}

/** The layers of an app, as those who list its routes read them. */
export function stackOf(application: Express): object[] {
  const made = application as unknown as Record<'_router' | 'router', { stack: object[] }>
  // Express 4 throws when `router` is read.
  return (made._router ?? made.router).stack
}

/** As express-async-errors does it: another function, of another name, in the place of the one that the app has given. */
export function wrapped(stack: object[]): void {
  for (const layer of stack as { handle: RequestHandler & { stack?: object[] } }[]) {
    const { handle } = layer
    if (handle.stack !== undefined) wrapped(handle.stack)
    layer.handle = Object.assign(function newFn(...given: Parameters<RequestHandler>) {
      return handle(...given)
    }, handle)
    // By its length Express tells an error handler.
    Object.defineProperty(layer.handle, 'length', { value: handle.length })
  }
}

/** An app with tracing in front. */
export function traced(create: Create, options?: TracingOptions): Express {
  return quiet(create()).use(tracing(options))
}

/** Keeps the default error handler from stderr. */
export function quiet(application: Express): Express {
  return application.set('env', 'test')
}

export function ok(_request: Request, response: Response): void {
  response.send('ok')
}

export const pass: RequestHandler = (_request, _response, next) => next()

export const fail: RequestHandler = () => {
  throw new RangeError('it broke')
}

const servings: Serving[] = []

afterEach(async () => {
  await Promise.all(servings.splice(0).map((serving) => serving.close()))
})

/** Until the end of the test. */
export async function serve(application: Express | ReturnType<typeof createServer>): Promise<Serving> {
  const server = typeof application === 'function' ? createServer(application) : application
  const serving = await listening(server)
  servings.push(serving)
  return serving
}

/** The one span of one request, and nothing more. */
export async function spanOf(application: Express, path: string, asking?: Asking): Promise<ReadableSpan> {
  const recording = record()
  await ask(await serve(application), path, asking)
  const [span] = await recording.all(1)
  await recording.stop()
  if (span === undefined) throw new Error('there is no span')
  return span
}

/** The routes on the spans of these requests, sent one after the other to a new app. */
export async function routes(application: Express, ...paths: string[]): Promise<unknown[]> {
  const recording = record()
  const serving = await serve(application)
  for (const path of paths) await ask(serving, path)
  const spans = await recording.all(paths.length)
  await recording.stop()
  return spans.map(({ name, attributes }) => {
    const route = attributes['http.route']
    if (name !== (route === undefined ? 'GET' : `GET ${String(route)}`)) return { name, route }
    return route
  })
}
