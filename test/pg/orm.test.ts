import { PrismaPg } from '@prisma/adapter-pg'
import { span, type ReadableSpan } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, varchar } from 'drizzle-orm/pg-core'
import knex from 'knex'
import { DataSource, EntitySchema } from 'typeorm'
import type { PostgresDriver } from 'typeorm/driver/postgres/PostgresDriver.js'
import { expect, test } from 'vitest'
import { record, type Recording } from '../recording.ts'
import { after, open, parentOf, tableOf, url } from './database.ts'

const table = tableOf('orm')

/** The spans of what is run under a span of the app's, in order; the span of each is a child of the app's. */
async function within(recording: Recording, run: () => unknown): Promise<ReadableSpan[]> {
  await span('caller', run)
  const caller = await recording.span(({ name }) => name === 'caller')
  const calls = recording.spans.filter((each) => each !== caller)
  for (const call of calls) expect(parentOf(call)).toBe(caller.spanContext().spanId)
  return calls
}

const texts = (spans: readonly ReadableSpan[]) => spans.map(({ attributes }) => attributes['db.query.text'])
const names = (spans: readonly ReadableSpan[]) => spans.map(({ name }) => name)

test('drizzle-orm on a traced Pool: queries, prepared statements, transactions', async () => {
  const recording = record()
  const db = drizzle(tracePg(open()))
  const things = pgTable(table, { id: integer('id').primaryKey(), name: varchar('name') })
  const calls = await within(recording, async () => {
    await db.delete(things)
    await db.transaction(async (transaction) => {
      await transaction.insert(things).values({ id: 1, name: 'one' })
    })
    const rows = await db
      .select()
      .from(things)
      .where(sql`${things.id} = ${1}`)
      .prepare('one')
      .execute()
    expect(rows).toEqual([{ id: 1, name: 'one' }])
  })
  expect(names(calls)).toEqual([
    `delete "${table}"`,
    'begin',
    `insert "${table}"`,
    'commit',
    `select "${table}"`,
  ])
  expect(texts(calls)[4]).toBe(`select "id", "name" from "${table}" where "${table}"."id" = $1`)
})

test('knex with each of its connections traced as it is made: queries, transactions, streams', async () => {
  const recording = record()
  const db = knex({
    client: 'pg',
    connection: url,
    pool: {
      min: 0,
      max: 2,
      afterCreate: (client: Parameters<typeof tracePg>[0], done: (error: unknown, client: unknown) => void) =>
        done(null, tracePg(client)),
    },
  })
  after(() => db.destroy())
  const calls = await within(recording, async () => {
    await db(table).del()
    await db.transaction((transaction) => transaction(table).insert({ id: 1, name: 'one' }))
    expect(await db(table).where('id', 1)).toEqual([{ id: 1, name: 'one' }])
    const rows: unknown[] = []
    for await (const row of db(table).stream()) rows.push(row)
    expect(rows).toHaveLength(1)
  })
  expect(names(calls)).toEqual([
    `delete "${table}"`,
    'BEGIN',
    `insert "${table}"`,
    'COMMIT',
    `select "${table}"`,
    `select "${table}"`,
  ])
  expect(texts(calls)[4]).toBe(`select * from "${table}" where "id" = $1`)
})

test('knex writes the query into the message of its error, and no span tells of that', async () => {
  const recording = record()
  const db = knex({
    client: 'pg',
    connection: url,
    pool: {
      afterCreate: (client: Parameters<typeof tracePg>[0], done: (error: unknown, client: unknown) => void) =>
        done(null, tracePg(client)),
    },
  })
  after(() => db.destroy())
  const failed = span('caller', () => db(table).insert({ id: 1, name: db.raw("'s3cret'::int") }))
  await expect(failed).rejects.toThrow(/insert into .* - invalid input syntax for type integer: "s3cret"$/)
  const caller = await recording.span(({ name }) => name === 'caller')
  expect(caller.status.message).toBe('invalid input syntax for type integer: "?"')
  expect(JSON.stringify(recording.spans.map(({ status, events }) => [status, events]))).not.toContain(
    's3cret',
  )
})

test('TypeORM with its pool traced once it is connected: repositories and transactions', async () => {
  const recording = record()
  const Thing = new EntitySchema<{ id: number; name: string }>({
    name: 'Thing',
    tableName: table,
    columns: { id: { type: Number, primary: true }, name: { type: String } },
  })
  const source = await new DataSource({ type: 'postgres', url, entities: [Thing] }).initialize()
  after(() => source.destroy())
  tracePg((source.driver as PostgresDriver).master)
  const things = source.getRepository(Thing)
  const calls = await within(recording, async () => {
    await things.clear()
    await source.transaction((manager) => manager.insert(Thing, { id: 1, name: 'one' }))
    expect(await things.findOneBy({ id: 1 })).toEqual({ id: 1, name: 'one' })
  })
  expect(names(calls)).toEqual([
    `TRUNCATE "${table}"`,
    expect.stringMatching(/^(BEGIN|START TRANSACTION)$/),
    `INSERT "${table}"`,
    'COMMIT',
    `SELECT "${table}"`,
  ])
})

test('TypeORM with replication reads by pools of their own, traced each', async () => {
  const recording = record()
  const replication = { master: { url }, slaves: [{ url }, { url }] }
  const source = await new DataSource({ type: 'postgres', replication }).initialize()
  after(() => source.destroy())
  const { master, slaves } = source.driver as PostgresDriver
  for (const pool of [master, ...slaves]) tracePg(pool)
  const calls = await within(recording, async () => {
    const reading = source.createQueryBuilder().select('relname').from('pg_class', 'c').limit(1)
    expect(await reading.getRawMany()).toHaveLength(1)
    await source.query('SELECT 1')
  })
  expect(names(calls)).toEqual(['SELECT "pg_class"', 'SELECT'])
})

test('Prisma’s adapter on a traced Pool: queries and transactions', async () => {
  const recording = record()
  const adapter = await new PrismaPg(tracePg(open())).connect()
  after(() => adapter.dispose())
  const text = `SELECT $1::int AS answer`
  const calls = await within(recording, async () => {
    const { rows } = await adapter.queryRaw({
      sql: text,
      args: [42],
      argTypes: [{ scalarType: 'int', arity: 'scalar' }],
    })
    expect(rows).toEqual([[42]])
    const transaction = await adapter.startTransaction()
    await transaction.executeRaw({ sql: `DELETE FROM ${table}`, args: [], argTypes: [] })
    // The adapter leaves what ends a transaction to Prisma's engine.
    await transaction.executeRaw({ sql: 'COMMIT', args: [], argTypes: [] })
    await transaction.commit()
  })
  expect(names(calls)).toEqual(['SELECT', 'BEGIN', `DELETE ${table}`, 'COMMIT'])
  expect(texts(calls)[0]).toBe(text)
})
