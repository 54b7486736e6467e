import { span, untrace } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { complaints } from '../contract/server/watch.ts'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { clientsOf, namesOf, versions } from './redis.ts'

const boom = () => {
  throw new Error('cannot be read')
}
const unreadable = { get: boom }

describe.each(versions)('%s', (version, Redis) => {
  const { key, list, ready, afterwards } = clientsOf(version, Redis)

  describe('errors surface as before', () => {
    test('the rejection of a command that nobody awaits is unhandled, once', async () => {
      record()
      const redis = await ready()
      await redis.lpush(list, 1)
      const unhandled = vi.fn<(error: unknown) => void>()
      // Those of vitest would fail the run.
      const others = process.rawListeners('unhandledRejection')
      process.removeAllListeners('unhandledRejection').on('unhandledRejection', unhandled)
      try {
        const seen: number[] = []
        for (const target of [redis, traceIORedis(redis)]) {
          void target.incr(list)
          await vi.waitFor(() => expect(unhandled).toHaveBeenCalled())
          await target.ping()
          seen.push(unhandled.mock.calls.length)
          unhandled.mockClear()
        }
        expect(seen).toEqual([1, 1])
      } finally {
        process.off('unhandledRejection', unhandled)
        for (const listener of others) process.on('unhandledRejection', listener as never)
      }
    })

    test.each<[string, () => unknown]>([
      ['nothing', () => undefined],
      ['an error whose message is none', () => Object.assign(new Error('no'), { message: { no: 1 } })],
      [
        'an error whose message cannot be read',
        () => Object.defineProperty(new Error('no'), 'message', unreadable),
      ],
      [
        'an error whose name cannot be read',
        () => Object.defineProperty(new Error('no'), 'name', unreadable),
      ],
      [
        'an error whose command cannot be read',
        () => Object.defineProperty(new Error('no'), 'command', unreadable),
      ],
      ['a proxy that says nothing', () => new Proxy({}, { get: boom, has: boom, getPrototypeOf: boom })],
    ])('the function that transforms replies may throw %s', async (_what, make) => {
      const thrown = make()
      const recording = record()
      Redis.Command.setReplyTransformer('strlen', () => {
        throw thrown
      })
      onTestFinished(() => Redis.Command.setReplyTransformer('strlen', (length: unknown) => length))
      const redis = traceIORedis(await ready())
      await expect(redis.strlen(key).catch((error: unknown) => error === thrown)).resolves.toBe(true)
      const [[error] = []] = (await redis.pipeline().strlen(key).exec()) ?? []
      expect(error === thrown).toBe(true)
      // ioredis itself cannot go through an answer with such a proxy.
      await redis
        .multi()
        .strlen(key)
        .exec()
        .catch(() => {})
      const spans = await recording.all(3)
      expect(spans.map(({ name }) => name)).toEqual(['STRLEN', 'PIPELINE STRLEN', 'MULTI STRLEN'])
      expect(spans[0]?.status.code).toBe(2)
    })

    test('a command of an unsampled caller that fails counts as one that failed', async () => {
      const measuring = measure()
      record({ sampling: 0 })
      const redis = traceIORedis(await ready())
      await redis.lpush(list, 1)
      await span('caller', () => redis.incr(list).catch(() => {}))
      const points = await measuring.all('db.client.operation.duration', 2)
      expect(points.map(({ attributes }) => attributes['error.type'])).toEqual([undefined, 'WRONGTYPE'])
    })

    test('untrace gives back all of its methods', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      untrace(redis)
      await redis.get(key)
      await redis.pipeline().get(key).exec()
      await redis.multi().get(key).exec()
      expect(recording.spans).toEqual([])
    })

    test('a duplicate may be traced again by the options of its client, and by others it is told of', async () => {
      record()
      const said = complaints()
      const options = { ignore: 'PING' }
      const twin = traceIORedis(await ready(), options).duplicate()
      afterwards(() => twin.disconnect())
      traceIORedis(twin, options)
      expect(said).toEqual([])
      traceIORedis(twin, { ignore: 'GET' })
      expect(said).toEqual([
        expect.stringMatching(/^throughline: traceIORedis\(\): .* received others: ignore; /),
      ])
    })

    test('a duplicate is traced like the one that it was made of, and stays so', async () => {
      const recording = record()
      const redis = traceIORedis(await ready(), { ignore: 'PING' })
      const twin = redis.duplicate()
      afterwards(() => twin.disconnect())
      untrace(redis)
      expect(traceIORedis(twin)).toBe(twin)
      await twin.ping()
      await twin.get(key)
      expect((await recording.all(1))[0]?.name).toBe('GET')
    })

    test.each([
      [
        'undefined',
        undefined,
        /^@throughline\/ioredis: traceIORedis\(\): expected a Redis or a Cluster of ioredis, received undefined; example: traceIORedis\(new Redis\(\)\)/,
      ],
      ['the class', Redis, /received a function \(Redis\)/],
      ['a pipeline', new Redis({ lazyConnect: true }).pipeline(), /expected a Redis/],
    ])('%s cannot be traced', (_, target, message) => {
      expect(() => traceIORedis(target as never)).toThrow(TypeError)
      expect(() => traceIORedis(target as never)).toThrow(message)
    })

    test('an option of the wrong shape has an example of commands', () => {
      expect(() => traceIORedis(new Redis({ lazyConnect: true }), { ignore: 7 } as never)).toThrow(
        /expected ignore to be .*, received 7; example: \{ ignore: \['PING', \/\^X\?READ\/\] \}/,
      )
    })

    test('another instrumentation that is at work already is left alone, which is said once', async () => {
      const recording = record()
      const said = vi.spyOn(console, 'error').mockImplementation(() => {})
      for (const redis of [await ready(), await ready()]) {
        const sendCommand = Object.assign(redis.sendCommand.bind(redis), { __wrapped: true })
        Object.assign(redis, { sendCommand })
        await traceIORedis(redis).get(key)
      }
      expect(recording.spans).toEqual([])
      expect(said.mock.calls).toEqual([
        ['throughline: another instrumentation traces ioredis already, so traceIORedis does not'],
      ])
    })

    test('one that comes later has the duplicates that are made from then on', async () => {
      const recording = record()
      vi.spyOn(console, 'error').mockImplementation(() => {})
      const redis = traceIORedis(await ready())
      const { sendCommand } = Redis.prototype
      const marked = function (this: never, ...args: Parameters<typeof sendCommand>) {
        return sendCommand.apply(this, args)
      }
      Redis.prototype.sendCommand = Object.assign(marked, { __wrapped: true })
      try {
        const twin = redis.duplicate()
        await twin.get(key)
        await twin.quit()
        await redis.del(key)
      } finally {
        Redis.prototype.sendCommand = sendCommand
      }
      expect(namesOf(await recording.all(1))).toEqual(['DEL'])
    })
  })
})
