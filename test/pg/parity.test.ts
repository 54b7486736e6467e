import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { Query, type Client, type Pool, type QueryConfig, type QueryResult } from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { connected, open, tableOf } from './database.ts'

// What pg's own tests ask of its clients, pools, cursors and streams: each is told what it does without tracing, and has to
// do the same with it, in the same order.

const table = tableOf('parity')

type Say = (...words: unknown[]) => void

/** An error as far as the two runs can be compared. */
const told = (error: unknown) => {
  const { name, message, code } = error as { name: string; message: string; code?: string }
  return `${name} ${code ?? ''}: ${message}`
}

function listen(target: { on(name: never, listener: never): unknown }, names: string[], say: Say): void {
  const on = target.on.bind(target) as (name: string, listener: (...args: unknown[]) => void) => void
  for (const name of names) {
    on(name, (...args) => say(name, args.length, ...args.filter((arg) => arg instanceof Error).map(told)))
  }
}

const onClient: Record<string, (client: Client, say: Say) => Promise<unknown>> = {
  async 'callbacks have their this and their arguments'(client, say) {
    for (const text of ['SELECT 1 AS a', 'SELECT * FROM nowhere']) {
      await new Promise<void>((resolve) => {
        client.query(text, function (this: unknown, ...args: unknown[]) {
          say((this as object)?.constructor?.name, args.length, typeof args[0], typeof args[1])
          resolve()
        })
      })
    }
  },
  async 'several statements, none, and a failing one among them'(client, say) {
    say(JSON.stringify(await client.query('SELECT 1 AS a; SELECT 2 AS b; SELECT 3 AS c')))
    say(JSON.stringify(await client.query('')))
    say(JSON.stringify(await client.query('-- nothing')))
    await client
      .query('SELECT 1; SELECT * FROM nowhere; SELECT 2')
      .catch((error: unknown) => say(told(error)))
    say(JSON.stringify(await client.query({ text: 'SELECT 1, 2', rowMode: 'array' })))
  },
  async 'what is wrong with a query before it is sent'(client, say) {
    const circular: Record<string, unknown> = {}
    circular['self'] = circular
    const wrong = [
      () => client.query(undefined as never),
      () => client.query('SELECT 1', 7 as never),
      () => client.query('SELECT $1::json', [circular]),
      () => client.query('SELECT $1::json', [{ toPostgres: () => JSON.parse('{') as unknown }]),
    ]
    for (const ask of wrong) {
      try {
        await ask()
        say('fine')
      } catch (error) {
        say(told(error))
      }
    }
    say(JSON.stringify((await client.query('SELECT 1 AS a')).rows))
  },
  async 'a named statement that is used for another text'(client, say) {
    await client.query({ name: 'one', text: 'SELECT 1 AS a' })
    await client.query({ name: 'one', text: 'SELECT 2 AS a' }).catch((error: unknown) => say(told(error)))
    say(JSON.stringify((await client.query({ name: 'one' } as QueryConfig)).rows))
  },
  async 'queries that queue are answered in order, and then it is drained'(client, say) {
    listen(client, ['drain'], say)
    const queries = ['SELECT 1 AS n', 'SELECT * FROM nowhere', 'SELECT 3 AS n'].map((text) =>
      client.query(text).then(
        ({ rows }) => say(JSON.stringify(rows)),
        (error: unknown) => say(told(error)),
      ),
    )
    client.query('SELECT 4', () => say('four'))
    await Promise.all(queries)
    await once(client, 'drain')
  },
  async 'notices and notifications'(client, say) {
    listen(client, ['notice', 'notification'], say)
    const channel = `parity_${(client as unknown as { processID: number }).processID}`
    await client.query(`LISTEN ${channel}; DO $$ BEGIN RAISE NOTICE 'hear'; END $$; NOTIFY ${channel}, 'ye'`)
    await client.query('SELECT 1')
  },
  async 'an end in the midst of queries, and queries after it'(client, say) {
    listen(client, ['error', 'end'], say)
    const running = ['SELECT pg_sleep(10)', 'SELECT 1'].map((text) =>
      client.query(text).catch((error: unknown) => say(told(error))),
    )
    await turn()
    await client.end()
    await Promise.all(running)
    await client.query('SELECT 1').catch((error: unknown) => say(told(error)))
    await new Promise<void>((resolve) => {
      client.query('SELECT 1', (error) => resolve(say('called back', told(error))))
    })
  },
  async 'a Query object: its rows, its end, its errors, its callback'(client, say) {
    for (const text of ['SELECT generate_series(1, 3) AS n', 'SELECT 1/0']) {
      const query = new Query(text)
      listen(query, ['row', 'end', 'error'], say)
      say(client.query(query) === query, Object.keys(query).join())
      await Promise.race(['end', 'error'].map((name) => once(query, name).catch(() => {})))
    }
    await new Promise<void>((resolve) => {
      const query = new Query('SELECT generate_series(1, 3) AS n', function (
        this: unknown,
        error: unknown,
        result: QueryResult,
      ) {
        say(this === query, error === null, result.rows.length)
        resolve()
      } as never)
      client.query(query)
    })
  },
  async 'a cursor that is read past its end, closed twice, and read when it is closed'(client, say) {
    const cursor = client.query(new Cursor('SELECT generate_series(1, 3) AS n'))
    listen(cursor as never, ['row', 'end', 'error', 'close'], say)
    for (const count of [2, 2, 2]) say(JSON.stringify(await cursor.read(count)))
    await cursor.close()
    await cursor.close()
    say(JSON.stringify(await cursor.read(1)))
    const open = client.query(new Cursor('SELECT generate_series(1, 3) AS n'))
    say(typeof open.read(1, (_error, rows) => say('called back', JSON.stringify(rows))))
    open.read(1, (error, rows, result) => say(error === null, JSON.stringify(rows), result?.command))
    await new Promise<void>((resolve) => open.close(() => resolve()))
    say(JSON.stringify((await client.query('SELECT 1 AS a')).rows))
  },
  async 'a cursor that fails tells all who wait, and those who come later'(client, say) {
    const cursor = client.query(new Cursor('SELECT 1 / (2 - n) FROM generate_series(1, 3) n'))
    listen(cursor as never, ['error', 'end'], say)
    say(JSON.stringify(await cursor.read(1)))
    const reads = [1, 1].map((count) =>
      cursor.read(count).then(
        (rows) => say(JSON.stringify(rows)),
        (error: unknown) => say(told(error)),
      ),
    )
    await Promise.all(reads)
    await cursor.read(1).catch((error: unknown) => say(told(error)))
    say(JSON.stringify((await client.query('SELECT 1 AS a')).rows))
  },
  async 'a cursor of what has no rows'(client, say) {
    const cursor = client.query(new Cursor(`DELETE FROM ${table}`))
    say(JSON.stringify(await cursor.read(10)))
    say(JSON.stringify(await client.query(new Cursor(`DELETE FROM ${table} RETURNING id`)).read(1)))
  },
  async 'a stream of rows waits until somebody reads it, and stops when nobody does'(client, say) {
    const stream = client.query(new QueryStream('SELECT generate_series(1, 25) AS n', [], { batchSize: 10 }))
    await turn()
    say(stream.readableFlowing, stream.readableLength, stream.eventNames().map(String).join())
    listen(stream, ['end', 'close', 'error', 'pause', 'resume'], say)
    let rows = 0
    stream.on('data', () => {
      rows += 1
      if (rows !== 5) return
      stream.pause()
      setImmediate(() => stream.resume())
    })
    await once(stream, 'close')
    say(rows, stream.readableFlowing, stream.destroyed)
  },
  async 'a stream of rows that is destroyed, with an error and without'(client, say) {
    for (const error of [undefined, new RangeError('of the app')]) {
      const stream = client.query(new QueryStream('SELECT generate_series(1, 25) AS n', [], { batchSize: 2 }))
      listen(stream, ['end', 'close', 'error'], say)
      await once(stream, 'readable')
      stream.destroy(error)
      stream.destroy()
      await new Promise<void>((resolve) => stream.on('close', resolve))
    }
    say(JSON.stringify((await client.query('SELECT 1 AS a')).rows))
  },
  async 'COPY in and out, whole and broken off'(client, say) {
    const copyIn = client.query(copyFrom(`COPY ${table} FROM STDIN`))
    listen(copyIn, ['finish', 'close', 'error', 'drain'], say)
    say(copyIn.write('1\tone\n'), copyIn.writableCorked)
    copyIn.end('2\ttwo\n')
    await once(copyIn, 'close')
    say(copyIn.rowCount)
    const copyOut = client.query(copyTo(`COPY ${table} TO STDOUT`))
    say(copyOut.readableFlowing)
    listen(copyOut, ['end', 'close', 'error'], say)
    for await (const chunk of copyOut) say(String(chunk))
    say(copyOut.rowCount)
    const given = client.query(copyFrom(`COPY ${table} FROM STDIN`))
    listen(given, ['finish', 'close', 'error'], say)
    given.destroy(new Error('of the app'))
    await new Promise<void>((resolve) => given.on('close', resolve))
    say(JSON.stringify((await client.query(`DELETE FROM ${table}`)).rowCount))
  },
}

