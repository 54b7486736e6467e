import type { ReadableSpan } from '@throughline/core'
import { tracePg } from '@throughline/pg'
import { setTimeout as passed } from 'node:timers/promises'
import { Client, Pool, type PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, inject } from 'vitest'

// The real server, and what each file of tests opens on it.

export const url = inject('databaseUrl')
export const database = new URL(url).pathname.slice(1)
export const host = new URL(url).hostname
export const port = Number(new URL(url).port || 5432)

/** Of a connection that a test has broken, old versions of pg never tell the end. */
const MOST_MS_TO_CLOSE = 2000

const closing: (() => unknown)[] = []

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await Promise.race([close(), passed(MOST_MS_TO_CLOSE)])
})

/** Has this done after the test, before what was opened earlier is closed. */
export function after(close: () => unknown): void {
  closing.push(close)
}

export function open(config: object = {}): Pool {
  const pool = new Pool({ connectionString: url, ...config })
  after(() => pool.ended || pool.end())
  return pool
}

export async function connected(config: object = {}): Promise<Client> {
  const client = new Client({ connectionString: url, ...config })
  after(() => client.end())
  await client.connect()
  return client
}

/** A client of a traced Pool. */
export async function lent(): Promise<PoolClient> {
  const client = await tracePg(open()).connect()
  // A broken one is not to be lent again.
  after(() => client.release(true))
  return client
}

/** A table of this file's: `id integer PRIMARY KEY, name varchar(8)`. */
export function tableOf(name: string): string {
  const table = `pg_${name}_${process.pid}`
  const admin = new Pool({ connectionString: url })
  beforeAll(async () => {
    await admin.query(`CREATE TABLE ${table} (id integer PRIMARY KEY, name varchar(8))`)
  })
  afterAll(async () => {
    await admin.query(`DROP TABLE ${table} CASCADE`)
    await admin.end()
  })
  return table
}

export function parentOf(child: ReadableSpan | undefined): string | undefined {
  return child?.parentSpanContext?.spanId
}
