import { SpanKind, SpanStatusCode } from '@opentelemetry/api'
import { describe, expect, inject, test } from 'vitest'
import { receiver } from '../core/receiver.ts'
import { spansFromJson } from '../../packages/viewer/src/request.ts'
import { only, run, tree, type PlainSpan } from './child.ts'

interface Told {
  status: string
  spans: PlainSpan[]
  /** What each request to the other service had under this name. */
  traceparents: string[][]
}

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
const headers = { traceparent: `00-${TRACE_ID}-00f067aa0ba902b7-01` }

const ENGINES = ['ours', 'sdk'] as const
const names = { ours: 'our engine', sdk: 'the official NodeSDK' }

const YIELDED = 'throughline: another instrumentation traces pg already, so tracePg does not\n'

test('the official http, express, pg and undici instrumentation work on our engine as on their own', async () => {
  const official = ['http', 'express', 'pg', 'undici']
  const [onOurs, onTheirs] = await Promise.all(
    ENGINES.map((engine) => run<Told>('shop.cjs', { engine, official, headers })),
  )
  expect(tree(onOurs?.spans ?? [])).toBe(
    `
SERVER GET /users/:id by official http
  INTERNAL router - /:id by official express
  INTERNAL request handler by official express
    CLIENT pg-pool.connect by official pg
    CLIENT pg.query:SELECT ${database()} by official pg
    CLIENT GET by official undici`.trim(),
  )
  expect(onOurs).toMatchObject({ status: 'HTTP/1.1 200 OK', said: '' })
  // All that they record but ports and ids.
  expect(onOurs?.spans.map(comparable)).toEqual(onTheirs?.spans.map(comparable))
  const server = only(onOurs?.spans ?? [], { kind: SpanKind.SERVER })
  expect(server).toMatchObject({ traceId: TRACE_ID, parentSpanId: '00f067aa0ba902b7' })
  expect(server.resource).toMatchObject({ 'telemetry.sdk.name': 'throughline' })
  const call = only(onOurs?.spans ?? [], { scope: '@opentelemetry/instrumentation-undici' })
  expect(onOurs?.traceparents).toEqual([[`00-${TRACE_ID}-${call.spanId}-01`]])
})

