import { span } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import type { Socket } from 'node:net'
import type { Client, ClientBase, QueryConfig, QueryResult } from 'pg'
import { describe, expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { after, connected, open, parentOf } from './database.ts'

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
        after(() => client.release())
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

  test('but what pg refuses at once is refused as before, without one', async () => {
    const recording = record()
    const client = tracePg(await connected())
    expect(() => client.query(null as never)).toThrow('Client was passed a null or undefined query')
    const error = await new Promise((resolve) => tracePg(open()).query(resolve as never))
    expect(error).toMatchObject({ message: expect.stringContaining('Passing a function') })
    expect(recording.spans).toEqual([])
  })
})

test('a query sends no more than it did, with whatever options', async () => {
  record()
  const messages = async (client: Client) => {
    const { stream } = (client as unknown as { connection: { stream: Socket } }).connection
    const written = vi.spyOn(stream, 'write')
    await client.query('SELECT 1')
    await client.query('SELECT $1::int', [1])
    await client.query({ name: 'one', text: 'SELECT $1::int', values: [1] })
    // The kind of a message is its first character.
    return written.mock.calls.map(([chunk]) => String.fromCharCode((chunk as Buffer)[0] ?? 0))
  }
  const bare = await messages(await connected())
  expect(bare.length).toBeGreaterThan(2)
  for (const options of [{}, { sqlcomment: true, connectSpans: true, parameters: true }] as const) {
    expect(await messages(tracePg(await connected(), options))).toEqual(bare)
  }
})
