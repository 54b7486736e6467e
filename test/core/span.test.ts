import {
  SpanKind,
  createTraceState,
  isSpanContextValid,
  ROOT_CONTEXT,
  SpanStatusCode,
  trace,
  type HrTime,
  type TimeInput,
} from '@opentelemetry/api'
import { describe, expect, test, vi } from 'vitest'
import { encodeProtobuf } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import type { ReadableSpan, Span } from '../../packages/core/src/span.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { record } from '../recording.ts'
import { engine, LIMITS, processor, said } from './engine.ts'
import { link, started } from './spans.ts'

describe('a view of a span, as exporters that redact make them', () => {
  const views: [string, (span: Span) => Span][] = [
    ['by Object.create', (span) => Object.create(span, { attributes: { value: { card: '?' } } }) as Span],
    [
      'by a Proxy',
      (span) =>
        new Proxy(span, {
          get: (target, key, self) => (key === 'attributes' ? { card: '?' } : Reflect.get(target, key, self)),
        }),
    ],
    [
      'as a copy of the same class',
      (span) =>
        Object.assign(Object.create(Object.getPrototypeOf(span) as object) as Span, span, {
          attributes: { card: '?' },
        }),
    ],
  ]

  test.each(views)('%s says all that the span does, but for what it hides', (_, viewed) => {
    const span = started()
    span.setAttribute('card', 'visa 4242').addEvent('paid').setStatus({ code: SpanStatusCode.ERROR }).end()
    const request = (of: Span) => JSON.stringify(decodeRequest(encodeProtobuf([of])))
    expect(request(viewed(span))).toBe(request(span).replace('visa 4242', '?'))
    expect(JSON.parse(encodeJson([viewed(span)]))).toEqual(
      JSON.parse(encodeJson([span]).toString().replace('visa 4242', '?')),
    )
    expect(viewed(span).kind).toBe(span.kind)
    expect(viewed(span).spanContext()).toEqual(span.spanContext())
  })

  test.each(views)('%s takes what a span takes', (_, viewed) => {
    const view = viewed(started())
    view.setAttribute('late', true).addEvent('paid').updateName('renamed')
    view.recordException(new Error('no'))
    view.end()
    expect(view.ended).toBe(true)
  })
})

