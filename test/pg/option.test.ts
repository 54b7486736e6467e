import { context, propagation } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { afterEach, expect, test, vi } from 'vitest'
import { complaints } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { connected, database, host, open, parentOf, port, tableOf, url } from './database.ts'

const table = tableOf('option')

afterEach(() => vi.unstubAllEnvs())

test('with sanitize: always, parameterised text is shown without its literals, too', async () => {
  const recording = record()
  const pool = tracePg(open(), { sanitize: 'always' })
  await pool.query(`SELECT * FROM ${table} WHERE id = $1 AND name = 's3cret'`, [7])
  expect((await recording.all(1))[0]?.attributes['db.query.text']).toBe(
    `SELECT * FROM ${table} WHERE id = $1 AND name = ?`,
  )
})

test('a client of a pool may be traced again by the options of its pool, and by others it is told of', async () => {
  record()
  const said = complaints()
  const options = { ignore: 'SELECT 1' }
  const pool = tracePg(open(), options)
  pool.on('connect', (client) => void tracePg(client, options))
  const client = await pool.connect()
  expect(said).toEqual([])
  tracePg(client, { ignore: 'SELECT 2' })
  client.release()
  expect(said).toEqual([expect.stringMatching(/^throughline: tracePg\(\): .* received others: ignore; /)])
})

test('with parameters: true, the values of parameters are shown as text, whatever they are', async () => {
  const recording = record()
  const pool = tracePg(open(), { parameters: true })
  const values = ['text', 7, null, true, new Date(0), Buffer.from([1, 255]), { a: 1 }, [1, 2], 10n]
  const types = ['text', 'int', 'text', 'bool', 'timestamptz', 'bytea', 'json', 'int[]', 'int']
  await pool.query(`SELECT ${types.map((type, index) => `$${index + 1}::${type}`).join(', ')}`, values)
  const [call] = await recording.all(1)
  const shown = values.map((_value, index) => call?.attributes[`db.query.parameter.${index}`])
  expect(shown).toEqual([
    'text',
    '7',
    'null',
    'true',
    '1970-01-01T00:00:00.000Z',
    '\\x01ff',
    '{"a":1}',
    '[1,2]',
    '10',
  ])
})

test('with parameters: true, no more values are shown than a span may have attributes', async () => {
  const recording = record()
  const pool = tracePg(open(), { parameters: true })
  const values = Array.from({ length: 200 }, (_, index) => index)
  const sql = `SELECT ${values.map((index) => `$${index + 1}::int`).join(' + ')} AS sum`
  expect((await pool.query(sql, values)).rows).toEqual([{ sum: 19_900 }])
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  const within = propagation.extract(context.active(), { traceparent })
  await context.with(within, () => pool.query(sql, values))
  for (const { attributes, droppedAttributesCount } of await recording.all(2)) {
    expect(Object.keys(attributes)).toHaveLength(128)
    // Of five others, and the wait for a connection where there was one.
    expect([200 + 5 - 128, 200 + 6 - 128]).toContain(droppedAttributesCount)
  }
})

test('a value that has no text costs the query nothing', async () => {
  const recording = record()
  const pool = tracePg(open(), { parameters: true })
  const value = { toPostgres: () => '42', toJSON: () => expect.fail('of the app') }
  expect((await pool.query('SELECT $1::int AS answer', [value])).rows).toEqual([{ answer: 42 }])
  expect((await recording.all(1))[0]?.attributes['db.query.parameter.0']).toBe('a value without text')
})

test('without it, no value is shown', async () => {
  const recording = record()
  await tracePg(open()).query('SELECT $1::int', [7])
  expect(Object.keys((await recording.all(1))[0]?.attributes ?? {}).join()).not.toContain('parameter')
})

