import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { record, type Recording } from '../recording.ts'
import { serve } from './service.mjs'

type Members = [key: string, value: string][]
type Line = [name: string, value: string]

interface Vector {
  id: string
  desc: string
  in: { headers: Line[] }
  expect: {
    traceparent: 'accept' | 'reject'
    traceId: string
    parentId: string
    sampled: boolean
    random: boolean
    tracestate?: Members | null
    tracestateOneOf?: Members[]
  }
  carrierOnly?: true
}

const { parse } = JSON.parse(
  readFileSync(new URL('../vectors/trace-context.json', import.meta.url), 'utf8'),
) as { parse: Vector[] }

const T = '4bf92f3577b34da6a3ce929d0e0e4736'
const P = '00f067aa0ba902b7'
const PARENT = `00-${T}-${P}-01`

/** What the service is to send on: the list, `null` for none, or undefined for a new trace. */
interface Case {
  readonly title: string
  readonly lines: Line[]
  /** The trace flags that go out; undefined where a new trace is to start. */
  readonly flags: string | undefined
  readonly traceId?: string
  readonly parentId?: string
  /** One of these as `tracestate`; `''` is no such header. */
  readonly lists: readonly string[]
}

const join = (members: Members) => members.map(([key, value]) => `${key}=${value}`).join(',')

const given: Case[] = parse
  .filter(({ carrierOnly }) => carrierOnly !== true)
  .map(({ id, desc, in: { headers }, expect: want }) =>
    want.traceparent === 'reject'
      ? { title: `${id}: ${desc}`, lines: headers, flags: undefined, lists: [''] }
      : {
          title: `${id}: ${desc}`,
          lines: headers,
          flags: `0${(want.sampled ? 1 : 0) | (want.random ? 2 : 0)}`,
          traceId: want.traceId,
          parentId: want.parentId,
          lists: (want.tracestateOneOf ?? [want.tracestate ?? []]).map(join),
        },
  )

/** A traceparent that is continued, by itself. */
const kept = (title: string, value: string, flags = '01'): Case => ({
  title,
  lines: [['traceparent', value]],
  flags,
  lists: [''],
})
/** Header lines that start a new trace; a tracestate that comes with them is discarded. */
const restarted = (title: string, ...lines: Line[]): Case => ({
  title,
  lines: [...lines, ['tracestate', 'foo=1']],
  flags: undefined,
  lists: [''],
})
/** Lines of `tracestate` under a good traceparent, and what is sent on of them. */
const listed = (title: string, list: string, ...values: string[]): Case => ({
  title,
  lines: [['traceparent', PARENT], ...values.map((value): Line => ['tracestate', value])],
  flags: '01',
  lists: [list],
})

/** A list of so many members of one size, and of one more of another. */
function sized(count: number, size: number, last?: number): string {
  const members = Array.from({ length: count }, (_, i) => `s${i}=`.padEnd(size, 'v'))
  return [...members, ...(last === undefined ? [] : ['last='.padEnd(last, 'v')])].join(',')
}

const numbered = (count: number) => Array.from({ length: count }, (_, i) => `k${i}=${i}`)
const future = (version: string, rest = '') => `${version}-${T}-${P}-01${rest}`

