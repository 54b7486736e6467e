import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { once } from 'node:events'
import { describe, expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, closedPort, namespace, parentOf, port, url, versions } from './redis.ts'

describe.each(versions)('%s', (version, Redis) => {
  const { prefix, key, list, open, ready, afterwards } = clientsOf(version, Redis)

  describe('a command that waits for its connection', () => {
    test('is one span, in the trace of its caller, and nobody is billed for the handshake', async () => {
      const recording = record()
      const redis = traceIORedis(open({ lazyConnect: true, connectionName: 'a-name' }))
      await span('first', async (first) => {
        const called = new Promise<void>((resolve) => {
          redis.get(key, () => {
            expect(trace.getActiveSpan()).toBe(first)
            resolve()
          })
        })
        await redis.set(key, 's3cret')
        await called
      })
      const [get, set, first] = await recording.all(3)
      expect([get?.name, set?.name]).toEqual(['GET', 'SET'])
      for (const command of [get, set]) {
        expect(parentOf(command)).toBe(first?.spanContext().spanId)
        expect(command?.status.code).toBe(0)
        expect(command?.attributes).toMatchObject({ 'network.peer.port': Number(port || 6379) })
      }
    })

    test('the first commands of an app that asks as soon as it is connected have their spans', async () => {
      const recording = record()
      const redis = traceIORedis(open())
      const asked = new Promise<unknown>((resolve, reject) => {
        redis.once('connect', () => {
          const all = () =>
            Promise.all([redis.select(0), redis.info('server'), redis.client('ID'), redis.get(key)])
          span('caller', all).then(resolve, reject)
        })
      })
      await asked
      const spans = await recording.all(5)
      const caller = spans.find(({ name }) => name === 'caller')
      const commands = spans.filter((each) => each !== caller)
      expect(commands.map(({ name }) => name).sort()).toEqual(['CLIENT', 'GET', 'INFO', 'SELECT'])
      expect(commands.map(parentOf)).toEqual(commands.map(() => caller?.spanContext().spanId))
    })

    test('and is sent again on the next one is one span still, and what is restored then is none', async () => {
      const recording = record()
      const redis = new Redis(Object.assign(new URL(url), { pathname: '/0' }).href)
      afterwards(() => redis.disconnect())
      const id = await redis.client('ID')
      const admin = await ready()
      traceIORedis(redis)
      await redis.select(Number(namespace))
      const popped = redis.blpop(list, 20)
      await vi.waitFor(async () =>
        expect(await admin.client('LIST')).toMatch(new RegExp(`id=${id} .*cmd=blpop`)),
      )
      await Promise.all([once(redis, 'ready'), admin.client('KILL', 'ID', id)])
      await admin.lpush(list, 'item')
      expect(await popped).toEqual([list, 'item'])
      expect((await recording.all(2)).map(({ name }) => name)).toEqual(['SELECT', 'BLPOP'])
      expect(recording.spans[1]?.status.code).toBe(0)
    })

    test('whose subscriptions are restored has no spans for that', async () => {
      const recording = record()
      const redis = await ready()
      const id = await redis.client('ID')
      const admin = await ready()
      await traceIORedis(redis).subscribe(`${prefix}:channel`)
      await Promise.all([once(redis, 'ready'), admin.client('KILL', 'ID', id)])
      await vi.waitFor(async () => expect(await admin.publish(`${prefix}:channel`, 'x')).toBe(1))
      expect((await recording.all(1))[0]?.name).toBe('SUBSCRIBE')
    })

    test('and that the app has sent again on an error of its choice is one span, and so is nothing else', async () => {
      const recording = record()
      const admin = await ready()
      await admin.lpush(list, 1)
      let isAgain = false
      const redis = traceIORedis(
        await ready({
          reconnectOnError: () => {
            if (isAgain) return false
            isAgain = true
            return 2
          },
        }),
      )
      await expect(redis.incr(list)).rejects.toThrow('WRONGTYPE')
      expect(isAgain).toBe(true)
      expect((await recording.all(1))[0]).toMatchObject({ name: 'INCR', status: { code: 2 } })
    })

    test('that is lost with a pipeline under way has an error for it, and what the app gets is as before', async () => {
      const recording = record()
      const admin = await ready()
      const plain = await ready({ maxRetriesPerRequest: 0, retryStrategy: () => null })
      plain.on('error', () => {})
      const id = await plain.client('ID')
      const redis = traceIORedis(plain)
      const replies = redis.pipeline().get(key).blpop(list, 20).exec()
      await vi.waitFor(async () =>
        expect(await admin.client('LIST')).toMatch(new RegExp(`id=${id} .*cmd=blpop`)),
      )
      await admin.client('KILL', 'ID', id)
      expect(await replies).toMatchObject([[null, null], [expect.any(Error)]])
      expect((await recording.all(1))[0]).toMatchObject({
        name: 'PIPELINE',
        status: { code: 2 },
        attributes: { 'db.operation.batch.size': 2 },
      })
    })

    test('in vain, since it is refused, is an error with a type', async () => {
      const recording = record()
      const closed = await closedPort()
      const redis = traceIORedis(
        new Redis(closed, '127.0.0.1', { maxRetriesPerRequest: 1, retryStrategy: () => 1 }),
      )
      redis.on('error', () => {})
      await expect(redis.get(key)).rejects.toThrow('max retries')
      redis.disconnect()
      const [command] = await recording.all(1)
      expect(command?.status.code).toBe(2)
      expect(command?.attributes).toMatchObject({
        'error.type': 'MaxRetriesPerRequestError',
        'server.address': '127.0.0.1',
        'server.port': closed,
      })
      expect(command?.attributes).not.toHaveProperty('db.response.status_code')
    })

    test('that is never opened has no code of the server, whatever the error says', async () => {
      const recording = record()
      class Nowhere {
        connect() {
          return Promise.reject(new Error('NOHOST is there'))
        }
        disconnect() {}
      }
      const redis = traceIORedis(new Redis({ Connector: Nowhere as never, lazyConnect: true }))
      redis.on('error', () => {})
      await expect(redis.get(key)).rejects.toThrow('NOHOST')
      const [command] = await recording.all(1)
      expect(command?.attributes['error.type']).toBe('Error')
      expect(command?.attributes).not.toHaveProperty('db.response.status_code')
    })

    test('that was closed is an error with a type', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      redis.disconnect()
      await once(redis, 'end')
      await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
      expect((await recording.all(1))[0]).toMatchObject({
        status: { code: 2 },
        attributes: { 'error.type': 'Error' },
      })
    })
  })

  test('the path of a Unix socket is the address of the server, and there is no port', async () => {
    const recording = record()
    const redis = traceIORedis(
      new Redis('/nowhere.sock', { maxRetriesPerRequest: 0, retryStrategy: () => 1 }),
    )
    redis.on('error', () => {})
    await expect(redis.get(key)).rejects.toThrow('max retries')
    redis.disconnect()
    const [command] = await recording.all(1)
    expect(command?.attributes['server.address']).toBe('/nowhere.sock')
    expect(command?.attributes).not.toHaveProperty('server.port')
  })
})
