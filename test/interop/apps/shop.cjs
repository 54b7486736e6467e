// An app whose route asks PostgreSQL and another service: with the official instrumentation, with ours, or with both, on
// our engine or on the official SDK.
const { once } = require('node:events')
const { asked, headers, plain, tell, visit, wire } = require('./app.cjs')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')

const { engine, framework = 'express', official = [], ours = [], path = '/users/7' } = asked
const exporter = new InMemorySpanExporter()
const spanProcessors = [new SimpleSpanProcessor(exporter)]

// Before anything that they patch is loaded.
const packages = {
  http: ['@opentelemetry/instrumentation-http', 'HttpInstrumentation'],
  express: ['@opentelemetry/instrumentation-express', 'ExpressInstrumentation'],
  pg: ['@opentelemetry/instrumentation-pg', 'PgInstrumentation'],
  undici: ['@opentelemetry/instrumentation-undici', 'UndiciInstrumentation'],
}
const instrumentations = official.map((library) => {
  const [name, type] = packages[library]
  return new (require(name)[type])()
})

const { createServer } = require('node:http')

function start() {
  if (engine === 'ours') {
    require('@opentelemetry/instrumentation').registerInstrumentations({ instrumentations })
    return require('@throughline/core').start({ spanProcessors, signals: false })
  }
  const { NodeSDK } = require('@opentelemetry/sdk-node')
  const sdk = new NodeSDK({ spanProcessors, instrumentations, autoDetectResources: false })
  sdk.start()
  return { flush: require('@throughline/core').flush, shutdown: () => sdk.shutdown() }
}

/** The app's routes, and what makes them a listener of requests. */
const frameworks = {
  express(users, broken) {
    const express = require('express')
    const app = express()
    if (ours.includes('express')) app.use(require('@throughline/express').tracing(options))
    const router = express.Router()
    router.get('/:id', async (_request, response) => response.json(await users()))
    app.use('/users', router)
    app.get('/broken', broken)
    // The default one prints the error.
    app.use((_error, _request, response, _next) => response.status(500).end())
    return app
  },
  koa(users, broken) {
    const Koa = require('koa').default ?? require('koa')
    const { Router } = require('@koa/router')
    const app = new Koa()
    app.silent = true
    if (ours.includes('koa')) app.use(require('@throughline/koa').tracing(options))
    const router = new Router()
    router.get('/users/:id', async (ctx) => {
      ctx.body = await users()
    })
    router.get('/broken', broken)
    app.use(router.routes())
    return app.callback()
  },
  async fastify(users, broken) {
    const app = require('fastify')()
    if (ours.includes('fastify')) app.register(require('@throughline/fastify').tracing, options)
    app.get('/users/:id', users)
    app.get('/broken', async () => broken())
    app.get('/inside', async () => (await app.inject('/broken')).statusMessage)
    await app.ready()
    return (request, response) => app.routing(request, response)
  },
}
const options = { attributes: () => ({ 'app.tenant': 'acme' }) }

async function main() {
  const tracing = start()
  const { Pool } = require('pg')
  const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 1 })
  if (ours.includes('pg')) require('@throughline/pg').tracePg(pool)
  if (ours.includes('undici')) require('@throughline/undici').traceUndici()
  const other = await wire()

  async function users() {
    const { rows } = await pool.query('SELECT $1::text AS name', ['Ada'])
    await (await fetch(`${other.url}/prices`)).text()
    return rows[0]
  }
  function broken() {
    throw Object.assign(new RangeError('it broke'), { stack: 'it broke' })
  }
  const server = createServer(await frameworks[framework](users, broken)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  // What connects the pool belongs to nobody's request.
  await pool.query('SELECT 1')
  await tracing.flush()
  exporter.reset()

  const status = await visit(server, path, asked.headers)
  const closed = once(server, 'close')
  server.close()
  await closed
  other.close()
  await pool.end()
  await tracing.flush()
  const spans = exporter.getFinishedSpans().map(plain)
  await tracing.shutdown()
  tell({ status, spans, traceparents: other.heads.map((head) => headers(head, 'traceparent')) })
}

void main()
