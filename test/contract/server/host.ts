import { SpanKind, trace } from '@opentelemetry/api'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'
import { once } from 'node:events'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { measure } from '../../measuring.ts'
import { record } from '../../recording.ts'
import { TRACE_ID, PARENT_ID, TRACEPARENT, ok, type Handler, type Contract, type Options } from './app.ts'
import { ask, raw } from './client.ts'
import { signal, complaints, register } from './watch.ts'

/** What the app must not notice, and who is in charge. */
export function sparesTheApp({ name, gaps, served }: Contract): void {
  describe(`${name}: the app does not notice`, () => {
    test.each<[string, Options]>([
      ['as it is mounted by one line', {}],
      ...(gaps.middleware ? [] : [['with middlewareSpans', { middlewareSpans: true }] as [string, Options]]),
    ])(
      'listeners on the request, on the response and on the socket: there are none of ours, %s',
      async (_title, options) => {
        record()
        const count: Handler = ({ request, response, answer }) => {
          const counts = [request, response, request.socket].map((emitter) =>
            emitter.eventNames().map((event) => [String(event), emitter.listenerCount(event)]),
          )
          answer(200, JSON.stringify(counts))
        }
        const [without, once_, twice] = await Promise.all(
          [0, 1, 2].map(async (mounts) => (await ask(await served(count, options, mounts), '/')).body),
        )
        expect(once_).toBe(without)
        expect(twice).toBe(without)
      },
    )

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

    test.each<[string, Handler]>([
      ['an answer in its own way', ok],
      [
        'a head with names that come twice',
        ({ response }) =>
          void response.writeHead(200, ['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'X-A', '1']).end('ok'),
      ],
      [
        'a head with a name in two cases',
        ({ response }) =>
          void response.writeHead(200, { 'Set-Cookie': 'a=1', 'set-cookie': 'b=2' }).end('ok'),
      ],
      [
        'headers that are set, and others',
        ({ response }) => void response.setHeader('X-A', ['1', '2']).writeHead(200, { 'x-b': '3' }).end('ok'),
      ],
    ])(
      '%s is the same where headers are captured and added, but for what is added',
      async (_title, handler) => {
        record()
        const options = { serverTiming: true, capture: { responseHeaders: ['set-cookie', 'x-none'] } }
        const text = 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
        const [without, with_] = await Promise.all(
          [0, 1].map(async (mounts) => raw(await served(handler, options, mounts), text)),
        )
        const isDate = /^Date: .*$/im
        const added = /^Server-Timing: trace;desc=[0-9a-f-]{55}\r\n/gim
        expect(with_?.match(added)).toHaveLength(1)
        expect(with_?.replace(added, '').replace(isDate, 'Date')).toBe(without?.replace(isDate, 'Date'))
      },
    )

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

    test.each<[string, string, string, Record<string, unknown>]>([
      [
        'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS',
        'GET,PROPFIND',
        'PROPFIND',
        { 'http.request.method': 'PROPFIND' },
      ],
      [
        'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS',
        'GET,PROPFIND',
        'POST',
        { 'http.request.method': '_OTHER', 'http.request.method_original': 'POST' },
      ],
      [
        'OTEL_SEMCONV_STABILITY_OPT_IN',
        'http/dup',
        'POST',
        {
          'http.request.method': 'POST',
          'http.response.status_code': 404,
          'http.method': 'POST',
          'http.status_code': 404,
          'http.target': '/nothing?a=1',
        },
      ],
    ])('the environment is obeyed: %s=%s for %s', async (variable, value, method, wanted) => {
      vi.resetModules()
      onTestFinished(() => void vi.resetModules())
      vi.stubEnv(variable, value)
      const measuring = measure()
      const recording = record()
      await ask(await served({}), '/nothing?a=1', { method })
      const [span] = await recording.all(1)
      expect(span?.attributes).toMatchObject(wanted)
      expect(span?.name).toBe(wanted['http.request.method'] === '_OTHER' ? 'HTTP' : method)
      const [point] = await measuring.all('http.server.request.duration', 1)
      expect(point?.attributes['http.request.method']).toBe(wanted['http.request.method'])
      const [old] = await measuring.points('http.server.duration')
      if (value !== 'http/dup') expect(old).toBeUndefined()
      else {
        expect(old?.value).toBe((point?.value ?? NaN) * 1000)
        expect(old?.attributes).toEqual({
          'http.method': 'POST',
          'http.scheme': 'http',
          'http.flavor': '1.1',
          'net.protocol.version': '1.1',
          'http.status_code': 404,
        })
      }
    })

    test.skipIf(gaps.router)('a duration under its old name has the route, too', async () => {
      vi.resetModules()
      onTestFinished(() => void vi.resetModules())
      vi.stubEnv('OTEL_SEMCONV_STABILITY_OPT_IN', 'http/dup')
      const measuring = measure()
      const recording = record()
      await ask(await served({ routes: { 'GET /users/:id': ok } }), '/users/7')
      await recording.all(1)
      await measuring.all('http.server.request.duration', 1)
      const [old] = await measuring.points('http.server.duration')
      expect(old?.attributes['http.route']).toBe('/users/:id')
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
