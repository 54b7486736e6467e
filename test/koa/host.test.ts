import { tracing, type TracingOptions } from '@throughline/koa'
import type Koa from 'koa'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { setImmediate as turn } from 'node:timers/promises'
import { runInNewContext } from 'node:vm'
import { describe, expect, test, vi } from 'vitest'
import { complaints } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { applications, ask, listen, ok, withRouters } from './apps.ts'

type Handler = (ctx: Koa.Context, next: Koa.Next) => unknown

/** Sets what the handler says, and nothing else. */
const body =
  (given: unknown, more: Partial<Koa.Context> = {}): Handler =>
  (ctx) => {
    ctx.body = given
    Object.assign(ctx, more)
  }

const failing =
  (error: unknown): Handler =>
  (ctx) => {
    ctx.set('x-mine', '1')
    ctx.body = 'something else'
    throw error
  }

const withStatus = (more: object) => Object.assign(new Error('boom'), more)

/** What Koa does with what middleware leaves behind. */
const handlers: Record<string, Handler> = {
  'a text': body('hello'),
  HTML: body('<p>hello</p>'),
  JSON: body({ hello: 'world' }),
  'a buffer': body(Buffer.from('hello')),
  'an empty text': body(''),
  'an empty text without a type': body('', { type: null as unknown as string }),
  null: body(null),
  'null that is 200': body(null, { status: 200 }),
  'null that is 205': body(null, { status: 205 }),
  undefined: body(undefined),
  'a file': (ctx) => {
    ctx.body = createReadStream(import.meta.filename)
  },
  'a file in the place of a text': (ctx) => {
    ctx.body = 'hello'
    ctx.body = createReadStream(import.meta.filename)
  },
  'a stream of a known length': (ctx) => {
    ctx.length = 5
    ctx.body = Readable.from(['hello'])
  },
  'a stream that breaks before its first byte': (ctx) => {
    const made = new PassThrough()
    ctx.body = made
    setImmediate(() => made.destroy(new Error('broken')))
  },
  nothing: () => {},
  'a status alone': (ctx) => void (ctx.status = 400),
  'a status that has no body': (ctx) => void (ctx.status = 304),
  'a message of its own': (ctx) => {
    ctx.status = 200
    ctx.message = 'fine'
  },
  'a status that nobody knows': (ctx) => void (ctx.res.statusCode = 701),
  'a type alone': (ctx) => {
    ctx.status = 200
    ctx.type = 'application/javascript'
  },
  'an answer by hand': (ctx) => {
    ctx.respond = false
    ctx.res.setHeader('content-type', 'text/plain')
    setImmediate(() => ctx.res.end('by hand'))
  },
  'an answer by hand that Koa finds begun': async (ctx) => {
    ctx.status = 200
    ctx.res.write('begun, ')
    await turn()
    ctx.res.end('ended')
  },
  'headers that were sent before the error': async (ctx) => {
    ctx.status = 200
    ctx.flushHeaders()
    await turn()
    setImmediate(() => ctx.res.end())
    throw new Error('late')
  },
  'a redirect': (ctx) => ctx.redirect('/elsewhere'),
  cookies: (ctx) => {
    ctx.cookies.set('a', '1')
    ctx.body = ctx.cookies.get('b') ?? 'none'
  },
  'an attachment': (ctx) => {
    ctx.attachment('a.txt')
    ctx.body = 'hello'
  },
  'what comes after next()': async (ctx, next) => {
    await next()
    ctx.body = 'after'
  },
  'next() that is called twice': async (_ctx, next) => {
    await next()
    await next()
  },
  'ctx.throw': (ctx) => ctx.throw(418, 'teapot'),
  'ctx.assert': (ctx) => ctx.assert(false, 401, 'who are you?', { realm: 'a' }),
  'an error': failing(new TypeError('no such thing')),
  'an error with a status': failing(withStatus({ statusCode: 404 })),
  'an error with a status that is none': failing(withStatus({ status: 'notnumber' })),
  'an error with a status out of range': failing(withStatus({ status: 9999 })),
  'an error that says its headers': failing(
    withStatus({
      status: 418,
      expose: true,
      headers: { 'x-new': 'yes', 'content-length': '1', 'set-cookie': ['a=1', 'b=2'] },
    }),
  ),
  'an error of another realm': failing(runInNewContext("new Error('there')")),
  'a text that is thrown': failing('text'),
  'an object that is thrown': failing({ key: 'value' }),
  'a file that was not found': failing(withStatus({ code: 'ENOENT' })),
  'an error that the request itself answers': (ctx) => {
    ctx.onerror = function mine(error) {
      // Koa calls it at the end of each response, too.
      if (error === null) return
      ctx.res.statusCode = 503
      ctx.res.end(`${this === ctx} ${error.message} ${ctx.onerror.name} ${Object.keys(ctx).join()}`)
    }
    throw new Error('it')
  },
  'a body that JSON cannot hold': (ctx) => {
    const round: Record<string, unknown> = {}
    round['self'] = round
    ctx.body = round
  },
}

