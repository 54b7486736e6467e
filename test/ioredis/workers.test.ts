import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { Queue, QueueEvents, Worker, type ConnectionOptions } from 'bullmq'
import { Redis } from 'ioredis'
import { once } from 'node:events'
import { describe, expect, test } from 'vitest'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { clientsOf, namesOf, url, versions } from './redis.ts'

describe('a Worker of BullMQ on a connection that is traced', () => {
  test('begins no trace, however long it waits, and a job has its spans under whoever adds it', async () => {
    const recording = record()
    const worker = traceIORedis(new Redis(url, { maxRetriesPerRequest: null }))
    const sender = traceIORedis(new Redis(url))
    const name = `jobs-${process.pid}`
    const queue = new Queue(name, { connection: sender as unknown as ConnectionOptions })
    queue.on('error', () => {})
    const connection = worker as unknown as ConnectionOptions
    const events = new QueueEvents(name, { connection })
    const jobs: string[] = []
    const working = new Worker(
      name,
      async (job) => {
        jobs.push(job.name)
        await span('job', () => worker.get(`${name}:key`))
      },
      { connection, drainDelay: 0.01 },
    )
    try {
      await Promise.all([queue.waitUntilReady(), events.waitUntilReady(), working.waitUntilReady()])
      const waited = once(working, 'drained')
      for (const job of ['one', 'two']) {
        const completed = once(working, 'completed')
        await span('caller', () => queue.add(job, { secret: 's3cret' }))
        await completed
      }
      await waited
    } finally {
      await working.close()
      await events.close()
      await span('end', () => queue.obliterate({ force: true }))
      await queue.close()
      worker.disconnect()
      sender.disconnect()
    }
    await recording.stop()

    expect(jobs).toEqual(['one', 'two'])
    const { spans } = recording
    const roots = spans.filter(({ parentSpanContext }) => parentSpanContext === undefined)
    // Of what a Queue does by itself when it is made, its settings are kept: one HSET, once, on the app's own connection.
    expect(new Set(namesOf(roots).filter((root) => !['HSET', 'INFO'].includes(root)))).toEqual(
      new Set(['caller', 'job', 'end']),
    )
    expect(namesOf(roots).filter((root) => root === 'HSET').length).toBeLessThanOrEqual(1)
    for (const caller of roots.filter((root) => root.name === 'caller')) {
      const inside = spans.filter((one) => one.parentSpanContext?.spanId === caller.spanContext().spanId)
      expect(namesOf(inside)).toContain('EVALSHA')
    }
    expect(JSON.stringify(spans.map(({ attributes }) => attributes))).not.toContain('s3cret')
  })
})

describe.each(versions)('%s: a client whose commands wait for ever', (version, Given) => {
  const { key, list, ready } = clientsOf(version, Given)
  const options = { maxRetriesPerRequest: null }

  const loop = async (redis: Redis) => {
    await redis.lpush(list, 1, 2, 3)
    await redis.blpop(list, 1)
    await redis.eval('return 1', 0)
    await redis.xread('COUNT', 1, 'BLOCK', 1, 'STREAMS', key, '$')
    await redis.info()
  }

  test('begins no trace by what waits for work and takes it, by everything else it does', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(options))
    await loop(redis)
    await redis.xread('STREAMS', key, '$')
    expect(namesOf(await recording.all(2))).toEqual(['LPUSH', 'XREAD'])
  })

  test('begins none by renewing several locks at once, and by asking again whether there is work', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(options), { commandSpans: true })
    const work = async () => {
      await redis.pipeline().eval('return 1', 0).eval('return 2', 0).exec()
      await redis.multi().eval('return 1', 0).eval('return 2', 0).exec()
      await redis.rpoplpush(list, key)
    }
    await work()
    await redis.pipeline().eval('return 1', 0).get(key).exec()
    await span('caller', work)
    const shown = namesOf(await recording.all(11)).filter((name) => name !== 'EVAL' && name !== 'GET')
    expect(shown).toEqual(['PIPELINE', 'PIPELINE EVAL', 'MULTI EVAL', 'RPOPLPUSH', 'caller'])
  })

  test('has all of it in a trace that there is', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(options))
    await span('caller', () => loop(redis))
    expect(namesOf(await recording.all(6))).toEqual(['LPUSH', 'BLPOP', 'EVAL', 'XREAD', 'INFO', 'caller'])
  })

  test('begins traces by all of it, where the app says that they need no parent', async () => {
    const recording = record()
    await loop(traceIORedis(await ready(options), { requireParent: false }))
    expect(namesOf(await recording.all(5))).toEqual(['LPUSH', 'BLPOP', 'EVAL', 'XREAD', 'INFO'])
  })

  test('is measured all the same', async () => {
    const measuring = measure()
    const recording = record()
    const redis = traceIORedis(await ready(options))
    await redis.info()
    expect(await measuring.all('db.client.operation.duration', 1)).toMatchObject([
      { attributes: { 'db.operation.name': 'INFO' }, count: 1 },
    ])
    expect(recording.spans).toEqual([])
  })

  test('is no different from others where it is one that gives up', async () => {
    const recording = record()
    await loop(traceIORedis(await ready()))
    expect(namesOf(await recording.all(5))).toEqual(['LPUSH', 'BLPOP', 'EVAL', 'XREAD', 'INFO'])
  })
})
