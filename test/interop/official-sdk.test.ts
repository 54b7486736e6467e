import { SpanKind } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { receiver } from '../core/receiver.ts'
import { only, run, tree, type PlainSpan } from './child.ts'

interface Told {
  statuses: string[]
  spans: PlainSpan[]
  unflushed: number
  asks: Pick<PlainSpan, 'name' | 'kind' | 'attributes'>[]
  timers: number[]
  listeners: number[][]
  traceparents: string[][]
}

const LEFT_IN_CHARGE =
  'throughline: an OpenTelemetry SDK is registered and stays in charge; start() did nothing\n'

const CLIENTS = `
  INTERNAL work by @throughline/core
    CLIENT SELECT by @throughline/pg
    CLIENT GET by @throughline/ioredis
    CLIENT GET by @throughline/undici`

describe.each(['before', 'after'])('the official NodeSDK, registered %s we are imported', (order) => {
  test('gets the spans of all our adapters, and our engine is not there', async () => {
    const collector = await receiver()
    const told = await run<Told>(
      'sdk.mjs',
      { order, start: collector.url },
      { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
    )

    expect(told.statuses).toEqual(Array(3).fill('HTTP/1.1 200 OK'))
    expect(tree(told.spans)).toBe(
      [
        `SERVER GET /users/:id by @throughline/express${CLIENTS}`,
        `SERVER GET by @throughline/koa${CLIENTS}`,
        `SERVER GET /users/:id by @throughline/fastify${CLIENTS}`,
      ].join('\n'),
    )
    for (const { traceId, resource } of told.spans) {
      expect(traceId).toBe('4bf92f3577b34da6a3ce929d0e0e4736')
      expect(resource).toMatchObject({ 'service.name': 'theirs', 'telemetry.sdk.name': 'opentelemetry' })
    }
    const servers = told.spans.filter(({ kind }) => kind === SpanKind.SERVER)
    expect(servers.map(({ parentSpanId }) => parentSpanId)).toEqual(Array(3).fill('00f067aa0ba902b7'))
    expect(servers.map(({ attributes }) => attributes['http.route'])).toEqual([
      '/users/:id',
      undefined,
      '/users/:id',
    ])

    // The trace goes on with the span of the call, and with no other.
    const calls = told.spans.filter(({ scope }) => scope === '@throughline/undici')
    expect(told.traceparents).toEqual(
      calls.map(({ spanId }) => [`00-4bf92f3577b34da6a3ce929d0e0e4736-${spanId}-01`]),
    )

    // What nobody flushed had not left, and flush() reached their batch.
    expect(told.unflushed).toBe(0)
    expect(told.said).toBe(LEFT_IN_CHARGE)
    expect(told.timers).toEqual([])
    expect(told.listeners).toEqual([
      [0, 0, 0],
      [0, 0, 0],
    ])
    expect(collector.requests).toEqual([])
  })

  test('is told at the start of a span what its sampler decides by', async () => {
    const { asks, spans, said } = await run<Told>('sdk.mjs', { order })
    expect(said).toBe('')
    expect(asks).toHaveLength(16)
    expect(asks.slice(0, 5)).toEqual([
      {
        name: 'GET',
        kind: SpanKind.SERVER,
        attributes: expect.objectContaining({
          'http.request.method': 'GET',
          'url.path': '/users/7',
          'url.query': 'page=2',
          'url.scheme': 'http',
          'server.address': '127.0.0.1',
          'client.address': '127.0.0.1',
        }),
      },
      { name: 'work', kind: SpanKind.INTERNAL, attributes: { 'order.id': 7 } },
      {
        name: 'SELECT',
        kind: SpanKind.CLIENT,
        attributes: expect.objectContaining({
          'db.system.name': 'postgresql',
          'db.query.text': 'SELECT $1::text AS name',
          'db.query.summary': 'SELECT',
        }),
      },
      {
        name: 'GET',
        kind: SpanKind.CLIENT,
        attributes: expect.objectContaining({ 'db.system.name': 'redis', 'db.query.text': 'GET nobody' }),
      },
      {
        name: 'GET',
        kind: SpanKind.CLIENT,
        attributes: expect.objectContaining({
          'http.request.method': 'GET',
          'url.full': expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+\/prices$/),
          'server.address': '127.0.0.1',
        }),
      },
    ])
    // Its decision holds.
    expect(asks.at(-1)?.name).toBe('never')
    expect(spans.filter(({ name }) => name === 'never')).toEqual([])
    expect(only(spans.slice(-5), { kind: SpanKind.SERVER }).attributes).toMatchObject({
      'http.response.status_code': 200,
    })
  })
})

test('an official SDK that registers too late is told so once, and nothing is lost by it', async () => {
  const collector = await receiver()
  const { theirs, said } = await run<{ theirs: string[] }>(
    'late.mjs',
    {},
    { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
  )
  const lines = said.trim().split('\n')
  expect(lines).toHaveLength(1)
  expect(lines[0]).toMatch(
    /^throughline: \w*TracerProvider was registered after Throughline had started, and stays unused\. .*before the first span.*start\(\)$/,
  )
  expect(theirs).toEqual([])
  const spans = collector.spans()
  expect(spans.map(({ name }) => name).sort()).toEqual(['first', 'inside', 'second', 'third'])
  const [inside, second] = ['inside', 'second'].map((wanted) => spans.find(({ name }) => name === wanted))
  expect(inside?.parentSpanId).toEqual(second?.spanId)
  expect(inside?.traceId).toEqual(second?.traceId)
})

test('where an official SDK was in charge and is gone, nothing of ours begins unasked, and the next one is in charge', async () => {
  const { lives, isTraced, said } = await run<{ lives: string[][]; isTraced: boolean }>('gone.mjs')
  expect(lives).toEqual([['first'], ['second']])
  expect(isTraced).toBe(false)
  expect(said).toBe('')
})
