import { SpanStatusCode, type Attributes, type HrTime, type SpanKind } from '@opentelemetry/api'
import * as fc from 'fast-check'
import { setFlagsFromString } from 'node:v8'
import { isDeepStrictEqual } from 'node:util'
import { runInNewContext } from 'node:vm'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import { encodeProtobuf, encodeSections, joinSections } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import type { InstrumentationScope, ReadableSpan } from '../../packages/core/src/span.ts'
import { checkRequest } from '../conformance/otlp-wire.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { said } from './engine.ts'
import {
  SCOPES,
  PARENT,
  RESOURCES,
  SPAN,
  TRACE,
  anyAttributes,
  anyContext,
  anyText,
  anyTime,
  expectedRequest,
  expectedValue,
  form,
  fromJson,
  fromProtobuf,
  scope,
  span,
  text,
  traceState,
  wireSpan,
  wireValue,
  type Loose,
  type Given,
} from './otlp-spans.ts'

// ---- What a fast encoder takes for granted ----

/** A span that has something of everything, for places where it may be written wrongly. */
const complete = span({
  name: 'complétement',
  context: { traceState: traceState('a=1,b=2') },
  parentSpanContext: { traceId: TRACE, spanId: PARENT, traceFlags: 1, isRemote: true },
  status: { code: SpanStatusCode.ERROR, message: 'failed' },
  attributes: {
    'http.request.method': 'GET',
    ascii: 'x'.repeat(57),
    clé: 'valeur: é 漢 😀 \ud800',
    port: 65_536,
    ratio: 0.25,
    negative: -1,
    is: true,
    list: ['a', 'é', null],
    map: { bytes: new Uint8Array(9).fill(7), nested: [{ deep: 'text' }] },
    big: 2n ** 62n,
  },
  events: [{ time: [1_753_000_000, 5], name: 'event', attributes: { a: 'b' }, droppedAttributesCount: 300 }],
  links: [{ context: { traceId: TRACE, spanId: PARENT, traceFlags: 0 }, attributes: { a: 'b' } }],
  droppedAttributesCount: 1,
  droppedEventsCount: 2 ** 31,
  droppedLinksCount: 2 ** 32 - 1,
})
const COMPLETE_BYTES = encodeProtobuf([complete]).length

