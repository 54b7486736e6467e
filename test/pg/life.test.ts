import { trace } from '@opentelemetry/api'
import { span, untrace, type ReadableSpan } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { Client, type Notification, type PoolClient } from 'pg'
import Cursor from 'pg-cursor'
import { expect, test, vi } from 'vitest'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { after, connected, host, open, parentOf, port, tableOf, url } from './database.ts'

const table = tableOf('life')

const names = (spans: readonly ReadableSpan[]) => spans.map(({ name }) => name)
const types = (spans: readonly ReadableSpan[]) => spans.map(({ attributes }) => attributes['error.type'])
const refused = (promise: Promise<unknown>) =>
  promise.then(
    () => expect.fail(),
    (error: unknown) => error,
  )

function pidOf(client: unknown): number {
  return (client as { processID: number }).processID
}

test('a transaction is a span for each of its queries, also where one fails and it is rolled back', async () => {
  const recording = record()
  const pool = tracePg(open())
  await span('caller', async () => {
    const client = await pool.connect()
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${table} VALUES (1)`)
    await refused(client.query(`INSERT INTO ${table} VALUES (1)`))
    await refused(client.query('SELECT 1'))
    await client.query('ROLLBACK')
    client.release()
  })
  const spans = await recording.all(6)
  expect(names(spans)).toEqual([
    'BEGIN',
    `INSERT ${table}`,
    `INSERT ${table}`,
    'SELECT',
    'ROLLBACK',
    'caller',
  ])
  expect(types(spans).slice(0, 5)).toEqual([undefined, undefined, '23505', '25P02', undefined])
  for (const call of spans.slice(0, 5)) expect(parentOf(call)).toBe(spans[5]?.spanContext().spanId)
})

test('LISTEN and NOTIFY are queries, and what is heard is as before', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const heard = new Promise<Notification>((resolve) => void client.once('notification', resolve))
  await client.query('LISTEN news')
  await client.query("NOTIFY news, 's3cret'")
  expect(await heard).toMatchObject({ channel: 'news', payload: 's3cret' })
  const spans = await recording.all(2)
  expect(names(spans)).toEqual(['LISTEN news', 'NOTIFY news'])
  expect(JSON.stringify(spans.map(({ attributes }) => attributes))).not.toContain('s3cret')
})

test('what a connection tells by itself is heard outside of any span, also where a request had it made', async () => {
  const recording = record()
  const client = tracePg(new Client(url))
  after(() => client.end())
  const pool = tracePg(open({ max: 1 }))
  pool.on('error', () => {})
  await span('first', async () => {
    await client.connect()
    await pool.query('SELECT 1')
  })

  const heard: [event: string, span: unknown][] = []
  const lent = await span('second', () => pool.connect())
  const listen = (target: Client | PoolClient) => {
    const note = (event: string) => () => void heard.push([event, trace.getActiveSpan()])
    target.on('notification', note('notification'))
    target.on('notice', note('notice'))
    target.on('error', note('error'))
    return target.query('LISTEN alarms')
  }
  await span('third', async () => {
    await Promise.all([listen(client), listen(lent)])
    await lent.query("DO $$ BEGIN RAISE NOTICE 'for nobody'; END $$")
    await lent.query('NOTIFY alarms')
    await client.query('SELECT 1')
    const lost = [lent, client].map((one) => new Promise<void>((resolve) => void one.once('end', resolve)))
    await open().query('SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid', [
      [pidOf(client), pidOf(lent)],
    ])
    await Promise.all(lost)
  })
  lent.release(true)
  const events = new Set(heard.map(([event]) => event))
  expect(events).toEqual(new Set(['notification', 'notice', 'error']))
  expect(heard.filter(([, active]) => active !== undefined)).toEqual([])
  await recording.stop()
})

test('rows as arrays, and a named statement with values, are as before', async () => {
  const recording = record()
  const client = tracePg(await connected())
  expect((await client.query({ text: 'SELECT 1, 2', rowMode: 'array' })).rows).toEqual([[1, 2]])
  for (const value of [1, 2]) {
    const named = { name: 'by-id', text: 'SELECT $1::int AS n', values: [value] }
    expect((await client.query(named)).rows).toEqual([{ n: value }])
    expect(named).toEqual({ name: 'by-id', text: 'SELECT $1::int AS n', values: [value] })
  }
  await recording.all(3)
})

test('a client that is released with an error leaves the pool as before', async () => {
  record()
  const pool = tracePg(open({ max: 1 }))
  const client = await pool.connect()
  const removed = once(pool, 'remove')
  client.release(new Error('of the app'))
  await removed
  expect(pool.totalCount).toBe(0)
  expect(() => client.release()).toThrow('Release called on client which has already been released')
})

test('a pool that ends while queries run and wait lets those end that run, and refuses what comes later', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }))
  const running = pool.query('SELECT pg_sleep(0.01)')
  await once(pool, 'acquire')
  const ended = pool.end()
  const late = refused(pool.query('SELECT 2'))
  await running
  await ended
  expect(await late).toMatchObject({ message: 'Cannot use a pool after calling end on the pool' })
  const spans = await recording.all(2)
  expect(types(spans).toSorted()).toEqual(['Error', undefined])
})

test('those who still wait when a pool ends are forgotten by it, and their spans end and say so', async () => {
  const recording = record()
  const measuring = measure()
  const pool = tracePg(open({ max: 1 }), { connectSpans: true })
  const running = pool.query('SELECT pg_sleep(0.01)')
  await once(pool, 'acquire')
  void pool.query('SELECT 1')
  pool.query('SELECT 2', () => expect.fail())
  void pool.connect()
  pool.connect(() => expect.fail())
  const ended = pool.end()
  expect(names(recording.spans)).toEqual(['SELECT', 'SELECT', 'pool.connect', 'pool.connect'])
  for (const { attributes, status } of recording.spans) {
    expect(attributes).toMatchObject({ 'throughline.incomplete': true })
    expect(status.code).toBe(0)
  }
  await running
  await ended
  const spans = await recording.all(5)
  expect(spans[4]?.attributes).not.toHaveProperty('throughline.incomplete')
  expect(await measuring.all('db.client.operation.duration', 1)).toMatchObject([{ count: 1 }])
})

test('one who waits with a time-out is told of that, also when the pool has ended', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1, connectionTimeoutMillis: 50 }))
  const held = await pool.connect()
  const waiting = refused(pool.query('SELECT 1'))
  const ended = pool.end()
  expect(recording.spans).toEqual([])
  expect(await waiting).toMatchObject({ message: 'timeout exceeded when trying to connect' })
  held.release()
  await ended
  expect((await recording.all(1))[0]?.status.code).toBe(2)
})

test('one who waited, and for whom a connection is being made when the pool ends, is let end', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1, maxUses: 1 }))
  const first = pool.query('SELECT 1')
  const second = pool.query('SELECT 2 AS two')
  const third = pool.query('SELECT 3')
  void third.then(() => expect.fail())
  await first
  // The one connection has been used as often as it may be: the next has another made.
  await vi.waitUntil(() => pool.waitingCount === 1, { interval: 1 })
  const ended = pool.end()
  expect((await second).rows).toEqual([{ two: 2 }])
  await ended
  const spans = await recording.all(3)
  expect(spans.map(({ attributes }) => attributes['throughline.incomplete'])).toEqual([
    undefined,
    true,
    undefined,
  ])
  expect(recording.spans).toHaveLength(3)
})

test('one who waited, and whose turn has come before the pool ends, is let end', async () => {
  const recording = record()
  const pool = tracePg(open({ max: 1 }), { connectSpans: true })
  const held = await pool.connect()
  const waited = pool.query('SELECT pg_sleep(0.01)')
  const acquired = once(pool, 'acquire')
  held.release()
  await acquired
  await Promise.all([pool.end(), waited])
  const spans = await recording.all(2)
  expect(names(spans)).toEqual(['pool.connect', 'SELECT'])
  for (const { attributes } of spans) expect(attributes).not.toHaveProperty('throughline.incomplete')
})

test.each([
  [
    'statement_timeout of the server',
    { statement_timeout: 20 },
    '57014',
    'canceling statement due to statement timeout',
  ],
  ['query_timeout of pg', { query_timeout: 20 }, 'Error', 'Query read timeout'],
  ['lock_timeout of the server', {}, '55P03', 'canceling statement due to lock timeout'],
])('a query that is stopped by %s says so', async (name, config, type, message) => {
  const recording = record()
  const holder = await connected()
  await holder.query(`BEGIN; LOCK TABLE ${table}`)
  const plain = await connected(config)
  if (name.startsWith('lock')) await plain.query('SET lock_timeout = 20')
  const client = tracePg(plain)
  const text = name.startsWith('lock') ? `SELECT * FROM ${table}` : 'SELECT pg_sleep(10)'
  expect(await refused(client.query(text))).toMatchObject({ message })
  const [call] = await recording.all(1)
  expect(call?.status).toEqual({ code: 2, message })
  expect(call?.attributes['error.type']).toBe(type)
  await holder.query('ROLLBACK')
  if (type === 'Error') await open().query('SELECT pg_cancel_backend($1)', [pidOf(client)])
})

test('a query that is cancelled from elsewhere says so, and the connection serves on', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const sleeping = refused(client.query('SELECT pg_sleep(10)'))
  const other = await connected()
  const isRunning = `SELECT 1 FROM pg_stat_activity WHERE pid = ${pidOf(client)} AND query LIKE '%sleep%' AND state = 'active'`
  while ((await other.query(isRunning)).rowCount === 0) continue
  await other.query('SELECT pg_cancel_backend($1)', [pidOf(client)])
  expect(await sleeping).toMatchObject({ code: '57014' })
  await client.query('SELECT 1')
  expect(types(await recording.all(2))).toEqual(['57014', undefined])
})

/** A way to the server that can be cut. */
async function line(): Promise<{ url: string; cut(): void }> {
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    const upstream = connect(port, host)
    sockets.push(socket, upstream)
    for (const each of [socket, upstream]) each.on('error', () => {})
    socket.pipe(upstream).pipe(socket)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  after(() => server.close())
  const through = new URL(url)
  through.hostname = '127.0.0.1'
  through.port = String((server.address() as AddressInfo).port)
  return { url: through.href, cut: () => sockets.forEach((socket) => socket.destroy()) }
}

test('a connection that is lost in the midst of queries ends the spans of all of them in error, once each', async () => {
  const recording = record()
  const { url: through, cut } = await line()
  const client = tracePg(new Client(through))
  await client.connect()
  client.on('error', () => {})
  const running = [client.query('SELECT pg_sleep(10)'), client.query('SELECT 2')].map(refused)
  cut()
  for (const error of await Promise.all(running)) expect(error).toBeInstanceOf(Error)
  const spans = await recording.all(2)
  for (const { status, attributes } of spans) {
    expect(status.code).toBe(2)
    expect(attributes).toMatchObject({
      'server.address': '127.0.0.1',
      'server.port': Number(new URL(through).port),
    })
  }
  await refused(client.query('SELECT 3'))
  await recording.all(3)
})

test('so does one of a pool, which makes another', async () => {
  const recording = record()
  const { url: through, cut } = await line()
  const pool = tracePg(open({ connectionString: through, max: 1 }))
  pool.on('error', () => {})
  const running = refused(pool.query('SELECT pg_sleep(10)'))
  await once(pool, 'acquire')
  cut()
  expect(await running).toBeInstanceOf(Error)
  expect((await pool.query('SELECT 2 AS two')).rows).toEqual([{ two: 2 }])
  const spans = await recording.all(2)
  expect(spans.map(({ status }) => status.code)).toEqual([2, 0])
})

test('what verify and onConnect ask of a new connection are queries like others, and the query runs after them', async () => {
  const recording = record()
  const pool = tracePg(
    open({
      max: 1,
      onConnect: (client: PoolClient) => client.query("SET application_name TO 'app'"),
      verify: (client: PoolClient, done: (error?: Error) => void) =>
        void client.query('SELECT 1 AS verified', (error) => done(error)),
    }),
  )
  expect((await pool.query('SHOW application_name')).rows).toEqual([{ application_name: 'app' }])
  expect(names(await recording.all(3))).toEqual(['SET application_name', 'SELECT', 'SHOW application_name'])
})

test('what onConnect asks has no span where the pool is not traced any more', async () => {
  const recording = record()
  const pool = open({ onConnect: (client: PoolClient) => client.query("SET application_name TO 'app'") })
  for (const times of [1, 2]) {
    untrace(tracePg(pool))
    await pool.query('SELECT 1')
    expect(recording.spans).toEqual([])
    const client = await pool.connect()
    client.release(true)
    expect(pool.totalCount, `time ${times}`).toBe(0)
  }
})

test('a pool made with the options of a traced one is not traced, and those stay as they were', async () => {
  const recording = record()
  const onConnect = (client: PoolClient) => client.query("SET application_name TO 'app'")
  const traced = tracePg(open({ onConnect }))
  const { options } = traced as unknown as { options: { onConnect: unknown } }
  expect(options.onConnect).toBe(onConnect)
  const other = open({ onConnect: options.onConnect })
  await other.query('SELECT 1')
  await traced.query('SELECT 2 AS two')
  const spans = await recording.all(2)
  expect(names(spans)).toEqual(['SET application_name', 'SELECT'])
  expect(spans[1]?.attributes['db.query.text']).toBe('SELECT ? AS two')
})

test('a connection that verify refuses is the error of the query', async () => {
  const recording = record()
  const refuse = (_client: PoolClient, done: (error: Error) => void) => done(new TypeError('of the app'))
  const pool = tracePg(open({ verify: refuse }))
  expect(await refused(pool.query('SELECT 1'))).toBeInstanceOf(TypeError)
  const [call] = await recording.all(1)
  expect(call?.attributes['error.type']).toBe('TypeError')
})

test('by a Unix socket the address is its path', async () => {
  const recording = record()
  const { rows } = await (await connected()).query('SHOW unix_socket_directories')
  const [directory = ''] = String((rows[0] as Record<string, string>)['unix_socket_directories']).split(/, */)
  const { username, password, pathname } = new URL(url)
  const client = tracePg(
    new Client({
      host: directory,
      port,
      user: username || undefined,
      password,
      database: pathname.slice(1),
    } as object),
  )
  await client.connect()
  await client.query('SELECT 1')
  await client.end()
  expect((await recording.all(1))[0]?.attributes).toMatchObject({
    'server.address': `${directory}/.s.PGSQL.${port}`,
  })
})

test('several pools each tell of their own server', async () => {
  const recording = record()
  const { url: through } = await line()
  const pools = [tracePg(open()), tracePg(open({ connectionString: through }))]
  await Promise.all(pools.map((pool) => pool.query('SELECT 1')))
  const ports = (await recording.all(2)).map(({ attributes }) => attributes['server.port'] ?? 5432)
  expect(ports.toSorted()).toEqual([port, Number(new URL(through).port)].toSorted())
})

test('in pipeline mode each query is a span of its own caller, and one that fails fails alone', async () => {
  const recording = record()
  const client = tracePg(await connected({ pipeline: true }))
  const asked = ['SELECT 1 AS n', 'SELECT * FROM nowhere', 'SELECT 3 AS n'].map((text, index) =>
    span(`caller ${index}`, () => client.query(text)),
  )
  const settled = await Promise.allSettled(asked)
  expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
  const spans = await recording.all(6)
  const calls = spans.filter(({ name }) => name.startsWith('SELECT'))
  expect(types(calls)).toEqual([undefined, '42P01', undefined])
  for (const [index, call] of calls.entries()) {
    const caller = spans.find(({ name }) => name === `caller ${index}`)
    expect(parentOf(call)).toBe(caller?.spanContext().spanId)
  }
})

test('in pipeline mode a cursor is refused, and so its span says', async () => {
  const recording = record()
  const client = tracePg(await connected({ pipeline: true }))
  const cursor = client.query(new Cursor('SELECT 1'))
  const error = await refused(cursor.read(1))
  expect(error).toMatchObject({ message: expect.stringContaining('not supported in pipeline mode') })
  const [call] = await recording.all(1)
  expect(call?.status).toMatchObject({ code: 2, message: expect.stringContaining('pipeline mode') })
  expect((await client.query('SELECT 2 AS two')).rows).toEqual([{ two: 2 }])
})

test('in pipeline mode a query that times out ends its span, and those behind it theirs', async () => {
  const recording = record()
  const client = tracePg(await connected({ pipeline: true, query_timeout: 30 }))
  client.on('error', () => {})
  const errors = await Promise.all(
    ['SELECT pg_sleep(10)', 'SELECT 2'].map((text) => refused(client.query(text))),
  )
  expect(errors[0]).toMatchObject({ message: 'Query read timeout' })
  const spans = await recording.all(2)
  expect(spans.map(({ status }) => status.code)).toEqual([2, 2])
})
