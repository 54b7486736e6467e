import { trace } from '@opentelemetry/api'
import type { FastifyInstance } from 'fastify'
import { once } from 'node:events'
import { request as asked, type IncomingMessage } from 'node:http'
import { PassThrough, Readable } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { exceptions, record } from '../recording.ts'
import { ask, ok, origin, signal, trace1, traced, versions } from './app.ts'

class Unavailable extends Error {
  override readonly name = 'Unavailable'
}

describe.each(versions)('%s: an error', (_name, create) => {
  const bug = new Unavailable('not now')

  test.each<[string, number, (app: FastifyInstance) => unknown]>([
    ['sent with a status', 503, (app) => app.get('/', (_request, reply) => reply.code(503).send(bug))],
    ['of the onSend hook', 500, (app) => app.addHook('onSend', async () => Promise.reject(bug)).get('/', ok)],
    [
      'of the preSerialization hook',
      500,
      (app) =>
        app.addHook('preSerialization', async () => Promise.reject(bug)).get('/', async () => ({ a: 1 })),
    ],
    [
      'of the preParsing hook',
      500,
      (app) => app.addHook('preParsing', async () => Promise.reject(bug)).get('/', ok),
    ],
    [
      'that a route’s own error handler answers with a 5xx',
      502,
      (app) =>
        app.get(
          '/',
          { errorHandler: (_error, _request, reply) => void reply.code(502).send('sorry') },
          async () => Promise.reject(bug),
        ),
    ],
    [
      'of a stream before its first byte',
      500,
      (app) =>
        app.get('/', (_request, reply) =>
          reply.send(
            new Readable({
              read() {
                this.destroy(bug)
              },
            }),
          ),
        ),
    ],
    [
      'that the handler of a parent scope answers',
      503,
      (app) => {
        app.setErrorHandler((_error, _request, reply) => reply.code(503).send('sorry'))
        app.register(async (scope) => {
          scope.setErrorHandler((error) => {
            throw error
          })
          scope.get('/', async () => Promise.reject(bug))
        })
      },
    ],
  ])('%s is recorded once, with its type, message and stack', async (_title, status, add) => {
    const app = traced(create)
    await app.after()
    add(app)
    const span = await trace1(app, '/')
    expect(span.attributes).toMatchObject({
      'http.response.status_code': status,
      'error.type': 'Unavailable',
    })
    expect(span.status).toEqual({ code: 2, message: 'not now' })
    expect(span.events).toHaveLength(1)
    expect(span.events[0]?.attributes).toEqual({
      'exception.type': 'Unavailable',
      'exception.message': 'not now',
      'exception.stacktrace': bug.stack,
    })
  })

  test('of a body that is too large, of a wrong type or that is no JSON is the client’s', async () => {
    const app = traced(create, {}, { bodyLimit: 10 })
    app.post('/', ok)
    const recording = record()
    const json = { 'content-type': 'application/json' }
    await ask(app, '/', { method: 'POST', body: '"0123456789"', headers: json })
    await ask(app, '/', { method: 'POST', body: 'x', headers: { 'content-type': 'what/ever' } })
    await ask(app, '/', { method: 'POST', body: '{', headers: json })
    const spans = await recording.all(3)
    expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([413, 415, 400])
    expect(spans.map(({ status, events }) => status.code + events.length)).toEqual([0, 0, 0])
  })

  test('of a request that fails twice is the first one', async () => {
    const app = traced(create)
    app.setErrorHandler(() => {
      throw new TypeError('of the error handler')
    })
    app.get('/', async () => Promise.reject(bug))
    const span = await trace1(app, '/')
    expect(exceptions(span)).toEqual(['not now'])
    expect(span.attributes['error.type']).toBe('Unavailable')
  })

  test('of a stream after its first bytes ends the span as it ends the answer: cut off, with the status that was sent', async () => {
    const app = traced(create)
    const body = new PassThrough()
    app.get('/', (_request, reply) => reply.send(body))
    const recording = record()
    const asking = asked(await origin(app)).end()
    body.write('first')
    const [response] = (await once(asking, 'response')) as [IncomingMessage]
    response.on('error', () => {})
    await once(response, 'data')
    body.destroy(bug)
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /', status: { code: 2 } })
    expect(span?.attributes).toMatchObject({
      'http.response.status_code': 200,
      'throughline.incomplete': true,
    })
  })

  test('thrown after the handler has answered changes nothing', async () => {
    const app = traced(create)
    app.get('/', async (_request, reply) => {
      reply.send('ok')
      await once(reply.raw, 'finish')
      throw bug
    })
    const span = await trace1(app, '/')
    expect(span.status.code).toBe(0)
    expect(span.events).toEqual([])
  })

  test('of an onResponse hook comes after the answer, and is not the request’s', async () => {
    const app = traced(create)
    app.addHook('onResponse', async () => Promise.reject(bug))
    app.get('/', ok)
    const span = await trace1(app, '/')
    expect(span.status.code).toBe(0)
  })

  test('that is no Error is recorded as what it is', async () => {
    const app = traced(create)
    app.setErrorHandler((_error, _request, reply) => reply.code(500).send('sorry'))
    // oxlint-disable-next-line prefer-promise-reject-errors -- apps do
    app.get('/', async () => Promise.reject('a text'))
    const span = await trace1(app, '/')
    expect(span.status.code).toBe(2)
    expect(exceptions(span)).toEqual(['a text'])
  })

  test('in a request that the client leaves: the hook for it runs in the request’s context, and the span is an abort', async () => {
    const app = traced(create)
    // Where there is no such hook, Fastify fails outside of the test.
    expect(hasAbortHook(app.version)).toBe(true)
    const arrived = signal()
    const seen: unknown[] = []
    const aborted = signal()
    app.addHook('onRequestAbort', async (_request) => {
      seen.push(trace.getActiveSpan()?.spanContext().spanId)
      aborted.give()
    })
    app.get('/slow/:id', () => (arrived.give(), new Promise(() => {})))
    const recording = record()
    const client = asked(`${await origin(app)}/slow/1`)
      .on('error', () => {})
      .end()
    await arrived.given
    client.destroy()
    const [span] = await recording.all(1)
    await aborted.given
    expect(span).toMatchObject({ name: 'GET /slow/:id', attributes: { 'error.type': 'aborted' } })
    expect(seen).toEqual([span?.spanContext().spanId])
  })

  test('by the timeout of the connection is an abort; the hook for it runs', async () => {
    const app = traced(create, {}, { connectionTimeout: 50 })
    const timedOut = signal()
    app.addHook('onTimeout', async () => timedOut.give())
    app.get('/slow/:id', () => new Promise(() => {}))
    const recording = record()
    asked(`${await origin(app)}/slow/1`)
      .on('error', () => {})
      .end()
    await timedOut.given
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /slow/:id', attributes: { 'error.type': 'aborted' } })
  })
})

