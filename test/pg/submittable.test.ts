import { trace } from '@opentelemetry/api'
import { span, type ReadableSpan } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { text as textOf } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { Writable } from 'node:stream'
import { Query, type Client, type Pool, type PoolClient } from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'
import { describe, expect, test, vi } from 'vitest'
import { record, type Recording } from '../recording.ts'
import { connected, lent, open, parentOf, tableOf } from './database.ts'

const table = tableOf('submittable')
const SERIES = 'SELECT generate_series(1, $1::int) AS n'
const SERIES_SPAN = { name: 'SELECT', status: { code: 0 } }

/** Runs this under a span of the app's, and gives back both once the query's has ended. */
async function under(
  recording: Recording,
  run: () => unknown,
): Promise<{ call: ReadableSpan | undefined; caller: ReadableSpan | undefined }> {
  await span('caller', run)
  const spans = await recording.all(2)
  const call = spans.find(({ name }) => name !== 'caller')
  const caller = spans.find(({ name }) => name === 'caller')
  expect(parentOf(call)).toBe(caller?.spanContext().spanId)
  return { call, caller }
}

describe.each([
  ['a Client', async () => tracePg(await connected()) as Client | PoolClient],
  ['a client of a Pool', lent],
])('on %s', (_, opened) => {
  test('a cursor that is read to its end in steps is one span, which ends there', async () => {
    const recording = record()
    const client = await opened()
    const { call } = await under(recording, async () => {
      const cursor = client.query(new Cursor(SERIES, [5]))
      expect(await cursor.read(2)).toEqual([{ n: 1 }, { n: 2 }])
      expect(await cursor.read(2)).toHaveLength(2)
      expect(recording.spans).toEqual([])
      expect(await cursor.read(2)).toEqual([{ n: 5 }])
      expect(await cursor.read(2)).toEqual([])
      expect(recording.spans).toHaveLength(1)
    })
    expect(call).toMatchObject(SERIES_SPAN)
    expect(call?.attributes).toMatchObject({ 'db.query.text': SERIES, 'db.query.summary': 'SELECT' })
    expect(call?.attributes).not.toHaveProperty('error.type')
  })

  test('a cursor that is closed ends its span, and the connection takes another query', async () => {
    const recording = record()
    const client = await opened()
    const cursor = client.query(new Cursor(SERIES, [5]))
    await cursor.read(1)
    expect(recording.spans).toEqual([])
    await cursor.close()
    expect((await recording.all(1))[0]).toMatchObject(SERIES_SPAN)
    await client.query('SELECT 1')
    await recording.all(2)
  })

  test('a cursor that is closed before the server has heard of it ends its span', async () => {
    const recording = record()
    const client = await opened()
    const busy = client.query('SELECT pg_sleep(0.01)')
    const cursor = client.query(new Cursor(SERIES, [5]))
    await cursor.close()
    expect(recording.spans.map(({ name }) => name)).toEqual(['SELECT'])
    await busy
    await recording.all(2)
  })

  test('a cursor whose query the server refuses ends its span with the SQLSTATE', async () => {
    const recording = record()
    const client = await opened()
    const cursor = client.query(new Cursor('SELECT * FROM nowhere'))
    await expect(cursor.read(1)).rejects.toMatchObject({ code: '42P01' })
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({ 'db.response.status_code': '42P01', 'error.type': '42P01' })
    expect(call?.status).toEqual({ code: 2, message: 'relation "nowhere" does not exist' })
    await client.query('SELECT 1')
  })

  test('a cursor that fails while it is read ends its span there', async () => {
    const recording = record()
    const client = await opened()
    const cursor = client.query(new Cursor('SELECT 1 / (3 - n) FROM generate_series(1, 5) n'))
    await cursor.read(1)
    expect(recording.spans).toEqual([])
    await expect(cursor.read(5)).rejects.toMatchObject({ code: '22012' })
    expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'error.type': '22012' })
  })

  test('the callback of each read runs in the context of that read', async () => {
    const recording = record()
    const client = await opened()
    const cursor = client.query(new Cursor(SERIES, [2]))
    for (const name of ['first', 'second']) {
      await span(
        name,
        (reader) =>
          new Promise<void>((resolve, reject) => {
            cursor.read(1, (error) => {
              expect(trace.getActiveSpan()).toBe(reader)
              if (error) reject(error)
              else resolve()
            })
          }),
      )
    }
    await span(
      'closer',
      (closer) =>
        new Promise<void>((resolve) => {
          cursor.close(() => {
            expect(trace.getActiveSpan()).toBe(closer)
            resolve()
          })
        }),
    )
    await recording.all(4)
  })

  test('a stream of rows is one span from the query to its last row', async () => {
    const recording = record()
    const client = await opened()
    const { call } = await under(recording, async () => {
      const rows: unknown[] = []
      for await (const row of client.query(new QueryStream(SERIES, [250], { batchSize: 100 }))) rows.push(row)
      expect(rows).toHaveLength(250)
    })
    expect(call).toMatchObject(SERIES_SPAN)
    expect(call?.attributes).toMatchObject({ 'db.query.text': SERIES })
  })

  test('a stream of rows that is left in the middle ends its span', async () => {
    const recording = record()
    const client = await opened()
    for await (const row of client.query(new QueryStream(SERIES, [1000], { batchSize: 10 }))) {
      expect(row).toEqual({ n: 1 })
      expect(recording.spans).toEqual([])
      break
    }
    expect((await recording.all(1))[0]).toMatchObject(SERIES_SPAN)
    await client.query('SELECT 1')
  })

  test('a stream of rows whose query the server refuses ends its span in error', async () => {
    const recording = record()
    const client = await opened()
    const stream = client.query(new QueryStream('SELECT * FROM nowhere'))
    await expect(textOf(stream)).rejects.toMatchObject({ code: '42P01' })
    expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'error.type': '42P01' })
  })

  test('what a stream of rows emits is heard in the context of the query', async () => {
    record()
    const client = await opened()
    await span('caller', async (caller) => {
      const stream = client.query(new QueryStream(SERIES, [3]))
      const seen: unknown[] = []
      stream.on('data', () => seen.push(trace.getActiveSpan()))
      stream.on('end', () => seen.push(trace.getActiveSpan()))
      await once(stream, 'close')
      expect(seen).toEqual([caller, caller, caller, caller])
    })
  })

  test('a Query object of pg is a span, and its events and its callback have their context', async () => {
    const recording = record()
    const client = await opened()
    const { call } = await under(recording, async () => {
      const seen: unknown[] = []
      const query = new Query('SELECT 42 AS answer')
      for (const event of ['row', 'end']) query.on(event as 'row', () => seen.push(trace.getActiveSpan()))
      expect(client.query(query)).toBe(query)
      await once(query, 'end')
      expect(seen).toEqual([trace.getActiveSpan(), trace.getActiveSpan()])
    })
    expect(call?.attributes).toMatchObject({ 'db.query.text': 'SELECT ? AS answer' })

    await span('calling back', async (caller) => {
      const answer = await new Promise((resolve, reject) => {
        const query = new Query('SELECT $1::int AS answer', [42], (error: unknown, result: unknown) => {
          expect(trace.getActiveSpan()).toBe(caller)
          if (error) reject(error)
          else resolve(result)
        })
        client.query(query)
      })
      expect(answer).toMatchObject({ rows: [{ answer: 42 }] })
    })
    await recording.all(4)
  })

  test('a Query object fails as before', async () => {
    const recording = record()
    const client = await opened()
    const [error] = await once(client.query(new Query('SELECT * FROM nowhere')), 'error').catch((e) => [e])
    expect(error).toMatchObject({ code: '42P01' })
    expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'error.type': '42P01' })
  })

  test('a row that cannot be parsed is the error of the span of its query', async () => {
    const recording = record()
    const client = await opened()
    const types = {
      getTypeParser: () => () => {
        throw new TypeError('of the app')
      },
    }
    const query = new Query({ text: 'SELECT 1', types } as never)
    await once(client.query(query), 'error').catch(() => {})
    const [call] = await recording.all(1)
    expect(call).toMatchObject({ status: { code: 2 }, attributes: { 'error.type': 'TypeError' } })
  })

  test('without a span, listeners and callbacks have their context all the same', async () => {
    record({ sampling: 0 })
    const client = await opened()
    await span('caller', async (caller) => {
      const query = client.query(new Query('SELECT 42 AS answer'))
      await new Promise<void>((resolve) => {
        query.on('end', () => {
          expect(trace.getActiveSpan()).toBe(caller)
          resolve()
        })
      })
    })
  })
})

