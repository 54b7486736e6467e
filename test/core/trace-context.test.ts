import { readFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { createTraceState, type SpanContext, type TraceState } from '@opentelemetry/api'
import * as fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  combineFields,
  emptyTraceState,
  formatTraceparent,
  parseTraceContext,
  parseTracestate,
  serializeTracestate,
} from '../../packages/core/src/trace-context.ts'

type Members = [key: string, value: string][]

interface ParseVector {
  id: string
  desc: string
  in: { headers: [name: string, value: string][] }
  expect: {
    traceparent: 'accept' | 'reject'
    traceId: string
    parentId: string
    flags: number
    sampled: boolean
    random: boolean
    tracestate?: Members | null
    tracestateOneOf?: Members[]
  }
  carrierOnly?: true
}

interface MutateVector {
  id: string
  desc: string
  given: { traceparent?: string; tracestate?: string }
  op: { do: string; key: string; value: string; samplerDecision?: 'sample' | 'drop' }
  expect: {
    version?: string
    traceId?: string
    traceIdNew?: true
    flags?: string
    length?: number
    tracestate?: string
    original?: string
  }
}

const vectors: { parse: ParseVector[]; mutate: MutateVector[] } = JSON.parse(
  readFileSync(new URL('../vectors/trace-context.json', import.meta.url), 'utf8'),
)

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'
const spanId = '00f067aa0ba902b7'
const traceparent = `00-${traceId}-${spanId}-01`
const accepted = { traceId, spanId, traceFlags: 1 }

const hex = (length: number) =>
  fc
    .string({ unit: fc.constantFrom(...'0123456789abcdef'), minLength: length, maxLength: length })
    .filter((id) => /[^0]/.test(id))
/** Any UTF-16 at all, halves of surrogate pairs included. */
const anyText = fc.string({ unit: fc.nat(0xffff).map((code) => String.fromCharCode(code)) })

/** A context as plain data, so that it can be compared and sent. */
function plain(context: SpanContext | undefined): Record<string, unknown> | null {
  if (context === undefined) return null
  const { traceState, ...rest } = context
  return { ...rest, tracestate: traceState === undefined ? '' : serializeTracestate(traceState) }
}

/** What `plain` is to give for a vector. */
function wanted({ expect: want }: ParseVector): Record<string, unknown> | null {
  if (want.traceparent === 'reject') return null
  const lists = want.tracestateOneOf ?? [want.tracestate ?? []]
  return {
    traceId: want.traceId,
    spanId: want.parentId,
    traceFlags: (want.sampled ? 1 : 0) | (want.random ? 2 : 0),
    isRemote: true,
    tracestate: expect.toBeOneOf(lists.map(join)),
  }
}

function join(members: Members): string {
  return members.map(([key, value]) => `${key}=${value}`).join(',')
}

/** The members of a list of `count`: `k01=1`, `k02=2`, … */
function numbered(count: number): string[] {
  return Array.from({ length: count }, (_, i) => `k${String(i + 1).padStart(2, '0')}=${i + 1}`)
}

/** Rows for `test.each`, of which the first is the title. */
function titled<V extends { id: string; desc: string }>(rows: V[]): [string, V][] {
  return rows.map((row) => [`${row.id}: ${row.desc}`, row])
}

/** The values that a carrier holds under a name, which HTTP finds in any case. */
function fields(vector: ParseVector, name: string): string[] {
  return vector.in.headers.filter(([key]) => key.toLowerCase() === name).map(([, value]) => value)
}

describe('a carrier that holds the headers is read as the specification says', () => {
  test.each(titled(vectors.parse))('%s', (_, vector) => {
    const parents = fields(vector, 'traceparent')
    const states = fields(vector, 'tracestate')
    const combined = [parents, states].map((values) => (values.length > 0 ? values.join(', ') : undefined))
    expect(plain(parseTraceContext(combined[0], combined[1]))).toEqual(wanted(vector))
    expect(plain(parseTraceContext(parents, states))).toEqual(wanted(vector))
  })

  const readable = vectors.parse.filter(
    ({ expect: want }) => want.traceparent === 'accept' && want.tracestate,
  )
  test.each(titled(readable))('every member of the tracestate can be asked for, %s', (_, vector) => {
    const state = parseTracestate(combineFields(fields(vector, 'tracestate')) ?? '')
    const want = vector.expect.tracestate ?? []
    expect(want.map(([name]) => [name, state?.get(name)])).toEqual(want)
  })

  const discarded = vectors.parse.filter(({ expect: want }) => want.tracestate === null)
  test.each(titled(discarded))('the tracestate is discarded, not empty, %s', (_, vector) => {
    expect(parseTracestate(combineFields(fields(vector, 'tracestate')) ?? '')).toBeUndefined()
  })
})

