// What both forms of the app do: serve, be visited once, and tell.
const { once } = require('node:events')
const { createServer } = require('node:http')
const { asked, headers, plain, tell, visit, wire } = require('../apps/app.cjs')

exports.serve = async function serve(express, Pool, adapters, exporter, tracing) {
  const { ours = [], path = '/users/7' } = asked
  const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 1 })
  if (ours.includes('pg')) adapters.pg.tracePg(pool)
  if (ours.includes('undici')) adapters.undici.traceUndici()
  const other = await wire()

  const app = express()
  if (ours.includes('express')) app.use(adapters.express.tracing())
  const users = express.Router()
  users.get('/:id', async (_request, response) => {
    const { rows } = await pool.query('SELECT $1::text AS name', ['Ada'])
    await (await fetch(`${other.url}/prices`)).text()
    response.json(rows[0])
  })
  app.use('/users', users)
  app.get('/broken', () => {
    throw new RangeError('it broke')
  })
  // The default one prints the error.
  app.use((_error, _request, response, _next) => response.status(500).end())
  const server = createServer(app).listen(0, '127.0.0.1')
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
