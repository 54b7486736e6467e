import { context, diag, propagation, SpanKind, trace, TraceFlags } from '@opentelemetry/api'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'
import { span as manualSpan, type ReadableSpan, type ReceivingOptions } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import {
  Agent,
  request as httpRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type ServerResponse,
} from 'node:http'
import { connect, type AddressInfo, type Server } from 'node:net'
import { PassThrough, type Readable } from 'node:stream'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { record, type Recording } from '../recording.ts'

/** One request in the hands of an app that does not know which framework it runs on. */
export interface Exchange {
  /** What the router found in the path. */
  readonly params: Readonly<Record<string, string | undefined>>
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** Answers in the framework's own way. */
  answer(status: number, body?: string): void
  /** Answers 200 with a body that comes bit by bit, in the framework's own way. */
  stream(body: Readable): void
}

/** It may answer at once or later, throw, reject, or never answer: then it returns a promise that never settles. */
export type Handler = (exchange: Exchange) => unknown

/** By method and pattern: `'GET /users/:id'`. */
export type Routes = Readonly<Record<string, Handler>>

/** An app in terms that every framework has. What no route takes is a 404. */
export interface App {
  readonly routes?: Routes
  /** Routes of a router of their own, mounted at a prefix. */
  readonly mounted?: { readonly prefix: string; readonly routes: Routes }
  /** Answers when a handler fails. Without it the framework does, by the error's `statusCode`, or else 500. */
  readonly onError?: (error: unknown, exchange: Exchange) => void
}

/** What all frameworks' request objects have. */
interface Subject {
  readonly url?: string | undefined
  readonly headers: IncomingHttpHeaders
}

/** The options that every adapter takes; what their functions are given is the framework's. */
export type Options = ReceivingOptions<Subject, [subject: Subject, ...rest: unknown[]]>

export interface Serving {
  readonly port: number
  close(): Promise<void>
}

/** What one adapter cannot do. The contract then holds it to the opposite. */
export interface Gaps {
  /** There is no router, so there is never a route. */
  readonly router?: true
  /**
   * The framework has no place of its own for error handlers: the app catches below us, and what it catches there nobody
   * else sees.
   */
  readonly errorHandlers?: true
  /** Options are checked when they are first used, which is in the first request; it answers 500 with the message. */
  readonly earlyChecks?: true
}

export interface Adapter {
  /** Serves the app on 127.0.0.1, with the adapter mounted so many times: 0 is the app as it is without us. */
  serve(app: App, options: Options, mounts: number): Promise<Serving>
  readonly gaps?: Gaps
}

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
const PARENT_ID = '00f067aa0ba902b7'
const TRACEPARENT = `00-${TRACE_ID}-${PARENT_ID}-01`

/** The handlers that a test needs beside its own. */
const ok: Handler = ({ answer }) => answer(200, 'ok')
const never: Handler = () => new Promise(() => {})

