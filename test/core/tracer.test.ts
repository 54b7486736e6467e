import { setImmediate as turn } from 'node:timers/promises'
import {
  context,
  createContextKey,
  createTraceState,
  ROOT_CONTEXT,
  SpanKind,
  trace,
  type Context,
  type Span as ApiSpan,
} from '@opentelemetry/api'
import {
  BatchSpanProcessor,
  InMemorySpanExporter,
  SimpleSpanProcessor,
  type SpanProcessor as OfficialProcessor,
} from '@opentelemetry/sdk-trace-base'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { AsyncContextManager, root, suppressTracing } from '../../packages/core/src/context.ts'
import { type ReadableSpan, type Span, type SpanProcessor } from '../../packages/core/src/span.ts'
import { alwaysOn } from '../../packages/core/src/sampling.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { TracerProvider } from '../../packages/core/src/tracer.ts'
import { encodeProtobuf } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { engine, LIMITS, processor, said } from './engine.ts'

beforeAll(() => {
  context.setGlobalContextManager(new AsyncContextManager())
})
afterAll(() => {
  context.disable()
})

const remote = {
  traceId: 'a'.repeat(32),
  spanId: 'b'.repeat(16),
  traceFlags: 1,
  isRemote: true,
  traceState: createTraceState('vendor=x'),
}

function under(span: ApiSpan): Context {
  return trace.setSpan(ROOT_CONTEXT, span)
}

