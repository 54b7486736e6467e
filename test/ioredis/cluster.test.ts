import { trace } from '@opentelemetry/api'
import { span, untrace, type ReadableSpan } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { Cluster, ClusterOptions, Redis } from 'ioredis'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { clientContract } from '../contract/client.ts'
import { record } from '../recording.ts'
import { namesOf, parentOf, versions } from './redis.ts'
import { startCluster, type Servers } from './servers.ts'

const calculateSlot = createRequire(import.meta.url)('cluster-key-slot') as (key: string) => number

type Options = Omit<ClusterOptions, 'redisOptions'>

let servers: Servers

beforeAll(async () => {
  servers = await startCluster(3)
})

afterAll(() => servers?.stop())

describe.each(versions)('%s: a Cluster', (version, Redis) => {
  const closing: (() => unknown)[] = []
  // One key for each node.
  const keys = keysOfNodes(version.replace(' ', ''))
  const list = `{${keys[1]}}:list`

  afterEach(async () => {
    for (const close of closing.splice(0).toReversed()) await close()
  })

  function open(options: Options = {}): Cluster {
    const cluster = new Redis.Cluster([{ host: '127.0.0.1', port: servers.ports[0] as number }], options)
    closing.push(() => cluster.disconnect())
    return cluster as unknown as Cluster
  }

  async function ready(options?: Options): Promise<Cluster> {
    const cluster = open(options)
    await once(cluster, 'ready')
    return cluster
  }

  clientContract<Cluster>(`${version}: a Cluster`, {
    async open() {
      const target = await ready()
      await target.del(list)
      await target.lpush(list, 1)
      return { target, close: async () => {} }
    },
    trace: traceIORedis,
    call: (cluster) => cluster.set(keys[0], 's3cret', 'EX', 100),
    overrides: ['sendCommand'],
    callBack(cluster, done) {
      cluster.set(keys[0], 's3cret', 'EX', 100, done)
    },
    result: 'OK',
    fail: (cluster) => cluster.incr(list),
    name: 'SET',
    attributes: {
      'db.system.name': 'redis',
      'db.namespace': '0',
      'db.operation.name': 'SET',
      'db.query.text': `SET ${keys[0]} ? ? ?`,
      'server.address': '127.0.0.1',
      'network.peer.address': '127.0.0.1',
    },
    failure: { type: 'WRONGTYPE', rejects: true },
    scope: '@throughline/ioredis',
    ignoredText: 'SET',
    secret: 's3cret',
  })

  test('has on each span the address of the node that served it', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready())
    for (const key of keys) await cluster.get(key)
    await cluster.pipeline().get(keys[2]).exec()
    await cluster.multi().get(keys[1]).exec()
    const spans = await recording.all(5)
    const [one, two, three] = servers.ports
    expect(spans.map(portOf)).toEqual([one, two, three, three, two])
    expect(spans.map(({ attributes }) => attributes['network.peer.port'])).toEqual([
      one,
      two,
      three,
      three,
      two,
    ])
  })

  test('has the name of the node that the app gives it by natMap, beside the address that was reached', async () => {
    const recording = record()
    const natMap = Object.fromEntries(
      servers.ports.map((port) => [`127.0.0.1:${port}`, { host: 'localhost', port }]),
    )
    await traceIORedis(await ready({ natMap })).get(keys[1])
    expect((await recording.all(1))[0]?.attributes).toMatchObject({
      'server.address': 'localhost',
      'server.port': servers.ports[1],
      'network.peer.address': '127.0.0.1',
      'network.peer.port': servers.ports[1],
    })
  })

  test('makes no spans while it connects, asks for its slots, or looks whether it is ready', async () => {
    const recording = record()
    const cluster = traceIORedis(open({ lazyConnect: true, keyPrefix: `${keys[1]}:` }))
    const names = ['A', 'B']
    await Promise.all(names.map((name) => span(name, () => cluster.get(name))))
    await new Promise<void>((resolve) => cluster.refreshSlotsCache(() => resolve()))
    const spans = await recording.all(4)
    expect(namesOf(spans).toSorted()).toEqual(['A', 'B', 'GET', 'GET'])
    for (const name of names) {
      const get = spans.find(({ attributes }) => attributes['db.query.text'] === `GET ${keys[1]}:${name}`)
      expect(parentOf(get)).toBe(idOf(spans, name))
      expect(portOf(get)).toBeTypeOf('number')
    }
  })

  test('asks for its state in a span, where it is the app that does so', async () => {
    const recording = record()
    const cluster = traceIORedis(open())
    await once(cluster, 'ready')
    await cluster.cluster('INFO')
    expect((await recording.all(1))[0]?.attributes['db.query.text']).toBe('CLUSTER INFO')
  })

  test('issues what it pipelines by itself in the trace of each caller, also before it knows its slots', async () => {
    const recording = record()
    const cluster = traceIORedis(open({ enableAutoPipelining: true }))
    const calls = ['A', 'B', 'C'].map((name, index) => [name, keys[index] as string] as const)
    const run = () =>
      Promise.all(
        calls.map(([name, key]) =>
          span(name, async (caller) => {
            await cluster.get(key)
            expect(trace.getActiveSpan()).toBe(caller)
          }),
        ),
      )
    await run()
    const early = [...(await recording.all(6))]
    await run()
    for (const spans of [early, recording.spans.slice(6)]) {
      expect(spans).toHaveLength(6)
      for (const [index, [name, key]] of calls.entries()) {
        const get = spans.find(({ attributes }) => attributes['db.query.text'] === `GET ${key}`)
        expect(parentOf(get)).toBe(idOf(spans, name))
        expect(portOf(get)).toBe(servers.ports[index])
      }
    }
  })

  test('has pipelines and transactions as one span, and tells what it refuses', async () => {
    const recording = record()
    const cluster = traceIORedis(open())
    await cluster.pipeline().set(keys[0], 1).get(keys[0]).exec()
    await cluster.multi().set(keys[0], 1).get(keys[0]).exec()
    await expect(cluster.pipeline().get(keys[0]).get(keys[1]).exec()).rejects.toThrow('same slots')
    const [pipeline, multi, refused] = await recording.all(3)
    expect(pipeline).toMatchObject({ name: 'PIPELINE', attributes: { 'db.operation.batch.size': 2 } })
    expect(multi).toMatchObject({ name: 'MULTI', attributes: { 'db.operation.batch.size': 2 } })
    expect(refused).toMatchObject({ name: 'PIPELINE GET', status: { code: 2 } })
  })

  test('has with commandSpans the address of the node on the span of each command', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready(), { commandSpans: true })
    await cluster.pipeline().get(keys[1]).ttl(keys[1]).exec()
    await cluster.multi().get(keys[2]).exec()
    expect((await recording.all(5)).map((one) => [one.name, portOf(one)])).toEqual([
      ['GET', servers.ports[1]],
      ['TTL', servers.ports[1]],
      ['PIPELINE', servers.ports[1]],
      ['GET', servers.ports[2]],
      ['MULTI GET', servers.ports[2]],
    ])
  })

  test('refuses what is of several nodes: each command that has a span is an error', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready(), { commandSpans: true })
    const automatic = traceIORedis(await ready({ enableAutoPipelining: true }))
    await expect(cluster.pipeline().get(keys[0]).get(keys[1]).exec()).rejects.toThrow('same slots')
    await expect(automatic.mget(keys[0], keys[1])).rejects.toThrow('same slot')
    const spans = await recording.all(4)
    expect(namesOf(spans)).toEqual(['GET', 'GET', 'PIPELINE GET', 'MGET'])
    for (const { status } of spans) expect(status.code).toBe(2)
  })

  describe('whose slot moves to another node', () => {
    test('asks there while it moves, and follows when it has moved: one span for each call', async () => {
      const recording = record()
      const cluster = traceIORedis(await ready())
      const automatic = traceIORedis(await ready({ enableAutoPipelining: true }))
      await Promise.all([cluster.get(keys[0]), automatic.get(keys[0])])
      await recording.all(2)
      const there = { status: { code: 0 }, attributes: { 'server.port': servers.ports[1] } }
      const key = `{${keys[0]}}:new`
      const move = await moving(calculateSlot(keys[0]))
      try {
        // A key that is not there any more is asked for at the other node.
        await span('asked', () => cluster.get(key))
        await cluster.pipeline().get(key).get(key).exec()
        await automatic.get(key)
        const asked = recording.spans.slice(2)
        expect(namesOf(asked)).toEqual(['GET', 'asked', 'PIPELINE GET', 'GET'])
        for (const call of asked.filter(({ name }) => name !== 'asked')) expect(call).toMatchObject(there)
        expect(parentOf(asked[0])).toBe(idOf(asked, 'asked'))

        await move.finish()
        await cluster.pipeline().get(key).get(key).exec()
        await automatic.get(key)
        const other = traceIORedis(await ready())
        await move.back()
        // Of this one nobody has told it.
        await other.get(key)
        const moved = recording.spans.slice(6)
        expect(namesOf(moved)).toEqual(['PIPELINE GET', 'GET', 'GET'])
        expect(moved.map(portOf)).toEqual([servers.ports[1], servers.ports[1], servers.ports[0]])
        expect(moved.map(({ status }) => status.code)).toEqual([0, 0, 0])
      } finally {
        await move.back()
      }
    })

    test('and cannot say where several keys are is one span, which waits', async () => {
      const recording = record()
      const cluster = traceIORedis(await ready({ retryDelayOnTryAgain: 5, maxRedirections: 1000 }))
      const slot = calculateSlot(keys[0])
      const here = `{${keys[0]}}:here`
      const there = `{${keys[0]}}:there`
      await servers.admin(servers.ports[0] as number).config('RESETSTAT')
      const move = await moving(slot, true, here)
      try {
        const values = span('caller', () => cluster.mget(here, there))
        await tryingAgain()
        await move.back()
        expect(await values).toEqual(['1', null])
        expect(namesOf(await recording.all(2))).toEqual(['MGET', 'caller'])
        expect(recording.spans[0]).toMatchObject({ status: { code: 0 } })
      } finally {
        await move.back()
      }
    })

    test('in circles is an error in the end, in one span', async () => {
      const recording = record()
      const cluster = traceIORedis(await ready({ maxRedirections: 2 }))
      const move = await moving(calculateSlot(keys[0]), false)
      try {
        await expect(cluster.get(`{${keys[0]}}:new`)).rejects.toThrow('Too many Cluster redirections')
        expect((await recording.all(1))[0]).toMatchObject({
          name: 'GET',
          status: { code: 2 },
          attributes: { 'error.type': 'ASK', 'db.response.status_code': 'ASK' },
        })
      } finally {
        await move.back()
      }
    })
  })

  test('subscribes by a client of its own, in a span of the app', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready())
    const heard = new Promise((resolve) =>
      cluster.on('message', (...args) => resolve([...args, trace.getActiveSpan()])),
    )
    await span('caller', () => cluster.subscribe('channel'))
    await cluster.publish('channel', 's3cret')
    expect(await heard).toEqual(['channel', 's3cret', undefined])
    const [subscribe, caller, publish] = await recording.all(3)
    expect([subscribe?.name, publish?.name]).toEqual(['SUBSCRIBE', 'PUBLISH'])
    expect(parentOf(subscribe)).toBe(caller?.spanContext().spanId)
    expect(subscribe?.attributes['server.address']).toBe('127.0.0.1')
  })

  test.each<[string, (cluster: Cluster) => Cluster]>([
    ['by itself', () => open()],
    ['as a duplicate', (cluster) => cluster.duplicate()],
  ])('that a request makes, %s: messages belong to none', async (_how, make) => {
    record()
    const cluster = traceIORedis(await ready())
    const subscriber = await span('caller', async () => {
      const made = traceIORedis(make(cluster))
      closing.push(() => made.disconnect())
      await made.subscribe('channel')
      await made.psubscribe('chan*')
      return made
    })
    const heard = ['message', 'messageBuffer', 'pmessage', 'pmessageBuffer'].map(
      (event) => new Promise((resolve) => subscriber.once(event, () => resolve(trace.getActiveSpan()))),
    )
    await cluster.publish('channel', 'x')
    expect(await Promise.all(heard)).toEqual(heard.map(() => undefined))
  })

  test('whose nodes are traced too has one span for each call, and theirs, and none for what it asks them', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready())
    for (const node of cluster.nodes('master')) traceIORedis(node)
    const key = `{${keys[0]}}:new`
    const move = await moving(calculateSlot(keys[0]))
    try {
      // Each node is asked for its slots by a duplicate of its client, and told by ASKING what it has to answer.
      await cluster.get(key)
      await new Promise((done) => cluster.refreshSlotsCache(done))
      await cluster.pipeline().get(keys[1]).get(keys[1]).exec()
      for (const node of cluster.nodes('master')) await node.dbsize()
      expect(namesOf(await recording.all(5))).toEqual(['GET', 'PIPELINE GET', 'DBSIZE', 'DBSIZE', 'DBSIZE'])
    } finally {
      await move.back()
    }
  })

  test('of a worker begins no trace by what its loop is made of', async () => {
    const recording = record()
    const redis = new Redis.Cluster([{ host: '127.0.0.1', port: servers.ports[0] as number }], {
      redisOptions: { maxRetriesPerRequest: null },
    })
    closing.push(() => redis.disconnect())
    const cluster = traceIORedis(redis)
    await cluster.eval('return 1', 0)
    await cluster.get(keys[0])
    expect(namesOf(await recording.all(1))).toEqual(['GET'])
  })

  test('gives duplicates that are traced too, and is given back by untrace', async () => {
    const recording = record()
    const cluster = traceIORedis(await ready())
    const twin = cluster.duplicate()
    closing.push(() => twin.disconnect())
    await twin.get(keys[0])
    untrace(cluster)
    await cluster.get(keys[0])
    await cluster.pipeline().get(keys[0]).exec()
    await recording.all(1)
  })

  test('whose nodes another instrumentation traces is left to that, which is said once', async () => {
    const recording = record()
    const said = vi.spyOn(console, 'error').mockImplementation(() => {})
    const { sendCommand } = Redis.prototype
    const marked = function (this: Redis, ...args: Parameters<typeof sendCommand>) {
      return sendCommand.apply(this, args)
    }
    Redis.prototype.sendCommand = Object.assign(marked, { __wrapped: true })
    try {
      for (const options of [{}, { enableAutoPipelining: true }]) {
        const cluster = traceIORedis(await ready(options))
        await cluster.get(keys[0])
        await cluster.pipeline().get(keys[1]).exec()
        await cluster.multi().get(keys[2]).exec()
      }
    } finally {
      Redis.prototype.sendCommand = sendCommand
    }
    expect(recording.spans).toEqual([])
    expect(said.mock.calls).toEqual([
      ['throughline: another instrumentation traces ioredis already, so traceIORedis does not'],
    ])
  })

  test('is traced by one alone, also where the other comes late and goes again', async () => {
    const recording = record()
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const cluster = traceIORedis(await ready({}))
    await cluster.get(keys[0])
    const { sendCommand } = Redis.prototype
    const marked = function (this: Redis, ...args: Parameters<typeof sendCommand>) {
      return sendCommand.apply(this, args)
    }
    Redis.prototype.sendCommand = Object.assign(marked, { __wrapped: true })
    try {
      await cluster.set(keys[0], 'theirs')
    } finally {
      Redis.prototype.sendCommand = sendCommand
    }
    await cluster.del(keys[0])
    expect(namesOf(await recording.all(2))).toEqual(['GET', 'DEL'])
  })

  test('that cannot be reached is an error with a type', async () => {
    const recording = record()
    const cluster = traceIORedis(
      new Redis.Cluster([{ host: '127.0.0.1', port: 1 }], { clusterRetryStrategy: () => null }),
    )
    cluster.on('error', () => {})
    await expect(cluster.get(keys[0])).rejects.toThrow(
      /startup nodes|Connection is closed|all nodes|slots cache/i,
    )
    expect((await recording.all(1))[0]).toMatchObject({ status: { code: 2 } })
    expect(recording.spans[0]?.attributes['error.type']).toBeTypeOf('string')
  })
})