const onPool: Record<string, (pool: Pool, say: Say) => Promise<unknown>> = {
  async 'its events, with queries and with clients'(pool, say) {
    listen(pool, ['connect', 'acquire', 'release', 'remove', 'error'], say)
    await pool.query('SELECT 1')
    const client = await pool.connect()
    say(pool.totalCount, pool.idleCount, pool.waitingCount)
    client.release()
    await pool.query('SELECT * FROM nowhere').catch((error: unknown) => say(told(error)))
    await once(pool, 'remove')
    say(pool.totalCount, pool.idleCount, pool.waitingCount)
    await pool.end()
  },
  async 'what it refuses'(pool, say) {
    const wrong = [
      () => pool.query((() => {}) as never),
      () => pool.query(undefined as never),
      () => pool.query({} as never),
    ]
    for (const ask of wrong) {
      await Promise.resolve()
        .then(ask)
        .then(
          () => say('fine'),
          (error: unknown) => say(told(error)),
        )
    }
    const client = await pool.connect()
    client.release()
    try {
      client.release()
    } catch (error) {
      say(told(error))
    }
    await pool.end()
    await pool.end().catch((error: unknown) => say(told(error)))
    await pool.connect().catch((error: unknown) => say(told(error)))
    pool.connect((error) => say('called back', told(error)))
    pool.query('SELECT 1', (error) => say('called back', told(error)))
  },
  async 'its queue is served in order'(pool, say) {
    const held = await pool.connect()
    const asked = [1, 2, 3].map((n) =>
      pool.query(`SELECT ${n} AS n`).then(({ rows }) => say(JSON.stringify(rows))),
    )
    pool.connect((_error, client, release) => {
      say('lent', typeof client?.release, release === client?.release)
      release()
    })
    say(pool.waitingCount)
    held.release()
    await Promise.all(asked)
    await pool.query('SELECT 1')
  },
  async 'a client that dies while nobody has it'(pool, say) {
    listen(pool, ['error', 'remove'], say)
    const client = await pool.connect()
    const { processID } = client as unknown as { processID: number }
    client.release()
    const died = new Promise<void>((resolve) => pool.on('remove', () => resolve()))
    const other = await connected()
    await other.query('SELECT pg_terminate_backend($1)', [processID])
    await died
    say(JSON.stringify((await pool.query('SELECT 1 AS a')).rows))
  },
}

async function said(run: (say: Say) => Promise<unknown>): Promise<string[]> {
  const words: string[] = []
  await run((...spoken) => words.push(spoken.map(String).join(' ')))
  // What comes in the same turn of the loop belongs to it.
  await turn()
  return words
}

describe('with tracing pg does as it does without:', () => {
  test.each(Object.entries(onClient))('%s', async (_, run) => {
    record()
    const bare = await said(async (say) => run(await connected(), say))
    const traced = await said(async (say) => run(tracePg(await connected()), say))
    expect(bare.length).toBeGreaterThan(1)
    expect(traced).toEqual(bare)
  })

  test.each(Object.entries(onPool))('%s', async (_, run) => {
    record()
    const bare = await said((say) => run(open({ max: 1 }), say))
    const traced = await said((say) => run(tracePg(open({ max: 1 }), { connectSpans: true }), say))
    expect(bare.length).toBeGreaterThan(1)
    expect(traced).toEqual(bare)
  })
})
