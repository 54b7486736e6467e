import { trace } from '@opentelemetry/api'
import { span, start, type ReadableSpan, type Span } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { EventEmitter, once } from 'node:events'
import { createRequire } from 'node:module'
import type { Pool, PoolClient } from 'pg'
import { from as copyFrom } from 'pg-copy-streams'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'
import { expect, test } from 'vitest'
import { after, connected, open, parentOf, tableOf } from './database.ts'

// Many callers at once on few connections, in every form, while connections die: who is whose is asked of each.

const CALLERS = 150
const table = tableOf('storm')

/** What a caller does; its text holds `mark`, and `current` is asked wherever its code goes on. */
type Deed = (
  pool: Pool,
  mark: string,
  current: () => void,
  choose: (count: number) => number,
) => Promise<void>

/** Lends a client to this, and takes it back with the error that it met. What closes on a dead connection waits for ever. */
async function lent(pool: Pool, use: (client: PoolClient) => Promise<void>): Promise<void> {
  const client = await pool.connect()
  const back = new AbortController()
  const died = once(client, 'end', back).then(() => Promise.reject(new Error('died')))
  let failure: Error | undefined
  await Promise.race([use(client), died]).catch((error: Error) => (failure = error))
  back.abort()
  died.catch(ignore)
  client.release(failure)
}

const DEEDS: Record<string, Deed> = {
  async promise(pool, mark, current) {
    await pool.query(`SELECT 1 AS ${mark}`)
    current()
  },
  async refusal(pool, mark, current) {
    await pool.query(`SELECT 1 AS ${mark} FROM nowhere`).catch(ignore)
    current()
  },
  callback: (pool, mark, current) =>
    new Promise((resolve) => {
      pool.query(`SELECT $1::int AS ${mark}`, [1], () => {
        current()
        resolve()
      })
    }),
  cursor: (pool, mark, current, choose) =>
    lent(pool, async (client) => {
      current()
      const cursor = client.query(new Cursor(`SELECT generate_series(1, 5) AS ${mark}`))
      await cursor.read(2)
      current()
      await (choose(2) === 0 ? cursor.close() : cursor.read(10))
      current()
    }),
  rows: (pool, mark, current, choose) =>
    lent(pool, async (client) => {
      const last = choose(60)
      let read = 0
      const stream = client.query(
        new QueryStream(`SELECT generate_series(1, 50) AS ${mark}`, [], { batchSize: 7 }),
      )
      for await (const _row of stream) {
        read += 1
        if (read > last) break
      }
      current()
    }),
  listener: (pool, mark, current) =>
    lent(pool, async (client) => {
      const stream = client.query(new QueryStream(`SELECT generate_series(1, 20) AS ${mark}`))
      stream.on('data', current).on('error', current)
      await new Promise((resolve) => stream.on('close', resolve))
      if (stream.errored) throw stream.errored
    }),
  copy: (pool, mark, current, choose) =>
    lent(pool, async (client) => {
      const copy = client.query(copyFrom(`COPY ${table} (id) FROM STDIN WITH (NULL '${mark}')`))
      copy.on('error', current).on('finish', current)
      if (choose(3) === 0) copy.destroy(new Error('of the app'))
      else copy.end('wrong\n')
      await once(copy, 'finish')
    }),
}

const { version } = createRequire(import.meta.url)('pg/package.json') as { version: string }

test.each([
  ['live', 0],
  // One storm of sixteen leaves a caller of pg 8.0 waiting for ever, with tracing and without.
  ...(version.startsWith('8.0.') ? [] : ([['die now and then', 6]] as const)),
] as const)(
  'in a storm of callers on connections that %s each has one span of its own, which ends once',
  async (_, deaths) => {
    const begun = new Set<Span>()
    const ended: ReadableSpan[] = []
    const onStart = (each: Span) => void begun.add(each)
    const ends = new EventEmitter()
    const onEnd = (each: ReadableSpan) => {
      ended.push(each)
      ends.emit('one')
    }
    const kept = { onStart, onEnd, forceFlush: async () => {}, shutdown: async () => {} }
    const tracing = start({ signals: false, spanProcessors: [kept] })
    after(() => tracing.shutdown())

    const connections = new Set<number>()
    const pool = tracePg(open({ max: 3, idleTimeoutMillis: 5 }))
    pool.on('error', ignore).on('connect', (client) => {
      client.on('error', ignore)
      connections.add((client as unknown as { processID: number }).processID)
    })
    const killer = await connected()
    const kill = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid = ANY($1) LIMIT 1`
    const choose = chance(42 + deaths)
    const names = Object.keys(DEEDS)
    const callers = new Map<string, Span>()
    const astray: string[] = []

    const storm = Array.from({ length: CALLERS }, (_caller, index) => {
      const name = names[choose(names.length)] as string
      const mark = `mark_${index}_`
      return span(`caller ${index}`, async (caller) => {
        callers.set(mark, caller as Span)
        const current = () => void (trace.getActiveSpan() === caller || astray.push(`${name} ${index}`))
        await (DEEDS[name] as Deed)(pool, mark, current, choose).catch(ignore)
        current()
      })
    })
    for (let death = 0; death < deaths; death += 1) await killer.query(kill, [[...connections]])
    await Promise.all(storm)
    await pool.end()

    expect(astray).toEqual([])
    // Those on a dead connection end with it, which a pool that ends does not wait for.
    while (ended.length < begun.size) await once(ends, 'one')
    expect(new Set(ended).size).toBe(ended.length)
    // Those whose connection could not be had have a span too, but a caller who waits for a client in vain.
    const calls = ended.filter(({ instrumentationScope }) => instrumentationScope.name === '@throughline/pg')
    for (const [mark, caller] of callers) {
      const own = calls.filter((call) => parentOf(call) === caller.spanContext().spanId)
      const texts = own.map(({ attributes }) => String(attributes['db.query.text']))
      expect(own.length, `${mark}: ${texts.join()}`).toBeLessThanOrEqual(1)
      if (deaths === 0) expect(own).toHaveLength(1)
      for (const text of texts) if (!text.startsWith('COPY')) expect(text).toContain(mark)
    }
  },
)

function ignore(): void {}

/** The same numbers each time. */
function chance(seed: number): (count: number) => number {
  let state = seed
  return (count) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    return (state >> 8) % count
  }
}
