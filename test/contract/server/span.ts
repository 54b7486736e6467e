import { SpanKind, TraceFlags } from '@opentelemetry/api'
import { once, type EventEmitter } from 'node:events'
import { readFileSync } from 'node:fs'
import { Agent, type IncomingMessage, type Server } from 'node:http'
import { get as httpsGet } from 'node:https'
import type { AddressInfo } from 'node:net'
import { PassThrough } from 'node:stream'
import { createServer as createTlsServer } from 'node:tls'
import { describe, expect, onTestFinished, test } from 'vitest'
import { record } from '../../recording.ts'
import { ok, never, serverOf, type Handler, type Contract } from './app.ts'
import { asking, ask, raw } from './client.ts'
import { theOnly, signal, turn } from './watch.ts'

/** How far a span's clock may be from the system's before it is set again. */
const MOST_DRIFT_MS = 1000

function wrapEmit(emitter: EventEmitter): void {
  const { emit } = emitter
  emitter.emit = function (...given) {
    return emit.apply(this, given)
  }
}

function shimEmit(emitter: EventEmitter): void {
  const { emit: __original } = emitter
  const emit: EventEmitter['emit'] = (...given) => __original.apply(emitter, given)
  emitter.emit = Object.assign(emit, { __original })
}

/** What the span of a request says of it. */
export function describesRequests({ name, gaps, served, spanOf }: Contract): void {
  describe(`${name}: one request is one span`, () => {
    test('named, timed and described as the conventions say, and nothing more', async () => {
      const recording = record()
      const serving = await served({ routes: { 'GET /users/:id': ok } })
      const before = Date.now()
      await ask(serving, '/users/42?page=2', { headers: { 'user-agent': 'contract/1.0' } })
      const span = await theOnly(recording)

      expect(span.name).toBe(gaps.router ? 'GET' : 'GET /users/:id')
      expect(span.kind).toBe(SpanKind.SERVER)
      expect(span.instrumentationScope.name).toMatch(/^@throughline\//)
      expect(span.instrumentationScope.version).toMatch(/^\d+\.\d+\.\d+/)
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
      expect(span.links).toEqual([])
      expect(span.attributes).toEqual({
        'http.request.method': 'GET',
        'url.path': '/users/42',
        'url.query': 'page=2',
        'url.scheme': 'http',
        'network.protocol.version': '1.1',
        'server.address': '127.0.0.1',
        'server.port': serving.port,
        'client.address': '127.0.0.1',
        'network.peer.address': '127.0.0.1',
        'network.peer.port': expect.any(Number),
        'user_agent.original': 'contract/1.0',
        'http.response.status_code': 200,
        ...(gaps.router ? {} : { 'http.route': '/users/:id' }),
      })
      const [started, ended] = [span.startTime, span.endTime].map(([s, ns]) => s * 1000 + ns / 1e6) as [
        number,
        number,
      ]
      // What time servers adjust by and by, a span's clock leaves out.
      expect(started).toBeGreaterThanOrEqual(before - MOST_DRIFT_MS)
      expect(ended).toBeGreaterThan(started)
      expect(ended).toBeLessThanOrEqual(Date.now() + MOST_DRIFT_MS)
    })

    test('a root where nothing comes in, with the random flag', async () => {
      const span = await spanOf(ok)
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceFlags).toBe(TraceFlags.SAMPLED | 0x02)
    })

    test('also for the second on the same connection', async () => {
      const recording = record()
      const serving = await served(ok)
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      onTestFinished(() => agent.destroy())
      await ask(serving, '/', { agent })
      await ask(serving, '/', { agent })
      const [first, second] = await recording.all(2)
      expect(second?.attributes['network.peer.port']).toBe(first?.attributes['network.peer.port'])
      expect(second?.parentSpanContext).toBeUndefined()
      expect(second?.spanContext().traceId).not.toBe(first?.spanContext().traceId)
    })

    test('also for each of those that a client sends without waiting for answers', async () => {
      const recording = record()
      const serving = await served(ok)
      const one = 'GET / HTTP/1.1\r\nHost: a\r\n'
      await raw(serving, `${one}\r\n${one}Connection: close\r\n\r\n`)
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([200, 200])
    })

    test('also when tracing is mounted twice', async () => {
      const recording = record()
      const span = await (async () => {
        await ask(await served(ok, { attributes: () => ({ times: 1 }) }, 2), '/')
        return theOnly(recording)
      })()
      expect(span.attributes['times']).toBe(1)
    })

    // The first that hides both changes what is known of all that come later: what tells of what it wraps comes before it.
    describe.each<[string, (emitter: EventEmitter) => void]>([
      ["shimmer's, as cls-hooked does,", shimEmit],
      ['one of its own', wrapEmit],
    ])('though the app puts %s in the place of `emit`', (_, wrap) => {
      test.each(['both', 'request', 'response'] as const)('of its %s', async (which) => {
        const recording = record()
        const handler: Handler = ({ request, response }) => {
          if (which !== 'response') wrap(request)
          if (which !== 'request') wrap(response)
          throw new RangeError('broken')
        }
        const serving = await served({ routes: { 'GET /users/:id': handler } })
        // Of the first one whose `emit` are both hidden nothing is known.
        const count = which === 'both' && wrap === wrapEmit ? 2 : 1
        for (let asked = 0; asked < count; asked += 1) await ask(serving, '/users/7')
        const span = (await recording.all(count)).at(-1)
        expect(span?.name).toBe(gaps.router ? 'GET' : 'GET /users/:id')
        expect(span?.attributes['error.type']).toBe('RangeError')
        expect(span?.events).toMatchObject([{ name: 'exception' }])
      })
    })

    test('of HTTP/1.0, without a host', async () => {
      const recording = record()
      await raw(await served(ok), 'GET / HTTP/1.0\r\n\r\n')
      const span = await theOnly(recording)
      expect(span.attributes['network.protocol.version']).toBe('1.0')
      expect(span.attributes).not.toHaveProperty('server.address')
    })
  })

  describe(`${name}: the route`, () => {
    test('is there for a client that went away before the answer', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served({
        routes: { 'GET /slow/:id': (exchange) => (arrived.give(), never(exchange)) },
      })
      const client = asking(serving, '/slow/1')
      await arrived.given
      client.destroy()
      const span = await theOnly(recording)
      expect(span.name).toBe(gaps.router ? 'GET' : 'GET /slow/:id')
    })
  })

  describe(`${name}: the status`, () => {
    const bug = new TypeError('no such thing')
    test.each<[string, Handler]>([
      [
        'throws',
        () => {
          throw bug
        },
      ],
      ['rejects', () => Promise.reject(bug)],
      [
        'rejects later',
        async () => {
          await turn()
          throw bug
        },
      ],
    ])('is an error when the handler %s, with the exception once', async (_title, handler) => {
      const span = await spanOf(handler)
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(span.status).toEqual({ code: 2, message: 'no such thing' })
      expect(span.attributes['error.type']).toBe('TypeError')
      expect(span.events.map((event) => event.name)).toEqual(['exception'])
      expect(span.events[0]?.attributes).toMatchObject({
        'exception.type': 'TypeError',
        'exception.message': 'no such thing',
        'exception.stacktrace': bug.stack,
      })
    })

    test('is an error when the error handler of the app answers 503 for the one that was thrown', async () => {
      const span = await spanOf({
        routes: { 'GET /': () => Promise.reject(bug) },
        onError: (_error, { answer }) => answer(503, 'sorry'),
      })
      expect(span.attributes['http.response.status_code']).toBe(503)
      expect(span.status.code).toBe(2)
      expect(span.attributes['error.type']).toBe(gaps.errorHandlers ? '503' : 'TypeError')
      expect(span.events).toHaveLength(gaps.errorHandlers ? 0 : 1)
    })

    test('is none when the error handler of the app recovers', async () => {
      const span = await spanOf({
        routes: { 'GET /': () => Promise.reject(bug) },
        onError: (_error, { answer }) => answer(200, 'recovered'),
      })
      expect(span.attributes['http.response.status_code']).toBe(200)
      expect(span.status).toEqual({ code: 0 })
      expect(span.attributes).not.toHaveProperty('error.type')
      expect(span.events).toEqual([])
    })

    test('is none when the error that was thrown is the client’s', async () => {
      const span = await spanOf(() => {
        throw Object.assign(new Error('no such user'), { status: 404, statusCode: 404, expose: true })
      })
      expect(span.attributes['http.response.status_code']).toBe(404)
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
    })

    test('is an error when the error handler of the app fails itself', async () => {
      const span = await spanOf({
        routes: { 'GET /': () => Promise.reject(bug) },
        onError: () => {
          throw new RangeError('the handler too')
        },
      })
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(span.status.code).toBe(2)
      expect(span.attributes['error.type']).toMatch(/^(TypeError|RangeError)$/)
      expect(span.events.map((event) => event.name)).toEqual(['exception'])
    })

    test('is the one that was sent, of an answer that is not complete, when its body breaks in the middle', async () => {
      const recording = record()
      const body = new PassThrough().on('error', () => {})
      const serving = await served(({ stream }) => stream(body))
      const asked = asking(serving, '/')
      body.write('half')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      response.on('error', () => {})
      await once(response, 'data')
      body.destroy(bug)
      // Some frameworks cut the connection then, others leave that to the client.
      await turn()
      asked.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['http.response.status_code']).toBe(200)
      expect(span.status.code).toBe(2)
      expect(span.attributes['throughline.incomplete']).toBe(true)
      expect(span.attributes['error.type']).toMatch(/^(TypeError|aborted)$/)
      expect(span.events.length).toBe(span.attributes['error.type'] === 'aborted' ? 0 : 1)
    })
  })

  describe(`${name}: what a sampler knows`, () => {
    test('is all that the conventions want it to know, and it decides by that', async () => {
      const asked: unknown[] = []
      const recording = record({
        sampler: {
          shouldSample(_context, _traceId, spanName, kind, attributes) {
            asked.push({ spanName, kind, attributes })
            return { decision: attributes['url.path'] === '/noise' ? 0 : 2 }
          },
          toString: () => 'by path',
        },
      })
      const serving = await served(
        { routes: { 'GET /users/:id': ok, 'GET /noise': ok } },
        { capture: { requestHeaders: ['x-id'] } },
      )
      const headers = { host: 'a.com:8443', 'user-agent': 'contract/1.0', 'x-id': '7' }
      await ask(serving, '/noise', { headers })
      await ask(serving, '/users/1?a=1', { headers })
      const span = await theOnly(recording)
      expect(span.attributes['url.path']).toBe('/users/1')
      expect(asked).toHaveLength(2)
      expect(asked[1]).toMatchObject({
        spanName: gaps.routeAtStart ? 'GET' : 'GET /users/:id',
        kind: SpanKind.SERVER,
        attributes: {
          ...(gaps.routeAtStart ? {} : { 'http.route': '/users/:id' }),
          'http.request.method': 'GET',
          'url.path': '/users/1',
          'url.query': 'a=1',
          'url.scheme': 'http',
          'server.address': 'a.com',
          'server.port': 8443,
          'client.address': '127.0.0.1',
          'user_agent.original': 'contract/1.0',
          'http.request.header.x-id': ['7'],
        },
      })
    })
  })

  describe(`${name}: a connection that is encrypted`, () => {
    test('makes the scheme https', async () => {
      const recording = record()
      let server: Server | undefined
      const serving = await served(({ request, answer }) => {
        server = serverOf(request)
        answer(200)
      })
      await ask(serving, '/')
      const pem = (file: string) =>
        readFileSync(new URL(`../../core/certificates/${file}.pem`, import.meta.url))
      // What a server of node:https does with a connection that has shaken hands.
      const door = createTlsServer({ cert: pem('app'), key: pem('app.key') }, (socket) =>
        server?.emit('connection', socket),
      )
      door.listen(0, '127.0.0.1')
      await once(door, 'listening')
      onTestFinished(() => void door.close())
      const { port } = door.address() as AddressInfo
      const asked = httpsGet({ host: '127.0.0.1', port, rejectUnauthorized: false, agent: false })
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'close')
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['url.scheme'])).toEqual(['http', 'https'])
    })
  })
}
