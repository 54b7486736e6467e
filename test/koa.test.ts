import { trace } from '@opentelemetry/api'
import { Router } from '@koa/router'
import { tracing } from '@throughline/koa'
import Koa from 'koa'
import { once } from 'node:events'
import { createServer, request as get } from 'node:http'
import { createServer as createHttp2Server } from 'node:http2'
import { createRequire } from 'node:module'
import { connect as connectTo, type AddressInfo } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { describe, expect, test, vi } from 'vitest'
import { listening, serverContract, type Adapter, type Exchange, type Routes } from './contract/server.ts'
import { http2ClientOf } from './http2.ts'
import { ask, listen, ok, trace1, url } from './koa/apps.ts'
import { exceptions, record } from './recording.ts'

const Koa2 = createRequire(import.meta.url)('koa2') as typeof Koa

serverContract('Koa 3', adapter(Koa))
serverContract('Koa 2', adapter(Koa2))

describe.each([
  ['Koa 3', Koa],
  ['Koa 2', Koa2],
])('%s', (_name, Application) => {
  describe('an error', () => {
    test('that the app leaves to Koa is recorded once, and Koa answers and emits it as ever', async () => {
      const bug = new TypeError('no such thing')
      const application = app()
      const seen = once(application, 'error')
      application.use((_ctx, next) => next())
      application.use(new Router().get('/', () => Promise.reject(bug)).routes())
      const recording = record()
      const answer = await ask(await listen(application), '/')
      expect(answer).toMatchObject({ status: 500, body: 'Internal Server Error' })
      expect((await seen)[0]).toBe(bug)
      const [span] = await recording.all(1)
      expect(span).toMatchObject({ name: 'GET /', status: { code: 2, message: 'no such thing' } })
      expect(span?.attributes['error.type']).toBe('TypeError')
      expect(exceptions(span)).toEqual(['no such thing'])
    })

    test('that middleware above turns into its own answer of 500 is recorded', async () => {
      const application = new Application()
      application.use(async (ctx, next) => {
        try {
          await next()
        } catch {
          ctx.status = 500
          ctx.body = { sorry: true }
        }
      })
      application.use(tracing()).use(() => {
        throw new RangeError('too far')
      })
      const span = await trace1(application, '/')
      expect(exceptions(span)).toEqual(['too far'])
      expect(span.attributes['error.type']).toBe('RangeError')
    })

    test('that middleware below answers, and emits as Koa’s manual says, is recorded', async () => {
      const application = app()
      application.use(async (ctx, next) => {
        await next().catch((error: unknown) => {
          ctx.status = 500
          application.emit('error', error, ctx)
        })
      })
      application.use(() => {
        throw new RangeError('too far')
      })
      expect(exceptions(await trace1(application, '/'))).toEqual(['too far'])
    })

    test('is still printed by Koa where the app has no listener, and not where it has one', async () => {
      const print = vi.spyOn(console, 'error').mockImplementation(() => {})
      record()
      const fail: Koa.Middleware = () => {
        throw new Error('it')
      }
      await ask(await listen(new Application().use(tracing()).use(fail)), '/')
      expect(print).toHaveBeenCalledTimes(1)
      const listened = new Application()
        .use(tracing())
        .use(fail)
        .on('error', () => {})
      await ask(await listen(listened), '/')
      expect(print).toHaveBeenCalledTimes(1)
    })

    test('that middleware below recovers from is not', async () => {
      const application = app()
      application.use(async (ctx, next) => {
        await next().catch(() => (ctx.body = 'recovered'))
      })
      application.use(() => {
        throw new Error('flaky')
      })
      const span = await trace1(application, '/')
      expect(span.status.code).toBe(0)
      expect(span.events).toEqual([])
    })

    test('of the client, such as ctx.throw(422), is not', async () => {
      const span = await trace1(
        app().use((ctx) => ctx.throw(422)),
        '/',
      )
      expect(span.status.code).toBe(0)
      expect(span.events).toEqual([])
      expect(span.attributes).not.toHaveProperty('error.type')
    })

    test('in making JSON of the body, after all middleware has returned, is recorded', async () => {
      const circular: { self?: unknown } = {}
      circular.self = circular
      const span = await trace1(
        app().use((ctx) => {
          ctx.body = circular
        }),
        '/',
      )
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(span.attributes['error.type']).toBe('TypeError')
      expect(exceptions(span)).toHaveLength(1)
    })

    test('of a stream that breaks in the middle of the body is recorded', async () => {
      const recording = record()
      const body = new PassThrough()
      const application = app().use((ctx) => {
        ctx.body = body
      })
      const server = await listen(application)
      const asked = get(url(server, '/')).end()
      body.write('a byte')
      const [response] = await once(asked, 'response')
      response.on('error', () => {})
      await once(response, 'data')
      const failed = once(application, 'error')
      body.destroy(new RangeError('disk on fire'))
      await failed
      response.destroy()
      const [span] = await recording.all(1)
      expect(span?.status).toEqual({ code: 2, message: 'disk on fire' })
      expect(exceptions(span)).toEqual(['disk on fire'])
    })
  })

  test('a connection that the client resets is an abort, not an error of the app', async () => {
    const recording = record()
    const application = app()
    const arrived = new Promise((resolve) => {
      application.use((ctx) => {
        resolve(ctx)
        ctx.body = new PassThrough()
      })
    })
    const { port } = (await listen(application)).address() as AddressInfo
    const client = connectTo(port).on('error', () => {})
    client.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await arrived
    client.resetAndDestroy()
    const [span] = await recording.all(1)
    expect(span?.attributes['error.type']).toBe('aborted')
    expect(span?.events).toEqual([])
  })

  describe('what Koa does stays what it is', () => {
    test('a request that nobody answers gets its 404', async () => {
      record()
      expect(await ask(await listen(app()), '/')).toMatchObject({ status: 404, body: 'Not Found' })
    })

    test('an app that answers by itself has its span', async () => {
      const span = await trace1(
        app().use((ctx) => {
          ctx.respond = false
          ctx.res.statusCode = 202
          ctx.res.end('by hand')
        }),
        '/',
      )
      expect(span.attributes['http.response.status_code']).toBe(202)
    })

    test('the error handler that the app put on its context is called, with the context as this', async () => {
      const application = app()
      Object.assign(application.context, {
        onerror(this: Koa.Context, error?: Error) {
          if (error == null) return
          this.res.statusCode = 503
          this.res.end(`handled ${error.message}`)
        },
      })
      application.use(() => {
        throw new Error('it')
      })
      const recording = record()
      expect(await ask(await listen(application), '/')).toMatchObject({ status: 503, body: 'handled it' })
      const [span] = await recording.all(1)
      expect(exceptions(span)).toEqual(['it'])
    })

    test('the error handler that a middleware put on the context of one request is called, and the error is told', async () => {
      const application = app().use(async (ctx, next) => {
        ctx.onerror = function onerror(this: Koa.Context, error?: Error) {
          if (error == null) return
          this.res.statusCode = 503
          this.res.end('handled')
        }
        await next()
      })
      application.use(() => {
        throw new TypeError('it')
      })
      const recording = record()
      expect(await ask(await listen(application), '/')).toMatchObject({ status: 503, body: 'handled' })
      const [span] = await recording.all(1)
      expect(exceptions(span)).toEqual(['it'])
      expect(span?.attributes).toMatchObject({ 'error.type': 'TypeError' })
    })

    test('what is thrown and is no error is told as it is, not as Koa words it', async () => {
      const application = app().use(() => {
        throw 'a text'
      })
      application.silent = true
      const recording = record()
      expect(await ask(await listen(application), '/')).toMatchObject({ status: 500 })
      const [span] = await recording.all(1)
      expect(exceptions(span)).toEqual(['a text'])
    })

    test('app.currentContext is the context of the request', async () => {
      const application = new Application({ asyncLocalStorage: true })
      let isSame = false
      application.use(tracing()).use(async (ctx) => {
        await new Promise(setImmediate)
        isSame = application.currentContext === ctx
        ctx.body = 'ok'
      })
      await trace1(application, '/')
      expect(isSame).toBe(true)
    })

    test('a stack trace names the middleware', () => {
      expect(tracing().name).toBe('tracing')
    })
  })

  test('the current span is the request’s in every handler, and in listeners for the body', async () => {
    const recording = record()
    const seen = new Set<string | undefined>()
    const look = () => seen.add(trace.getActiveSpan()?.spanContext().spanId)
    const router = new Router().post('/', async (ctx) => {
      look()
      ctx.req.on('data', look)
      ctx.res.on('close', look)
      await once(ctx.req, 'end')
      look()
      ctx.body = Readable.from(['ok'])
    })
    const server = await listen(app().use(router.routes()))
    await fetch(url(server, '/'), { method: 'POST', body: 'hello' })
    const [span] = await recording.all(1)
    expect([...seen]).toEqual([span?.spanContext().spanId])
  })

  test('the functions of the app are given ctx', async () => {
    const recording = record()
    const application = new Application()
    application.use(
      tracing({
        ignore: (ctx) => ctx.path === '/health',
        inbound: (ctx) => (ctx.get('x-internal') === '' ? 'ignore' : 'continue'),
        attributes: (ctx) => ({ 'app.user': ctx.state['user'], 'app.status': ctx.status }),
        spanName: (ctx) => `${ctx.method} custom`,
      }),
    )
    application.use((ctx) => {
      ctx.state['user'] = 'ann'
      ctx.body = 'ok'
    })
    const server = await listen(application)
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    await fetch(url(server, '/health'))
    await fetch(url(server, '/a'), { headers: { traceparent } })
    await fetch(url(server, '/b'), { headers: { traceparent, 'x-internal': 'yes' } })
    const [a, b] = await recording.all(2)
    expect(a).toMatchObject({ name: 'GET custom', attributes: { 'app.user': 'ann', 'app.status': 200 } })
    expect(a?.parentSpanContext).toBeUndefined()
    expect(b?.parentSpanContext?.spanId).toBe('b7ad6b7169203331')
  })

  test('mounted twice, it makes one span', async () => {
    const span = await trace1(app().use(tracing()).use(ok), '/')
    expect(span.name).toBe('GET')
  })

  test('HTTP/2 requests have their spans', async () => {
    const recording = record()
    const router = new Router().get('/users/:id', ok)
    const server = createHttp2Server(app().use(router.routes()).callback())
    const { client } = await http2ClientOf(server)
    const stream = client.request({ ':path': '/users/1' })
    stream.resume()
    await once(stream, 'end')
    const [span] = await recording.all(1)
    expect(span).toMatchObject({ name: 'GET /users/:id', status: { code: 0 } })
    expect(span?.attributes['network.protocol.version']).toBe('2')
  })

  function app(): Koa {
    const application = new Application()
    application.silent = true
    return application.use(tracing())
  }
})