describe('a span', () => {
  test('without a parent begins a trace; with one it continues that', () => {
    const { tracer } = engine()
    const first = tracer.startSpan('root') as Span
    const child = tracer.startSpan('child', {}, under(first)) as Span
    expect(first.parentSpanContext).toBeUndefined()
    expect(child.parentSpanContext).toEqual(first.spanContext())
    expect(child.spanContext().traceId).toBe(first.spanContext().traceId)
    expect(child.spanContext().spanId).not.toBe(first.spanContext().spanId)
    expect(tracer.startSpan('other').spanContext().traceId).not.toBe(first.spanContext().traceId)
  })

  test('under one of another service knows that its parent is there, and itself is here; tracestate goes along', () => {
    const child = engine().tracer.startSpan('child', {}, trace.setSpanContext(ROOT_CONTEXT, remote)) as Span
    expect(child.parentSpanContext?.isRemote).toBe(true)
    expect(child.spanContext().isRemote ?? false).toBe(false)
    expect(child.spanContext().traceState?.serialize()).toBe('vendor=x')
    expect(child.parentSpanId).toBe(remote.spanId)
  })

  test('that is to be a root, or whose parent is none, begins a trace', () => {
    const { tracer } = engine()
    const zeros = { ...remote, traceId: '0'.repeat(32) }
    for (const span of [
      tracer.startSpan('root', { root: true }, trace.setSpanContext(ROOT_CONTEXT, remote)),
      tracer.startSpan('root', {}, trace.setSpanContext(ROOT_CONTEXT, zeros)),
    ]) {
      expect((span as Span).parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceId).toMatch(/[^0]/)
      expect(span.spanContext().traceState).toBeUndefined()
    }
  })

  test.each(['http/protobuf', 'http/json'])(
    'is exported whatever its tracer was asked for by, as %s',
    (protocol) => {
      const { provider, ended } = engine()
      const revoked = Proxy.revocable({}, {})
      revoked.revoke()
      const strange = [
        2,
        Symbol('v'),
        Object.create(null),
        revoked.proxy,
        null,
        {},
        ['1'],
      ] as unknown as string[]
      for (const given of strange) {
        provider.getTracer('mine', given).startSpan('by its version').end()
        provider.getTracer('mine', '1', { schemaUrl: given }).startSpan('by its schema').end()
        provider
          .getTracer('mine', '1', given as unknown as { schemaUrl: string })
          .startSpan('by its options')
          .end()
      }
      expect(provider.getTracer('mine', 2 as unknown as string)).toBe(provider.getTracer('mine', '2'))
      const request =
        protocol === 'http/json'
          ? (JSON.parse(String(encodeJson(ended))) as unknown)
          : decodeRequest(encodeProtobuf(ended))
      expect(JSON.stringify(request).match(/by its \w+/g)).toHaveLength(3 * strange.length)
    },
  )

  test("has the tracer's scope, one object for all of its spans, and the provider's resource", () => {
    const { provider } = engine()
    const tracer = provider.getTracer('pkg', '2.0.0', { schemaUrl: 'https://schema' })
    const [one, two] = [tracer.startSpan('one') as Span, tracer.startSpan('two') as Span]
    expect(one.instrumentationScope).toEqual({ name: 'pkg', version: '2.0.0', schemaUrl: 'https://schema' })
    expect(two.instrumentationScope).toBe(one.instrumentationScope)
    expect(one.instrumentationLibrary).toBe(one.instrumentationScope)
    expect(one.resource).toBe(provider.resource)
    expect(provider.getTracer('pkg', '2.0.0', { schemaUrl: 'https://schema' })).toBe(tracer)
    expect(provider.getTracer('pkg', '2.0.1')).not.toBe(tracer)
    expect(provider.getTracer('pkg', '2.0.0')).not.toBe(tracer)
    expect(provider.getTracer('pkg', '2.0.0', { schemaUrl: 'https://other' })).not.toBe(tracer)
    expect(provider.getTracer('lib', '1@2')).not.toBe(provider.getTracer('lib@1', '2'))
    expect(provider.getTracer(null as never).scope.name).toBe('')
  })

  test('is of a tracer that is forgotten among thousands, whose names are made from data', () => {
    const { provider, ended } = engine()
    const first = provider.getTracer('pkg')
    for (let tenant = 0; tenant < 2000; tenant++) provider.getTracer(`tenant ${tenant}`)
    const again = provider.getTracer('pkg')
    expect(again).not.toBe(first)
    expect(again.scope).toEqual(first.scope)
    for (const tracer of [first, again]) tracer.startSpan('work').end()
    expect(ended).toHaveLength(2)
  })

  test('is INTERNAL unless it says otherwise', () => {
    const { tracer } = engine()
    expect((tracer.startSpan('work') as Span).kind).toBe(SpanKind.INTERNAL)
    expect((tracer.startSpan('work', { kind: SpanKind.PRODUCER }) as Span).kind).toBe(SpanKind.PRODUCER)
  })

  test.each([99, -1, 0.5, Number.NaN])('is INTERNAL of a kind that is none: %s', (kind) => {
    const { tracer } = engine()
    expect((tracer.startSpan('work', { kind }) as Span).kind).toBe(SpanKind.INTERNAL)
  })

  test('is not made where tracing is suppressed', () => {
    const { tracer, ended } = engine()
    const span = tracer.startSpan('work', {}, suppressTracing(root))
    span.end()
    expect(trace.isSpanContextValid(span.spanContext())).toBe(false)
    expect([span.isRecording(), ended]).toEqual([false, []])
  })
})

