// An app whose adapters are mounted and whose clients are wrapped once, before tracing is started, stopped and started.
import { EventEmitter, once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { context, propagation, trace } from '@opentelemetry/api'
import { start } from '@throughline/core'
import { tracing as express } from '@throughline/express'
import { tracing as fastify } from '@throughline/fastify'
import { traceIORedis } from '@throughline/ioredis'
import { tracing as koa } from '@throughline/koa'
import { tracePg } from '@throughline/pg'
import { traceUndici } from '@throughline/undici'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import Express from 'express'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import Koa from 'koa'
import { Pool } from 'pg'

const { headers, plain, tell, visit, wire } = createRequire(import.meta.url)('./app.cjs')

traceUndici()
const pool = tracePg(new Pool({ connectionString: process.env.DATABASE_URL, max: 1 }))
const redis = traceIORedis(new Redis(process.env.REDIS_URL))
const other = await wire()

async function work() {
  await kept.startActiveSpan('of a library', async (span) => {
    await pool.query('SELECT 1')
    await redis.get('nobody')
    await (await fetch(`${other.url}/prices`)).text()
    span.end()
  })
}

const expressApp = new Express().use(express())
expressApp.get('/users/:id', async (_request, response) => {
  await work()
  response.end('ok')
})
// A request that is answered only when it is let go.
const held = new EventEmitter()
expressApp.get('/held', async (_request, response) => {
  held.emit('here')
  await once(held, 'go')
  await pool.query('SELECT 2')
  response.end('ok')
})
expressApp.get('/ping', async (_request, response) => {
  await pool.query('SELECT 0')
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
const handlers = [expressApp, koaApp.callback(), (request, response) => fastifyApp.routing(request, response)]
const servers = await Promise.all(
  handlers.map(async (handler) => {
    const server = createServer(handler).listen(0, '127.0.0.1')
    await once(server, 'listening')
    return server
  }),
)

const statuses = []
async function visitAll() {
  for (const server of servers) statuses.push(await visit(server, '/users/7'))
}

function exporterInto(spans) {
  // The in-memory one forgets what it has when it is shut down.
  const exporter = new InMemorySpanExporter()
  return {
    export(batch, done) {
      spans.push(...batch.map(plain))
      exporter.export(batch, done)
    },
    shutdown: () => exporter.shutdown(),
  }
}

const traceparents = () => other.heads.splice(0).map((head) => headers(head, 'traceparent'))

/** Whether there is a tracer that records, fields of a propagator, a context that is kept. */
function globals() {
  const key = Symbol.for('of the app')
  return {
    isRecording: trace.getTracer('app').startSpan('probe').isRecording(),
    fields: propagation.fields(),
    value: context.with(context.active().setValue(key, 'kept'), () => context.active().getValue(key)) ?? null,
  }
}

const [before, first, second, theirs, fourth] = [[], [], [], [], []]
const told = {}

async function liveOfTheirs(spans, life) {
  const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporterInto(spans))] })
  provider.register()
  await life()
  await provider.forceFlush()
  for (const api of [trace, context, propagation]) api.disable()
  await provider.shutdown()
}

// Whoever was in charge before us leaves nothing behind in our adapters.
await liveOfTheirs(before, async () => statuses.push(await visit(servers[0], '/ping')))

// The API ties a tracer to the first one in charge that it meets, so this one is taken only now.
const kept = trace.getTracer('kept by a library')

let tracing = start({ exporter: exporterInto(first), serviceName: 'first', signals: false })
await visitAll()
told.sentFirst = traceparents()
const isHeld = once(held, 'here')
const waiting = visit(servers[0], '/held')
await isHeld
await tracing.shutdown()

told.countFirst = first.length
await visitAll()
told.between = { traceparents: traceparents(), ...globals() }

tracing = start({ exporter: exporterInto(second), serviceName: 'second', signals: false })
held.emit('go')
statuses.push(await waiting)
await visitAll()
told.sentSecond = traceparents()
await tracing.shutdown()
told.after = globals()

// The third life is an official SDK's.
await liveOfTheirs(theirs, visitAll)

// And the fourth is ours again.
tracing = start({ exporter: exporterInto(fourth), serviceName: 'fourth', signals: false })
await visitAll()
await tracing.shutdown()

for (const server of servers) server.close()
await fastifyApp.close()
await pool.end()
redis.disconnect()
other.close()
tell({ ...told, before, first, second, theirs, fourth, statuses })
