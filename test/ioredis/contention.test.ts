import { context, createContextKey, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { span, type ReadableSpan } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, knowsShards, parentOf, versions } from './redis.ts'

const CALLERS = Array.from({ length: 50 }, (_, index) => `caller ${index}`)

describe.each(versions)(
  '%s: fifty callers of one connection, each in a trace of its own,',
  (version, Redis) => {
    const { prefix, key, open, ready, afterwards } = clientsOf(version, Redis)

    const forms: [string, (redis: Redis6, own: string) => Promise<unknown>, string][] = [
      ['a command', (redis, own) => redis.getrange(own, 0, 1), 'GETRANGE'],
      ['a pipeline', (redis, own) => redis.pipeline().get(own).ttl(own).exec(), 'PIPELINE'],
      ['a transaction', (redis, own) => redis.multi().get(own).ttl(own).exec(), 'MULTI'],
      [
        'a callback',
        (redis, own) => new Promise((resolve) => void redis.strlen(own, (_error, reply) => resolve(reply))),
        'STRLEN',
      ],
    ]

    const connections: [string, () => Promise<Redis6>][] = [
      ['before it is connected', async () => open({ lazyConnect: true })],
      ['while it is busy', () => ready()],
      ['while it pipelines by itself', () => ready({ enableAutoPipelining: true })],
      [
        'while it is connected anew',
        async () => {
          const redis = await ready({ retryStrategy: () => 1 })
          const closed = once(redis, 'close')
          redis.disconnect(true)
          await closed
          return redis
        },
      ],
    ]

    test.each(
      connections.flatMap(([when, connect]) => forms.map((form) => [when, ...form, connect] as const)),
    )('%s, by %s: each has its own and nobody else’s', async (_when, _form, call, name, connect) => {
      const recording = record()
      const redis = traceIORedis(await connect())
      await Promise.all(
        CALLERS.map((caller) =>
          span(caller, async (current) => {
            await call(redis, `${prefix}:${caller}`)
            expect(trace.getActiveSpan()).toBe(current)
          }),
        ),
      )
      const spans = await recording.all(2 * CALLERS.length)
      for (const caller of CALLERS) {
        const children = childrenOf(spans, caller)
        expect(children.map((child) => child.name)).toEqual([name])
        expect(children[0]?.attributes['db.query.text']).toContain(`${caller}"`)
      }
    })

    test('that arrive as requests at a server, the first of which has it connect: each has its own', async () => {
      const recording = record()
      const redis = traceIORedis(open({ lazyConnect: true }))
      const server = createServer((request, response) => {
        void span(String(request.url), async () => {
          await redis.get(key)
          await redis.get(`${prefix}:${request.url}`)
          response.end()
        })
      })
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      afterwards(() => server.close())
      const { port } = server.address() as AddressInfo
      const paths = CALLERS.map((caller) => `/${caller.replace(' ', '-')}`)
      await Promise.all(
        paths.map((path) => fetch(`http://127.0.0.1:${port}${path}`).then((one) => one.text())),
      )
      const spans = await recording.all(3 * paths.length)
      for (const path of paths) {
        expect(childrenOf(spans, path).map(({ attributes }) => attributes['db.query.text'])).toEqual([
          `GET ${key}`,
          `GET ${prefix}:${path}`,
        ])
      }
    })

    test('one of which has it connect: what arrives later by itself belongs to none', async () => {
      const recording = record()
      const redis = traceIORedis(open({ lazyConnect: true }))
      await span('caller', () => redis.subscribe(key))
      const arrived = new Promise((resolve) => {
        redis.once('message', () => resolve(trace.getActiveSpan()))
      })
      const other = await ready()
      await other.publish(key, 'x')
      expect(await arrived).toBeUndefined()
      await recording.all(2)
    })

    test('in a context of the app’s own without a span: messages stay in that', async () => {
      record()
      const tenant = createContextKey('tenant')
      const subscriber = context.with(ROOT_CONTEXT.setValue(tenant, 'acme'), () => {
        const made = traceIORedis(open())
        afterwards(() => made.disconnect())
        return made
      })
      await subscriber.subscribe(key)
      const heard = new Promise((resolve) => {
        subscriber.once('message', () => resolve(context.active().getValue(tenant)))
      })
      await (await ready()).publish(key, 'x')
      expect(await heard).toBe('acme')
    })

    test.each<[string, (redis: Redis6) => Redis6]>([
      ['by itself', () => open()],
      ['as a duplicate', (redis) => redis.duplicate()],
    ])('one of which makes it, %s: messages belong to none', async (_how, make) => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const subscriber = await span('caller', async () => {
        const made = traceIORedis(make(redis))
        afterwards(() => made.disconnect())
        await made.subscribe(key)
        await made.psubscribe(`${key}*`)
        return made
      })
      const heard = ['message', 'messageBuffer', 'pmessage', 'pmessageBuffer'].map(
        (event) => new Promise((resolve) => subscriber.once(event, () => resolve(trace.getActiveSpan()))),
      )
      const answered = new Promise((resolve) => subscriber.once('message', () => resolve(redis.get(key))))
      await redis.publish(key, 'x')
      expect(await Promise.all(heard)).toEqual(heard.map(() => undefined))
      await answered
      const get = (await recording.all(5)).find(({ name }) => name === 'GET')
      expect(get).toBeDefined()
      expect(parentOf(get)).toBeUndefined()
    })

    test.skipIf(!knowsShards(Redis))(
      'one of which makes it: messages of channels by shard belong to none',
      async () => {
        record()
        const subscriber = await span('caller', async () => {
          const made = traceIORedis(open())
          await made.ssubscribe(key)
          return made
        })
        const heard = ['smessage', 'smessageBuffer'].map(
          (event) => new Promise((resolve) => subscriber.once(event, () => resolve(trace.getActiveSpan()))),
        )
        await (await ready()).spublish(key, 'x')
        expect(await Promise.all(heard)).toEqual([undefined, undefined])
      },
    )

    test('one of which makes a duplicate: its events belong to none, and what it is asked to the caller', async () => {
      const recording = record()
      const redis = traceIORedis(await ready())
      await span('caller', async (caller) => {
        const twin = redis.duplicate()
        afterwards(() => twin.disconnect())
        const heard = new Promise((resolve) => twin.once('ready', () => resolve(trace.getActiveSpan())))
        await twin.get(key)
        expect(trace.getActiveSpan()).toBe(caller)
        expect(await heard).toBeUndefined()
      })
      expect(childrenOf(await recording.all(2), 'caller').map(({ name }) => name)).toEqual(['GET'])
    })

    test('one of which connects it: that goes on in its own context', async () => {
      record()
      const redis = traceIORedis(open({ lazyConnect: true }))
      await span('caller', async (caller) => {
        await redis.connect()
        expect(trace.getActiveSpan()).toBe(caller)
        redis.disconnect()
        await once(redis, 'end')
        await new Promise<void>(
          (resolve) => void redis.connect(() => resolve(expect(trace.getActiveSpan()).toBe(caller))),
        )
      })
    })
  },
)

function childrenOf(spans: readonly ReadableSpan[], name: string): ReadableSpan[] {
  const caller = spans.find((one) => one.name === name)
  return spans.filter((one) => parentOf(one) === caller?.spanContext().spanId)
}
