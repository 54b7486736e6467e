import { traceIORedis } from '@throughline/ioredis'
import { Command, type Redis as Redis6, type RedisOptions } from 'ioredis'
import { once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, versions } from './redis.ts'

// What ioredis' own tests ask of its clients, pipelines and transactions: each is told what it does without tracing, and has
// to do the same with it, in the same order.

type Say = (...words: unknown[]) => void
type Options = Omit<RedisOptions, 'replyMapping'>
type Behaviour = (redis: Redis6, say: Say, key: string) => Promise<unknown>

/** What the typings of a client lack. */
type Loose = Record<string, (...args: unknown[]) => Promise<unknown>> & Redis6

/** An error as far as the two runs can be compared. */
const told = (error: unknown): unknown[] => {
  const { name, message, command, previousErrors } = error as Error & Record<string, unknown>
  return [name, message, JSON.stringify(command), (previousErrors as Error[] | undefined)?.map(String)]
}

const ask = (say: Say, promise: Promise<unknown>): Promise<void> =>
  promise.then(
    (reply) => say(reply),
    (error: unknown) => say(told(error)),
  )

const EVENTS = [
  'connect',
  'ready',
  'close',
  'reconnecting',
  'end',
  'wait',
  'error',
  'select',
  'message',
  'pmessage',
]