describe('an encoder in a hurry', () => {
  it.each([4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144])(
    'has room for a span wherever it stands around byte %i',
    (size) => {
      const expected = JSON.stringify(form(decodeRequest(encodeProtobuf([complete]))))
      const large = span({ attributes: { large: 'x'.repeat(1_200_000) } })
      const stride = size === 65_536 ? 1 : 7
      for (let before = size - COMPLETE_BYTES - 200; before <= size; before += stride) {
        // A large request first: the one after it starts with a buffer of the size that a process starts with.
        if (size > 32_768) encodeProtobuf([large])
        const filler = span({ name: '', attributes: { filler: 'x'.repeat(Math.max(0, before)) } })
        const request = encodeProtobuf([filler, complete])
        checkRequest(request)
        const decoded = decodeRequest(request)
        const made = decoded.resourceSpans?.[0]?.scopeSpans?.[0]?.spans
        expect(made).toHaveLength(2)
        made?.shift()
        expect(JSON.stringify(form(decoded)), `${before} bytes before it`).toBe(expected)
      }
    },
    60_000,
  )

  /** Values that take exactly the room that was made for them leave none for what comes next. */
  const long = 'x'.repeat(1100)
  it.each<[string, Given]>([
    ['an event', { attributes: { long }, events: [{ time: [1, 1], name: '' }] }],
    [
      'a link',
      { attributes: { long }, links: [{ context: { traceId: TRACE, spanId: SPAN, traceFlags: 1 } }] },
    ],
    ['a status', { attributes: { long }, status: { code: SpanStatusCode.ERROR } }],
    ['a count', { attributes: { long }, droppedAttributesCount: 2 ** 32 - 1 }],
    ['a long text', { attributes: { long, ['k'.repeat(200)]: 'y'.repeat(1024) } }],
    ['the same text', { attributes: { long }, events: [{ time: [1, 1], name: long, attributes: { long } }] }],
    ['bytes', { attributes: { long, list: [new Uint8Array(1100), new Uint8Array(1100)] } }],
    [
      'a short text again',
      {
        attributes: { short: 'y'.repeat(61) },
        events: [{ time: [1, 1], name: long, attributes: { short: 'y'.repeat(61) } }],
      },
    ],
    [
      'a count behind a link',
      {
        links: [{ context: { traceId: TRACE, spanId: SPAN, traceFlags: 1 }, attributes: { long } }],
        droppedLinksCount: 2 ** 32 - 1,
      },
    ],
    [
      'a status behind a link',
      {
        links: [{ context: { traceId: TRACE, spanId: SPAN, traceFlags: 1 }, attributes: { long } }],
        status: { code: SpanStatusCode.ERROR },
      },
    ],
    ['a number', { attributes: { long, ['k'.repeat(120)]: 0.5, b: -1, [`k${long}`]: true } }],
    ['a list', { attributes: { list: [long, [], {}, long, null, -1, 2n ** 63n - 1n, 0.5] } }],
    ['a key', { attributes: { map: { [long]: long, [`${long}2`]: 1 } } }],
  ])(
    'has room for %s behind a value that left none',
    (_, given) => {
      const tight = span(given)
      const total = encodeProtobuf([tight]).length
      const expected = fromProtobuf([tight])
      expect(expected).toEqual(expectedRequest([tight]))
      const large = span({ attributes: { large: 'x'.repeat(1_200_000) } })
      // The end of the buffer comes to lie in each place of the span, but not within the long texts.
      const places = Array.from({ length: 250 }, (__, place) => total - place)
      if (total > 1500) places.push(...Array.from({ length: total - 1400 }, (__, place) => place + 1150))
      for (const place of places) {
        encodeProtobuf([large])
        const filler = span({ name: '', attributes: { filler: 'x'.repeat(65_536 - place - 120) } })
        const request = encodeProtobuf([filler, tight])
        checkRequest(request)
        const decoded = decodeRequest(request)
        decoded.resourceSpans?.[0]?.scopeSpans?.[0]?.spans?.shift()
        // The texts are too long to be printed for each place.
        expect(isDeepStrictEqual(form(decoded), expected), `${place} bytes in`).toBe(true)
      }
      // Thousands of megabytes, which are three times as slow to get on Node 26.
    },
    90_000,
  )

  it('finds the end of a text of any length in any field', () => {
    const lengths = [
      ...Array.from({ length: 300 }, (_, length) => length),
      1023,
      1024,
      1025,
      5461,
      5462,
      16_383,
    ]
    for (const last of ['', 'é', '漢', '😀', '\ud800', '\udc00x', '\u0000', '\u007f', '\u0080']) {
      const spans = lengths.map((length) => {
        const value = 'x'.repeat(length) + last
        return span({
          name: value,
          context: { traceState: traceState(value.replaceAll(/[^ -~]/g, '_')) },
          status: { code: SpanStatusCode.ERROR, message: value },
          attributes: { text: value, [`k${value}`]: value, n: [value], [`n${value}`]: length },
          events: [{ time: [1, 1], name: value, attributes: { text: value } }],
          instrumentationScope: scope,
        })
      })
      expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
      expect(fromJson(spans)).toEqual(expectedRequest(spans))
    }
  })

  it('repeats what spans have in common wherever it stands', () => {
    const few = fc.constantFrom(
      'GET',
      'POST',
      'é',
      'x'.repeat(57),
      'y'.repeat(200),
      '漢'.repeat(40),
      '',
      '\ud800',
    )
    const someKey = fc.constantFrom('a', 'b', 'é', 'k'.repeat(111), 'k'.repeat(127), 'k'.repeat(200))
    const some = fc.dictionary(someKey, fc.oneof(few, fc.integer(), fc.array(few, { maxLength: 2 })), {
      maxKeys: 5,
      noNullPrototype: true,
    }) as fc.Arbitrary<Attributes>
    const someId = fc.constantFrom(TRACE, TRACE.toUpperCase(), '1'.repeat(32), 'not-an-id', '0'.repeat(32))
    const someSpan = fc
      .record({
        name: few,
        attributes: some,
        traceId: someId,
        events: fc.array(fc.record({ time: anyTime, name: few, attributes: some }), { maxLength: 2 }),
        links: fc.array(
          fc.record({ context: anyContext, traceId: someId, attributes: some }).map((link) => ({
            context: { ...link.context, traceId: link.traceId },
            attributes: link.attributes,
          })),
          { maxLength: 2 },
        ),
        resource: fc.constantFrom(...RESOURCES),
        instrumentationScope: fc.constantFrom(...SCOPES),
      })
      .map(({ traceId, ...given }) => span({ ...given, context: { traceId } } as Given))
    const wireId = (id: string) => (/^[0-9a-f]{32}$/i.test(id) ? id.toLowerCase() : '0'.repeat(32))
    fc.assert(
      fc.property(fc.array(someSpan, { minLength: 10, maxLength: 60 }), (spans) => {
        const withWireIds = spans.map((one) => ({
          ...one,
          spanContext: () => ({ ...one.spanContext(), traceId: wireId(one.spanContext().traceId) }),
          links: one.links.map((link) => ({
            ...link,
            context: { ...link.context, traceId: wireId(link.context.traceId) },
          })),
        }))
        const expected = expectedRequest(withWireIds)
        expect(fromProtobuf(spans)).toEqual(expected)
        expect(fromJson(spans)).toEqual(expected)
      }),
      { numRuns: 100 },
    )
  })

  it('keeps every span in its place in requests of any number of them', () => {
    const scopes = [scope, { name: 'pg' }, { name: 'ioredis' }]
    for (const count of [1, 511, 512, 513, 5000, 3, 4097, 2]) {
      const spans = Array.from({ length: count }, (_, index) =>
        span({
          name: `${index}`,
          instrumentationScope: scopes[(index * 7) % 3]!,
          resource: RESOURCES[index % 11 === 0 ? 1 : 0]!,
        }),
      )
      expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
    }
  })

  it('writes a resource and a scope of any kind, also the second time', () => {
    fc.assert(
      fc.property(anyAttributes, anyText, anyText, (attributes, name, url) => {
        const own = { resource: { attributes, schemaUrl: url }, instrumentationScope: { name, version: url } }
        const given = [
          span({
            ...own,
            resource: { attributes, schemaUrl: text(url) },
            instrumentationScope: { name: text(name), version: text(url) },
          }),
        ]
        const expected = expectedRequest(given)
        const spans = [span(own)]
        expect(fromProtobuf(spans)).toEqual(expected)
        expect(fromProtobuf(spans)).toEqual(expected)
        expect(fromJson(spans)).toEqual(expected)
      }),
      { numRuns: 100 },
    )
  })

  it('makes zeros and nothing worse of numbers that are none', () => {
    const odd = { traceFlags: Number.NaN }
    const made = wireSpan({
      kind: 7 as SpanKind,
      context: odd,
      droppedAttributesCount: Number.NaN,
      droppedEventsCount: -1,
      status: { code: 5 as SpanStatusCode, message: 'no such code' },
      links: [{ context: { traceId: TRACE, spanId: SPAN, ...odd } }],
    })
    expect(made).toEqual({
      traceId: TRACE,
      spanId: SPAN,
      name: 'GET /',
      startTimeUnixNano: '1753000000123456789',
      endTimeUnixNano: '1753000001000000001',
      droppedEventsCount: 2 ** 32 - 1,
      flags: 0x100,
      links: [{ traceId: TRACE, spanId: SPAN, flags: 0x100 }],
    })
  })
})

