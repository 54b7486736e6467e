import { baggageEntryMetadataFromString, propagation, type Baggage } from '@opentelemetry/api'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { formatBaggage, parseBaggage } from '../../packages/core/src/baggage.ts'

type Entries = Record<string, string | { value: string; metadata: string }>

/** A Baggage as plain data: the value alone where there is no metadata. */
function entries(baggage: Baggage | undefined): Entries | undefined {
  if (baggage === undefined) return undefined
  return Object.fromEntries(
    baggage.getAllEntries().map(([key, { value, metadata }]) => {
      return [key, metadata === undefined ? value : { value, metadata: metadata.toString() }]
    }),
  )
}

function baggageOf(plain: Entries): Baggage {
  let baggage = propagation.createBaggage()
  for (const [key, entry] of Object.entries(plain)) {
    if (typeof entry === 'string') baggage = baggage.setEntry(key, { value: entry })
    else {
      const metadata = baggageEntryMetadataFromString(entry.metadata)
      baggage = baggage.setEntry(key, { value: entry.value, metadata })
    }
  }
  return baggage
}

/** A header of `count` members, each of `size` bytes. */
function sized(count: number, size: number): string {
  return Array.from({ length: count }, (_, i) => `key${i}=`.padEnd(size, 'v')).join(',')
}

const everyTokenChar = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
const everyValueChar =
  "!#$%25&'()*+-./0123456789:<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopqrstuvwxyz{|}~"
const token = fc.string({ unit: fc.constantFrom(...everyTokenChar), minLength: 1, maxLength: 10 })
/** Any UTF-16 at all, halves of surrogate pairs included. */
const anyText = fc.string({ unit: fc.nat(0xffff).map((code) => String.fromCharCode(code)) })

