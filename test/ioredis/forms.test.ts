import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis, type IORedisOptions } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, namesOf, parentOf, versions } from './redis.ts'

type Scripted = Redis6 & {
  echoed(...args: unknown[]): Promise<string> & { echoed: Scripted['echoed'] }
  echoedBuffer(...args: unknown[]): Promise<Buffer>
}

describe.each(versions)('%s', (version, Redis) => {
  const { prefix, key, list, other, open, ready, afterwards } = clientsOf(version, Redis)

  describe('a script of defineCommand', () => {
    async function scripted(
      options?: object,
      traced?: IORedisOptions,
    ): Promise<{ redis: Scripted; forget: () => Promise<unknown> }> {
      const redis = traceIORedis(await ready(options), traced) as Scripted
      redis.defineCommand('echoed', { numberOfKeys: 1, lua: `return ARGV[1] --[[${prefix}]]` })
      const admin = await ready()
      return { redis, forget: () => admin.script('FLUSH') }
    }

    test('that the server has forgotten is sent again whole: one span, and no error', async () => {
      const recording = record()
      const { redis, forget } = await scripted()
      const run = (name: string) => span(name, () => redis.echoed(key, name))
      expect(await run('A')).toBe('A')
      await forget()
      expect(await Promise.all(['B', 'C', 'D'].map(run))).toEqual(['B', 'C', 'D'])
      const spans = await recording.all(8)
      for (const name of ['A', 'B', 'C', 'D']) {
        const caller = spans.find((candidate) => candidate.name === name)
        const [call, ...more] = spans.filter((one) => parentOf(one) === caller?.spanContext().spanId)
        expect(call).toMatchObject({ name: 'EVALSHA', status: { code: 0 } })
        expect(more).toEqual([])
      }
    })

    test('is found again among others of the same script, with Buffers and a prefix', async () => {
      const recording = record()
      const begun: unknown[] = []
      const ignore = (command: string) => {
        begun.push(command)
        return false
      }
      const { redis, forget } = await scripted({ keyPrefix: 'p:' }, { ignore })
      await redis.echoed('k', 'first')
      await forget()
      const replies = await Promise.all([
        redis.echoedBuffer(Buffer.from('k'), Buffer.from('one')),
        redis.echoed('k', 'two'),
      ])
      expect(replies.map(String)).toEqual(['one', 'two'])
      expect(namesOf(await recording.all(3))).toEqual(['EVALSHA', 'EVALSHA', 'EVALSHA'])
      expect(recording.spans.map(({ status }) => status.code)).toEqual([0, 0, 0])
      // None was begun that never ends.
      expect(begun).toHaveLength(3)
    })

    test('is not taken for another one of the same script that is issued in between', async () => {
      const recording = record()
      const { redis, forget } = await scripted()
      await redis.echoed(key, 'first')
      await recording.all(1)
      await forget()
      const between = redis.ping().then(() => span('B', () => redis.echoed(key, 'between')))
      const again = span('A', () => redis.echoed(key, 'again'))
      expect(await Promise.all([between, again])).toEqual(['between', 'again'])
      const spans = await recording.all(6)
      for (const name of ['A', 'B']) {
        const caller = spans.find((candidate) => candidate.name === name)
        const calls = spans.filter((one) => parentOf(one) === caller?.spanContext().spanId)
        expect(namesOf(calls)).toEqual(['EVALSHA'])
      }
    })

    test('that itself answers as a server does that does not know it is an error, after two tries', async () => {
      const recording = record()
      const redis = traceIORedis(await ready()) as unknown as {
        unknown(key: string): Promise<unknown>
      } & Redis6
      redis.defineCommand('unknown', {
        numberOfKeys: 1,
        lua: "return redis.error_reply('NOSCRIPT of its own')",
      })
      await expect(redis.unknown(key)).rejects.toThrow('NOSCRIPT of its own')
      expect((await recording.all(1))[0]).toMatchObject({
        name: 'EVALSHA',
        status: { code: 2 },
        attributes: { 'error.type': 'NOSCRIPT' },
      })
    })

    test('whose second try fails is an error', async () => {
      const recording = record()
      const redis = traceIORedis(await ready()) as unknown as {
        failing(key: string): Promise<unknown>
      } & Redis6
      redis.defineCommand('failing', {
        numberOfKeys: 1,
        lua: `return redis.call('INCR', KEYS[1]) --${prefix}`,
      })
      const admin = await ready()
      await admin.set(key, 1)
      await redis.failing(key)
      await Promise.all([admin.script('FLUSH'), admin.set(key, 'text')])
      await expect(redis.failing(key)).rejects.toThrow('not an integer')
      expect(await recording.all(2)).toMatchObject([{ status: { code: 0 } }, { status: { code: 2 } }])
    })

    test.each([
      ['a pipeline', {}],
      ['a pipeline that ioredis makes by itself', { enableAutoPipelining: true }],
    ])('in %s is a part of it still', async (_, options) => {
      const recording = record()
      const { redis, forget } = await scripted(options)
      await redis.echoed(key, 'first')
      await forget()
      if ('enableAutoPipelining' in options) {
        expect(await redis.echoed(key, 'again')).toBe('again')
      } else {
        const pipeline = redis.pipeline() as unknown as {
          echoed: Scripted['echoed']
          exec(): Promise<unknown>
        }
        void pipeline.echoed(key, 'again')
        expect(await pipeline.exec()).toEqual([[null, 'again']])
      }
      expect((await recording.all(2)).map(({ status }) => status.code)).toEqual([0, 0])
    })
  })

  test('a scan that is read as a stream is a span for each page, under who reads it', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    const members = Array.from({ length: 2000 }, (_, index) => index)
    await redis.sadd(other, ...members)
    let count = 0
    await span('reader', async (reader) => {
      for await (const page of redis.sscanStream(other)) {
        count += (page as string[]).length
        expect(trace.getActiveSpan()).toBe(reader)
      }
    })
    expect(count).toBeGreaterThanOrEqual(2000)
    const [, ...scans] = recording.spans
    const reader = scans.pop()
    expect(scans.length).toBeGreaterThan(2)
    for (const scan of scans)
      expect([scan.name, parentOf(scan)]).toEqual(['SSCAN', reader?.spanContext().spanId])
  })

  test('a client that subscribes has a span for that, none for messages, and errors for what it may not do', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(version === 'ioredis 5' ? {} : ({ protocol: 2 } as object)))
    const publisher = await ready()
    const heard = new Promise((resolve) => redis.on('message', (...args) => resolve(args)))
    await redis.subscribe(`${prefix}:channel`)
    await publisher.publish(`${prefix}:channel`, 's3cret')
    expect(await heard).toEqual([`${prefix}:channel`, 's3cret'])
    await expect(redis.get(key)).rejects.toThrow('subscriber mode')
    await redis.unsubscribe()
    expect(await recording.all(3)).toMatchObject([
      { name: 'SUBSCRIBE', status: { code: 0 } },
      { name: 'GET', status: { code: 2 } },
      { name: 'UNSUBSCRIBE', status: { code: 0 } },
    ])
  })

  test('a client that monitors sees commands, and has no spans', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    const monitor = await redis.monitor()
    afterwards(() => monitor.disconnect())
    const seen = new Promise((resolve) => {
      monitor.on('monitor', (_time, args: string[]) => {
        if (args[1] === key) resolve(args)
      })
    })
    await redis.get(key)
    expect(await seen).toEqual([expect.stringMatching(/get/i), key])
    expect(namesOf(await recording.all(1))).toEqual(['GET'])
  })

  test('a command that blocks lasts until it is answered', async () => {
    const recording = record()
    const [redis, pusher] = [traceIORedis(await ready()), await ready()]
    const popped = span('caller', () => redis.brpop(list, 5))
    await pusher.lpush(list, 'item')
    expect(await popped).toEqual([list, 'item'])
    const [pop, caller] = await recording.all(2)
    expect(pop).toMatchObject({ name: 'BRPOP', status: { code: 0 } })
    expect(parentOf(pop)).toBe(caller?.spanContext().spanId)
  })

  test('what waits for a reply when the app leaves is an error, at once', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    const waiting = redis.blpop(list, 100)
    redis.disconnect()
    await expect(waiting).rejects.toThrow('Connection is closed.')
    expect((await recording.all(1))[0]).toMatchObject({ name: 'BLPOP', status: { code: 2 } })
  })

  test('quit lets what was issued before it end well', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    expect(await Promise.all([redis.set(key, 1), redis.quit()])).toEqual(['OK', 'OK'])
    expect(await recording.all(2)).toMatchObject([
      { name: 'SET', status: { code: 0 } },
      { name: 'QUIT', status: { code: 0 } },
    ])
  })

  test('a command that takes too long for commandTimeout is an error, once, though a reply comes', async () => {
    const recording = record()
    const redis = traceIORedis(await ready({ commandTimeout: 400 }))
    const pusher = await ready()
    await expect(redis.blpop(list, 5)).rejects.toThrow('Command timed out')
    await pusher.lpush(list, 'item')
    await redis.ping()
    expect(await recording.all(2)).toMatchObject([
      {
        name: 'BLPOP',
        status: { code: 2, message: 'Command timed out' },
        attributes: { 'error.type': 'Error' },
      },
      { name: 'PING', status: { code: 0 } },
    ])
  })

  test('a command that may not wait for a connection is an error at once', async () => {
    const recording = record()
    const redis = traceIORedis(open({ enableOfflineQueue: false }))
    await expect(redis.get(key)).rejects.toThrow("Stream isn't writeable")
    expect((await recording.all(1))[0]).toMatchObject({ name: 'GET', status: { code: 2 } })
  })
})