describe('JSON', () => {
  const soleSpan = (given: Given) =>
    (JSON.parse(encodeJson([span(given)])) as { resourceSpans: [{ scopeSpans: [{ spans: [unknown] }] }] })
      .resourceSpans[0].scopeSpans[0].spans[0]

  it('leaves out what is empty, and has times as text, ids in hexadecimal and enumerations as numbers', () => {
    expect(soleSpan({ links: [], events: [], attributes: { none: null } })).toEqual({
      traceId: TRACE,
      spanId: SPAN,
      flags: 0x101,
      name: 'GET /',
      kind: 2,
      startTimeUnixNano: '1753000000123456789',
      endTimeUnixNano: '1753000001000000001',
    })
    expect(Object.keys(soleSpan({}) as object)).toHaveLength(7)
  })

  it('has numbers, bytes and what JSON has no numbers for in the form of the mapping', () => {
    const value = (given: unknown) =>
      (soleSpan({ attributes: { given } }) as { attributes: [{ value: unknown }] }).attributes[0].value
    expect(value(7)).toEqual({ intValue: '7' })
    expect(value(2 ** 60)).toEqual({ intValue: '1152921504606846976' })
    expect(value(0.5)).toEqual({ doubleValue: 0.5 })
    expect(value(Number.NaN)).toEqual({ doubleValue: 'NaN' })
    expect(value(Infinity)).toEqual({ doubleValue: 'Infinity' })
    expect(value(-Infinity)).toEqual({ doubleValue: '-Infinity' })
    expect(value(Uint8Array.of(0xfb, 0xff))).toEqual({ bytesValue: '+/8=' })
    expect(value([])).toEqual({ arrayValue: { values: [] } })
    expect(value({})).toEqual({ kvlistValue: { values: [] } })
  })

  it('has no half surrogates, in no field', () => {
    const bad = 'a\ud800b'
    const written = encodeJson([
      span({
        name: bad,
        attributes: { [bad]: [bad, { [bad]: bad }] },
        context: { traceState: traceState(bad) },
        status: { code: 2, message: bad },
        events: [{ time: [1, 1], name: bad, attributes: { [bad]: bad } }],
        links: [{ context: { traceId: TRACE, spanId: SPAN, traceFlags: 0, traceState: traceState(bad) } }],
        resource: { attributes: { [bad]: bad }, schemaUrl: bad },
        instrumentationScope: { name: bad, version: bad, schemaUrl: bad },
      }),
    ])
    expect(written).not.toMatch(/\\ud[89a-f]/i)
    expect(written.match(/a\ufffdb/g)).toHaveLength(17)
  })
})

