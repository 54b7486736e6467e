import { context, propagation, trace } from '@opentelemetry/api'
import { Router } from '@koa/router'
import { tracing } from '@throughline/koa'
import Koa from 'koa'
import { AsyncLocalStorage } from 'node:async_hooks'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync } from 'node:fs'
import { constants, createServer as createHttp2Server } from 'node:http2'
import { createServer as createHttpsServer, request as getSecurely } from 'node:https'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { describe, expect, onTestFinished, test } from 'vitest'
import { signal } from '../contract/server/watch.ts'
import { said } from '../core/engine.ts'
import { http2ClientOf } from '../http2.ts'
import { exceptions, record } from '../recording.ts'
import { applications, ask, listen, load, ok, pass, trace1, traced } from './apps.ts'

const parsers: [name: string, make: () => Koa.Middleware][] = [
  ['koa-bodyparser', load<() => Koa.Middleware>('koa-bodyparser')],
  ['@koa/bodyparser', load<{ bodyParser: () => Koa.Middleware }>('@koa/bodyparser').bodyParser],
]
const { createSession: session } = load<{ createSession: (options: object, app: Koa) => Koa.Middleware }>(
  'koa-session',
)
const compress = load<(options: object) => Koa.Middleware>('koa-compress')

const current = () => trace.getActiveSpan()?.spanContext().spanId

