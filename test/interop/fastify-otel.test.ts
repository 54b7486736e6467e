import { start } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import { FastifyOtelInstrumentation } from '@fastify/otel'
import { context, propagation, SpanKind, trace } from '@opentelemetry/api'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import fastify from 'fastify'
import { expect, onTestFinished, test } from 'vitest'

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
