import { context } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { tracePg, type PgOptions } from '@throughline/pg'
import { from as copyFrom } from 'pg-copy-streams'
import { describe, expect, test } from 'vitest'
import { expectNoQuadraticGrowth } from '../growth.ts'
import { record } from '../recording.ts'
import { connected, open, tableOf } from './database.ts'

const table = tableOf('message')

/** What stands for a value in everything below. */
const SECRET = 's3cret'

/** What is asked, with which values, and what the span may say of it. */
const REFUSED: readonly (readonly [text: string, values: readonly unknown[], message: string])[] = [
  // Values.
  [`SELECT '${SECRET}'::int`, [], 'invalid input syntax for type integer: "?"'],
  ['SELECT $1::int', [`${SECRET}" column "${SECRET}"`], 'invalid input syntax for type integer: "?"'],
  ['SELECT $1::int', [`relation "${SECRET}"`], 'invalid input syntax for type integer: "?"'],
  ['SELECT $1::int', [`\n"${SECRET}`], 'invalid input syntax for type integer: "?"'],
  ['SELECT $1::int', [''], 'invalid input syntax for type integer: "?"'],
  ['SELECT $1::uuid', [SECRET], 'invalid input syntax for type uuid: "?"'],
  ['SELECT $1::bool', [SECRET], 'invalid input syntax for type boolean: "?"'],
  ['SELECT $1::date', ['2020-13-45'], 'date/time field value out of range: "?"'],
  ['SELECT $1::int', ['99999999999'], 'value "?" is out of range for type integer'],
  ['SELECT $1::int[]', [`{${SECRET}`], 'malformed array literal: "?"'],
  ['SELECT $1::int4range', [SECRET], 'malformed range literal: "?"'],
  ['SELECT $1::json', [`{"${SECRET}"`], 'invalid input syntax for type json'],
  ['SELECT $1::tsquery', [`${SECRET} & &`], 'syntax error in tsquery: "?"'],
  ['SELECT $1::bit(3)', [`10${SECRET}`], '"?" is not a valid binary digit'],
  ["SELECT to_date($1, 'YYYY')", [SECRET], 'invalid value "?"'],
  ["SELECT jsonb_set('[1]', $1, '1')", [`{${SECRET}}`], 'path element at position 1 is not an integer: "?"'],
  // Values that the server does not quote.
  ['SELECT make_date(2020, 13, $1)', [4], 'date field value out of range: ?'],
  ['SELECT make_time(25, $1, 4.5)', [1], 'time field value out of range: ?'],
  ["SELECT get_byte('abc', $1)", [4711], 'index ? out of valid range, ?'],
  [
    "SELECT convert_from($1, 'UTF8')",
    [Buffer.from([0xc3, 0x28])],
    'invalid byte sequence for encoding "?": ?',
  ],
  ['SELECT $1::text', ['a\0b'], 'invalid byte sequence for encoding "?": ?'],
  [`SET work_mem = '${SECRET}'`, [], 'invalid value for parameter "?"'],
  [`SELECT '${SECRET}' '${SECRET}'`, [], 'syntax error at or near "?"'],
  [`SELECT * FROM '${SECRET}'`, [], 'syntax error at or near "?"'],
  [`SELECT $tag$${SECRET}`, [], 'unterminated dollar-quoted string at or near "?"'],
  [`SELECT "${SECRET}`, [], 'unterminated quoted identifier at or near "?"'],
  [`SELECT 12${SECRET}`, [], 'trailing junk after numeric literal at or near "?"'],
  ['EXECUTE nothing', [], 'prepared statement "?" does not exist'],
  [
    `COPY ${table} FROM '/nowhere/${SECRET}'`,
    [],
    'could not open file "?" for reading: No such file or directory',
  ],
  [
    `INSERT INTO ${table} VALUES (1, '${SECRET} ${SECRET}')`,
    [],
    'value too long for type character varying(8)',
  ],
  // Names.
  ['SELECT * FROM nowhere', [], 'relation "nowhere" does not exist'],
  ['SELECT * FROM no.where', [], 'relation "no.where" does not exist'],
  [`SELECT nothing FROM ${table}`, [], 'column "nothing" does not exist'],
  [`SELECT x.id FROM ${table}`, [], 'missing FROM-clause entry for table "x"'],
  [`SELECT id FROM ${table} a, ${table} b`, [], 'column reference "id" is ambiguous'],
  [`INSERT INTO ${table} (nothing) VALUES (1)`, [], `column "nothing" of relation "${table}" does not exist`],
  [
    `INSERT INTO ${table} (id) VALUES (NULL)`,
    [],
    `null value in column "id" of relation "${table}" violates not-null constraint`,
  ],
  [`CREATE TABLE ${table} (a int)`, [], `relation "${table}" already exists`],
  ['SELECT 1::nothing', [], 'type "nothing" does not exist'],
  [
    `ALTER TABLE ${table} DROP CONSTRAINT nothing`,
    [],
    `constraint "nothing" of relation "${table}" does not exist`,
  ],
  ['DROP INDEX nothing', [], 'index "nothing" does not exist'],
  ['DROP SEQUENCE nothing', [], 'sequence "nothing" does not exist'],
  ['DROP VIEW nothing', [], 'view "nothing" does not exist'],
  ['DROP SCHEMA nothing', [], 'schema "nothing" does not exist'],
  ['SET ROLE nobody', [], 'role "nobody" does not exist'],
  ['ALTER DATABASE nothing SET a.b = 1', [], 'database "nothing" does not exist'],
  ["SELECT nothing('x')", [], 'function nothing(unknown) does not exist'],
  // What functions of the app say: nobody knows what of it is a name.
  [`DO $$ BEGIN RAISE EXCEPTION 'no such user "%"', '${SECRET}'; END $$`, [], 'no such user "?"'],
  ["DO $$ BEGIN RAISE EXCEPTION 'card 4111111111111111 refused'; END $$", [], 'card ? refused'],
  [
    `DO $$ BEGIN RAISE EXCEPTION 'no such role "%"', '${SECRET}' USING ERRCODE = '22023'; END $$`,
    [],
    'no such role "?"',
  ],
  [`DO $$ BEGIN ASSERT false, 'no such user "${SECRET}"'; END $$`, [], 'no such user "?"'],
]

