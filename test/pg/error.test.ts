import { SpanKind, trace } from '@opentelemetry/api'
import { BasicTracerProvider } from '@opentelemetry/sdk-trace-base'
import { span } from '@throughline/core'
import { tracing } from '@throughline/express'
import { tracePg } from '@throughline/pg'
import express from 'express'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { Client, Pool, type ClientBase, type ClientConfig } from 'pg'
import request from 'supertest'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { processor, said } from '../core/engine.ts'
import { record } from '../recording.ts'
import { connected, open, tableOf, url } from './database.ts'

const table = tableOf('error')

describe('the span of a query that fails', () => {
  test('has the SQLSTATE of what the server refused', async () => {
    const recording = record()
    const pool = tracePg(open())
    await pool.query(`INSERT INTO ${table} VALUES ($1, $2)`, [1, 'one'])
    await expect(pool.query(`INSERT INTO ${table} VALUES ($1, $2)`, [1, 'one'])).rejects.toThrow(
      'duplicate key',
    )
    const [, failed] = await recording.all(2)
    expect(failed?.attributes).toMatchObject({ 'db.response.status_code': '23505', 'error.type': '23505' })
    expect(failed?.status).toEqual({
      code: 2,
      message: `duplicate key value violates unique constraint "${table}_pkey"`,
    })
    expect(failed?.events).toEqual([])
  })
})

describe('a client that could not connect', () => {
  const unreachable: [string, () => Promise<ClientConfig>][] = [
    ['since nobody listens', async () => ({ host: '127.0.0.1', port: 1 })],
    [
      'in time',
      async () => {
        const silent = createServer()
        onTestFinished(() => void silent.close())
        await once(silent.listen(0, '127.0.0.1'), 'listening')
        silent.on('connection', (socket) => onTestFinished(() => void socket.destroy()))
        const { port } = silent.address() as AddressInfo
        return { host: '127.0.0.1', port, connectionTimeoutMillis: 50 }
      },
    ],
  ]

  test.each(unreachable)('%s never answers what it is asked, and the span says so', async (_title, where) => {
    const recording = record()
    const client = tracePg(new Client({ ...(await where()), user: 'x', database: 'x' }))
    const ended = once(client, 'end')
    await expect(client.connect()).rejects.toThrow(/ECONNREFUSED|timeout/)
    await ended
    void client.query('SELECT 1')
    const [call] = await recording.all(1)
    expect(call).toMatchObject({ name: 'SELECT', status: { code: 0 } })
    expect(call?.attributes).toMatchObject({ 'throughline.incomplete': true, 'db.namespace': 'x' })
  })

  test.each([
    ['of its own', {}, { query_timeout: 20 }],
    ['of the client', { query_timeout: 20 }, {}],
  ])('answers a query with a timeout %s, by an error', async (_title, config, more) => {
    const recording = record()
    const client = tracePg(new Client({ host: '127.0.0.1', port: 1, ...config }))
    const ended = once(client, 'end')
    await expect(client.connect()).rejects.toThrow('ECONNREFUSED')
    await ended
    await expect(client.query({ text: 'SELECT 1', ...more })).rejects.toThrow('Query read timeout')
    const [call] = await recording.all(1)
    expect(call?.attributes).not.toHaveProperty('throughline.incomplete')
    expect(call?.status).toEqual({ code: 2, message: 'Query read timeout' })
  })

  test('takes what it is asked also where a processor of another SDK throws', async () => {
    const throwing = processor({
      onEnd() {
        throw new Error('of the processor')
      },
    })
    trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [throwing] }))
    onTestFinished(() => trace.disable())
    const reports = said()
    const client = tracePg(new Client({ host: '127.0.0.1', port: 1 }))
    const ended = once(client, 'end')
    await expect(client.connect()).rejects.toThrow('ECONNREFUSED')
    await ended
    expect(client.query('SELECT 1')).toBeInstanceOf(Promise)
    expect(reports.lines).toEqual([expect.stringContaining('the end of a call could not be recorded')])
  })

  test('and was closed refuses what it is asked, as an error', async () => {
    const recording = record()
    const client = tracePg(new Client({ host: '127.0.0.1', port: 1 }))
    await expect(client.connect()).rejects.toThrow('ECONNREFUSED')
    await client.end()
    await expect(client.query('SELECT 1')).rejects.toThrow('not queryable')
    const [call] = await recording.all(1)
    expect(call?.attributes).not.toHaveProperty('throughline.incomplete')
    expect(call?.status.code).toBe(2)
  })
})

