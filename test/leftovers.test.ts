import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { startCluster, type Servers } from './ioredis/servers.ts'

// V8 clears its young space often and its old one seldom, and what is old keeps what it leads to, though it may be garbage
// itself. So a call that has ended must not be led to by anything that gets old: neither by what its library has made and
// abandoned, nor by a function of ours that was born old. Else all that it has is copied twice, which for a request that asks
// PostgreSQL, Redis and a service cost a tenth of what tracing costs it.

interface Leftovers {
  /** For each call. */
  bytes: number
  spans: number
}

const CALLS = 600
/**
 * Of a query of PostgreSQL there would be 330, of the others 470 to 1,100: a call with all that it has. What may be left are
 * functions that stand behind those of others, and the `exec` of a pipeline.
 */
const MOST_BYTES = 280
/** V8 makes functions old in code that it has not optimized, and has no reason here to collect anything by itself. */
const V8_FLAGS = [
  '--expose-gc',
  '--no-opt',
  '--no-maglev',
  '--min-semi-space-size=64',
  '--max-semi-space-size=64',
]

let cluster: Servers

beforeAll(async () => {
  cluster = await startCluster(3)
})

afterAll(() => cluster?.stop())

async function leftoversOf(client: string): Promise<Leftovers> {
  const urls = {
    postgres: inject('databaseUrl'),
    redis: inject('redisUrl'),
    cluster: cluster.ports.map((port) => ({ host: '127.0.0.1', port })),
  }
  const script = fileURLToPath(new URL('hot-path/leftovers.mjs', import.meta.url))
  const child = fork(script, [JSON.stringify({ client, urls, calls: CALLS })], {
    execArgv: V8_FLAGS,
    env: { PATH: process.env['PATH'] ?? '' },
  })
  const [told] = (await Promise.race([
    once(child, 'message'),
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`it ended with ${code}`))),
  ])) as [Leftovers]
  return told
}

// The last two have never left anything.
test.each([
  'ioredis',
  'ioredis with attributes',
  'ioredis with pipelines of its own',
  'a script of ioredis',
  'a pipeline of ioredis',
  'a Cluster of ioredis',
  'pg',
  'fetch',
  'an Agent of undici',
  'node:http',
])(
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
  expect(bytes).toBeGreaterThan(MOST_BYTES)
})
