import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { namesOf, versions } from './redis.ts'
import { startCluster, type Servers } from './servers.ts'

// A server of its own, since it is made to pause.
let servers: Servers

beforeAll(async () => {
  servers = await startCluster(1)
})

afterAll(() => servers?.stop())

type Scripted = Redis6 & { one(...args: unknown[]): Promise<unknown> }

describe.each(versions)(
  '%s: a script that the app gives up before the server says that it is unknown',
  (_version, Redis) => {
    test.each([
      ['alone', {}],
      ['pipelined by itself', { enableAutoPipelining: true }],
    ])('%s is an error, and the next one has a span of its own', async (_, options) => {
      const recording = record()
      const [port] = servers.ports as [number]
      const admin = servers.admin(port)
      const redis = traceIORedis(
        new Redis(port, '127.0.0.1', { commandTimeout: 400, ...options }),
      ) as unknown as Scripted
      redis.defineCommand('one', { numberOfKeys: 1, lua: 'return 1' })
      try {
        await redis.one('key')
        await admin.script('FLUSH')
        await admin.client('PAUSE', 1000, 'ALL')
        await expect(redis.one('key')).rejects.toThrow('Command timed out')
        // Answered when the pause has ended, after the answer to the script.
        while ((await redis.ping().catch(() => 'not yet')) !== 'PONG');
        const before = recording.spans.length
        await span('caller', () => redis.one('key'))
        expect(namesOf(recording.spans.slice(before))).toEqual(['EVALSHA', 'caller'])
      } finally {
        redis.disconnect()
      }
    })
  },
)
