import { context, propagation, ROOT_CONTEXT, SpanKind, trace } from '@opentelemetry/api'
import { span as manualSpan, traceRequest, type ReadableSpan } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { createServer, request as asked, type RequestListener, type Server } from 'node:http'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { ask, ok, origin, signal, traced, versions } from './app.ts'

const on = { middlewareSpans: true } as const

/** What makes the server of an app, inside a span of another's for each request. */
function around(handle: RequestListener): Server {
  return createServer((request, response) => traceRequest(request, response, () => handle(request, response)))
}

describe.each(versions)('%s: spans of hooks and handlers', (_name, create) => {
  test('are not there unless they are asked for', async () => {
    const app = traced(create)
    app.addHook('preHandler', async function check() {})
    app.get('/', ok)
    const recording = record()
    await ask(app, '/')
    expect((await recording.all(1))[0]?.name).toBe('GET /')
  })

  test('are one for each, of whichever style, under the request’s span, named by their functions', async () => {
    const app = traced(create, on)
    app.addHook('onRequest', async function open() {})
    app.addHook('preParsing', function decode(_request, _reply, payload, done) {
      done(null, payload)
    })
    app.register(async (scope) => {
      scope.addHook('preValidation', (_request, _reply, done) => done())
      scope.addHook('preSerialization', async function wrap(_request, _reply, payload) {
        return { data: payload }
      })
      scope.addHook('onSend', function sign(_request, _reply, payload, done) {
        done(null, payload)
      })
      scope.post(
        '/users/:id',
        {
          preHandler: [
            async function allow() {},
            function load(_request, _reply, done) {
              done()
            },
          ],
        },
        async function change() {
          return { id: 7 }
        },
      )
    })
    const recording = record()
    const answer = await fetch(`${await origin(app)}/users/7`, {
      method: 'POST',
      body: '{}',
      headers: { 'content-type': 'application/json' },
    })
    expect(await answer.json()).toEqual({ data: { id: 7 } })
    const spans = await recording.all(9)
    const server = spans.at(-1)
    expect(spans.map(({ name }) => name)).toEqual([
      'hook onRequest open',
      'hook preParsing decode',
      'hook preValidation',
      'hook preHandler allow',
      'hook preHandler load',
      'handler /users/:id',
      'hook preSerialization wrap',
      'hook onSend sign',
      'POST /users/:id',
    ])
    expect(spans.map(({ attributes }) => attributes['code.function.name'])).toEqual([
      'open',
      'decode',
      undefined,
      'allow',
      'load',
      'change',
      'wrap',
      'sign',
      undefined,
    ])
    for (const layer of spans.slice(0, -1)) {
      expect(layer.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
      expect(layer).toMatchObject({
        kind: 0,
        status: { code: 0 },
        instrumentationScope: { name: '@throughline/fastify' },
      })
    }
  })

  test.each<[string, boolean]>([
    ['by a callback', true],
    ['by a promise', false],
  ])('last as long as the hook waits, %s', async (_title, isCallback) => {
    const app = traced(create, on)
    const arrived = signal()
    const go = signal()
    const waits = async () => {
      arrived.give()
      await go.given
      manualSpan('inside', () => {})
    }
    if (isCallback) app.addHook('preHandler', (_request, _reply, done) => void waits().then(() => done()))
    else app.addHook('preHandler', async () => waits())
    app.get('/', async () => {
      manualSpan('after', () => {})
      return 'ok'
    })
    const recording = record()
    const asking = ask(app, '/')
    await arrived.given
    await new Promise(setImmediate)
    expect(recording.spans).toEqual([])
    go.give()
    await asking
    const [inside, hook, after, handler, server] = await recording.all(5)
    expect([hook?.name, handler?.name]).toEqual(['hook preHandler', 'handler /'])
    expect(inside?.parentSpanContext?.spanId).toBe(hook?.spanContext().spanId)
    expect(after?.parentSpanContext?.spanId).toBe(handler?.spanContext().spanId)
    expect(hook?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
    expect(time(inside?.startTime)).toBeGreaterThanOrEqual(time(hook?.startTime))
    expect(time(inside?.endTime)).toBeLessThanOrEqual(time(hook?.endTime))
    expect(time(handler?.startTime)).toBeGreaterThanOrEqual(time(hook?.endTime))
  })

  test('are there for the hooks and routes that the app adds beside the plugin, and before it', async () => {
    const app = create() as unknown as FastifyInstance
    app.addHook('preHandler', async function before() {})
    app.get('/', ok)
    app.register(tracing, on)
    app.addHook('preHandler', async function beside() {})
    const recording = record()
    await ask(app, '/')
    const spans = await recording.all(4)
    expect(spans.map(({ name }) => name)).toEqual([
      'hook preHandler before',
      'hook preHandler beside',
      'handler /',
      'GET /',
    ])
  })

  test('are the same for the second request, and when tracing is registered twice', async () => {
    const app = traced(create, on)
    app.register(tracing, on)
    app.addHook('preHandler', async function check() {})
    app.get('/', ok)
    const recording = record()
    await ask(app, '/')
    await ask(app, '/')
    const spans = await recording.all(6)
    const each = ['hook preHandler check', 'handler /', 'GET /']
    expect(spans.map(({ name }) => name)).toEqual([...each, ...each])
  })

  test('of a hook that answers ends with the answer, and nothing is left open', async () => {
    const app = traced(create, on)
    app.addHook('preHandler', function refuse(_request, reply, _done) {
      reply.code(401).send({ error: 'who are you?' })
    })
    app.addHook('onSend', async function sign() {})
    app.get('/', ok)
    const recording = record()
    await ask(app, '/')
    const spans = await recording.all(3)
    expect(spans.map(({ name }) => name)).toEqual(['hook preHandler refuse', 'hook onSend sign', 'GET /'])
    const [, sign, server] = spans
    expect(sign?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
  })

  test.each<[string, (app: FastifyInstance) => unknown]>([
    [
      'answers by a callback',
      (app) => app.get('/', (_request, reply) => void setImmediate(() => reply.send('ok'))),
    ],
    ['returns the reply', (app) => app.get('/', async (_request, reply) => reply.send('ok'))],
    ['returns a value', (app) => app.get('/', () => 'ok')],
    ['answers with a stream', (app) => app.get('/', (_request, reply) => reply.send(Readable.from(['ok'])))],
    ['writes by hand', (app) => app.get('/', (_request, reply) => void reply.hijack().raw.end('ok'))],
    ['answers 404', (app) => app.get('/', (_request, reply) => void reply.callNotFound())],
  ])('of a handler that %s ends', async (_title, add) => {
    const app = traced(create, on)
    add(app)
    const recording = record()
    await ask(app, '/')
    await recording.span(({ kind }) => kind === 1)
    await new Promise(setImmediate)
    const names = recording.spans.map(({ name }) => name)
    expect(names.filter((name) => name === 'handler /')).toHaveLength(1)
    expect(recording.spans.filter(({ attributes }) => attributes['throughline.incomplete'])).toEqual([])
  })

  test('of the handler of 404s has no pattern', async () => {
    const app = traced(create, on)
    app.get('/give-away', (_request, reply) => void reply.callNotFound())
    app.setNotFoundHandler(async function nothing(_request: FastifyRequest, reply: FastifyReply) {
      return reply.code(404).send()
    })
    const recording = record()
    await ask(app, '/give-away')
    await ask(app, '/nowhere')
    const spans = await recording.all(5)
    expect(spans.map(({ name }) => name).toSorted()).toEqual(
      ['GET', 'GET /give-away', 'handler', 'handler', 'handler /give-away'].toSorted(),
    )
  })

  test.each([
    ['one for each that ran', on, ['GET', 'handler', 'hook onRequest open', 'hook preHandler check']],
    ['none, unless they are asked for', {}, ['GET']],
  ])('are, of a 404 behind requests of many routes, %s', async (_title, options, names) => {
    const app = traced(create, options)
    const ran: string[] = []
    // What the app's hooks are called by: every wrapper around one is a frame of ours.
    let depth = 0
    app.addHook('onRequest', function open(_request, _reply, done) {
      ran.push('open')
      depth = new Error().stack?.split('\n').filter((line) => line.includes('packages/fastify')).length ?? 0
      done()
    })
    app.addHook('preHandler', async function check() {
      ran.push('check')
    })
    app.setNotFoundHandler((_request, reply) => void reply.code(404).send())
    const paths = ['/0', '/1', '/2', '/3', '/4']
    for (const path of paths) app.get(path, ok)
    app.get('/give-away', (_request, reply) => void reply.callNotFound())
    const first = record()
    await ask(app, '/nowhere')
    await first.all(names.length)
    const depthAtFirst = depth
    for (const path of [...paths, '/give-away']) await ask(app, path)
    await first.span(({ name }) => name === 'GET /give-away')
    await first.stop()
    ran.splice(0)
    const recording = record()
    expect((await ask(app, '/elsewhere')).status).toBe(404)
    const spans = await recording.all(names.length)
    expect(spans.map(({ name }) => name).toSorted()).toEqual(names.toSorted())
    expect(ran).toEqual(['open', 'check'])
    expect(depth).toBe(depthAtFirst)
  })

  test.each<[string, (app: FastifyInstance, bug: Error) => unknown, string]>([
    [
      'hook that rejects',
      (app, bug) => app.addHook('preHandler', async () => Promise.reject(bug)).get('/', ok),
      'hook preHandler',
    ],
    [
      'hook that says so',
      (app, bug) => app.addHook('preHandler', (_request, _reply, done) => done(bug)).get('/', ok),
      'hook preHandler',
    ],
    [
      'hook that throws',
      (app, bug) =>
        app
          .addHook('preHandler', (_request, _reply, _done): void => {
            throw bug
          })
          .get('/', ok),
      'hook preHandler',
    ],
    [
      'hook that sends it',
      (app, bug) => app.addHook('preHandler', async (_request, reply) => reply.send(bug)).get('/', ok),
      'hook preHandler',
    ],
    ['handler that rejects', (app, bug) => app.get('/', () => Promise.reject(bug)), 'handler /'],
  ])('of a %s is in error, and the exception is told by the request’s alone', async (_title, add, name) => {
    const app = traced(create, on)
    add(app, new TypeError('no such thing'))
    const recording = record()
    await ask(app, '/')
    const server = await recording.span(({ kind }) => kind === 1)
    const layer = recording.spans.find((span) => span.name === name)
    expect(layer).toMatchObject({
      status: { code: 2 },
      attributes: { 'error.type': 'TypeError' },
      events: [],
    })
    expect(server.events).toHaveLength(1)
  })

  test.each([
    ['the plugin', {}],
    ['traceRequest() around the app', { serverFactory: around }],
  ])(
    'of a handler that never answers end with the span of %s when the client leaves',
    async (_whose, server) => {
      const app = traced(create, on, server)
      const arrived = signal()
      app.get('/', () => (arrived.give(), new Promise(() => {})))
      const recording = record()
      const client = asked(await origin(app))
        .on('error', () => {})
        .end()
      await arrived.given
      client.destroy()
      const spans = await recording.all(2)
      expect(spans.map(({ kind, name }) => (kind === SpanKind.SERVER ? 'request' : name))).toEqual([
        'handler /',
        'request',
      ])
    },
  )

  test('of a handler that answers past Fastify end with the span of traceRequest() around the app', async () => {
    const app = traced(create, on, { serverFactory: around })
    app.get('/', (_request, reply) => {
      reply.hijack()
      reply.raw.end('ok')
    })
    const recording = record()
    await ask(app, '/')
    expect((await recording.all(2)).map(({ name }) => name)).toEqual(['handler /', 'GET'])
  })

  test.each([
    ['the registration', on],
    ['the second registration', {}],
  ])('that %s asks for end when the client leaves a request behind another one', async (_which, options) => {
    const app = traced(create, options)
    app.register(tracing, on)
    const arrived = signal()
    const preHandler = (): Promise<void> => (arrived.give(), new Promise(() => {}))
    app.get('/', () => new Promise(() => {}))
    app.get('/behind', { preHandler }, ok)
    const recording = record()
    const client = connect(Number(new URL(await origin(app)).port), '127.0.0.1').on('error', () => {})
    client.write('GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /behind HTTP/1.1\r\nHost: x\r\n\r\n')
    await arrived.given
    client.destroy()
    const names = (await recording.all(4)).map(({ name }) => name)
    expect(names.toSorted()).toEqual(['GET /', 'GET /behind', 'handler /', 'hook preHandler preHandler'])
    expect(names.indexOf('hook preHandler preHandler')).toBeLessThan(names.indexOf('GET /behind'))
  })

  test('cost the app none of its context: what a hook sets is there in the handler', async () => {
    const app = traced(create, on)
    const seen: unknown[] = []
    app.addHook('preHandler', async (request) => {
      Object.assign(request, { user: 'ann' })
    })
    app.get('/', async (request) => {
      seen.push((request as unknown as { user: string }).user)
      return 'ok'
    })
    record()
    await ask(app, '/')
    expect(seen).toEqual(['ann'])
  })

  test('leave `this`, the arguments and the results as they are', async () => {
    const app = traced(create, on)
    app.decorate('tenant', 'acme')
    const seen: unknown[] = []
    app.register(async (scope) => {
      scope.addHook('preHandler', function note(this: FastifyInstance, ...given) {
        seen.push(Reflect.get(this, 'tenant'), given.length)
        const [, , done] = given
        done()
      })
      // Lazy, as queries are: it runs when somebody asks for its result.
      scope.addHook('preHandler', function lazy() {
        // oxlint-disable-next-line unicorn/no-thenable -- it stands for a query
        return { then: (fulfilled: () => void) => (seen.push('asked'), fulfilled()) } as Promise<void>
      })
      scope.get('/', function (this: FastifyInstance) {
        return { tenant: Reflect.get(this, 'tenant') as string }
      })
    })
    const recording = record()
    expect((await app.inject('/')).json()).toEqual({ tenant: 'acme' })
    expect(seen).toEqual(['acme', 3, 'asked'])
    await recording.all(4)
  })

  test('with `slowerThan` are those of the slow ones only', async () => {
    const app = traced(create, { middlewareSpans: { slowerThan: 60_000 } })
    app.addHook('preHandler', async () => {})
    app.get('/fast', ok)
    const recording = record()
    await ask(app, '/fast')
    expect((await recording.all(1))[0]?.name).toBe('GET /fast')

    const all = traced(create, { middlewareSpans: { slowerThan: 0 } })
    all.addHook('preHandler', async function slow() {})
    all.get('/', ok)
    await ask(all, '/')
    const spans = (await recording.all(4)).slice(1)
    expect(spans.map(({ name }) => name)).toEqual(['hook preHandler slow', 'handler /', 'GET /'])
  })

  test('are not made of a request without one', async () => {
    const app = traced(create, { ...on, ignore: '/ignored' })
    app.addHook('preHandler', async () => {})
    app.get('/ignored', ok)
    app.get('/', ok)
    const recording = record({ sampling: [{ match: { path: '/' }, rate: 0 }] })
    await ask(app, '/ignored')
    await ask(app, '/')
    await new Promise(setImmediate)
    expect(recording.spans).toEqual([])
  })

  test('do not let the app add a hook that Fastify refuses', async () => {
    const app = traced(create, on)
    await app.after()
    expect(() =>
      app.addHook('preHandler', (async (_request: unknown, _reply: unknown, _done: unknown) => {}) as never),
    ).toThrow(/FST_ERR_HOOK_INVALID_ASYNC_HANDLER|Async function has too many arguments/)
  })

  test('leave no listener on what app.inject makes, and neither does the request', async () => {
    record()
    const counts: unknown[] = []
    const apps = [create() as unknown as FastifyInstance, traced(create), traced(create, on)]
    for (const app of apps) {
      app.get('/', async ({ raw: request }, { raw: response }) => {
        counts.push(
          [request, response].map((emitter) =>
            emitter.eventNames().map((event) => [String(event), emitter.listenerCount(event)]),
          ),
        )
        return 'ok'
      })
      await app.inject('/')
    }
    expect(counts).toHaveLength(3)
    expect(counts.slice(1)).toEqual([counts[0], counts[0]])
  })

  test('leave listeners of the response where the app has bound them', async () => {
    const app = traced(create, on)
    let seen: unknown
    app.get('/', async (_request, reply) => {
      const chosen = propagation.setBaggage(ROOT_CONTEXT, propagation.createBaggage({ a: { value: '1' } }))
      context.bind(chosen, reply.raw)
      reply.raw.once('finish', () => {
        seen = propagation.getActiveBaggage()?.getEntry('a')?.value
      })
      return 'ok'
    })
    const recording = record()
    await ask(app, '/')
    await recording.all(2)
    expect(seen).toBe('1')
  })

  test('nest what the app makes in a stream of the preParsing hook under the request', async () => {
    const app = traced(create, on)
    const seen: unknown[] = []
    app.addHook('preParsing', async (_request, _reply, payload) => {
      return Readable.from(
        (async function* () {
          for await (const chunk of payload) {
            seen.push(trace.getActiveSpan()?.spanContext().traceId)
            yield chunk
          }
        })(),
      )
    })
    app.post('/', async ({ body }) => body)
    const recording = record()
    const answer = await ask(app, '/', {
      method: 'POST',
      body: '{"a":1}',
      headers: { 'content-type': 'application/json' },
    })
    expect(answer.status).toBe(200)
    const server = await recording.span(({ kind }) => kind === 1)
    expect(seen).toEqual([server.spanContext().traceId])
  })
})

function time(given: ReadableSpan['startTime'] | undefined): number {
  const [seconds, nanoseconds] = given ?? [0, 0]
  return seconds * 1e9 + nanoseconds
}
