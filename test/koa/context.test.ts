import { trace } from '@opentelemetry/api'
import { tracing } from '@throughline/koa'
import type Koa from 'koa'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { describe, expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { applications, ask, listen, ok, pass, traced, withRouters } from './apps.ts'

/** As koa-connect runs the middleware of Express in Koa: `next()` is called by its callback. */
function connected(
  run: (request: IncomingMessage, response: ServerResponse, done: (error?: unknown) => void) => void,
): Koa.Middleware {
  return (ctx, next) =>
    new Promise((resolve, reject) => {
      run(ctx.req, ctx.res, (error) => (error ? reject(error as Error) : resolve(next())))
    })
}

/** A pool of one: the first is let in when the second comes, by the second's own call. */
function limiter(waiting: (() => void)[]): Koa.Middleware {
  return connected((_request, _response, done) => {
    const first = waiting.pop()
    if (first === undefined) return void waiting.push(done)
    first()
    done()
  })
}

describe.each(withRouters)(
  '%s, with middlewareSpans: what another request calls back',
  (_name, Application, Router) => {
    test('hands on to its own request', async () => {
      const recording = record()
      const waiting: (() => void)[] = []
      const seen = new Map<string, unknown>()
      const router = new Router().get('/:name', (ctx) => {
        seen.set(ctx.path, trace.getActiveSpan()?.spanContext().traceId)
        ctx.body = 'ok'
      })
      const app = traced(Application, { middlewareSpans: true }).use(limiter(waiting)).use(router.routes())
      const server = await listen(app)
      const first = ask(server, '/first')
      await vi.waitUntil(() => waiting.length === 1)
      await Promise.all([first, ask(server, '/second')])
      for (const path of ['/first', '/second']) {
        const span = await recording.span(({ attributes }) => attributes['url.path'] === path)
        expect(seen.get(path)).toBe(span.spanContext().traceId)
      }
    })
  },
)

describe.each(applications)('%s: a middleware that is called back', (_name, Application) => {
  test('with an error answers as it did, and so does a second call of next()', async () => {
    record()
    const failures: unknown[] = []
    const make = (app: Koa) => {
      app.silent = true
      app.on('error', (error: Error) => failures.push(error.message))
      app.use(connected((request, _response, done) => done(request.url === '/error' && new Error('it'))))
      app.use((ctx, next) => (ctx.path === '/twice' ? next().then(next) : next()))
      return app.use((ctx, next) => {
        if (ctx.path === '/ok') ctx.body = 'ok'
        return next()
      })
    }
    const [without, with_] = await Promise.all([
      listen(make(new Application())),
      listen(make(traced(Application))),
    ])
    for (const path of ['/ok', '/nothing', '/error', '/twice']) {
      const [a, b] = [await ask(without, path), await ask(with_, path)]
      expect([b.status, b.body]).toEqual([a.status, a.body])
    }
    expect(failures).toEqual(['it', 'it', 'next() called multiple times', 'next() called multiple times'])
  })

  test('runs once, where the tracing is in a middleware of the app', async () => {
    record()
    const seen: string[] = []
    const note =
      (name: string): Koa.Middleware =>
      (_ctx, next) => {
        seen.push(name)
        return next()
      }
    const line = tracing()
    const app = new Application().use(note('first')).use((ctx, next) => line(ctx, next))
    await ask(await listen(app.use(note('second')).use(note('third'))), '/')
    expect(seen).toEqual(['first', 'second', 'third'])
  })

  // koa-compose 4.2 takes them; 4.1 refuses the app. Either is installed with Koa.
  test('runs as koa-compose has it where the app’s list has lists in it', async () => {
    record()
    const outcomes: unknown[] = []
    for (const app of [
      new Application(),
      traced(Application),
      traced(Application, { middlewareSpans: true }),
    ]) {
      app.use(pass).use(pass)
      app.middleware.push([pass, ok] as unknown as Koa.Middleware)
      try {
        const { status, body } = await ask(await listen(app), '/')
        outcomes.push([status, body])
      } catch (error) {
        outcomes.push((error as Error).message)
      }
    }
    const [plain] = outcomes
    expect([[200, 'ok'], 'Middleware must be composed of functions!']).toContainEqual(plain)
    expect(outcomes).toEqual([plain, plain, plain])
  })

  test('runs with what the app has at first, or more, also where two apps have the same tracing', async () => {
    record()
    const answers: number[] = []
    for (const shared of [pass, tracing()]) {
      const app = new Application().use(shared).use(pass).use(pass)
      const other = await listen(new Application().use(shared))
      const server = await listen(app)
      await ask(server, '/')
      app.use(ok)
      await ask(other, '/')
      answers.push((await ask(server, '/')).status)
    }
    expect(answers[1]).toBe(answers[0])
  })

  test('runs with what the app has when it is asked first; what is added later runs as it did', async () => {
    record()
    const answers: number[][] = []
    for (const app of [new Application(), traced(Application)]) {
      app.use(pass).use(pass)
      const server = await listen(app)
      const { status } = await ask(server, '/')
      app.use((ctx) => {
        ctx.body = 'late'
      })
      answers.push([status, (await ask(server, '/')).status])
    }
    expect(answers[1]).toEqual(answers[0])
  })
})
