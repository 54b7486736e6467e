import { trace } from '@opentelemetry/api'
import { tracing } from '@throughline/fastify'
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { once } from 'node:events'
import { connect } from 'node:http2'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { PassThrough } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { serverContract, type Adapter, type Exchange, type Routes } from './contract/server.ts'
import { complaints } from './contract/server/watch.ts'
import { ask, fastify4, ok, origin, trace1, traced, versions } from './fastify/app.ts'
import { exceptions, record } from './recording.ts'

serverContract('Fastify 5', adapter(fastify))
serverContract('Fastify 4', adapter(fastify4))

describe.each(versions)('%s', (_name, create) => {
  describe('the route is the pattern that was registered', () => {
    test('with the prefixes of its scopes', async () => {
      const app = traced(create)
      app.register(
        async (api) => {
          api.register(async (orgs) => orgs.get('/:org/users/:id', ok), { prefix: '/orgs' })
        },
        { prefix: '/api' },
      )
      const span = await trace1(app, '/api/orgs/7/users/8')
      expect(span.name).toBe('GET /api/orgs/:org/users/:id')
      expect(span.attributes['http.route']).toBe('/api/orgs/:org/users/:id')
    })

    test('as Fastify writes it: wildcards, and parameters that are RegExps', async () => {
      const app = traced(create)
      app.get('/files/*', ok)
      app.get('/v:version(^\\d+$)/status', ok)
      const recording = record()
      await ask(app, '/files/a/b')
      await ask(app, '/v2/status')
      const spans = await recording.all(2)
      expect(spans.map(({ name }) => name)).toEqual(['GET /files/*', 'GET /v:version(^\\d+$)/status'])
    })

    test('for a HEAD that a GET route answers', async () => {
      const app = traced(create)
      app.get('/users/:id', ok)
      expect((await trace1(app, '/users/1', { method: 'HEAD' })).name).toBe('HEAD /users/:id')
    })

    test('and is kept when the handler answers 404', async () => {
      const app = traced(create)
      app.get('/users/:id', (_request, reply) => reply.code(404).send({ error: 'no such user' }))
      const span = await trace1(app, '/users/1')
      expect(span.name).toBe('GET /users/:id')
      expect(span.status.code).toBe(0)
    })

    test('and is kept when the handler gives the request to the handler of 404s', async () => {
      const app = traced(create)
      app.get('/*', (_request, reply) => reply.callNotFound())
      const span = await trace1(app, '/nothing')
      expect(span.name).toBe('GET /*')
      expect(span.attributes['http.response.status_code']).toBe(404)
    })

    test('and is kept when a hook turns the request away', async () => {
      const app = traced(create)
      app.addHook('preHandler', (_request, reply) => reply.code(401).send())
      app.get('/users/:id', ok)
      expect((await trace1(app, '/users/1')).name).toBe('GET /users/:id')
    })
  })

  describe('there is no route', () => {
    test.each(['/nothing', '/api/nothing'])('for a 404 at %s', async (path) => {
      const app = traced(create)
      app.register(
        async (api) => {
          api.get('/users/:id', ok)
          api.setNotFoundHandler((_request, reply) => reply.code(404).send({ nothing: 'here' }))
        },
        { prefix: '/api' },
      )
      const span = await trace1(app, path)
      expect(span.name).toBe('GET')
      expect(span.attributes).not.toHaveProperty('http.route')
      expect(span.attributes['http.response.status_code']).toBe(404)
    })
  })

  describe('wherever it is registered', () => {
    test('it sees the routes of all scopes, of those that came before it too', async () => {
      const app = create()
      app.register(async (early) => early.get('/early', ok))
      app.register(tracing)
      app.register(async (late) => late.get('/late', ok))
      app.get('/root', ok)
      const recording = record()
      for (const path of ['/early', '/late', '/root']) await ask(app, path)
      const spans = await recording.all(3)
      expect(spans.map(({ name }) => name)).toEqual(['GET /early', 'GET /late', 'GET /root'])
    })

    test('in a scope, it sees that scope only', async () => {
      const app = create()
      app.register(async (scope) => {
        scope.register(tracing)
        scope.get('/in', ok)
      })
      app.get('/out', ok)
      const recording = record()
      await ask(app, '/out')
      await ask(app, '/in')
      const spans = await recording.all(1)
      expect(spans.map(({ name }) => name)).toEqual(['GET /in'])
    })

    test('twice, it makes one span', async () => {
      const app = traced(create)
      app.register(tracing)
      app.get('/', ok)
      expect((await trace1(app, '/')).name).toBe('GET /')
    })

    test('other plugins can ask for it by name', async () => {
      const app = traced(create)
      await app.ready()
      expect(app.hasPlugin('@throughline/fastify')).toBe(true)
    })

    test('Fastify has nothing to warn of', async () => {
      const warnings: string[] = []
      const listen = (warning: Error) => warnings.push(warning.message)
      process.on('warning', listen)
      const app = traced(create)
      app.get('/', ok)
      await trace1(app, '/')
      await ask(app, '/nothing')
      await new Promise(setImmediate)
      process.off('warning', listen)
      expect(warnings).toEqual([])
    })
  })

  describe('an error', () => {
    test.each<[string, (app: FastifyInstance, bug: Error) => void]>([
      ['thrown by an async handler', (app, bug) => app.get('/', () => Promise.reject(bug))],
      [
        'thrown by a handler with a callback',
        (app, bug) =>
          app.get('/', (_request, _reply) => {
            throw bug
          }),
      ],
      ['that is the reply', (app, bug) => app.get('/', (_request, reply) => reply.send(bug))],
      [
        'thrown by a hook before the handler',
        (app, bug) => app.addHook('preValidation', () => Promise.reject(bug)).get('/', ok),
      ],
      [
        'thrown by a hook of the first moment',
        (app, bug) => app.addHook('onRequest', (_request, _reply, done) => done(bug)).get('/', ok),
      ],
      [
        'thrown by a hook after the handler',
        (app, bug) => app.addHook('onSend', (_request, _reply, _payload, done) => done(bug)).get('/', ok),
      ],
      [
        'thrown by the serializer',
        (app, bug) =>
          app.get('/', (_request, reply) =>
            reply
              .serializer(() => {
                throw bug
              })
              .send({ a: 1 }),
          ),
      ],
      [
        'that the app’s error handler answers in its own words',
        (app, bug) => {
          app.setErrorHandler((_error, _request, reply) => reply.code(503).send({ sorry: true }))
          app.get('/', () => Promise.reject(bug))
        },
      ],
      [
        'that the error handler replaces by another one',
        (app, bug) => {
          app.setErrorHandler(() => Promise.reject(new Error('worse')))
          app.get('/', () => Promise.reject(bug))
        },
      ],
    ])('%s is recorded once', async (_title, prepare) => {
      const app = traced(create)
      await app.after()
      prepare(app, new TypeError('no such thing'))
      const span = await trace1(app, '/')
      expect(span).toMatchObject({ name: 'GET /', status: { code: 2, message: 'no such thing' } })
      expect(span.attributes['error.type']).toBe('TypeError')
      expect(exceptions(span)).toEqual(['no such thing'])
    })

    test('that the app’s error handler recovers from is not recorded', async () => {
      const app = traced(create)
      app.setErrorHandler((_error, _request, reply) => reply.code(200).send({ fine: true }))
      app.get('/', () => Promise.reject(new Error('flaky')))
      const span = await trace1(app, '/')
      expect(span.status.code).toBe(0)
      expect(span.events).toEqual([])
      expect(span.attributes).not.toHaveProperty('error.type')
    })

    test('of validation is the client’s: 400, and the span is not in error', async () => {
      const app = traced(create)
      const schema = {
        querystring: { type: 'object', required: ['page'], properties: { page: { type: 'number' } } },
      }
      app.get('/', { schema }, ok)
      const span = await trace1(app, '/')
      expect(span.attributes['http.response.status_code']).toBe(400)
      expect(span.status.code).toBe(0)
      expect(span.events).toEqual([])
    })

    test('reaches the other onError hooks and the error handler as it was thrown', async () => {
      const bug = new Error('it')
      const seen: unknown[] = []
      const app = traced(create)
      app.addHook('onError', async (_request, _reply, error) => {
        seen.push(error)
      })
      app.setErrorHandler((error, _request, reply) => {
        seen.push(error)
        return reply.code(500).send()
      })
      app.get('/', () => Promise.reject(bug))
      await trace1(app, '/')
      expect(seen).toEqual([bug, bug])
      expect(seen.every((error) => error === bug)).toBe(true)
    })
  })

  describe('a request by app.inject', () => {
    test('has its span, with its status, and no error', async () => {
      const app = traced(create)
      app.get('/users/:id', async () => ({ id: 1 }))
      const recording = record()
      const answer = await app.inject('/users/1')
      expect(answer.json()).toEqual({ id: 1 })
      const [span] = await recording.all(1)
      expect(span).toMatchObject({ name: 'GET /users/:id', status: { code: 0 } })
      expect(span?.attributes['http.response.status_code']).toBe(200)
      expect(span?.attributes).not.toHaveProperty('error.type')
    })

    test('has it as well when the handler answers at once', async () => {
      const app = traced(create)
      app.get('/', (_request, reply) => {
        reply.send('ok')
      })
      const recording = record()
      await app.inject('/')
      const [span] = await recording.all(1)
      expect(span).toMatchObject({ name: 'GET /', status: { code: 0 } })
    })

    test('that fails is in error', async () => {
      const app = traced(create)
      app.get('/', () => Promise.reject(new TypeError('no such thing')))
      const recording = record()
      expect((await app.inject('/')).statusCode).toBe(500)
      const [span] = await recording.all(1)
      expect(span?.attributes).toMatchObject({ 'error.type': 'TypeError', 'http.response.status_code': 500 })
      expect(exceptions(span)).toEqual(['no such thing'])
    })

    test('with a body, and a streamed answer, ends once', async () => {
      const app = traced(create)
      app.post('/', (request, reply) => {
        const body = new PassThrough()
        reply.send(body)
        setImmediate(() => body.end(JSON.stringify(request.body)))
      })
      const recording = record()
      expect((await app.inject({ method: 'POST', url: '/', payload: { a: 1 } })).json()).toEqual({ a: 1 })
      const [span] = await recording.all(1)
      expect(span?.status.code).toBe(0)
    })

    test('whose response is destroyed is an abort', async () => {
      const app = traced(create)
      app.get('/', (_request, reply) => {
        reply.hijack()
        reply.raw.destroy()
      })
      const recording = record()
      await app.inject('/').catch(() => {})
      const [span] = await recording.all(1)
      expect(span?.attributes['error.type']).toBe('aborted')
    })
  })

  test('a hijacked reply ends the span when it closes', async () => {
    const app = traced(create)
    app.get('/', (_request, reply) => {
      reply.hijack()
      reply.raw.writeHead(202).end('by hand')
    })
    const span = await trace1(app, '/')
    expect(span.attributes['http.response.status_code']).toBe(202)
    expect(span.status.code).toBe(0)
  })

  test('the current span is the request’s in all that follows: hooks, parsers, the handler, its events', async () => {
    const seen = new Map<string, string | undefined>()
    const look = (where: string) => seen.set(where, trace.getActiveSpan()?.spanContext().spanId)
    const app = create()
    app.register(tracing)
    app.addContentTypeParser('text/csv', async (_request: unknown, payload: AsyncIterable<Buffer>) => {
      for await (const _chunk of payload) look('parser')
      return 'parsed'
    })
    app.register(async (scope) => {
      scope.addHook('onRequest', async () => void look('onRequest'))
      scope.addHook('preParsing', async () => void look('preParsing'))
      scope.addHook('preValidation', (_request, _reply, done) =>
        setImmediate(() => (look('preValidation'), done())),
      )
      scope.addHook('onSend', async () => void look('onSend'))
      scope.addHook('onResponse', async () => void look('onResponse'))
      scope.post('/', async (_request, reply) => {
        look('handler')
        reply.raw.on('close', () => look('close'))
        await new Promise(setImmediate)
        look('later')
        return 'ok'
      })
    })
    const span = await trace1(app, '/', {
      method: 'POST',
      body: 'a;b',
      headers: { 'content-type': 'text/csv' },
    })
    const spanId = span.spanContext().spanId
    const places = [
      'onRequest',
      'preParsing',
      'parser',
      'preValidation',
      'handler',
      'later',
      'onSend',
      'onResponse',
      'close',
    ]
    expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(places.map((place) => [place, spanId])))
  })

  test('the functions of the app are given the request, and at the end the reply', async () => {
    const app = create()
    app.register(tracing, {
      ignore: (request) => request.url === '/health',
      inbound: (request) => (request.headers['x-internal'] === undefined ? 'ignore' : 'continue'),
      attributes: (request, reply) => ({
        'app.query': String(request.query),
        'app.status': reply.statusCode,
      }),
      spanName: (request, reply) => `${request.method} ${reply.statusCode}`,
    })
    app.get('/health', ok)
    app.get('/', (_request, reply) => reply.code(201).send())
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    const recording = record()
    await ask(app, '/health')
    await ask(app, '/', { headers: { traceparent } })
    await ask(app, '/', { headers: { traceparent, 'x-internal': 'yes' } })
    const [first, second] = await recording.all(2)
    expect(first).toMatchObject({ name: 'GET 201', attributes: { 'app.status': 201, 'http.route': '/' } })
    expect(first?.parentSpanContext).toBeUndefined()
    expect(second?.parentSpanContext?.spanId).toBe('b7ad6b7169203331')
  })

  test('paths to ignore are taken as texts and RegExps too', async () => {
    const app = create()
    app.register(tracing, { ignore: ['/health', /^\/assets\//], inbound: 'ignore' })
    app.get('/health', ok)
    app.get('/assets/*', ok)
    app.get('/', ok)
    const recording = record()
    for (const path of ['/health', '/assets/a.css', '/']) await ask(app, path)
    expect((await recording.all(1))[0]?.name).toBe('GET /')
  })

  describe('options are checked', () => {
    test('an unknown one is a TypeError from ready()', async () => {
      const app = create()
      app.register(tracing, { ignored: '/health' } as never)
      await expect(app.ready()).rejects.toThrow(
        /^@throughline\/fastify: tracing\(\): expected options among ignore, .*"ignored"/,
      )
    })

    test.each<[string, unknown[], RegExp]>([
      ['nothing', [], /received undefined; example: app\.register\(tracing\)$/],
      [
        'options',
        [{ ignore: '/health' }],
        /received an object of Object; example: app\.register\(tracing, \{ ignore: … \}\)$/,
      ],
    ])(
      'tracing that is called with %s, and not registered, is a TypeError at that line',
      (_title, given, said) => {
        const app = create()
        const misuse = tracing as (...given: unknown[]) => Promise<void>
        const register = () => app.register(misuse(...given) as never)
        expect(register).toThrow(TypeError)
        expect(register).toThrow(
          /^@throughline\/fastify: tracing\(\): expected to be called by Fastify, with the app, /,
        )
        expect(register).toThrow(said)
      },
    )

    test('tracing that is added as a hook is told of once, and the app answers untraced', async () => {
      const recording = record()
      const said = complaints()
      const app = create() as unknown as FastifyInstance
      app.addHook('onRequest', tracing as never)
      app.get('/', ok)
      for (const time of ['first', 'second']) {
        expect(await (await fetch(`${await origin(app)}/?${time}`)).text()).toBe('ok')
      }
      expect(said).toEqual([
        expect.stringMatching(/expected tracing to be registered, .*; example: app\.register\(tracing\)$/),
      ])
      expect(recording.spans).toEqual([])
    })

    test('tracing that is added to what happens at the end is told of, and the app ends', async () => {
      const said = complaints()
      const app = create() as unknown as FastifyInstance
      app.addHook('onClose', tracing as never)
      await app.ready()
      await app.close()
      expect(said).toEqual([expect.stringMatching(/an app that closes; example: app\.register\(tracing\)$/)])
    })

    test.each<[string, (app: FastifyInstance) => unknown]>([
      ['awaited', async (app) => void (await app.register(tracing))],
      [
        'imported where it is registered',
        (app) => app.register(import('@throughline/fastify').then((module) => module.tracing) as never),
      ],
      ['with options that are made later', (app) => app.register(tracing, () => ({ trustProxy: true }))],
      ['by a call with the app', (app) => tracing(app, {})],
    ])('it may be registered in other ways: %s', async (_title, register) => {
      const app = create() as unknown as FastifyInstance
      await register(app)
      app.get('/', ok)
      const recording = record()
      await ask(app, '/')
      expect((await recording.all(1))[0]?.name).toBe('GET /')
    })

    test('another registration that asks for spans of hooks is heard, and a route may opt out of both', async () => {
      const said = complaints()
      const app = create() as unknown as FastifyInstance
      app.register(tracing, { spanName: () => 'mine' })
      app.register(tracing, { middlewareSpans: true })
      app.get('/health', { config: { tracing: false } }, ok)
      app.get('/', ok)
      const recording = record()
      await ask(app, '/health')
      await ask(app, '/')
      expect((await recording.all(2)).map(({ name }) => name)).toEqual(['handler /', 'mine'])
      expect(said).toEqual([])
    })

    test('those that Fastify gives to every plugin are none of ours', async () => {
      const app = create()
      app.register(tracing, { prefix: '/api', logLevel: 'warn', logSerializers: {}, trustProxy: true })
      await expect(app.ready()).resolves.toBeDefined()
    })
  })

  test('HTTP/2 requests have their spans', async () => {
    const app = create({ http2: true })
    app.register(tracing)
    app.get('/users/:id', ok)
    const recording = record()
    const client = connect(await origin(app as unknown as FastifyInstance))
    try {
      const stream = client.request({ ':path': '/users/1' })
      stream.resume()
      await once(stream, 'end')
      const [span] = await recording.all(1)
      expect(span).toMatchObject({ name: 'GET /users/:id', status: { code: 0 } })
      expect(span?.attributes['network.protocol.version']).toBe('2')
    } finally {
      client.close()
    }
  })
})

test('a Fastify outside the range of the package refuses it', () => {
  const { peerDependencies } = createRequire(import.meta.url)('@throughline/fastify/package.json')
  const meta: unknown = Reflect.get(tracing, Symbol.for('plugin-meta'))
  expect(meta).toMatchObject({ fastify: peerDependencies.fastify })
})

/** The contract's app on this copy of Fastify. */
function adapter(create: typeof fastify): Adapter {
  return {
    async serve({ routes = {}, mounted, onError }, options, mounts, later) {
      const plugin = await import('@throughline/fastify')
      const app = create({ forceCloseConnections: true })
      for (let i = 0; i < mounts; i += 1)
        app.register(plugin.tracing, (i === 0 ? options : later) as Parameters<typeof tracing>[1])
      // The contract's bodies are text, or none of Fastify's business.
      app.removeAllContentTypeParsers()
      app.addContentTypeParser('*', (_request, _payload, done) => done(null))
      if (onError !== undefined) {
        app.setErrorHandler((error, request, reply) => onError(error, exchange(request, reply)))
      }
      app.register(async (scope) => add(scope, routes))
      if (mounted !== undefined)
        app.register(async (scope) => add(scope, mounted.routes), { prefix: mounted.prefix })
      await app.listen({ port: 0, host: '127.0.0.1' })
      return { port: (app.server.address() as AddressInfo).port, close: () => closed(app) }
    },
  }
}

function add(app: FastifyInstance, routes: Routes): void {
  for (const [key, handler] of Object.entries(routes)) {
    const [method = '', url = ''] = key.split(' ')
    app.route({
      method,
      url,
      async handler(request, reply) {
        await handler(exchange(request, reply))
        return reply
      },
    })
  }
}

function exchange(request: FastifyRequest, reply: FastifyReply): Exchange {
  return {
    params: request.params as Exchange['params'],
    request: request.raw,
    response: reply.raw,
    answer: (status, body = '') => void reply.code(status).type('text/plain').send(body),
    stream: (body) => void reply.send(body),
  }
}

/** Fastify 4.0 rejects where the test has closed the server itself. */
async function closed(app: FastifyInstance): Promise<void> {
  await app.close().catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ERR_SERVER_NOT_RUNNING') throw error
  })
}