/** What the vectors leave out. */
const more: Case[] = [
  ...['01', '0f', '10', '7f', '99', 'a0', 'fd', 'fe'].flatMap((version) => [
    kept(`version ${version}, nothing behind it`, future(version)),
    kept(`version ${version}, a dash behind it`, future(version, '-')),
    kept(`version ${version}, a dash and text behind it`, future(version, '-x.y=z')),
    kept(`version ${version}, blanks behind it`, future(version, ' \t')),
    ...['.', '0', 'f', 'G', ',', ' -x', '\tx', '=', '\u00e9'].map((rest) =>
      restarted(`version ${version}, ${JSON.stringify(rest)} behind it`, [
        'traceparent',
        future(version, rest),
      ]),
    ),
    restarted(`version ${version}, one digit short`, ['traceparent', future(version).slice(0, -1)]),
    restarted(`version ${version}, no trace id`, ['traceparent', future(version).replace(T, '0'.repeat(32))]),
    restarted(`version ${version}, an upper-case digit`, ['traceparent', future(version).replace('f', 'F')]),
  ]),
  kept('version 00 with each unknown flag', `00-${T}-${P}-ff`, '03'),
  kept('version cc with each unknown flag', `cc-${T}-${P}-fd-x`, '01'),
  kept('version 00 with no known flag', `00-${T}-${P}-fc`, '00'),
  restarted('version 00 with a dash behind it', ['traceparent', `${PARENT}-`]),
  restarted('version 00 with a comma behind it', ['traceparent', `${PARENT},`]),
  restarted('version 00 with a line that is empty beside it', ['traceparent', PARENT], ['traceparent', '']),
  restarted('the same traceparent twice', ['traceparent', PARENT], ['traceparent', PARENT]),
  restarted('the same traceparent twice, in another case', ['traceparent', PARENT], ['TraceParent', PARENT]),
  restarted('version 01 twice', ['traceparent', future('01')], ['traceparent', future('01')]),
  restarted('a letter beyond f', ['traceparent', PARENT.replace('4bf9', '4bg9')]),
  restarted('bytes beyond ASCII', ['traceparent', PARENT.replace('4bf9', '4b\u00e99')]),
  restarted('version 0g', ['traceparent', `0g${PARENT.slice(2)}`]),
  restarted('version FF', ['traceparent', `FF${PARENT.slice(2)}`]),
  restarted('version ff with more behind it', ['traceparent', future('ff', '-x')]),
  restarted('no traceparent'),
  restarted('an empty traceparent', ['traceparent', '']),
  restarted('a traceparent of blanks', ['traceparent', ' \t ']),
  restarted('quotes', ['traceparent', `"${PARENT}"`]),
  restarted('a long line of digits', ['traceparent', '0'.repeat(8000)]),
  restarted('a long line of commas', ['traceparent', ','.repeat(8000)]),

  listed('31 members', numbered(31).join(','), numbered(31).join(',')),
  listed('32 members', numbered(32).join(','), numbered(32).join(',')),
  listed('33 members', '', numbered(33).join(',')),
  listed('32 members with empty ones between', numbered(32).join(','), `,${numbered(32).join(', ,')}, ,`),
  listed('33 members with empty ones between', '', numbered(33).join(',,')),
  listed(
    '32 members on 32 lines, with empty lines between',
    numbered(32).join(','),
    ...numbered(32).flatMap((m) => [m, '']),
  ),
  listed('33 members on 33 lines', '', ...numbered(33)),
  listed('33 members of which one is a duplicate', '', [...numbered(32), 'k0=again'].join(',')),
  listed(
    '32 members of which one is a duplicate',
    numbered(31).join(','),
    [...numbered(31), 'k0=x'].join(','),
  ),
  ...[255, 256].flatMap((size) => [
    listed(`a key of ${size}`, `${'a'.repeat(size)}=1`, `${'a'.repeat(size)}=1`),
    listed(`a value of ${size}`, `a=${'v'.repeat(size)}`, `a=${'v'.repeat(size)}`),
    listed(
      `a value of ${size} that begins with a space`,
      `a= ${'v'.repeat(size - 1)}`,
      `a= ${'v'.repeat(size - 1)}`,
    ),
  ]),
  listed('a key of 257', '', `b=1,${'a'.repeat(257)}=1`),
  listed('a value of 257', '', `b=1,a=${'v'.repeat(257)}`),
  listed('a value of 256 and blanks behind it', `a=${'v'.repeat(256)}`, `a=${'v'.repeat(256)} \t ,`),
  listed('a value of 257 by a space before it', '', `a= ${'v'.repeat(256)}`),
  listed('no value', '', 'a=1,b='),
  listed('a value of spaces', '', 'a=1,b=  ,c=3'),
  listed('a value of a tab', '', 'a=1,b=\t,c=3'),
  listed('a tab within a value', '', 'a=1,b=x\ty,c=3'),
  listed('spaces within a value', 'b= x  y', 'b= x  y  '),
  listed('blanks of both kinds around members', 'a=1,b=2', '\t a=1 \t\t, \t ,\tb=2 \t'),
  listed('a space before the equals sign', '', 'a =1'),
  listed('a tab before the equals sign', '', 'a\t=1'),
  listed('two equals signs', '', 'a=1,b=2=3'),
  listed('nothing before the equals sign', '', 'a=1,=2'),
  listed('no equals sign', '', 'a=1,b'),
  listed('the first of a key that comes twice', 'a=1,b=2', 'a=1,b=2,a=3'),
  listed('the first of a key that comes on two lines', 'a=1,b=2', 'a=1', 'b=2,a=1'),
  ...['0', '0a', '9_', 'a@', 'a@@b', 'a@b@c', '0@b', 'a@1', 'a-*/_@', `${'t'.repeat(242)}@v`].map((key) =>
    listed(`the key ${key}, which Level 2 allows`, `${key}=1,z=2`, `${key}=1,z=2`),
  ),
  ...['A', 'aB', '_a', '-a', '*a', '/a', '@a', 'a.b', 'a:b', 'a b', 'a+b', 'é', 'a"', 'a;b'].map((key) =>
    listed(`the key ${key}, which no level allows`, '', `z=2,${key}=1`),
  ),
  ...['\u0080', '\u00e9', '\u2013'].map((char) =>
    listed(`the value x${JSON.stringify(char)}`, '', `z=2,a=x${char}`),
  ),
  listed('every character of a value', '', 'a=1', 'b=!"#$%&\'()*+-./0123456789:;<>?@[\\]^_`{|}~ =x'),
  listed(
    'every character of a value but the two',
    'b=!"#$%&\'()*+-./0123456789:;<>?@[\\]^_`{|}~ ABC xyz',
    'b=!"#$%&\'()*+-./0123456789:;<>?@[\\]^_`{|}~ ABC xyz',
  ),
  listed('an empty line', '', ''),
  listed('a line of commas', '', ','.repeat(4000)),
  listed('a line of commas and blanks with one member', 'a=1', `${', \t'.repeat(1000)},a=1,,,`),
  // Longer than what is sent on: long members go first, then those at the right end, and none in parts.
  listed('the longest that is sent on', sized(31, 128, 97), sized(31, 128, 97)),
  listed('one character more', sized(31, 128), sized(31, 128, 98)),
  listed('32 members of 128 characters', sized(31, 128), sized(32, 128)),
  listed(
    'two long members, of which one must go',
    `first=${'x'.repeat(200)},${sized(29, 128)}`,
    `first=${'x'.repeat(200)},${sized(29, 128)},other=${'x'.repeat(200)}`,
  ),
  listed(
    'two long members, which both must go',
    sized(30, 128),
    `first=${'x'.repeat(230)},${sized(30, 128)},other=${'x'.repeat(200)}`,
  ),
]

