import {
  createNoopMeter,
  metrics,
  type Attributes,
  type BatchObservableCallback,
  type Meter,
} from '@opentelemetry/api'
import { untrace } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import Cursor from 'pg-cursor'
import { expect, onTestFinished, test } from 'vitest'
import { measure, type Measuring } from '../measuring.ts'
import { record } from '../recording.ts'
import { connected, database, host, open, port, url } from './database.ts'

const DURATION = 'db.client.operation.duration'
const POOL = `${host}:${port}/${database}`

/** What the gauges say of a pool. */
async function load(measuring: Measuring, pool = POOL) {
  const of = async (name: string) =>
    (await measuring.points(`db.client.connection.${name}`)).filter(
      ({ attributes }) => attributes['db.client.connection.pool.name'] === pool,
    )
  const counts = await of('count')
  const [pending, max] = [await of('pending_requests'), await of('max')]
  const count = (state: string) =>
    counts.find(({ attributes }) => attributes['db.client.connection.state'] === state)?.value
  return { idle: count('idle'), used: count('used'), pending: pending[0]?.value, max: max[0]?.value }
}

test('the connections of a pool are counted by what they do, and those who wait for one', async () => {
  const measuring = measure()
  record()
  const pool = tracePg(open({ max: 2 }))
  const [one, two] = [await pool.connect(), await pool.connect()]
  const waiting = pool.query('SELECT 1')
  expect(await load(measuring)).toEqual({ idle: 0, used: 2, pending: 1, max: 2 })
  one.release()
  await waiting
  expect(await load(measuring)).toEqual({ idle: 1, used: 1, pending: 0, max: 2 })
  two.release()
  expect(await load(measuring)).toEqual({ idle: 2, used: 0, pending: 0, max: 2 })
})

test('pools of the same database count together, others each for themselves', async () => {
  const measuring = measure()
  record()
  const pools = [tracePg(open({ max: 2 })), tracePg(open({ max: 3 }))]
  const other = new URL(url)
  other.pathname = '/postgres'
  const elsewhere = tracePg(open({ connectionString: other.href, max: 4 }))
  const clients = await Promise.all([...pools, elsewhere].map((pool) => pool.connect()))
  expect(await load(measuring)).toEqual({ idle: 0, used: 2, pending: 0, max: 5 })
  expect(await load(measuring, `${host}:${port}/postgres`)).toEqual({ idle: 0, used: 1, pending: 0, max: 4 })
  for (const client of clients) client.release()
  expect(await load(measuring)).toEqual({ idle: 2, used: 0, pending: 0, max: 5 })
})

test('a pool that is traced once more counts once, one that is not traced or has ended counts no more', async () => {
  const measuring = measure()
  record()
  const [first, second] = [tracePg(open({ max: 2 })), tracePg(open({ max: 3 }))]
  await Promise.all([first.query('SELECT 1'), second.query('SELECT 1')])
  untrace(first)
  tracePg(first)
  expect(await load(measuring)).toMatchObject({ idle: 2, max: 5 })
  untrace(first)
  expect(await load(measuring)).toMatchObject({ idle: 1, max: 3 })
  await second.end()
  expect(await load(measuring)).toMatchObject({ idle: 0, used: 0, pending: 0, max: 0 })
})

test('a pool that is gone is told of as nothing for a while, and then no more: an app may make them without end', async () => {
  let collect: BatchObservableCallback = () => {}
  const meter = Object.assign(createNoopMeter(), {
    createHistogram: () => ({ record() {} }),
    createObservableUpDownCounter: () => ({}),
    addBatchObservableCallback: (callback: BatchObservableCallback) => void (collect = callback),
  })
  metrics.setGlobalMeterProvider({ getMeter: () => Object.create(meter) as Meter })
  onTestFinished(() => metrics.disable())
  record()
  const pool = tracePg(open())
  await pool.query('SELECT 1')
  await pool.end()
  const told = Array.from({ length: 15 }, () => {
    const names: unknown[] = []
    const observe = (_of: unknown, _value: number, of?: Attributes) =>
      void names.push(of?.['db.client.connection.pool.name'])
    void collect({ observe } as never)
    return names.includes(POOL)
  })
  expect(told.slice(0, 3)).toEqual([true, true, true])
  expect(told.at(-1)).toBe(false)
})

test('a pool is counted from a MeterProvider on that is registered after it was made', async () => {
  record()
  const pool = tracePg(open({ max: 2 }))
  await pool.query('SELECT 1')
  const measuring = measure()
  await pool.query('SELECT 1')
  expect(await load(measuring)).toEqual({ idle: 1, used: 0, pending: 0, max: 2 })
})

test('a cursor counts once, from its query to its end', async () => {
  const measuring = measure()
  const recording = record()
  const client = tracePg(await connected())
  const cursor = client.query(new Cursor('SELECT generate_series(1, 3)'))
  await cursor.read(2)
  expect(await measuring.points(DURATION)).toEqual([])
  await cursor.read(2)
  const [call] = await recording.all(1)
  const [seconds = 0, nanoseconds = 0] = call?.duration ?? []
  expect(await measuring.all(DURATION, 1)).toMatchObject([{ value: seconds + nanoseconds / 1e9 }])
})

test('pool.connect, though it has a span, is no operation of the database', async () => {
  const measuring = measure()
  const recording = record()
  const pool = tracePg(open(), { connectSpans: true })
  const client = await pool.connect()
  client.release()
  await recording.all(1)
  expect(await measuring.points(DURATION)).toEqual([])
})