test.each(REFUSED)('of %s %j the span says what went wrong, but no value', async (text, values, message) => {
  const recording = record()
  const client = tracePg(await connected())
  const error = await client.query(text, [...values]).catch((refused: unknown) => refused)
  expect(error).toMatchObject({ code: expect.stringMatching(/^[0-9A-Z]{5}$/) })
  const [failed] = await recording.all(1)
  expect(failed?.status).toEqual({ code: 2, message })
  expect(JSON.stringify([failed?.name, failed?.status, failed?.events])).not.toContain(SECRET)
})

test('what violates a constraint has the name of the constraint, and nothing of the row', async () => {
  const recording = record()
  const client = tracePg(await connected())
  await client.query(`CREATE TEMP TABLE parents (id int PRIMARY KEY, name text CHECK (name <> '${SECRET}'))`)
  await client.query(
    'CREATE TEMP TABLE children (parent int REFERENCES parents (id), CONSTRAINT mine CHECK (parent > 0))',
  )
  await client.query('INSERT INTO parents VALUES (1)')
  const seen: unknown[] = []
  for (const text of [
    'INSERT INTO parents VALUES (1)',
    `INSERT INTO parents VALUES (2, '${SECRET}')`,
    'INSERT INTO children VALUES (77)',
    'INSERT INTO children VALUES (-77)',
    'DELETE FROM parents; INSERT INTO children VALUES (77)',
  ]) {
    const { detail } = (await client.query(text).catch((error: unknown) => error)) as { detail: string }
    expect(detail).toMatch(/^(Key|Failing row)/)
    const last = recording.spans.at(-1)
    expect(JSON.stringify([last?.status, last?.attributes, last?.events])).not.toContain(detail)
    seen.push(last?.status.message)
  }
  expect(seen).toEqual([
    'duplicate key value violates unique constraint "parents_pkey"',
    'new row for relation "parents" violates check constraint "parents_name_check"',
    'insert or update on table "children" violates foreign key constraint "children_parent_fkey"',
    'new row for relation "children" violates check constraint "mine"',
    'insert or update on table "children" violates foreign key constraint "children_parent_fkey"',
  ])
})

