import { traceIORedis } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, namespace, versions } from './redis.ts'

describe.each(versions)('%s', (version, Redis) => {
  const { prefix, key, other, ready } = clientsOf(version, Redis)

  describe('a command is one span', () => {
    test.each([
      ['by its method', (redis: Redis6) => redis.get(key), 'GET'],
      ['by its method for Buffers', (redis: Redis6) => redis.getBuffer(Buffer.from(key)), 'GET'],
      ['by call', (redis: Redis6) => redis.call('GET', key), 'GET'],
      ['in lower case', (redis: Redis6) => redis.call('get', key), 'GET'],
    ])('%s', async (_, call, name) => {
      const recording = record()
      await call(traceIORedis(await ready()))
      const [command] = await recording.all(1)
      expect(command).toMatchObject({
        name,
        attributes: { 'db.operation.name': name, 'db.query.text': `GET ${key}` },
      })
    })

    test('with keyPrefix, which is part of the key', async () => {
      const recording = record()
      await traceIORedis(await ready({ keyPrefix: `${prefix}:` })).get('key')
      expect((await recording.all(1))[0]?.attributes['db.query.text']).toBe(`GET ${key}`)
    })

    test('of a script, which is known by its digest', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      redis.defineCommand('answer', { numberOfKeys: 1, lua: "return 's3cret' .. ARGV[1]" })
      const { answer } = redis as unknown as { answer(...args: unknown[]): Promise<string> }
      expect(await Reflect.apply(answer, redis, [key, 42])).toBe('s3cret42')
      const [command] = await recording.all(1)
      const digest = command?.attributes['db.stored_procedure.name']
      expect(digest).toMatch(/^[0-9a-f]{40}$/)
      expect(command).toMatchObject({
        name: 'EVALSHA',
        attributes: { 'db.query.text': `EVALSHA ${digest} 1 ${key} ?` },
      })
    })

    test.each(['EVALSHA', 'EVALSHA_RO', 'FCALL', 'FCALL_RO'])(
      'that runs something which has a name tells the name, also where the server knows none such: %s',
      async (name) => {
        const recording = record()
        const redis = traceIORedis(await ready())
        await expect(redis.call(name, 'made-up', '1', key)).rejects.toThrow(/NOSCRIPT|not found/)
        const [command] = await recording.all(1)
        expect(command?.attributes['db.stored_procedure.name']).toBe('made-up')
      },
    )

    test('whose callback, and whose promise, give what they gave before', async () => {
      record()
      const plain = await ready()
      await plain.hset(key, { name: 'Ada', born: '1815' })
      const before = await plain.hgetall(key)
      const redis = traceIORedis(plain)
      expect(await redis.hgetall(key)).toEqual(before)
      expect(await new Promise((resolve) => redis.hgetall(key, (_error, reply) => resolve(reply)))).toEqual(
        before,
      )
    })

    test('with what the app adds from the command and its reply', async () => {
      const recording = record()
      const redis = traceIORedis(await ready(), {
        attributes: ({ name, args }, reply) => ({
          'app.told': `${name} ${args.length} ${JSON.stringify(reply)}`,
        }),
      })
      await redis.hset(key, 'field', 1)
      await redis.hgetall(key)
      await redis.pipeline().hget(key, 'field').exec()
      await redis.multi().hget(key, 'field').exec()
      expect(recording.spans.map(({ attributes }) => attributes['app.told'])).toEqual([
        'HSET 3 1',
        'HGETALL 1 {"field":"1"}',
        'PIPELINE 1 [[null,"1"]]',
        'MULTI 1 ["1"]',
      ])
    })

    test('ignored by its name and arguments', async () => {
      const recording = record()
      const redis = traceIORedis(await ready(), {
        ignore: (command, args) => command === 'GET' && args[0] === key,
      })
      await redis.get(key)
      await redis.get(other)
      await redis.mget(key)
      expect((await recording.all(2)).map(({ name }) => name)).toEqual(['GET', 'MGET'])
    })

    test.each([
      ['a name in lower case', 'get'],
      ['a name in upper case', 'GET'],
      ['a RegExp', /^GET$/],
      ['a RegExp in any case', /^gEt$/i],
      ['a RegExp that leaves others out', /^(?!MGET$)/],
      ['a list', ['ping', /^G.T$/]],
    ])('ignored by %s, in whichever case the app sends it', async (_title, ignore) => {
      const recording = record()
      const redis = traceIORedis(await ready(), { ignore })
      for (const name of ['get', 'GET', 'Get']) await redis.call(name, key)
      await redis.mget(key)
      expect((await recording.all(1)).map(({ name }) => name)).toEqual(['MGET'])
    })

    test('in the database that is selected', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.ping()
      await redis.select(0)
      await redis.ping()
      expect(recording.spans.map(({ attributes }) => attributes['db.namespace'])).toEqual([
        namespace,
        namespace,
        '0',
      ])
    })
  })
})
