import { context, createContextKey, ROOT_CONTEXT } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { once } from 'node:events'
import { describe, expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, namesOf, versions } from './redis.ts'

describe.each(versions)('%s: what sets up a connection has no spans', (version, Redis) => {
  const { key, open } = clientsOf(version, Redis)

  // The first one of the process is different: ioredis 5 reads its own version only then.
  test('where that is lost before it is ready', async () => {
    const recording = record()
    const redis = traceIORedis(open({ retryStrategy: () => null }))
    const readyCheck = vi.spyOn(redis, '_readyCheck' as 'info')
    redis.once('connect', () => redis.stream.destroy())
    await once(redis, 'end')
    await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
    // ioredis 5 asks whether the server is ready all the same.
    if (version === 'ioredis 5') await vi.waitFor(() => expect(readyCheck).toHaveBeenCalled())
    await span('later', () => {})
    expect(namesOf(await recording.all(2))).toEqual(['GET', 'later'])
  })

  test('where the app has it connect while it does', async () => {
    const recording = record()
    await span('caller', async () => {
      const redis = traceIORedis(open({ connectionName: 'a-name' }))
      await expect(redis.connect()).rejects.toThrow('already connecting')
      await once(redis, 'ready')
    })
    expect(namesOf(await recording.all(1))).toEqual(['caller'])
  })

  // As an APM does that has spans of connecting: the app's own code never sees the context in which it then goes on.
  test('where somebody else has it connect in a context of its own', async () => {
    const { connect } = Redis.prototype
    const another = ROOT_CONTEXT.setValue(createContextKey('another'), true)
    const connecting = vi.spyOn(Redis.prototype, 'connect').mockImplementation(function (
      this: never,
      ...args
    ) {
      return context.with(another, connect, this, ...args)
    })
    const recording = record()
    await span('caller', async () => {
      const redis = traceIORedis(open({ connectionName: 'a-name', db: 1 }))
      await once(redis, 'ready')
      redis.disconnect(true)
      await once(redis, 'ready')
      await redis.ping()
    })
    expect(connecting).toHaveBeenCalledTimes(2)
    connecting.mockRestore()
    expect(namesOf(await recording.all(2))).toEqual(['PING', 'caller'])
  })

  test('nor has the one after the one that was lost', async () => {
    const recording = record()
    const redis = traceIORedis(open({ retryStrategy: () => 1 }))
    const readyCheck = vi.spyOn(redis, '_readyCheck' as 'info')
    redis.once('connect', () => redis.disconnect(true))
    await once(redis, 'ready')
    await redis.ping()
    expect(readyCheck).toHaveBeenCalled()
    expect(namesOf(await recording.all(1))).toEqual(['PING'])
  })
})
