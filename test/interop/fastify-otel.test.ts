import { start, type ReadableSpan } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import { FastifyOtelInstrumentation } from '@fastify/otel'
import { context, propagation, SpanKind, trace } from '@opentelemetry/api'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import fastify from 'fastify'
import { get } from 'node:http'
import { expect, onTestFinished, test } from 'vitest'
import { signal } from '../contract/server/watch.ts'
import { measure } from '../measuring.ts'

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
const CALLER_ID = '00f067aa0ba902b7'
const headers = { traceparent: `00-${TRACE_ID}-${CALLER_ID}-01` }

const engines = {
  ours(exporter: InMemorySpanExporter) {
    const tracing = start({ signals: false, spanProcessors: [new SimpleSpanProcessor(exporter)] })
    return () => tracing.shutdown()
  },
  'the official SDK'(exporter: InMemorySpanExporter) {
    const sdk = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    sdk.register()
    return async () => {
      await sdk.shutdown()
      for (const api of [trace, context, propagation]) api.disable()
    }
  },
}

/** Asks an app once, whose handler asks one within the same process that is ours alone, and answers what came of it. */
async function asked(engine: keyof typeof engines, order: 'theirs first' | 'ours first') {
  const exporter = new InMemorySpanExporter()
  onTestFinished(engines[engine](exporter))
  const theirs = new FastifyOtelInstrumentation().plugin()
  const [outer, inner] = [fastify(), fastify()]
  for (const plugin of order === 'theirs first' ? [theirs, tracing] : [tracing, theirs])
    await outer.register(plugin)
  await inner.register(tracing)
  inner.get('/inner', async () => 'inner')
  outer.get('/users/:id', async () => {
    await inner.inject('/inner')
    return trace.getActiveSpan()?.spanContext()
  })
  const answer = await outer.inject({ url: '/users/7', headers })
  await Promise.all([outer.close(), inner.close()])
  const spans = exporter.getFinishedSpans()
  const servers = spans.filter(({ kind }) => kind === SpanKind.SERVER)
  return { spans, servers, current: answer.json<{ traceId: string; spanId: string }>() }
}

const scopesOf = (spans: { instrumentationScope: { name: string } }[]) =>
  spans.map(({ instrumentationScope }) => instrumentationScope.name).toSorted()

test.each(Object.keys(engines) as (keyof typeof engines)[])(
  'a request that @fastify/otel has a SERVER span of has no second one, on %s',
  async (engine) => {
    const { spans, servers, current } = await asked(engine, 'theirs first')
    // The other app's request is one of its own.
    expect(scopesOf(servers)).toEqual(['@fastify/otel', '@throughline/fastify'])
    const request = servers.find((each) => each.instrumentationScope.name === '@fastify/otel')
    expect(request?.parentSpanContext).toMatchObject({ traceId: TRACE_ID, spanId: CALLER_ID })
    const handler = spans.find((each) => each.spanContext().spanId === current.spanId)
    expect(handler?.parentSpanContext?.spanId).toBe(request?.spanContext().spanId)
  },
)

test('a request beside @fastify/otel is measured, announced and ignored as any other', async () => {
  const measuring = measure()
  const exporter = new InMemorySpanExporter()
  onTestFinished(engines.ours(exporter))
  const app = fastify()
  await app.register(new FastifyOtelInstrumentation().plugin())
  await app.register(tracing, { serverTiming: true, ignore: (request) => request.url === '/health' })
  for (const path of ['/users/:id', '/health'])
    app.get(path, async () => trace.getActiveSpan()?.spanContext().traceId)
  const answer = await app.inject({ url: '/users/7', headers })
  await app.inject('/health')
  await app.close()
  const [point] = await measuring.all('http.server.request.duration', 1)
  expect(point?.attributes).toMatchObject({ 'http.route': '/users/:id', 'http.response.status_code': 200 })
  expect(answer.headers['server-timing']).toContain(TRACE_ID)
})

test('a request beside @fastify/otel whose client leaves before the answer has an end', async () => {
  const ended = signal<ReadableSpan>()
  const tracer = start({
    signals: false,
    spanProcessors: [
      {
        onStart() {},
        onEnd: (each) => void (each.kind === SpanKind.SERVER && ended.give(each)),
        forceFlush: async () => {},
        shutdown: async () => {},
      },
    ],
  })
  onTestFinished(() => tracer.shutdown())
  const app = fastify({ forceCloseConnections: true })
  await app.register(new FastifyOtelInstrumentation().plugin())
  await app.register(tracing)
  const arrived = signal()
  app.get('/users/:id', () => new Promise(() => arrived.give()))
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  onTestFinished(() => app.close())
  const request = get(`${url}/users/7`, { agent: false }).on('error', () => {})
  await arrived.given
  request.destroy()
  const span = await ended.given
  expect(span.instrumentationScope.name).toBe('@fastify/otel')
  expect(span.attributes).toMatchObject({ 'throughline.incomplete': true })
})

test('where ours is registered first, its SERVER span is the one, and theirs is within', async () => {
  const { spans, servers } = await asked('ours', 'ours first')
  expect(scopesOf(servers)).toEqual(['@throughline/fastify', '@throughline/fastify'])
  const request = servers.find(({ attributes }) => attributes['http.route'] === '/users/:id')
  expect(request?.parentSpanContext?.spanId).toBe(CALLER_ID)
  const theirs = spans.find(({ name }) => name === 'request')
  expect(theirs?.parentSpanContext?.spanId).toBe(request?.spanContext().spanId)
})

test.each([
  [
    'throws',
    () => {
      throw new Error('of the app')
    },
  ],
  ['is nothing of that', () => 'text'],
  ['has no span', () => ({ span: { name: 'x' } })],
])('what an app calls the same, and %s, changes nothing', async (_, opentelemetry) => {
  const exporter = new InMemorySpanExporter()
  onTestFinished(engines.ours(exporter))
  const app = fastify().decorateRequest('opentelemetry', opentelemetry as never)
  await app.register(tracing)
  app.get('/users/:id', async () => 'ok')
  await app.inject('/users/7')
  await app.close()
  expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'GET /users/:id', kind: SpanKind.SERVER }])
})