describe('a real server that is sent the headers reads them as the specification says', () => {
  let server: Server

  beforeAll(async () => {
    server = createServer((req, res) => {
      const { headers, headersDistinct: distinct } = req
      const joined = plain(parseTraceContext(headers['traceparent'], headers['tracestate']))
      const apart = plain(parseTraceContext(distinct['traceparent'], distinct['tracestate']))
      res.end(JSON.stringify({ joined, apart }))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  })
  afterAll(() => server.close())

  /** Sends the header lines as they are, as no HTTP client would. */
  function send(headers: [string, string][]): Promise<string> {
    const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1')
    socket.end(`GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${lines}\r\n`)
    return new Promise((resolve, reject) => {
      let answer = ''
      socket.setEncoding('utf8').on('data', (chunk) => (answer += chunk))
      socket.on('end', () => resolve(answer)).on('error', reject)
    })
  }

  test.each(titled(vectors.parse.filter(({ carrierOnly }) => !carrierOnly)))('%s', async (_, vector) => {
    const answer = await send(vector.in.headers)
    expect(answer).toMatch(/^HTTP\/1\.1 200 /)
    const { joined, apart } = JSON.parse(answer.slice(answer.indexOf('{'), answer.lastIndexOf('}') + 1))
    expect({ joined, apart }).toEqual({ joined: wanted(vector), apart: wanted(vector) })
  })
})

describe('an outgoing request carries on what came in', () => {
  const continuing = vectors.mutate.filter(
    // A new trace is not decided by the two headers, and what a sampler writes into `ot` (MU-036) neither.
    ({ id, op, expect: want }) => op.do === 'clientRequest' && !want.traceIdNew && id !== 'MU-036',
  )

  test.each(titled(continuing))('%s', (_, { given, op, expect: want }) => {
    const inbound = parseTraceContext(given.traceparent, given.tracestate)
    if (inbound === undefined) throw new Error('the vector is to be accepted')
    const sampled = op.samplerDecision === 'sample' ? inbound.traceFlags | 1 : inbound.traceFlags & ~1
    const header = formatTraceparent({ ...inbound, spanId: 'b7ad6b7169203331', traceFlags: sampled })
    expect(header).toMatch(/^00-[0-9a-f]{32}-b7ad6b7169203331-0[0-3]$/)
    expect(header.slice(3, 35)).toBe(want.traceId ?? traceId)
    expect(header.slice(53)).toBe(want.flags ?? `0${sampled & 3}`)
    const list = inbound.traceState === undefined ? '' : serializeTracestate(inbound.traceState)
    expect(list).toBe(want.tracestate ?? '')
  })

  test.each(titled(vectors.mutate.filter(({ op }) => ['set', 'delete', 'send'].includes(op.do))))(
    '%s',
    (_, { given, op, expect: want }) => {
      const before = parseTracestate(given.tracestate ?? '')
      if (before === undefined) throw new Error('the vector is to be accepted')
      let after: TraceState = before
      if (op.do === 'set') after = before.set(op.key, op.value)
      if (op.do === 'delete') after = before.unset(op.key)
      expect(serializeTracestate(after)).toBe(want.tracestate)
      expect(before.serialize()).toBe(want.original ?? given.tracestate)
    },
  )
})

/** What a traceparent carries, without the rest of its context. */
function parseTraceparent(text: string) {
  const context = parseTraceContext(text, undefined)
  if (context === undefined) return undefined
  const { isRemote, ...rest } = context
  expect(isRemote).toBe(true)
  return rest
}

describe('a traceparent', () => {
  test('is read as formatTraceparent wrote it', () => {
    fc.assert(
      fc.property(hex(32), hex(16), fc.nat(3), (id, parent, flags) => {
        const context = { traceId: id, spanId: parent, traceFlags: flags }
        expect(parseTraceparent(formatTraceparent(context))).toEqual(context)
      }),
    )
  })

  test('never throws, whatever text it is', () => {
    expect(() => fc.assert(fc.property(anyText, (text) => void parseTraceparent(text)))).not.toThrow()
  })

  test('that is almost right is read as the grammar says', () => {
    const grammar =
      /^[ \t]*(?!ff)(?:00|[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})((?<=^[ \t]*(?!00).{55})-.*?)?[ \t]*$/s
    const start = fc.constantFrom(traceparent, `cc${traceparent.slice(2)}-x`, `ff${traceparent.slice(2)}`)
    const piece = fc.oneof(
      fc.constantFrom(...'0fFg-. \t\n\u00a0'),
      fc.constant(''),
      fc.string({ maxLength: 2 }),
    )
    fc.assert(
      fc.property(start, fc.nat(57), fc.nat(2), piece, (value, at, gone, put) => {
        const text = value.slice(0, at) + put + value.slice(at + gone)
        const match = grammar.exec(text)
        const flags = Number.parseInt(match?.[3] ?? '', 16) & 3
        const want = match ? { traceId: match[1], spanId: match[2], traceFlags: flags } : undefined
        expect(parseTraceparent(text)).toEqual(want)
      }),
      { numRuns: 2000 },
    )
  })

  test('may have a comma in the unknown part of a higher version, but not a second traceparent', () => {
    const future = `cc${traceparent.slice(2)}`
    expect(parseTraceparent(`${future}-a,b, c`)).toEqual(accepted)
    expect(parseTraceparent(`${future}-a,${traceparent}`)).toBeUndefined()
    expect(parseTraceparent(`${future}-a,b, \t${future}-c`)).toBeUndefined()
  })

  test('is found between any number of blanks, and between nothing else', () => {
    expect(parseTraceparent(` \t${traceparent}\t `)).toEqual(accepted)
    for (const blank of ['\0', '\n', '\r', '\v', '\f', '\u00a0', '\u2003', '\ufeff']) {
      expect(parseTraceparent(traceparent + blank)).toBeUndefined()
      expect(parseTraceparent(blank + traceparent)).toBeUndefined()
    }
  })

  test('has digits only, not the characters beside them', () => {
    for (const code of [0x2f, 0x3a, 0x60, 0x67, 0xff, 0x100 + 0x2d, 0x100 + 0x30, 0x100 + 0x61]) {
      const char = String.fromCharCode(code)
      for (let at = 0; at < traceparent.length; at++) {
        expect(parseTraceparent(traceparent.slice(0, at) + char + traceparent.slice(at + 1))).toBeUndefined()
      }
    }
  })
})

describe('formatTraceparent', () => {
  test.each([
    [0, '00'],
    [1, '01'],
    [2, '02'],
    [3, '03'],
    [0x10, '00'],
    [0xff, '03'],
    [0x101, '01'],
  ])('writes the flags %i as %s', (traceFlags, digits) => {
    expect(formatTraceparent({ traceId, spanId, traceFlags })).toBe(`00-${traceId}-${spanId}-${digits}`)
  })
})

const keyStart = fc.constantFrom(...'abcxyz019')
const keyRest = fc.string({ unit: fc.constantFrom(...'abcxyz019_-*/@'), maxLength: 20 })
const key = fc.tuple(keyStart, keyRest).map((parts) => parts.join(''))
const printable = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).filter(
  (c) => !',='.includes(c),
)
const value = fc
  .string({ unit: fc.constantFrom(...printable), minLength: 1, maxLength: 40 })
  .filter((text) => !text.endsWith(' '))
const members = fc.uniqueArray(fc.tuple(key, value), { maxLength: 32, selector: ([name]) => name })

describe('parseTracestate', () => {
  test('gives back the list it was given, and each of its members', () => {
    fc.assert(
      fc.property(members, (list) => {
        const state = parseTracestate(join(list))
        expect(state?.serialize()).toBe(join(list))
        expect(list.map(([name]) => state?.get(name))).toEqual(list.map(([, text]) => text))
      }),
    )
  })

  test('never throws, whatever text it is', () => {
    expect(() => fc.assert(fc.property(anyText, (text) => void parseTracestate(text)))).not.toThrow()
  })

  test('agrees with the grammar on lists that are almost right', () => {
    const member = /^([a-z0-9][a-z0-9_\-*/@]{0,255})=([ -+\--<>-~]{0,255}[!-+\--<>-~])$/
    const unit = fc.constantFrom(
      'a',
      'b1',
      'A',
      '=',
      '=',
      '=1',
      ',',
      ',',
      ' ',
      '\t',
      '@',
      '-',
      '.',
      'é',
      '\u0161',
    )
    fc.assert(
      fc.property(fc.string({ unit, maxLength: 12 }), (text) => {
        const parts = text.split(',').map((part) => part.replaceAll(/^[ \t]+|[ \t]+$/g, ''))
        const read = parts.filter((part) => part !== '').map((part) => member.exec(part))
        const first = new Map<string, string>()
        for (const match of read) if (match && !first.has(match[1]!)) first.set(match[1]!, match[2]!)
        const want = read.includes(null) ? undefined : join([...first])
        expect(parseTracestate(text)?.serialize()).toBe(want)
      }),
      { numRuns: 5000 },
    )
  })

  test('counts the 32 members before it drops duplicates', () => {
    expect(parseTracestate(numbered(32).join(','))?.get('k32')).toBe('32')
    expect(parseTracestate(`${numbered(32).join(',')},k01=1`)).toBeUndefined()
    expect(parseTracestate(`k01=1,${numbered(32).join(',')}`)).toBeUndefined()
    expect(parseTracestate(`${numbered(32).join(',,')},`)?.serialize()).toBe(numbered(32).join(','))
  })

  test('takes only the same key for a duplicate', () => {
    const list = 'a=1,b=2,aa=3,ab=4,a@=5,a_=6,ba=7'
    expect(parseTracestate(list)?.serialize()).toBe(list)
    expect(parseTracestate(`${list},ab=8,aa=9`)?.serialize()).toBe(list)
    // Their hashes are equal (31 × b + @ = 31 × a + _), their keys are not.
    expect(parseTracestate('b@=1,a_=2')?.serialize()).toBe('b@=1,a_=2')
  })
})

describe('a TraceState', () => {
  const state = parseTracestate('foo=1,bar= 2 x,foobar=3')!

  test('answers for whole keys only', () => {
    expect(state.get('foo')).toBe('1')
    expect(state.get('bar')).toBe(' 2 x')
    expect(state.get('foobar')).toBe('3')
    for (const name of ['', 'f', 'oo', 'fo', '1', 'foo=1', 'foo=1,bar', 'Foo', 'toString']) {
      expect(state.get(name)).toBeUndefined()
    }
  })

  test('keeps the order of what is not touched, from either end', () => {
    expect(state.unset('foo').serialize()).toBe('bar= 2 x,foobar=3')
    expect(state.unset('bar').serialize()).toBe('foo=1,foobar=3')
    expect(state.unset('foobar').serialize()).toBe('foo=1,bar= 2 x')
    expect(state.set('foobar', '9').serialize()).toBe('foobar=9,foo=1,bar= 2 x')
    expect(emptyTraceState.set('foo', '1').serialize()).toBe('foo=1')
    expect(state.serialize()).toBe('foo=1,bar= 2 x,foobar=3')
  })

  test.each([
    ['', '1'],
    ['Foo', '1'],
    ['a b', '1'],
    ['-a', '1'],
    ['a'.repeat(257), '1'],
    ['a', ''],
    ['a', ' '],
    ['a', '1 '],
    ['a', '1,b=2'],
    ['a', '1=2'],
    ['a', '1\t2'],
    ['a', '1\r\nx: y'],
    ['a', 'é'],
    ['a', 'x'.repeat(257)],
    [undefined, '1'],
    ['a', 7],
    ['a', undefined],
    ['a', ['1']],
  ])('is the same after set(%j, %j), which the grammar forbids', (name, text) => {
    expect(state.set(name as string, text as string)).toBe(state)
  })

  test('takes keys and values of 256 characters', () => {
    expect(emptyTraceState.set('a'.repeat(256), 'x'.repeat(256)).get('a'.repeat(256))).toBe('x'.repeat(256))
  })

  test('stays a list that can be sent and read, whatever is done to it', () => {
    const action = fc.record({ name: fc.oneof(key, anyText), text: fc.option(fc.oneof(value, anyText)) })
    fc.assert(
      fc.property(members, fc.array(action, { maxLength: 40 }), (list, actions) => {
        let now = parseTracestate(join(list))!
        for (const { name, text } of actions) now = text === null ? now.unset(name) : now.set(name, text)
        expect(parseTracestate(now.serialize())?.serialize()).toBe(now.serialize())
      }),
    )
  })
})

describe('serializeTracestate', () => {
  test('sends nothing for a state without members', () => {
    expect(serializeTracestate(emptyTraceState)).toBe('')
    expect(serializeTracestate(createTraceState())).toBe('')
    expect(parseTraceContext(traceparent, ' , ')).not.toHaveProperty('traceState')
  })

  test('sends 4096 characters whole, and one more not', () => {
    const list = Array.from({ length: 31 }, (_, i) => `${String(i).padStart(2, '0')}=${'v'.repeat(125)}`)
    const whole = `${list.join(',')},z=${'v'.repeat(4096 - 31 * 129 - 2)}`
    expect(whole).toHaveLength(4096)
    expect(serializeTracestate(parseTracestate(whole)!)).toBe(whole)
    expect(serializeTracestate(parseTracestate(`${whole}v`)!)).toBe(list.join(','))
  })

  test("sends 32 members of a state that has 33, as the API's own may before its version 1.10", () => {
    const foreign: TraceState = {
      ...emptyTraceState,
      serialize: () => ['new=9', ...numbered(32)].join(','),
    } as TraceState
    expect(serializeTracestate(foreign)).toBe(['new=9', ...numbered(31)].join(','))
  })

  test('sends nothing of a foreign state that is not a list', () => {
    const foreign: TraceState = { ...emptyTraceState, serialize: () => 'a=1\r\nx-evil: 1' } as TraceState
    expect(serializeTracestate(foreign)).toBe('')
  })
})

describe('parseTraceContext', () => {
  test.each([
    ['a Buffer', Buffer.from(traceparent, 'latin1')],
    ['an array of one string', [traceparent]],
    ['an array of one Buffer', [Buffer.from(traceparent, 'latin1')]],
  ])('reads a traceparent out of %s', (_, carried) => {
    expect(parseTraceContext(carried, undefined)).toStrictEqual({ ...accepted, isRemote: true })
  })

  test.each([
    ['nothing', undefined],
    ['null', null],
    ['a number', 7],
    ['a boolean', true],
    ['a symbol', Symbol('x')],
    ['an object', { toString: () => traceparent }],
    ['a boxed string', Object(traceparent)],
    ['a Uint8Array', new Uint8Array(Buffer.from(traceparent))],
    ['an empty array', []],
    ['two equal values', [traceparent, traceparent]],
    ['a value and an empty one', [traceparent, '']],
    ['an array in an array', [[traceparent]]],
    ['a higher version twice', [`cc${traceparent.slice(2)}-x`, 'y']],
    ['a Buffer with a byte above ASCII', Buffer.from(`${traceparent}\u00a0`, 'latin1')],
    ['a Buffer that is too long to be a header', Buffer.from(' '.repeat(1_048_576) + traceparent)],
    ['a text that is too long to be a header', ' '.repeat(1_048_576) + traceparent],
  ])('takes %s for no traceparent, without a throw', (_, carried) => {
    expect(parseTraceContext(carried, 'foo=1')).toBeUndefined()
  })

  test.each([
    ['a Buffer', Buffer.from('foo=1,bar=2'), 'foo=1,bar=2'],
    ['several values, in their order', ['foo=1', Buffer.from('bar=2'), '', 'baz=3'], 'foo=1,bar=2,baz=3'],
    ['an empty array', [], ''],
    ['a number', 7, ''],
    ['null', null, ''],
    ['values of which one is not a text', ['foo=1', 7], ''],
    ['an object', { foo: 1 }, ''],
    ['values that are too long together', ['foo=1', ' '.repeat(1_048_576)], ''],
    ['a list with an invalid member', 'foo=1,Bar=2', ''],
    ['a list with a byte above ASCII', Buffer.from([0x61, 0x3d, 0xe9]), ''],
  ])('reads a tracestate out of %s, and the traceparent is valid in any case', (_, carried, list) => {
    expect(plain(parseTraceContext(traceparent, carried))).toEqual({
      ...accepted,
      isRemote: true,
      tracestate: list,
    })
  })

  test('never throws, whatever a carrier holds', () => {
    fc.assert(
      fc.property(fc.anything(), fc.anything(), (one, other) => {
        expect(parseTraceContext(one, other)).toBeUndefined()
        expect(parseTraceContext(traceparent, other)).toMatchObject(accepted)
      }),
    )
  })

  test('does not read the tracestate when there is no valid traceparent', () => {
    const unread = new Proxy([''], { get: () => expect.unreachable('the tracestate was read') })
    expect(parseTraceContext(`${traceparent}0`, unread)).toBeUndefined()
  })
})
