import { diag } from '@opentelemetry/api'
import { inheritedEmit } from '@throughline/core'
import { tracing } from '@throughline/express'
import type { Express, RequestHandler } from 'express'
import { subscribe } from 'node:diagnostics_channel'
import { once, type EventEmitter } from 'node:events'
import { createServer, IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { PassThrough } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { ask } from '../contract/server.ts'
import { app as start } from '../core/process.ts'
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
    expect(seen).toEqual([
      undefined,
      [inheritedEmit, inheritedEmit],
      [inheritedEmit, inheritedEmit],
      undefined,
    ])
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

  describe.each(['request', 'response'] as const)('an `emit` that each %s inherits is called', (which) => {
    test('of an app that has it late', async () => {
      const application = app([])
      const serving = await serve(application)
      record()
      await ask(serving, '/')
      const heard = listenOn(application[which])
      await ask(serving, '/early')
      expect(heard.splice(0)).toContain('close')
      await ask(serving, '/')
      expect(heard).toContain('close')
    })

    test.each([
      ['traced', true],
      ['untraced', false],
    ])('of another app behind the same server, %s', async (_how, isTraced) => {
      const [one, other] = [app([]), isTraced ? app([]) : quiet(create()).get('/', ok)]
      const heard = listenOn(other[which])
      const server = createServer((request, response) =>
        (request.headers['x-app'] === 'other' ? other : one)(request, response),
      )
      const serving = await serve(server)
      record()
      await ask(serving, '/')
      await ask(serving, '/', { headers: { 'x-app': 'other' } })
      expect(heard).toContain('close')
    })

    test('of an app that is mounted before the tracing', async () => {
      const inner = quiet(create()).get('/early', ok)
      const heard = listenOn(inner[which])
      const serving = await serve(quiet(create()).use('/in', inner).use(tracing()).get('/', ok))
      record()
      await ask(serving, '/')
      await ask(serving, '/in/early')
      expect(heard).not.toEqual([])
    })
  })

  test('an object that inherits from a request emits by what the request inherits', async () => {
    const heard: unknown[] = []
    const application = quiet(create()).use((request, response) => {
      const heir = Object.create(request) as typeof request
      heir.on('told', (what) => heard.push(what))
      heir.emit('told', 'it')
      response.send('ok')
    })
    const whole = quiet(create()).use('/heir', application).use(tracing()).get('/', ok)
    const serving = await serve(whole)
    record()
    await ask(serving, '/')
    expect((await ask(serving, '/heir')).status).toBe(200)
    expect(heard).toEqual(['it'])
  })

  test.each([
    ['that nobody has accepted', () => new Socket()],
    ['that is none', () => undefined],
    ['that only says whose it is', () => ({ server: 'lambda' })],
  ])('a request that was made up, with a socket %s, is traced', async (_which, socketOf) => {
    const application = app([])
    const recording = record()
    const request = Object.assign(new IncomingMessage(new Socket()), { method: 'GET', url: '/' })
    Object.defineProperty(request, 'socket', { value: socketOf() })
    const response = new ServerResponse(request)
    response.assignSocket(new PassThrough().resume() as unknown as Socket)
    application(request, response)
    await once(response, 'finish')
    response.emit('close')
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET /')
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

test('an `emit` that was there before the tracing hears of all that it would without it', async () => {
  const running = start(`
    import { EventEmitter, once } from 'node:events'
    import { createServer } from 'node:http'
    const { emit } = EventEmitter.prototype
    let watched = []
    let heard = []
    EventEmitter.prototype.emit = function (...args) {
      const which = watched.indexOf(this)
      if (which !== -1) heard.push(['request', 'response'][which] + ' ' + String(args[0]))
      return Reflect.apply(emit, this, args)
    }
    const { traceRequest } = await import('@throughline/core')
    const server = createServer((request, response) => {
      watched = [request, response]
      const answer = () => response.end('ok')
      if (request.url === '/traced') traceRequest(request, response, answer)
      else answer()
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    for (const path of ['/', '/traced']) {
      heard = []
      await (await fetch('http://127.0.0.1:' + server.address().port + path)).text()
      if (!heard.includes('response close')) await once(watched[1], 'close')
      console.log(heard.join(', '))
    }
    server.close()
  `)
  const { stdout, stderr } = await running.ended
  const [untraced, traced] = stdout.split('\n')
  expect(stderr).not.toContain('Error')
  // Nobody listens to it. Up to Node 24 there are more of that kind.
  expect(untraced).toContain('response prefinish')
  expect(traced).toBe(untraced)
})

/** What is emitted by all that inherit from this. */
function listenOn(prototype: EventEmitter): unknown[] {
  const heard: unknown[] = []
  const { emit } = prototype
  prototype.emit = function (...args) {
    heard.push(args[0])
    return Reflect.apply(emit, this, args)
  }
  return heard
}

function seal(arrival: unknown): void {
  const { request } = arrival as { request: IncomingMessage }
  if (request.url !== '/sealed') return
  const { emit } = request
  const refuse = () => {
    throw new Error('not for you')
  }
  const sealed = Object.create(IncomingMessage.prototype, {
    emit: { get: () => emit, set: refuse },
  }) as object
  Object.setPrototypeOf(request, sealed)
}
