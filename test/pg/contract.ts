import { tracePg } from '@throughline/pg'
import type { Client, ClientBase, Pool } from 'pg'
import type pg from 'pg'
import { clientContract } from '../contract/client.ts'
import { database, host, port, url } from './database.ts'

const ask = (target: Pool | ClientBase) =>
  target.query('SELECT $1::text AS answer', ['s3cret']).then(({ rows }) => rows)

const counted = {
  'db.system.name': 'postgresql',
  'db.namespace': database,
  'server.address': host,
  ...(port === 5432 ? {} : { 'server.port': port }),
}

const common = {
  trace: tracePg,
  result: [{ answer: 's3cret' }],
  name: 'SELECT',
  attributes: {
    'db.system.name': 'postgresql',
    'db.namespace': database,
    'db.query.text': 'SELECT $1::text AS answer',
    'db.query.summary': 'SELECT',
    'server.address': host,
  },
  failure: { type: '42P01', rejects: true },
  scope: '@throughline/pg',
  duration: {
    metric: 'db.client.operation.duration',
    buckets: [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
    attributes: { ...counted, 'db.query.summary': 'SELECT' },
    failed: { ...counted, 'db.query.summary': 'SELECT nowhere', 'db.response.status_code': '42P01' },
  },
  ignoredText: 'SELECT $1::text AS answer',
  secret: 's3cret',
}

/** What every client keeps, by a Pool and by a Client of pg, or of what has pg's API. */
export function pgContract(library: string, of: Pick<typeof pg, 'Client' | 'Pool'>): void {
  clientContract<Pool>(`${library}, a Pool,`, {
    ...common,
    async open() {
      const pool = new of.Pool({ connectionString: url, max: 3 })
      return { target: pool, close: () => pool.end() }
    },
    call: ask,
    overrides: ['query', 'connect', 'end', 'emit'],
    callBack(pool, done) {
      pool.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
    },
    fail: (pool) => pool.query('SELECT * FROM nowhere'),
  })

  clientContract<Client>(`${library}, a Client,`, {
    ...common,
    async open() {
      const client = new of.Client(url)
      await client.connect()
      return { target: client, close: () => client.end() }
    },
    call: ask,
    // There is no other way to see the end of a query that a client answers with a promise.
    promises: 1,
    overrides: ['query', 'emit'],
    callBack(client, done) {
      client.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
    },
    fail: (client) => client.query('SELECT * FROM nowhere'),
  })
}