describe.each(applications)('%s: the request’s span is the current one', (_name, Application) => {
  const app = () => traced(Application)

  test.each(parsers)('behind %s', async (_parser, make) => {
    const recording = record()
    const seen: unknown[] = []
    const application = app().use(make())
    application.use((ctx) => {
      seen.push(current())
      ctx.body = (ctx.request as unknown as { body: { a: number } }).body
    })
    const server = await listen(application)
    const headers = { 'content-type': 'application/json' }
    expect((await ask(server, '/', { method: 'POST', headers, body: '{"a":1}' })).body).toBe('{"a":1}')
    const [span] = await recording.all(1)
    expect(seen).toEqual([span?.spanContext().spanId])
  })

  test('in a session’s store, and behind it', async () => {
    const recording = record()
    const seen: unknown[] = []
    const kept = new Map<string, object>()
    const store = {
      async get(key: string) {
        await new Promise(setImmediate)
        seen.push(current())
        return kept.get(key)
      },
      async set(key: string, value: object) {
        seen.push(current())
        kept.set(key, value)
      },
      async destroy() {},
    }
    const application = app()
    application.keys = ['secret']
    application.use(session({ store, key: 'id' }, application))
    application.use((ctx) => {
      const { session } = ctx as unknown as { session: { views?: number } }
      session.views = (session.views ?? 0) + 1
      seen.push(current())
      ctx.body = String(session.views)
    })
    const server = await listen(application)
    const first = await ask(server, '/')
    const cookie = first.headers
      .getSetCookie()
      .map((each) => each.split(';', 1)[0])
      .join('; ')
    expect((await ask(server, '/', { headers: { cookie } })).body).toBe('2')
    const [one, two] = (await recording.all(2)).map((span) => span.spanContext().spanId)
    expect(seen).toEqual([one, one, two, two, two])
  })

  test('around a compressed stream: the span ends with its last byte', async () => {
    const recording = record()
    const seen = new Set<unknown>()
    const application = app().use(compress({ threshold: 0 }))
    application.use((ctx) => {
      ctx.type = 'text'
      ctx.res.on('finish', () => seen.add(current()))
      ctx.body = Readable.from(
        (async function* () {
          seen.add(current())
          yield 'a'.repeat(1000)
          await new Promise(setImmediate)
          seen.add(current())
          yield 'b'
        })(),
      )
    })
    const answer = await ask(await listen(application), '/', { headers: { 'accept-encoding': 'gzip' } })
    expect(answer.body).toBe(`${'a'.repeat(1000)}b`)
    expect(answer.headers.get('content-encoding')).toBe('gzip')
    const [span] = await recording.all(1)
    expect([...seen]).toEqual([span?.spanContext().spanId])
  })

  test.each<[string, Record<string, string>]>([
    ['of different traces', {}],
    ['of one trace', { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` }],
    ['not sampled', { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-00` }],
  ])(
    'behind a middleware that awaits what another request releases: both are %s',
    async (_title, headers) => {
      record()
      const waiting: (() => void)[] = []
      const arrived = signal()
      const seen: Record<string, unknown[]> = { '/first': [], '/second': [] }
      const context = ({ path }: Koa.Context) => seen[path]?.push(trace.getActiveSpan())
      const application = app().use((ctx, next) => (context(ctx), next()))
      application.use(async (ctx, next) => {
        waiting.pop()?.()
        if (ctx.path === '/first') {
          await new Promise<void>((resolve) => {
            waiting.push(resolve)
            arrived.give()
          })
        }
        await next()
      })
      application.use((ctx) => {
        context(ctx)
        ctx.body = 'ok'
      })
      const server = await listen(application)
      const first = ask(server, '/first', { headers })
      await arrived.given
      await Promise.all([first, ask(server, '/second', { headers })])
      // What each saw before it waited is what its handler sees.
      for (const [before, after] of Object.values(seen)) {
        expect(before).toBeDefined()
        expect(after).toBe(before)
      }
      expect(new Set(Object.values(seen).flat()).size).toBe(2)
    },
  )

  test('after next(), in timers, and in raw listeners that were added before tracing and after', async () => {
    const recording = record()
    const seen: unknown[] = []
    const look = () => seen.push(current())
    const application = new Application().use((ctx, next) => {
      ctx.req.on('end', look)
      ctx.res.on('finish', look)
      return next()
    })
    application.use(tracing())
    application.use(async (ctx, next) => {
      await next()
      look()
      await new Promise((resolve) => setTimeout(resolve, 1))
      look()
      ctx.body = 'ok'
    })
    application.use(async (ctx) => {
      ctx.req.on('data', look)
      ctx.res.on('close', look)
      for await (const _chunk of ctx.req) look()
    })
    await ask(await listen(application), '/', { method: 'POST', body: 'hello' })
    const [span] = await recording.all(1)
    expect(seen).toHaveLength(7)
    expect(new Set(seen)).toEqual(new Set([span?.spanContext().spanId]))
  })

  test('and baggage that one middleware sets is seen by the next, and by nobody else', async () => {
    record()
    const user = () => propagation.getActiveBaggage()?.getEntry('user')?.value
    const seen: unknown[] = []
    const application = app()
    application.use(async (_ctx, next) => {
      await next()
      seen.push(user())
    })
    application.use((_ctx, next) => {
      const baggage = propagation.createBaggage({ user: { value: '7' } })
      return context.with(propagation.setBaggage(context.active(), baggage), next)
    })
    application.use(async (ctx) => {
      await new Promise(setImmediate)
      seen.push(user())
      ctx.body = 'ok'
    })
    await ask(await listen(application), '/')
    expect(seen).toEqual(['7', undefined])
  })
})

/** A key and a certificate for localhost, made by openssl. */
function certificate(): { key: Buffer; cert: Buffer } {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-koa-'))
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
  const form = ['-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost']
  execFileSync('openssl', ['req', ...form, '-keyout', key, '-out', cert], { stdio: 'ignore' })
  return { key: readFileSync(key), cert: readFileSync(cert) }
}

