import { context, createContextKey, propagation, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { AsyncResource } from 'node:async_hooks'
import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pipeline, Transform } from 'node:stream'
import { fileURLToPath } from 'node:url'
import compression from 'compression'
import type { Application, ErrorRequestHandler, RequestHandler } from 'express'
import session, { MemoryStore } from 'express-session'
import multer from 'multer'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { ask, type Asking } from '../contract/server.ts'
import { record } from '../recording.ts'
import { serve, traced, versions } from './app.ts'

const FORM = [
  '--edge',
  'content-disposition: form-data; name="file"; filename="a.txt"',
  'content-type: text/plain',
  '',
  'hello',
  '--edge--',
  '',
].join('\r\n')

const post = (type: string, body: string): Asking => ({
  method: 'POST',
  headers: { 'content-type': type, 'accept-encoding': 'gzip' },
  body,
})

describe.each(versions)('%s: the current span is the request’s', (_name, create) => {
  test.each<[string, () => RequestHandler, Asking]>([
    ['express.json', () => create.json(), post('application/json', '{"a":1}')],
    [
      'express.urlencoded',
      () => create.urlencoded({ extended: true }),
      post('application/x-www-form-urlencoded', 'a=1'),
    ],
    ['express.text', () => create.text(), post('text/plain', 'hello')],
    ['multer', () => multer().single('file'), post('multipart/form-data; boundary=edge', FORM)],
    ['compression', () => compression({ threshold: 0 }), post('text/plain', 'hello')],
    ['express-session', () => sessions(), post('text/plain', 'hello')],
  ])('behind %s, for many at the same time', async (_title, make, asked) => {
    const recording = record()
    const seen = new Map<string, unknown>()
    const application = traced(create).use(make())
    application.post('/x/:id', async (request, response) => {
      await Promise.resolve()
      seen.set(request.params.id, trace.getActiveSpan()?.spanContext().spanId)
      response.send('ok'.repeat(100))
    })
    const serving = await serve(application)
    await Promise.all(Array.from({ length: 20 }, (_, i) => ask(serving, `/x/${i}`, asked)))
    for (const span of await recording.all(20)) {
      const id = String(span.attributes['url.path']).slice('/x/'.length)
      expect(seen.get(id)).toBe(span.spanContext().spanId)
    }
  })

  test('in the callback of sendFile, in what is piped, and in listeners of the raw request and response', async () => {
    const recording = record()
    const seen: Record<string, unknown> = {}
    const note = (where: string) => {
      seen[where] = trace.getActiveSpan()?.spanContext().spanId
    }
    const application = traced(create)
    application.use((request, response, next) => {
      request.on('data', () => note('data')).on('end', () => note('end'))
      response.on('finish', () => note('finish')).on('close', () => note('close'))
      next()
    })
    application.post('/file', (request, response) => {
      const upper = new Transform({
        transform(chunk, _encoding, done) {
          note('piped')
          done(undefined, chunk)
        },
      })
      pipeline(request, upper, (error) => {
        expect(error).toBeUndefined()
        note('pipeline')
        response.sendFile(fileURLToPath(import.meta.url), () => note('sendFile'))
      })
      upper.resume()
    })
    const closed = ask(await serve(application), '/file', post('text/plain', 'hello'))
    await closed
    const [span] = await recording.all(1)
    const own = span?.spanContext().spanId
    const { pipeline: ended, piped, sendFile, ...listeners } = seen
    expect(listeners).toEqual({ data: own, end: own, finish: own, close: own })
    expect([piped, sendFile, ended]).toEqual([own, own, own])
  })

  test('in what is proxied, both ways', async () => {
    const recording = record()
    const upstream = createServer((_request, response) => void response.end('from there'))
    await once(upstream.listen(0, '127.0.0.1'), 'listening')
    onTestFinished(() => void upstream.close())
    const { port } = upstream.address() as AddressInfo
    const seen: unknown[] = []
    const application = traced(create).use('/proxy', (request, response) => {
      const { method } = request
      const onward = httpRequest(
        { port, host: '127.0.0.1', path: request.url, method, agent: false },
        (answer) => {
          seen.push(trace.getActiveSpan()?.spanContext().spanId)
          answer.pipe(response)
        },
      )
      request.pipe(onward)
    })
    const { body } = await ask(await serve(application), '/proxy/x', post('text/plain', 'hello'))
    const [span] = await recording.all(1)
    expect(body).toBe('from there')
    expect(seen).toEqual([span?.spanContext().spanId])
    expect(span?.name).toBe('POST')
  })

  test('and baggage that one middleware sets is seen in the next', async () => {
    record()
    const application = traced(create)
    application.use((request, _response, next) => {
      const baggage = propagation.createBaggage({ tenant: { value: String(request.query['tenant']) } })
      context.with(propagation.setBaggage(context.active(), baggage), next)
    })
    application.use((_request, _response, next) => void setImmediate(next))
    application.get('/', (_request, response) => {
      response.send(propagation.getActiveBaggage()?.getEntry('tenant')?.value)
    })
    const serving = await serve(application)
    const answers = await Promise.all(['a', 'b', 'c'].map((tenant) => ask(serving, `/?tenant=${tenant}`)))
    expect(answers.map(({ body }) => body)).toEqual(['a', 'b', 'c'])
  })

  function sessions(): RequestHandler {
    return session({
      secret: 's',
      resave: true,
      saveUninitialized: true,
      store: new MemoryStore(),
    }) as RequestHandler
  }
})