test('an unknown option is a TypeError', () => {
  expect(() => tracing({ ignored: '/health' } as never)).toThrow(
    /^@throughline\/koa: tracing\(\): expected options among ignore, .*"ignored"/,
  )
})

/** The contract's app on this copy of Koa. */
function adapter(Application: typeof Koa): Adapter {
  return {
    gaps: { errorHandlers: true, routeAtStart: true },
    async serve({ routes = {}, mounted, onError }, options, mounts, later) {
      const koa = await import('@throughline/koa')
      const app = new Application()
      app.silent = true
      for (let i = 0; i < mounts; i += 1)
        app.use(koa.tracing((i === 0 ? options : later) as Parameters<typeof tracing>[0]))
      app.use((ctx, next) =>
        next().catch((error: unknown) => {
          if (onError === undefined) throw error
          onError(error, exchange(ctx))
        }),
      )
      app.use(routed(routes))
      if (mounted !== undefined) app.use(routed(mounted.routes, mounted.prefix))
      return listening(createServer(app.callback()))
    },
  }
}

function routed(routes: Routes, prefix = ''): Koa.Middleware {
  const router = new Router({ prefix })
  for (const [key, handler] of Object.entries(routes)) {
    const [method = '', path = ''] = key.split(' ')
    router.register(path, [method], async (ctx) => void (await handler(exchange(ctx))))
  }
  return router.routes() as Koa.Middleware
}

function exchange(ctx: Koa.Context): Exchange {
  return {
    params: ctx['params'] ?? {},
    request: ctx.req,
    response: ctx.res,
    answer(status, body = '') {
      ctx.status = status
      ctx.body = body
    },
    stream(body) {
      ctx.body = body
    },
  }
}
