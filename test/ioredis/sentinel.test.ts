import { traceIORedis } from '@throughline/ioredis'
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { versions } from './redis.ts'
import { startSentinel, type Servers } from './servers.ts'

let servers: Servers

beforeAll(async () => {
  servers = await startSentinel()
})

afterAll(() => servers?.stop())

describe.each(versions)('%s: a Redis behind sentinels', (_version, Redis) => {
  test('has the address of the server that they name, and no spans for asking them', async () => {
    const recording = record()
    const [master, sentinel] = servers.ports as [number, number]
    const redis = traceIORedis(
      new Redis({ sentinels: [{ host: '127.0.0.1', port: sentinel }], name: 'main', lazyConnect: true }),
    )
    try {
      // The first has to wait, the second finds a connection.
      await redis.get('early')
      await redis.get('late')
      const spans = await recording.all(2)
      for (const call of spans) {
        expect(call).toMatchObject({
          name: 'GET',
          attributes: {
            'server.address': '127.0.0.1',
            'server.port': master,
            'network.peer.address': '127.0.0.1',
            'network.peer.port': master,
          },
        })
      }
      await redis.quit()
      expect(recording.spans[2]?.name).toBe('QUIT')
    } finally {
      redis.disconnect()
    }
  })

  test('and one that is connected anew, to another server, has the address of that one', async () => {
    const recording = record()
    const [master, sentinel] = servers.ports as [number, number]
    const redis = traceIORedis(new Redis(master, '127.0.0.1'))
    try {
      await redis.ping()
      await redis.ping()
      const ended = once(redis, 'end')
      redis.disconnect()
      await ended
      // As if what balances the load had changed its mind.
      redis.options.port = sentinel
      await redis.connect()
      await redis.ping()
      const spans = await recording.all(3)
      expect(spans.map(({ attributes }) => attributes['network.peer.port'])).toEqual([
        master,
        master,
        sentinel,
      ])
    } finally {
      redis.disconnect()
    }
  })

  test('whose sentinels do not know it is an error with a type', async () => {
    const recording = record()
    const [, sentinel] = servers.ports as [number, number]
    const redis = traceIORedis(
      new Redis({
        sentinels: [{ host: '127.0.0.1', port: sentinel }],
        name: 'nobody',
        lazyConnect: true,
        sentinelRetryStrategy: () => null,
      }),
    )
    redis.on('error', () => {})
    await expect(redis.get('key')).rejects.toThrow('All sentinels are unreachable')
    const [call] = await recording.all(1)
    expect(call).toMatchObject({ name: 'GET', status: { code: 2 } })
    expect(call?.attributes).not.toHaveProperty('server.address')
  })
})
