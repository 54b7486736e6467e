import { context, propagation, trace } from '@opentelemetry/api'
import type { ReadableSpan } from '@throughline/core'
import { tracing } from '@throughline/express'
import type { ErrorRequestHandler, Express, RequestHandler } from 'express'
import { describe, expect, test } from 'vitest'
import { ask, type Asking } from '../contract/server.ts'
import { record } from '../recording.ts'
import { fail, ok, pass, quiet, serve, stackOf, traced, versions, wrapped } from './app.ts'

describe.each(versions)('%s: middlewareSpans', (_name, create) => {
  test('are off: one request is one span, whatever it passes', async () => {
    const recording = record()
    const application = traced(create).use(pass, create.json()).get('/x', pass, ok)
    await ask(await serve(application), '/x')
    await recording.all(1)
  })

  test('are one for each middleware, and one for each handler of the route; none for mounts', async () => {
    const router = create.Router().use(function inRouter(_request, _response, next) {
      next()
    })
    router.get(
      '/users/:id',
      function load(_request, _response, next) {
        next()
      },
      ok,
    )
    const application = traced(create, { middlewareSpans: true })
    application.use(create.json()).use('/unasked', pass)
    application.use((_request, _response, next) => next())
    application.use('/orgs/:org', router)
    const { server, layers } = await spansOf(application, '/orgs/1/users/2', 6)
    expect(layers.map(({ name, attributes }) => [name, attributes])).toEqual([
      ['middleware jsonParser', { 'code.function.name': 'jsonParser' }],
      ['middleware <anonymous>', {}],
      ['middleware inRouter', { 'code.function.name': 'inRouter' }],
      ['handler /orgs/:org/users/:id', { 'code.function.name': 'load' }],
      ['handler /orgs/:org/users/:id', { 'code.function.name': 'ok' }],
    ])
    for (const layer of layers) {
      expect(layer.parentSpanContext?.spanId).toBe(server.spanContext().spanId)
      expect(layer.kind).toBe(0)
      expect(layer.instrumentationScope.name).toBe('@throughline/express')
      expect(layer.status).toEqual({ code: 0 })
      expect(layer.attributes).not.toHaveProperty('throughline.incomplete')
    }
  })

  test('are there if the first of two tracing() in a route asks for them', async () => {
    const application = quiet(create())
      .get('/without', tracing(), tracing({ middlewareSpans: true }), ok)
      .get('/with', tracing({ middlewareSpans: true }), tracing(), ok)
    const recording = record()
    const serving = await serve(application)
    for (const path of ['/without', '/without', '/with']) await ask(serving, path)
    await recording.span(({ attributes }) => attributes['url.path'] === '/with')
    expect(recording.spans.map(({ name }) => name)).toEqual([
      'GET',
      'GET /without',
      'handler /with',
      'GET /with',
    ])
  })

  test('leave out what Express puts in a mounted app, the app itself, and tracing that is mounted twice', async () => {
    const inner = create().use(tracing()).get('/x', ok)
    const application = traced(create, { middlewareSpans: true }).use('/in', inner)
    application.use('/via', create.Router().use(inner))
    const recording = record()
    const serving = await serve(application)
    await ask(serving, '/in/x')
    await ask(serving, '/in/x')
    await ask(serving, '/via/x')
    const spans = await recording.all(5)
    expect(spans.map(({ name }) => name)).toEqual([
      // Of a mounted app Express tells nothing before its first request.
      'GET /in/x',
      'handler /in/x',
      'GET /in/x',
      'handler /via/x',
      'GET /via/x',
    ])
  })

  test('leave that out as well where something has put functions of its own in the place of the app’s', async () => {
    const inner = create().get('/x', ok)
    const application = traced(create, { middlewareSpans: true }).use('/in', inner)
    wrapped(stackOf(application))
    wrapped(stackOf(inner))
    const recording = record()
    const serving = await serve(application)
    await ask(serving, '/in/x')
    await ask(serving, '/in/x')
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual(['GET /in/x', 'handler /in/x', 'GET /in/x'])
  })

  test('last until the middleware hands the request on, not until it returns', async () => {
    const times: number[] = []
    const application = traced(create, { middlewareSpans: true })
    application.use(function slow(_request, _response, next) {
      const before = Date.now()
      setTimeout(() => {
        times.push(Date.now() - before)
        next()
      }, 50)
    })
    application.get('/x', ok)
    const { layers } = await spansOf(application, '/x', 3)
    const [slow, handler] = layers
    expect(slow?.name).toBe('middleware slow')
    // The clocks are read in whole milliseconds.
    expect(milliseconds(slow)).toBeGreaterThanOrEqual((times[0] ?? Infinity) - 2)
    expect(at(handler?.startTime)).toBeGreaterThanOrEqual(at(slow?.endTime))
  })

  test('end when the middleware hands on by what Express keeps in req.next', async () => {
    const application = traced(create, { middlewareSpans: true })
    application.use(function negotiate(_request, response) {
      response.format({ html: () => response.send('<p>') })
    })
    const refuse: ErrorRequestHandler = (error, _request, response, _next) => {
      response.status((error as { status: number }).status).end()
    }
    const { server, layers } = await spansOf(application.use(refuse), '/', 3, {
      headers: { accept: 'text/plain' },
    })
    expect(layers.map(({ name }) => name)).toEqual(['middleware negotiate', 'middleware refuse'])
    const [handedOn, refused] = layers as [ReadableSpan, ReadableSpan]
    expect(at(handedOn.endTime)).toBeLessThanOrEqual(at(refused.startTime))
    expect(server.attributes['http.response.status_code']).toBe(406)
  })

  test('last until the answer has left where a middleware or a handler gives it', async () => {
    const recording = record()
    const ended: number[] = []
    const application = traced(create, { middlewareSpans: true })
    application.get('/x', function answer(_request, response) {
      response.on('finish', () => ended.push(recording.spans.length))
      response.write('a')
      setImmediate(() => response.end('b'))
    })
    await ask(await serve(application), '/x')
    const [handler, server] = await recording.all(2)
    expect(ended).toEqual([0])
    expect(handler?.name).toBe('handler /x')
    expect(handler?.status).toEqual({ code: 0 })
    expect(at(handler?.endTime)).toBeLessThanOrEqual(at(server?.endTime))
  })

  test('end when the client leaves one that never answers', async () => {
    const recording = record()
    const application = traced(create, { middlewareSpans: true })
    application.use(function stuck(request) {
      request.socket.destroy()
    })
    const { port } = await serve(application)
    await fetch(`http://127.0.0.1:${port}/x`).catch(() => {})
    const [stuck, server] = await recording.all(2)
    expect(stuck?.name).toBe('middleware stuck')
    expect(server?.attributes['error.type']).toBe('aborted')
  })

  test('hold the spans of the app in that middleware, and no others', async () => {
    const inside = (name: string): RequestHandler =>
      Object.defineProperty(
        (async (_request, response, next) => {
          mark(`${name} before`)
          await Promise.resolve()
          mark(`${name} later`)
          if (name === 'answer') response.send('ok')
          else next()
          mark(`${name} after`)
        }) as RequestHandler,
        'name',
        { value: name },
      )
    const application = traced(create, { middlewareSpans: true })
    application.use(inside('first'), inside('second')).get('/x', inside('answer'))
    const { all, server } = await spansOf(application, '/x', 13)
    const parentOf = (name: string) => {
      const { parentSpanContext } = all.find((each) => each.name === name) as ReadableSpan
      return all.find((each) => each.spanContext().spanId === parentSpanContext?.spanId)?.name
    }
    for (const name of ['first', 'second']) {
      for (const moment of ['before', 'later', 'after'])
        expect(parentOf(`${name} ${moment}`)).toBe(`middleware ${name}`)
      expect(parentOf(`middleware ${name}`)).toBe(server.name)
    }
    expect(parentOf('answer later')).toBe('handler /x')
  })

  test('let through what a middleware puts into the context: baggage, and a span of its own', async () => {
    const seen: unknown[] = []
    const application = traced(create, { middlewareSpans: true })
    application.use((_request, _response, next) => {
      const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
      context.with(propagation.setBaggage(context.active(), baggage), next)
    })
    application.use((_request, _response, next) => {
      trace.getTracer('app').startActiveSpan('own', (own) => {
        next()
        own.end()
      })
    })
    application.get('/x', (_request, response) => {
      seen.push(propagation.getActiveBaggage()?.getEntry('tenant')?.value)
      response.send('ok')
    })
    const { all } = await spansOf(application, '/x', 5)
    expect(seen).toEqual(['acme'])
    const own = all.find(({ name }) => name === 'own')
    const handler = all.find(({ name }) => name === 'handler /x')
    expect(handler?.parentSpanContext?.spanId).toBe(own?.spanContext().spanId)
  })

  test('of what fails are errors; the exception is on the SERVER span alone, once', async () => {
    const application = traced(create, { middlewareSpans: true }).get('/x', pass, fail)
    application.use(function log(error, _request, _response, next) {
      next(error)
    } as ErrorRequestHandler)
    application.use(function answer(_error, _request, response, _next) {
      response.sendStatus(503)
    } as ErrorRequestHandler)
    const { server, layers } = await spansOf(application, '/x', 5)
    expect(
      layers.map(({ name, status, attributes, events }) => [
        name,
        status.code,
        attributes['error.type'],
        events,
      ]),
    ).toEqual([
      ['handler /x', 0, undefined, []],
      ['handler /x', 2, 'RangeError', []],
      ['middleware log', 0, undefined, []],
      ['middleware answer', 0, undefined, []],
    ])
    expect(server.events.map(({ name }) => name)).toEqual(['exception'])
    expect(server.attributes['error.type']).toBe('RangeError')
  })

  test.each(['route', 'router'])('are no errors for next(%j)', async (where) => {
    const router = create.Router().get('/x', (_request, _response, next) => next(where))
    const application = traced(create, { middlewareSpans: true }).use(router).get('/x', ok)
    const { layers } = await spansOf(application, '/x', 3)
    expect(layers.map(({ status }) => status.code)).toEqual([0, 0])
  })

  test('slowerThan makes only those that took as long', async () => {
    const application = traced(create, { middlewareSpans: { slowerThan: 500 } })
    application.use(pass)
    application.use(function slow(_request, _response, next) {
      setTimeout(next, 510)
    })
    application.get('/x', ok)
    const { layers } = await spansOf(application, '/x', 2)
    expect(layers.map(({ name }) => name)).toEqual(['middleware slow'])
    expect(milliseconds(layers[0])).toBeGreaterThanOrEqual(500)
  })

  test('slowerThan an hour makes none', async () => {
    const recording = record()
    const application = traced(create, { middlewareSpans: { slowerThan: 3_600_000 } })
    await ask(await serve(application.use(pass).get('/x', ok)), '/x')
    await recording.all(1)
  })

  test('are none for a request that is not sampled, or ignored, or of another app', async () => {
    const recording = record({ sampling: 0 })
    const application = traced(create, { middlewareSpans: true, ignore: '/health' }).use(pass)
    const serving = await serve(application.get('/x', ok).get('/health', ok))
    await ask(serving, '/x')
    await recording.stop()
    const second = record()
    await ask(serving, '/health')
    const other = traced(create).use(application)
    await ask(await serve(other), '/x')
    await second.all(1)
    expect(recording.spans).toEqual([])
  })

  test('leave this, arguments and what is returned as they were', async () => {
    const seen: unknown[] = []
    const application = traced(create, { middlewareSpans: true })
    application.use(function three(this: unknown, request, response, next) {
      seen.push(this, arguments.length, request.app === application, response.app === application)
      next()
    })
    application.get('/x', fail)
    application.use(function four(this: unknown, error, _request, response, _next) {
      seen.push(this, arguments.length, String(error))
      response.send('ok')
    } as ErrorRequestHandler)
    await spansOf(application, '/x', 4)
    expect(seen).toEqual([undefined, 3, true, true, undefined, 4, 'RangeError: it broke'])
  })
})

