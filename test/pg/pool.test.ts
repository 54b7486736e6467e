import { trace } from '@opentelemetry/api'
import { span, untrace } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { EventEmitter } from 'node:events'
import { Client, Pool, type PoolClient } from 'pg'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { after, open, parentOf, url } from './database.ts'

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
      after(() => pool.end())
      await pool.query('SELECT 42')
    }
    expect((await recording.all(3)).map(({ name }) => name)).toEqual(['SELECT', 'SELECT', 'SELECT'])
  })

  test('of a class of the app that asks twice for one query has a span for each', async () => {
    const recording = record()
    class Twice extends Pool {
      // @ts-expect-error: of the many forms of query this class has one.
      override query(text: string) {
        return new Promise<unknown>((resolve) => {
          this.connect((_error, client, release) => {
            client?.query(text, () => {})
            client?.query(`${text} + 1`, (_failed, result) => {
              release()
              resolve(result.rows)
            })
          })
        })
      }
    }
    const pool: Pool = tracePg(new Twice({ connectionString: url }) as unknown as Pool)
    after(() => pool.end())
    await pool.query('SELECT 1')
    const texts = (await recording.all(2)).map(({ attributes }) => attributes['db.query.text'])
    expect(texts).toEqual(['SELECT ?', 'SELECT ? + ?'])
  })

  test.each<[string, (query: () => Promise<unknown>) => Promise<unknown>, number]>([
    ['in its own time', (query) => Promise.resolve().then(query), 1],
    ['once more where it fails', (query) => query().catch(query), 2],
  ])('of a class of the app that asks %s has a span for each query', async (_title, ask, count) => {
    const recording = record()
    class Ours extends Pool {
      // @ts-expect-error: of the many forms of query this class has one.
      override query(text: string) {
        return ask(() => super.query(text))
      }
    }
    const pool: Pool = tracePg(new Ours({ connectionString: url, max: 1 }) as unknown as Pool)
    after(() => pool.end())
    const text = count === 1 ? 'SELECT 1' : 'SELECT 1 / 0'
    await span('caller', () => Promise.all([pool.query(text), pool.query(text)])).catch(() => {})
    await pool.query('SELECT 2').catch(() => {})
    const spans = await recording.all(2 * count + 2)
    const caller = spans.find(({ name }) => name === 'caller')
    const below = spans.filter((each) => parentOf(each) === caller?.spanContext().spanId)
    expect(below).toHaveLength(2 * count)
  })

  test('can have clients of a class of the app, which have their query each for itself', async () => {
    const recording = record()
    class Own extends EventEmitter {
      readonly #client = new Client({ connectionString: url })
      readonly connect = this.#client.connect.bind(this.#client)
      readonly query = this.#client.query.bind(this.#client)
      readonly end = this.#client.end.bind(this.#client)
    }
    const pool = tracePg(open({ Client: Own }))
    expect((await pool.query('SELECT 42 AS answer')).rows).toEqual([{ answer: 42 }])
    const client = await pool.connect()
    after(() => client.release(true))
    await client.query('SELECT 1')
    await recording.all(2)
  })

  test('lends what has no query, as before', async () => {
    class Silent extends EventEmitter {
      connect(done: () => void) {
        setImmediate(done)
      }
      end(done?: () => void) {
        done?.()
      }
    }
    const pool = tracePg(open({ Client: Silent }))
    const client = await pool.connect()
    expect(client).toBeInstanceOf(Silent)
    client.release()
  })

  test('can be one of a class of the app', async () => {
    const recording = record()
    class Ours extends Pool {
      answer() {
        return this.query('SELECT 42 AS answer')
      }
    }
    const pool = tracePg(new Ours({ connectionString: url }))
    after(() => pool.end())
    expect((await pool.answer()).rows).toEqual([{ answer: 42 }])
    await recording.all(1)
  })
})