describe.each(ENGINES)('the official instrumentation and ours in one app, on %s', (engine) => {
  const on = names[engine]

  test(`make one SERVER span, one CLIENT span a query, and one traceparent: ${on}`, async () => {
    const told = await run<Told>('shop.cjs', {
      engine,
      official: ['http', 'express', 'pg'],
      ours: ['express', 'pg', 'undici'],
      headers,
    })
    expect(told).toMatchObject({ status: 'HTTP/1.1 200 OK', said: YIELDED })
    expect(tree(told.spans)).toBe(
      `
SERVER GET /users/:id by official http
  INTERNAL middleware - tracing by official express
  INTERNAL router - /:id by official express
  INTERNAL request handler by official express
    CLIENT pg-pool.connect by official pg
    CLIENT pg.query:SELECT ${database()} by official pg
    CLIENT GET by @throughline/undici`.trim(),
    )
    const server = only(told.spans, { kind: SpanKind.SERVER })
    expect(server).toMatchObject({ traceId: TRACE_ID, parentSpanId: '00f067aa0ba902b7' })
    expect(server.attributes).toMatchObject({
      'http.route': '/users/:id',
      'http.response.status_code': 200,
      'app.tenant': 'acme',
    })
    const call = only(told.spans, { scope: '@throughline/undici' })
    expect(told.traceparents).toEqual([[`00-${TRACE_ID}-${call.spanId}-01`]])
  })

  test.each(['express', 'koa', 'fastify'])(
    `the official SERVER span gets route and name by our adapter for %s, and our clients nest below: ${on}`,
    async (framework) => {
      const told = await run<Told>('shop.cjs', {
        engine,
        framework,
        official: ['http'],
        ours: [framework, 'pg', 'undici'],
        headers,
      })
      expect(told).toMatchObject({ status: 'HTTP/1.1 200 OK', said: '' })
      expect(tree(told.spans)).toBe(
        `
SERVER GET /users/:id by official http
  CLIENT SELECT by @throughline/pg
  CLIENT GET by @throughline/undici`.trim(),
      )
      const server = only(told.spans, { kind: SpanKind.SERVER })
      expect(server.status).toEqual({ code: SpanStatusCode.UNSET })
      expect(server.attributes).toMatchObject({ 'http.route': '/users/:id', 'app.tenant': 'acme' })
      const call = only(told.spans, { scope: '@throughline/undici' })
      expect(told.traceparents).toEqual([[`00-${TRACE_ID}-${call.spanId}-01`]])
    },
  )

  test.each(['express', 'koa', 'fastify'])(
    `the official SERVER span gets the error that our adapter for %s has seen: ${on}`,
    async (framework) => {
      const asked = { engine, framework, official: ['http'], ours: [framework], path: '/broken' }
      const { status, spans, said } = await run<Told>('shop.cjs', asked)
      expect([status, said]).toEqual(['HTTP/1.1 500 Internal Server Error', ''])
      expect(tree(spans)).toBe('SERVER GET /broken by official http ✗')
      expect(spans[0]?.attributes).toMatchObject({
        'http.route': '/broken',
        'http.response.status_code': 500,
        'error.type': 'RangeError',
      })
      expect(spans[0]?.events).toEqual([
        {
          name: 'exception',
          attributes: {
            'exception.type': 'RangeError',
            'exception.message': 'it broke',
            'exception.stacktrace': 'it broke',
          },
        },
      ])
    },
  )

  test(`the official SERVER span is not told of a request that is made up inside of its own: ${on}`, async () => {
    const asked = { engine, framework: 'fastify', official: ['http'], ours: ['fastify'], path: '/inside' }
    const { status, spans, said } = await run<Told>('shop.cjs', asked)
    expect([status, said]).toEqual(['HTTP/1.1 200 OK', ''])
    expect(tree(spans)).toBe(
      `
SERVER GET /broken by @throughline/fastify ✗
SERVER GET /inside by official http`.trim(),
    )
  })
})

describe('libraries that make spans by the API alone, on our engine', () => {
  interface Libraries {
    spans: PlainSpan[]
    headers: Record<string, string>
    baggage: string
    prismaTraceparent: string
    refused: string
    nanoseconds: unknown
  }

  test("Prisma's instrumentation and a queue nest with our spans, by calls and by messages", async () => {
    const told = await run<Libraries>('third-party.cjs')
    expect(told.said).toBe('')
    expect(tree(told.spans.toSorted((a, b) => order.indexOf(a.name) - order.indexOf(b.name)))).toBe(
      `
INTERNAL checkout by @throughline/core
  INTERNAL prisma:client:operation by prisma
    INTERNAL prisma:client:serialize by prisma
    INTERNAL prisma:engine:query by prisma
      CLIENT prisma:engine:db_query by prisma
    INTERNAL prisma:client:connect by prisma
  PRODUCER publish orders by queue
  INTERNAL heard mug by @throughline/core
CONSUMER process orders by queue ✗`.trim(),
    )
    const [checkout, operation, query, sql, published, processed] = [
      'checkout',
      'prisma:client:operation',
      'prisma:engine:query',
      'prisma:engine:db_query',
      'publish orders',
      'process orders',
    ].map((name) => only(told.spans, { name }))

    // What Prisma hands to its engine is the current span; what its engine tells later keeps its times and links.
    expect(told.prismaTraceparent).toBe(`00-${checkout?.traceId}-${operation?.spanId}-03`)
    expect(told.nanoseconds).toEqual([[2, 5, [0, 3]]])
    expect(sql?.links).toEqual([query?.spanId])
    expect(sql?.attributes).toEqual({ 'db.system.name': 'postgresql', 'db.query.text': 'SELECT 1' })
    expect(sql?.events).toMatchObject([
      { name: 'error', attributes: { message: 'slow' } },
      { name: 'exception', attributes: { 'exception.message': 'slow' } },
    ])
    expect(told.refused).toBe('refused')

    expect(told.headers).toEqual({
      traceparent: `00-${published?.traceId}-${published?.spanId}-03`,
      baggage: 'tenant=acme',
    })
    expect(told.baggage).toBe('acme')
    expect(processed?.parentSpanId).toBeUndefined()
    expect(processed?.links).toEqual([published?.spanId])
    expect(processed?.traceId).not.toBe(checkout?.traceId)
    expect(processed?.events).toMatchObject([{ attributes: { 'exception.type': 'RangeError' } }])
  })

  const order = [
    'checkout',
    'prisma:client:operation',
    'prisma:client:serialize',
    'prisma:engine:query',
    'prisma:engine:db_query',
    'prisma:client:connect',
    'publish orders',
    'heard mug',
    'process orders',
  ]
})