describe('an error that goes through spans of the app', () => {
  const SECRET = 's3cret'

  test('is told by each without its values, and the app gets all of it', async () => {
    const recording = record()
    const pool = tracePg(open())
    const error = await span('caller', () => pool.query('SELECT $1::int', [SECRET])).catch(
      (refused: unknown) => refused,
    )
    const message = `invalid input syntax for type integer: "${SECRET}"`
    expect(error).toMatchObject({ message, stack: expect.stringContaining(message), code: '22P02' })
    const [call, caller] = await recording.all(2)
    const shown = 'invalid input syntax for type integer: "?"'
    expect([call, caller].map((each) => each?.status.message)).toEqual([shown, shown])
    expect(caller?.events[0]?.attributes).toMatchObject({
      'exception.message': shown,
      'exception.stacktrace': expect.stringContaining(shown),
    })
    expect(JSON.stringify(recording.spans.map(({ status, events }) => [status, events]))).not.toContain(
      SECRET,
    )
  })

  test('is told by the request that it fails without its values', async () => {
    const recording = record()
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const pool = tracePg(open())
    const app = express()
    app.use(tracing())
    app.get('/cards/:number', async () => {
      await pool.query('SELECT $1::int', [SECRET])
    })
    await request(app).get('/cards/1').expect(500)
    const server = await recording.span(({ kind }) => kind === SpanKind.SERVER)
    expect(server.events[0]?.attributes).toMatchObject({
      'exception.message': 'invalid input syntax for type integer: "?"',
    })
    expect(JSON.stringify([server.status, server.events, server.attributes])).not.toContain(SECRET)
  })
})

describe('errors surface as before', () => {
  test.each([
    ['a Pool', () => open() as Pool | ClientBase],
    ['a Client', connected],
  ])('the rejection of a query of %s that nobody awaits is unhandled, once', async (_, opened) => {
    record()
    const target = await opened()
    const unhandled = vi.fn<(error: unknown) => void>()
    // Those of vitest would fail the run.
    const others = process.rawListeners('unhandledRejection')
    process.removeAllListeners('unhandledRejection').on('unhandledRejection', unhandled)
    try {
      const seen: unknown[][] = []
      for (const traced of [target, tracePg(target)]) {
        void traced.query('SELECT * FROM nowhere')
        await vi.waitFor(() => expect(unhandled).toHaveBeenCalled())
        await traced.query('SELECT 1')
        seen.push(unhandled.mock.calls.map(([error]) => (error as Error).message))
        unhandled.mockClear()
      }
      expect(seen).toEqual([['relation "nowhere" does not exist'], ['relation "nowhere" does not exist']])
    } finally {
      process.off('unhandledRejection', unhandled)
      for (const listener of others) process.on('unhandledRejection', listener as never)
    }
  })

  test.each([
    ['that cannot be read', unreadable()],
    ['that is a text', 'of the app'],
    ['without a prototype', Object.assign(Object.create(null) as object, { message: 'of the app' })],
  ])('an error of the app’s %s is handed on as it is', async (_, error) => {
    const recording = record()
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const pool = tracePg(
      open({ verify: (_client: unknown, done: (error: unknown) => void) => done(error) }),
      {
        connectSpans: true,
      },
    )
    // Of a promise pg would write to the stack of what it rejects with.
    type Done = (error: unknown) => void
    for (const ask of [(done: Done) => pool.query('SELECT 1', done), (done: Done) => pool.connect(done)]) {
      const failed = await new Promise((resolve) => ask((refused) => resolve([refused])))
      expect((failed as unknown[])[0] === error).toBe(true)
    }
    for (const { status } of await recording.all(2)) expect(status.code).toBe(2)
  })

  test('the stack of an error leads to the caller', async () => {
    record()
    const pool = tracePg(open())
    async function theCaller() {
      await pool.query('SELECT * FROM nowhere')
    }
    await expect(theCaller()).rejects.toMatchObject({ stack: expect.stringContaining('theCaller') })
  })

  test.each([
    [
      'undefined',
      undefined,
      /^@throughline\/pg: tracePg\(\): expected a Pool or a Client of pg, received undefined; example: tracePg\(new Pool\(\)\)/,
    ],
    ['the class', Pool, /received a function \(BoundPool\)/],
    ['a connection string', url, /received "postgres/],
  ])('%s cannot be traced', (_, target, message) => {
    expect(() => tracePg(target as never)).toThrow(TypeError)
    expect(() => tracePg(target as never)).toThrow(message)
  })

  test('another instrumentation that is at work already is left alone, and it is said', async () => {
    const recording = record()
    const said = vi.spyOn(console, 'error').mockImplementation(() => {})
    const client = await connected()
    const query = Object.assign(client.query.bind(client), { __wrapped: true })
    Object.assign(client, { query })
    expect(tracePg(client)).toBe(client)
    expect(client.query).toBe(query)
    await client.query('SELECT 1')
    expect(recording.spans).toEqual([])
    expect(said).toHaveBeenCalledWith(expect.stringContaining('another instrumentation traces pg already'))
  })
})

function unreadable(): object {
  const broken = () => {
    throw new Error('of the getter')
  }
  return new Proxy(new Error('of the app'), { get: broken })
}