test.each([
  ['a cursor between two reads', (client: Client) => client.query(new Cursor(SERIES, [5])).read(1)],
  [
    'a stream of rows',
    (client: Client) => {
      const stream = client.query(new QueryStream(SERIES, [1000], { batchSize: 1 }))
      stream.on('error', () => {})
      return once(stream, 'readable')
    },
  ],
  [
    'a COPY',
    (client: Client) => {
      const copy = client.query(copyFrom(`COPY ${table} FROM STDIN`))
      copy.on('error', () => {})
      return new Promise((resolve) => copy.write('1\tone\n', resolve))
    },
  ],
])('the span of %s ends in error when the connection is lost', async (_, begin) => {
  const recording = record()
  const client = tracePg(await connected())
  client.on('error', () => {})
  await begin(client)
  expect(recording.spans).toEqual([])
  await open().query('SELECT pg_terminate_backend($1)', [
    (client as unknown as { processID: number }).processID,
  ])
  const [call] = await recording.all(1)
  expect(call?.status.code).toBe(2)
  expect(call?.attributes['error.type']).toMatch(/^(57P01|Error|ECONNRESET)$/)
})

test('one that is submitted once more is one span each time, each under its own caller', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const query = new Query('SELECT 1')
  for (const name of ['first', 'second']) {
    await span(name, async () => {
      client.query(query)
      await once(query, 'end')
    })
  }
  const spans = await recording.all(4)
  expect(spans.map(({ name }) => name)).toEqual(['SELECT', 'first', 'SELECT', 'second'])
  expect(parentOf(spans[2])).toBe(spans[3]?.spanContext().spanId)
})

