import { tracing } from '@throughline/koa'
import mount from 'koa-mount'
import type Koa from 'koa'
import { once } from 'node:events'
import { request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PassThrough } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { exceptions, record } from '../recording.ts'
import { applications, ask, listen, pass, trace1, traced } from './apps.ts'

const fail: Koa.Middleware = () => {
  throw new TypeError('it')
}

/** Answers 500 for what comes up from below, and tells nobody. */
const sorry: Koa.Middleware = async (ctx, next) => {
  try {
    await next()
  } catch {
    ctx.status = 500
    ctx.body = 'sorry'
  }
}

type OnError = (this: Koa.Context, error?: Error) => void

const ownHandler: OnError = function answerByHand(error) {
  if (error == null) return
  this.res.statusCode = 503
  this.res.end(`handled ${error.message}`)
}

describe.each(applications)('%s: an error is recorded once', (name, Application) => {
  const app = () => traced(Application)

  async function expectRecorded(application: Pick<Koa, 'listen'>, message: string, status: number) {
    const span = await trace1(application, '/')
    expect(exceptions(span)).toEqual([message])
    expect(span.events[0]?.attributes?.['exception.stacktrace']).toContain(message)
    expect(span.status).toEqual({ code: 2, message })
    expect(span.attributes['http.response.status_code']).toBe(status)
    return span
  }

  test('that is thrown, rejected, or thrown by ctx.throw with a status of 500 and more', async () => {
    await expectRecorded(app().use(pass).use(fail), 'it', 500)
    await expectRecorded(
      app().use(() => Promise.reject(new Error('later'))),
      'later',
      500,
    )
    const span = await expectRecorded(
      app().use((ctx) => ctx.throw(503, 'too busy')),
      'too busy',
      503,
    )
    expect(span.attributes['error.type']).toBe('ServiceUnavailableError')
  })

  test.each([400, 401, 404, 451])('but not one of the client, with status %i', async (status) => {
    const span = await trace1(
      app().use(() => {
        throw Object.assign(new Error('yours'), { status, expose: true })
      }),
      '/',
    )
    expect(span.status).toEqual({ code: 0 })
    expect(span.events).toEqual([])
    expect(span.attributes).not.toHaveProperty('error.type')
  })

  test('where middleware above tracing handles it: first, in an app that is mounted, and in a subclass', async () => {
    await expectRecorded(new Application().use(sorry).use(tracing()).use(fail), 'it', 500)
    const inner = new Application().use(tracing()).use(fail)
    await expectRecorded(new Application().use(sorry).use(mount('/', inner)), 'it', 500)
    class Handled extends Application {
      handleRequest(ctx: Koa.Context, run: (ctx: Koa.Context) => Promise<void>) {
        const { res } = ctx
        return run(ctx).catch(() => {
          res.statusCode = 500
          res.end('sorry')
        })
      }
    }
    await expectRecorded((new Handled() as Koa).use(tracing()).use(fail), 'it', 500)
  })

  test.runIf(name === 'Koa 3')('where the compose that the app was given handles it', async () => {
    const { compose } = new Application() as unknown as {
      compose: (list: Koa.Middleware[]) => Koa.Middleware
    }
    const forgiving = { compose: (list: Koa.Middleware[]) => compose([sorry, ...list]) }
    await expectRecorded(new Application(forgiving as never).use(tracing()).use(fail), 'it', 500)
  })

  test('where the app has put its own onerror on its context, before the first request or after', async () => {
    const application = app().use(fail)
    const recording = record()
    const server = await listen(application)
    expect((await ask(server, '/')).status).toBe(500)
    Object.assign(application.context, { onerror: ownHandler })
    expect(await ask(server, '/')).toMatchObject({ status: 503, body: 'handled it' })
    const spans = await recording.all(2)
    expect(spans.map(exceptions)).toEqual([['it'], ['it']])
  })

  test('where the request was given its own onerror, however late', async () => {
    const application = app().use(async (ctx, next) => {
      await new Promise(setImmediate)
      ctx.onerror = ownHandler
      expect([ctx.onerror.name, ctx.onerror.length]).toEqual(['answerByHand', 1])
      await next()
    })
    await expectRecorded(application.use(fail), 'it', 503)
  })

  test('by an app that has a listener for errors, which hears it as ever', async () => {
    const seen: unknown[] = []
    const application = app().on('error', (error, ctx) => seen.push(error.message, ctx.path))
    await expectRecorded(application.use(fail), 'it', 500)
    expect(seen).toEqual(['it', '/'])
  })

  test('that comes after the app has answered 500 by hand', async () => {
    const application = app().use((ctx) => {
      ctx.respond = false
      ctx.res.statusCode = 500
      // Such a body is not with the client yet when the error is thrown.
      ctx.res.end(Buffer.alloc(20_000_000))
      throw new Error('too late')
    })
    await expectRecorded(application, 'too late', 500)
  })

  test('that comes when the headers are sent: the answer is cut off', async () => {
    const recording = record()
    const application = app().use(async (ctx) => {
      ctx.respond = false
      ctx.status = 200
      ctx.res.write('a part')
      await new Promise(setImmediate)
      ctx.res.destroy()
      throw new Error('halfway')
    })
    const { port } = (await listen(application)).address() as AddressInfo
    const [response] = await once(request({ port }).end(), 'response')
    await once(response.resume(), 'error')
    const [span] = await recording.all(1)
    expect(exceptions(span)).toEqual(['halfway'])
    expect(span?.attributes).toMatchObject({ 'http.response.status_code': 200, 'error.type': 'Error' })
  })

  test('of a stream that fails before its first byte', async () => {
    const application = app().use((ctx) => {
      const body = new PassThrough()
      ctx.body = body
      setImmediate(() => body.destroy(new RangeError('no file')))
    })
    application.on('error', () => {})
    const recording = record()
    const server = await listen(application)
    await ask(server, '/').catch(() => {})
    server.closeAllConnections()
    const [span] = await recording.all(1)
    expect(exceptions(span)).toEqual(['no file'])
  })

  test('but not one that error middleware recovers from, nor one that turns into one of the client’s', async () => {
    const recover = (status: number) =>
      app()
        .use(async (ctx, next) => {
          await next().catch((error: unknown) => ctx.app.emit('error', error, ctx))
          ctx.status = status
        })
        .use(fail)
    for (const status of [200, 422]) {
      const span = await trace1(recover(status), '/')
      expect(span).toMatchObject({ status: { code: 0 }, events: [] })
    }
  })

  test('and the answer, the events and the listeners are what they are without tracing', async () => {
    record()
    const seen: unknown[][] = [[], []]
    const apps = [new Application(), app()]
    for (const [index, each] of apps.entries()) {
      each.silent = true
      each.on('error', (error, ctx) => seen[index]?.push(error.message, ctx.status, ctx.headerSent))
      each.use((ctx) => {
        if (ctx.path === '/throw') ctx.throw(418, 'short', { headers: { 'x-tea': 'yes' } })
        if (ctx.path === '/text') throw 'a text'
        ctx.body = { toJSON: () => fail(ctx, async () => {}) }
      })
    }
    for (const path of ['/throw', '/text', '/json']) {
      const [bare, ours] = await Promise.all(apps.map(async (each) => ask(await listen(each), path)))
      expect(ours?.body).toBe(bare?.body)
      expect(ours?.status).toBe(bare?.status)
      expect([...(ours?.headers.keys() ?? [])]).toEqual([...(bare?.headers.keys() ?? [])])
    }
    expect(seen[1]).toEqual(seen[0])
    expect(seen[0]).toHaveLength(9)
    expect(apps[1]?.listeners('error')).toHaveLength(1)
    expect(apps[1]?.eventNames()).toEqual(apps[0]?.eventNames())
  })

  test('and an error that the app rejects with goes to whoever calls its middleware, as the same', async () => {
    record()
    const bug = new Error('it')
    const received: unknown[] = []
    const application = new Application()
    application.use((_ctx, next) => next().catch((error: unknown) => void received.push(error)))
    application.use(tracing()).use(() => Promise.reject(bug))
    await ask(await listen(application), '/')
    expect(received).toEqual([bug])
    expect(received[0]).toBe(bug)
  })
})
