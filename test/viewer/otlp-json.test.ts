import { toOtlpJson } from '@throughline/viewer'
import type { Span } from '@throughline/viewer'
import { describe, expect, it } from 'vitest'
import { spansFromJson } from '../../packages/viewer/src/request.ts'
import { at, checkout, declined, hex, link, span, traceId } from './sample.ts'

function readBack(spans: readonly Span[]): Span[] {
  return spansFromJson(Buffer.from(toOtlpJson(spans)))
}

/** A span with something in every field. */
function full(): Span {
  const attributes = {
    string: 'text\nof two lines \u2028',
    empty: '',
    yes: true,
    no: false,
    zero: 0,
    negative: -7,
    minusZero: -0,
    safe: Number.MAX_SAFE_INTEGER,
    large: 9_223_372_036_854_775_807n,
    small: -9_223_372_036_854_775_808n,
    fraction: 0.1,
    huge: 1e300,
    nan: Number.NaN,
    infinite: Number.POSITIVE_INFINITY,
    below: Number.NEGATIVE_INFINITY,
    nothing: null,
    bytes: Uint8Array.of(0, 255, 128),
    list: ['a', 1, 2n ** 60n, [true, null], { deep: ['x'] }],
    map: { a: 1, b: { c: 'd' }, ['__proto__']: 'just a key' },
  }
  return span(1, 'shop', 'everything', [0, 10], {
    parent: 2,
    kind: 'consumer',
    attributes,
    events: [{ timeUnixNano: at(5), name: 'half', attributes, droppedAttributesCount: 3 }],
    links: [{ ...link(hex(9)), traceState: 'a=1', attributes, droppedAttributesCount: 4, flags: 0x301 }],
    status: { code: 'error', message: 'broken' },
    traceState: 'vendor=1,other=2',
    flags: 0x301,
    droppedAttributesCount: 5,
    droppedEventsCount: 6,
    droppedLinksCount: 7,
    resource: {
      attributes: { 'service.name': 'shop', 'host.cpus': 8 },
      droppedAttributesCount: 1,
      schemaUrl: 'https://opentelemetry.io/schemas/1.44.0',
    },
    scope: {
      name: '@throughline/express',
      version: '0.1.0',
      attributes: { a: 'b' },
      droppedAttributesCount: 2,
      schemaUrl: 'https://example.com/schema',
    },
  })
}

describe('a line of OTLP/JSON', () => {
  it('is one line, whatever the names hold', () => {
    expect(toOtlpJson([full()])).not.toMatch(/[\n\r]/)
  })

  it('gives a terminal no orders, and reads back as it was', () => {
    const name = 'a\u001b[2J\u009b2J\u0085b\u2028c\u007f'
    const line = toOtlpJson([{ ...full(), name }])
    expect(line).not.toMatch(/[\p{Cc}\u2028\u2029]/u)
    expect(readBack([{ ...full(), name }])[0]?.name).toBe(name)
  })

  it('loses nothing on the way out and back', () => {
    const spans = [full(), ...declined()]
    expect(readBack(spans)).toEqual(expect.arrayContaining(spans))
    expect(readBack(spans)).toHaveLength(spans.length)
    expect(readBack([full()])).toStrictEqual([full()])
  })

  it('has one group for each service and each scope, however many requests they came in', () => {
    const line: { resourceSpans: { scopeSpans: { spans: unknown[] }[] }[] } = JSON.parse(
      toOtlpJson([
        ...checkout(),
        span(11, 'payment-svc', 'other scope', [1, 2], { scope: { ...full().scope } }),
      ]),
    )
    const sizes = line.resourceSpans.map(({ scopeSpans }) => scopeSpans.map(({ spans }) => spans.length))
    expect(sizes).toEqual([[2], [4], [2], [2, 1]])
  })

  it('is written as the specification has it: hex ids, strings for nanoseconds, numbers for kinds', () => {
    const root = span(1, 'shop', 'GET /', [0, 1], {
      kind: 'server',
      attributes: { a: 1, b: 2n ** 60n, c: 1.5 },
    })
    expect(JSON.parse(toOtlpJson([root]))).toEqual({
      resourceSpans: [
        {
          resource: { attributes: [{ key: 'service.name', value: { stringValue: 'shop' } }] },
          scopeSpans: [
            {
              scope: { name: 'sample', version: '1.0.0' },
              spans: [
                {
                  traceId,
                  spanId: '0000000000000001',
                  flags: 0x101,
                  name: 'GET /',
                  kind: 2,
                  startTimeUnixNano: '1700000000000000000',
                  endTimeUnixNano: '1700000000001000000',
                  attributes: [
                    { key: 'a', value: { intValue: '1' } },
                    { key: 'b', value: { intValue: '1152921504606846976' } },
                    { key: 'c', value: { doubleValue: 1.5 } },
                  ],
                },
              ],
            },
          ],
        },
      ],
    })
  })

  it('is an empty request for no spans', () => {
    expect(toOtlpJson([])).toBe('{"resourceSpans":[]}')
  })
})