/** In a function of its own, so that nothing on the stack holds the bytes when it has returned. */
function hugeRequest(): number {
  const huge = '漢'.repeat(2_000_000)
  const spans = [span({ attributes: { ascii: 'x'.repeat(9_000_000), huge, again: huge } })]
  const request = encodeProtobuf(spans)
  expect(form(decodeRequest(request))).toEqual(expectedRequest(spans))
  return request.length
}

describe('a request', () => {
  it('of no spans is empty', () => {
    expect(encodeProtobuf([])).toEqual(new Uint8Array(0))
    expect(encodeJson([])).toBe('{}')
  })

  it('has each resource object and each scope object once, and keeps the order of spans', () => {
    const other = { attributes: { 'service.name': 'checkout' } }
    const pg: InstrumentationScope = { name: '@throughline/pg' }
    const spans = [
      span({ name: '1' }),
      span({ name: '2', instrumentationScope: pg }),
      span({ name: '3', resource: other, instrumentationScope: pg }),
      span({ name: '4' }),
      span({ name: '5', instrumentationScope: pg }),
      span({ name: '6', resource: other }),
      span({ name: '7' }),
    ]
    const request = decodeRequest(encodeProtobuf(spans))
    const names = request.resourceSpans?.map((one) =>
      one.scopeSpans?.map((inner) => [inner.scope?.name, ...(inner.spans ?? []).map((each) => each.name)]),
    )
    expect(names).toEqual([
      [
        ['@throughline/express', '1', '4', '7'],
        ['@throughline/pg', '2', '5'],
      ],
      [
        ['@throughline/pg', '3'],
        ['@throughline/express', '6'],
      ],
    ])
    expect(fromJson(spans)).toEqual(fromProtobuf(spans))
  })

  it('keeps its bytes while the next ones are encoded', () => {
    const a = encodeProtobuf([span({ name: 'a', attributes: { text: 'a'.repeat(3000) } })])
    const before = Buffer.from(a).toString('hex')
    encodeProtobuf([span({ name: 'b', attributes: { text: 'b'.repeat(3000) } })])
    encodeProtobuf(Array.from({ length: 2000 }, () => span({ name: 'c' })))
    expect(Buffer.from(a).toString('hex')).toBe(before)
    expect(a.buffer.byteLength).toBeLessThan(2 * a.byteLength)
  })

  it('grows as far as it must, and a huge one leaves no huge buffer behind', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const held = () => {
      collect()
      collect() // Buffers are released by the collection after the one that finds them dead.
      return process.memoryUsage().arrayBuffers
    }
    encodeProtobuf([span()])
    const before = held()
    const size = hugeRequest()
    await new Promise((resolve) => setImmediate(resolve))
    expect(size).toBeGreaterThan(21_000_000)
    expect(held() - before).toBeLessThan(8_000_000)
  })

  it('repeats values, ids and names of the spans before without mixing them up', () => {
    const spans = Array.from({ length: 600 }, (_, index) =>
      span({
        name: `GET /${index % 3}`,
        context: { traceId: (index % 5 === 0 ? '1' : '2').repeat(32) },
        attributes: {
          same: 'always',
          long: 'x'.repeat(100),
          alternating: index % 2 === 0 ? 'even' : 'odd',
          é: `ü${index % 4}`,
          list: [{ same: 'always' }, { same: index % 7 === 0 ? 'always' : 'not' }],
        },
      }),
    )
    expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
  })

  it('encodes more different keys than it remembers', () => {
    const spans = Array.from({ length: 300 }, (_, index) =>
      span({
        attributes: Object.fromEntries(Array.from({ length: 10 }, (__, n) => [`key-${index}-${n}`, 'v'])),
      }),
    )
    expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
    expect(fromProtobuf(spans)).toEqual(expectedRequest(spans))
  })

  it('loses only the span that cannot be read, and none of its neighbours', () => {
    const broken = span({
      name: 'broken',
      attributes: Object.defineProperty({ same: 'always', other: 'before' }, 'bad', {
        enumerable: true,
        get: () => {
          throw new Error('no')
        },
      }),
    })
    const good = ['1', '2', '3'].map((name) => span({ name, attributes: { same: 'always', other: 'after' } }))
    const [first, ...others] = good as [ReadableSpan, ReadableSpan, ReadableSpan]
    for (const spans of [
      [first, broken, ...others],
      [broken, first, ...others],
      [first, ...others, broken],
    ]) {
      expect(fromProtobuf(spans)).toEqual(expectedRequest([first, ...others]))
      expect(fromJson(spans)).toEqual(expectedRequest([first, ...others]))
    }
  })
})

