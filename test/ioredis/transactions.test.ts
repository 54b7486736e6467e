import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, versions } from './redis.ts'

describe.each(versions)('%s', (version, Redis) => {
  const { key, list, ready } = clientsOf(version, Redis)

  describe('a transaction', () => {
    test('is one span, and its answer is as before', async () => {
      const recording = record()
      const plain = await ready()
      const run = () => plain.multi().set(key, 's3cret').get(key).exec()
      const before = await run()
      traceIORedis(plain)
      expect(await run()).toEqual(before)
      await plain
        .multi([
          ['get', key],
          ['get', key],
        ])
        .exec()
      await plain.multi().get(key).exec()
      const [mixed, alike, single] = await recording.all(3)
      expect(mixed).toMatchObject({
        name: 'MULTI',
        attributes: { 'db.operation.batch.size': 2, 'db.query.text': `SET ${key} ?; GET ${key}` },
      })
      expect(alike).toMatchObject({ name: 'MULTI GET', attributes: { 'db.operation.batch.size': 2 } })
      expect(single?.attributes).not.toHaveProperty('db.operation.batch.size')
    })

    test('that the server discards is rejected as before, and an error of all that went wrong', async () => {
      const recording = record()
      const plain = await ready()
      const run = () =>
        plain
          .multi()
          .set(key, 1)
          .call('NOTHING')
          .exec()
          .catch((error: unknown) => error)
      const before = await run()
      traceIORedis(plain)
      expect(await run()).toEqual(before)
      expect((await recording.all(1))[0]).toMatchObject({
        name: 'MULTI',
        status: { code: 2 },
        attributes: { 'error.type': 'ERR/EXECABORT' },
      })
    })

    test('in which a command fails is an error of its type', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.lpush(list, 1)
      const replies = await redis.multi().incr(list).set(key, 1).exec()
      expect(replies?.[1]).toEqual([null, 'OK'])
      expect((await recording.all(2))[1]).toMatchObject({
        name: 'MULTI',
        status: { code: 2 },
        attributes: { 'error.type': 'WRONGTYPE', 'db.response.status_code': 'WRONGTYPE' },
      })
    })

    test('is not searched for each of the commands that fail: of 64,000 that took seconds', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.set(key, 'text')
      const indexOf = vi.spyOn(Array.prototype, 'indexOf')
      onTestFinished(() => indexOf.mockRestore())
      const multi = redis.multi()
      for (let value = 0; value < 300; value++) multi.lpush(key, value)
      const results = await multi.exec()
      const searched = indexOf.mock.contexts.filter((list) => (list as unknown[]).length === 300)
      indexOf.mockRestore()
      expect(results?.map(([error]) => error?.name)).toEqual(Array.from({ length: 300 }, () => 'ReplyError'))
      expect(searched).toHaveLength(0)
      expect((await recording.all(2)).at(-1)?.attributes['error.type']).toBe('WRONGTYPE')
    })

    test('that is not executed since a key has changed is answered by null, and no error', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const other = await ready()
      await redis.watch(key)
      await other.set(key, 'theirs')
      expect(await redis.multi().set(key, 'ours').get(key).exec()).toBeNull()
      expect(await recording.all(2)).toMatchObject([
        { name: 'WATCH' },
        { name: 'MULTI', status: { code: 0 }, attributes: { 'db.operation.batch.size': 2 } },
      ])
    })

    test('that is executed with a callback calls it once, in the context of its caller', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await span(
        'caller',
        (caller) =>
          new Promise<void>((resolve) => {
            redis
              .multi()
              .get(key)
              .exec((_error, replies) => {
                expect(replies).toEqual([[null, null]])
                expect(trace.getActiveSpan()).toBe(caller)
                resolve()
              })
          }),
      )
      await recording.all(2)
    })

    test('that is executed twice has one span, and the app gets what it got before', async () => {
      const recording = record()
      const plain = await ready()
      const run = async () => {
        const multi = plain.multi().get(key)
        return [await multi.exec(), await multi.exec().catch(String)]
      }
      const before = await run()
      traceIORedis(plain)
      expect(await run()).toEqual(before)
      await recording.all(1)
    })

    test('without a pipeline, in which a command fails, is an error where it is executed', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.lpush(list, 1)
      await redis.multi({ pipeline: false })
      await redis.incr(list)
      const replies = await redis.exec()
      expect(replies).toEqual([[expect.objectContaining({ name: 'ReplyError' })]])
      expect((await recording.all(4)).at(-1)).toMatchObject({
        name: 'EXEC',
        status: { code: 2 },
        attributes: { 'error.type': 'WRONGTYPE', 'db.response.status_code': 'WRONGTYPE' },
      })
    })

    test('without a pipeline is a span for each command, as each is a call of its own', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.multi({ pipeline: false })
      await redis.set(key, 1)
      expect(await redis.exec()).toEqual([[null, 'OK']])
      expect((await recording.all(3)).map(({ name }) => name)).toEqual(['MULTI', 'SET', 'EXEC'])
    })
  })
})
