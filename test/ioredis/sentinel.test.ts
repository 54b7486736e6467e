import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { parentOf, versions } from './redis.ts'
import { startReplicated, startSentinel, until, type Servers } from './servers.ts'

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

  test('that dies has one span of each that waits for its successor, with the address of that', async () => {
    const replicated = await startReplicated()
    const recording = record()
    const [master, replica, sentinel] = replicated.ports as [number, number, number]
    const redis = traceIORedis(
      new Redis({
        sentinels: [{ host: '127.0.0.1', port: sentinel }],
        name: 'main',
        retryStrategy: () => 20,
        sentinelRetryStrategy: () => 20,
        maxRetriesPerRequest: null,
      }),
    )
    redis.on('error', () => {})
    const blocked = (port: number) =>
      until(async () => String(await replicated.admin(port).client('LIST')).includes('cmd=blpop'))
    try {
      await span('before', () => redis.set('key', 1))
      const popped = span('sent again', () => redis.blpop('list', 0))
      await blocked(master)
      const closed = once(redis, 'close')
      await replicated.kill(master)
      await closed
      const waiting = Promise.all([
        span('command', () => redis.set('key', 2)),
        span('transaction', () => redis.multi().incr('key').get('key').exec()),
        span('pipeline', () => redis.pipeline().get('key').del('key').exec()),
      ])
      await blocked(replica)
      await replicated.admin(replica).rpush('list', 'item')
      expect(await popped).toEqual(['list', 'item'])
      expect(await waiting).toEqual([
        'OK',
        [
          [null, 3],
          [null, '3'],
        ],
        [
          [null, '3'],
          [null, 1],
        ],
      ])
      const spans = await recording.all(10)
      const of = (caller: string) => {
        const parent = spans.find(({ name }) => name === caller)?.spanContext().spanId
        return spans.filter((call) => parentOf(call) === parent)
      }
      const served = { 'server.address': '127.0.0.1', 'network.peer.address': '127.0.0.1' }
      expect(of('before')).toMatchObject([{ name: 'SET', attributes: { ...served, 'server.port': master } }])
      for (const [caller, name] of [
        ['sent again', 'BLPOP'],
        ['command', 'SET'],
        ['transaction', 'MULTI'],
        ['pipeline', 'PIPELINE'],
      ] as const) {
        expect(of(caller)).toMatchObject([
          {
            name,
            status: { code: 0 },
            attributes: { ...served, 'server.port': replica, 'network.peer.port': replica },
          },
        ])
      }
    } finally {
      redis.disconnect()
      await replicated.stop()
    }
  })
})
