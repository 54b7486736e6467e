import {
  context,
  createContextKey,
  createNoopMeter,
  metrics,
  propagation,
  SpanKind,
  trace,
  type Meter,
  type MeterProvider,
} from '@opentelemetry/api'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'
import { endRequest, instrumentsFor, traceRequest, type ReceivingOptions } from '@throughline/core'
import { once } from 'node:events'
import { createServer, request as get, type IncomingMessage, type ServerResponse } from 'node:http'
import { constants, createServer as createHttp2Server } from 'node:http2'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { ask, listening, type Serving } from '../contract/server.ts'
import { signal } from '../contract/server/watch.ts'
import { http2ClientOf } from '../http2.ts'
import { measure, type Measuring } from '../measuring.ts'
import { record } from '../recording.ts'
import { said } from './engine.ts'

const DURATION = 'http.server.request.duration'
const ACTIVE = 'http.server.active_requests'

type Listener = (request: IncomingMessage, response: ServerResponse) => unknown
type Options = ReceivingOptions<IncomingMessage, [IncomingMessage, ServerResponse]>

async function serve(listener: Listener, options: Options = {}): Promise<Serving> {
  return served((request, response) =>
    traceRequest(request, response, () => listener(request, response), options),
  )
}

async function served(listener: Listener): Promise<Serving> {
  const serving = await listening(createServer((request, response) => void listener(request, response)))
  onTestFinished(() => serving.close())
  return serving
}

const ok: Listener = (_request, response) => response.end('ok')

/** Registers a MeterProvider of the app's own, until the end of the test. */
function provide(getMeter: MeterProvider['getMeter']): void {
  metrics.setGlobalMeterProvider({ getMeter })
  onTestFinished(() => metrics.disable())
}

describe('without a MeterProvider', () => {
  test('the API is not asked for one, and nothing is measured when one comes in the midst of a request', async () => {
    const looks = vi.spyOn(metrics, 'getMeterProvider')
    const recording = record()
    let measuring: Measuring | undefined
    const serving = await serve((_request, response) => {
      measuring ??= measure()
      response.end('ok')
    })
    await ask(serving, '/')
    await recording.all(1)
    expect(looks).not.toHaveBeenCalled()
    expect(await measuring?.points(DURATION)).toEqual([])
  })
})

describe('a request that is not sampled', () => {
  test('is asked for its trace alone, and for nothing that a span would say', async () => {
    const measuring = measure()
    record({ sampling: 0 })
    const reads = new Set<string>()
    const serving = await served((request, response) => {
      const { headers } = request
      const watched = new Proxy(headers, {
        get(target, name) {
          reads.add(String(name))
          return target[String(name)]
        },
      })
      Object.defineProperty(request, 'headers', { value: watched })
      traceRequest(request, response, () => response.end('ok'))
    })
    await ask(serving, '/?a=1', { headers: { 'user-agent': 'visitor' } })
    await measuring.all(DURATION, 1)
    // One that becomes a WebSocket is over with its handshake, for its duration too.
    expect([...reads].sort()).toEqual(['baggage', 'traceparent', 'upgrade'])
  })
})

describe('the instruments', () => {
  test('are made once, by the first request, and are of the package that receives', async () => {
    const made: string[] = []
    const meter = createMeter((name) => made.push(name))
    const asked: unknown[] = []
    provide((...given) => {
      asked.push(given)
      return meter
    })
    const recording = record()
    const serving = await serve(ok)
    expect(asked).toEqual([])
    for (let i = 0; i < 3; i += 1) await ask(serving, '/')
    await recording.all(3)
    expect(asked).toEqual([['@throughline/core', expect.stringMatching(/^\d+\.\d+\.\d+/)]])
    expect(made).toEqual([DURATION])
  })

  test('that throw are reported once, and neither the span nor the answer is harmed', async () => {
    const reports = said()
    const fault = (): never => {
      throw new Error('a bug of the SDK’s')
    }
    provide(() => createMeter(() => ({ record: fault, add: fault })))
    const recording = record()
    const serving = await serve(ok, { activeRequests: true })
    for (let i = 0; i < 2; i += 1) expect((await ask(serving, '/')).body).toBe('ok')
    const spans = await recording.all(2)
    expect(spans.map(({ status }) => status.code)).toEqual([0, 0])
    expect(reports.lines).toEqual([expect.stringContaining('a request or a call could not be measured')])
  })

  test('are no longer those of a provider that another has followed, or none', () => {
    const reports = said()
    const instruments = instrumentsFor({ name: 'a' }, (meter) => meter)
    const first = {} as Meter
    provide(() => first)
    expect(instruments()).toBe(first)
    metrics.disable()
    expect(instruments()).toBeUndefined()
    provide(() => {
      throw new Error('of the provider')
    })
    expect([instruments(), instruments()]).toEqual([undefined, undefined])
    expect(reports.lines).toHaveLength(1)
    metrics.disable()
    provide(() => first)
    expect(instruments()).toBe(first)
  })

  test('of a provider that gives a meter which does nothing are none', () => {
    const instruments = instrumentsFor({ name: 'a' }, () => 'made')
    provide(() => createNoopMeter())
    expect(instruments()).toBeUndefined()
  })
})