test('pool.connect has a span with connectSpans: true alone, by promise and by callback', async () => {
  const recording = record()
  const silent = tracePg(open())
  ;(await silent.connect()).release()
  const pool = tracePg(open({ max: 1 }), { connectSpans: true })
  await span('caller', async () => {
    const client = await pool.connect()
    await client.query('SELECT 1')
    client.release()
    await new Promise<void>((resolve, reject) => {
      pool.connect((error, _client, release) => {
        release()
        if (error) reject(error)
        else resolve()
      })
    })
  })
  await pool.query('SELECT 1')
  const spans = await recording.all(5)
  const caller = spans.find(({ name }) => name === 'caller')
  expect(spans.map(({ name }) => name)).toEqual([
    'pool.connect',
    'SELECT',
    'pool.connect',
    'caller',
    'SELECT',
  ])
  for (const connect of [spans[0], spans[2]]) {
    expect(parentOf(connect)).toBe(caller?.spanContext().spanId)
    expect(connect?.attributes).toEqual({
      'db.system.name': 'postgresql',
      'db.namespace': database,
      'server.address': host,
      ...(port === 5432 ? {} : { 'server.port': port }),
    })
  }
})

test('the span of a pool.connect that fails says why', async () => {
  const recording = record()
  const nowhere = new URL(url)
  nowhere.pathname = '/no_such_database'
  const pool = tracePg(open({ connectionString: nowhere.href }), { connectSpans: true })
  await expect(pool.connect()).rejects.toMatchObject({ code: '3D000' })
  const [call] = await recording.all(1)
  expect(call).toMatchObject({
    name: 'pool.connect',
    status: { code: 2, message: 'database "no_such_database" does not exist' },
    attributes: { 'error.type': '3D000', 'db.namespace': 'no_such_database', 'server.address': host },
  })
})

test('with database/dup the old names stand beside the new ones', async () => {
  vi.stubEnv('OTEL_SEMCONV_STABILITY_OPT_IN', 'http, database/dup')
  vi.resetModules()
  const { tracePg: traceAnew } = await import('@throughline/pg')
  const recording = record()
  const client = traceAnew(await connected())
  await client.query(`SELECT * FROM ${table} WHERE id = 7`)
  const text = `SELECT * FROM ${table} WHERE id = ?`
  expect((await recording.all(1))[0]?.attributes).toMatchObject({
    'db.system.name': 'postgresql',
    'db.system': 'postgresql',
    'db.namespace': database,
    'db.name': database,
    'db.query.text': text,
    'db.statement': text,
    'server.address': host,
    'net.peer.name': host,
  })
})

test('so they do for pool.connect, and for a query that learns late where it runs', async () => {
  vi.stubEnv('OTEL_SEMCONV_STABILITY_OPT_IN', 'database/dup')
  vi.resetModules()
  const { tracePg: traceAnew } = await import('@throughline/pg')
  const recording = record()
  const client = await traceAnew(open(), { connectSpans: true }).connect()
  client.release()
  await traceAnew(open()).query('SELECT 1')
  for (const { attributes } of await recording.all(2)) {
    expect(attributes).toMatchObject({
      'db.system': 'postgresql',
      'db.namespace': database,
      'db.name': database,
      'server.address': host,
      'net.peer.name': host,
    })
  }
})

test('without it there are none', async () => {
  const recording = record()
  await tracePg(open()).query('SELECT 1')
  const names = Object.keys((await recording.all(1))[0]?.attributes ?? {})
  expect(names.filter((name) => /^(net\.|db\.(system|name|statement)$)/.test(name))).toEqual([])
})

test.each([
  [{ sanitize: true }, /expected sanitize to be 'always', received true; example: \{ sanitize: 'always' \}/],
  [
    { ignore: 7 },
    /expected ignore to be .*, received 7; example: \{ ignore: \['SELECT 1', \/\^LISTEN \/\] \}/,
  ],
  [{ parameters: 'yes' }, /expected parameters to be true or false, received "yes"/],
  [{ connectSpans: 1 }, /expected connectSpans to be true or false, received 1/],
  [{ sqlcomment: 'on' }, /expected sqlcomment to be true, false or a function, received "on"/],
])('%j is a TypeError at set-up', (options, message) => {
  expect(() => tracePg(open(), options as never)).toThrow(TypeError)
  expect(() => tracePg(open(), options as never)).toThrow(message)
})
