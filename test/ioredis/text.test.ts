import { span } from '@throughline/core'
import { traceIORedis, type QueryText } from '@throughline/ioredis'
import { describe, expect, test, vi } from 'vitest'
import { batchText, textOf } from '../../packages/ioredis/src/mask.ts'
import { record } from '../recording.ts'
import { clientsOf, versions } from './redis.ts'

const maskedCommand = textOf('masked')

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
    ['HEXPIRE h 60 FIELDS 1 s3cret', 'HEXPIRE h ? ? ? ?'],
    ['LCS a b LEN', 'LCS a b ?'],
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

  // Which characters those are, an expression says; it is asked only where that is needed.
  test('that goes by each character, wherever it stands', () => {
    for (let code = 0; code <= 0xffff; code += code < 0x3000 ? 1 : 251) {
      const character = String.fromCharCode(code)
      for (const word of [character, `a${character}`, `${character}a`]) {
        const shown = /^[^\s"'?]+$/.test(word) ? word : JSON.stringify(word)
        expect(maskedCommand('GET', [word])).toBe(`GET ${shown}`)
      }
    }
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

describe.each(versions)('%s: the app says how much of a command is told', (version, Redis) => {
  const { key, ready } = clientsOf(version, Redis)

  async function texts(queryText: QueryText): Promise<unknown[]> {
    const recording = record()
    const redis = traceIORedis(await ready(), { queryText })
    await redis.set(key, 'a value')
    await redis.pipeline().get(key).set(key, 's').exec()
    await redis.acl('LOG', 's3cret').catch(() => {})
    return (await recording.all(3)).map(({ attributes }) => attributes['db.query.text'])
  }

  test('everything, but for passwords', async () => {
    expect(await texts('full')).toEqual([`SET ${key} "a value"`, `GET ${key}; SET ${key} s`, 'ACL LOG ?'])
  })

  test('nothing', async () => {
    expect(await texts('none')).toEqual([undefined, undefined, undefined])
  })

  test('what a function of its own answers, for each command', async () => {
    expect(
      await texts((command, args) => (command === 'ACL' ? undefined : `${command}/${args.length}`)),
    ).toEqual(['SET/2', 'GET/1; SET/2', undefined])
  })

  test('nothing, where that function throws', async () => {
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const broken = () => {
      throw new Error('of the app')
    }
    expect(await texts(broken)).toEqual([undefined, undefined, undefined])
  })

  test('an unsampled command has no text made', async () => {
    record({ sampling: 0 })
    const queryText = vi.fn<() => string>(() => 'text')
    const redis = traceIORedis(await ready(), { queryText, commandSpans: true })
    await span('caller', async () => {
      await redis.get(key)
      await redis.pipeline().get(key).exec()
    })
    expect(queryText).not.toHaveBeenCalled()
  })

  test('in one of the ways that there are', async () => {
    const redis = await ready()
    expect(() => traceIORedis(redis, { queryText: 'all' as never })).toThrow(
      /expected queryText to be 'masked', 'full', 'none' or a function, received "all"; example: \{ queryText: 'none' \}/,
    )
    expect(() => traceIORedis(redis, { commandSpans: 1 as never })).toThrow(
      /expected commandSpans to be true or false, received 1; example: \{ commandSpans: true \}/,
    )
  })
})

test('a value that is told in full has an end', () => {
  expect(textOf('full')('SET', ['k', 'x'.repeat(1000)])).toBe(`SET k ${'x'.repeat(256)}…`)
})

test.each([
  ['AUTH', ['user', 's3cret']],
  ['HELLO', ['3', 'AUTH', 'user', 's3cret']],
  ['ACL', ['SETUSER', 'user', '>s3cret']],
  ['CONFIG', ['SET', 'requirepass', 's3cret']],
  ['MIGRATE', ['host', '6379', '', '0', '5000', 'AUTH', 's3cret']],
  ['SENTINEL', ['SET', 'main', 'auth-pass', 's3cret']],
])('a password in %s is not told, whatever is asked for', (name, args) => {
  expect(textOf('full')(name, args)).not.toContain('s3cret')
})