describe.each(applications)('%s', (_name, Application) => {
  const app = () => traced(Application)

  test('over HTTPS: the scheme says so', async () => {
    const recording = record()
    const router = new Router().get('/users/:id', ok)
    const server = createHttpsServer(certificate(), app().use(router.routes()).callback()).listen(0)
    onTestFinished(() => void server.close())
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const sent = getSecurely({ port, path: '/users/1', rejectUnauthorized: false, agent: false }).end()
    const [response] = await once(sent, 'response')
    response.resume()
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /users/:id', attributes: { 'url.scheme': 'https' } })
  })

  test('over HTTP/2: its answers, errors, and requests that the client gives up', async () => {
    const recording = record()
    const router = new Router().get('/users/:id', ok)
    router.get('/fail', () => Promise.reject(new TypeError('it')))
    const reached = new Promise<void>((resolve) => {
      router.get('/never', () => (resolve(), new Promise(() => {})))
    })
    const server = createHttp2Server(app().use(router.routes()).callback())
    const { client } = await http2ClientOf(server)
    for (const path of ['/users/1', '/fail']) {
      const stream = client.request({ ':path': path }).resume()
      await once(stream, 'end')
    }
    const given = client.request({ ':path': '/never' })
    await reached
    given.close(8)
    const [fine, failed, gone] = await recording.all(3)
    expect(fine).toMatchObject({ name: 'GET /users/:id', status: { code: 0 } })
    expect(fine?.attributes['network.protocol.version']).toBe('2')
    expect(failed).toMatchObject({ name: 'GET /fail', attributes: { 'error.type': 'TypeError' } })
    expect(exceptions(failed)).toEqual(['it'])
    expect(gone).toMatchObject({ name: 'GET /never', attributes: { 'error.type': 'aborted' }, events: [] })
  })

  test('over HTTP/2 a listener hears in the context of its request that the client has cancelled it', async () => {
    const reached = signal<unknown>()
    const finished = signal<unknown>()
    record()
    const application = app().use(({ res }) => {
      res.once('finish', () => finished.give(trace.getActiveSpan()))
      reached.give(trace.getActiveSpan())
      return new Promise(() => {})
    })
    const { client } = await http2ClientOf(createHttp2Server(application.callback()))
    const stream = client.request({ ':path': '/' }).on('error', () => {})
    const span = await reached.given
    stream.close(constants.NGHTTP2_INTERNAL_ERROR)
    expect(span).toBeDefined()
    expect(await finished.given).toBe(span)
  })

  test('an app that answers by hand, later, has the span of its answer', async () => {
    const span = await trace1(
      app().use((ctx) => {
        ctx.respond = false
        setImmediate(() => ctx.res.writeHead(202).end('by hand'))
      }),
      '/',
    )
    expect(span.attributes['http.response.status_code']).toBe(202)
  })

  test('what the app believes of its proxy changes nothing that the span says of the client', async () => {
    const application = app()
    application.proxy = true
    let ip: string | undefined
    application.use((ctx) => {
      ip = ctx.ip
      ctx.body = 'ok'
    })
    const span = await trace1(application, '/', { headers: { 'x-forwarded-for': '203.0.113.9' } })
    expect(ip).toBe('203.0.113.9')
    expect(span.attributes['client.address']).toBe(span.attributes['network.peer.address'])
  })

  test('an app sees its own context, in everything that it put on it', async () => {
    const application = new Application()
    Object.assign(application.context, { foo: () => 'bar', db: { name: 'db' } })
    const before = { keys: Object.keys(application.context), json: JSON.stringify(application) }
    const seen: unknown[] = []
    application.use(tracing()).use((ctx) => {
      seen.push(
        ctx['foo'](),
        ctx['db'].name,
        ctx.app === application,
        Object.keys(ctx),
        JSON.stringify(ctx.app),
      )
      seen.push(ctx.mountPath, Object.hasOwn(ctx, 'onerror'), ctx.onerror.name, ctx.onerror.length)
      ctx.body = ctx.toJSON()
    })
    const bare = new Application().use((ctx) => {
      ctx.body = Object.keys(ctx)
    })
    record()
    const keys = JSON.parse((await ask(await listen(bare), '/')).body) as string[]
    const shown = JSON.parse((await ask(await listen(application), '/')).body) as object
    expect(seen).toEqual(['bar', 'db', true, keys, before.json, undefined, false, 'onerror', 1])
    expect(Object.keys(shown)).toEqual(['request', 'response', 'app', 'originalUrl', 'req', 'res', 'socket'])
    expect({ keys: Object.keys(application.context), json: JSON.stringify(application) }).toEqual(before)
    expect(application.middleware.map((each) => [each.name, each.length])[0]).toEqual(['tracing', 2])
  })

  test.each<[string, (context: object) => void]>([
    ['as Koa has it', () => {}],
    ['with an onerror of its own', (context) => Object.assign(context, { onerror() {} })],
    [
      'with one that is not to be seen',
      (context) => Object.defineProperty(context, 'onerror', { value() {}, configurable: true }),
    ],
  ])('a loop through a context finds what it finds without, %s', async (_title, change) => {
    record()
    const look: Koa.Middleware = (ctx) => {
      const { context } = ctx.app
      const found: string[] = []
      for (const key in ctx) found.push(key)
      ctx.body = [found.sort(), Object.keys(context), Object.hasOwn(context, 'onerror')]
    }
    const [bare, ...traces] = await Promise.all(
      [[look], [tracing(), look], [tracing(), tracing(), look]].map(async (all) => {
        const application = new Application()
        change(application.context)
        for (const middleware of all) application.use(middleware)
        const server = await listen(application)
        await ask(server, '/')
        return JSON.parse((await ask(server, '/')).body) as unknown
      }),
    )
    expect(bare).toContainEqual(expect.arrayContaining(['throw', 'inspect']))
    expect(traces).toEqual([bare, bare])
  })

  test('a context that nobody may change is left alone, and its errors are recorded', async () => {
    const application = new Application()
    application.silent = true
    Object.freeze(application.context)
    application.use(tracing()).use(() => {
      throw new Error('it')
    })
    expect(exceptions(await trace1(application, '/'))).toEqual(['it'])
  })

  test('an app that nobody may change serves as ever, and its errors are recorded', async () => {
    const application = new Application()
    application.silent = true
    application.use(tracing()).use(() => {
      throw new Error('it')
    })
    const recording = record()
    const reports = said()
    const server = await listen(application)
    Object.freeze(application)
    expect((await ask(server, '/')).status).toBe(500)
    const [span] = await recording.all(1)
    expect(exceptions(span)).toEqual(['it'])
    expect(reports.lines).toHaveLength(1)
  })

  test('a mount path that the app gives to all of its contexts is what each of them has, and no mount', async () => {
    const application = app()
    const router = new Router().get('/users/:id', (ctx) => {
      ctx.body = ctx.mountPath
    })
    application.use(router.routes())
    const server = await listen(application)
    const recording = record()
    await ask(server, '/users/1')
    application.context.mountPath = '/all'
    expect((await ask(server, '/users/2')).body).toBe('/all')
    const spans = await recording.all(2)
    expect(spans.map(({ name }) => name)).toEqual(['GET /users/:id', 'GET /users/:id'])
  })

  test('mounted late, it is right for what follows', async () => {
    const seen: unknown[] = []
    const look: Koa.Middleware = (_ctx, next) => {
      seen.push(current() === undefined)
      return next()
    }
    const router = new Router().get('/users/:id', ok)
    const application = new Application().use(look).use(pass).use(tracing()).use(look).use(router.routes())
    const span = await trace1(application, '/users/1')
    expect(span.name).toBe('GET /users/:id')
    expect(seen).toEqual([true, false])
  })
})

test('app.currentContext is the request’s, in a storage that the app gave to Koa 3', async () => {
  const storage = new AsyncLocalStorage<Koa.Context>()
  const application = new Koa({ asyncLocalStorage: storage } as never)
  const seen: unknown[] = []
  application.use(tracing({ middlewareSpans: true })).use(async (ctx) => {
    await new Promise(setImmediate)
    seen.push(application.currentContext === ctx, storage.getStore() === ctx, current() !== undefined)
    ctx.body = 'ok'
  })
  record()
  await ask(await listen(application), '/')
  expect(seen).toEqual([true, true, true])
})