const withParent = (spanId: string) =>
  wireSpan({ parentSpanContext: { traceId: TRACE, spanId, traceFlags: 1 } })
const startedAt = (...startTime: HrTime) => wireSpan({ startTime })['startTimeUnixNano'] ?? '0'

describe('a span', () => {
  it('has the flags of its own context and says whether its parent is remote', () => {
    const parent = { traceId: TRACE, spanId: PARENT, traceFlags: 0 }
    expect(wireSpan({}).flags).toBe(0x101)
    expect(wireSpan({ context: { isRemote: true } }).flags).toBe(0x101)
    expect(wireSpan({ parentSpanContext: { ...parent, isRemote: true } }).flags).toBe(0x301)
    expect(wireSpan({ parentSpanContext: { ...parent, isRemote: false } }).flags).toBe(0x101)
    // Of trace flags there are eight; the ninth bit says that the tenth is meant.
    expect(wireSpan({ context: { traceFlags: 0x3ff } }).flags).toBe(0x1ff)
  })

  it('names a parent only if the parent has a valid id', () => {
    expect(withParent(PARENT).parentSpanId).toBe(PARENT)
    expect(withParent(PARENT.toUpperCase()).parentSpanId).toBe(PARENT)
    for (const id of [
      '0000000000000000',
      '',
      '00f067aa0ba902b',
      '00f067aa0ba902bg',
      `${PARENT}00`,
      '00f067aa0ba902bé',
      '00f067aa0ba902b漢',
    ]) {
      expect(withParent(id)).not.toHaveProperty('parentSpanId')
    }
  })

  it('has ids of the right length even if its maker had not', () => {
    const made = wireSpan({
      context: { traceId: 'abc', spanId: 'zz' },
      links: [{ context: { traceId: '', spanId: '', traceFlags: 0 } }],
    })
    expect(made).toMatchObject({ traceId: '0'.repeat(32), spanId: '0'.repeat(16) })
    expect(made.links).toEqual([{ traceId: '0'.repeat(32), spanId: '0'.repeat(16), flags: 0x100 }])
  })

  it('has times to the nanosecond, and 0 for what is no time', () => {
    expect(startedAt(1_753_000_000, 123_456_789)).toBe('1753000000123456789')
    expect(startedAt(18_446_744_073, 709_551_615)).toBe('18446744073709551615')
    expect(startedAt(18_446_744_073, 709_551_616)).toBe('0')
    expect(startedAt(18_446_744_073, 709_551_617)).toBe('0')
    expect(startedAt(1, 4_000_000_000)).toBe('5000000000')
    expect(startedAt(1, 2.75)).toBe('1000000002')
    for (const time of [-1, Number.NaN, Infinity, 1e300]) expect(startedAt(time, 5)).toBe('0')
    for (const rest of [-1, Number.NaN, Infinity, 1e300]) expect(startedAt(5, rest)).toBe('0')
  })

  it('has a status only if one was set, with a message only if there is one', () => {
    expect(wireSpan({ status: { code: SpanStatusCode.UNSET, message: 'ignored' } })).not.toHaveProperty(
      'status',
    )
    expect(wireSpan({ status: { code: SpanStatusCode.OK } }).status).toEqual({ code: 1 })
    expect(wireSpan({ status: { code: SpanStatusCode.ERROR, message: '' } }).status).toEqual({ code: 2 })
    expect(wireSpan({ status: { code: SpanStatusCode.ERROR, message: 'boom' } }).status).toEqual({
      code: 2,
      message: 'boom',
    })
  })
})

