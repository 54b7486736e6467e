import type { ReadableSpan } from '@throughline/core'
import { Redis as Redis6, type RedisOptions } from 'ioredis'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { createServer, type AddressInfo } from 'node:net'
import { afterEach, inject } from 'vitest'

// Until 5.3 it has no name but `default`.
const require = createRequire(import.meta.url)
const Redis5 = require('ioredis5') as typeof Redis6
const { version: version5 } = require('ioredis5/package.json') as { version: string }

export const versions: [version: string, Redis: typeof Redis6][] = [
  ['ioredis 6', Redis6],
  ['ioredis 5', Redis5],
]

/** Whether it knows messages of channels by shard: 5.0 takes one for an answer that nobody asked for. */
export function knowsShards(Redis: typeof Redis6): boolean {
  return Redis !== Redis5 || !version5.startsWith('5.0.')
}

type Options = Omit<RedisOptions, 'replyMapping'>

export const url = inject('redisUrl')
export const { hostname, port, pathname } = new URL(url)
export const namespace = pathname.slice(1) || '0'

export interface Opened {
  readonly prefix: string
  /** Keys that are deleted after each test. */
  readonly key: string
  readonly list: string
  readonly other: string
  /** A client that nobody has traced yet, disconnected after the test. */
  open(options?: Options): Redis6
  /** The same as soon as it is ready. */
  ready(options?: Options): Promise<Redis6>
  /** Has this done after the test. */
  afterwards(close: () => unknown): void
}

/** What the tests of one version have in common. */
export function clientsOf(version: string, Redis: typeof Redis6): Opened {
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

  return { prefix, key, list, other, open, ready, afterwards: (close) => void closing.push(close) }
}

/** A port where nobody listens. */
export async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return address.port
}

export function parentOf(child: ReadableSpan | undefined): string | undefined {
  return child?.parentSpanContext?.spanId
}

/** What of the spans is told by a list of their names, in order of their ends. */
export function namesOf(spans: readonly ReadableSpan[]): string[] {
  return spans.map(({ name }) => name)
}