describe('how long it took', () => {
  test('is what an OpenTelemetry SDK in charge says of its span', async () => {
    const measuring = measure()
    const exporter = new InMemorySpanExporter()
    const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    provider.register()
    onTestFinished(async () => {
      trace.disable()
      context.disable()
      propagation.disable()
      await provider.shutdown()
    })
    await ask(await serve(ok), '/')
    const [point] = await measuring.all(DURATION, 1)
    const [seconds, nanoseconds] = exporter.getFinishedSpans()[0]?.duration ?? [NaN, NaN]
    expect(point?.value).toBe(seconds + nanoseconds / 1e9)
  })

  test('goes on where the span was ended by a shutdown', async () => {
    const measuring = measure()
    const recording = record()
    let asked = 0
    const serving = await serve(async (_request, response) => {
      const entered = performance.now()
      await recording.stop()
      // By more than the measurement can have begun after the span.
      const enough = performance.now() + (entered - asked)
      while (performance.now() <= enough);
      response.end('ok')
    })
    asked = performance.now()
    await ask(serving, '/')
    const [point] = await measuring.all(DURATION, 1)
    const [span] = await recording.all(1)
    expect(span?.attributes['throughline.incomplete']).toBe(true)
    const [seconds, nanoseconds] = span?.duration ?? [NaN, NaN]
    expect(point?.value).toBeGreaterThan(seconds + nanoseconds / 1e9)
    expect(point?.attributes).toMatchObject({ 'http.response.status_code': 200 })
  })
})

test('a request that was upgraded counts once, as 101', async () => {
  const measuring = measure()
  const recording = record()
  const server = createServer()
  server.on('upgrade', (request, socket) => {
    const response = Object.assign(Object.create(null) as ServerResponse, { on() {}, emit() {} })
    traceRequest(request, response, () => {
      socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
      endRequest(request, 101)
    })
  })
  const serving = await listening(server)
  onTestFinished(() => serving.close())
  const asked = get({
    port: serving.port,
    host: '127.0.0.1',
    headers: { connection: 'Upgrade', upgrade: 'websocket' },
  })
  asked.end()
  const [, socket] = (await once(asked, 'upgrade')) as [IncomingMessage, NodeJS.ReadableStream]
  await once(socket.resume(), 'end')
  await recording.all(1)
  const points = await measuring.all(DURATION, 1)
  expect(points).toMatchObject([{ attributes: { 'http.response.status_code': 101 } }])
  expect(points[0]?.attributes).not.toHaveProperty('error.type')
})

test('where the official HTTP instrumentation has made the span, it measures, and we do not', async () => {
  const measuring = measure()
  const recording = record()
  const key = createContextKey('OpenTelemetry SDK Context Key RPC_METADATA')
  const serving = await served((request, response) => {
    const official = trace.getTracer('official').startSpan('GET', { kind: SpanKind.SERVER })
    response.on('close', () => official.end())
    const scope = trace.setSpan(context.active(), official).setValue(key, { type: 'http', span: official })
    context.with(scope, () =>
      traceRequest(request, response, () => response.end('ok'), { activeRequests: true }),
    )
  })
  await ask(serving, '/')
  await recording.all(1)
  expect(await measuring.points(DURATION)).toEqual([])
  expect(await measuring.points(ACTIVE)).toEqual([])
})

test('HTTP/2 is version 2', async () => {
  const measuring = measure()
  record()
  const server = createHttp2Server((request, response) => {
    const http1 = [request, response] as unknown as [IncomingMessage, ServerResponse]
    traceRequest(...http1, () => response.end('ok'))
  })
  const { client } = await http2ClientOf(server)
  const stream = client.request({ ':path': '/' })
  stream.resume()
  await once(stream, 'end')
  const [point] = await measuring.all(DURATION, 1)
  expect(point?.attributes).toMatchObject({ 'network.protocol.version': '2', 'url.scheme': 'http' })
})

test('an answer over HTTP/2 that nobody samples is over when it is out, whatever the client still sends', async () => {
  const measuring = measure()
  record({ sampling: 0 })
  const finished = signal<number>()
  const server = createHttp2Server((request, response) => {
    const http1 = [request, response] as unknown as [IncomingMessage, ServerResponse]
    const began = performance.now()
    traceRequest(...http1, () => {
      // Ours is in front of it.
      response.stream.once('finish', () => finished.give(performance.now() - began))
      request.resume()
      response.writeHead(204).end()
    })
  })
  const { client } = await http2ClientOf(server)
  const stream = client.request({ ':path': '/', ':method': 'POST' })
  stream.on('error', () => {})
  stream.write('the first half')
  const milliseconds = await finished.given
  stream.close(constants.NGHTTP2_CANCEL)
  const [point] = await measuring.all(DURATION, 1)
  expect(point?.attributes).not.toHaveProperty('error.type')
  expect(point?.value).toBeLessThanOrEqual(milliseconds / 1000)
})

test('what the app’s `attributes` adds goes to the span alone', async () => {
  const measuring = measure()
  const recording = record()
  await ask(await serve(ok, { attributes: () => ({ 'app.user': 'ann' }) }), '/')
  await recording.all(1)
  const [point] = await measuring.all(DURATION, 1)
  expect(point?.attributes).not.toHaveProperty('app.user')
})

/** A meter whose instruments `make` makes, or else do nothing. */
function createMeter(make: (name: string) => unknown): Meter {
  const nothing = { record() {}, add() {} }
  const create = (name: string) => {
    const made = make(name)
    return typeof made === 'object' ? made : nothing
  }
  return { createHistogram: create, createUpDownCounter: create } as unknown as Meter
}
