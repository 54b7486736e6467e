import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import type { Redis as Redis6 } from 'ioredis'
import { describe, expect, test, vi } from 'vitest'
import { maskedMessage, textOf } from '../../packages/ioredis/src/mask.ts'
import { record } from '../recording.ts'
import { clientsOf, versions } from './redis.ts'

const SAYS = "return redis.error_reply('BAD card ' .. ARGV[1])"

describe.each(versions)('%s: no value leaves by the message of an error', (version, Redis) => {
  const { key, ready } = clientsOf(version, Redis)

  test.each<[string, (redis: Redis6) => Promise<unknown>, string]>([
    [
      'what the server quotes',
      (redis) => redis.call('NOTHING', "s3'cret", 's3cret'),
      "ERR unknown command '?' ",
    ],
    [
      'an option that the server quotes',
      (redis) => redis.call('CONFIG', 'SET', 's3cret', '1'),
      "ERR Unknown option or number of arguments for CONFIG SET - '?'",
    ],
    ['an argument that a script repeats', (redis) => redis.eval(SAYS, 1, key, 's3cret'), 'BAD card ?'],
    [
      'an argument with characters that mean something elsewhere',
      (redis) => redis.eval(SAYS, 1, key, 's3cret.*+?^${}()|[]\\/-$&'),
      'BAD card ?',
    ],
    [
      'an argument that is a URL',
      (redis) => redis.eval(SAYS, 1, key, 'http://user:s3cret@s3cret.example/?sig=s3cret'),
      'BAD card ?',
    ],
    [
      'an argument that is longer than any word',
      (redis) => redis.eval(SAYS, 1, key, 's3cret'.repeat(20_000)),
      'BAD ?',
    ],
    ['a Buffer', (redis) => redis.eval(SAYS, 1, key, Buffer.from('s3cret ä')), 'BAD card ?'],
    [
      'an argument within which stands another one',
      (redis) => redis.eval(`${SAYS} -- 2`.replace('ARGV[1]', 'ARGV[2]'), 1, key, '1', 's3cret 1'),
      'BAD card ?',
    ],
    [
      'an argument with a number as the server writes coordinates',
      (redis) => redis.eval(SAYS, 1, key, 's3cret 52.520000 cret'),
      'BAD card ?',
    ],
    [
      'within a pipeline',
      (redis) => redis.pipeline().get(key).eval(SAYS, 1, key, 's3cret').exec().then(failing),
      'BAD card ?',
    ],
    [
      'within a transaction',
      (redis) => redis.multi().get(key).eval(SAYS, 1, key, 's3cret').exec().then(failing),
      'BAD card ?',
    ],
    [
      'within a transaction in a pipeline',
      (redis) => {
        const pipeline = redis.pipeline().get(key)
        pipeline.call('multi')
        pipeline.eval(SAYS, 1, key, 's3cret')
        pipeline.call('exec')
        return pipeline.exec().then((results) => {
          const executed = results?.at(-1)?.[1] as Error[] | undefined
          failing(executed?.map((one) => [one]) ?? [])
        })
      },
      'BAD card ?',
    ],
  ])('%s', async (_, call, message) => {
    const recording = record()
    const redis = traceIORedis(await ready())
    const error = await span('caller', () => call(redis)).catch((thrown: unknown) => thrown as Error)

    const [command, caller] = await recording.all(2)
    expect(command?.status).toEqual({ code: 2, message })
    // The span around it has met the same error.
    expect(caller?.events[0]?.attributes).toMatchObject({ 'exception.message': message })
    expect(
      JSON.stringify([command, caller].map((one) => [one?.status, one?.events, one?.attributes])),
    ).not.toContain('s3')
    // The app's own error is as it was.
    expect((error as Error).message).toContain('s3')
  })

  test('nor a place, which the server writes otherwise than the app', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    await expect(redis.geoadd(key, 35.6895, -139.69171234, 'home')).rejects.toThrow('35.689500,-139.691712')
    const [command] = await recording.all(1)
    expect(command?.status.message).toBe('ERR invalid longitude,latitude pair ?,?')
  })

  test('but names of commands, of keys and words of the server are kept', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    await redis.call('GET').catch(() => {})
    await redis.set(key, 1, 'EX', -1).catch(() => {})
    // A value is found as a word: this one is a letter of the key, too.
    await redis
      .eval("return redis.error_reply('BAD ' .. KEYS[1] .. ' is 7')", 1, key, 'i', 'e')
      .catch(() => {})
    expect((await recording.all(3)).map(({ status }) => status.message)).toEqual([
      "ERR wrong number of arguments for 'get' command",
      "ERR invalid expire time in 'set' command",
      `BAD ${key} is 7`,
    ])
  })
})

