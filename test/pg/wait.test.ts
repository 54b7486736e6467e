import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import type { Pool } from 'pg'
import { expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { open, parentOf } from './database.ts'

const WAIT = 'throughline.db.pool.wait'

type Ask = (pool: Pool, text: string, current: () => void) => Promise<void>

const ways: [string, Ask][] = [
  [
    'pool.query with a promise',
    async (pool, text, current) => {
      await pool.query(text)
      current()
    },
  ],
  [
    'pool.query with a callback',
    (pool, text, current) =>
      new Promise((resolve) => {
        pool.query(text, () => {
          current()
          resolve()
        })
      }),
  ],
  [
    'pool.connect with a promise',
    async (pool, text, current) => {
      const client = await pool.connect()
      current()
      await client.query(text)
      current()
      client.release()
    },
  ],
  [
    'pool.connect with a callback',
    (pool, text, current) =>
      new Promise((resolve) => {
        pool.connect((_error, client, release) => {
          current()
          client?.query(text, () => {
            current()
            release()
            resolve()
          })
        })
      }),
  ],
]

test.each([...ways, ['all four in turn', undefined]] as [string, Ask | undefined][])(
  'fifty callers who wait for the one connection, each in a trace of his own, are not mixed: %s',
  async (_, way) => {
    const recording = record()
    const pool = tracePg(open({ max: 1 }))
    const held = await pool.connect()
    const waiting = Array.from({ length: 50 }, (_caller, index) => {
      const ask = way ?? (ways[index % ways.length]?.[1] as Ask)
      return span(`caller ${index}`, (caller) =>
        ask(pool, `SELECT 1 AS caller_${index}`, () => expect(trace.getActiveSpan()).toBe(caller)),
      )
    })
    await span('releaser', async () => held.release())
    await Promise.all(waiting)

    const spans = await recording.all(101)
    for (let index = 0; index < 50; index += 1) {
      const caller = spans.find(({ name }) => name === `caller ${index}`)
      const call = spans.find(({ attributes }) =>
        String(attributes['db.query.text']).endsWith(` caller_${index}`),
      )
      expect(parentOf(call)).toBe(caller?.spanContext().spanId)
      expect(call?.spanContext().traceId).toBe(caller?.spanContext().traceId)
    }
    const releaser = spans.find(({ name }) => name === 'releaser')
    expect(spans.filter((each) => parentOf(each) === releaser?.spanContext().spanId)).toEqual([])
  },
)

test('a query that had to wait for a connection says how long, in seconds, and the wait is in its span', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  const held = await pool.connect()
  const waiting = [pool.query('SELECT 1'), pool.query('SELECT 2')]
  const began = performance.now()
  // The other connection's query is what it waits for.
  await held.query('SELECT pg_sleep(0.02)')
  const waited = (performance.now() - began) / 1000
  held.release()
  await Promise.all(waiting)
  const [, first, second] = await recording.all(3)
  for (const call of [first, second]) {
    const wait = call?.attributes[WAIT] as number
    const [seconds = 0, nanoseconds = 0] = call?.duration ?? []
    expect(wait).toBeGreaterThanOrEqual(waited)
    expect(wait).toBeLessThanOrEqual(seconds + nanoseconds / 1e9 + 0.001)
  }
})

test('so does one for which a connection had to be made', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  await pool.query('SELECT 1')
  expect((await recording.all(1))[0]?.attributes[WAIT]).toBeGreaterThan(0)
})

test('so does one whose texts may have to be cut', async () => {
  vi.stubEnv('OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT', '4000')
  const recording = record()
  vi.unstubAllEnvs()
  await tracePg(open({ max: 1 })).query('SELECT 1')
  expect((await recording.all(1))[0]?.attributes[WAIT]).toBeGreaterThan(0)
})

test('so does one that waited in vain', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  const held = await pool.connect()
  Object.assign(pool.options, { connectionTimeoutMillis: 5 })
  await expect(pool.query('SELECT 1')).rejects.toThrow('timeout exceeded when trying to connect')
  const [call] = await recording.all(1)
  expect(call?.attributes[WAIT]).toBeGreaterThan(0)
  expect(call?.status.message).toBe('timeout exceeded when trying to connect')
  held.release()
})

test('one that found a connection free says nothing, nor does one of a client', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 2 }))
  const client = await pool.connect()
  await client.query('SELECT 1')
  client.release()
  await pool.query('SELECT 2')
  for (const { attributes } of await recording.all(2)) expect(attributes).not.toHaveProperty(WAIT)
})

test('of two that ask at once for the one free connection, the second waited', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  ;(await pool.connect()).release()
  await Promise.all([pool.query('SELECT 1'), pool.query('SELECT 2')])
  const waits = (await recording.all(2)).map(({ attributes }) => WAIT in attributes)
  expect(waits).toEqual([false, true])
})
