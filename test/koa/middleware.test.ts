import type { ReadableSpan } from '@throughline/core'
import { tracing, type TracingOptions } from '@throughline/koa'
import mount from 'koa-mount'
import type Koa from 'koa'
import { once } from 'node:events'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { applications, ask, listen, ok, pass, traced, withRouters, type Asked } from './apps.ts'

const ALL: TracingOptions = { middlewareSpans: true }

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** The spans of one request, each with its name indented below its parent, in order of their starts. */
async function treeOf(app: Pick<Koa, 'listen'>, path: string, asked?: Asked): Promise<string[]> {
  return drawn(await spansOf(app, path, asked))
}

async function spansOf(app: Pick<Koa, 'listen'>, path: string, asked?: Asked): Promise<ReadableSpan[]> {
  const recording = record()
  await ask(await listen(app), path, asked)
  await recording.span(({ kind }) => kind === 1)
  await recording.stop()
  return recording.spans
}

function drawn(spans: readonly ReadableSpan[], parent?: string, indent = ''): string[] {
  return spans
    .filter(({ parentSpanContext }) => parentSpanContext?.spanId === parent)
    .toSorted((a, b) => a.startTime[0] - b.startTime[0] || a.startTime[1] - b.startTime[1])
    .flatMap((span) => [indent + span.name, ...drawn(spans, span.spanContext().spanId, `${indent}  `)])
}

describe.each(withRouters)('%s: with middlewareSpans', (_name, Application, Router) => {
  test('each middleware, and each layer of a router, has a span in the one that awaits it', async () => {
    const users = new Router({ prefix: '/api' })
    users.param('id', (_id, _ctx, next) => next())
    users.use(async function onlyMembers(_ctx, next) {
      await next()
    })
    users.get('/users/:id', pass, async function showUser(ctx) {
      await turn()
      ctx.body = 'ok'
    })
    const app = traced(Application, ALL)
    app.use(async function first(_ctx, next) {
      await next()
    })
    app.use(async (_ctx, next) => {
      await turn()
      await next()
    })
    app.use(users.routes())
    const spans = await spansOf(app, '/api/users/7')
    expect(drawn(spans)).toEqual([
      'GET /api/users/:id',
      '  middleware first',
      '    middleware <anonymous>',
      '      router /api',
      '        middleware onlyMembers',
      '          param id',
      '            handler /api/users/:id',
      '              handler /api/users/:id',
    ])
    const functions = spans.map(({ attributes }) => attributes['code.function.name'])
    expect(functions).toEqual([
      'showUser',
      'pass',
      undefined,
      'onlyMembers',
      undefined,
      undefined,
      'first',
      undefined,
    ])
    for (const { status, events, kind } of spans.slice(0, -1)) {
      expect({ status, events, kind }).toEqual({ status: { code: 0 }, events: [], kind: 0 })
    }
  })

  test('what the app and its router hold is what was put there, also for routes that are added later', async () => {
    const router = new Router().get('/a', ok)
    const app = traced(Application, ALL).use(pass).use(router.routes())
    const before = {
      middleware: [...app.middleware],
      stack: router.stack.map((layer) => [layer, ...layer.stack]),
    }
    const recording = record()
    const server = await listen(app)
    await ask(server, '/a')
    expect({
      middleware: app.middleware,
      stack: router.stack.map((layer) => [layer, ...layer.stack]),
    }).toEqual(before)
    expect(app.middleware.every((each, index) => each === before.middleware[index])).toBe(true)
    expect(router.stack[0]?.stack[0]).toBe(ok)
    expect(Object.keys(router)).not.toContain('match')
    router.get('/late', ok)
    await ask(server, '/late')
    await recording.span(({ name }) => name === 'GET /late')
    expect(recording.spans.map(({ name }) => name)).toContain('handler /late')
  })

  test('a router that has no route for the request hands it on', async () => {
    const app = traced(Application, ALL).use(new Router().get('/a', ok).routes())
    app.use(function last(ctx) {
      ctx.body = 'last'
    })
    expect(await treeOf(app, '/b')).toEqual(['GET', '  router', '    middleware last'])
  })

  test('a router that nobody may change is one middleware', async () => {
    const router = Object.freeze(new Router().get('/a', ok))
    const app = traced(Application, ALL).use(router.routes())
    expect(await treeOf(app, '/a')).toEqual(['GET /a', '  router'])
  })

  test('an app in a mount is one middleware, and its route is the route', async () => {
    const inner = new Application().use(new Router().get('/users/:id', ok).routes())
    const app = traced(Application, ALL).use(mount('/api', inner as unknown as Koa))
    expect(await treeOf(app, '/api/users/1')).toEqual(['GET /api/users/:id', '  middleware <anonymous>'])
  })
})