/** What every adapter that receives requests promises. */
export function serverContract(name: string, { serve, gaps = {} }: Adapter): void {
  const open: Serving[] = []

  async function served(app: App | Handler, options: Options = {}, mounts = 1): Promise<Serving> {
    const serving = await serve(
      typeof app === 'function' ? { routes: { 'GET /': app, 'POST /': app } } : app,
      options,
      mounts,
    )
    open.push(serving)
    return serving
  }

  afterEach(async () => {
    await Promise.all(open.splice(0).map((serving) => serving.close()))
  })

  /** The one span of one request. */
  async function spanOf(
    app: App | Handler,
    path = '/',
    asking: Asking = {},
    options: Options = {},
  ): Promise<ReadableSpan> {
    const recording = record()
    await ask(await served(app, options), path, asking)
    return theOnly(recording)
  }

  describe(`${name}: one request is one span`, () => {
    test('named, timed and described as the conventions say, and nothing more', async () => {
      const recording = record()
      const serving = await served({ routes: { 'GET /users/:id': ok } })
      const before = Date.now()
      await ask(serving, '/users/42?page=2', { headers: { 'user-agent': 'contract/1.0' } })
      const span = await theOnly(recording)

      expect(span.name).toBe(gaps.router ? 'GET' : 'GET /users/:id')
      expect(span.kind).toBe(SpanKind.SERVER)
      expect(span.instrumentationScope.name).toMatch(/^@throughline\//)
      expect(span.instrumentationScope.version).toMatch(/^\d+\.\d+\.\d+/)
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
      expect(span.links).toEqual([])
      expect(span.attributes).toEqual({
        'http.request.method': 'GET',
        'url.path': '/users/42',
        'url.query': 'page=2',
        'url.scheme': 'http',
        'network.protocol.version': '1.1',
        'server.address': '127.0.0.1',
        'server.port': serving.port,
        'client.address': '127.0.0.1',
        'network.peer.address': '127.0.0.1',
        'network.peer.port': expect.any(Number),
        'user_agent.original': 'contract/1.0',
        'http.response.status_code': 200,
        ...(gaps.router ? {} : { 'http.route': '/users/:id' }),
      })
      const [started, ended] = [span.startTime, span.endTime].map(([s, ns]) => s * 1000 + ns / 1e6) as [
        number,
        number,
      ]
      // One clock is read in whole milliseconds.
      expect(started).toBeGreaterThanOrEqual(before - 2)
      expect(ended).toBeGreaterThan(started)
      expect(ended).toBeLessThanOrEqual(Date.now() + 2)
    })

    test('a root where nothing comes in, with the random flag', async () => {
      const span = await spanOf(ok)
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceFlags).toBe(TraceFlags.SAMPLED | 0x02)
    })

    test('also for the second on the same connection', async () => {
      const recording = record()
      const serving = await served(ok)
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      onTestFinished(() => agent.destroy())
      await ask(serving, '/', { agent })
      await ask(serving, '/', { agent })
      const [first, second] = await recording.all(2)
      expect(second?.attributes['network.peer.port']).toBe(first?.attributes['network.peer.port'])
      expect(second?.parentSpanContext).toBeUndefined()
      expect(second?.spanContext().traceId).not.toBe(first?.spanContext().traceId)
    })

    test('also for each of those that a client sends without waiting for answers', async () => {
      const recording = record()
      const serving = await served(ok)
      const one = 'GET / HTTP/1.1\r\nHost: a\r\n'
      await raw(serving, `${one}\r\n${one}Connection: close\r\n\r\n`)
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([200, 200])
    })

    test('also when tracing is mounted twice', async () => {
      const recording = record()
      const span = await (async () => {
        await ask(await served(ok, { attributes: () => ({ times: 1 }) }, 2), '/')
        return theOnly(recording)
      })()
      expect(span.attributes['times']).toBe(1)
    })

    test('of a method that is not in the list, called HTTP', async () => {
      const span = await spanOf({}, '/', { method: 'PROPFIND' })
      expect(span.name).toBe('HTTP')
      expect(span.attributes['http.request.method']).toBe('_OTHER')
      expect(span.attributes['http.request.method_original']).toBe('PROPFIND')
    })

    test('whose path is without the query, which is there only when the request has one', async () => {
      const span = await spanOf(ok, '/')
      expect(span.attributes['url.path']).toBe('/')
      expect(span.attributes).not.toHaveProperty('url.query')
    })

    test('that keeps signatures in the query to itself, and knows their names by case', async () => {
      const recording = record()
      const serving = await served(ok)
      await ask(serving, '/?sig=abc&b=1')
      await ask(serving, '/?Sig=abc&b=1')
      const [lower, upper] = await recording.all(2)
      expect(lower?.attributes['url.query']).toBe('sig=REDACTED&b=1')
      expect(upper?.attributes['url.query']).toBe('Sig=abc&b=1')
    })

    test.each([
      ['example.com:8443', 'example.com', 8443],
      ['example.com', 'example.com', undefined],
      ['[::1]:3000', '::1', 3000],
    ])('to the host %s', async (host, address, port) => {
      const span = await spanOf(ok, '/', { headers: { host } })
      expect(span.attributes['server.address']).toBe(address)
      expect(span.attributes['server.port']).toBe(port)
    })

    test('of HTTP/1.0, without a host', async () => {
      const recording = record()
      await raw(await served(ok), 'GET / HTTP/1.0\r\n\r\n')
      const span = await theOnly(recording)
      expect(span.attributes['network.protocol.version']).toBe('1.0')
      expect(span.attributes).not.toHaveProperty('server.address')
    })
  })

  describe(`${name}: the route`, () => {
    const mounted: App = {
      routes: { 'GET /users/:id': ok },
      mounted: { prefix: '/api', routes: { 'GET /users/:id': ok } },
    }

    test('has the prefix of the router that it is in, and names its parameters only', async () => {
      const span = await spanOf(mounted, '/api/users/7?x=/users/8')
      if (gaps.router) {
        expect(span.name).toBe('GET')
        expect(span.attributes).not.toHaveProperty('http.route')
      } else {
        expect(span.name).toBe('GET /api/users/:id')
        expect(span.attributes['http.route']).toBe('/api/users/:id')
      }
    })

    test.each(['/nothing', '/api', '/api/nothing', '/api/users/7/more'])(
      'is not there for a 404 at %s',
      async (path) => {
        const span = await spanOf(mounted, path)
        expect(span.name).toBe('GET')
        expect(span.attributes).not.toHaveProperty('http.route')
        expect(span.attributes['http.response.status_code']).toBe(404)
        expect(span.status.code).toBe(0)
        expect(span.attributes).not.toHaveProperty('error.type')
      },
    )

    test('stays when its handler fails', async () => {
      const span = await spanOf(
        { routes: { 'GET /users/:id': () => Promise.reject(new Error('no')) } },
        '/users/7',
      )
      expect(span.name).toBe(gaps.router ? 'GET' : 'GET /users/:id')
    })

    test('is there for a client that went away before the answer', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served({
        routes: { 'GET /slow/:id': (exchange) => (arrived.give(), never(exchange)) },
      })
      const client = asking(serving, '/slow/1')
      await arrived.given
      client.destroy()
      const span = await theOnly(recording)
      expect(span.name).toBe(gaps.router ? 'GET' : 'GET /slow/:id')
    })
  })

  describe(`${name}: the status`, () => {
    test.each([200, 204, 301, 304, 400, 404, 499])('%i leaves the span unset', async (status) => {
      const span = await spanOf(({ answer }) => answer(status))
      expect(span.status).toEqual({ code: 0 })
      expect(span.attributes['http.response.status_code']).toBe(status)
      expect(span.attributes).not.toHaveProperty('error.type')
    })

    test.each([500, 503])('%i is an error that is its own description', async (status) => {
      const span = await spanOf(({ answer }) => answer(status))
      expect(span.status).toEqual({ code: 2 })
      expect(span.attributes['error.type']).toBe(String(status))
      expect(span.events).toEqual([])
    })

    const bug = new TypeError('no such thing')
    test.each<[string, Handler]>([
      [
        'throws',
        () => {
          throw bug
        },
      ],
      ['rejects', () => Promise.reject(bug)],
      [
        'rejects later',
        async () => {
          await turn()
          throw bug
        },
      ],
    ])('is an error when the handler %s, with the exception once', async (_title, handler) => {
      const span = await spanOf(handler)
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(span.status).toEqual({ code: 2, message: 'no such thing' })
      expect(span.attributes['error.type']).toBe('TypeError')
      expect(span.events.map((event) => event.name)).toEqual(['exception'])
      expect(span.events[0]?.attributes).toMatchObject({
        'exception.type': 'TypeError',
        'exception.message': 'no such thing',
        'exception.stacktrace': bug.stack,
      })
    })

    test('is an error when the error handler of the app answers 503 for the one that was thrown', async () => {
      const span = await spanOf({
        routes: { 'GET /': () => Promise.reject(bug) },
        onError: (_error, { answer }) => answer(503, 'sorry'),
      })
      expect(span.attributes['http.response.status_code']).toBe(503)
      expect(span.status.code).toBe(2)
      expect(span.attributes['error.type']).toBe(gaps.errorHandlers ? '503' : 'TypeError')
      expect(span.events).toHaveLength(gaps.errorHandlers ? 0 : 1)
    })

    test('is none when the error handler of the app recovers', async () => {
      const span = await spanOf({
        routes: { 'GET /': () => Promise.reject(bug) },
        onError: (_error, { answer }) => answer(200, 'recovered'),
      })
      expect(span.attributes['http.response.status_code']).toBe(200)
      expect(span.status).toEqual({ code: 0 })
      expect(span.attributes).not.toHaveProperty('error.type')
      expect(span.events).toEqual([])
    })

    test('is none when the error that was thrown is the client’s', async () => {
      const span = await spanOf(() => {
        throw Object.assign(new Error('no such user'), { status: 404, statusCode: 404, expose: true })
      })
      expect(span.attributes['http.response.status_code']).toBe(404)
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
    })
  })

  describe(`${name}: the end`, () => {
    test('is the last byte of a body that comes bit by bit', async () => {
      const recording = record()
      const body = new PassThrough()
      const serving = await served(({ stream }) => stream(body))
      const asked = asking(serving, '/')
      body.write('first')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response, 'data')
      expect(recording.spans).toEqual([])
      body.end('last')
      response.resume()
      await once(response, 'end')
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 0 })
      expect(span.attributes['http.response.status_code']).toBe(200)
    })

    test('is an abort, without a status code, when the client leaves before the answer', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served((exchange) => (arrived.give(), never(exchange)))
      const client = asking(serving, '/')
      await arrived.given
      expect(recording.spans).toEqual([])
      client.destroy()
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 2 })
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes).not.toHaveProperty('http.response.status_code')
      expect(span.events).toEqual([])
    })

    test('comes once, when the handler answers a client that has left', async () => {
      const recording = record()
      const arrived = signal()
      const left = signal()
      const answered = signal()
      const serving = await served(async ({ response, answer }) => {
        response.on('close', left.give)
        arrived.give()
        await left.given
        answer(200, 'too late')
        setImmediate(answered.give)
      })
      const client = asking(serving, '/')
      await arrived.given
      client.destroy()
      await answered.given
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
    })

    test('is an abort, with the status code that was sent, when the client leaves in the middle of the body', async () => {
      const recording = record()
      const body = new PassThrough()
      const serving = await served(({ stream }) => stream(body))
      const asked = asking(serving, '/')
      body.write('first')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      response.on('error', () => {})
      await once(response, 'data')
      asked.destroy()
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 2 })
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes['http.response.status_code']).toBe(200)
    })

    test('is an abort when the client leaves in the middle of its own body', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served(async ({ request, answer }) => {
        request.on('error', () => {})
        request.on('data', arrived.give)
        await once(request, 'end')
        answer(200)
      })
      const client = asking(serving, '/', { method: 'POST', headers: { 'content-length': '100' } }, 'half')
      await arrived.given
      client.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
    })

    test('comes for all of those that a client sent without waiting for answers, when it leaves', async () => {
      const recording = record()
      const arrived = new EventEmitter()
      let count = 0
      const serving = await served((exchange) => {
        count += 1
        arrived.emit(`${count}`)
        return never(exchange)
      })
      const both = once(arrived, '2')
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n'.repeat(2))
      await both
      client.destroy()
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
    })
  })

  describe(`${name}: the trace that comes in`, () => {
    test('is continued, with its tracestate and as a remote parent', async () => {
      const span = await spanOf(ok, '/', { headers: { traceparent: TRACEPARENT, tracestate: 'a=1,b=2' } })
      expect(span.parentSpanContext).toMatchObject({ traceId: TRACE_ID, spanId: PARENT_ID, isRemote: true })
      expect(span.spanContext()).toMatchObject({ traceId: TRACE_ID, traceFlags: 1 })
      expect(span.spanContext().isRemote).not.toBe(true)
      expect(span.spanContext().traceState?.serialize()).toBe('a=1,b=2')
    })

    test.each([
      ['of a header in capitals', `TRACEPARENT: ${TRACEPARENT}`],
      ['with blanks around it', `traceparent:  \t${TRACEPARENT} \t`],
      ['of a later version with more in it', `traceparent: cc-${TRACE_ID}-${PARENT_ID}-01-what-comes`],
      ['with flags that nobody knows', `traceparent: 00-${TRACE_ID}-${PARENT_ID}-f9`],
      ['whose tracestate is not valid', `traceparent: ${TRACEPARENT}\r\ntracestate: A=1`],
    ])('is continued: %s', async (_title, lines) => {
      const span = await spanOfRaw(lines)
      expect(span.spanContext().traceId).toBe(TRACE_ID)
      expect(span.parentSpanContext?.spanId).toBe(PARENT_ID)
    })

    test.each([
      ['two headers', `traceparent: ${TRACEPARENT}\r\ntraceparent: 00-${TRACE_ID}-00f067aa0ba902b8-01`],
      ['two headers that are the same', `traceparent: ${TRACEPARENT}\r\ntraceparent: ${TRACEPARENT}`],
      ['two values in one', `traceparent: ${TRACEPARENT}, ${TRACEPARENT}`],
      ['capitals in the ids', `traceparent: ${TRACEPARENT.toUpperCase()}`],
      ['a trace id of zeros', `traceparent: 00-${'0'.repeat(32)}-${PARENT_ID}-01`],
      ['a parent id of zeros', `traceparent: 00-${TRACE_ID}-${'0'.repeat(16)}-01`],
      ['version ff', `traceparent: ff-${TRACE_ID}-${PARENT_ID}-01`],
      ['version 00 with more in it', `traceparent: ${TRACEPARENT}-more`],
      ['another name', `trace-parent: ${TRACEPARENT}`],
      ['nothing in it', 'traceparent:'],
      ['a tracestate alone', 'tracestate: a=1'],
    ])('is not to be believed with %s: a new one begins, without tracestate', async (_title, lines) => {
      const span = await spanOfRaw(`${lines}\r\ntracestate: a=1`)
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceId).not.toBe(TRACE_ID)
      expect(span.spanContext().traceState).toBeUndefined()
      expect(span.spanContext().traceFlags).toBe(3)
    })

    test('brings its baggage to the handler, and on to what the handler calls', async () => {
      record()
      const sent: Record<string, string> = {}
      const serving = await served(({ answer }) => {
        propagation.inject(context.active(), sent)
        answer(200, propagation.getActiveBaggage()?.getEntry('user')?.value)
      })
      const { body } = await ask(serving, '/', { headers: { baggage: 'user=42,b=%C3%A9' } })
      expect(body).toBe('42')
      expect(sent['baggage']).toBe('user=42,b=%C3%A9')
    })

    test('goes on to what the handler calls, with the id of the span', async () => {
      const sent: Record<string, string> = {}
      const span = await spanOf(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1' } },
      )
      expect(sent).toEqual({
        traceparent: `00-${TRACE_ID}-${span.spanContext().spanId}-01`,
        tracestate: 'a=1',
      })
    })

    test('makes no span when it is not sampled, and goes on as not sampled', async () => {
      const recording = record()
      const sent: Record<string, string> = {}
      const serving = await served(({ answer }) => {
        manualSpan('inside', () => propagation.inject(context.active(), sent))
        answer(200)
      })
      const traceparent = `00-${TRACE_ID}-${PARENT_ID}-02`
      await ask(serving, '/', { headers: { traceparent, tracestate: 'a=1' } })
      expect(recording.spans).toEqual([])
      expect(sent['traceparent']).toMatch(new RegExp(`^00-${TRACE_ID}-[0-9a-f]{16}-02$`))
      expect(sent['traceparent']).not.toContain(PARENT_ID)
      expect(sent['tracestate']).toBe('a=1')
    })

    test('makes none when this service samples nothing, and what goes out says so', async () => {
      const recording = record({ sampling: 0 })
      const sent: Record<string, string> = {}
      const serving = await served(async ({ answer }) => {
        await turn()
        propagation.inject(context.active(), sent)
        answer(200)
      })
      await ask(serving, '/')
      expect(recording.spans).toEqual([])
      expect(sent['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-02$/)
    })

    async function spanOfRaw(lines: string): Promise<ReadableSpan> {
      const recording = record()
      await raw(await served(ok), `GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${lines}\r\n\r\n`)
      return theOnly(recording)
    }
  })

  describe(`${name}: the current span is the request’s`, () => {
    test('in the handler, after awaits, in timers, and in listeners of the request and of the response', async () => {
      const seen = new Map<string, string | undefined>()
      const note = (place: string) => () => {
        seen.set(place, trace.getActiveSpan()?.spanContext().spanId)
      }
      const arrived = signal()
      const closed = signal()
      const recording = record()
      const serving = await served(async ({ request, response, answer }) => {
        note('handler')()
        request.on('data', note('data'))
        request.on('end', note('end'))
        response.on('finish', note('finish'))
        response.on('close', () => {
          note('close')()
          closed.give()
        })
        arrived.give()
        await once(request, 'end')
        note('after an event')()
        await new Promise((resolve) => setTimeout(resolve, 1))
        note('after a timer')()
        await new Promise<void>((resolve) => {
          setImmediate(() => {
            note('immediate')()
            process.nextTick(() => {
              note('tick')()
              resolve()
            })
          })
        })
        answer(200, 'ok')
      })
      const asked = asking(serving, '/', { method: 'POST' }, '')
      asked.flushHeaders()
      await arrived.given
      asked.end('what comes later, from the socket')
      await once(asked, 'response')
      await closed.given
      const span = await theOnly(recording)
      const places = [
        'handler',
        'data',
        'end',
        'after an event',
        'after a timer',
        'immediate',
        'tick',
        'finish',
        'close',
      ]
      const { spanId } = span.spanContext()
      expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(places.map((place) => [place, spanId])))
    })

    test('while the handler reads the body bit by bit', async () => {
      const seen: unknown[] = []
      const span = await spanOf(
        async ({ request, answer }) => {
          let text = ''
          for await (const chunk of request) {
            text += String(chunk)
            seen.push(trace.getActiveSpan()?.spanContext().spanId)
          }
          answer(200, text)
        },
        '/',
        { method: 'POST', body: 'hello' },
      )
      expect(seen).toEqual([span.spanContext().spanId])
    })

    test('so that spans of the app nest in it, by our function or by the API’s', async () => {
      const recording = record()
      const serving = await served(async ({ answer }) => {
        await manualSpan('ours', async () => {
          await turn()
          trace.getTracer('app').startActiveSpan('theirs', (inner) => inner.end())
        })
        answer(200)
      })
      await ask(serving, '/')
      const [theirs, ours, server] = await recording.all(3)
      expect(theirs?.parentSpanContext?.spanId).toBe(ours?.spanContext().spanId)
      expect(ours?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
      expect(server?.kind).toBe(SpanKind.SERVER)
    })

    test('and never another’s, among two hundred at the same time', async () => {
      const recording = record()
      const COUNT = 200
      const all = signal()
      let arrived = 0
      const mixed: string[] = []
      const serving = await served(async ({ request, answer }) => {
        const wanted = String(request.headers['traceparent']).split('-')[1]
        const check = () => {
          const got = trace.getActiveSpan()?.spanContext().traceId
          if (got !== wanted) mixed.push(`${got} for ${wanted}`)
        }
        request.on('end', check)
        check()
        arrived += 1
        if (arrived === COUNT) all.give()
        await all.given
        check()
        await manualSpan('inside', async () => {
          await turn()
          check()
        })
        request.resume()
        answer(200)
      })
      const ids = Array.from({ length: COUNT }, (_, i) => (i + 1).toString(16).padStart(32, '0'))
      await Promise.all(
        ids.map((id) => ask(serving, '/', { headers: { traceparent: `00-${id}-${PARENT_ID}-01` } })),
      )
      const spans = await recording.all(2 * COUNT)
      expect(mixed).toEqual([])
      expect(new Set(spans.map((span) => span.spanContext().traceId))).toEqual(new Set(ids))
    })
  })

  describe(`${name}: requests to ignore`, () => {
    test.each<[string, NonNullable<Options['ignore']>]>([
      ['a string', '/health'],
      ['a RegExp', /^\/hea/],
      ['a list', ['/other', /lth$/]],
      ['a function', ({ url }) => url?.startsWith('/health') === true],
    ])('by %s have no span; others have', async (_title, ignore) => {
      const recording = record()
      const serving = await served({ routes: { 'GET /health': ok, 'GET /': ok } }, { ignore })
      expect((await ask(serving, '/health?deep=1')).status).toBe(200)
      await ask(serving, '/')
      const span = await theOnly(recording)
      expect(span.attributes['url.path']).toBe('/')
    })

    test('pass on what came in, as it came, also from listeners', async () => {
      const recording = record()
      const headers = { traceparent: TRACEPARENT, tracestate: 'a=1', baggage: 'user=42' }
      const inHandler: Record<string, string> = {}
      const inListener: Record<string, string> = {}
      const arrived = signal()
      const serving = await served(
        async ({ request, answer }) => {
          request.on('data', () => propagation.inject(context.active(), inListener))
          arrived.give()
          await once(request, 'end')
          propagation.inject(context.active(), inHandler)
          answer(200)
        },
        { ignore: '/' },
      )
      const asked = asking(serving, '/', { method: 'POST', headers }, '')
      asked.flushHeaders()
      await arrived.given
      asked.end('what comes later, from the socket')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'close')
      expect(inHandler).toEqual(headers)
      expect(inListener).toEqual(headers)
      expect(recording.spans).toEqual([])
    })

    test('tell those that they call to record nothing, when nothing came in', async () => {
      const recording = record()
      const sent: Record<string, string> = {}
      const serving = await served(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        { ignore: '/' },
      )
      await ask(serving, '/')
      expect(sent['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]$/)
      expect(recording.spans).toEqual([])
    })

    test('have no span of a second mount either, which is not asked', async () => {
      const recording = record()
      let asked = 0
      const ignore = () => {
        asked += 1
        return asked === 1
      }
      await ask(await served(ok, { ignore }, 2), '/')
      expect(recording.spans).toEqual([])
      expect(asked).toBe(1)
    })
  })

  describe(`${name}: options`, () => {
    test('attributes are asked at the end, and added', async () => {
      let user = 'nobody'
      const span = await spanOf(
        async ({ answer }) => {
          await turn()
          user = 'ann'
          answer(200)
        },
        '/?a=1',
        {},
        { attributes: ({ url }) => ({ 'app.user': user, 'app.url': url ?? '' }) },
      )
      expect(span.attributes).toMatchObject({ 'app.user': 'ann', 'app.url': '/?a=1' })
    })

    test('spanName has the last word', async () => {
      const span = await spanOf(ok, '/?op=list', {}, { spanName: ({ url }) => `custom ${url}` })
      expect(span.name).toBe('custom /?op=list')
    })

    test('capture records the headers that it names, in any case, and no others', async () => {
      const span = await spanOf(
        ({ answer }) => answer(200, 'ok'),
        '/',
        { headers: { 'x-request-id': 'abc', authorization: 'secret' } },
        {
          capture: {
            requestHeaders: ['X-Request-Id', 'x-missing'],
            responseHeaders: ['Content-Type', 'x-none'],
          },
        },
      )
      const headers = Object.entries(span.attributes).filter(([key]) => key.includes('.header.'))
      expect(Object.fromEntries(headers)).toEqual({
        'http.request.header.x-request-id': ['abc'],
        'http.response.header.content-type': [expect.stringMatching(/^text\//)],
      })
    })

    test('capture has the headers that the app set, one value for each', async () => {
      const span = await spanOf(
        ({ response, answer }) => {
          response.setHeader('x-count', 3)
          response.setHeader('x-many', ['a', 'b'])
          answer(200, 'ok')
        },
        '/',
        {},
        { capture: { responseHeaders: ['x-count', 'x-many'] } },
      )
      expect(span.attributes).toMatchObject({
        'http.response.header.x-count': ['3'],
        'http.response.header.x-many': ['a', 'b'],
      })
    })

    test("inbound 'restart' begins a trace that is linked to what came in", async () => {
      const span = await spanOf(
        ok,
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1' } },
        { inbound: 'restart' },
      )
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceId).not.toBe(TRACE_ID)
      expect(span.spanContext().traceState).toBeUndefined()
      expect(span.links).toMatchObject([{ context: { traceId: TRACE_ID, spanId: PARENT_ID } }])
    })

    test("inbound 'restart' of nothing is a trace without links", async () => {
      expect((await spanOf(ok, '/', {}, { inbound: 'restart' })).links).toEqual([])
    })

    test("inbound 'ignore' begins a trace that knows nothing of what came in", async () => {
      const sent: Record<string, string> = {}
      const span = await spanOf(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1', baggage: 'user=42' } },
        { inbound: 'ignore' },
      )
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.links).toEqual([])
      expect(sent).toEqual({
        traceparent: `00-${span.spanContext().traceId}-${span.spanContext().spanId}-03`,
      })
    })

    test('inbound as a function decides for each request', async () => {
      const recording = record()
      const serving = await served(ok, {
        inbound: ({ headers }) => (headers['x-internal'] === 'yes' ? 'continue' : 'restart'),
      })
      await ask(serving, '/', { headers: { traceparent: TRACEPARENT } })
      await ask(serving, '/', { headers: { traceparent: TRACEPARENT, 'x-internal': 'yes' } })
      const [outside, inside] = await recording.all(2)
      expect(outside?.parentSpanContext).toBeUndefined()
      expect(outside?.links).toHaveLength(1)
      expect(inside?.parentSpanContext?.spanId).toBe(PARENT_ID)
    })

    const viaProxy = {
      host: '10.0.0.1:80',
      'x-forwarded-host': 'a.com',
      'x-forwarded-proto': 'https',
      'x-forwarded-for': '203.0.113.9, 10.0.0.7',
    }

    test('trustProxy believes what the proxies say', async () => {
      const span = await spanOf(ok, '/', { headers: viaProxy }, { trustProxy: true })
      expect(span.attributes).toMatchObject({
        'server.address': 'a.com',
        'url.scheme': 'https',
        'client.address': '203.0.113.9',
        'network.peer.address': '127.0.0.1',
      })
      expect(span.attributes).not.toHaveProperty('server.port')
    })

    test('without trustProxy nobody is believed', async () => {
      const span = await spanOf(ok, '/', { headers: viaProxy })
      expect(span.attributes).toMatchObject({
        'server.address': '10.0.0.1',
        'server.port': 80,
        'url.scheme': 'http',
        'client.address': '127.0.0.1',
      })
    })

    test('serverTiming tells the client which span was its own', async () => {
      const recording = record()
      const serving = await served(
        ({ response, answer }) => {
          response.appendHeader('Server-Timing', 'db;dur=53')
          answer(200, 'ok')
        },
        { serverTiming: true },
      )
      const { headers } = await ask(serving, '/')
      const { traceId, spanId } = (await theOnly(recording)).spanContext()
      expect(headers['server-timing']).toBe(`trace;desc=00-${traceId}-${spanId}-03, db;dur=53`)
    })

    test('functions that throw are reported once each, and change nothing', async () => {
      const said = complaints()
      const recording = record()
      const fault = (): never => {
        throw new Error('a bug of the app’s')
      }
      const serving = await served(ok, { ignore: fault, attributes: fault, spanName: fault, inbound: fault })
      for (let i = 0; i < 2; i += 1) {
        expect(await ask(serving, '/', { headers: { traceparent: TRACEPARENT } })).toMatchObject({
          status: 200,
          body: 'ok',
        })
      }
      const spans = await recording.all(2)
      for (const span of spans) {
        expect(span.name).toBe(gaps.router ? 'GET' : 'GET /')
        expect(span.parentSpanContext?.spanId).toBe(PARENT_ID)
      }
      expect(said.toSorted()).toEqual(
        ['attributes', 'ignore', 'inbound', 'spanName'].map((option) => expect.stringContaining(option)),
      )
    })

    test.each<[string, object, RegExp]>([
      [
        'unknown',
        { ignored: '/health' },
        /expected options among ignore, .* received an unknown one, "ignored"/,
      ],
      [
        'a wrong shape of ignore',
        { ignore: 7 },
        /expected ignore to be a function, .* received 7; example: \{ ignore: /,
      ],
      [
        'a wrong inbound',
        { inbound: 'stop' },
        /expected inbound to be 'continue', .* received "stop"; example: /,
      ],
      ['a wrong capture', { capture: ['x-id'] }, /expected capture to be .* received an array; example: /],
      [
        'a text for a switch',
        { trustProxy: 'yes' },
        /expected trustProxy to be true or false, received "yes"; example: /,
      ],
      [
        'a text for a function',
        { spanName: 'GET' },
        /expected spanName to be a function, received "GET"; example: /,
      ],
    ])(
      '%s: a TypeError says what was expected, what was received, and an example',
      async (_title, options, said) => {
        record()
        if (gaps.earlyChecks) {
          const serving = await served(ok, options as Options)
          expect(await ask(serving, '/')).toMatchObject({ status: 500, body: expect.stringMatching(said) })
          return
        }
        const failure = await served(ok, options as Options).catch((error: unknown) => error)
        expect(failure).toBeInstanceOf(TypeError)
        expect((failure as Error).message).toMatch(said)
        expect((failure as Error).message).toMatch(/^@throughline\//)
      },
    )
  })

  describe(`${name}: the app does not notice`, () => {
    test('listeners on the request, on the response and on the socket: there are none of ours', async () => {
      record()
      const count: Handler = ({ request, response, answer }) => {
        const counts = [request, response, request.socket].map((emitter) =>
          emitter.eventNames().map((event) => [String(event), emitter.listenerCount(event)]),
        )
        answer(200, JSON.stringify(counts))
      }
      const [without, once_, twice] = await Promise.all(
        [0, 1, 2].map(async (mounts) => (await ask(await served(count, {}, mounts), '/')).body),
      )
      expect(once_).toBe(without)
      expect(twice).toBe(without)
    })

    test.each<[string, string, Handler]>([
      ['an answer', 'GET /', ok],
      [
        'an answer to a body',
        'POST /',
        async ({ request, answer }) => {
          let text = ''
          for await (const chunk of request) text += String(chunk)
          answer(201, text.toUpperCase())
        },
      ],
      ['a 404', 'GET /nothing', ok],
      ['a failure', 'GET /', () => Promise.reject(Object.assign(new Error('no'), { stack: 'no' }))],
    ])('%s is the same, byte for byte', async (_title, line, handler) => {
      record()
      const [method, path] = line.split(' ')
      const text = `${method} ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody`
      const [without, with_] = await Promise.all(
        [0, 1].map(async (mounts) => raw(await served(handler, {}, mounts), text)),
      )
      const isDate = /^Date: .*$/im
      expect(with_?.replace(isDate, 'Date')).toBe(without?.replace(isDate, 'Date'))
    })

    test('a span processor that throws', async () => {
      const said = complaints()
      const provider = new NodeTracerProvider({
        spanProcessors: [
          {
            onStart() {},
            onEnd() {
              throw new Error('a bug of the processor’s')
            },
            forceFlush: async () => {},
            shutdown: async () => {},
          },
        ],
      })
      register(provider)
      const closed = signal()
      const serving = await served(({ response, answer }) => {
        response.on('close', closed.give)
        answer(200, 'ok')
      })
      expect(await ask(serving, '/')).toMatchObject({ status: 200, body: 'ok' })
      await closed.given
      expect(said).toHaveLength(1)
    })
  })

  describe(`${name}: whoever is in charge`, () => {
    test('an OpenTelemetry SDK that is registered gets the span, and its context', async () => {
      const exporter = new InMemorySpanExporter()
      register(new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }))
      const serving = await served({
        routes: {
          'GET /users/:id': async ({ request, answer }) => {
            request.resume()
            await once(request, 'end')
            trace.getTracer('app').startActiveSpan('inside', (inner) => inner.end())
            answer(200)
          },
        },
      })
      await ask(serving, '/users/1', { headers: { traceparent: TRACEPARENT } })
      const [inside, server, ...more] = exporter.getFinishedSpans()
      expect(more).toEqual([])
      expect(server?.name).toBe(gaps.router ? 'GET' : 'GET /users/:id')
      expect(server?.kind).toBe(SpanKind.SERVER)
      expect(server?.instrumentationScope.name).toMatch(/^@throughline\//)
      expect(server?.parentSpanContext).toMatchObject({
        traceId: TRACE_ID,
        spanId: PARENT_ID,
        isRemote: true,
      })
      expect(server?.attributes['http.response.status_code']).toBe(200)
      expect(inside?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
    })

    test('an app that was there before serves each start in turn, and serves untraced between them', async () => {
      const serving = await served(ok)
      const first = record()
      await ask(serving, '/')
      await first.all(1)
      await first.stop()
      expect((await ask(serving, '/')).status).toBe(200)
      const second = record()
      await ask(serving, '/')
      await second.all(1)
      expect(first.spans).toHaveLength(1)
    })

    // Last, for it leaves a new copy of all our modules behind: only a new one has not started yet.
    test('tracing starts by itself, and not before the first request', async () => {
      vi.resetModules()
      const isStarted = () => trace.getTracer('app').startSpan('probe').isRecording()
      const seen: boolean[] = []
      const serving = await served(({ answer }) => {
        seen.push(trace.getActiveSpan()?.isRecording() === true)
        answer(200)
      })
      expect(isStarted()).toBe(false)
      await ask(serving, '/')
      expect(seen).toEqual([true])
      expect(isStarted()).toBe(true)
      complaints()
      const { start } = await import('@throughline/core')
      await start().shutdown()
      expect(isStarted()).toBe(false)
    })
  })
}

/** The one span that there is, and nothing more. */
async function theOnly(recording: Recording): Promise<ReadableSpan> {
  const [span] = await recording.all(1)
  // What else there might be has ended by then: it would have been ended by the same event.
  await turn()
  expect(recording.spans.map((each) => each.name)).toHaveLength(1)
  return span as ReadableSpan
}

/** Something that a handler tells the test, or the test a handler. */
function signal(): { readonly given: Promise<void>; give(): void } {
  let give = (): void => {}
  const given = new Promise<void>((resolve) => {
    give = resolve
  })
  return { given, give: () => give() }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** What is reported from here to the end of the test. */
function complaints(): string[] {
  const said: string[] = []
  const note = (message: string) => void said.push(message)
  const silent = () => {}
  diag.setLogger(
    { error: note, warn: note, info: silent, debug: silent, verbose: silent },
    { suppressOverrideMessage: true },
  )
  onTestFinished(() => diag.disable())
  return said
}

/** Puts an official SDK in charge until the end of the test. */
function register(provider: NodeTracerProvider): void {
  provider.register()
  onTestFinished(async () => {
    trace.disable()
    context.disable()
    propagation.disable()
    await provider.shutdown()
  })
}

export interface Asking {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
  /** For connections that last; without one, each request has its own. */
  readonly agent?: Agent
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

/** A request that is on its way; with a `part` of its body, which it never completes. */
function asking(
  serving: Serving,
  path: string,
  { method = 'GET', headers, agent }: Asking = {},
  part?: string,
) {
  const asked = httpRequest({
    host: '127.0.0.1',
    port: serving.port,
    path,
    method,
    headers: { ...headers },
    agent: agent ?? false,
  })
  asked.on('error', () => {})
  if (part === undefined) asked.end()
  else asked.write(part)
  return asked
}

/** Sends a request and reads the answer; where it has a connection of its own, until that is closed. */
export async function ask(serving: Serving, path: string, asked: Asking = {}): Promise<Answer> {
  const { method = 'GET', headers, body, agent } = asked
  const sending = httpRequest({
    host: '127.0.0.1',
    port: serving.port,
    path,
    method,
    headers: { ...headers },
    agent: agent ?? false,
  })
  const closed = agent === undefined ? once(sending, 'close') : undefined
  sending.end(body)
  const [response] = (await once(sending, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response.setEncoding('utf8')) text += String(chunk)
  await closed
  return { status: response.statusCode ?? 0, headers: response.headers, body: text }
}

/** Sends these very bytes and returns those that come back, until the server closes the connection. */
export async function raw({ port }: Serving, text: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.write(text)
  let answer = ''
  for await (const chunk of socket.setEncoding('utf8')) answer += String(chunk)
  return answer
}

/** Serves on a free port of this machine; to be used by those who describe an adapter. */
export async function listening(server: Server & { closeAllConnections(): void }): Promise<Serving> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}
