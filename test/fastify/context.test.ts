import multipart from '@fastify/multipart'
import { context, propagation, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { AsyncResource } from 'node:async_hooks'
import { readFileSync } from 'node:fs'
import { request as secureRequest } from 'node:https'
import type { AddressInfo } from 'node:net'
import { Transform } from 'node:stream'
import { once } from 'node:events'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { FastifyInstance } from 'fastify'
import { symbolOf, type ReadableSpan } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import { said } from '../core/engine.ts'
import { record } from '../recording.ts'
import { ask, ok, traced, versions } from './app.ts'

const current = () => trace.getActiveSpan()?.spanContext().spanId

describe.each(versions)('%s: the current span is the request’s', (name, create) => {
  /** Everything that was seen is the one span's id. */
  async function expectOwn(app: FastifyInstance, seen: unknown[], init: RequestInit): Promise<void> {
    const recording = record()
    expect((await ask(app, '/', init)).status).toBe(200)
    const [span] = await recording.all(1)
    expect(seen.length).toBeGreaterThan(0)
    expect(new Set(seen)).toEqual(new Set([span?.spanContext().spanId]))
  }

  test('without a wrapper around our own hook, which would cost each request 0.4 KB', async () => {
    const recording = record()
    const app = traced(create)
    app.addHook('onRequest', function appHook(_request, _reply, done) {
      done()
    })
    let hooks: Function[] = []
    app.get('/', async (request) => {
      // Before 4.10 it was a plain property.
      const { onRequest } = Reflect.get(request, symbolOf(request, 'fastify.context') ?? 'context') as {
        onRequest: typeof hooks
      }
      hooks = onRequest
      return 'ok'
    })
    await ask(app, '/')
    await recording.all(1)
    // What Fastify has bound has no source text; what stands in for the app's hook does.
    expect(hooks.map((hook) => [hook.name, String(hook).includes('[native code]')])).toEqual([
      ['bound @throughline/fastify', true],
      ['bound appHook', false],
    ])
  })

  // @fastify/multipart 10 is for Fastify 5.
  if (name === 'Fastify 5') {
    test('while the parts of a form come in', async () => {
      const seen: unknown[] = []
      const app = traced(create)
      app.register(multipart)
      app.post('/', async (request) => {
        for await (const part of request.files()) {
          seen.push(current())
          part.file.on('end', () => seen.push(current()))
          await part.toBuffer()
        }
        return 'ok'
      })
      const body = new FormData()
      body.append('file', new Blob(['hello'.repeat(10_000)]), 'a.txt')
      await expectOwn(app, seen, { method: 'POST', body })
      expect(seen).toHaveLength(2)
    })
  }

  test('while a handler reads the raw body', async () => {
    const seen: unknown[] = []
    const app = traced(create)
    app.addContentTypeParser('text/raw', (_request, payload, done) => done(null, payload))
    app.post('/', async ({ raw }) => {
      for await (const _ of raw) seen.push(current())
      seen.push(current())
      return 'ok'
    })
    const body = 'x'.repeat(200_000)
    await expectOwn(app, seen, { method: 'POST', body, headers: { 'content-type': 'text/raw' } })
    expect(seen.length).toBeGreaterThan(1)
  })

  test('in a stream that a hook puts around the answer', async () => {
    const seen: unknown[] = []
    const app = traced(create)
    app.addHook('onSend', async (_request, _reply, payload) => {
      const upper = new Transform({
        transform(chunk, _encoding, done) {
          seen.push(current())
          done(null, String(chunk).toUpperCase())
        },
      })
      upper.end(payload)
      return upper
    })
    app.get('/', async () => 'hello')
    await expectOwn(app, seen, {})
  })

  test('in what the app mixes into its log', async () => {
    const seen: unknown[] = []
    const lines: string[] = []
    const logger = {
      level: 'info',
      stream: { write: (line: string) => void lines.push(line) },
      mixin: () => ({ span: current() ?? 'none' }),
    }
    const app = traced(create, {}, { logger, disableRequestLogging: true })
    app.get('/', async (request) => {
      request.log.info('in the handler')
      return 'ok'
    })
    const recording = record()
    await ask(app, '/')
    const [span] = await recording.all(1)
    const line = lines.map((each) => JSON.parse(each)).find(({ msg }) => msg === 'in the handler')
    seen.push(line?.span)
    expect(seen).toEqual([span?.spanContext().spanId])
  })
})

test.each(versions)('%s: a request over HTTPS says so', async (_name, create) => {
  const pem = (name: string) => readFileSync(new URL(`../core/certificates/${name}.pem`, import.meta.url))
  const recording = record()
  const app = traced(create, {}, { https: { key: pem('app.key'), cert: pem('app') } } as object)
  onTestFinished(() => app.close())
  app.get('/', async () => 'ok')
  await app.listen()
  const { port } = app.server.address() as AddressInfo
  const [response] = await once(secureRequest({ port, rejectUnauthorized: false }).end(), 'response')
  response.resume()
  const [span] = await recording.all(1)
  expect(span?.attributes).toMatchObject({ 'url.scheme': 'https', 'server.port': port })
})

/** Those that a request waits for on its way to the answer; with the number of arguments before their `done`. */
const waiting = [
  ['onRequest', 2],
  ['preParsing', 3],
  ['preValidation', 2],
  ['preHandler', 2],
  ['preSerialization', 3],
  ['onSend', 3],
] as const

type Hook = (...given: unknown[]) => void
type AddHook = (name: string, hook: Hook) => void
type TracingOptions = Parameters<typeof traced>[1]

describe.each(versions)('%s: a hook that waits for what another request releases', (_name, create) => {
  /**
   * Two requests, of which the first is let in by the second. Whose span is current in all that comes after that, by the
   * path of the request.
   */
  async function queued(
    name: string,
    count: number,
    headers: (path: string) => Record<string, string> = () => ({}),
    options: TracingOptions = {},
    failure?: Error,
  ) {
    const queue: (() => void)[] = []
    const seen: Record<string, unknown[]> = { '/first': [], '/second': [] }
    const note = ({ url }: { url: string }) => seen[url]?.push(trace.getActiveSpan()?.spanContext())
    const app = traced(create, options)
    const wait: Hook = (request, _reply, ...rest) => {
      const done = rest.pop() as (...given: unknown[]) => void
      const { url } = request as { url: string }
      const first = queue.pop()
      const goOn = () => done(url === '/first' ? failure : null, ...rest)
      if (first === undefined) return void queue.push(goOn)
      first()
      goOn()
    }
    const taking = (fn: Hook, length: number) => Object.defineProperty(fn, 'length', { value: length })
    const add = app.addHook.bind(app) as unknown as AddHook
    add(name, taking(wait, count + 1))
    add(
      'onSend',
      taking((request, _reply, payload, done) => {
        note(request as { url: string })
        ;(done as Hook)(null, payload)
      }, 4),
    )
    app.setErrorHandler((_error, request, reply) => {
      note(request)
      reply.code(500).send({})
    })
    app.get('/:name', (request, reply) => {
      note(request)
      reply.send({})
    })
    const first = ask(app, '/first', { headers: headers('/first') })
    await vi.waitUntil(() => queue.length === 1)
    await Promise.all([first, ask(app, '/second', { headers: headers('/second') })])
    return seen
  }

  function expectOwn(spans: ReadableSpan[], seen: Record<string, unknown[]>): void {
    for (const [path, contexts] of Object.entries(seen)) {
      const server = spans.find((span) => span.kind === 1 && span.attributes['url.path'] === path)
      expect(contexts.length).toBeGreaterThan(0)
      for (const each of contexts) expect(each).toEqual(server?.spanContext())
    }
  }

  test.each(waiting)('hands on to its own request: %s', async (hook, count) => {
    const recording = record()
    const seen = await queued(hook, count)
    expectOwn(await recording.all(2), seen)
  })

  test('hands on to its own request, where both are of one trace', async () => {
    const recording = record()
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
    const seen = await queued('preHandler', 2, () => ({ traceparent }))
    expectOwn(await recording.all(2), seen)
  })

  test.each([
    ['not sampled', {}],
    ['ignored', { ignore: ['/first'] }],
  ])(
    'hands on to its own request, where that is %s and the other one is sampled',
    async (_title, options) => {
      record()
      const ids: Record<string, string> = { '/first': 'c'.repeat(32), '/second': 'd'.repeat(32) }
      const flags: Record<string, string> = { '/first': '00', '/second': '01' }
      const seen = await queued(
        'preHandler',
        2,
        (path) => ({ traceparent: `00-${ids[path]}-${'b'.repeat(16)}-${flags[path]}` }),
        options,
      )
      for (const path of ['/first', '/second']) {
        const expected = { traceId: ids[path], traceFlags: Number(flags[path]) }
        expect(seen[path]).toEqual([expect.objectContaining(expected), expect.objectContaining(expected)])
      }
    },
  )

  test('fails in its own request', async () => {
    const recording = record()
    const seen = await queued('preHandler', 2, undefined, undefined, new Error('queue is full'))
    const spans = await recording.all(2)
    expectOwn(spans, seen)
    expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(
      expect.arrayContaining(['Error', undefined]),
    )
  })

  test('hands on an error to its own request: onError', async () => {
    const recording = record()
    const queue: (() => void)[] = []
    const seen: Record<string, unknown[]> = { '/first': [], '/second': [] }
    const app = traced(create)
    app.addHook('onError', (_request, _reply, _error, done) => {
      const first = queue.pop()
      if (first === undefined) return void queue.push(done)
      first()
      done()
    })
    app.setErrorHandler((_error, { url }, reply) => {
      seen[url]?.push(trace.getActiveSpan()?.spanContext())
      reply.code(500).send('failed')
    })
    app.get('/:name', async () => {
      throw new Error('no')
    })
    const first = ask(app, '/first')
    await vi.waitUntil(() => queue.length === 1)
    await Promise.all([first, ask(app, '/second')])
    expectOwn(await recording.all(2), seen)
  })

  test('has a span below that of its own request, and hands on outside of it', async () => {
    const recording = record()
    await queued('preValidation', 2, undefined, { middlewareSpans: true })
    // A SERVER span and those of two hooks and of the handler.
    const spans = await recording.all(8)
    for (const server of spans.filter(({ kind }) => kind === 1)) {
      const { spanId } = server.spanContext()
      const below = spans.filter((span) => span.parentSpanContext?.spanId === spanId)
      expect(below.map(({ name }) => name)).toEqual([
        'hook preValidation wait',
        'handler /:name',
        'hook onSend',
      ])
    }
  })
})

test.each(versions)(
  '%s: a hook that goes on in what was made before the tracing hands on to its own request',
  async (_name, create) => {
    const recording = record()
    const seen: unknown[] = []
    const note = () => seen.push(trace.getActiveSpan()?.spanContext())
    const app = create()
    onTestFinished(() => app.close())
    // As @fastify/request-context does, for the hooks behind the body of the request.
    const made = new WeakMap<object, AsyncResource>()
    app.addHook('onRequest', (request, _reply, done) => {
      made.set(request, new AsyncResource('context of the request'))
      done()
    })
    app.addHook('preValidation', (request, _reply, done) => made.get(request)?.runInAsyncScope(done))
    await app.register(tracing)
    app.addHook('onSend', async () => void note())
    app.get('/', async () => {
      await Promise.resolve()
      note()
      return 'ok'
    })
    await app.inject('/')
    const [span] = await recording.all(1)
    expect(seen).toEqual([span?.spanContext(), span?.spanContext()])
  },
)

test.each(versions)(
  '%s: an answer that another request gives has its hooks in its own',
  async (_name, create) => {
    const recording = record()
    const seen: Record<string, unknown[]> = { '/first': [], '/second': [] }
    const note = ({ url }: { url: string }) => seen[url]?.push(trace.getActiveSpan()?.spanContext())
    const waiting: (() => void)[] = []
    const app = traced(create)
    app.addHook('preSerialization', (request, _reply, payload, done) => {
      note(request)
      done(null, payload)
    })
    app.addHook('onSend', (request, _reply, payload, done) => {
      note(request)
      done(null, payload)
    })
    app.addHook('onSend', async (request) => void note(request))
    app.get('/first', (_request, reply) => {
      waiting.push(() => reply.send({}))
    })
    app.get('/second', (_request, reply) => {
      waiting.pop()?.()
      reply.send({})
    })
    const first = ask(app, '/first')
    await vi.waitUntil(() => waiting.length === 1)
    await Promise.all([first, ask(app, '/second')])
    for (const span of await recording.all(2))
      expect(seen[String(span.attributes['url.path'])]).toEqual(Array(3).fill(span.spanContext()))
  },
)

test.each(
  versions.flatMap(([name, create]) => [
    [name, 'resolves', create] as const,
    [name, 'rejects', create] as const,
  ]),
)(
  '%s: a hook whose promise %s in the context of another request hands on in its own',
  async (_name, end, create) => {
    const recording = record()
    const seen: Record<string, unknown[]> = { '/first': [], '/second': [] }
    const note = ({ url }: { url: string }) => seen[url]?.push(trace.getActiveSpan()?.spanContext())
    // As bluebird's, which calls back in one turn all those that wait.
    const waiting: (() => void)[] = []
    const app = traced(create)
    app.addHook('preHandler', ({ url }) => {
      const then: Promise<void>['then'] = (resolve, reject) => {
        waiting.push(() => void (end === 'resolves' ? resolve?.() : reject?.(new Error('no'))))
        if (url === '/second') for (const settle of waiting.splice(0)) settle()
        return new Promise(() => {})
      }
      // oxlint-disable-next-line unicorn/no-thenable -- a promise of another class
      return { then } as Promise<void>
    })
    app.setErrorHandler((_error, request, reply) => {
      note(request)
      reply.code(500).send('failed')
    })
    app.get('/:name', (request, reply) => {
      note(request)
      reply.send('ok')
    })
    const first = ask(app, '/first')
    await vi.waitUntil(() => waiting.length === 1)
    await Promise.all([first, ask(app, '/second')])
    for (const span of await recording.all(2))
      expect(seen[String(span.attributes['url.path'])]).toEqual([span.spanContext()])
  },
)

test.each(versions)('%s: a hook with the arguments that its done gets', async (_name, create) => {
  record()
  const app = traced(create)
  app.addHook('onSend', (_request, _reply, payload, done) => done(null, `${String(payload)}, and more`))
  app.get('/', ok)
  expect((await app.inject('/')).body).toBe('ok, and more')
})

test.each(versions)(
  '%s: a context that a hook has chosen to go on in is left alone',
  async (_name, create) => {
    record()
    let seen: unknown
    const app = traced(create)
    app.addHook('preHandler', (_request, _reply, done) => {
      const chosen = propagation.setBaggage(ROOT_CONTEXT, propagation.createBaggage({ a: { value: '1' } }))
      setImmediate(() => context.with(chosen, done))
    })
    app.get('/', async () => {
      seen = propagation.getActiveBaggage()?.getEntry('a')?.value
    })
    await app.inject('/')
    expect(seen).toBe('1')
  },
)

test.each(versions)('%s: a route whose hooks nobody may replace is served as ever', async (_name, create) => {
  const recording = record()
  const reports = said()
  const app = create()
  app.addHook('onRequest', (request, _reply, done) => {
    // What Fastify keeps of a route has no name of its own, or up to 4.9 one.
    for (const key of Reflect.ownKeys(request)) {
      const context: unknown = Reflect.get(request, key)
      if (typeof context !== 'object' || context === null) continue
      for (const list of Object.values(context)) if (Array.isArray(list)) Object.freeze(list)
    }
    done()
  })
  app.register(tracing)
  app.get('/', { preHandler: (_request, _reply, done) => done() }, ok)
  expect((await app.inject('/')).body).toBe('ok')
  expect((await recording.all(1))[0]?.name).toBe('GET /')
  expect(reports.lines).toHaveLength(1)
})