describe.each(applications)('%s: with middlewareSpans', (name, Application) => {
  test('a span lasts until the promise of its middleware has settled', async () => {
    const order: string[] = []
    const app = traced(Application, ALL)
    app.use(async function outer(ctx, next) {
      await next()
      order.push('after next')
      ctx.body = 'ok'
    })
    app.use(async function inner() {
      await turn()
      order.push('inner')
    })
    const spans = await spansOf(app, '/')
    expect(order).toEqual(['inner', 'after next'])
    expect(spans.map((span) => span.name)).toEqual(['middleware inner', 'middleware outer', 'GET'])
  })

  test('an error that leaves it makes it one, and is told once, by the request', async () => {
    const app = traced(Application, ALL)
    app.use(async function recovering(ctx, next) {
      await next().catch(() => (ctx.body = 'recovered'))
    })
    app.use(function failing() {
      throw new RangeError('too far')
    })
    const [failing, recovering, server] = await spansOf(app, '/')
    expect(failing).toMatchObject({
      name: 'middleware failing',
      status: { code: 2 },
      attributes: { 'error.type': 'RangeError' },
      events: [],
    })
    expect(recovering).toMatchObject({ name: 'middleware recovering', status: { code: 0 } })
    expect(server?.status.code).toBe(0)
  })

  test('an error of the client’s makes none', async () => {
    const app = traced(Application, ALL).use((ctx) => ctx.throw(404))
    const spans = await spansOf(app, '/')
    expect(spans.map(({ status }) => status.code)).toEqual([0, 0])
  })

  test('an error that cannot be read is handed on as it is, and makes it one', async () => {
    const app = traced(Application, ALL)
    const { proxy: unreadable, revoke } = Proxy.revocable({}, {})
    let caught: unknown
    app.use(async function recovering(ctx, next) {
      await next().catch((error: unknown) => ([caught, ctx.body] = [error, 'recovered']))
    })
    app.use(function failing() {
      revoke()
      throw unreadable
    })
    const [failing, recovering] = await spansOf(app, '/')
    expect(caught === unreadable).toBe(true)
    expect(failing).toMatchObject({ name: 'middleware failing', status: { code: 2 } })
    expect(recovering).toMatchObject({ name: 'middleware recovering', status: { code: 0 } })
  })

  test('those that are not slow have none', async () => {
    const app = traced(Application, { middlewareSpans: { slowerThan: 60_000 } })
      .use(pass)
      .use(ok)
    expect(await treeOf(app, '/')).toEqual(['GET'])
    const slow = traced(Application, { middlewareSpans: { slowerThan: 0 } })
      .use(pass)
      .use(ok)
    expect(await treeOf(slow, '/')).toEqual(['GET', '  middleware pass', '  middleware ok'])
  })

  test('only what is mounted behind tracing has one, and tracing that is mounted twice makes none', async () => {
    const app = new Application().use(pass).use(tracing(ALL)).use(tracing(ALL)).use(ok)
    expect(await treeOf(app, '/')).toEqual(['GET', '  middleware tracing', '    middleware ok'])
  })

  test('one tracing that is mounted twice is passed the second time', async () => {
    const line = tracing(ALL)
    const app = new Application().use(line).use(pass).use(line).use(ok)
    expect(await treeOf(app, '/')).toEqual([
      'GET',
      '  middleware pass',
      '    middleware tracing',
      '      middleware ok',
    ])
  })

  test('an answer, a 404, an error and a second call of next() are what they are without', async () => {
    record()
    const failures: unknown[] = []
    const make = (options: TracingOptions) => {
      const app = traced(Application, options).on('error', (error: Error) => failures.push(error.message))
      app.use(async (ctx, next) => {
        await next()
        if (ctx.path === '/twice') await next()
      })
      return app.use((ctx, next) => {
        if (ctx.path === '/ok') ctx.body = 'ok'
        if (ctx.path === '/error') throw new Error('it')
        return next()
      })
    }
    const [without, with_] = await Promise.all([listen(make({})), listen(make(ALL))])
    for (const path of ['/ok', '/nothing', '/error', '/twice']) {
      const [a, b] = [await ask(without, path), await ask(with_, path)]
      expect([b.status, b.body]).toEqual([a.status, a.body])
    }
    expect(failures).toEqual(['it', 'it', 'next() called multiple times', 'next() called multiple times'])
  })

  test('it runs what the app has when it is asked for', async () => {
    const app = traced(Application, ALL).use(pass)
    expect(await treeOf(app, '/')).toEqual(['GET', '  middleware pass'])
    app.use(ok)
    expect(await treeOf(app, '/')).toEqual(['GET', '  middleware pass', '    middleware ok'])
  })

  test('those of a middleware that never answers end when the client leaves', async () => {
    const app = traced(Application, ALL).use(pass)
    app.use(function stuck(ctx) {
      ctx.req.socket.destroy()
      return new Promise(() => {})
    })
    const recording = record()
    await ask(await listen(app), '/').catch(() => {})
    const spans = await recording.all(3)
    expect(drawn(spans)).toEqual(['GET', '  middleware pass', '    middleware stuck'])
    expect(spans.map(({ status }) => status.code)).toEqual([2, 0, 0])
  })

  test('one that fails since the client has left ends with its error', async () => {
    const app = traced(Application, ALL)
    app.use(async function stream(ctx) {
      ctx.respond = false
      ctx.res.write('a')
      const closed = once(ctx.res, 'close')
      ctx.req.socket.destroy()
      await closed
      throw new RangeError('nobody is there')
    })
    const recording = record()
    await ask(await listen(app), '/').catch(() => {})
    const layer = await recording.span(({ name }) => name === 'middleware stream')
    expect(layer).toMatchObject({ status: { code: 2 }, attributes: { 'error.type': 'RangeError' } })
  })

  test('a tracing that the app has in another middleware makes the request’s span alone', async () => {
    const app = new Application().use(mount('/', new Application().use(tracing(ALL)).use(ok)))
    expect(await treeOf(app, '/')).toEqual(['GET'])
  })

  test('nothing has one where the request is not recorded, is ignored, or the option is off', async () => {
    const recording = record({ sampling: 0 })
    expect((await ask(await listen(traced(Application, ALL).use(ok)), '/')).body).toBe('ok')
    await recording.stop()
    expect(recording.spans).toEqual([])
    expect(await treeOf(traced(Application, { middlewareSpans: false }).use(ok), '/')).toEqual(['GET'])
    const app = traced(Application, { ...ALL, ignore: '/health' }).use(ok)
    const all = record()
    const server = await listen(app)
    await ask(server, '/health')
    await ask(server, '/')
    await all.all(2)
  })

  test.runIf(name === 'Koa 3')('it is put together by the compose that the app was given', async () => {
    const seen: string[] = []
    const { compose } = new Application() as unknown as {
      compose: (list: Koa.Middleware[]) => Koa.Middleware
    }
    const noting = (list: Koa.Middleware[]) =>
      compose(
        list.map((each) => (ctx, next) => {
          seen.push(each.name)
          return each(ctx, next)
        }),
      )
    const app = new Application({ compose: noting } as never).use(tracing(ALL)).use(ok)
    expect(await treeOf(app, '/')).toEqual(['GET', '  middleware ok'])
    expect(seen).toEqual(['tracing', 'ok'])
  })
  test.runIf(name === 'Koa 3')('what is not recorded runs as Koa has put it together', async () => {
    const { compose } = new Application() as unknown as {
      compose: (list: Koa.Middleware[]) => Koa.Middleware
    }
    let times = 0
    const counting = (list: Koa.Middleware[]) => {
      times += 1
      return compose(list)
    }
    record({ sampling: 0 })
    const app = new Application({ compose: counting } as never).use(tracing(ALL)).use(ok)
    expect((await ask(await listen(app), '/')).body).toBe('ok')
    expect(times).toBe(1)
  })
})
