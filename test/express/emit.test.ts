import { diag } from '@opentelemetry/api'
import { tracing } from '@throughline/express'
import type { Express, RequestHandler } from 'express'
import { subscribe } from 'node:diagnostics_channel'
import { EventEmitter } from 'node:events'
import { createServer, type IncomingMessage } from 'node:http'
import { describe, expect, test } from 'vitest'
import { ask } from '../contract/server.ts'
import { record } from '../recording.ts'
import { ok, quiet, serve, versions } from './app.ts'

/** Where a property that is added to an Express request makes a hidden class. */
const MAKES_CLASSES = Number.parseInt(process.versions.v8, 10) < 13
const STARTS = 'http.server.request.start'

/** What requests and responses had of their own before the tracing saw them. */
type Seen = (unknown[] | undefined)[]

// Before ours, which comes with the first request that is traced.
subscribe(STARTS, seal)

describe.each(versions)('%s', (_name, create) => {
  test.runIf(MAKES_CLASSES)('a server that was traced gives the next ones room for `emit`', async () => {
    const seen: Seen = []
    const serving = await serve(app(seen))
    record()
    await ask(serving, '/')
    await ask(serving, '/')
    await ask(serving, '/early')
    await ask(await serve(app(seen)), '/')
    const { emit } = EventEmitter.prototype
    expect(seen).toEqual([undefined, [emit, emit], [emit, emit], undefined])
  })

  test('a traced request has the same properties, be it the first or the next', async () => {
    const seen: string[][] = []
    const application = app([])
    application.get('/keys', (request, response) => {
      seen.push(Object.keys(request), Object.keys(response))
      response.send('ok')
    })
    const serving = await serve(application)
    record()
    await ask(serving, '/keys')
    await ask(serving, '/keys')
    const [request, response, requestAgain, responseAgain] = seen.map((keys) => keys.toSorted())
    expect([requestAgain, responseAgain]).toEqual([request, response])
  })

  test.each(['request', 'response'] as const)('an `emit` that each %s inherits is called', async (which) => {
    const application = app([])
    const serving = await serve(application)
    record()
    await ask(serving, '/')
    const heard: unknown[] = []
    const prototype: EventEmitter = application[which]
    const { emit } = prototype
    prototype.emit = function (...args) {
      heard.push(args[0])
      return Reflect.apply(emit, this, args)
    }
    await ask(serving, '/early')
    expect(heard).toContain('close')
    heard.length = 0
    await ask(serving, '/')
    expect(heard).toContain('close')
  })

  test('a request that takes no `emit` is answered, and that is said once', async () => {
    const application = app([])
    const server = createServer((request, response) =>
      request.url === '/sealed' ? response.end('as ever') : application(request, response),
    )
    const serving = await serve(server)
    const warnings: string[] = []
    const ignore = () => {}
    diag.setLogger({
      error: ignore,
      warn: (line) => warnings.push(line),
      info: ignore,
      debug: ignore,
      verbose: ignore,
    })
    record()
    await ask(serving, '/')
    expect((await ask(serving, '/sealed')).body).toBe('as ever')
    expect((await ask(serving, '/sealed')).body).toBe('as ever')
    diag.disable()
    expect(warnings).toHaveLength(MAKES_CLASSES ? 1 : 0)
  })

  /** Looks at requests before the tracing, and answers `/early` there. */
  function app(seen: Seen): Express {
    const look: RequestHandler = (request, response, next) => {
      const hasRoom = Object.hasOwn(request, 'emit') && Object.hasOwn(response, 'emit')
      seen.push(hasRoom ? [request.emit, response.emit] : undefined)
      if (request.path === '/early') response.send('early')
      else next()
    }
    return quiet(create()).use(look, tracing()).get('/', ok)
  }
})

function seal(arrival: unknown): void {
  const { request } = arrival as { request: IncomingMessage }
  if (request.url !== '/sealed') return
  const { emit } = request
  const refuse = () => {
    throw new Error('not for you')
  }
  Object.defineProperty(request, 'emit', { get: () => emit, set: refuse })
}
