import { trace } from '@opentelemetry/api'
import { span, untrace, type ReadableSpan } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { createServer, Socket, type AddressInfo } from 'node:net'
import { Client, Pool, Query, type ClientBase, type PoolClient, type QueryConfig, type QueryResult } from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test, vi } from 'vitest'
import { clientContract } from './contract/client.ts'
import { record } from './recording.ts'

const url = inject('databaseUrl')
const database = new URL(url).pathname.slice(1)
const table = `pg_test_${process.pid}`

const closing: (() => unknown)[] = []

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close()
})

function open(config: object = {}): Pool {
  const pool = new Pool({ connectionString: url, ...config })
  closing.push(() => pool.end())
  return pool
}

async function connected(): Promise<Client> {
  const client = new Client(url)
  closing.push(() => client.end())
  await client.connect()
  return client
}

const admin = new Pool({ connectionString: url })
beforeAll(async () => {
  await admin.query(`CREATE TABLE ${table} (id integer PRIMARY KEY, name varchar(8))`)
})
afterAll(async () => {
  await admin.query(`DROP TABLE ${table}`)
  await admin.end()
})

const ask = (target: Pool | ClientBase) =>
  target.query('SELECT $1::text AS answer', ['s3cret']).then(({ rows }) => rows)

const common = {
  trace: tracePg,
  result: [{ answer: 's3cret' }],
  name: 'SELECT',
  attributes: {
    'db.system.name': 'postgresql',
    'db.namespace': database,
    'db.query.text': 'SELECT $1::text AS answer',
    'db.query.summary': 'SELECT',
    'server.address': new URL(url).hostname,
  },
  failure: { type: '42P01', rejects: true },
  scope: '@throughline/pg',
  ignoredText: 'SELECT $1::text AS answer',
  secret: 's3cret',
}

clientContract<Pool>('pg, a Pool,', {
  ...common,
  async open() {
    const pool = new Pool({ connectionString: url, max: 3 })
    return { target: pool, close: () => pool.end() }
  },
  call: ask,
  overrides: ['query', 'connect', 'emit'],
  callBack(pool, done) {
    pool.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
  },
  fail: (pool) => pool.query('SELECT * FROM nowhere'),
})

clientContract<Client>('pg, a Client,', {
  ...common,
  async open() {
    const client = new Client(url)
    await client.connect()
    return { target: client, close: () => client.end() }
  },
  call: ask,
  // There is no other way to see the end of a query that a client answers with a promise.
  promises: 1,
  overrides: ['query'],
  callBack(client, done) {
    client.query('SELECT $1::text AS answer', ['s3cret'], (error, result) => done(error, result?.rows))
  },
  fail: (client) => client.query('SELECT * FROM nowhere'),
})