describe('what processors and exporters of others write to a span', () => {
  const written = {
    kind: SpanKind.PRODUCER,
    startTime: [1, 2],
    endTime: [3, 4],
    resource: { attributes: { 'service.name': 'other' } },
    instrumentationScope: { name: 'other' },
    status: { code: SpanStatusCode.ERROR, message: 'no' },
    events: [{ time: [2, 0], name: 'event' }],
    links: [link],
  }
  const steps = ['onStart', 'onEnding', 'onEnd'] as const

  test.each(steps)('by %s is what is exported', (step) => {
    const ended: ReadableSpan[] = []
    const writing = processor({ [step]: (span: object) => void Object.assign(span, written) })
    const { tracer } = engine({ processors: [writing, processor({ onEnd: (span) => ended.push(span) })] })
    tracer.startSpan('work').end()
    const [span] = ended as [ReadableSpan]
    expect(span).toMatchObject(written)
    expect(span.duration).toEqual([2, 2])
    for (const encoded of [
      decodeRequest(encodeProtobuf([span])),
      JSON.parse(encodeJson([span]).toString()),
    ]) {
      expect(encoded).toMatchObject({
        resourceSpans: [
          {
            resource: { attributes: [{ key: 'service.name', value: { stringValue: 'other' } }] },
            scopeSpans: [{ scope: { name: 'other' }, spans: [{ events: [{ name: 'event' }], links: [{}] }] }],
          },
        ],
      })
      const [sent] = encoded.resourceSpans[0].scopeSpans[0].spans
      expect([String(sent.startTimeUnixNano), String(sent.endTimeUnixNano)]).toEqual([
        '1000000002',
        '3000000004',
      ])
      expect(sent.status).toMatchObject({ message: 'no' })
      expect(JSON.stringify(sent.kind)).toMatch(/4|PRODUCER/)
    }
  })

  test.each(steps)('by %s makes a root of a child, as those do that leave out its parent', (step) => {
    const reports = said()
    const ended: ReadableSpan[] = []
    // Under the names that both versions of the official SDK have for it.
    const orphaned = { parentSpanId: undefined, parentSpanContext: undefined }
    const library = { instrumentationLibrary: { name: 'other' } }
    const writing = processor({ [step]: (span: object) => void Object.assign(span, orphaned, library) })
    const { tracer } = engine({ processors: [writing, processor({ onEnd: (span) => ended.push(span) })] })
    const parent = tracer.startSpan('parent')
    tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, parent)).end()
    expect(reports.lines).toEqual([])
    expect(ended).toMatchObject([{ name: 'child', ...orphaned, ...library }])
    expect(JSON.stringify(decodeRequest(encodeProtobuf(ended)))).not.toContain('parentSpanId')
    expect(encodeJson(ended).toString()).not.toContain('parentSpanId')
  })

  test.each(['onStart', 'onEnding'] as const)(
    'is not for the app to hear of where %s has frozen it',
    async (step) => {
      const reports = said()
      const { provider } = engine({
        processors: [processor({ [step]: (span: object) => void Object.freeze(span) })],
      })
      const tracer = provider.getTracer('test')
      const [first, second] = [tracer.startSpan('first') as Span, tracer.startSpan('second')]
      first.setAttribute('a', 1).updateName('renamed').setStatus({ code: SpanStatusCode.ERROR })
      first.addEvent('event').addLink({ context: second.spanContext() }).recordException(new Error('no'))
      const known = first.spanContext()
      expect(isSpanContextValid(known)).toBe(true)
      expect(first.spanContext()).toEqual(known)
      expect([first.status, first.events, first.links]).toEqual([
        expect.anything(),
        expect.anything(),
        expect.anything(),
      ])
      first.end()
      first.end()
      await provider.shutdown()
      second.end()
      expect(reports.lines.filter((line) => line.includes('a span was frozen'))).toHaveLength(1)
    },
  )

  test('costs nobody a span that is frozen', () => {
    const ended: ReadableSpan[] = []
    const { tracer } = engine({
      processors: [processor({ onEnding: Object.freeze, onEnd: (span) => ended.push(span) })],
    })
    tracer.startSpan('frozen').end()
    expect(ended).toHaveLength(1)
  })
})

describe('events', () => {
  test('keep their order and the times that they were given', () => {
    const span = started()
    span
      .addEvent('first', { a: 1 }, [1_700_000_000, 5])
      .addEvent('second', [1_600_000_000, 7])
      .addEvent('third', new Date(1_650_000_000_000))
      .addEvent('now')
    expect(span.events.slice(0, 3)).toEqual([
      { name: 'first', attributes: { a: 1 }, time: [1_700_000_000, 5] },
      { name: 'second', time: [1_600_000_000, 7] },
      { name: 'third', time: [1_650_000_000, 0] },
    ])
    expect(span.events[3]?.time[0]).toBeGreaterThan(1_700_000_000)
  })

  test('take the time after their attributes, and a time after a time', () => {
    const span = started()
    span.addEvent('attributes', { a: 1 }, [1, 2]).addEvent('none', undefined, [3, 4])
    span.addEvent('null', null as unknown as undefined, [5, 6]).addEvent('twice', [7, 8], [9, 10])
    expect(span.events).toEqual([
      { name: 'attributes', attributes: { a: 1 }, time: [1, 2] },
      { name: 'none', time: [3, 4] },
      { name: 'null', time: [5, 6] },
      { name: 'twice', time: [9, 10] },
    ])
  })

  test('over the limit are dropped and counted, as are their attributes', () => {
    const span = started({ eventCountLimit: 1, attributePerEventCountLimit: 1 })
    span.addEvent('kept', { a: 1, b: 2 }).addEvent('dropped')
    expect(span.events).toMatchObject([{ name: 'kept', attributes: { a: 1 }, droppedAttributesCount: 1 }])
    expect(span.droppedEventsCount).toBe(1)
    expect(started({ eventCountLimit: 0 }).addEvent('dropped').droppedEventsCount).toBe(1)
  })

  test('of one span are not those of another', () => {
    const { tracer } = engine()
    const [one, two] = [tracer.startSpan('one') as Span, tracer.startSpan('two') as Span]
    one.addEvent('mine').addLink(link)
    expect([two.events, two.links]).toEqual([[], []])
  })
})

