import { trace } from '@opentelemetry/api'
import { span, untrace, type ReadableSpan } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { Redis as Redis6, type ChainableCommander, type RedisOptions } from 'ioredis'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { createServer, type AddressInfo } from 'node:net'
import { afterEach, describe, expect, inject, test, vi } from 'vitest'
import { batchText, maskedCommand } from '../packages/ioredis/src/mask.ts'
import { clientContract } from './contract/client.ts'
import { record } from './recording.ts'

// Until 5.3 it has no name but `default`.
const Redis5 = createRequire(import.meta.url)('ioredis5') as typeof Redis6

type Options = Omit<RedisOptions, 'replyMapping'>

const url = inject('redisUrl')
const { hostname, port, pathname } = new URL(url)
const namespace = pathname.slice(1) || '0'

describe.each([
  ['ioredis 6', Redis6],
  ['ioredis 5', Redis5],
])('%s', (version, Redis) => {
  const prefix = `${version.replace(' ', '')}:${process.pid}`
  const [key, list, other] = [`${prefix}:key`, `${prefix}:list`, `${prefix}:other`]
  const closing: (() => unknown)[] = []

  afterEach(async () => {
    for (const close of closing.splice(0).toReversed()) await close()
    const cleaner = new Redis(url)
    await cleaner.del(key, list, other)
    await cleaner.quit()
  })

  function open(options: Options = {}): Redis6 {
    const redis = new Redis(url, options)
    closing.push(() => redis.disconnect())
    return redis
  }

  async function ready(options: Options = {}): Promise<Redis6> {
    const redis = open(options)
    await once(redis, 'ready')
    return redis
  }

  clientContract<Redis6>(version, {
    async open() {
      const redis = new Redis(url)
      await redis.del(list)
      await redis.lpush(list, 1)
      return { target: redis, close: async () => void (await redis.quit()) }
    },
    trace: traceIORedis,
    call: (redis) => redis.set(key, 's3cret', 'EX', 100),
    overrides: ['sendCommand'],
    callBack(redis, done) {
      redis.set(key, 's3cret', 'EX', 100, done)
    },
    result: 'OK',
    fail: (redis) => redis.incr(list),
    name: 'SET',
    attributes: {
      'db.system.name': 'redis',
      'db.namespace': namespace,
      'db.operation.name': 'SET',
      'db.query.text': `SET ${key} ? ? ?`,
      'server.address': hostname,
      'network.peer.port': Number(port || 6379),
    },
    failure: { type: 'WRONGTYPE', rejects: true },
    scope: '@throughline/ioredis',
    duration: {
      metric: 'db.client.operation.duration',
      buckets: [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
      attributes: {
        'db.system.name': 'redis',
        'db.namespace': namespace,
        'db.operation.name': 'SET',
        'server.address': hostname,
      },
      failed: {
        'db.system.name': 'redis',
        'db.namespace': namespace,
        'db.operation.name': 'INCR',
        'db.response.status_code': 'WRONGTYPE',
        'server.address': hostname,
      },
    },
    ignoredText: 'SET',
    secret: 's3cret',
  })

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

    test('and is sent again on the next one is one span still, and what is restored then is none', async () => {
      const recording = record()
      const redis = new Redis(Object.assign(new URL(url), { pathname: '/0' }).href)
      closing.push(() => redis.disconnect())
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

    test('without a pipeline is a span for each command, as each is a call of its own', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await redis.multi({ pipeline: false })
      await redis.set(key, 1)
      expect(await redis.exec()).toEqual([[null, 'OK']])
      expect((await recording.all(3)).map(({ name }) => name)).toEqual(['MULTI', 'SET', 'EXEC'])
    })
  })

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

    test('what the server says is told without the values it quotes', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await expect(redis.call('NOTHING', "s3'cret", 's3cret')).rejects.toThrow('s3cret')
      const [command] = await recording.all(1)
      expect(command?.status.message).toBe("ERR unknown command '?' ")
      expect(command?.attributes).toMatchObject({ 'db.query.text': 'NOTHING ? ?', 'error.type': 'ERR' })
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

    test('a duplicate is traced like the one that it was made of, and stays so', async () => {
      const recording = record()
      const redis = traceIORedis(await ready(), { ignore: 'PING' })
      const twin = redis.duplicate()
      closing.push(() => twin.disconnect())
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
        /expected a Redis or a Cluster of ioredis, received undefined; example: traceIORedis\(new Redis\(\)\)/,
      ],
      ['the class', Redis, /received a function \(Redis\)/],
      ['a pipeline', new Redis({ lazyConnect: true }).pipeline(), /expected a Redis/],
    ])('%s cannot be traced', (_, target, message) => {
      expect(() => traceIORedis(target as never)).toThrow(TypeError)
      expect(() => traceIORedis(target as never)).toThrow(message)
    })

    test('another instrumentation that is at work already is left alone', async () => {
      const recording = record()
      vi.spyOn(console, 'error').mockImplementation(() => {})
      const redis = await ready()
      Object.assign(redis, { sendCommand: Object.assign(redis.sendCommand.bind(redis), { __wrapped: true }) })
      await traceIORedis(redis).get(key)
      expect(recording.spans).toEqual([])
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

describe('the text of a command shows keys and fields, and no value', () => {
  test.each([
    ['SET k s3cret', 'SET k ?'],
    ['GET k', 'GET k'],
    ['MSET a s3cret b s3cret', 'MSET a ? b ?'],
    ['MGET a b', 'MGET a b'],
    ['HMSET h f1 s3cret f2 s3cret', 'HMSET h f1 ? f2 ?'],
    ['HGET h f', 'HGET h f'],
    ['LPUSH k s3cret s3cret', 'LPUSH k ? ?'],
    ['BLPOP a b 5', 'BLPOP a b ?'],
    ['AUTH user s3cret', 'AUTH ? ?'],
    ['HELLO 3 AUTH user s3cret', 'HELLO ? ? ? ?'],
    ['CONFIG SET requirepass s3cret', 'CONFIG ? ? ?'.replace('?', 'SET')],
    ['EVAL s3cret 2 a b s3cret', 'EVAL ? 2 a b ?'],
    ['EVAL s3cret 9 s3cret', 'EVAL ? ? ?'],
    ['EVAL s3cret nonsense s3cret', 'EVAL ? ? ?'],
    ['EVALSHA da39a3ee 1 a s3cret', 'EVALSHA da39a3ee 1 a ?'],
    ['ZUNIONSTORE to 2 a b WEIGHTS 1 2', 'ZUNIONSTORE to 2 a b ? ? ?'],
    ['XREAD COUNT 2 STREAMS a b 0 0', 'XREAD ? ? STREAMS a b ? ?'],
    ['PUBLISH channel s3cret', 'PUBLISH channel ?'],
    ['MADEUP k s3cret', 'MADEUP ? ?'],
    ['PING', 'PING'],
  ])('%s', (given, shown) => {
    const [name = '', ...args] = given.split(' ')
    expect(maskedCommand(name, args)).toBe(shown)
  })

  test('a key that is no plain word is quoted, as the CLI wants it', () => {
    expect(maskedCommand('GET', ['a key'])).toBe('GET "a key"')
    expect(maskedCommand('GET', ['?'])).toBe('GET "?"')
    expect(maskedCommand('GET', [''])).toBe('GET ""')
    expect(maskedCommand('GET', [Buffer.from('k')])).toBe('GET k')
  })

  test('a text without end has one', () => {
    expect(
      maskedCommand(
        'DEL',
        Array.from({ length: 1000 }, () => 'k'),
      ),
    ).toMatch(/^DEL( k){64} …$/)
    const batch = Array.from({ length: 10_000 }, () => ({ name: 'get', args: ['k'] }))
    expect(batchText(batch, maskedCommand)?.length).toBeLessThan(4200)
  })
})

async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return address.port
}

function parentOf(child: ReadableSpan | undefined): string | undefined {
  return child?.parentSpanContext?.spanId
}