describe('an active span', () => {
  test('is current in its function, whose result it gives back, and which ends it', () => {
    const { tracer, ended } = engine()
    const result = tracer.startActiveSpan('outer', (outer) => {
      expect(trace.getActiveSpan()).toBe(outer)
      tracer.startActiveSpan('inner', { kind: SpanKind.CLIENT }, (inner) => inner.end())
      tracer.startActiveSpan('apart', {}, ROOT_CONTEXT, (apart) => apart.end())
      tracer.startActiveSpan('same', {}, undefined as unknown as Context, (same) => same.end())
      outer.end()
      return 'result'
    })
    expect(result).toBe('result')
    expect(trace.getActiveSpan()).toBeUndefined()
    const parents = ended.map(({ name, parentSpanContext }) => [name, parentSpanContext?.spanId])
    const outerId = ended.at(-1)?.spanContext().spanId
    expect(parents).toEqual([
      ['inner', outerId],
      ['apart', undefined],
      ['same', outerId],
      ['outer', undefined],
    ])
  })

  test.each([
    ['nothing', []],
    ['options', [{ kind: SpanKind.CLIENT }]],
    ['options and a context', [{}, ROOT_CONTEXT, undefined]],
  ])('is not begun for nobody: with %s in place of the function', (_what, rest) => {
    const reports = said()
    const { tracer, ended, provider } = engine()
    const begin = tracer.startActiveSpan.bind(tracer) as unknown as (...given: unknown[]) => unknown
    expect(begin('work', ...rest)).toBeUndefined()
    void provider.shutdown()
    expect(ended).toEqual([])
    expect(reports.lines).toEqual([
      expect.stringMatching(/^throughline: startActiveSpan\(\): expected a function/),
    ])
  })

  test('that cannot be started passes on the context it was to start in, whatever is current', () => {
    const { tracer } = engine()
    const [current, other] = [tracer.startSpan('current'), tracer.startSpan('other')]
    const options = {
      get attributes(): never {
        throw new Error('no attributes')
      },
    }
    const reports = said()
    const span = context.with(under(current), () => tracer.startSpan('work', options, under(other)))
    expect(span.spanContext()).toEqual(other.spanContext())
    expect(reports.lines).toEqual(['throughline: a span could not be started'])
  })

  test('that is to start nowhere does not throw, though the current context cannot be told', () => {
    const { tracer } = engine()
    said()
    const active = vi.spyOn(context, 'active').mockImplementation(() => {
      throw new Error('no context')
    })
    onTestFinished(() => active.mockRestore())
    expect(trace.isSpanContextValid(tracer.startSpan('work', {}, null as never).spanContext())).toBe(false)
  })
})

describe('processors', () => {
  test('are told in the order in which they were given, with the context of the parent', () => {
    const told: unknown[] = []
    const note = (name: string) =>
      processor({ onStart: (span, of) => told.push([name, span.name, of]), onEnd: () => told.push(name) })
    const parent = trace.setSpanContext(ROOT_CONTEXT, remote)
    engine({ processors: [note('a'), note('b')] })
      .tracer.startSpan('work', {}, parent)
      .end()
    expect(told).toEqual([['a', 'work', parent], ['b', 'work', parent], 'a', 'b'])
  })

  test('are told of a root without the span that was current', () => {
    const key = createContextKey('tenant')
    const told: unknown[] = []
    const { tracer } = engine({
      processors: [processor({ onStart: (_span, of) => told.push(trace.getSpan(of), of.getValue(key)) })],
    })
    const current = trace.setSpanContext(ROOT_CONTEXT, remote).setValue(key, 'acme')
    tracer.startSpan('work', { root: true }, current).end()
    expect(told).toEqual([undefined, 'acme'])
  })

  test('that throw break neither the app nor one another, and it is said once for each step', () => {
    const reports = said()
    const boom = () => {
      throw new Error('boom')
    }
    const reached: string[] = []
    const { tracer } = engine({
      processors: [
        processor({ onStart: boom, onEnding: boom, onEnd: boom }),
        processor({ onEnd: ({ name }) => reached.push(name) }),
      ],
    })
    tracer.startSpan('one').end()
    tracer.startSpan('two').end()
    expect(reached).toEqual(['one', 'two'])
    expect(reports.lines).toHaveLength(3)
  })

  test('that are async functions and reject are said once, and the app hears nothing of it', async () => {
    const reports = said()
    const boom = async () => {
      throw new Error('boom')
    }
    const { tracer } = engine({ processors: [processor({ onStart: boom, onEnding: boom, onEnd: boom })] })
    tracer.startSpan('one').end()
    tracer.startSpan('two').end()
    // Node tells of unhandled rejections before the next turn, and the test run fails of them.
    await turn()
    expect(reports.lines.toSorted()).toEqual(
      ['onEnd', 'onEnding', 'onStart'].map((step) => `throughline: a span processor threw in ${step}`),
    )
  })

  test('are all flushed and all stopped, also where the first of them fails', async () => {
    const done: string[] = []
    const { provider } = engine({
      processors: [
        processor({
          forceFlush() {
            throw new Error('cannot flush')
          },
          shutdown: () => Promise.reject(new Error('cannot stop')),
        }),
        processor({
          forceFlush: async () => void done.push('flushed'),
          shutdown: async () => void done.push('stopped'),
        }),
      ],
    })
    await expect(provider.forceFlush()).rejects.toThrow('cannot flush')
    await expect(provider.shutdown()).rejects.toThrow('cannot stop')
    expect(done).toEqual(['flushed', 'stopped'])
  })
})

