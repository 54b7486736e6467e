import { propagation, trace } from '@opentelemetry/api'
import { formatTraceparent, span } from '@throughline/core'
import { tracePg, type PgOptions } from '@throughline/pg'
import type { Client } from 'pg'
import Cursor from 'pg-cursor'
import { describe, expect, test, vi } from 'vitest'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { connected, open } from './database.ts'

/** What the server itself says it was asked. */
const ASKED = 'SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()'

async function traced(sqlcomment: PgOptions['sqlcomment'] = true): Promise<Client> {
  return tracePg(await connected(), { sqlcomment })
}

test('the server sees the trace context of the span behind the text, and the span shows the text without', async () => {
  const recording = record()
  const client = await traced()
  const { rows } = await client.query(ASKED)
  const [call] = await recording.all(1)
  const traceparent = formatTraceparent(call?.spanContext() as never)
  expect(rows).toEqual([{ query: `${ASKED} /*traceparent='${traceparent}'*/` }])
  expect(call?.attributes['db.query.text']).toBe(ASKED)
})

test.each([
  ['text with values', (client: Client) => client.query(`${ASKED} AND $1`, [true])],
  ['a config object', (client: Client) => client.query({ text: ASKED })],
  ['a config object that is frozen', (client: Client) => client.query(Object.freeze({ text: ASKED }))],
  [
    'a callback',
    (client: Client) =>
      new Promise<{ rows: unknown[] }>((resolve) => {
        client.query(ASKED, (_error, result) => resolve(result))
      }),
  ],
  [
    'a class of the app’s',
    (client: Client) => {
      class Statement {
        get text() {
          return ASKED
        }
      }
      return client.query(new Statement())
    },
  ],
])('so it is for %s', async (_, ask) => {
  record()
  expect((await ask(await traced())).rows).toEqual([
    {
      query: expect.stringMatching(
        /^SELECT query [^/]* \/\*traceparent='00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]'\*\/$/,
      ),
    },
  ])
})

test('so it is for a Pool', async () => {
  record()
  const pool = tracePg(open(), { sqlcomment: true })
  expect((await pool.query(ASKED)).rows).toEqual([{ query: expect.stringContaining("/*traceparent='00-") }])
})

test('the config object of the app is not written to', async () => {
  record()
  const client = await traced()
  const config = { text: ASKED, rowMode: 'array' as const }
  const { rows } = await client.query(config)
  expect(rows).toEqual([[expect.stringContaining('traceparent')]])
  expect(config).toEqual({ text: ASKED, rowMode: 'array' })
})

test('the tags are those that the app returns, encoded and in the order of their names', async () => {
  record()
  const client = await traced(() => ({
    route: "/users/:id'*/; DROP TABLE users",
    'a b': 7,
    application: 'shop & café!()',
    none: undefined,
    empty: '',
    half: '\ud800',
  }))
  expect((await client.query(ASKED)).rows).toEqual([
    {
      query:
        `${ASKED} /*a%20b='7',application='shop%20%26%20caf%C3%A9%21%28%29',half='%EF%BF%BD',` +
        `route='%2Fusers%2F%3Aid%27%2A%2F%3B%20DROP%20TABLE%20users'*/`,
    },
  ])
})

test('tracestate goes along, encoded; baggage, which is private, stays', async () => {
  record()
  const client = await traced()
  const parent = { traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 1, isRemote: true }
  const carrier = {
    traceparent: formatTraceparent(parent),
    tracestate: 'congo=t61,rojo=00f0',
    baggage: 'user=lovelace',
  }
  const { context } = await import('@opentelemetry/api')
  const within = propagation.extract(context.active(), carrier)
  const { rows } = await context.with(within, () => client.query(ASKED))
  const [{ query }] = rows as [{ query: string }]
  expect(query).toMatch(/,tracestate='congo%3Dt61%2Crojo%3D00f0'\*\/$/)
  expect(query).not.toContain('lovelace')
})

describe('there is no comment', () => {
  test('for a named statement, which the server plans once', async () => {
    record()
    const { rows } = await (await traced()).query({ name: 'mine', text: ASKED })
    expect(rows).toEqual([{ query: ASKED }])
  })

  test.each([`${ASKED} -- mine`, `/* mine */ ${ASKED}`, `${ASKED} /* mine */`, `${ASKED} /* a /* b */ */`])(
    'behind %j, which has one',
    async (text) => {
      record()
      expect((await (await traced()).query(text)).rows).toEqual([{ query: text.trimEnd() }])
    },
  )

  test.each([
    `${ASKED} AND '-- mine' <> '/* mine */'`,
    `${ASKED} AND $$-- mine$$ <> $a$/* mine$a$`,
    `SELECT query AS "/* mine */" FROM pg_stat_activity WHERE pid = pg_backend_pid()`,
    `${ASKED} AND E'\\'--' <> ''`,
    `${ASKED};`,
  ])('but behind %j, which has none', async (text) => {
    record()
    const [row] = (await (await traced()).query(text)).rows as Record<string, string>[]
    expect(Object.values(row ?? {})[0]).toBe(`${text} ${Object.values(row ?? {})[0]?.slice(text.length + 1)}`)
    expect(Object.values(row ?? {})[0]).toMatch(/ \/\*traceparent='[^']+'\*\/$/)
  })

  test('on what is not sampled, nor on what is ignored', async () => {
    const recording = record({ sampling: 0 })
    const client = await traced()
    expect((await client.query(ASKED)).rows).toEqual([{ query: ASKED }])
    await recording.stop()
    record()
    const ignoring = tracePg(await connected(), { sqlcomment: true, ignore: /pg_stat/ })
    expect((await ignoring.query(ASKED)).rows).toEqual([{ query: ASKED }])
  })

  test('on what is not sampled but measured', async () => {
    const measuring = measure()
    record({ sampling: 0 })
    const client = await traced(() => ({ route: '/a' }))
    expect((await client.query(ASKED)).rows).toEqual([{ query: ASKED }])
    await measuring.all('db.client.operation.duration', 1)
  })

  test('without any tag, without the option, with false, and where the app’s function throws', async () => {
    record()
    const said = vi.spyOn(console, 'error').mockImplementation(() => {})
    const broken = () => {
      throw new Error('of the app')
    }
    const unreadable = () => ({
      get a(): string {
        return broken()
      },
    })
    for (const option of [undefined, false, () => ({}), broken, unreadable, () => null as never] as const) {
      const client = tracePg(await connected(), { sqlcomment: option })
      expect((await client.query(ASKED)).rows).toEqual([{ query: ASKED }])
    }
    expect(said.mock.calls.flat().join()).toContain('the function given as sqlcomment threw')
  })

  test('in what submits itself, whose text is the app’s', async () => {
    record()
    const cursor = (await traced()).query(new Cursor(ASKED))
    expect(await cursor.read(1)).toEqual([{ query: ASKED }])
    expect(cursor).toMatchObject({ text: ASKED })
    await cursor.close()
  })
})

test('the function gets the span of the query', async () => {
  const recording = record()
  const seen: unknown[] = []
  const client = await traced((current) => {
    seen.push(current.spanContext().spanId)
    return {}
  })
  await span('caller', () => client.query('SELECT 1'))
  expect(seen).toEqual([(await recording.all(2))[0]?.spanContext().spanId])
  expect(trace.getActiveSpan()).toBeUndefined()
})
