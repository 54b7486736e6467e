import fastifyStatic from '@fastify/static'
import { trace } from '@opentelemetry/api'
import type { Sampler } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import type { FastifyInstance } from 'fastify'
import { connect } from 'node:net'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { ask, askPlainly, fastify4, ok, origin, trace1, traced, versions } from './app.ts'

describe.each(versions)('%s: the route', (_name, create) => {
  test.each<[string, string, string, (app: FastifyInstance) => unknown]>([
    [
      'with several parameters in a segment',
      '/at/52.5-13.4',
      '/at/:lat-:lng',
      (app) => app.get('/at/:lat-:lng', ok),
    ],
    [
      'with an optional last segment, that is there',
      '/users/7',
      '/users/:id?',
      (app) => app.get('/users/:id?', ok),
    ],
    [
      'with an optional last segment, that is not',
      '/users',
      '/users/:id?',
      (app) => app.get('/users/:id?', ok),
    ],
    ['with a double colon', '/v1:run', '/v1::run', (app) => app.get('/v1::run', ok)],
    ['that is longer than a wildcard', '/a/b', '/a/:x', (app) => app.get('/*', ok).get('/a/:x', ok)],
    [
      'in scopes with parameters in their prefixes',
      '/orgs/7/users/8',
      '/orgs/:org/users/:id',
      (app) =>
        app.register(
          async (scope) => scope.register(async (users) => users.get('/:id', ok), { prefix: '/users' }),
          {
            prefix: '/orgs/:org',
          },
        ),
    ],
    [
      'that is the root of a prefix',
      '/api',
      '/api',
      (app) => app.register(async (scope) => scope.get('/', ok), { prefix: '/api' }),
    ],
    ['that all methods have', '/any', '/any', (app) => app.all('/any', ok)],
  ])('is one %s', async (_title, path, route, add) => {
    const app = traced(create)
    add(app)
    const span = await trace1(app, path)
    expect(span.name).toBe(`GET ${route}`)
    expect(span.attributes['http.route']).toBe(route)
  })

  test('is as it was registered, however it was asked for', async () => {
    const app = traced(
      create,
      {},
      { caseSensitive: false, ignoreTrailingSlash: true, ignoreDuplicateSlashes: true },
    )
    app.get('/Users/:id', ok)
    const recording = record()
    for (const path of ['/USERS/Ann', '/users/ann/', '//users//ann']) {
      expect((await askPlainly(app, path)).status).toBe(200)
    }
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual(Array(3).fill('GET /Users/:id'))
    expect(spans.map(({ attributes }) => attributes['url.path'])).toEqual([
      '/USERS/Ann',
      '/users/ann/',
      '//users//ann',
    ])
  })

  test('is that of the rewritten URL, and the path is that of the request line', async () => {
    const app = traced(create, {}, { rewriteUrl: ({ url = '' }) => url.replace('/old', '/new') })
    app.get('/new/:id', ok)
    const span = await trace1(app, '/old/7?a=1')
    expect(span.attributes).toMatchObject({ 'http.route': '/new/:id', 'url.query': 'a=1' })
    expect(span.attributes['url.path']).toBe('/old/7')
  })

  test('is the same for each method of a route that has several', async () => {
    const app = traced(create)
    app.route({ method: ['GET', 'PUT'], url: '/users/:id', handler: ok })
    const recording = record()
    await ask(app, '/users/1')
    await ask(app, '/users/1', { method: 'PUT' })
    const spans = await recording.all(2)
    expect(spans.map(({ name }) => name)).toEqual(['GET /users/:id', 'PUT /users/:id'])
  })

  test('does not say which constraints led to it', async () => {
    const app = traced(create, {}, {
      constraints: {
        tenant: {
          name: 'tenant',
          storage: () => {
            const handlers = new Map<unknown, never>()
            return {
              get: (key: unknown) => handlers.get(key) ?? null,
              set: (key: unknown, handler: never) => void handlers.set(key, handler),
            }
          },
          deriveConstraint: ({ headers }: { headers: Record<string, unknown> }) => headers['x-tenant'],
          validate() {},
        },
      },
    } as never)
    app.route({ method: 'GET', url: '/of/:host', constraints: { host: 'a.example' }, handler: ok })
    app.route({ method: 'GET', url: '/of/:version', constraints: { version: '1.2.0' }, handler: ok })
    app.route({ method: 'GET', url: '/of/:tenant', constraints: { tenant: 'acme' }, handler: ok })
    const recording = record()
    await askPlainly(app, '/of/1', { headers: { host: 'a.example' } })
    await askPlainly(app, '/of/1', { headers: { 'accept-version': '1.x' } })
    await askPlainly(app, '/of/1', { headers: { 'x-tenant': 'acme' } })
    await askPlainly(app, '/of/1')
    const spans = await recording.all(4)
    expect(spans.map(({ name }) => name)).toEqual([
      'GET /of/:host',
      'GET /of/:version',
      'GET /of/:tenant',
      'GET',
    ])
  })

  test('is that of OPTIONS and of a HEAD of its own', async () => {
    const app = traced(create)
    app.options('/users/:id', ok)
    app.head('/users/:id', ok)
    const recording = record()
    await ask(app, '/users/1', { method: 'OPTIONS' })
    await ask(app, '/users/1', { method: 'HEAD' })
    const spans = await recording.all(2)
    expect(spans.map(({ name }) => name)).toEqual(['OPTIONS /users/:id', 'HEAD /users/:id'])
  })

  test('is there for a 405 that a plugin has made a route for, and not for a HEAD that nobody answers', async () => {
    const app = traced(create, {}, { exposeHeadRoutes: false })
    app.get('/users/:id', ok)
    app.route({
      method: ['POST', 'PUT'],
      url: '/users/:id',
      handler: (_request, reply) => reply.code(405).header('allow', 'GET').send(),
    })
    const recording = record()
    await ask(app, '/users/1', { method: 'POST' })
    await ask(app, '/users/1', { method: 'HEAD' })
    const [post, head] = await recording.all(2)
    expect(post?.name).toBe('POST /users/:id')
    expect(post?.attributes['http.response.status_code']).toBe(405)
    expect(head?.name).toBe('HEAD')
  })

  test('is not there where the method has none, or a hook of the handler of 404s answers', async () => {
    const app = traced(create)
    await app.after()
    app.get('/users/:id', ok)
    app.setNotFoundHandler(
      { preHandler: (_request, reply, _done) => void reply.code(410).send() },
      (_request, reply) => void reply.code(404).send(),
    )
    const recording = record()
    await ask(app, '/users/1', { method: 'DELETE' })
    await ask(app, '/gone')
    const spans = await recording.all(2)
    expect(spans.map(({ name }) => name)).toEqual(['DELETE', 'GET'])
    expect(spans.map(({ attributes }) => attributes['http.route'])).toEqual([undefined, undefined])
    expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([410, 410])
  })

  test('is not there for a parameter that is too long: Fastify 5 answers before its hooks, without a span', async () => {
    const app = traced(create)
    app.get('/users/:id', ok)
    const recording = record()
    const { status } = await askPlainly(app, `/users/${'7'.repeat(101)}`)
    await ask(app, '/users/1')
    await recording.span(({ attributes }) => attributes['http.response.status_code'] === 200)
    expect([status, ...recording.spans.map(({ name }) => name)]).toEqual(
      create === fastify4 ? [404, 'GET', 'GET /users/:id'] : [414, 'GET /users/:id'],
    )
  })

  test.each<[string, string]>([
    ['a URL that cannot be decoded', 'GET /users/%zz HTTP/1.1\r\nHost: a\r\nConnection: close'],
    ['what is no HTTP', 'what is this'],
  ])('is not asked for by %s, which has no span', async (_title, text) => {
    const app = traced(create)
    app.get('/users/:id', ok)
    const recording = record()
    const { port } = new URL(await origin(app))
    const socket = connect(Number(port), 'localhost')
    socket.write(`${text}\r\n\r\n`)
    let answer = ''
    for await (const chunk of socket.setEncoding('utf8')) answer += String(chunk)
    expect(answer).toMatch(/^HTTP\/1.1 400 /)
    await ask(app, '/users/1')
    expect((await recording.all(1))[0]?.name).toBe('GET /users/:id')
  })

  describe('is there when the span starts', () => {
    test('so that a sampler can decide by it', async () => {
      const asked: unknown[] = []
      const sampler: Sampler = {
        shouldSample(_context, _traceId, name, _kind, attributes) {
          asked.push([name, attributes['http.route']])
          return { decision: 2 }
        },
        toString: () => 'mine',
      }
      const app = traced(create)
      app.get('/users/:id', ok)
      const recording = record({ sampler })
      await ask(app, '/users/1')
      await ask(app, '/nothing')
      await recording.all(2)
      expect(asked).toEqual([
        ['GET /users/:id', '/users/:id'],
        ['GET', undefined],
      ])
    })

    test('so that a rule of sampling can match it as an attribute', async () => {
      const app = traced(create)
      app.get('/users/:id', ok)
      app.get('/health/:part', ok)
      const recording = record({
        sampling: [{ match: { attributes: { 'http.route': '/health/:part' } }, rate: 0 }],
      })
      await ask(app, '/health/db')
      await ask(app, '/users/1')
      expect((await recording.all(1)).map(({ name }) => name)).toEqual(['GET /users/:id'])
    })

    test('so that the app’s first hook finds it on the current span', async () => {
      const seen: unknown[] = []
      const app = traced(create)
      await app.after()
      app.addHook('onRequest', async () => {
        seen.push(trace.getActiveSpan())
      })
      app.get('/users/:id', ok)
      await trace1(app, '/users/1')
      expect(seen).toMatchObject([{ name: 'GET /users/:id', attributes: { 'http.route': '/users/:id' } }])
    })
  })

  describe('a route with `config: { tracing: false }`', () => {
    test('has no span, whichever way it was registered; the others have theirs', async () => {
      const app = traced(create)
      app.get('/health', { config: { tracing: false } }, ok)
      app.register(async (scope) => {
        scope.route({ method: 'GET', url: '/live', config: { tracing: false }, handler: ok })
        scope.get('/traced', { config: { tracing: true } }, ok)
      })
      const recording = record()
      for (const path of ['/health', '/live', '/traced']) expect((await ask(app, path)).status).toBe(200)
      expect((await recording.all(1)).map(({ name }) => name)).toEqual(['GET /traced'])
    })

    test('passes on the trace that comes in, and nothing below it makes a span', async () => {
      const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
      const sent: Record<string, string> = {}
      const app = traced(create, { serverTiming: true })
      app.get('/health', { config: { tracing: false } }, async () => {
        const { context, propagation } = await import('@opentelemetry/api')
        propagation.inject(context.active(), sent)
        return 'ok'
      })
      const recording = record()
      const answer = await ask(app, '/health', { headers: { traceparent, tracestate: 'a=1' } })
      expect(sent).toEqual({ traceparent, tracestate: 'a=1' })
      expect(answer.headers.has('server-timing')).toBe(false)
      expect(recording.spans).toEqual([])
    })

    test('has none by app.inject either', async () => {
      const app = traced(create)
      app.get('/health', { config: { tracing: false } }, ok)
      app.get('/', ok)
      const recording = record()
      await app.inject('/health')
      await app.inject('/')
      expect((await recording.all(1))[0]?.name).toBe('GET /')
    })
  })

  test('what app.inject is answered has the same headers, and the timing that is asked for', async () => {
    record()
    const [bare, ours] = await Promise.all(
      [create(), traced(create, { serverTiming: true })].map(async (app) => {
        app.get('/', ok)
        app.get('/raw', (_request, reply) => {
          reply.hijack()
          reply.raw.writeHead(200, ['X-A', '1', 'Server-Timing', 'db;dur=1']).end('ok')
        })
        const answers = await Promise.all([app.inject('/'), app.inject('/raw')])
        return answers.map(({ headers: { date: _now, ...headers } }) => headers)
      }),
    )
    const timing = expect.stringMatching(/^trace;desc=00-/)
    expect(bare?.[1]).toMatchObject({ 'x-a': '1', 'server-timing': 'db;dur=1' })
    expect(ours).toEqual([
      { ...bare?.[0], 'server-timing': timing },
      { ...bare?.[1], 'server-timing': ['db;dur=1', timing] },
    ])
  })

  test('the prefix that it is registered with changes no route', async () => {
    const app = create()
    app.register(tracing, { prefix: '/api' })
    app.get('/users/:id', ok)
    expect((await trace1(app, '/users/1')).name).toBe('GET /users/:id')
  })

  test('what Fastify prints of its routes, and what the app is decorated with, is the same', async () => {
    const [bare, ours] = [create(), traced(create)]
    for (const app of [bare, ours]) app.get('/users/:id', ok)
    await Promise.all([bare.ready(), ours.ready()])
    expect(ours.printRoutes()).toBe(bare.printRoutes())
    expect(ours.printPlugins().match(/@throughline\/fastify/g)).toHaveLength(1)
    const properties = (app: FastifyInstance) => Reflect.ownKeys(app).map(String)
    expect(properties(ours)).toEqual(properties(bare))
  })

  test('the request and the reply of a handler have nothing that they did not have', async () => {
    record()
    const shapes = async (app: FastifyInstance) => {
      const seen: string[][] = []
      app.get('/', async (request, reply) => {
        seen.push(Reflect.ownKeys(request).map(String), Reflect.ownKeys(reply).map(String))
        return 'ok'
      })
      await ask(app, '/')
      return seen
    }
    expect(await shapes(traced(create))).toEqual(await shapes(create()))
  })
})

describe('files that @fastify/static serves', () => {
  test('have the wildcard’s route, those that are not there as well', async () => {
    const [[, create]] = versions as [(typeof versions)[0]]
    const app = traced(create)
    app.register(fastifyStatic, { root: import.meta.dirname, prefix: '/files/' })
    const recording = record()
    expect((await ask(app, '/files/app.ts')).status).toBe(200)
    expect((await ask(app, '/files/none.ts')).status).toBe(404)
    expect((await ask(app, '/none.ts')).status).toBe(404)
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual(['GET /files/*', 'GET /files/*', 'GET'])
    expect(spans.map(({ status }) => status.code)).toEqual([0, 0, 0])
  })

  test('have routes of their own where they are known at the start', async () => {
    const [[, create]] = versions as [(typeof versions)[0]]
    const app = traced(create)
    app.register(fastifyStatic, { root: import.meta.dirname, wildcard: false })
    expect((await trace1(app, '/app.ts')).name).toBe('GET /app.ts')
  })
})
