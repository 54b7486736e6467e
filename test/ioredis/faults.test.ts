import { span } from '@throughline/core'
import { traceIORedis, type IORedisOptions } from '@throughline/ioredis'
import type { Redis as Redis6, RedisOptions } from 'ioredis'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { startProxy, type Proxy } from './proxy.ts'
import { clientsOf, closedPort, hostname, namesOf, parentOf, port, versions } from './redis.ts'
import { startServer, type Servers } from './servers.ts'

type Options = Omit<RedisOptions, 'replyMapping'>

let servers: Servers
let own: number

beforeAll(async () => {
  servers = await startServer()
  own = servers.ports[0] as number
})

afterAll(() => servers?.stop())

describe.each(versions)('%s', (version, Redis) => {
  const { key, list, afterwards } = clientsOf(version, Redis)

  function open(options: RedisOptions, tracing?: IORedisOptions): Redis6 {
    const redis = traceIORedis(new Redis(options as Options), tracing)
    redis.on('error', () => {})
    afterwards(() => redis.disconnect())
    return redis
  }

  async function proxied(options = {}, tracing?: IORedisOptions): Promise<{ redis: Redis6; proxy: Proxy }> {
    const proxy = await startProxy({ port: Number(port || 6379), host: hostname })
    afterwards(() => proxy.stop())
    const redis = open({ port: proxy.port, host: '127.0.0.1', retryStrategy: () => 1, ...options }, tracing)
    await event(redis, 'ready')
    return { redis, proxy }
  }

  describe('a server that crashes', () => {
    test('in mid-command leaves one span for it, which goes well as soon as the server is back', async () => {
      const recording = record()
      const redis = open({ port: own, retryStrategy: () => 5, maxRetriesPerRequest: null })
      const admin = servers.admin(own)
      await event(redis, 'ready')
      const popped = span('caller', () => redis.blpop(list, 0))
      await blocked(admin)
      const closed = event(redis, 'close')
      await servers.kill(own)
      await closed
      const waited = span('later', () => redis.set(key, 1))
      servers.revive(own)
      await blocked(admin)
      await admin.lpush(list, 'item')
      expect(await popped).toEqual([list, 'item'])
      await waited

      await recording.all(4)
      const [blpop, caller, set, later] = await Promise.all(
        ['BLPOP', 'caller', 'SET', 'later'].map((name) => recording.span((one) => one.name === name)),
      )
      expect([parentOf(blpop), parentOf(set)]).toEqual(
        [caller, later].map((one) => one?.spanContext().spanId),
      )
      expect(blpop?.status.code).toBe(0)
    })

    test('for good is an error with the code of what it met, in the span of each that waited', async () => {
      const recording = record()
      const redis = open({ port: own, retryStrategy: (times) => (times > 2 ? null : 1) })
      await event(redis, 'ready')
      const ended = event(redis, 'end')
      const popped = redis.blpop(list, 0)
      await blocked(servers.admin(own))
      await servers.kill(own)
      const queued = redis.get(key)
      await Promise.all([popped, queued].map((one) => expect(one).rejects.toThrow('Connection is closed.')))
      await ended
      await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
      servers.revive(own)

      const spans = await recording.all(3)
      expect(namesOf(spans).toSorted()).toEqual(['BLPOP', 'GET', 'GET'])
      for (const { attributes } of spans) expect(attributes['error.type']).toBe('ECONNREFUSED')
    })
  })

  describe('a connection that is refused', () => {
    test.each([
      ['ECONNREFUSED', async () => ({ host: '127.0.0.1', port: await closedPort() })],
      ['ENOENT', async () => ({ path: '/nowhere.sock' })],
    ])('is an error with its code: %s', async (code, place) => {
      const recording = record()
      const redis = open({ ...(await place()), retryStrategy: () => null })
      await expect(span('caller', () => redis.get(key))).rejects.toThrow('Connection is closed.')
      const [get] = await recording.all(2)
      expect(get).toMatchObject({ name: 'GET', status: { code: 2 }, attributes: { 'error.type': code } })
    })

    test('by the server, since its password is wrong, is an error with its code', async () => {
      const recording = record()
      const place = { port: Number(port || 6379), host: hostname, username: 'nobody', password: 's3cret' }
      const redis = open({ ...place, retryStrategy: () => null })
      const ended = event(redis, 'end')
      await expect(redis.get(key)).rejects.toThrow('WRONGPASS')
      await ended
      await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['WRONGPASS', 'WRONGPASS'])
      expect(spans[1]?.attributes).not.toHaveProperty('db.response.status_code')
    })

    test('is no matter any more once there is another one', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      proxy.reset()
      await event(redis, 'ready')
      await redis.ping()
      const ended = event(redis, 'end')
      redis.disconnect()
      await ended
      await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
      expect((await recording.all(2))[1]?.attributes['error.type']).toBe('Error')
    })
  })

  describe('a connection that is reset in mid-command', () => {
    test('leaves one span, and the command goes well on the next one', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      proxy.isSilent = true
      const sent = proxy.sent(key)
      const reply = span('caller', () => redis.get(key))
      await sent
      proxy.isSilent = false
      proxy.reset()
      expect(await reply).toBe(null)
      expect(namesOf(await recording.all(2))).toEqual(['GET', 'caller'])
    })

    test('and is answered by another server has the address of that one', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      const other = await startProxy({ port: Number(port || 6379), host: hostname })
      afterwards(() => other.stop())
      await redis.get(key)
      proxy.isSilent = true
      const sent = proxy.sent(list)
      const reply = redis.get(list)
      await sent
      redis.options.port = other.port
      proxy.reset()
      expect(await reply).toBe(null)
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['network.peer.port'])).toEqual([proxy.port, other.port])
    })

    test('leaves one span of a pipeline, and of a transaction', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      for (const batch of [redis.pipeline(), redis.multi()]) {
        proxy.isSilent = true
        const sent = proxy.sent(key)
        const replies = batch.get(key).get(list).exec()
        await sent
        proxy.isSilent = false
        proxy.reset()
        expect(await replies).toEqual([
          [null, null],
          [null, null],
        ])
      }
      expect(namesOf(await recording.all(2))).toEqual(['PIPELINE GET', 'MULTI GET'])
    })

    test('is an error with its code where it is not tried again', async () => {
      const recording = record()
      const { redis, proxy } = await proxied({ retryStrategy: () => null })
      proxy.isSilent = true
      const sent = proxy.sent(key)
      const reply = redis.get(key)
      await sent
      proxy.reset()
      await expect(reply).rejects.toThrow('Connection is closed.')
      expect((await recording.all(1))[0]?.attributes).toMatchObject({
        'error.type': 'ECONNRESET',
        'network.peer.port': proxy.port,
      })
    })

    test('leaves no span open where ioredis forgets what was under way: each says that it has no end', async () => {
      const recording = record()
      const { redis, proxy } = await proxied({ autoResendUnfulfilledCommands: false }, { commandSpans: true })
      proxy.isSilent = true
      const sent = proxy.sent(list)
      void redis.get(key)
      void redis.pipeline().get(key).ttl(list).exec()
      await sent
      proxy.isSilent = false
      const ready = event(redis, 'ready')
      proxy.reset()
      await ready
      await redis.ping()
      const spans = await recording.all(5)
      expect(spans.map(({ name, attributes }) => [name, attributes['throughline.incomplete']])).toEqual([
        ['GET', true],
        ['GET', true],
        ['TTL', true],
        ['PIPELINE', true],
        ['PING', undefined],
      ])
    })

    test('leaves none open either of what was sent before it was ready', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      proxy.reset()
      await event(redis, 'connect')
      proxy.isSilent = true
      await span('caller', () => void redis.select(1))
      proxy.isSilent = false
      const ready = event(redis, 'ready')
      proxy.reset()
      await ready
      const spans = await recording.all(2)
      expect(spans.map(({ name, attributes }) => [name, attributes['throughline.incomplete']])).toEqual([
        ['caller', undefined],
        ['SELECT', true],
      ])
    })

    test('leaves none open either where the app leaves before the next one is ready', async () => {
      const recording = record()
      const { redis, proxy } = await proxied()
      proxy.isSilent = true
      const sent = proxy.sent(key)
      void redis.get(key)
      await sent
      const connected = event(redis, 'connect')
      proxy.reset()
      await connected
      const ended = event(redis, 'end')
      redis.disconnect()
      await ended
      const [get] = await recording.all(1)
      expect(get).toMatchObject({ name: 'GET', attributes: { 'throughline.incomplete': true } })
    })
  })
})

/** Resolves at an event; unlike `once` also after errors. */
function event(redis: Redis6, name: string): Promise<void> {
  return new Promise((resolve) => void redis.once(name, () => resolve()))
}

/** Resolves when a client of this server waits for an item. */
async function blocked(admin: Redis6): Promise<void> {
  for (;;) {
    const clients = String(await admin.client('LIST'))
    if (/ cmd=blpop /.test(clients)) return
    await new Promise((resolve) => setImmediate(resolve))
  }
}