describe('links', () => {
  test('are given at the start or added later', () => {
    const span = engine().tracer.startSpan('work', { links: [{ ...link, attributes: { a: 1 } }] }) as Span
    span.addLink(link)
    span.addLinks([link])
    expect(span.links).toEqual([{ ...link, attributes: { a: 1 } }, link, link])
  })

  test('to a trace of zeros are kept, and one to nothing harms nobody', () => {
    const zeros = { traceId: '0'.repeat(32), spanId: '0'.repeat(16), traceFlags: 0 }
    const span = started()
    span.addLink({ context: zeros, attributes: { 'messaging.batch': 1 } })
    for (const nothing of [{}, { a: undefined }, { a: () => {} }])
      span.addLink({ context: zeros, attributes: nothing as never })
    span.addLink(undefined as unknown as typeof link)
    expect(span.links).toEqual([{ context: zeros, attributes: { 'messaging.batch': 1 } }])
  })

  test('to nothing are kept for their attributes or for their tracestate, and not for nothing', () => {
    const zeros = { traceId: '0'.repeat(32), spanId: '0'.repeat(16), traceFlags: 0 }
    const named = { context: { ...zeros, traceState: createTraceState('vendor=x') } }
    const half = { context: { ...link.context, spanId: zeros.spanId } }
    const span = started().addLinks([{ context: zeros }, { context: zeros, attributes: {} }, named, half])
    expect(span.links).toEqual([named])
  })

  test('over the limit are dropped and counted, as are their attributes', () => {
    const span = started({ linkCountLimit: 1, attributePerLinkCountLimit: 1 })
    span.addLinks([{ ...link, attributes: { a: 1, b: 2 } }, link])
    expect(span.links).toEqual([{ ...link, attributes: { a: 1 }, droppedAttributesCount: 1 }])
    expect(span.droppedLinksCount).toBe(1)
  })
})

test.each<[string, (span: Span) => void]>([
  ['attributes', (span) => span.setAttributes({ a: 1, b: 2 })],
  ['events', (span) => span.addEvent('kept').addEvent('dropped')],
  ['links', (span) => span.addLinks([link, link])],
])('the first of %s that are too many is said, and no other', (what, fill) => {
  const reports = said()
  const span = started({ attributeCountLimit: 1, eventCountLimit: 1, linkCountLimit: 1 })
  fill(span)
  const line = `throughline: a span has more than 1 ${what}; further ones are dropped and counted`
  expect(reports.lines).toEqual([line])
  fill(span)
  expect(reports.lines).toEqual([line])
})

describe('the status', () => {
  const { UNSET, OK, ERROR } = SpanStatusCode
  const rows: [string, number[], number][] = [
    ['stays unset where nobody sets it', [], UNSET],
    ['is not taken back to unset', [ERROR, UNSET], ERROR],
    ['may go from Error to Ok', [ERROR, OK], OK],
    ['is final once it is Ok', [OK, ERROR, UNSET], OK],
  ]
  test.each(rows)('%s', (_row, codes, expected) => {
    const span = started()
    for (const code of codes) span.setStatus({ code })
    expect(span.status).toEqual({ code: expected })
  })

  test('has a description only with Error; of two errors the later one counts', () => {
    const span = started()
    span.setStatus({ code: ERROR, message: 'first' }).setStatus({ code: ERROR, message: 'second' })
    expect(span.status).toEqual({ code: ERROR, message: 'second' })
    expect(span.setStatus({ code: OK, message: 'fine' }).status).toEqual({ code: OK })
  })
})

