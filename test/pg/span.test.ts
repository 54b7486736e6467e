import type { Sampler } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { createServer, Socket, type AddressInfo } from 'node:net'
import { Client, Pool } from 'pg'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { after, database, host, open, tableOf, url } from './database.ts'

const table = tableOf('span')

describe('the span of a query', () => {
  test('says where the query ran, by connection string and by separate options', async () => {
    const recording = record()
    const { hostname, port, username, password } = new URL(url)
    const host = { host: hostname, port: Number(port || 5432), user: username, password, database }
    await tracePg(open()).query('SELECT 1')
    await tracePg(open({ connectionString: undefined, ...host })).query('SELECT 1')
    for (const { attributes } of await recording.all(2)) {
      expect(attributes).toMatchObject({ 'server.address': hostname, 'db.namespace': database })
      if (host.port === 5432) expect(attributes).not.toHaveProperty('server.port')
      else expect(attributes).toMatchObject({ 'server.port': host.port })
    }
  })

  test.each([
    ['a Pool', (config: object) => new Pool(config)],
    ['a Client', (config: object) => new Client(config)],
  ])('says why, and where, %s cannot connect', async (form, make) => {
    const recording = record()
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    server.close()
    await once(server, 'close')

    const target = tracePg(make({ connectionString: `postgres://nobody@127.0.0.1:${port}/nothing` }))
    const query = target.query('SELECT 1').catch((error: unknown) => error)
    if (form === 'a Client') await target.connect().catch(() => {})
    expect(await query).toBeInstanceOf(Error)
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'server.address': '127.0.0.1',
      'server.port': port,
      'db.namespace': 'nothing',
    })
    if (form === 'a Pool') {
      expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNREFUSED' })
      expect(call?.attributes).not.toHaveProperty('db.response.status_code')
      expect(call?.status).toMatchObject({ code: 2, message: `connect ECONNREFUSED 127.0.0.1:${port}` })
    }
  })

  test('says why a name with several addresses cannot be connected to', async () => {
    const recording = record()
    const reasons = ['connect ECONNREFUSED ::1:1', 'connect ECONNREFUSED 127.0.0.1:1'].map(
      (text) => new Error(text),
    )
    class Refused extends Socket {
      override connect() {
        return this.destroy(Object.assign(new AggregateError(reasons), { code: 'ECONNREFUSED' }))
      }
    }
    const pool = tracePg(
      new Pool({ host: 'two.example', port: 1, user: 'nobody', stream: () => new Refused() }),
    )
    await expect(pool.query('SELECT 1')).rejects.toBeInstanceOf(AggregateError)
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNREFUSED', 'server.address': 'two.example' })
    expect(call?.status.message).toBe('connect ECONNREFUSED ::1:1; connect ECONNREFUSED 127.0.0.1:1')
  })

  test('is decided on by where the pool leads to, also when none of its connections is left', async () => {
    const seen: unknown[] = []
    const sampler: Sampler = {
      shouldSample(_context, _traceId, name, _kind, attributes) {
        if (name === 'SELECT') seen.push(attributes)
        return { decision: 2 }
      },
      toString: () => 'of the app',
    }
    const recording = record({ sampler })
    const pool = tracePg(open({ max: 1 }))
    const client = await pool.connect()
    const removed = once(pool, 'remove')
    client.release(true)
    await removed
    expect(pool.totalCount).toBe(0)
    await pool.query('SELECT 1')
    expect(seen).toMatchObject([
      { 'db.namespace': database, 'server.address': host, 'db.query.text': 'SELECT ?' },
    ])
    await recording.all(1)
  })

  test('has the path of a Unix socket for an address, and no port', async () => {
    const recording = record()
    const pool = tracePg(new Pool({ host: '/nowhere', port: 6543, user: 'nobody', database: 'nothing' }))
    await expect(pool.query('SELECT 1')).rejects.toBeInstanceOf(Error)
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'server.address': '/nowhere/.s.PGSQL.6543',
      'error.type': 'ENOENT',
    })
    expect(call?.attributes).not.toHaveProperty('server.port')
  })

  test('shows text with parameters as it is, and any other without its literals', async () => {
    const recording = record()
    const pool = tracePg(open())
    await pool.query(`SELECT * FROM ${table} WHERE id = $1 AND name = 'x'`, [7])
    await pool.query(`SELECT * FROM ${table} WHERE name = 's3cret' AND id = 7`)
    await pool.query({ text: `SELECT * FROM ${table} WHERE name = 's3cret'`, values: [] })
    expect(recording.spans.map(({ attributes }) => attributes['db.query.text'])).toEqual([
      `SELECT * FROM ${table} WHERE id = $1 AND name = 'x'`,
      `SELECT * FROM ${table} WHERE name = ? AND id = ?`,
      `SELECT * FROM ${table} WHERE name = ?`,
    ])
    for (const { name, attributes } of recording.spans) {
      expect(name).toBe(`SELECT ${table}`)
      expect(attributes['db.query.summary']).toBe(name)
    }
  })

  test('has a name of one line without comments, and a name where there is no statement', async () => {
    const recording = record()
    const pool = tracePg(open())
    await pool.query(`/* a comment */ SELECT\n  *\nFROM ${table}`)
    await pool.query('-- nothing')
    expect(recording.spans.map(({ name }) => name)).toEqual([`SELECT ${table}`, 'postgresql'])
    expect(recording.spans[1]?.attributes).not.toHaveProperty('db.query.summary')
  })

  test('has what the app adds from the query and its result', async () => {
    const recording = record()
    const pool = tracePg(open(), {
      attributes: ({ text, values, name }, result) => ({
        'app.length': text.length,
        'app.values': values.length,
        'app.name': name ?? '',
        'app.rows': Array.isArray(result) ? -1 : (result.rowCount ?? 0),
      }),
    })
    await pool.query({ name: 'mine', text: 'SELECT $1::int', values: [1] })
    expect((await recording.all(1))[0]?.attributes).toMatchObject({
      'app.length': 14,
      'app.values': 1,
      'app.name': 'mine',
      'app.rows': 1,
    })
  })

  test('ends where a query times out', async () => {
    const recording = record()
    const client = tracePg(new Client({ connectionString: url, query_timeout: 20 }))
    await client.connect()
    after(() => client.end())
    await expect(client.query('SELECT pg_sleep(0.1)')).rejects.toThrow('Query read timeout')
    expect((await recording.all(1))[0]?.status).toEqual({ code: 2, message: 'Query read timeout' })
  })
})
