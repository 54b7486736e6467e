import { describe, expect, test } from 'vitest'
import { batchText, maskedCommand } from '../../packages/ioredis/src/mask.ts'

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
