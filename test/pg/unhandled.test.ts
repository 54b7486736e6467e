import { expect, test } from 'vitest'
import { app } from '../core/process.ts'
import { url } from './database.ts'

/** An app that fails in one way and does not mind, told by Node as it tells all that nobody minds. */
const appOf = (isTraced: boolean, fail: string, count: number) => `
import pg from 'pg'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'
import { start } from '@throughline/core'
import { tracePg } from '@throughline/pg'

start({ signals: false, spanProcessors: [] })
const traced = (target) => ${isTraced} ? tracePg(target, { connectSpans: true }) : target
const url = ${JSON.stringify(url)}
const pool = traced(new pg.Pool({ connectionString: url, max: 1 }))
const client = traced(new pg.Client(url))
await client.connect()
const said = []
process.on('unhandledRejection', (error) => said.push('unhandled: ' + error.message))
process.on('uncaughtException', (error) => said.push('uncaught: ' + error.message))
process.on('rejectionHandled', () => said.push('handled later'))
${fail}
const passed = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
while (said.length < ${count}) await passed(5)
// Long enough for one more to be told.
await passed(100)
await pool.end()
await client.end().catch(() => {})
console.log(JSON.stringify(said))
`

/** pg says of some of this that it will be gone one day. */
const QUIET = { OTEL_TRACES_EXPORTER: 'none', NODE_NO_WARNINGS: '1' }

const WRONG = "'SELECT * FROM nowhere'"

/** What the app does, and how often it hears of it. */
const WAYS: Record<string, [fail: string, count: number]> = {
  'pool.query': [`pool.query(${WRONG})`, 1],
  'client.query': [`client.query(${WRONG})`, 1],
  'two of a client': [`client.query(${WRONG}); client.query('SELECT 1 / 0')`, 2],
  'client.query, minded later': [
    `const p = client.query(${WRONG}); setTimeout(() => p.catch(() => {}), 20)`,
    2,
  ],
  'pool.query, minded at once': [`pool.query(${WRONG}).catch(() => {})`, 0],
  'pool.query with a callback': [`pool.query(${WRONG}, () => {})`, 0],
  'a callback that throws': [`client.query('SELECT 1', () => { throw new Error('of the app') })`, 1],
  'a callback of a pool that throws': [`pool.query('SELECT 1', () => { throw new Error('of the app') })`, 1],
  'pool.connect to nowhere': [`traced(new pg.Pool({ host: '127.0.0.1', port: 1 })).connect()`, 1],
  'pool.query to nowhere': [`traced(new pg.Pool({ host: '127.0.0.1', port: 1 })).query('SELECT 1')`, 1],
  'a cursor that is read': [`client.query(new Cursor(${WRONG})).read(1)`, 1],
  'a cursor that nobody listens to': [`client.query(new Cursor(${WRONG}))`, 0],
  'a stream of rows that nobody listens to': [`client.query(new QueryStream(${WRONG})).resume()`, 1],
}

test.each(Object.entries(WAYS))('what nobody minds is told as before, once: %s', async (_, [fail, count]) => {
  const [before, after] = await Promise.all(
    [false, true].map((isTraced) => app(appOf(isTraced, fail, count), QUIET).ended),
  )
  expect(after).toEqual(before)
  expect(before?.code).toBe(0)
  expect(JSON.parse(before?.stdout ?? '')).toHaveLength(count)
})