test.each([
  'ours',
  'ours as JSON',
  'the official exporter behind our batch',
  'the official JSON exporter behind our batch',
  'the official batch',
  'the official simple processor',
])('what exports the spans is not traced by the official http instrumentation: %s', async (pipeline) => {
  const collector = await receiver()
  const told = await run<Told>('exports.cjs', { pipeline, collector: collector.url })
  expect(told.said).toBe('')
  expect(collector.requests).toHaveLength(1)
  const [request] = collector.requests
  expect(request?.headers).not.toHaveProperty('traceparent')
  if (request?.headers['content-type'] === 'application/json') {
    expect(spansFromJson(request.body)).toMatchObject([
      { name: 'GET', kind: 'client', serviceName: 'orders' },
    ])
  } else {
    expect(collector.spans()).toMatchObject([{ name: 'GET', kind: 3 }])
  }
})

/** The official instrumentation for pg has the database's name in its spans' names. */
function database(): string {
  return new URL(inject('databaseUrl')).pathname.slice(1)
}

/** What a span says, without what differs from run to run. */
function comparable({ name, kind, scope, status, attributes, events, links }: PlainSpan) {
  const shown = Object.entries(attributes).map(([key, value]) => [
    key,
    /\.port$|^url\.full$/.test(key) ? typeof value : value,
  ])
  return { name, kind, scope, status, attributes: Object.fromEntries(shown) as object, events, links }
}

test.each([
  ['before the pool connects', false, false, []],
  ['before the pool connects, whose clients are of a class of the app', false, true, []],
  ['when the pool has a connection', true, false, ['ours']],
])(
  'the official pg instrumentation comes late and goes again, and each query has one span: %s',
  async (_row, isConnected, isOwnClass, ofOld) => {
    const { spans, said } = await run<{ spans: PlainSpan[] }>('late-pg.cjs', { isConnected, isOwnClass })
    const queriesIn = (caller: string) => {
      const { spanId } = only(spans, { name: caller })
      return spans
        .filter(({ parentSpanId, name }) => parentSpanId === spanId && /^SELECT$|^pg\.query/.test(name))
        .map(({ scope }) => (scope === '@throughline/pg' ? 'ours' : 'theirs'))
        .toSorted()
    }
    if (isConnected) expect(queriesIn('before')).toEqual(['ours'])
    // A connection of ours stays ours: what comes late does not reach it.
    const both = [...ofOld, 'theirs', 'theirs'].slice(0, 2)
    expect(queriesIn('meanwhile')).toEqual(both)
    expect(queriesIn('again')).toHaveLength(1)
    expect(queriesIn('lent')).toEqual(both)
    expect(queriesIn('after')).toEqual(['ours', 'ours'])
    // Of those that the app calls, and of no other.
    expect(spans.filter(({ name }) => name === 'pool.connect')).toHaveLength(2)
    expect(said).toBe(YIELDED)
  },
)
