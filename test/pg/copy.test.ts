import { tracePg } from '@throughline/pg'
import { once } from 'node:events'
import { Readable, type Duplex } from 'node:stream'
import { text as textOf } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import type { Submittable } from 'pg'
import * as copies from 'pg-copy-streams'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { connected, lent, tableOf } from './database.ts'

const { from: copyFrom, to: copyTo } = copies
// Its typings do not know it.
const { both: copyBoth } = copies as unknown as { both(text: string): Duplex & Submittable }
const table = tableOf('copy')

describe.each([
  ['a Client', async () => tracePg(await connected())],
  ['a client of a Pool', lent],
])('on %s', (_, opened) => {
  test('COPY in both directions is a span that ends when the server is done', async () => {
    const recording = record()
    const client = await opened()
    await client.query(`TRUNCATE ${table}`)
    await recording.all(1)
    await pipeline(
      Readable.from(['1\tone\n', '2\ttwo\n']),
      client.query(copyFrom(`COPY ${table} FROM STDIN`)),
    )
    expect(await textOf(client.query(copyTo(`COPY ${table} TO STDOUT`)))).toBe('1\tone\n2\ttwo\n')
    const [, into, out] = await recording.all(3)
    expect(into).toMatchObject({ name: `COPY ${table}`, status: { code: 0 } })
    expect(out).toMatchObject({ name: `COPY ${table}`, status: { code: 0 } })
    expect(out?.attributes).toMatchObject({ 'db.query.text': `COPY ${table} TO STDOUT` })
  })

  test('a COPY that is destroyed, or refused, ends its span in error', async () => {
    const recording = record()
    const client = await opened()
    const copy = client.query(copyFrom(`COPY ${table} FROM STDIN`))
    copy.write('7\tseven\n')
    copy.destroy(new Error('of the app'))
    await once(copy, 'error')
    expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'error.type': '57014' })
    const refused = client.query(copyTo('COPY nowhere TO STDOUT'))
    await expect(textOf(refused)).rejects.toMatchObject({ code: '42P01' })
    expect((await recording.all(2))[1]?.attributes).toMatchObject({ 'error.type': '42P01' })
  })

  test('a COPY out that the app destroys ends its span', async () => {
    const recording = record()
    const client = await opened()
    const copy = client.query(copyTo(`COPY (SELECT generate_series(1, 200000)) TO STDOUT`))
    // The library tells it of the end of its connection all the same.
    copy.on('error', () => {})
    await once(copy, 'data')
    expect(recording.spans).toEqual([])
    copy.destroy()
    await recording.all(1)
  })

  test('a COPY out that the app destroys with an error ends its span in that error', async () => {
    const recording = record()
    const client = await opened()
    const copy = client.query(copyTo(`COPY (SELECT generate_series(1, 200000)) TO STDOUT`))
    copy.on('error', () => {})
    await once(copy, 'data')
    copy.destroy(new TypeError('of the app'))
    const [call] = await recording.all(1)
    expect(call).toMatchObject({
      status: { code: 2, message: 'of the app' },
      attributes: { 'error.type': 'TypeError' },
    })
  })
})

test('a COPY in both directions, as of a replication, is a span until its connection is closed', async () => {
  const recording = record()
  const admin = await connected()
  const client = tracePg(await connected({ replication: 'database' }))
  const { rows } = await client.query('IDENTIFY_SYSTEM')
  const { xlogpos } = rows[0] as { xlogpos: string }
  const stream = client.query(copyBoth(`START_REPLICATION PHYSICAL ${xlogpos}`))
  stream.on('error', () => {})
  // Something to tell of.
  await Promise.all([once(stream, 'data'), admin.query(`INSERT INTO ${table} VALUES (9)`)])
  expect(recording.spans).toHaveLength(1)
  await client.end()
  const [, copy] = await recording.all(2)
  expect(copy).toMatchObject({ status: { code: 2, message: 'Connection terminated' } })
})
