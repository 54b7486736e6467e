import { tracePg } from '@throughline/pg'
import { Client, Pool, type ClientBase } from 'pg'
import { clientContract } from '../contract/client.ts'
import { database, url } from './database.ts'

const ask = (target: Pool | ClientBase) =>
  target.query('SELECT $1::text AS answer', ['s3cret']).then(({ rows }) => rows)

const common = {
  trace: tracePg,
  result: [{ answer: 's3cret' }],
  name: 'SELECT',
  attributes: {
    'db.system.name': 'postgresql',
    'db.namespace': database,
    'db.query.text': 'SELECT $1::text AS answer',
    'db.query.summary': 'SELECT',
    'server.address': new URL(url).hostname,
  },
  failure: { type: '42P01', rejects: true },
  scope: '@throughline/pg',
  ignoredText: 'SELECT $1::text AS answer',
  secret: 's3cret',
}

clientContract<Pool>('pg, a Pool,', {
  ...common,
  async open() {
    const pool = new Pool({ connectionString: url, max: 3 })
    return { target: pool, close: () => pool.end() }
  },
  call: ask,
  overrides: ['query', 'connect', 'emit'],
  callBack(pool, done) {
    pool.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
  },
  fail: (pool) => pool.query('SELECT * FROM nowhere'),
})

clientContract<Client>('pg, a Client,', {
  ...common,
  async open() {
    const client = new Client(url)
    await client.connect()
    return { target: client, close: () => client.end() }
  },
  call: ask,
  // There is no other way to see the end of a query that a client answers with a promise.
  promises: 1,
  overrides: ['query'],
  callBack(client, done) {
    client.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
  },
  fail: (client) => client.query('SELECT * FROM nowhere'),
})
