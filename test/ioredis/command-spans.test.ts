import { traceIORedis } from '@throughline/ioredis'
import { describe, expect, test } from 'vitest'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { clientsOf, namesOf, parentOf, versions } from './redis.ts'

describe.each(versions)('%s: with commandSpans', (version, Redis) => {
  const { key, list, ready } = clientsOf(version, Redis)
  const options = { commandSpans: true }

  test('each command of a pipeline has a span under that of the pipeline, with its own end', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), options)
    await redis.lpush(list, 1)
    await redis.pipeline().set(key, 's3cret').incr(list).get(key).exec()
    const [, set, incr, get, pipeline] = await recording.all(5)
    expect(pipeline).toMatchObject({ name: 'PIPELINE', attributes: { 'db.operation.batch.size': 3 } })
    expect([set, incr, get]).toMatchObject([
      { name: 'SET', status: { code: 0 }, attributes: { 'db.query.text': `SET ${key} ?` } },
      { name: 'INCR', status: { code: 2 }, attributes: { 'db.response.status_code': 'WRONGTYPE' } },
      { name: 'GET', status: { code: 0 } },
    ])
    for (const command of [set, incr, get]) expect(parentOf(command)).toBe(pipeline?.spanContext().spanId)
  })

  test('each command of a transaction has the end that EXEC tells', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), {
      ...options,
      attributes: (_command, reply) => ({ 'app.reply': JSON.stringify(reply) }),
    })
    await redis.lpush(list, 1)
    await redis.multi().set(key, 1).incr(list).get(key).exec()
    expect((await recording.all(5)).slice(1)).toMatchObject([
      { name: 'SET', status: { code: 0 }, attributes: { 'app.reply': '"OK"' } },
      { name: 'INCR', status: { code: 2 }, attributes: { 'error.type': 'WRONGTYPE' } },
      { name: 'GET', status: { code: 0 }, attributes: { 'app.reply': '"1"' } },
      { name: 'MULTI', status: { code: 2 } },
    ])
  })

  test('a transaction that is discarded has no command that went well', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), options)
    await expect(redis.multi().set(key, 1).call('NOTHING').exec()).rejects.toThrow('EXECABORT')
    const [set, nothing] = await recording.all(3)
    expect(set).toMatchObject({ status: { code: 2 }, attributes: { 'error.type': 'EXECABORT' } })
    expect(nothing).toMatchObject({ status: { code: 2 }, attributes: { 'error.type': 'ERR' } })
  })

  test('commands that are ignored have none, and those of a pipeline that is dropped neither', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), { ...options, ignore: 'GET' })
    redis.pipeline().set(key, 1)
    await redis.pipeline().get(key).set(key, 1).exec()
    expect(namesOf(await recording.all(2))).toEqual(['SET', 'PIPELINE'])
  })

  test('a pipeline counts once', async () => {
    const measuring = measure()
    record()
    const redis = traceIORedis(await ready(), options)
    await redis.pipeline().get(key).get(key).exec()
    expect(await measuring.all('db.client.operation.duration', 1)).toMatchObject([
      { attributes: { 'db.operation.name': 'PIPELINE GET' } },
    ])
  })

  test('a pipeline that fails as a whole ends them all', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), options)
    const done = redis.pipeline().get(key).blpop(list, 0).exec()
    redis.disconnect()
    await done
    const spans = await recording.all(3)
    expect(namesOf(spans)).toEqual(['GET', 'BLPOP', 'PIPELINE'])
    expect(spans[1]?.status.code).toBe(2)
  })

  test('one that ioredis does not take ends them all, too', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), options)
    const unprintable = Object.create(null) as string
    expect(() => void redis.pipeline().get(key).set(key, unprintable).exec()).toThrow(TypeError)
    expect(await recording.all(3)).toMatchObject(
      ['GET', 'SET', 'PIPELINE'].map((name) => ({
        name,
        status: { code: 2 },
        attributes: { 'error.type': 'TypeError' },
      })),
    )
  })
})
