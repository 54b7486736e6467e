// Two copies of our packages in one process: the app's own, and those of a library that brings its own along.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { trace } from '@opentelemetry/api'
import { InMemorySpanExporter } from '@opentelemetry/sdk-trace-base'
import { Pool } from 'pg'

const { asked, headers, plain, tell, visit, wire } = createRequire(import.meta.url)('./app.cjs')
const elsewhere = createRequire(join(asked.folder, 'app.js'))
/** The same package of each copy: by `import` the app's, and by `require` the library's. */
const both = async (name) => [await import(`@throughline/${name}`), elsewhere(`@throughline/${name}`)]

const cores = await both('core')
const [express, undici, pg] = [await both('express'), await both('undici'), await both('pg')]
const [starting, other] = asked.starter === 'library' ? cores.toReversed() : cores
const told = {
  areTwo: starting.span !== other.span,
  // `require` and `import` of one installed package are one.
  isSame: createRequire(import.meta.url)('@throughline/core').span === cores[0].span,
}

const exporter = new InMemorySpanExporter()
const tracing = starting.start({ exporter, signals: false })
const second = other.start({ serviceName: 'other' })

const downstream = await wire()
// The library's alone, unless both are asked for: what it makes nests below the app's.
const clients = asked.undici === 'both' ? undici : undici.slice(1)
const stops = clients.map(({ traceUndici }) => traceUndici())
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 1 })
for (const { tracePg } of pg) tracePg(pool)
const { default: Express } = await import('express')
const app = new Express()
for (const { tracing } of express) app.use(tracing())
app.get('/users/:id', async (_request, response) => {
  await cores[0].span('of the app', () =>
    cores[1].span('of the library', () =>
      trace.getTracer('app').startActiveSpan('by the API', async (made) => {
        await pool.query('SELECT 1')
        await (await fetch(`${downstream.url}/prices`)).text()
        made.end()
      }),
    ),
  )
  response.end('ok')
})
app.get('/broken', () => {
  throw new RangeError('it broke')
})
app.use((_error, _request, response, _next) => response.status(500).end())
const server = createServer(app).listen(0, '127.0.0.1')
await once(server, 'listening')
told.statuses = [await visit(server, '/users/7'), await visit(server, '/broken')]
server.close()
downstream.close()
await pool.end()

told.unflushed = exporter.getFinishedSpans().length
// Either copy flushes, and the one that did not start stops nothing.
await second.shutdown()
await other.flush()
const spans = exporter.getFinishedSpans().map(plain)
for (const stop of stops) stop()
other.span('goes on', () => {})
await starting.flush()
told.after = exporter
  .getFinishedSpans()
  .slice(spans.length)
  .map(({ name }) => name)
await tracing.shutdown()
// Nobody has asked the other copy for an engine of its own, which would keep the app from its next one.
other.span('nobody’s', (span) => (told.isTracedAfter = span.isRecording()))
const next = new InMemorySpanExporter()
const restarted = starting.start({ exporter: next, signals: false })
other.span('of the next life', () => {})
await restarted.flush()
told.next = next.getFinishedSpans().map(({ name }) => name)
await restarted.shutdown()
tell({ ...told, spans, traceparents: downstream.heads.map((head) => headers(head, 'traceparent')) })