test('a wrong shape is a TypeError that says what was expected', () => {
  for (const middlewareSpans of ['yes', 7, { slowerThan: '10' }, { slowerThan: -1 }, {}, null]) {
    expect(() => tracing({ middlewareSpans } as never)).toThrow(
      /expected middlewareSpans to be true, false or .* example: \{ middlewareSpans: /,
    )
  }
})

/** The spans of one request, in order of their starts: the SERVER span, and those of the layers. */
async function spansOf(application: Express, path: string, count: number, asking: Asking = {}) {
  const recording = record()
  await ask(await serve(application), path, asking)
  const all = await recording.all(count)
  const server = all.find(({ kind }) => kind === 1)
  if (server === undefined) throw new Error('there is no SERVER span')
  const layers = all.filter(
    (each) => each !== server && each.instrumentationScope === server.instrumentationScope,
  )
  return { all, server, layers: layers.toSorted((one, other) => at(one.startTime) - at(other.startTime)) }
}

function mark(name: string): void {
  trace.getTracer('app').startSpan(name).end()
}

function at([seconds, nanoseconds]: readonly [number, number] = [Number.NaN, 0]): number {
  return seconds * 1000 + nanoseconds / 1e6
}

function milliseconds(span: ReadableSpan | undefined): number {
  return at(span?.endTime) - at(span?.startTime)
}