describe('shutdown', () => {
  test('ends the spans that are open, says that they are incomplete, and stops each processor once', async () => {
    let stops = 0
    const ended: ReadableSpan[] = []
    const { provider, tracer } = engine({
      processors: [processor({ onEnd: (span) => ended.push(span), shutdown: async () => void (stops += 1) })],
    })
    const spans = ['one', 'two', 'three'].map((name) => tracer.startSpan(name))
    spans[1]?.end()
    await Promise.all([provider.shutdown(), provider.shutdown()])
    expect(ended.map(({ name, attributes }) => [name, attributes['throughline.incomplete']])).toEqual([
      ['two', undefined],
      ['three', true],
      ['one', true],
    ])
    expect(stops).toBe(1)
  })

  test.each([10, 100, 3999])(
    'holds for spans in whatever order they end: %i of 4,000 are open',
    async (left) => {
      const report = said()
      const { provider, tracer, ended } = engine()
      const spans = Array.from({ length: 4000 }, (_, index) => tracer.startSpan(`${index}`))
      const order = spans.toSorted((a, b) => a.spanContext().spanId.localeCompare(b.spanContext().spanId))
      const early = Math.floor((4000 - left) / 2)
      for (const span of order.slice(0, early)) span.end()
      // The others when new ones have come.
      const late = Array.from({ length: 100 }, () => tracer.startSpan('late'))
      for (const span of [...order.slice(early, 4000 - left), ...late]) span.end()
      await provider.shutdown()
      expect(ended).toHaveLength(4100)
      expect(new Set(ended).size).toBe(4100)
      const open = ended.filter(({ attributes }) => attributes['throughline.incomplete'] === true)
      expect(open).toHaveLength(left)
      // Those within others first.
      const numbers = open.map(({ name }) => Number(name))
      expect(report.lines).toEqual([])
      expect(numbers).toEqual(numbers.toSorted((a, b) => b - a))
    },
  )

  test('holds for those that began before and after another, within them, had ended', async () => {
    const { provider, tracer, ended } = engine()
    tracer.startSpan('outer')
    tracer.startSpan('inner').end()
    tracer.startSpan('next')
    await provider.shutdown()
    expect(ended.map(({ name }) => name)).toEqual(['inner', 'next', 'outer'])
  })

  test('knows 20,000 open spans, those that have ended apart', () => {
    const { tracer } = engine()
    const spans = Array.from({ length: 20_000 }, () => tracer.startSpan('open') as Span)
    expect((tracer.startSpan('one too many') as Span).place).toBe(-1)
    spans[10]?.end()
    expect((tracer.startSpan('in its place') as Span).place).not.toBe(-1)
    expect((tracer.startSpan('one too many') as Span).place).toBe(-1)
  })

  test('remembers no more than the spans that are open, however many have ended below a long one', async () => {
    const { provider, tracer, ended } = engine()
    const long = tracer.startSpan('long') as Span
    let latest = tracer.startSpan('0') as Span
    for (let count = 1; count <= 10_000; count += 1) {
      const next = tracer.startSpan(`${count}`) as Span
      latest.end()
      latest = next
    }
    expect(latest.place).toBeLessThan(1100)
    await provider.shutdown()
    expect(ended.slice(-2)).toEqual([latest, long])
  })

  test.each([
    ['the newest, by a Proxy', 1, (span: Span) => new Proxy(span, {})],
    ['another, by a Proxy', 0, (span: Span) => new Proxy(span, {})],
    ['the newest, by Object.create', 1, (span: Span) => Object.create(span) as Span],
    ['another, by Object.create', 0, (span: Span) => Object.create(span) as Span],
  ])('holds for a span that is ended through a view of it: %s', async (_, place, viewOf) => {
    const { provider, tracer, ended } = engine()
    const spans = [tracer.startSpan('outer'), tracer.startSpan('inner')] as [Span, Span]
    viewOf(spans[place] as Span).end()
    spans[1 - place]?.end()
    expect(spans.map((span) => span.place)).toEqual([-1, -1])
    await provider.shutdown()
    expect(ended).toHaveLength(2)
  })

  test('holds for a span in whose place there was another, of which a copy is ended late', async () => {
    const { provider, tracer, ended } = engine()
    const first = tracer.startSpan('first') as Span
    const copy = Object.assign(Object.create(Object.getPrototypeOf(first) as object), first) as Span
    const { place } = first
    first.end()
    const second = tracer.startSpan('second') as Span
    expect(second.place).toBe(place)
    copy.end()
    await provider.shutdown()
    expect(ended.at(-1)).toBe(second)
  })

  test('comes to its end where a processor starts a span for each that ends', async () => {
    const given: Parameters<typeof engine>[0] = {}
    let started = 0
    given.processors = [
      processor({
        onEnd() {
          started += 1
          if (started < 100) tracer.startSpan('another')
        },
      }),
    ]
    const { provider, tracer } = engine(given)
    tracer.startSpan('one')
    await provider.shutdown()
    expect(started).toBe(1)
  })

  test('does not end the trace: whoever still holds a tracer passes the context of the caller on', async () => {
    const { provider, tracer, ended } = engine()
    await provider.shutdown()
    const span = tracer.startSpan('late', {}, trace.setSpanContext(ROOT_CONTEXT, remote))
    span.end()
    expect(span.spanContext()).toEqual(remote)
    expect(trace.isSpanContextValid(tracer.startSpan('late').spanContext())).toBe(false)
    expect(ended).toEqual([])
  })

  test('leaves tracers that the app keeps to whoever is registered next, and never to itself', async () => {
    const first = engine()
    const second = engine()
    trace.setGlobalTracerProvider(first.provider)
    const kept = trace.getTracer('app', '1.0.0')
    kept.startSpan('first').end()
    await first.provider.shutdown()
    const itself = vi.spyOn(first.provider, 'getTracer')
    expect(kept.startSpan('nobody').isRecording()).toBe(false)
    expect(itself).not.toHaveBeenCalled()
    trace.disable()
    trace.setGlobalTracerProvider(second.provider)
    kept.startSpan('second').end()
    trace.disable()
    expect(first.ended.map(({ name }) => name)).toEqual(['first'])
    expect(second.ended).toMatchObject([
      { name: 'second', instrumentationScope: { name: 'app', version: '1.0.0' } },
    ])
  })
})