/** Starts to move a slot of the first node to the second. With `isTold` false the second does not know of it. */
async function moving(slot: number, isTold = true, held?: string) {
  const [first, second] = servers.ports.map((port) => servers.admin(port)) as [Redis, Redis]
  const [one, two] = (await Promise.all([first, second].map((node) => node.call('CLUSTER', 'MYID')))) as [
    string,
    string,
  ]
  // A node gives a slot away only when it holds none of its keys.
  await first.flushall()
  if (held !== undefined) await first.set(held, 1)
  await first.call('CLUSTER', 'SETSLOT', slot, 'MIGRATING', two)
  if (isTold) await second.call('CLUSTER', 'SETSLOT', slot, 'IMPORTING', one)
  let hasMoved = false
  return {
    async finish() {
      await handOver(slot, second, first, two)
      hasMoved = true
    },
    async back() {
      if (!hasMoved) {
        for (const node of [first, second]) await node.call('CLUSTER', 'SETSLOT', slot, 'STABLE')
        return
      }
      hasMoved = false
      await second.flushall()
      // Only a node that imports a slot gets an epoch with which the others believe it.
      await first.call('CLUSTER', 'SETSLOT', slot, 'IMPORTING', two)
      await handOver(slot, first, second, one)
    },
  }
}

async function handOver(slot: number, to: Redis, from: Redis, id: string): Promise<void> {
  for (const node of [to, from]) await node.call('CLUSTER', 'SETSLOT', slot, 'NODE', id)
}

/** A key of each third of the slots. */
function keysOfNodes(prefix: string): [string, string, string] {
  const keys: string[] = []
  for (let index = 0; keys.filter(Boolean).length < 3; index += 1) {
    const key = `${prefix}-${index}`
    keys[Math.floor((calculateSlot(key) * 3) / 16384)] ??= key
  }
  return keys as [string, string, string]
}

/** Resolves when the first node has told somebody to try again. */
async function tryingAgain(): Promise<void> {
  const admin = servers.admin(servers.ports[0] as number)
  while (!String(await admin.info('errorstats')).includes('TRYAGAIN'))
    await new Promise((resolve) => setImmediate(resolve))
}

function portOf(call: ReadableSpan | undefined): unknown {
  return call?.attributes['server.port']
}

function idOf(spans: readonly ReadableSpan[], name: string): string | undefined {
  return spans.find((candidate) => candidate.name === name)?.spanContext().spanId
}