describe('a handler that takes too long for Fastify 5’s handlerTimeout', () => {
  const [[, create]] = versions as [(typeof versions)[0]]

  /** Without it the handler never answers, and the test would end no sooner. */
  function withHandlerTimeout() {
    const app = traced(create)
    expect(app.initialConfig).toHaveProperty('handlerTimeout')
    return app
  }

  test('is a 503 in error, with the code of the timeout', async () => {
    const app = withHandlerTimeout()
    app.get('/slow', { handlerTimeout: 20 }, () => new Promise(() => {}))
    const span = await trace1(app, '/slow')
    expect(span.attributes).toMatchObject({ 'http.response.status_code': 503, 'http.route': '/slow' })
    expect(span.attributes['error.type']).toMatch(/FST_ERR_HANDLER_TIMEOUT|FastifyError/)
    expect(span.events).toHaveLength(1)
  })

  test('is cut off when its answer has begun', async () => {
    const app = withHandlerTimeout()
    app.get('/slow', { handlerTimeout: 50 }, (_request, reply) => {
      const body = new PassThrough()
      body.write('first')
      reply.send(body)
    })
    const recording = record()
    const asking = asked(`${await origin(app)}/slow`).end()
    const [response] = (await once(asking, 'response')) as [IncomingMessage]
    response.on('error', () => {}).resume()
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ status: { code: 2 }, attributes: { 'throughline.incomplete': true } })
  })

  test('the answer that began by hand is cut off when the handler throws', async () => {
    const app = withHandlerTimeout()
    app.get('/', async (_request, reply) => {
      reply.raw.writeHead(200).write('first')
      throw new Unavailable('not now')
    })
    const recording = record()
    const asking = asked(await origin(app)).end()
    const [response] = (await once(asking, 'response')) as [IncomingMessage]
    response.on('error', () => {}).resume()
    const [span] = await recording.all(1)
    expect(span?.attributes).toMatchObject({ 'error.type': 'Unavailable', 'throughline.incomplete': true })
    expect(exceptions(span)).toEqual(['not now'])
  })
})

/** From 4.23 on. */
function hasAbortHook(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major > 4 || minor >= 23
}
