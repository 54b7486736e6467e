import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { Cluster } from 'ioredis'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { expect, test } from 'vitest'
import { record } from '../recording.ts'
import { namesOf, parentOf, versions } from './redis.ts'
import { startCluster } from './servers.ts'

const calculateSlot = createRequire(import.meta.url)('cluster-key-slot') as (key: string) => number

test.each(versions)(
  '%s: a node of a Cluster that crashes in mid-command costs the call that waits an error, in one span',
  async (_version, Redis) => {
    const servers = await startCluster(3)
    const [first, , last] = servers.ports as [number, number, number]
    const cluster = traceIORedis(
      new Redis.Cluster([{ host: '127.0.0.1', port: first }], {
        maxRedirections: 2,
        retryDelayOnFailover: 5,
      }),
    ) as unknown as Cluster
    cluster.on('error', () => {})
    try {
      const recording = record()
      await once(cluster, 'ready')
      const [here, there] = [keyOf(0), keyOf(2)]
      await Promise.all([cluster.get(here), cluster.get(there)])
      const popped = span('caller', () => cluster.blpop(there, 0))
      const admin = servers.admin(last)
      while (!/ cmd=blpop /.test(String(await admin.client('LIST'))))
        await new Promise((resolve) => setImmediate(resolve))
      await Promise.all([expect(popped).rejects.toThrow('Too many Cluster redirections'), servers.kill(last)])

      const [, , blpop, caller] = await recording.all(4)
      expect(namesOf(recording.spans)).toEqual(['GET', 'GET', 'BLPOP', 'caller'])
      expect(blpop?.status.code).toBe(2)
      expect(parentOf(blpop)).toBe(caller?.spanContext().spanId)
    } finally {
      cluster.disconnect()
      await servers.stop()
    }
  },
)

/** A key of this third of the slots. */
function keyOf(third: number): string {
  for (let count = 0; ; count += 1) {
    if (Math.floor((calculateSlot(`key${count}`) * 3) / 16384) === third) return `key${count}`
  }
}