function failing(results: readonly (readonly unknown[])[] | null): void {
  const error = results?.map(([first]) => first).find((first) => first instanceof Error)
  if (error !== undefined) throw error
}

describe.each(versions)('%s', (version, Redis) => {
  const { ready } = clientsOf(version, Redis)

  test('a span around a command that is ignored tells of its error without the values', async () => {
    const recording = record()
    const redis = traceIORedis(await ready(), { ignore: () => true })
    await expect(span('caller', () => redis.call('NOTHING', 's3cret'))).rejects.toThrow('s3cret')
    const [caller] = await recording.all(1)
    expect(caller?.status.code).toBe(2)
    expect(JSON.stringify([caller?.status, caller?.events])).not.toContain('s3cret')
  })

  test.each(["arg='s3cret'", '>"s3cret"', "['s3cret']", "key:'s3cret'"])(
    'what a script quotes behind any character is masked: %s',
    async (said) => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const script = `return redis.error_reply([==[BAD ${said} here]==])`
      await expect(redis.eval(script, 0)).rejects.toThrow('s3cret')
      const [call] = await recording.all(1)
      expect(call?.status.message).not.toContain('s3cret')
      expect(call?.status.message).toMatch(/^BAD .*\?/)
    },
  )

  test.each<[string, (redis: Redis6, script: string, value: string) => Promise<unknown>]>([
    ['a script', (redis, script, value) => redis.eval(script, 0, value)],
    ['a script in a transaction', (redis, script, value) => redis.multi().eval(script, 0, value).exec()],
  ])('%s may begin its error with a value in capitals, which is no code then', async (_what, run) => {
    const recording = record()
    const redis = traceIORedis(await ready())
    for (const [script, value] of [
      ["return redis.error_reply(ARGV[1] .. ' refused')", 'S3CRET'],
      ['return {err = ARGV[1]}', 'S3CRET WORDS'],
    ] as const)
      await run(redis, script, value).catch(() => {})
    await vi.waitFor(() => expect(recording.spans.length).toBeGreaterThanOrEqual(2))
    for (const { attributes, events, status } of recording.spans) {
      expect(JSON.stringify([attributes, events, status])).not.toContain('S3CRET')
      expect(attributes['error.type']).toBe('ReplyError')
      expect(attributes['db.response.status_code']).toBeUndefined()
    }
  })

  test.each([4096, 65_536, 1_000_000])(
    'a script may repeat a value of %i characters: its error reaches the caller, and the span without it',
    async (length) => {
      const recording = record()
      const redis = traceIORedis(await ready())
      const value = 's3cret-'.repeat(length / 7)
      await expect(redis.eval("return redis.error_reply('BAD ' .. ARGV[1])", 0, value)).rejects.toThrow(value)
      const [call] = await recording.all(1)
      expect(call?.status).toEqual({ code: 2, message: 'BAD ?' })
    },
  )

  test('an apostrophe is no quotation mark', async () => {
    const recording = record()
    const redis = traceIORedis(await ready())
    await expect(
      redis.eval("return redis.error_reply([==[BAD can't do that, won't do this]==])", 0),
    ).rejects.toThrow("BAD can't")
    const [call] = await recording.all(1)
    expect(call?.status.message).toBe("BAD can't do that, won't do this")
  })
})

test('an argument that is no text is masked: it is for ioredis to refuse', () => {
  const maskedCommand = textOf('masked')
  const odd: unknown = Object.create(null)
  expect(maskedCommand('GET', [odd])).toBe('GET "?"')
  expect(maskedCommand('XREAD', [odd, 'STREAMS', 'a', '0'])).toBe('XREAD ? STREAMS a ?')
})

test('a value is masked where it stands as a word, and as often as it does', () => {
  const message = (said: string, ...args: string[]) =>
    maskedMessage(new Error(said), { name: 'eval', args: ['return', '0', ...args] })
  expect(message('BAD a, xa, ax, a', 'a')).toBe('BAD ?, xa, ax, ?')
  expect(message('BAD -- and ---', '--')).toBe('BAD ? and ?-')
  expect(message('BAD xaba aba', 'aba')).toBe('BAD xaba ?')
})

test('the error of an XREAD without its word costs no more than its arguments grow', () => {
  let read = 0
  const arg = {
    toString() {
      read += 1
      return 'value'
    },
  }
  maskedMessage(new Error('ERR syntax error'), {
    name: 'xread',
    args: Array.from({ length: 1000 }, () => arg),
  })
  // A search through all of them for each would read a million.
  expect(read).toBeLessThan(20_000)
})