test('one of a class of the app’s that is frozen is run as before', async () => {
  const recording = record()
  vi.spyOn(console, 'error').mockImplementation(() => {})
  const client = tracePg(await connected())
  const messages: string[] = []
  const nothing = () => {}
  await new Promise<void>((resolve) => {
    client.query(
      Object.freeze({
        text: 'SELECT 1',
        submit: (connection: { query(text: string): void }) => connection.query('SELECT 1'),
        handleRowDescription: nothing,
        handleDataRow: () => messages.push('row'),
        handleCommandComplete: () => messages.push('complete'),
        handleError: nothing,
        handleReadyForQuery: resolve,
        callback: nothing,
      }) as never,
    )
  })
  expect(messages).toEqual(['row', 'complete'])
  expect((await client.query('SELECT 2 AS two')).rows).toEqual([{ two: 2 }])
  await recording.all(2)
})

test('one that throws as it is submitted ends its span there, though pg keeps it until the connection ends', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const pool = tracePg(open())
  // As a cursor does on a client of pg.native.
  const thrower = {
    text: 'SELECT 1',
    submit() {
      throw new TypeError('parse is not a function')
    },
    handleError() {},
    handleReadyForQuery() {},
  }
  expect(() => client.query(thrower as never)).toThrow('parse is not a function')
  await pool.query('SELECT 1')
  await expect(pool.query({ ...thrower } as never)).rejects.toThrow('parse is not a function')
  const failed = { name: 'SELECT', status: { code: 2 }, attributes: { 'error.type': 'TypeError' } }
  expect(recording.spans).toMatchObject([failed, { status: { code: 0 } }, failed])
})

test('what the app adds gets the result of what submits itself', async () => {
  const recording = record()
  const client = tracePg(await connected(), {
    attributes: ({ text }, result) => ({
      'app.text': text,
      'app.rows': Array.isArray(result) ? -1 : (result.rowCount ?? -2),
    }),
  })
  await client.query(new Cursor(SERIES, [5])).read(10)
  await textOf(client.query(copyTo('COPY (SELECT 1) TO STDOUT')))
  const rows = (await recording.all(2)).map(({ attributes }) => attributes['app.rows'])
  expect(rows).toEqual([5, 1])
})

test('a Pool runs what submits itself as one span, with a callback and with a promise', async () => {
  const recording = record()
  const pool: Pool = tracePg(open({ max: 1 }))
  for (const query of [new Query('SELECT 1'), new Query('SELECT 2')]) {
    await pool.query(query as never)
  }
  await span('caller', async (caller) => {
    await new Promise<void>((resolve) => {
      pool.query(
        new Query('SELECT 3') as never,
        (() => {
          expect(trace.getActiveSpan()).toBe(caller)
          resolve()
        }) as never,
      )
    })
    const stream = new QueryStream(SERIES, [3])
    await Promise.all([pool.query(stream as never), pipeline(stream, sink())])
  })
  expect(pool.idleCount).toBe(1)
  await recording.all(5)
})

test('one that finds no connection fails as before, in the context of its caller', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  const held = await pool.connect()
  const failed = span(
    'caller',
    (caller) =>
      new Promise((resolve) => {
        pool.query(
          new Query('SELECT 3') as never,
          ((error: unknown) => {
            expect(trace.getActiveSpan()).toBe(caller)
            resolve(error)
          }) as never,
        )
      }),
  )
  // The next connection is made by whoever gives this one back, and leads nowhere.
  Object.assign(pool.options, { connectionString: undefined, host: '127.0.0.1', port: 1 })
  await span('releaser', async () => held.release(true))
  expect(await failed).toMatchObject({ code: 'ECONNREFUSED' })
  const spans = await recording.all(3)
  expect(spans.map(({ name }) => name).toSorted()).toEqual(['SELECT', 'caller', 'releaser'])
})

function sink(): Writable {
  return new Writable({ objectMode: true, write: (_row, _encoding, done) => done() })
}