interface Answer {
  readonly line: string
  readonly headers: readonly string[]
  readonly body: string
}

interface Told extends Answer {
  /** What the app's listener of errors was told. */
  readonly errors: string[]
  /** What the app could see of the request. */
  readonly seen: unknown[]
}

async function told(response: IncomingMessage): Promise<Answer> {
  let body = ''
  for await (const chunk of response.setEncoding('utf8')) body += String(chunk)
  const { statusCode, statusMessage, rawHeaders } = response
  // What the time is, is not compared.
  const headers = rawHeaders.map((each, i) => (rawHeaders[i - 1] === 'Date' ? '' : each))
  return { line: `${statusCode} ${statusMessage}`, headers, body }
}

/** Koa 3 answers nothing where a stream breaks before its first byte. */
function hungUp({ code }: NodeJS.ErrnoException): Answer {
  return { line: String(code), headers: [], body: '' }
}

/** What one handler is answered by, and what the app sees of it. */
async function tell(
  Application: typeof Koa,
  handler: Handler,
  method: string,
  options?: TracingOptions,
): Promise<Told> {
  const errors: string[] = []
  const seen: unknown[] = []
  const app = new Application()
  if (options !== undefined) app.use(tracing(options))
  app.on('error', (error: Error, ctx?: Koa.Context) => {
    errors.push(`${String(error.message)} ${error.constructor.name} ${ctx?.path ?? 'nowhere'}`)
  })
  app.use(async (ctx, next) => {
    const { req, res } = ctx
    seen.push(Object.keys(app), Object.keys(app.context))
    seen.push(Object.keys(ctx), Object.keys(ctx.request), ctx.toJSON(), ctx.onerror.length, ctx.onerror.name)
    seen.push(
      [req, res, req.socket].map((each) =>
        each.eventNames().map((event) => [String(event), each.listenerCount(event)]),
      ),
    )
    await next()
    seen.push(ctx.status, ctx.body === undefined)
  })
  app.use(handler).use((_ctx, next) => next())
  const server = await listen(app)
  const { port } = server.address() as AddressInfo
  const headers = { host: 'a', cookie: 'b=2' }
  const asked = request({ port, method, headers, agent: false }).end()
  const answer = await once(asked, 'response').then(([response]) => told(response), hungUp)
  return { ...answer, errors, seen }
}

describe.each(applications)('%s answers with tracing as it does without:', (_name, Application) => {
  test.each(Object.keys(handlers))('%s', async (name) => {
    const handler = handlers[name] as Handler
    const recording = record()
    for (const method of ['GET', 'HEAD']) {
      const bare = await tell(Application, handler, method)
      expect(await tell(Application, handler, method, {})).toEqual(bare)
      expect(await tell(Application, handler, method, { middlewareSpans: true })).toEqual(bare)
    }
    // One of each request that was traced.
    await vi.waitUntil(() => recording.spans.filter(({ kind }) => kind === 1).length === 4)
  })
})

test.each(withRouters)(
  '%s: tracing that is mounted without a call is told of once, and the app answers untraced',
  async (_name, Application, Routes) => {
    const recording = record()
    const said = complaints()
    const application = new Application()
    application.use(tracing)
    const router = new Routes()
    router.use('/a', tracing)
    router.get('/a/:id', tracing, ok)
    const server = await listen(application.use(router.routes()))
    for (const path of ['/a/1', '/a/2']) {
      expect(await ask(server, path)).toMatchObject({ status: 200, body: 'ok' })
    }
    expect((await ask(server, '/b')).status).toBe(404)
    expect(said).toEqual([
      expect.stringMatching(
        /app\.use\(tracing\): expected a call of tracing, received a Koa context .*; example: app\.use\(tracing\(\)\)$/,
      ),
    ])
    expect(recording.spans).toEqual([])
  },
)
