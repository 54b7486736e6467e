import { describe, expect, test } from 'vitest'
import { app } from '../core/process.ts'
import { url } from './redis.ts'

// Node's own rule for rejections, and what is read once from the environment, can be seen in a process of its own only.

describe.each([
  ['ioredis 6', 'ioredis'],
  ['ioredis 5', 'ioredis5'],
])('%s: a rejection that the app forgets', (_version, module) => {
  const run = async (call: string, isTraced: boolean) => {
    const { code, stdout, stderr } = await app(`
      import { createRequire } from 'node:module'
      import { start } from '@throughline/core'
      import { traceIORedis } from '@throughline/ioredis'
      const Redis = createRequire(process.cwd() + '/test/')(${JSON.stringify(module)})
      const spans = []
      start({ signals: false, spanProcessors: [
        { onStart() {}, onEnd(span) { spans.push(span) }, forceFlush: async () => {}, shutdown: async () => {} },
      ] })
      const redis = new Redis(${JSON.stringify(url)}, { enableAutoPipelining: ${call.includes('automatic')} })
      let count = 0
      process.on('unhandledRejection', (error) => { count += 1; console.log(error.message.slice(0, 9)) })
      const list = 'process:' + process.pid
      await redis.lpush(list, 1)
      redis.defineCommand('failing', { numberOfKeys: 1, lua: "return redis.call('INCR', KEYS[1])" })
      ${isTraced ? 'traceIORedis(redis)' : ''}
      const automatic = redis
      void ${call}
      await redis.ping()
      await redis.ping()
      await new Promise(setImmediate)
      await redis.del(list)
      redis.disconnect()
      console.log(count)
      console.error(spans.length > 0)
    `).ended
    expect(stderr).toBe(`${isTraced}\n`)
    return { code, stdout }
  }

  test.each([
    ['of a command', 'redis.incr(list)'],
    ['of a command with a callback', 'redis.incr(list, () => {})'],
    ['of a transaction', 'redis.multi().call("NOTHING").exec()'],
    ['of a pipeline, which has none', 'redis.pipeline().incr(list).exec()'],
    ['of a script', 'redis.failing(list)'],
    ['of what is pipelined by itself', 'automatic.incr(list)'],
  ])('%s is as unhandled as before', async (_, call) => {
    const [before, after] = await Promise.all([run(call, false), run(call, true)])
    expect(after).toEqual(before)
  })
})

test('who asks for them gets the names that attributes had before, too', async () => {
  const { stdout, stderr } = await app(
    `
      import { Redis } from 'ioredis'
      import { start } from '@throughline/core'
      import { traceIORedis } from '@throughline/ioredis'
      const onEnd = ({ attributes }) => console.log(JSON.stringify(attributes))
      start({ signals: false, spanProcessors: [
        { onStart() {}, onEnd, forceFlush: async () => {}, shutdown: async () => {} },
      ] })
      const redis = traceIORedis(new Redis(${JSON.stringify(url)}))
      await redis.get('key')
      await redis.get('key')
      redis.disconnect()
    `,
    { OTEL_SEMCONV_STABILITY_OPT_IN: 'database/dup' },
  ).ended
  expect(stderr).toBe('')
  const { hostname, port, pathname } = new URL(url)
  const old = {
    'db.system': 'redis',
    'db.redis.database_index': Number(pathname.slice(1) || 0),
    'db.operation': 'GET',
    'db.statement': 'GET key',
    'db.query.text': 'GET key',
    'net.peer.name': hostname,
    'net.sock.peer.port': Number(port || 6379),
  }
  // The first has waited for its connection.
  expect(stdout.split('\n').map((line) => JSON.parse(line) as unknown)).toEqual([
    expect.objectContaining(old),
    expect.objectContaining(old),
  ])
})
