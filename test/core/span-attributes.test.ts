import type { Attributes, AttributeValue } from '@opentelemetry/api'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from 'vitest'
import type { Span, SpanLimits } from '../../packages/core/src/span.ts'
import { LazyOptions, engine, LIMITS, said } from './engine.ts'
import { link, started } from './spans.ts'

describe('attributes', () => {
  test('are texts, numbers, booleans and lists of them; a later value wins', () => {
    const span = started()
    const tags = ['a', 'b']
    span
      .setAttribute('text', 'first')
      .setAttribute('text', 'second')
      .setAttributes({ count: 3, isNew: false, tags, gaps: ['a', null, undefined], none: [] })
    tags.push('changed later')
    expect(span.attributes).toEqual({
      text: 'second',
      count: 3,
      isNew: false,
      tags: ['a', 'b'],
      gaps: ['a', null, undefined],
      none: [],
    })
  })

  test('that are none are left out; what was expected and received is said, once for each name', () => {
    const reports = said()
    const span = started()
    for (let count = 0; count < 2; count += 1) {
      span.setAttribute('order', { id: 7n } as unknown as AttributeValue)
      span.setAttribute('made', ['a', new Date()] as unknown as AttributeValue)
      span.setAttribute('map', new Map() as unknown as AttributeValue)
      span.setAttribute('', 'no name')
    }
    span.setAttribute('nothing', undefined).setAttribute('null', null as unknown as undefined)
    expect(span.attributes).toEqual({})
    expect(reports.lines).toHaveLength(4)
    expect(reports.lines[0]).toMatch(
      /expected a string.*received an object that holds something else, or itself for "order"; for example/,
    )
    expect(reports.lines[1]).toContain('received a list that holds something else, or itself for "made"')
    expect(reports.lines[2]).toContain('received [object Map] for "map"')
  })

  describe('that are bytes, records, or lists of anything', () => {
    const set = (value: unknown, limits?: Partial<SpanLimits>) => {
      const span = started(limits)
      span.setAttribute('value', value as AttributeValue)
      return span.attributes['value'] as unknown
    }

    test('are kept as copies, with what is in them', () => {
      const bytes = Buffer.from([1, 2, 3])
      const parts = [{ type: 'text', content: 'hi' }, null, undefined, ['a', 1, true]]
      const given = { role: 'user', parts, bytes, nothing: null, missing: undefined }
      const kept = set(given)
      const expected = {
        role: 'user',
        parts: [{ type: 'text', content: 'hi' }, null, undefined, ['a', 1, true]],
        bytes: new Uint8Array([1, 2, 3]),
        nothing: null,
      }
      expect(kept).toStrictEqual(expected)
      bytes[0] = 9
      ;(parts as unknown[]).push('later')
      given.role = 'changed'
      expect(kept).toStrictEqual(expected)
      expect(set(runInNewContext('({ bytes: new Uint8Array([7]), list: [{}] })'))).toStrictEqual({
        bytes: new Uint8Array([7]),
        list: [{}],
      })
    })

    test('are kept of an event, a link and an exception, and at the start', () => {
      const order = { id: 7, lines: [{ sku: 'x' }] } as unknown as AttributeValue
      const { tracer } = engine()
      const span = tracer.startSpan('with it', { attributes: { order } }) as Span
      span.addEvent('event', { order }).addLink({ ...link, attributes: { order } })
      span.recordException(new Error('no'), { order })
      const all = [
        span.attributes,
        ...span.events.map(({ attributes }) => attributes),
        span.links[0]?.attributes,
      ]
      expect(all.map((attributes) => attributes?.['order'])).toStrictEqual(
        Array.from({ length: 4 }, () => order),
      )
      for (const attributes of all) expect(attributes?.['order']).not.toBe(order)
    })

    test('have texts and bytes cut to the limit, however deep they are', () => {
      const value = {
        text: 'abcdef',
        within: [{ text: 'abcdef', bytes: new Uint8Array(9) }],
        number: 123_456,
      }
      expect(set(value, { attributeValueLengthLimit: 3 })).toStrictEqual({
        text: 'abc',
        within: [{ text: 'abc', bytes: new Uint8Array(3) }],
        number: 123_456,
      })
    })

    test('that are within themselves are none, and twice beside each other they are', () => {
      const reports = said()
      const cyclic: unknown[] = [1]
      cyclic.push({ cyclic })
      const twice = { a: 1 }
      expect(set(cyclic)).toBeUndefined()
      expect(reports.lines).toEqual([
        expect.stringContaining('received a list that holds something else, or itself'),
      ])
      expect(set([twice, twice])).toStrictEqual([twice, twice])
    })

    test('end where they are too deep, or too many', () => {
      let deep: unknown = 'end'
      for (let depth = 0; depth < 1000; depth += 1) deep = [deep]
      let found = 0
      for (let at = set(deep); Array.isArray(at); at = at[0]) found += 1
      expect(found).toBe(65)
      let wide: unknown = 'end'
      for (let depth = 0; depth < 40; depth += 1) wide = [wide, wide]
      let count = 0
      const walk = (value: unknown): void => {
        count += 1
        if (Array.isArray(value)) for (const each of value) walk(each)
      }
      walk(set(wide))
      expect(count).toBeLessThanOrEqual(65_537)
      const reports = said()
      const many = Array.from({ length: 70_000 }, (_, index) => index)
      expect((set(many) as unknown[]).length).toBe(65_536)
      expect(Object.keys(set({ ...many }) as object)).toHaveLength(65_536)
      const cut = [expect.stringContaining('holds more than 65536 values, and was cut there')]
      expect(reports.lines).toEqual(cut)
      const holes = said()
      // oxlint-disable-next-line unicorn/no-new-array -- of holes alone
      expect((set(new Array(4_000_000_000)) as unknown[]).length).toBe(65_536)
      expect(holes.lines).toEqual(cut)
    })

    test('are not even asked for their keys where there is no more room', () => {
      let asked = 0
      const ownKeys = (target: object) => {
        asked += 1
        return Reflect.ownKeys(target)
      }
      const record = new Proxy({ a: 1, b: 2, c: 3 }, { ownKeys })
      const kept = set(Array.from({ length: 65_530 }, () => record)) as object[]
      expect([kept.length, kept[0], kept[1], kept[2], kept[3], kept.at(-1)]).toEqual([
        65_530,
        { a: 1, b: 2, c: 3 },
        { a: 1, b: 2, c: 3 },
        {},
        {},
        {},
      ])
      expect(asked).toBe(3)
    })

    test('that throw when they are read cost themselves', () => {
      const reports = said()
      const broken = {
        get id(): number {
          throw new Error('of the app')
        },
      }
      expect(set({ broken })).toBeUndefined()
      expect(reports.lines).toEqual([expect.stringContaining('left out, since to read it threw: attributes')])
    })
  })

  test('may be called as anything is, the prototype of an object included', () => {
    const given = JSON.parse('{ "__proto__": ["a", "b"], "constructor": 1 }') as Attributes
    const { tracer } = engine()
    const cause = new Error('no')
    const begun = tracer.startSpan('with it', { attributes: JSON.parse('{ "__proto__": "text" }') }) as Span
    const set = started().setAttributes(given)
    const noted = started()
      .addEvent('event', given)
      .addLink({ ...link, attributes: given })
    noted.recordException(cause, given)
    begun.setAttribute('__proto__', 'later')
    const all = [begun.attributes, set.attributes, noted.links[0]?.attributes]
    for (const event of noted.events) all.push(event.attributes)
    expect(all).toHaveLength(5)
    expect(all.map((attributes) => Object.getOwnPropertyDescriptor(attributes, '__proto__')?.value)).toEqual([
      'later',
      ...Array.from({ length: 4 }, () => ['a', 'b']),
    ])
    for (const attributes of all) expect(Object.getPrototypeOf(attributes)).toBe(Object.prototype)
    expect(set.attributes['constructor']).toBe(1)
  })

  test('called so count for their limit once', () => {
    const span = started({ attributeCountLimit: 1 })
    span.setAttribute('__proto__', 1).setAttribute('__proto__', 2).setAttribute('other', 3)
    expect(Object.entries(span.attributes)).toEqual([['__proto__', 2]])
    expect(span.droppedAttributesCount).toBe(1)
  })

  test('of an event or a link that are none are said, too', () => {
    const reports = said()
    const span = started()
    const order = { id: 7n } as unknown as AttributeValue
    span.addEvent('event', { ok: 1, order }).addLink({ ...link, attributes: { order } })
    expect(span.events[0]?.attributes).toEqual({ ok: 1 })
    expect(reports.lines).toEqual([
      expect.stringContaining('received an object that holds something else, or itself for "order"'),
    ])
  })

  test('under names that are made of data, and are wrong, silence no other report', () => {
    const reports = said()
    const span = started({ eventCountLimit: 0 })
    for (let index = 0; index < 300; index += 1)
      span.setAttribute(`form.${index}`, Symbol(String(index)) as unknown as AttributeValue)
    expect(reports.lines).toHaveLength(100)
    span.addEvent('too many')
    expect(reports.lines.at(-1)).toContain('further ones are dropped and counted')
  })

  test('over the limit are dropped and counted; those that are there can still change', () => {
    const span = started({ attributeCountLimit: 2 })
    span.setAttributes({ a: 1, b: 2, c: 3 }).setAttribute('d', 4).setAttribute('a', 'changed')
    expect(span.attributes).toEqual({ a: 'changed', b: 2 })
    expect(span.droppedAttributesCount).toBe(2)
  })

  test('have texts cut to the limit, those in arrays too', () => {
    const span = started({ attributeValueLengthLimit: 3 })
    span.setAttributes({ text: 'abcdef', list: ['abcdef', 'ab'], number: 123_456 })
    expect(span.attributes).toEqual({ text: 'abc', list: ['abc', 'ab'], number: 123_456 })
  })

  test('have texts cut between characters, each of which counts as one', () => {
    const span = started({ attributeValueLengthLimit: 3 })
    span.setAttributes({
      fits: '😀😀😀',
      pair: 'ab😀c',
      after: '😀abc',
      list: ['a😀😀😀'],
      half: '\ud83dabc',
    })
    expect(span.attributes).toEqual({
      fits: '😀😀😀',
      pair: 'ab😀',
      after: '😀ab',
      list: ['a😀😀'],
      half: '\ud83dab',
    })
    const none = started({ attributeValueLengthLimit: 0 }).setAttributes({ text: 'a', list: ['a', null] })
    expect(none.attributes).toEqual({ text: '', list: ['', null] })
  })

  test('in events, in links and of exceptions are cut as well', () => {
    const span = started({ attributeValueLengthLimit: 3 })
    span.addEvent('event', { text: 'abcdef' }).addLink({ ...link, attributes: { list: ['abcdef'] } })
    span.recordException(new Error('abcdef'))
    expect(span.events[0]?.attributes).toEqual({ text: 'abc' })
    expect(span.events[1]?.attributes).toEqual({
      'exception.type': 'Err',
      'exception.message': 'abc',
      'exception.stacktrace': 'Err',
    })
    expect(span.links[0]?.attributes).toEqual({ list: ['abc'] })
  })

  test('of the resource are not held to the limits', () => {
    const limits = { ...LIMITS, attributeCountLimit: 0, attributeValueLengthLimit: 1 }
    const { tracer, ended } = engine({ limits, resource: { attributes: { 'service.name': 'checkout' } } })
    tracer.startSpan('work').end()
    expect(ended[0]?.resource.attributes).toEqual({ 'service.name': 'checkout' })
  })

  test('that a seam builds are held to the limits as well', () => {
    const limits = { ...LIMITS, attributeCountLimit: 2, attributeValueLengthLimit: 3 }
    const { tracer, ended } = engine({ limits })
    tracer.startSpan('work', new LazyOptions(1, () => ({ a: 'abcdef', b: 'b', c: 'c' }))).end()
    expect(ended[0]?.attributes).toEqual({ a: 'abc', b: 'b' })
    expect(ended[0]?.droppedAttributesCount).toBe(1)
  })

  test("given at the start are copied: the caller's object stays the caller's", () => {
    const given = { a: 1 }
    const span = engine().tracer.startSpan('work', { attributes: given }) as Span
    span.setAttribute('b', 2)
    expect(given).toEqual({ a: 1 })
    expect(span.attributes).toEqual({ a: 1, b: 2 })
  })

  test('given at the start have names, too', () => {
    const reports = said()
    const span = engine().tracer.startSpan('work', { attributes: { '': 'no name', a: 1 } }) as Span
    expect(span.attributes).toEqual({ a: 1 })
    expect(reports.lines).toEqual([expect.stringContaining('expected a name of one character or more')])
  })
})