describe('an attribute', () => {
  it('that is undefined or null is left out, and keeps its place in an array', () => {
    expect(wireSpan({ attributes: { a: undefined, b: null, c: 1 } }).attributes).toEqual([
      { key: 'c', value: { intValue: '1' } },
    ])
    expect(wireValue([null, 1, undefined])).toEqual({ arrayValue: { values: [{}, { intValue: '1' }, {}] } })
    expect(wireValue({ a: undefined, b: null })).toEqual({
      kvlistValue: { values: [{ key: 'b', value: {} }] },
    })
  })

  it('that is an object of another realm is one as well', () => {
    expect(wireValue(runInNewContext('({ a: 1 })'))).toEqual({
      kvlistValue: { values: [{ key: 'a', value: { intValue: '1' } }] },
    })
  })

  it('that is inherited is no attribute', () => {
    expect(wireSpan({ attributes: Object.create({ inherited: 1 }) as Loose })).not.toHaveProperty(
      'attributes',
    )
  })

  it('that is an integer is an int64 as long as it fits', () => {
    expect(wireValue(-1)).toEqual({ intValue: '-1' })
    expect(wireValue(2 ** 53)).toEqual({ intValue: '9007199254740992' })
    expect(wireValue(2 ** 63 - 1024)).toEqual({ intValue: '9223372036854774784' })
    expect(wireValue(-(2 ** 63))).toEqual({ intValue: '-9223372036854775808' })
    expect(wireValue(2 ** 63)).toEqual({ doubleValue: 2 ** 63 })
    expect(wireValue(-0)).toEqual({ doubleValue: '-0' })
    expect(wireValue(0)).toEqual({ intValue: '0' })
    expect(wireValue(2n ** 63n)).toEqual({ stringValue: '9223372036854775808' })
  })

  it('of another kind is its text, or an empty value if it has none', () => {
    expect(wireValue(new URL('http://a/'))).toEqual({ stringValue: 'http://a/' })
    expect(wireValue(Symbol('s'))).toEqual({ stringValue: 'Symbol(s)' })
    expect(wireValue(new Date(Number.NaN))).toEqual({ stringValue: 'Invalid Date' })
    const mute = new (class Mute {
      toString(): string {
        throw new Error('no')
      }
    })()
    expect(wireValue(mute)).toEqual({})
    expect(wireValue({ good: 'text', bad: mute, after: 'text' })).toEqual({
      kvlistValue: {
        values: [
          { key: 'good', value: { stringValue: 'text' } },
          { key: 'bad', value: {} },
          { key: 'after', value: { stringValue: 'text' } },
        ],
      },
    })
  })

  it('that throws half-way is an empty value, and what stood in it is not repeated later', () => {
    const half = Object.defineProperty({ same: 'always' }, 'bad', {
      enumerable: true,
      get: () => {
        throw new Error('no')
      },
    })
    const attributes = { half, x: 'filler-filler-filler', inner: { same: 'always' } }
    expect(wireSpan({ attributes }).attributes).toEqual([
      { key: 'half', value: {} },
      { key: 'x', value: { stringValue: 'filler-filler-filler' } },
      { key: 'inner', value: expectedValue({ same: 'always' }) },
    ])
  })

  it('that contains itself ends at the depth limit', () => {
    const cyclic: unknown[] = []
    cyclic.push(cyclic)
    let value = wireValue(cyclic)
    let depth = 0
    while ((value as { arrayValue?: unknown }).arrayValue !== undefined) {
      value = (value as { arrayValue: { values: [unknown] } }).arrayValue.values[0]
      depth++
    }
    expect(depth).toBe(64)
    expect(value).toEqual({})
  })

  it('that contains itself twice ends at the limit of values', () => {
    const doubling: Record<string, unknown> = {}
    Object.assign(doubling, { a: doubling, b: [doubling, doubling], c: 'text' })
    const bytes = encodeProtobuf([span({ attributes: { doubling, after: 'text' } })])
    expect(bytes.length).toBeLessThan(5_000_000)
    expect(fromJson([span({ attributes: { doubling, after: 'text' } })])).toEqual(form(decodeRequest(bytes)))
  })
})

