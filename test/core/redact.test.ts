import { describe, expect, test } from 'vitest'
import { redactQuery, redactText, redactUrl } from '../../packages/core/src/redact.ts'
import { expectNoQuadraticGrowth } from '../growth.ts'

const SECRET_KEYS = [
  'X-Amz-Signature',
  'X-Amz-Credential',
  'X-Amz-Security-Token',
  'AWSAccessKeyId',
  'Signature',
  'sig',
  'X-Goog-Signature',
]

describe('of a query, the value of', () => {
  test.each(SECRET_KEYS)('%s does not leave, wherever it is', (key) => {
    for (const secret of ['aB3', 'aB3%2F+=']) {
      for (const query of [
        `${key}=${secret}`,
        `a=1&${key}=${secret}`,
        `${key}=${secret}&b=2`,
        `a&${key}=${secret}&b`,
      ]) {
        expect(redactQuery(query)).toBe(query.replace(secret, 'REDACTED'))
      }
    }
  })

  test('a key that is there twice does not leave twice', () => {
    expect(redactQuery('sig=a&sig=b')).toBe('sig=REDACTED&sig=REDACTED')
  })

  test('a key that is encoded does not leave either', () => {
    expect(redactQuery('%73ig=a')).toBe('%73ig=REDACTED')
    expect(redactQuery('X%2DAmz%2DSignature=b')).toBe('X%2DAmz%2DSignature=REDACTED')
  })

  test('a key next to one that cannot be decoded does not leave', () => {
    expect(redactQuery('%zz=1&sig=a')).toBe('%zz=1&sig=REDACTED')
  })

  test.each([
    '',
    'a=1&b=2',
    'Sig=x',
    'SIG=x',
    'signature=x',
    'x-amz-signature=x',
    'sigma=x',
    'my_sig=x',
    'sig',
    'a=sig&b=Signature',
    'a=%zz&b=%',
  ])('%j stays as it is', (query) => {
    expect(redactQuery(query)).toBe(query)
  })
})

describe('a URL', () => {
  test.each([
    ['http://u:p@h:8080/a?sig=x&b=1', 'http://REDACTED:REDACTED@h:8080/a?sig=REDACTED&b=1'],
    ['https://u:p@h/', 'https://REDACTED:REDACTED@h/'],
    ['https://u:p@h', 'https://REDACTED:REDACTED@h'],
    ['https://u:p@h?a=1', 'https://REDACTED:REDACTED@h?a=1'],
    ['https://token@h/', 'https://REDACTED@h/'],
    ['https://u:@h/', 'https://REDACTED:REDACTED@h/'],
    ['https://u:p@ss@h/', 'https://REDACTED:REDACTED@h/'],
    ['https://u:p@[::1]:3000/a', 'https://REDACTED:REDACTED@[::1]:3000/a'],
    ['https://h/a?sig=x#b', 'https://h/a?sig=REDACTED#b'],
    ['/a?sig=x', '/a?sig=REDACTED'],
    ['//u:p@h/a@b', '//REDACTED:REDACTED@h/a@b'],
  ])('%s is exported as %s', (url, exported) => {
    expect(redactUrl(url)).toBe(exported)
  })

  test.each([
    'https://h/',
    'https://h/a@b',
    'https://h/a:b@c',
    'https://h/?mail=a@b',
    'https://h/#a:b@c',
    'https://h/a?b=1#c',
    '/a@b?c=d',
    '',
  ])('%j stays as it is', (url) => {
    expect(redactUrl(url)).toBe(url)
  })
})

describe('a text', () => {
  test.each([
    ['at http://u:p@h/: no', 'at http://REDACTED:REDACTED@h/: no'],
    [
      '"http://u:p@h/?sig=x" and <amqp://u:p@q>',
      '"http://REDACTED:REDACTED@h/?sig=REDACTED" and <amqp://REDACTED:REDACTED@q>',
    ],
    ['no URL: //u:p@h/', 'no URL: //REDACTED:REDACTED@h/'],
    [
      'none of amqp://u:p@h/a,amqps://v:q@i/b?sig=x,nats://w:r@j',
      'none of amqp://REDACTED:REDACTED@h/a,amqps://REDACTED:REDACTED@i/b?sig=REDACTED,nats://REDACTED:REDACTED@j',
    ],
    ["['http://u:p@h','http://v:q@i']", "['http://REDACTED:REDACTED@h','http://REDACTED:REDACTED@i']"],
  ])('%j is told as %j', (text, told) => {
    expect(redactText(text)).toBe(told)
  })

  test.each([
    'mail a@b, then // comment @see c@d',
    'at file:///app/node_modules/.pnpm/x@1.2/index.js:3:4',
    'http://h/a@b?mail=c@d',
    'webpack://@scope/app/a.js',
  ])('%j stays as it is', (text) => {
    expect(redactText(text)).toBe(text)
  })

  test.each(['//', '// ', '//a@', '//?', 'http://', '//,', '//a,b'])(
    '%j again and again costs what it is long',
    async (part) => {
      await expectNoQuadraticGrowth((size) => {
        const text = part.repeat(size)
        return () => redactText(text)
      }, 6000)
    },
  )
})
