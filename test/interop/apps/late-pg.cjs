// The official instrumentation of pg comes when a pool is traced already and has a connection of ours, and goes again.
const { asked, plain, tell } = require('./app.cjs')
const { registerInstrumentations } = require('@opentelemetry/instrumentation')
const { PgInstrumentation } = require('@opentelemetry/instrumentation-pg')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')
const { span, start } = require('@throughline/core')
const { tracePg } = require('@throughline/pg')

async function main() {
  const exporter = new InMemorySpanExporter()
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  const { Client, Pool } = require('pg')
  class Own extends Client {
    query(...args) {
      return super.query(...args)
    }
  }
  const pool = new Pool({
    connectionString: process.env.DATABASE_URL,
    ...(asked.isOwnClass && { Client: Own }),
  })
  tracePg(pool, { connectSpans: true })
  if (asked.isConnected) await span('before', () => pool.query('SELECT 1'))

  const official = new PgInstrumentation()
  registerInstrumentations({ instrumentations: [official] })
  void require('pg')
  // On two connections, one of which is new.
  const query = () => Promise.all([pool.query('SELECT 2'), pool.query('SELECT 3')])
  await span('meanwhile', query)
  await span('again', () => pool.query('SELECT 4'))
  await span('lent', async () => {
    const clients = [await pool.connect(), await pool.connect()]
    for (const client of clients) {
      await client.query('SELECT 5')
      client.release()
    }
  })

  official.disable()
  await span('after', query)
  await pool.end()
  const spans = exporter.getFinishedSpans().map(plain)
  await tracing.shutdown()
  tell({ spans })
}

void main()