describe('parseBaggage', () => {
  test.each<[string, string, Entries | undefined]>([
    ['one member', 'user=42', { user: '42' }],
    ['several members', 'a=1,b=2', { a: '1', b: '2' }],
    [
      'blanks around everything',
      ' \ta = 1 \t, b\t=\t2 ;\tp = x \t',
      { a: '1', b: { value: '2', metadata: 'p = x' } },
    ],
    ['an empty value', 'a=', { a: '' }],
    ['a value with equals signs', 'a=b=c==', { a: 'b=c==' }],
    ['properties, unchanged', 'a=1;p=%20x;q ; r=2', { a: { value: '1', metadata: 'p=%20x;q ; r=2' } }],
    ['a semicolon with nothing after it', 'a=1; ', { a: '1' }],
    ['empty members', ',a=1,, \t,b=2,', { a: '1', b: '2' }],
    ['an encoded value', 'a=%D0%96%20%2C%25%0a', { a: 'Ж ,%\n' }],
    ['a plus, which is a plus', 'a=1+2', { a: '1+2' }],
    ['bytes that are not UTF-8', 'a=x%FFy%C3', { a: 'x\ufffdy\ufffd' }],
    ['half a surrogate pair in UTF-8', 'a=%ED%A0%80', { a: '\ufffd\ufffd\ufffd' }],
    [
      'percent signs that announce no byte',
      'a=%,b=%4,c=%zz,d=100%25%,e=%%41',
      { a: '%', b: '%4', c: '%zz', d: '100%%', e: '%A' },
    ],
    ['an encoded byte order mark', 'a=%EF%BB%BFx', { a: '\ufeffx' }],
    ['text that should have been encoded', 'a=é %41', { a: 'é A' }],
    ['a key of every token character', `${everyTokenChar}=1`, { [everyTokenChar]: '1' }],
    [
      'a value of every character that needs no encoding',
      `a=${everyValueChar}`,
      { a: everyValueChar.replace('%25', '%') },
    ],
    ['a key twice: the last counts', 'a=1,b=2,a=3', { a: '3', b: '2' }],
    ['a member that is no pair', 'a,b=2', { b: '2' }],
    ['an equals sign among the properties only', 'a;p=1,b=2', { b: '2' }],
    ['an empty key', '=1,b=2', { b: '2' }],
    ['keys that are no tokens', 'a b=1,"c"=2,d/e=3,é=4,(f)=5,g@h=6,ok=7', { ok: '7' }],
    ['nothing but commas', ',,,', undefined],
    ['an empty header', '', undefined],
  ])('reads %s', (_, header, want) => {
    expect(entries(parseBaggage(header))).toEqual(want)
  })

  test('takes names of the prototype for keys like any other', () => {
    const baggage = parseBaggage('__proto__=1,constructor=2,toString=3')
    expect(baggage?.getEntry('__proto__')?.value).toBe('1')
    expect(baggage?.getEntry('constructor')?.value).toBe('2')
    expect(baggage?.getAllEntries()).toHaveLength(3)
    expect(({} as Record<string, unknown>)['value']).toBeUndefined()
  })

  test.each<[string, unknown, Entries | undefined]>([
    ['a Buffer', Buffer.from('a=1'), { a: '1' }],
    ['several headers', ['a=1', Buffer.from('b=2'), ''], { a: '1', b: '2' }],
    ['undefined', undefined, undefined],
    ['null', null, undefined],
    ['a number', 7, undefined],
    ['an object', { a: 1 }, undefined],
    ['an array with a number', ['a=1', 7], undefined],
    ['an empty array', [], undefined],
  ])('takes what a carrier holds: %s', (_, carried, want) => {
    expect(entries(parseBaggage(carried))).toEqual(want)
  })

  test('keeps 64 members, and up to 8192 bytes of them', () => {
    const header = sized(64, 127).concat('v')
    expect(header).toHaveLength(8192)
    expect(parseBaggage(header)?.getAllEntries()).toHaveLength(64)
    expect(formatBaggage(parseBaggage(header)!)).toBe(header)
  })

  test('leaves out, whole, the member that does not fit in 8192 bytes, and not those after it', () => {
    const baggage = parseBaggage(`a=1,big=${'v'.repeat(8185)},b=2`)
    expect(entries(baggage)).toEqual({ a: '1', b: '2' })
    expect(parseBaggage(`big=${'v'.repeat(8188)}`)?.getEntry('big')?.value).toHaveLength(8188)
    expect(parseBaggage(`big=${'v'.repeat(8189)}`)).toBeUndefined()
  })

  test('keeps the first 180 members of any number', () => {
    const baggage = parseBaggage(Array.from({ length: 10_000 }, (_, i) => `k${i}=1`).join(','))
    expect(baggage?.getAllEntries()).toHaveLength(180)
    expect(baggage?.getEntry('k179')?.value).toBe('1')
  })

  test.each([63, 64, 65, 179, 180])('keeps all of %i members, in their order', (count) => {
    const header = sized(count, 12)
    expect(parseBaggage(header)?.getAllEntries()).toHaveLength(count)
    expect(formatBaggage(parseBaggage(header)!)).toBe(header)
  })

  test('keeps the first 180 of 181 members, with empty ones between, on one line or on several', () => {
    const members = sized(181, 12).split(',')
    const wanted = members.slice(0, 180).join(',')
    for (const carried of [
      members.join(','),
      members.join(' ,,\t, '),
      members,
      members.flatMap((m) => [m, '']),
    ]) {
      expect(formatBaggage(parseBaggage(carried)!)).toBe(wanted)
    }
  })

  test('keeps whole members of 8192 bytes, and of 8193 all but the one that does not fit', () => {
    const fits = `a=1,${'b='.padEnd(8188, 'v')}`
    expect(fits).toHaveLength(8192)
    expect(formatBaggage(parseBaggage(fits)!)).toBe(fits)
    expect(formatBaggage(parseBaggage(`${fits}v`)!)).toBe('a=1')
    const withProperties = `a=1,${'b=1;p='.padEnd(8188, 'v')}`
    expect(formatBaggage(parseBaggage(withProperties)!)).toBe(withProperties)
    expect(formatBaggage(parseBaggage(`${withProperties}v`)!)).toBe('a=1')
    expect(formatBaggage(parseBaggage(`${fits},c=1`)!)).toBe(fits)
  })

  test('has a key that comes twice once, where it came first and with what it held last', () => {
    expect(formatBaggage(parseBaggage('a=1,b=2,a=3;p,c=4')!)).toBe('a=3;p,b=2,c=4')
  })

  test.each<[string, string]>([
    ['a byte that begins nothing', '%80'],
    ['a sequence cut short', '%E2%82'],
    ['a longer form than needed', '%C0%AF'],
    ['half a surrogate pair', '%ED%BF%BF'],
    ['more than there is', '%F4%90%80%80'],
    ['ff', '%FF'],
  ])('reads a value with %s as the standard decoder does: U+FFFD, and the rest is kept', (_, bytes) => {
    const raw = Buffer.from(bytes.replaceAll('%', ''), 'hex')
    expect(entries(parseBaggage(`a=x${bytes}y,b=2`))).toEqual({
      a: new TextDecoder().decode(Buffer.concat([Buffer.from('x'), raw, Buffer.from('y')])),
      b: '2',
    })
  })

  test.each([900, 1000, 2727])('passes a value of %i bytes that are not UTF-8 on as it came', (count) => {
    const header = `blob=${'%FF'.repeat(count)};p=1`
    expect(formatBaggage(parseBaggage(header)!)).toBe(header)
    const beside = parseBaggage('a=1,blob=x%C3%28%2C')!.setEntry('b', { value: '2' }).removeEntry('a')
    expect(formatBaggage(beside)).toBe('blob=x%C3(%2C,b=2')
  })

  test('sends what the app has put in place of a value that is not UTF-8', () => {
    const came = parseBaggage('blob=%FF')!
    expect(formatBaggage(came.setEntry('blob', { value: '\ufffd!' }))).toBe('blob=%EF%BF%BD!')
    came.getAllEntries()[0]![1].value = '\ufffd?'
    expect(formatBaggage(came)).toBe('blob=%EF%BF%BD?')
  })

  test('passes whole what is within the limits and by the grammar, byte for byte', () => {
    const encoded = fc.nat(0xff).map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`)
    const text = fc.string({ unit: fc.oneof(encoded, fc.constantFrom('a', '=')), maxLength: 1000 })
    const bytesOf = (member: string) =>
      member.replaceAll(/%(..)/g, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)))
    fc.assert(
      fc.property(text, (value) => {
        const sent = formatBaggage(parseBaggage(`k=${value}`)!)
        expect(bytesOf(sent)).toBe(bytesOf(`k=${value}`))
        expect(sent.length).toBeLessThanOrEqual(value.length + 2)
      }),
    )
  })

  test('never throws, whatever a carrier holds', () => {
    const unit = fc.constantFrom('%', '4', '1', 'C3', '%A9', 'é', ',', ';', '=', 'k', ' ')
    const carried = fc.oneof(
      fc.anything(),
      anyText.map((text) => `a=${text}`),
      fc.string({ unit }),
    )
    expect(() =>
      fc.assert(
        fc.property(carried, (value) => void parseBaggage(value)),
        { numRuns: 1000 },
      ),
    ).not.toThrow()
  })
})

describe('formatBaggage', () => {
  test.each<[string, Entries, string]>([
    ['nothing', {}, ''],
    ['one entry', { user: '42' }, 'user=42'],
    ['entries in their order', { b: '1', a: '2' }, 'b=1,a=2'],
    ['an empty value', { a: '' }, 'a='],
    ['what may stand in a value as it is', { a: everyValueChar.replace('%25', '%') }, `a=${everyValueChar}`],
    ['what may not, encoded', { a: ' ",;\\%\r\n\t\0\u007f' }, 'a=%20%22%2C%3B%5C%25%0D%0A%09%00%7F'],
    ['text beyond ASCII as UTF-8', { a: 'Ж😀' }, 'a=%D0%96%F0%9F%98%80'],
    ['half a surrogate pair as U+FFFD', { a: 'x\ud800' }, 'a=x%EF%BF%BD'],
    ['metadata, unchanged', { a: { value: '1', metadata: 'p=%20x;q ; r=2' } }, 'a=1;p=%20x;q ; r=2'],
    [
      'metadata without a way out of its member',
      { a: { value: '1', metadata: 'p=1,b=2\r\nx: é' } },
      'a=1;p=1%2Cb=2%0D%0Ax: %C3%A9',
    ],
    [
      'only the entries whose keys are tokens',
      { '': '1', 'a b': '2', é: '3', 'a,b': '4', 'a=b': '5', ok: '6' },
      'ok=6',
    ],
  ])('writes %s', (_, plain, want) => {
    expect(formatBaggage(baggageOf(plain))).toBe(want)
  })

  test('leaves out an entry whose value is not a string', () => {
    const baggage = propagation.createBaggage({ a: { value: 7 as unknown as string }, b: { value: '2' } })
    expect(formatBaggage(baggage)).toBe('b=2')
  })

  test('sends up to 8192 bytes and 180 members, whole ones only', () => {
    const fits = formatBaggage(baggageOf({ a: 'v'.repeat(8190 - 4), big: 'x', b: '' }))
    expect(fits).toBe(`a=${'v'.repeat(8186)},b=`)
    expect(formatBaggage(baggageOf({ a: 'v'.repeat(8187), b: '' }))).toHaveLength(8192)
    expect(formatBaggage(baggageOf({ a: 'v'.repeat(8188), b: '' }))).toHaveLength(8190)
    expect(formatBaggage(baggageOf({ a: 'v'.repeat(8190) }))).toHaveLength(8192)
    expect(formatBaggage(baggageOf({ a: 'v'.repeat(8191) }))).toBe('')
    const many = Object.fromEntries(Array.from({ length: 200 }, (_, i) => [`k${i}`, '1']))
    expect(formatBaggage(baggageOf(many)).split(',')).toHaveLength(180)
  })

  test('is read back as it was', () => {
    const text = fc.string({ unit: 'binary' })
    fc.assert(
      fc.property(fc.dictionary(token, text, { maxKeys: 64, noNullPrototype: true }), (plain) => {
        const header = formatBaggage(baggageOf(plain))
        expect(header).toMatch(/^[!-~]*$/)
        expect(entries(parseBaggage(header)) ?? {}).toEqual(plain)
      }),
    )
  })

  test('writes what can be read again and sent, whatever the values and metadata', () => {
    fc.assert(
      fc.property(anyText, anyText, (value, metadata) => {
        const header = formatBaggage(baggageOf({ a: { value, metadata } }))
        expect(header).toMatch(/^[\t -~]*$/)
        expect(parseBaggage(header)?.getEntry('a')?.value).toBe(Buffer.from(value).toString())
      }),
    )
  })
})