describe.each(['express', 'koa', 'fastify'] as const)('a service on %s', (framework) => {
  let service: Awaited<ReturnType<typeof serve>>
  let collector: Server
  let callbacks: Line[][] = []
  let recording: Recording

  beforeAll(async () => {
    service = await serve(framework)
    collector = createServer((req, res) => {
      const raw = req.rawHeaders
      callbacks.push(Array.from({ length: raw.length / 2 }, (_, i): Line => [raw[2 * i]!, raw[2 * i + 1]!]))
      res.end()
    }).listen(0, '127.0.0.1')
    await once(collector, 'listening')
  })
  afterAll(async () => {
    await service.close()
    collector.closeAllConnections()
    collector.close()
  })
  beforeEach(() => {
    callbacks = []
    recording = record()
  })

  /** Posts to the service, with these lines as they are, what makes it call back so many times. */
  async function post(path: string, lines: Line[], count = 1): Promise<string> {
    const { port } = collector.address() as AddressInfo
    const body = JSON.stringify(
      Array.from({ length: count }, () => ({ url: `http://127.0.0.1:${port}/callback`, arguments: [] })),
    )
    const head = [
      `POST ${path} HTTP/1.1`,
      'Host: localhost',
      'Connection: close',
      'Content-Type: application/json',
      `Content-Length: ${body.length}`,
      ...lines.map(([name, value]) => `${name}: ${value}`),
    ]
    const socket = connect(service.port, '127.0.0.1')
    socket.write(`${head.join('\r\n')}\r\n\r\n${body}`)
    let answer = ''
    for await (const chunk of socket) answer += String(chunk)
    return answer
  }

  const valuesOf = (lines: Line[], name: string) =>
    lines.filter(([key]) => key.toLowerCase() === name).map(([, value]) => value)

  test.each([...given, ...more].map((row) => [row.title, row] as const))(
    'continues what came in, or starts anew: %s',
    async (_, { lines, flags, traceId = T, parentId = P, lists }) => {
      expect(await post('/fetch', lines)).toMatch(/^HTTP\/1\.1 200 /)
      const [sent, ...others] = callbacks
      expect(others).toEqual([])
      const [traceparent, ...second] = valuesOf(sent!, 'traceparent')
      expect(second).toEqual([])
      const states = valuesOf(sent!, 'tracestate')
      // One field at most, and none that is empty.
      expect(lists.map((list) => (list === '' ? [] : [list]))).toContainEqual(states)
      const [version, trace, parent, out] = traceparent!.split('-')
      expect(version).toBe('00')
      expect(parent).toMatch(/^(?!0{16}$)[0-9a-f]{16}$/)
      const came = lines.map(([, value]) => value).join()
      expect(came).not.toContain(parent)
      if (flags === undefined) {
        expect(trace).toMatch(/^(?!0{32}$)[0-9a-f]{32}$/)
        expect(came).not.toContain(trace)
        // All of our trace id's bits are random, and says so; the default is to record.
        expect(out).toBe('03')
      } else {
        expect(trace).toBe(traceId)
        expect(out).toBe(flags)
      }
      // The parent on the wire is the CLIENT span, and that one's is the SERVER span.
      if (flags === undefined || flags === '01' || flags === '03') {
        const [client, server] = await recording.all(2)
        expect(client?.spanContext().spanId).toBe(parent)
        expect(client?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
        expect(server?.parentSpanContext?.spanId).toBe(flags === undefined ? undefined : parentId)
      }
    },
  )

  test.each(['fetch', 'undici'])('gives each of three calls by %s a parent of its own', async (sender) => {
    await post(
      `/${sender}`,
      [
        ['TRACEPARENT', PARENT],
        ['TraceState', 'foo=1'],
        ['tracestate', 'bar=2'],
      ],
      3,
    )
    const sent = callbacks.map((lines) => valuesOf(lines, 'traceparent').join())
    expect(sent).toHaveLength(3)
    expect(new Set(sent.map((value) => value.split('-')[1]))).toEqual(new Set([T]))
    expect(new Set(sent.map((value) => value.split('-')[2])).size).toBe(3)
    for (const lines of callbacks) {
      // Names in lower case, and one field each.
      expect(
        lines
          .filter(([name]) => /^trace(parent|state)$/i.test(name))
          .map(([name]) => name)
          .toSorted(),
      ).toEqual(['traceparent', 'tracestate'])
      expect(valuesOf(lines, 'tracestate')).toEqual(['foo=1,bar=2'])
    }
  })

  test('is not shaken by bytes that end a header: it answers 400, and records nothing', async () => {
    for (const value of [`${PARENT}\0`, `a\0b`, `${PARENT}\u007f`, `${PARENT}\rx`]) {
      expect(await post('/fetch', [['traceparent', value]])).toMatch(/^HTTP\/1\.1 400 /)
    }
    expect([callbacks, recording.spans]).toEqual([[], []])
  })

  // Servers refuse it or put a space in its place (RFC 9112 §5.2). Which of the two is for Node to say.
  test('reads a list that was folded into two lines as one, if Node lets it in', async () => {
    const answer = await post('/fetch', [
      ['traceparent', PARENT],
      ['tracestate', 'foo=1,\r\n bar=2'],
    ])
    const states = callbacks.map((lines) => valuesOf(lines, 'tracestate'))
    expect(states).toEqual(answer.startsWith('HTTP/1.1 200 ') ? [['foo=1,bar=2']] : [])
  })

  test('passes baggage on, whole members only', async () => {
    const members = Array.from({ length: 181 }, (_, i) => `k${i}=${i};p=1`)
    await post('/fetch', [
      ['baggage', members.slice(0, 100).join(',')],
      ['Baggage', members.slice(100).join(' , ')],
    ])
    expect(valuesOf(callbacks[0]!, 'baggage')).toEqual([members.slice(0, 180).join(',')])
  })
})
