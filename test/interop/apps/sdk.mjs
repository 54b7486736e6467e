// Every adapter of ours on the official NodeSDK, which is registered before we are imported, after it, or not at all.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'

const { asked, headers, plain, tell, visit, wire } = createRequire(import.meta.url)('./app.cjs')
const { BatchSpanProcessor, InMemorySpanExporter } = await import('@opentelemetry/sdk-trace-base')
const { NodeSDK } = await import('@opentelemetry/sdk-node')

// A timer that our engine starts is seen here: its queue, its sender and its exit are in these files.
const timers = []
const { setTimeout: schedule, setInterval: repeat } = globalThis
const seen = (start) =>
  function (given, delay, ...rest) {
    if (/core\/dist\/(batch|start|otlp)/.test(new Error('here').stack)) timers.push(delay)
    return start(given, delay, ...rest)
  }
globalThis.setTimeout = Object.assign(seen(schedule), schedule)
globalThis.setInterval = Object.assign(seen(repeat), repeat)

const asks = []
const exporter = new InMemorySpanExporter()
/** What a sampler is told of each span when it starts. */
const sampler = {
  shouldSample(_context, _traceId, name, kind, attributes) {
    asks.push({ name, kind, attributes })
    return { decision: name === 'never' ? 0 : 2 }
  },
  toString: () => 'told',
}

function register() {
  const sdk = new NodeSDK({
    autoDetectResources: false,
    serviceName: 'theirs',
    sampler,
    // Nothing leaves it by itself while this runs: only a flush does it.
    spanProcessors: [new BatchSpanProcessor(exporter, { scheduledDelayMillis: 600_000 })],
  })
  sdk.start()
  return sdk
}

let sdk = asked.order === 'before' ? register() : undefined
const { flush, span, start } = await import('@throughline/core')
const { tracing: express } = await import('@throughline/express')
const { tracing: koa } = await import('@throughline/koa')
const { tracing: fastify } = await import('@throughline/fastify')
const { traceUndici } = await import('@throughline/undici')
const { tracePg } = await import('@throughline/pg')
const { traceIORedis } = await import('@throughline/ioredis')
const { default: Express } = await import('express')
const { default: Koa } = await import('koa')
const { default: Fastify } = await import('fastify')
const { Pool } = await import('pg')
const { Redis } = await import('ioredis')

traceUndici()
const pool = tracePg(new Pool({ connectionString: process.env.DATABASE_URL, max: 1 }))
const redis = traceIORedis(new Redis(process.env.REDIS_URL))
const other = await wire()

async function work() {
  await span('work', { 'order.id': 7 }, async () => {
    await pool.query('SELECT $1::text AS name', ['Ada'])
    await redis.get('nobody')
    await (await fetch(`${other.url}/prices`)).text()
  })
}

const expressApp = new Express().use(express())
expressApp.get('/users/:id', async (_request, response) => {
  await work()
  response.end('ok')
})
const koaApp = new Koa().use(koa()).use(async (ctx) => {
  await work()
  ctx.body = 'ok'
})
const fastifyApp = Fastify()
await fastifyApp.register(fastify)
fastifyApp.get('/users/:id', async () => {
  await work()
  return 'ok'
})
await fastifyApp.ready()

if (asked.order === 'after') sdk = register()
if (asked.start) start({ endpoint: asked.start })

const listeners = () => ['SIGTERM', 'SIGINT', 'beforeExit'].map((event) => process.listenerCount(event))
const before = listeners()
const statuses = []
const handlers = [expressApp, koaApp.callback(), (request, response) => fastifyApp.routing(request, response)]
for (const handler of handlers) {
  const server = createServer(handler).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
  statuses.push(await visit(server, '/users/7?page=2', { traceparent }))
  const closed = once(server, 'close')
  server.close()
  await closed
}
span('never', () => {})
other.close()
await fastifyApp.close()
await pool.end()
redis.disconnect()

const after = listeners()
const unflushed = exporter.getFinishedSpans().length
const started = [...timers]
await flush()
const spans = exporter.getFinishedSpans().map(plain)
await sdk.shutdown()
tell({
  statuses,
  unflushed,
  spans,
  asks,
  timers: started,
  listeners: [before, after],
  traceparents: other.heads.map((head) => headers(head, 'traceparent')),
})