describe('the end', () => {
  test('comes once: what is called later changes nothing and is said once for each method', () => {
    const reports = said()
    const { tracer, ended } = engine()
    for (const name of ['one', 'two']) {
      const span = tracer.startSpan(name) as Span
      expect(span.isRecording()).toBe(true)
      span.end()
      const { endTime } = span
      span.setAttribute('late', 1).setAttributes({ late: 1 }).addEvent('late').addLink(link)
      span.setStatus({ code: SpanStatusCode.ERROR }).updateName('late').recordException('late')
      span.end()
      expect(span.isRecording()).toBe(false)
      expect(span).toMatchObject({
        name,
        attributes: {},
        events: [],
        links: [],
        status: { code: 0 },
        endTime,
      })
    }
    expect(ended.map(({ name }) => name)).toEqual(['one', 'two'])
    expect(reports.lines).toHaveLength(8)
  })

  test('does not end the children', () => {
    const { tracer } = engine()
    const parent = tracer.startSpan('parent')
    const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, parent)) as Span
    parent.end()
    expect([parent.isRecording(), child.isRecording()]).toEqual([false, true])
  })

  test('is not there before: an open span has no end time and no duration', () => {
    const span = started()
    expect([span.ended, span.endTime, span.duration]).toEqual([false, [0, 0], [0, 0]])
  })

  test('is told to processors while the span can still change, to all of them before it is final', () => {
    const order: unknown[] = []
    const two = ['a', 'b'].map((name) =>
      processor({
        onStart: () => order.push(`start ${name}`),
        onEnding(span) {
          order.push(`ending ${name} ${span.ended}`)
          span.setAttribute(name, span.duration[1] > 0)
          span.end()
        },
        onEnd: (span) => order.push(`end ${name} ${span.ended} ${Object.keys(span.attributes)}`),
      }),
    )
    engine({ processors: two }).tracer.startSpan('work').end()
    expect(order).toEqual([
      'start a',
      'start b',
      'ending a false',
      'ending b false',
      'end a true a,b',
      'end b true a,b',
    ])
  })

  test('the name may change until then', () => {
    const span = started()
    expect(span.updateName('GET /orders/:id').name).toBe('GET /orders/:id')
  })
})

describe('a time may be given in each form of the API', () => {
  const forms: [string, () => TimeInput, (() => HrTime) | undefined][] = [
    ['seconds and nanoseconds', () => [1_700_000_000, 123], () => [1_700_000_000, 123]],
    ['a Date', () => new Date(1_700_000_000_123), () => [1_700_000_000, 123_000_000]],
    ['milliseconds since the epoch', () => 4_000_000_000_123, () => [4_000_000_000, 123_000_000]],
    ['a reading of performance.now()', () => performance.now(), undefined],
    ['seconds and more nanoseconds than one has', () => [1_700_000_000, 5e9], () => [1_700_000_005, 0]],
  ]
  test.each(forms)('%s', (_, give, expected) => {
    const { tracer } = engine()
    const started = tracer.startSpan('start', { startTime: give() }) as Span
    const ended = tracer.startSpan('end', { startTime: [1, 0] }) as Span
    ended.addEvent('event', give()).recordException('x', give())
    ended.end(give())
    const times = [started.startTime, ...ended.events.map(({ time }) => time), ended.endTime]
    expect(times).toHaveLength(4)
    for (const time of times) {
      if (expected !== undefined) expect(time).toEqual(expected())
      // Of the same clock as our own: within this test.
      else expect(Math.abs(time[0] + time[1] / 1e9 - Date.now() / 1000)).toBeLessThan(20)
    }
  })
})