test('detail, where and internalQuery never leave, and the error of the app has them', async () => {
  const recording = record()
  const pool = tracePg(open())
  const error = await pool
    .query(`DO $$ BEGIN EXECUTE 'SELECT 1 FROM nowhere WHERE a = ''${SECRET}'''; END $$`)
    .catch((refused: unknown) => refused)
  expect(error).toMatchObject({
    internalQuery: expect.stringContaining(SECRET),
    where: expect.stringContaining('PL/pgSQL'),
  })
  const [failed] = await recording.all(1)
  const shown = JSON.stringify([failed?.name, failed?.status, failed?.attributes, failed?.events])
  expect(shown).toContain('relation \\"nowhere\\" does not exist')
  expect(shown).not.toMatch(/s3cret|PL\/pgSQL/)
})

test('why the app gives up a COPY is for the server, and not for the span', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const copy = client.query(copyFrom(`COPY ${table} FROM STDIN`))
  copy.on('error', () => {})
  await new Promise((resolve) => copy.write('1\tone\n', resolve))
  copy.destroy(new Error(`the card "${SECRET}" of ${SECRET}`))
  const [call] = await recording.all(1)
  expect(call?.status).toEqual({ code: 2, message: 'COPY from stdin failed: ?' })
  expect(call?.attributes).toMatchObject({ 'error.type': '57014' })
})

test('what the client itself says of a value is masked whole', async () => {
  const recording = record()
  const client = tracePg(await connected())
  const types = { getTypeParser: () => (text: string) => JSON.parse(text) as unknown }
  const error = await client.query({ text: `SELECT '${SECRET}'`, types }).catch((failed: unknown) => failed)
  expect(error).toBeInstanceOf(SyntaxError)
  const [failed] = await recording.all(1)
  expect(failed?.attributes['error.type']).toBe('SyntaxError')
  expect(JSON.stringify([failed?.status, failed?.attributes])).not.toContain(SECRET)
})

test('of what has several lines, as libpq reports it, the first is shown, also where a value has several itself', async () => {
  const recording = record()
  const message = `no "${SECRET}\n${SECRET}" here, nor '${SECRET}'\nLINE 1: SELECT ${SECRET}`
  const pool = tracePg(
    open({ verify: (_client: unknown, done: (error: Error) => void) => done(new Error(message)) }),
  )
  await expect(pool.query('SELECT 1')).rejects.toThrow(message)
  expect((await recording.all(1))[0]?.status.message).toBe('no "?" here, nor "?"')
  await recording.stop()

  const again = record()
  const plain = 'no such thing\nLINE 1: SELECT 7'
  const other = tracePg(
    open({ verify: (_client: unknown, done: (error: Error) => void) => done(new Error(plain)) }),
  )
  await expect(other.query('SELECT 1')).rejects.toThrow(plain)
  expect((await again.all(1))[0]?.status.message).toBe('no such thing')
})

test.each<[string, PgOptions, (work: () => Promise<unknown>) => Promise<unknown>]>([
  ['that is ignored', { ignore: () => true }, (work) => work()],
  [
    'that is made where nothing is traced',
    {},
    (work) =>
      context.with(
        context.active().setValue(Symbol.for('OpenTelemetry SDK Context Key SUPPRESS_TRACING'), true),
        work,
      ),
  ],
])('a span around a query %s tells of its error without the values', async (_title, options, by) => {
  const recording = record()
  const pool = tracePg(open(), options)
  const failed = span('caller', () => by(() => pool.query(`SELECT '${SECRET}'::int`)))
  await expect(failed).rejects.toThrow(`invalid input syntax for type integer: "${SECRET}"`)
  const [caller] = await recording.all(1)
  expect(caller?.status.message).toBe('invalid input syntax for type integer: "?"')
  expect(JSON.stringify([caller?.status, caller?.events])).not.toContain(SECRET)
})

describe.each(['「', '」', '«', '"', "'", '」「', 'column "'])('a message full of %s', (mark) => {
  const raising = (count: number) =>
    `DO $do$ BEGIN RAISE EXCEPTION $it$no such user ${mark.repeat(count)}${SECRET}${mark}$it$; END $do$`

  test('does not show what is in between', async () => {
    const recording = record()
    const client = tracePg(await connected())
    await expect(client.query(raising(4000))).rejects.toThrow(SECRET)
    const [failed] = await recording.all(1)
    expect(JSON.stringify([failed?.status, failed?.events])).not.toContain(SECRET)
  })

  test('holds the process up no longer than other text', async () => {
    record()
    const client = tracePg(await connected())
    await expectNoQuadraticGrowth((count) => {
      const text = raising(count)
      return () => expect(client.query(text)).rejects.toThrow(SECRET)
    }, 4000)
  }, 60_000)
})