describe('a query is one span in every form that pg knows', () => {
  type Done = (error: Error | null, result: QueryResult) => void
  const text = 'SELECT $1::int AS answer'
  const forms: [string, (target: ClientBase, done: Done) => unknown][] = [
    ['text, values, callback', (target, done) => target.query(text, [42], done)],
    ['text, callback', (target, done) => target.query('SELECT 42 AS answer', done)],
    ['config, callback', (target, done) => target.query({ text, values: [42] }, done)],
    ['config, values, callback', (target, done) => target.query({ text } as never, [42], done)],
    ['text, values', (target, done) => target.query(text, [42]).then((result) => done(null, result))],
    [
      'config, values',
      (target, done) => target.query({ text } as QueryConfig, [42]).then((result) => done(null, result)),
    ],
    [
      'named',
      (target, done) => target.query({ name: 'q', text, values: [42] }).then((result) => done(null, result)),
    ],
  ]

  describe.each([
    ['a Pool', async () => open() as unknown as ClientBase],
    ['a Client', connected],
    [
      'a client of a Pool',
      async () => {
        const client = await tracePg(open()).connect()
        closing.push(() => client.release())
        return client
      },
    ],
  ] as [string, () => Promise<ClientBase>][])('of %s', (_, opened) => {
    test.each(forms)('%s', async (_form, query) => {
      const recording = record()
      const target = tracePg(await opened())
      const result = await span(
        'caller',
        () =>
          new Promise<QueryResult>((resolve, reject) => {
            query(target, (error, answer) => (error ? reject(error) : resolve(answer)))
          }),
      )
      expect(result.rows).toEqual([{ answer: 42 }])
      const [call, caller] = await recording.all(2)
      expect(call?.name).toBe('SELECT')
      expect(parentOf(call)).toBe(caller?.spanContext().spanId)
    })
  })

  test('with the callback in the config, which stays as the app made it', async () => {
    const recording = record()
    const client = tracePg(await connected())
    const answered = vi.fn<() => void>()
    const config = { text: 'SELECT 42 AS answer', callback: answered }
    for (const times of [1, 2]) {
      expect(client.query(config)).toBeUndefined()
      await recording.all(times)
      expect(config.callback).toBe(answered)
    }
    expect(answered).toHaveBeenCalledTimes(2)
  })

  test('with a config object of a class of the app', async () => {
    const recording = record()
    class Statement {
      get text() {
        return 'SELECT 42 AS answer'
      }
    }
    expect((await tracePg(open()).query(new Statement())).rows).toEqual([{ answer: 42 }])
    await recording.all(1)
  })

  test('with a prepared statement that is run by its name', async () => {
    const recording = record()
    const client = tracePg(await connected())
    await client.query('PREPARE by_name AS SELECT 42 AS answer')
    await client.query('EXECUTE by_name')
    expect(recording.spans.map(({ attributes }) => attributes['db.query.text'])).toEqual([
      'PREPARE by_name AS SELECT ? AS answer',
      'EXECUTE by_name',
    ])
  })

  test('of several statements, whose results are a list', async () => {
    const recording = record()
    const pool = tracePg(open(), {
      attributes: (_, result) => ({ results: Array.isArray(result) ? result.length : 0 }),
    })
    await pool.query('SELECT 1; SELECT 2')
    expect((await recording.all(1))[0]?.attributes).toMatchObject({
      results: 2,
      'db.query.text': 'SELECT ?; SELECT ?',
    })
  })

  test('but a Submittable, which has a life of its own, passes unharmed without one', async () => {
    const recording = record()
    const pool = tracePg(open())
    const ofPool = await pool.connect()
    closing.push(() => ofPool.release())
    for (const target of [tracePg(await connected()), ofPool]) {
      const query = new Query('SELECT 42 AS answer')
      const rows: unknown[] = []
      query.on('row', (row) => rows.push(row))
      expect(target.query(query)).toBe(query)
      await once(query, 'end')
      expect(rows).toEqual([{ answer: 42 }])
    }
    expect(recording.spans).toEqual([])
  })

  test('but what pg refuses at once is refused as before, without one', async () => {
    const recording = record()
    const client = tracePg(await connected())
    expect(() => client.query(null as never)).toThrow('Client was passed a null or undefined query')
    const error = await new Promise((resolve) => tracePg(open()).query(resolve as never))
    expect(error).toMatchObject({ message: expect.stringContaining('Passing a function') })
    expect(recording.spans).toEqual([])
  })
})

