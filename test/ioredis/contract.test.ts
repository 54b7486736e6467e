import { traceIORedis } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { describe } from 'vitest'
import { clientContract } from '../contract/client.ts'
import { clientsOf, hostname, namespace, port, url, versions } from './redis.ts'

describe.each(versions)('%s', (version, Redis) => {
  const { key, list } = clientsOf(version, Redis)

  clientContract<Redis6>(version, {
    async open() {
      const redis = new Redis(url)
      await redis.del(list)
      await redis.lpush(list, 1)
      return { target: redis, close: async () => void (await redis.quit()) }
    },
    trace: traceIORedis,
    call: (redis) => redis.set(key, 's3cret', 'EX', 100),
    overrides: ['sendCommand'],
    callBack(redis, done) {
      redis.set(key, 's3cret', 'EX', 100, done)
    },
    result: 'OK',
    fail: (redis) => redis.incr(list),
    name: 'SET',
    attributes: {
      'db.system.name': 'redis',
      'db.namespace': namespace,
      'db.operation.name': 'SET',
      'db.query.text': `SET ${key} ? ? ?`,
      'server.address': hostname,
      'network.peer.port': Number(port || 6379),
    },
    failure: { type: 'WRONGTYPE', rejects: true },
    scope: '@throughline/ioredis',
    duration: {
      metric: 'db.client.operation.duration',
      buckets: [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
      attributes: {
        'db.system.name': 'redis',
        'db.namespace': namespace,
        'db.operation.name': 'SET',
        'server.address': hostname,
      },
      failed: {
        'db.system.name': 'redis',
        'db.namespace': namespace,
        'db.operation.name': 'INCR',
        'db.response.status_code': 'WRONGTYPE',
        'server.address': hostname,
      },
    },
    ignoredText: 'SET',
    secret: 's3cret',
  })
})