describe('each limit has its variable', () => {
  const eight = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`k${i}`, 'abcdef']))
  const read = (span: Span | undefined) => ({
    attributes: Object.values(span?.attributes ?? {}),
    dropped: span?.droppedAttributesCount,
    events: [span?.events.length, span?.droppedEventsCount],
    links: [span?.links.length, span?.droppedLinksCount],
    perEvent: [
      Object.keys(span?.events[0]?.attributes ?? {}).length,
      span?.events[0]?.droppedAttributesCount,
    ],
    perLink: [
      Object.keys(span?.links[0]?.attributes ?? {}).length,
      (span?.links[0] as { droppedAttributesCount?: number } | undefined)?.droppedAttributesCount,
    ],
  })
  const all = {
    attributes: Array.from({ length: 8 }).fill('abcdef'),
    dropped: 0,
    events: [3, 0],
    links: [3, 0],
    perEvent: [8, undefined],
    perLink: [8, undefined],
  }
  const rows: [Record<string, string>, object][] = [
    [{}, {}],
    [{ OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '2' }, { attributes: ['abcdef', 'abcdef'], dropped: 6 }],
    [{ OTEL_ATTRIBUTE_COUNT_LIMIT: '1' }, { attributes: ['abcdef'], dropped: 7 }],
    [
      { OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '2', OTEL_ATTRIBUTE_COUNT_LIMIT: '1' },
      { attributes: ['abcdef', 'abcdef'], dropped: 6 },
    ],
    [{ OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '0' }, { attributes: [], dropped: 8 }],
    [{ OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT: '3' }, { attributes: Array.from({ length: 8 }).fill('abc') }],
    [{ OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '2' }, { attributes: Array.from({ length: 8 }).fill('ab') }],
    [
      { OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT: '3', OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '2' },
      { attributes: Array.from({ length: 8 }).fill('abc') },
    ],
    [{ OTEL_SPAN_EVENT_COUNT_LIMIT: '2' }, { events: [2, 1] }],
    [{ OTEL_SPAN_LINK_COUNT_LIMIT: '1' }, { links: [1, 2] }],
    [{ OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT: '5' }, { perEvent: [5, 3] }],
    [{ OTEL_LINK_ATTRIBUTE_COUNT_LIMIT: '4' }, { perLink: [4, 4] }],
    [{ OTEL_SPAN_EVENT_COUNT_LIMIT: '' }, {}],
  ]
  test.each(rows)('%o', (environment, expected) => {
    said()
    for (const [name, value] of Object.entries(environment)) vi.stubEnv(name, value)
    const { spans } = record()
    const span = trace
      .getTracer('app')
      .startSpan('work', { attributes: eight, links: [{ ...link, attributes: eight }] })
    span.addLinks([link, link]).addEvent('one', eight).addEvent('two').addEvent('three').end()
    expect(read(spans[0] as Span)).toEqual({ ...all, ...expected })
  })

  test('and is said once when it is met, whatever number of spans meet it', () => {
    const reports = said()
    const limits = { ...LIMITS, attributeCountLimit: 1, eventCountLimit: 1, linkCountLimit: 1 }
    const { tracer } = engine({ limits })
    for (let count = 0; count < 3; count += 1) {
      const span = tracer.startSpan('work').setAttributes(eight).addEvent('a').addEvent('b').addEvent('c')
      span.addLinks([link, link, link]).end()
    }
    expect(reports.lines).toHaveLength(3)
    expect(reports.lines.join()).toMatch(/1 attribute.*1 event.*1 link/)
  })
})

test('what a processor writes into one span is not seen in another', () => {
  const { tracer, ended } = engine({
    processors: [
      processor({
        onEnd(span) {
          ;(span as Span).status.code = SpanStatusCode.ERROR
          ;(span as Span).events.push({ time: [0, 0], name: 'added' })
          ;(span as Span).links = []
        },
      }),
    ],
  })
  tracer.startSpan('one').end()
  expect(ended).toEqual([])
  const other = engine().tracer.startSpan('two') as Span
  expect([other.status.code, other.events]).toEqual([SpanStatusCode.UNSET, []])
})
