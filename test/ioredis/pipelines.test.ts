import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { ChainableCommander, Redis as Redis6 } from 'ioredis'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, parentOf, versions } from './redis.ts'

describe.each(versions)('%s', (version, Redis) => {
  const { key, list, other, open, ready } = clientsOf(version, Redis)

  describe('a pipeline', () => {
    test('is one span however many commands it has, named for them if they are alike', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const replies = await span('caller', () =>
        redis.pipeline().set(key, 's3cret').get(key).get(other).exec(),
      )
      expect(replies).toEqual([
        [null, 'OK'],
        [null, 's3cret'],
        [null, null],
      ])
      await redis
        .pipeline([
          ['get', key],
          ['get', other],
        ])
        .exec()
      await redis.pipeline().get(key).exec()

      const [mixed, caller, alike, single] = await recording.all(4)
      expect(mixed).toMatchObject({
        name: 'PIPELINE',
        attributes: {
          'db.operation.name': 'PIPELINE',
          'db.operation.batch.size': 3,
          'db.query.text': `SET ${key} ?; GET ${key}; GET ${other}`,
        },
      })
      expect(parentOf(mixed)).toBe(caller?.spanContext().spanId)
      expect(alike).toMatchObject({ name: 'PIPELINE GET', attributes: { 'db.operation.batch.size': 2 } })
      expect(single?.name).toBe('PIPELINE GET')
      expect(single?.attributes).not.toHaveProperty('db.operation.batch.size')
    })

    test('calls back in the context of its caller, also when it has to wait for a connection', async () => {
      const recording = record()
      const redis = traceIORedis(open())
      await span(
        'caller',
        (caller) =>
          new Promise<void>((resolve) => {
            redis
              .pipeline()
              .get(key)
              .exec(() => {
                expect(trace.getActiveSpan()).toBe(caller)
                resolve()
              })
          }),
      )
      await recording.all(2)
    })

    test('in which commands fail is an error of their types, and the app gets the same', async () => {
      const recording = record()
      const plain = await ready()
      await plain.lpush(list, 1)
      const run = () => plain.pipeline().incr(list).get(key).call('NOTHING', "s3'cret").exec()
      const before = await run()
      traceIORedis(plain)
      expect(await run()).toEqual(before)
      const [pipeline] = await recording.all(1)
      expect(pipeline?.status.code).toBe(2)
      expect(pipeline?.status.message).toMatch(/^WRONGTYPE/)
      expect(pipeline?.attributes).toMatchObject({
        'db.response.status_code': 'WRONGTYPE/ERR',
        'error.type': 'WRONGTYPE/ERR',
      })
      expect(JSON.stringify([pipeline?.attributes, pipeline?.status])).not.toContain('cret')
    })

    test('that has a transaction inside is one span', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const pipeline = redis.pipeline().get(key) as ChainableCommander & Pick<Redis6, 'multi'>
      pipeline.multi({ pipeline: true }).set(key, 1).exec()
      await pipeline.exec()
      expect((await recording.all(1))[0]).toMatchObject({
        name: 'PIPELINE',
        attributes: { 'db.operation.batch.size': 4 },
      })
    })

    test('that is empty, or never executed, leaves nothing', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      redis.pipeline().set(key, 1).get(key)
      redis.multi().set(key, 1)
      expect(await redis.pipeline().exec()).toEqual([])
      await redis.ping()
      await recording.stop()
      expect(recording.spans.map(({ name }) => name)).toEqual(['PING'])
    })

    test('made by ioredis of commands issued one by one is a span for each, in the trace of its caller', async () => {
      const recording = record()
      const redis = traceIORedis(await ready({ enableAutoPipelining: true }))
      const names = ['A', 'B', 'C']
      await Promise.all(
        names.map((name) =>
          span(name, async (caller) => {
            await redis.get(key)
            expect(trace.getActiveSpan()).toBe(caller)
          }),
        ),
      )
      await redis.pipeline().get(key).exec()
      const spans = await recording.all(7)
      const callers = names.map(
        (name) => spans.find((candidate) => candidate.name === name)?.spanContext().spanId,
      )
      expect(
        spans
          .filter(({ name }) => name === 'GET')
          .map(parentOf)
          .toSorted(),
      ).toEqual(callers.toSorted())
      expect(spans.at(-1)?.name).toBe('PIPELINE GET')
    })
  })
})