describe("the official SDK's processors and exporters", () => {
  async function through(make: (exporter: InMemorySpanExporter) => OfficialProcessor) {
    const exporter = new InMemorySpanExporter()
    const provider = new TracerProvider({
      resource: { attributes: { 'service.name': 'orders' } },
      limits: LIMITS,
      sampler: alwaysOn,
      idGenerator: randomIds,
      flagsRandom: true,
      processors: [make(exporter) as unknown as SpanProcessor],
    })
    const tracer = provider.getTracer('scope', '1.2.3')
    const parent = tracer.startSpan('parent', { kind: SpanKind.SERVER, attributes: { a: 1 } })
    const child = tracer.startSpan('child', {}, under(parent))
    child.addEvent('event', { b: true }).addLink({ context: remote, attributes: { c: 'd' } })
    child.setStatus({ code: 2, message: 'broken' })
    child.end()
    parent.end()
    await provider.forceFlush()
    return exporter.getFinishedSpans()
  }

  test.each([
    ['SimpleSpanProcessor', (exporter: InMemorySpanExporter) => new SimpleSpanProcessor(exporter)],
    ['BatchSpanProcessor', (exporter: InMemorySpanExporter) => new BatchSpanProcessor(exporter)],
  ])('take our spans: %s', async (_name, make) => {
    const [child, parent] = await through(make)
    expect(child).toMatchObject({
      name: 'child',
      kind: SpanKind.INTERNAL,
      parentSpanContext: parent?.spanContext(),
      status: { code: 2, message: 'broken' },
      events: [{ name: 'event', attributes: { b: true } }],
      links: [{ context: remote, attributes: { c: 'd' } }],
      instrumentationScope: { name: 'scope', version: '1.2.3' },
      ended: true,
    })
    expect(parent?.resource).toBe(child?.resource)
  })
})
