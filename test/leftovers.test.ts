import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { expect, inject, test } from 'vitest'

// V8 clears its young space often and its old one seldom, and what is old keeps what it leads to, though it may be garbage itself.
// So a call that has ended must not be led to by anything that gets old: neither by what its library has made and
// abandoned, nor by a function of ours that was born old. Else all that it has is copied twice, which for a request that asks
// PostgreSQL, Redis and a service cost a tenth of what tracing costs it.

interface Leftovers {
  /** For each call. */
  bytes: number
  spans: number
}

const CALLS = 600
/** Of a call with all that it has there would be 330 to 1,100. */
const MOST_BYTES = 220
/** What is made to be held weighs somewhat more. */
const HELD_BYTES = 80
/** V8 makes functions old in code that it has not optimized, and has no reason here to collect anything by itself. */
const V8_FLAGS = [
  '--expose-gc',
  '--no-opt',
  '--no-maglev',
  '--min-semi-space-size=64',
  '--max-semi-space-size=64',
]

async function leftoversOf(client: string): Promise<Leftovers> {
  const urls = { postgres: inject('databaseUrl'), redis: inject('redisUrl') }
  const script = fileURLToPath(new URL('hot-path/leftovers.mjs', import.meta.url))
  const child = fork(script, [JSON.stringify({ client, urls })], {
    execArgv: V8_FLAGS,
    env: { PATH: process.env['PATH'] ?? '' },
  })
  const [told] = (await Promise.race([
    once(child, 'message'),
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`it ended with ${code}`))),
  ])) as [Leftovers]
  return told
}

test.each(['ioredis', 'a pipeline of ioredis', 'pg', 'fetch', 'an Agent of undici', 'node:http'])(
  'a call of %s leaves nothing that gets old',
  async (client) => {
    const { bytes, spans } = await leftoversOf(client)
    expect(spans).toBeGreaterThanOrEqual(CALLS)
    expect(bytes).toBeLessThan(MOST_BYTES)
  },
  60_000,
)

test('what gets old would be seen', async () => {
  const { bytes } = await leftoversOf('control')
  expect(bytes).toBeGreaterThan(HELD_BYTES)
})