describe('an app that gets in between', () => {
  it('may have something encoded while something is encoded: neither changes the other', () => {
    class Logged {
      toString(): string {
        inner.push(encodeProtobuf([span({ name: 'inner', attributes: { k: 'inner', n: [1, 2, 3] } })]))
        return 'logged'
      }
    }
    const inner: Uint8Array[] = []
    const attributes = {
      k: 'first',
      list: [new Logged(), 'rest'],
      odd: new Logged(),
      z: 'first',
      last: 'after',
    }
    const outer = encodeProtobuf([
      span({ attributes: { k: 'first' } }),
      span({ attributes }),
      span({ name: 'third' }),
    ])
    const plain = { ...attributes, list: ['logged', 'rest'], odd: 'logged' }
    const expected = [
      span({ attributes: { k: 'first' } }),
      span({ attributes: plain }),
      span({ name: 'third' }),
    ]
    expect(decodeRequest(outer)).toEqual(decodeRequest(encodeProtobuf(expected)))
    expect(inner).toHaveLength(2)
    for (const request of inner) {
      const own = [span({ name: 'inner', attributes: { k: 'inner', n: [1, 2, 3] } })]
      expect(decodeRequest(request)).toEqual(decodeRequest(encodeProtobuf(own)))
    }
  })

  it('may have put something on Object.prototype: it is no attribute', () => {
    const clean = decodeRequest(encodeProtobuf([span({ attributes: { a: 1 } })]))
    Object.assign(Object.prototype, { polluted: 'everywhere' })
    try {
      expect(decodeRequest(encodeProtobuf([span({ attributes: { a: 1 } })]))).toEqual(clean)
    } finally {
      Reflect.deleteProperty(Object.prototype, 'polluted')
    }
  })
})

