import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import pg, { type Query } from 'pg'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { pgContract } from './contract.ts'
import { after, parentOf, url } from './database.ts'

// It is compiled against libpq where it is installed, so not everybody has it: `npm install --no-save pg-native`.
const { native } = pg

describe.skipIf(native === null)('where pg-native is installed:', () => {
  const library = native ?? pg

  pgContract('pg.native', library)

  async function connected() {
    const client = tracePg(new library.Client(url))
    after(() => client.end())
    await client.connect()
    return client
  }

  test('a Query object is one span, and its end and its callback have their context', async () => {
    const recording = record()
    const client = await connected()
    await span('caller', async (caller) => {
      const query: Query = client.query(new library.Query('SELECT 42 AS answer'))
      await new Promise<void>((resolve) => {
        query.on('end', () => {
          expect(trace.getActiveSpan()).toBe(caller)
          resolve()
        })
      })
    })
    const [call, caller] = await recording.all(2)
    expect(call).toMatchObject({ name: 'SELECT', status: { code: 0 } })
    expect(parentOf(call)).toBe(caller?.spanContext().spanId)
  })

  test('a Query object fails as before, and its span has the SQLSTATE', async () => {
    const recording = record()
    const client = await connected()
    const [error] = await once(client.query(new library.Query('SELECT * FROM nowhere')), 'error').catch(
      (thrown: unknown) => [thrown],
    )
    expect(error).toMatchObject({ code: '42P01' })
    const [call] = await recording.all(1)
    expect(call).toMatchObject({ status: { code: 2, message: 'relation "nowhere" does not exist' } })
    expect(call?.attributes).toMatchObject({ 'error.type': '42P01', 'db.response.status_code': '42P01' })
  })

  test('so does one with a callback, which runs in the context of its caller', async () => {
    const recording = record()
    const client = await connected()
    await span('caller', async (caller) => {
      const error = await new Promise((resolve) => {
        const query = new library.Query('SELECT * FROM nowhere', (failed: unknown) => {
          expect(trace.getActiveSpan()).toBe(caller)
          resolve(failed)
        })
        client.query(query)
      })
      expect(error).toMatchObject({ code: '42P01' })
    })
    const [call] = await recording.all(2)
    expect(call?.attributes).toMatchObject({ 'error.type': '42P01', 'db.response.status_code': '42P01' })
  })

  test('several statements in one text are one span, and a query is served after one that failed', async () => {
    const recording = record()
    const client = await connected()
    await expect(client.query('SELECT nothing')).rejects.toMatchObject({ code: '42703' })
    const results = (await client.query('SELECT 1 AS a; SELECT 2 AS b')) as unknown as { rows: unknown[] }[]
    expect(results.map(({ rows }) => rows)).toEqual([[{ a: 1 }], [{ b: 2 }]])
    await recording.all(2)
  })
})