describe('a Pool', () => {
  test('whose only connection is busy runs each query, and each callback, in the trace of its caller', async () => {
    const recording = record()
    const pool = tracePg(open({ max: 1 }))
    const held = await pool.connect()
    const queries = ['A', 'B', 'C'].map((name) =>
      span(name, async (caller) => {
        await pool.query(`SELECT '${name}'`)
        expect(trace.getActiveSpan()).toBe(caller)
      }),
    )
    const calledBack = ['D', 'E'].map((name) =>
      span(
        name,
        (caller) =>
          new Promise<void>((resolve) => {
            pool.query(`SELECT '${name}'`, () => {
              expect(trace.getActiveSpan()).toBe(caller)
              resolve()
            })
          }),
      ),
    )
    const checkedOut = span(
      'F',
      (caller) =>
        new Promise<void>((resolve) => {
          pool.connect((_error, client, release) => {
            expect(trace.getActiveSpan()).toBe(caller)
            client?.query('SELECT 1', () => {
              release()
              resolve()
            })
          })
        }),
    )
    await span('releaser', async () => held.release())
    await Promise.all([...queries, ...calledBack, checkedOut])

    const spans = await recording.all(13)
    const callers = spans.filter(({ name }) => /^[A-F]$/.test(name))
    const children = spans.filter(({ name }) => name === 'SELECT')
    expect(new Set(children.map(parentOf))).toEqual(
      new Set(callers.map((caller) => caller.spanContext().spanId)),
    )
  })

  test('traces the clients that it hands out, by promise and by callback, until it is untraced', async () => {
    const recording = record()
    const pool = tracePg(open({ max: 1 }))
    const client = await pool.connect()
    await client.query('SELECT 1')
    client.release()
    await new Promise<void>((resolve) => {
      pool.connect((_error, again, release) => {
        again?.query('SELECT 2', () => {
          release()
          resolve()
        })
      })
    })
    await recording.all(2)

    untrace(pool)
    const after = await pool.connect()
    await after.query('SELECT 3')
    after.release()
    await pool.query('SELECT 4')
    expect(recording.spans).toHaveLength(2)

    tracePg(pool, { ignore: 'SELECT 5' })
    const anew = await pool.connect()
    await anew.query('SELECT 5')
    await anew.query('SELECT 6')
    anew.release()
    await pool.query('SELECT 7')
    await recording.all(4)
  })

  test('traces clients that were connected before it was, and does not mind one that is traced by itself', async () => {
    const recording = record()
    const pool = open({ max: 1 })
    await pool.query('SELECT 1')
    tracePg(pool)
    const client = await pool.connect()
    await client.query('SELECT 2')
    await tracePg(client).query('SELECT 3')
    client.release()
    await pool.query('SELECT 4')
    await recording.all(3)
  })

  test('makes no span of a query that is ignored, though its releaser has a trace', async () => {
    const recording = record()
    const pool = tracePg(open({ max: 1 }), { requireParent: true })
    const held = await pool.connect()
    const waiting = pool.query('SELECT 1')
    await span('releaser', async () => held.release())
    await waiting
    expect((await recording.all(1))[0]?.name).toBe('releaser')
  })

  test('makes no spans of its connections, but of what the app asks on a new one', async () => {
    const recording = record()
    const pool = open({ max: 1 })
    pool.on('connect', (client: PoolClient) => void client.query("SET application_name TO 'app'"))
    tracePg(pool)
    await pool.query('SELECT 1')
    expect((await recording.all(2)).map(({ name }) => name).toSorted()).toEqual([
      'SELECT',
      'SET application_name',
    ])
  })

  test('has no more listeners than before', () => {
    const pool = tracePg(open())
    expect(pool.eventNames()).toEqual([])
  })

  test('of a class of the app may ask in its own way, and its spans end', async () => {
    const recording = record()
    class ByPromise extends Pool {
      // @ts-expect-error: of the many forms of query this class has one.
      override async query(text: string) {
        const client = await this.connect()
        try {
          return await client.query(text)
        } finally {
          client.release()
        }
      }
    }
    class ByCallback extends Pool {
      // @ts-expect-error: of the many forms of query this class has one.
      override query() {
        return new Promise<unknown>((resolve) => {
          this.connect((_error, _client, release) => {
            release()
            resolve('no query at all')
          })
        })
      }
    }
    for (const Ours of [ByPromise, ByCallback] as unknown as (typeof Pool)[]) {
      const pool = tracePg(new Ours({ connectionString: url }))
      closing.push(() => pool.end())
      await pool.query('SELECT 42')
    }
    expect((await recording.all(3)).map(({ name }) => name)).toEqual(['SELECT', 'SELECT', 'SELECT'])
  })

  test('can be one of a class of the app', async () => {
    const recording = record()
    class Ours extends Pool {
      answer() {
        return this.query('SELECT 42 AS answer')
      }
    }
    const pool = tracePg(new Ours({ connectionString: url }))
    closing.push(() => pool.end())
    expect((await pool.answer()).rows).toEqual([{ answer: 42 }])
    await recording.all(1)
  })
})

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

  test.each([
    ["SELECT 's3cret'::int", [], 'invalid input syntax for type integer: "?"'],
    ['SELECT $1::int', ['s3"cret" column "s3cret"'], 'invalid input syntax for type integer: "?"'],
    [`SELECT "nowhere" FROM ${table}`, [], 'column "nowhere" does not exist'],
    [
      `INSERT INTO ${table} (id) VALUES (NULL)`,
      [],
      `null value in column "id" of relation "${table}" violates not-null constraint`,
    ],
    ["SELECT * FROM 's3cret'", [], 'syntax error at or near "?"'],
    ['SELECT $1::json', ['{"s3cret"'], 'invalid input syntax for type json'],
  ])('says of %s %j what went wrong, but no value', async (text, values, message) => {
    const recording = record()
    const pool = tracePg(open())
    await expect(pool.query(text, values)).rejects.toBeInstanceOf(Error)
    const [failed] = await recording.all(1)
    expect(failed?.status.message).toBe(message)
    expect(JSON.stringify([failed?.name, failed?.status])).not.toContain('s3cret')
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
    closing.push(() => client.end())
    await expect(client.query('SELECT pg_sleep(0.1)')).rejects.toThrow('Query read timeout')
    expect((await recording.all(1))[0]?.status).toEqual({ code: 2, message: 'Query read timeout' })
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
      /expected a Pool or a Client of pg, received undefined; example: tracePg\(new Pool\(\)\)/,
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

function parentOf(child: ReadableSpan | undefined): string | undefined {
  return child?.parentSpanContext?.spanId
}