describe('a batch that is too long for one request', () => {
  const other: InstrumentationScope = { name: 'other' }
  const batch = Array.from({ length: 40 }, (_, index) =>
    span({
      name: `span ${index}`,
      instrumentationScope: index % 3 === 0 ? other : scope,
      ...(index % 5 === 0 && { resource: { attributes: { 'service.name': 'second' } } }),
      attributes: { text: 'x'.repeat(100) },
    }),
  )

  function namesIn(request: Uint8Array): string[] {
    const { resourceSpans = [] } = decodeRequest(request) as {
      resourceSpans?: { scopeSpans: { spans: { name: string }[] }[] }[]
    }
    const groups = resourceSpans.flatMap(({ scopeSpans }) => scopeSpans)
    // An envelope without spans is not to be sent.
    for (const { spans } of groups) expect(spans.length).toBeGreaterThan(0)
    return groups.flatMap(({ spans }) => spans.map(({ name }) => name))
  }

  it.each([1, 300, 1000, 4000, 1e6])(
    'goes in parts of about %i bytes, and every span in one of them',
    (most) => {
      const parts: string[][] = []
      for (let unsent: readonly ReadableSpan[] = batch; unsent.length > 0;) {
        const rest = { later: [] as ReadableSpan[], leftOut: 0 }
        const request = encodeProtobuf(unsent, most, rest)
        checkRequest(request)
        expect(request.length).toBeLessThan(most + 600)
        parts.push(namesIn(request))
        expect(rest.leftOut).toBe(0)
        unsent = rest.later
      }
      expect(parts.flat().sort()).toEqual(batch.map(({ name }) => name).sort())
      if (most === 1e6) expect(parts).toHaveLength(1)
      else expect(parts.length).toBeGreaterThan(1)
    },
  )

  it.each([
    ['first', 0],
    ['in the middle', 20],
    ['last', 39],
  ])('holds in no part but that of one span more than it may: a heavy one %s', (_row, place) => {
    const most = 1000
    const heavy = span({ name: 'heavy', attributes: { text: 'x'.repeat(5000) } })
    const parts: number[] = []
    for (let unsent: readonly ReadableSpan[] = batch.with(place, heavy); unsent.length > 0;) {
      const rest = { later: [] as ReadableSpan[], leftOut: 0 }
      const sections = encodeSections(unsent, most, rest)
      const names = namesIn(joinSections(sections))
      const size = sections.reduce((sum, { spans: { length } }) => sum + length, 0)
      if (size > most) expect(names).toEqual(['heavy'])
      parts.push(names.length)
      unsent = rest.later
    }
    expect(parts.reduce((sum, count) => sum + count, 0)).toBe(40)
  })

  it('writes what follows a span that has no room as if that had never been there', () => {
    const shared = { k: 'a text of both' }
    const heavy = span({ name: 'heavy', attributes: { ...shared, text: 'x'.repeat(5000) } })
    const follower = span({ name: 'n'.repeat(50), instrumentationScope: other, attributes: shared })
    const rest = { later: [] as ReadableSpan[], leftOut: 0 }
    const request = encodeProtobuf([span({ name: 'first' }), heavy, follower], 1000, rest)
    expect(rest.later).toEqual([heavy])
    checkRequest(request)
    expect(form(decodeRequest(request))).toEqual(fromProtobuf([span({ name: 'first' }), follower]))
  })

  function broken(): ReadableSpan {
    return Object.defineProperty(span({}), 'name', {
      get() {
        throw new Error('no')
      },
    })
  }

  it.each(['protobuf', 'json'])('counts the spans that cannot be encoded: %s', (form) => {
    const rest = { later: [], leftOut: 0 }
    const spans = [span({}), broken(), span({}), broken()]
    if (form === 'json') encodeJson(spans, rest)
    else encodeProtobuf(spans, Infinity, rest)
    expect(rest).toEqual({ later: [], leftOut: 2 })
  })

  it.each(['protobuf', 'json'])('counts all spans of a resource that cannot be encoded: %s', (form) => {
    const reports = said()
    const rest = { later: [], leftOut: 0 }
    const unreadable = Object.defineProperty({}, 'attributes', {
      get() {
        throw new Error('no')
      },
    }) as ReadableSpan['resource']
    const spans = [1, 2, 3].map(() => span({ resource: unreadable }))
    const request = form === 'json' ? encodeJson([...spans, span()], rest) : encodeProtobuf(spans, 1e6, rest)
    expect(form === 'json' ? String(request).match(/spanId/g) : request).toHaveLength(form === 'json' ? 1 : 0)
    expect(rest).toEqual({ later: [], leftOut: 3 })
    expect(reports.lines).toHaveLength(1)
  })

  it('leaves for later as many as there are', () => {
    const one = span()
    const rest = { later: [] as ReadableSpan[], leftOut: 0 }
    const spans = Array.from({ length: 300_000 }, () => one)
    const { length } = namesIn(encodeProtobuf(spans, 1000, rest))
    expect(length).toBeGreaterThan(1)
    expect(rest.leftOut).toBe(0)
    expect(rest.later.length + length).toBe(spans.length)
  })

  it('is kept in one piece of memory, of however many scopes it is', () => {
    const scopes = ['a', 'b', 'c'].map((name) => ({ name }))
    const spans = scopes.flatMap((instrumentationScope) => [
      span({ instrumentationScope }),
      span({ instrumentationScope }),
    ])
    const sections = encodeSections(spans, Infinity, { later: [], leftOut: 0 })
    expect(sections).toHaveLength(3)
    expect(new Set(sections.map(({ spans: { buffer } }) => buffer)).size).toBe(1)
    expect(joinSections(sections)).toEqual(encodeProtobuf(spans))
  })

  it('counts the spans that there is no memory to keep', () => {
    const reports = said()
    const large = 'x'.repeat(700_000)
    const spans = [span({ attributes: { large } }), span({ attributes: { large } }), span({}), broken()]
    const original = Buffer.allocUnsafeSlow
    const allocate = vi.spyOn(Buffer, 'allocUnsafeSlow')
    onTestFinished(() => allocate.mockRestore())
    const rest = { later: [] as ReadableSpan[], leftOut: 0 }
    // The encoder's own buffer is of a power of two.
    allocate.mockImplementation((size) => {
      if (!Number.isInteger(Math.log2(size))) throw new RangeError('Array buffer allocation failed')
      return original(size)
    })
    expect(encodeSections(spans, Infinity, rest)).toEqual([])
    expect(rest).toEqual({ later: [], leftOut: 4 })
    expect(reports.lines.at(-1)).toContain('no memory')
  })
})