describe.each(versions)('%s: a middleware that waits for what another request releases', (_name, create) => {
  /** Puts `limit` before `answer`. */
  type Mount = (application: Application, limit: RequestHandler, answer: RequestHandler) => void
  const inApp: Mount = (application, limit, answer) => application.use(limit).get('/:name', answer)

  /** Two requests, of which the first is let in by the second; what its handler sees is by its name. */
  async function queued(headers: (name: string) => Record<string, string>, mount = inApp) {
    const waiting: (() => void)[] = []
    const seen = new Map<string, unknown>()
    const application = traced(create)
    const limit: RequestHandler = (request, _response, next) => {
      if (request.path === '/before') return next()
      // A pool of one: the first is let in when the second comes, by the second's own call.
      const first = waiting.pop()
      if (first === undefined) return void waiting.push(next)
      first()
      next()
    }
    mount(application, limit, (request, response) => {
      seen.set(request.path.slice(1), trace.getActiveSpan()?.spanContext())
      response.end()
    })
    const serving = await serve(application)
    // Layers are watched from the first request on whose route is wanted.
    await ask(serving, '/before')
    const first = ask(serving, '/first', { headers: headers('first') })
    await vi.waitUntil(() => waiting.length === 1)
    await Promise.all([first, ask(serving, '/second', { headers: headers('second') })])
    return seen
  }

  test.each<[string, Mount]>([
    ['among the handlers of a route', (app, limit, answer) => app.get('/:name', limit, answer)],
    ['for all methods of a route', (app, limit, answer) => app.route('/:name').all(limit).get(answer)],
    [
      'in a router',
      (app, limit, answer) => app.use(create.Router().use(limit)).use(create.Router().get('/:name', answer)),
    ],
    [
      'where a parameter is loaded',
      (app, limit, answer) => {
        app
          .param('name', (request, response, next) => void limit(request, response, next))
          .get('/:name', answer)
      },
    ],
  ])('hands on to its own request: %s', async (_title, mount) => {
    const recording = record()
    const seen = await queued(() => ({}), mount)
    const spans = await recording.all(3)
    for (const name of ['first', 'second']) {
      const span = spans.find(({ attributes }) => attributes['url.path'] === `/${name}`)
      expect(seen.get(name)).toEqual(span?.spanContext())
    }
  })

  test.each([
    ['of different traces', () => ({})],
    ['of one trace', () => ({ traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` })],
  ])('hands on to its own request, where both are %s', async (_title, headers) => {
    const recording = record()
    const seen = await queued(headers)
    const spans = await recording.all(3)
    for (const name of ['first', 'second']) {
      const span = spans.find(({ attributes }) => attributes['url.path'] === `/${name}`)
      expect(seen.get(name)).toEqual(span?.spanContext())
    }
  })

  test('hands on to its own request, where that is not sampled and the other one is', async () => {
    record()
    const ids: Record<string, string> = { first: 'c'.repeat(32), second: 'd'.repeat(32) }
    const flags: Record<string, string> = { first: '00', second: '01' }
    const seen = await queued((name) => ({
      traceparent: `00-${ids[name]}-${'b'.repeat(16)}-${flags[name]}`,
    }))
    expect(seen.get('first')).toMatchObject({ traceId: ids['first'], traceFlags: 0 })
    expect(seen.get('second')).toMatchObject({ traceId: ids['second'], traceFlags: 1 })
  })
})

test.each(versions)(
  '%s: an error handler that waits for what another request releases hands on to its own request',
  async (_name, create) => {
    const recording = record()
    const waiting: (() => void)[] = []
    const seen = new Map<string, unknown>()
    const limit: ErrorRequestHandler = (error, _request, _response, next) => {
      const first = waiting.pop()
      if (first === undefined) return void waiting.push(() => next(error))
      first()
      next(error)
    }
    const answer: ErrorRequestHandler = (_error, request, response, _next) => {
      seen.set(request.path, trace.getActiveSpan()?.spanContext())
      response.end()
    }
    const application = traced(create).use((_request, _response, next) => next(new Error('no')))
    const serving = await serve(application.use(limit).use(answer))
    const first = ask(serving, '/first')
    await vi.waitUntil(() => waiting.length === 1)
    await Promise.all([first, ask(serving, '/second')])
    const spans = await recording.all(2)
    const own = spans.map((span) => [span.attributes['url.path'], span.spanContext()] as const)
    expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(own))
  },
)

test.each(versions)(
  '%s: so does an error handler of a request that is not sampled',
  async (_name, create) => {
    const recording = record()
    const waiting: (() => void)[] = []
    const seen: unknown[] = []
    const limit: ErrorRequestHandler = (error, { path }, _response, next) => {
      if (path === '/unsampled') return void waiting.push(() => next(error))
      waiting.pop()?.()
      next(error)
    }
    const answer: ErrorRequestHandler = (_error, { path }, response, _next) => {
      if (path === '/unsampled') seen.push(trace.getActiveSpan()?.spanContext())
      response.end()
    }
    const application = traced(create).use((_request, _response, next) => next(new Error('no')))
    const serving = await serve(application.use(limit).use(answer))
    // Layers are watched from the first request on whose route is wanted.
    await ask(serving, '/before')
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-00`
    const unsampled = ask(serving, '/unsampled', { headers: { traceparent } })
    await vi.waitUntil(() => waiting.length === 1)
    await Promise.all([unsampled, ask(serving, '/sampled')])
    expect(seen).toEqual([expect.objectContaining({ traceId: 'a'.repeat(32), traceFlags: 0 })])
    await recording.all(2)
  },
)

test.each(versions)(
  '%s: a middleware that is called back by what is older than all requests hands on to its own request',
  async (_name, create) => {
    const recording = record()
    const seen: unknown[] = []
    // As what a connection that was opened at start-up calls back.
    const connection = new AsyncResource('connection')
    const application = traced(create).use((_request, _response, next) => {
      connection.runInAsyncScope(next)
    })
    application.get('/:name', (_request, response) => {
      seen.push(trace.getActiveSpan()?.spanContext())
      response.end()
    })
    const serving = await serve(application)
    // Layers are watched from the first request on whose route is wanted.
    for (const path of ['/before', '/sampled', '/unsampled'])
      await ask(serving, path, {
        headers: {
          traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-${path === '/unsampled' ? '00' : '01'}`,
        },
      })
    const [, sampled] = await recording.all(2)
    expect(seen.slice(1)).toEqual([
      sampled?.spanContext(),
      expect.objectContaining({ traceId: 'a'.repeat(32), traceFlags: 0 }),
    ])
  },
)

test.each(versions)(
  '%s: a middleware that is called back by what was made in a span of the app’s start hands on to its own request',
  async (_name, create) => {
    const recording = record()
    const seen: unknown[] = []
    const connection = span('start', () => new AsyncResource('connection'))
    const application = traced(create).use((_request, _response, next) => {
      connection.runInAsyncScope(next)
    })
    application.get('/:name', (_request, response) => {
      seen.push(trace.getActiveSpan()?.spanContext())
      response.end()
    })
    const serving = await serve(application)
    for (const path of ['/before', '/7']) await ask(serving, path)
    const [, , request] = await recording.all(3)
    expect(seen[1]).toEqual(request?.spanContext())
  },
)

test.each(versions)(
  '%s: a context that the app has chosen to go on in is left alone',
  async (_name, create) => {
    record()
    const key = createContextKey('of the app')
    // Also one that the app has made at its start, in a span that is over.
    for (const base of [ROOT_CONTEXT, span('start', () => context.active())]) {
      const withBaggage = propagation.setBaggage(base, propagation.createBaggage({ a: { value: '1' } }))
      for (const chosen of [withBaggage, base.setValue(key, '1')]) {
        let seen: unknown
        const application = traced(create).use((_request, _response, next) => {
          setImmediate(() => context.with(chosen, next))
        })
        application.get('/', (_request, response) => {
          seen = context.active()
          response.end()
        })
        await ask(await serve(application), '/')
        expect(seen).toBe(chosen)
      }
    }
  },
)