const behaviours: Record<string, [options: Options, Behaviour]> = {
  'callbacks have their this and their arguments, and promises come all the same': [
    {},
    async (redis, say, key) => {
      const call = redis as Loose
      const calls: [string, ...string[]][] = [['get', key], ['incr', key, 'too', 'many'], ['nothing']]
      for (const [name, ...args] of calls) {
        await new Promise<void>((resolve) => {
          const promise = call.call?.(name, ...args, function (this: unknown, ...given: unknown[]) {
            say(this === undefined, given.length, given[0] === null || told(given[0]), given[1])
            resolve()
          })
          promise?.catch((error: unknown) => say(told(error)))
        })
      }
    },
  ],
  'a callback that throws is the app’s matter': [
    {},
    async (redis, say, key) => {
      const others = process.rawListeners('uncaughtException')
      process.removeAllListeners('uncaughtException')
      const thrown = once(process, 'uncaughtException')
      redis.get(key, () => {
        throw new Error('of the app')
      })
      say(told((await thrown)[0]))
      for (const listener of others) process.on('uncaughtException', listener as never)
      say(await redis.ping())
    },
  ],
  'replies are transformed, arguments flattened': [
    {},
    async (redis, say, key) => {
      await ask(say, redis.hset(key, { a: 1, b: Buffer.from('2') }))
      await ask(say, redis.hset(key, new Map([['c', 3]])))
      await ask(say, redis.hgetall(key))
      await ask(say, redis.hgetallBuffer(key))
      await ask(say, redis.del([key]))
      await ask(say, redis.mset({ [key]: null as never }))
      await ask(say, redis.get(key))
    },
  ],
  'commands of the app’s own making': [
    {},
    async (redis, say, key) => {
      const loose = redis as Loose
      say(await loose.sendCommand(new Command('set', [key, 'x'], { replyEncoding: 'utf8' }) as never))
      const command = new Command('get', [key], { replyEncoding: 'utf8' }, (error, reply) =>
        say('called', error, reply),
      )
      const promise = loose.sendCommand(command as never)
      say(promise === command.promise)
      say(await promise)
    },
  ],
  'a pipeline has its length, its callbacks in order, and its results': [
    {},
    async (redis, say, key) => {
      const pipeline = redis.pipeline([['set', key, 1]])
      say(pipeline.length, Object.keys(pipeline).includes('exec'), typeof pipeline.exec)
      pipeline.get(key, (error, reply) => say('get', error, reply)).call('nothing', () => say('nothing'))
      const results = await pipeline.exec((error, replies) => say('exec', error, replies?.length))
      for (const [error, reply] of results ?? []) say(error && told(error), reply)
      await ask(say, Promise.resolve(pipeline.exec()))
      await ask(say, redis.pipeline().exec())
      await ask(say, redis.pipeline().set(key, Buffer.from('b')).getBuffer(key).get(Buffer.from(key)).exec())
      say(redis.multi().set(key, 1).exec() instanceof Promise)
    },
  ],
  'a transaction in a pipeline, and one that lacks its end': [
    {},
    async (redis, say, key) => {
      const inside = redis.pipeline().get(key)
      const multi = (inside as Pick<Redis6, 'multi'> & typeof inside).multi() as unknown as typeof inside
      multi.set(key, 1).hgetall(`${key}:none`)
      ;(multi.exec() as unknown as typeof inside).get(key)
      await ask(say, inside.exec())
      await ask(say, redis.multi().set(key, 1).exec())
    },
  ],
  'a transaction answers, refuses, is given up, and calls back': [
    {},
    async (redis, say, key) => {
      await ask(say, redis.multi().set(key, 'a').incr(key).hgetall(`${key}:none`).getBuffer(key).exec())
      await ask(say, redis.multi().call('nothing').call('set', key).exec())
      await ask(
        say,
        redis
          .multi([
            ['set', key, 1],
            ['get', key],
          ])
          .exec((error, replies) => say('called', error, replies)),
      )
      const other = redis.duplicate()
      await redis.watch(key)
      await other.set(key, 'other')
      await ask(say, redis.multi().set(key, 2).exec())
      other.disconnect()
      const twice = redis.multi().get(key)
      await ask(say, twice.exec())
      await ask(say, twice.exec())
      await ask(say, redis.multi({ pipeline: false }))
      await Promise.all([ask(say, redis.set(key, 3)), ask(say, redis.incr(key)), ask(say, redis.exec())])
      await redis.multi({ pipeline: false })
      await Promise.all([ask(say, redis.set(key, 4)), ask(say, redis.discard()), ask(say, redis.get(key))])
      await ask(say, redis.exec())
    },
  ],
  'scripts, with prefixes, Buffers, callbacks, and in pipelines': [
    { keyPrefix: 'prefix:' },
    async (redis, say, key) => {
      redis.defineCommand('echo', { lua: 'return {KEYS[1], ARGV[1]}', numberOfKeys: 1 })
      redis.defineCommand('variable', { lua: 'return {#KEYS, #ARGV}' })
      const { echo, echoBuffer, variable } = redis as Loose
      for (const load of ['as new', 'as known', 'as forgotten']) {
        if (load === 'as forgotten') await redis.script('FLUSH')
        await ask(say, Reflect.apply(echo as never, redis, [key, load]))
      }
      await redis.script('FLUSH')
      await ask(
        say,
        (redis.pipeline() as unknown as { echo: typeof redis.pipeline }).echo(key as never).exec(),
      )
      await ask(say, Reflect.apply(echoBuffer as never, redis, [Buffer.from(key), Buffer.from('b')]))
      await ask(say, Reflect.apply(variable as never, redis, [2, 'a', 'b', 'c']))
      await new Promise<void>((resolve) => {
        Reflect.apply(echo as never, redis, [
          key,
          'x',
          (error: unknown, reply: unknown) => resolve(say(error, reply)),
        ])
      })
    },
  ],
  'streams of keys end, and pass errors on': [
    {},
    async (redis, say, key) => {
      await redis.sadd(
        key,
        Array.from({ length: 300 }, (_, index) => String(index)),
      )
      const found = new Set<string>()
      for await (const page of redis.sscanStream(key, { count: 50 }))
        for (const one of page as string[]) found.add(one)
      say(found.size)
      const wrong = redis.hscanStream(key)
      wrong.resume()
      say(told((await once(wrong, 'error'))[0]))
    },
  ],
  'subscriptions, their messages, and what a subscriber may not do': [
    {},
    async (redis, say, key) => {
      const other = redis.duplicate()
      await ask(say, redis.subscribe(`${key}:a`, `${key}:b`))
      await ask(say, redis.psubscribe(`${key}:*`))
      const heard = once(redis, 'pmessage')
      await other.publish(`${key}:a`, 'x')
      await heard
      await ask(say, redis.get(key))
      await ask(say, redis.unsubscribe(`${key}:a`, `${key}:b`))
      await ask(say, redis.punsubscribe(`${key}:*`))
      await ask(say, redis.set(key, 1))
      say(redis.mode)
      other.disconnect()
    },
  ],
  'commands before the connection, connecting twice, and leaving': [
    { lazyConnect: true },
    async (redis, say, key) => {
      say(redis.status)
      const early = [
        ask(say, redis.set(key, 1)),
        ask(say, redis.get(key)),
        ask(say, redis.pipeline().get(key).exec()),
      ]
      say(redis.status)
      await ask(say, redis.connect())
      await Promise.all(early)
      await new Promise<void>((resolve) => redis.connect((error) => resolve(say(told(error)))))
      await ask(say, redis.select(0))
      const ended = once(redis, 'end')
      await Promise.all([ask(say, redis.get(key)), ask(say, redis.quit())])
      await ask(say, redis.get(key))
      await ended
      await ask(say, redis.get(key))
      await redis.connect()
      await ask(say, redis.ping())
    },
  ],
  'a disconnect with commands pending': [
    {},
    async (redis, say, key) => {
      const pending = [
        ask(say, redis.blpop(`${key}:none`, 0)),
        ask(say, redis.pipeline().get(key).get(key).exec()),
        ask(say, redis.multi().get(key).exec()),
      ]
      await turn()
      const ended = once(redis, 'end')
      redis.disconnect()
      await Promise.all([...pending, ended])
    },
  ],
  'timeouts, and what may not wait': [
    { commandTimeout: 400, enableOfflineQueue: false },
    async (redis, say, key) => {
      await ask(say, redis.blpop(`${key}:none`, 0))
      const ended = once(redis, 'close')
      redis.disconnect(true)
      await ended
      await Promise.all([ask(say, redis.get(key)), ask(say, redis.pipeline().get(key).exec())])
    },
  ],
  'what is pipelined by itself': [
    { enableAutoPipelining: true },
    async (redis, say, key) => {
      const calls = [
        ask(say, redis.set(key, 'a')),
        ask(say, redis.incr(key)),
        ask(say, redis.getBuffer(key)),
        ask(say, redis.call('get', key)),
        ask(say, redis.ping()),
      ]
      redis.get(key, (error, reply) => say('called', error, reply))
      say(redis.autoPipelineQueueSize)
      await Promise.all(calls)
      await ask(say, redis.pipeline().get(key).exec())
      await ask(say, redis.multi().get(key).exec())
      say(redis.autoPipelineQueueSize)
    },
  ],
  'errors with the stack of their callers': [
    { showFriendlyErrorStack: true },
    async (redis, say) => {
      const stack = await redis.call('nothing').catch((error: Error) => String(error.stack))
      say(/behaviours|parity\.test/.test(String(stack)), String(stack).includes('packages/ioredis'))
    },
  ],
  'duplicates, with other options and without': [
    { keyPrefix: 'one:' },
    async (redis, say, key) => {
      const twins = [redis.duplicate(), redis.duplicate({ keyPrefix: 'two:', db: 0 })]
      for (const twin of twins) {
        say(twin.options.keyPrefix, twin.options.db === 0, twin instanceof (redis.constructor as never))
        await ask(say, twin.get(key))
        twin.disconnect()
      }
    },
  ],
}

describe.each(versions)('%s does with tracing what it did without', (version, Redis) => {
  const { key, open, ready } = clientsOf(version, Redis)

  async function run([options, behaviour]: [Options, Behaviour], isTraced: boolean): Promise<unknown[]> {
    const redis = options.lazyConnect ? open(options) : await ready(options)
    if (isTraced) traceIORedis(redis)
    const said: unknown[] = []
    for (const name of EVENTS) redis.on(name, (...args: unknown[]) => said.push([name, args.length]))
    if (!options.lazyConnect) await redis.del(key)
    await behaviour(redis, (...words) => void said.push(words), key)
    await turn()
    redis.removeAllListeners()
    redis.on('error', () => {})
    redis.disconnect()
    return said
  }

  test.each(Object.entries(behaviours))('%s', async (_, behaviour) => {
    const before = await run(behaviour, false)
    const recording = record()
    expect(await run(behaviour, true)).toEqual(before)
    expect(before.length).toBeGreaterThan(0)
    expect(recording.spans.length).toBeGreaterThan(0)
  })
})
