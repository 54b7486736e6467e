import { flush, span, start, traceRequest, type SpanProcessor, type StartOptions } from '@throughline/core'
import {
  context,
  diag,
  DiagLogLevel,
  propagation,
  ProxyTracerProvider,
  SpanKind,
  trace,
  type TracerProvider,
} from '@opentelemetry/api'
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { registeredProvider } from '../../packages/core/src/current.ts'
import { reportOnce } from '../../packages/core/src/report.ts'
import { said } from './engine.ts'
import { receiver } from './receiver.ts'
import { started } from './tracing.ts'

const listeners = () =>
  ['SIGTERM', 'SIGINT', 'beforeExit', 'exit'].map((event) => process.listenerCount(event))

describe('start()', () => {
  test('sends what ends, by a flush at the latest', async () => {
    const collector = await receiver()
    const tracing = started({ endpoint: collector.url, serviceName: 'orders' })
    span('one', () => {})
    await flush()
    span('two', () => {})
    await tracing.flush()
    expect(collector.spans().map(({ name }) => name)).toEqual(['one', 'two'])
  })

  test('called again with options returns what runs, and says so once, to the logger of the app', () => {
    const warnings: string[] = []
    const reports = said()
    const ignore = () => {}
    diag.setLogger(
      { error: ignore, warn: (line) => warnings.push(line), info: ignore, debug: ignore, verbose: ignore },
      DiagLogLevel.ALL,
    )
    const first = started({ spanProcessors: [] })
    for (let count = 0; count < 2; count += 1) expect(started({ serviceName: 'other' })).toBe(first)
    expect(warnings).toEqual([
      'throughline: start() was called while tracing runs already; the running one is returned and the options are unused',
    ])
    expect(reports.lines).toEqual([])
  })

  test('called again without options returns what runs, and says nothing', async () => {
    const reports = said()
    const first = started({ spanProcessors: [] })
    expect([start(), start({}), start({ serviceName: undefined })]).toEqual([first, first, first])
    expect(reports.lines).toEqual([])
  })

  test('with a mistake in its options throws, and starts nothing', () => {
    const before = listeners()
    expect(() => start({ endpiont: 'http://c' } as StartOptions)).toThrow(TypeError)
    expect([registeredProvider(), listeners()]).toEqual([undefined, before])
  })

  test.each([
    ['itself', false],
    ['behind a proxy, as one is that somebody else has found and put back', true],
  ])(
    'where an SDK is registered leaves that in charge, and says so; flush() flushes it: %s',
    async (_how, isBehind) => {
      const reports = said()
      const exporter = new InMemorySpanExporter()
      const sdk = new BasicTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] })
      const found = new ProxyTracerProvider()
      found.setDelegate(sdk)
      trace.setGlobalTracerProvider(isBehind ? found : sdk)
      const tracing = started({ endpoint: 'http://127.0.0.1:9' })
      span('work', () => {})
      await flush()
      expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'work' }])
      expect(registeredProvider()).toBe(sdk)
      await tracing.shutdown()
      expect(registeredProvider()).toBe(sdk)
      expect(reports.lines).toEqual([
        'throughline: an OpenTelemetry SDK is registered and stays in charge; start() did nothing',
      ])
      trace.disable()
      await sdk.shutdown()
    },
  )

  test('is no longer asked where another provider has been put into the registered proxy', () => {
    started({ spanProcessors: [] })
    span('ours', () => {})
    const exporter = new InMemorySpanExporter()
    const theirs = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    const proxy = trace.getTracerProvider() as ProxyTracerProvider
    const ours = proxy.getDelegate()
    proxy.setDelegate(theirs)
    span('theirs', () => {})
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'theirs' }])
    proxy.setDelegate(ours)
    span('ours again', () => {})
    expect(exporter.getFinishedSpans()).toHaveLength(1)
  })

  test('after a shutdown that is not over keeps its own reports when that is', async () => {
    let stop = (): void => {}
    const stopping = new Promise<void>((resolve) => (stop = resolve))
    const first = started({
      exporter: { export: (_spans, done) => done({ code: 0 }), shutdown: () => stopping },
    })
    const stopped = first.shutdown()
    started({ spanProcessors: [] })
    const reports = said()
    const report = () => reportOnce('a kind', 'warn', 'once')
    report()
    stop()
    await stopped
    report()
    expect(reports.lines).toEqual(['throughline: once'])
  })

  test('follows no proxy that leads to itself', () => {
    const proxy = new ProxyTracerProvider()
    proxy.setDelegate(proxy)
    trace.setGlobalTracerProvider(proxy)
    expect(registeredProvider()).toBe(proxy)
    trace.disable()
  })

  test.each([
    ['by its name', 'BasicTracerProvider'],
    ['by its name, which a bundler has numbered', 'BasicTracerProvider$2'],
  ])('tells an SDK that registers too late why it stays unused, and what to do: %s', async (_how, name) => {
    const reports = said()
    started({ spanProcessors: [] })
    const ours = registeredProvider()
    const late = class extends BasicTracerProvider {}
    Object.defineProperty(late, 'name', { value: name })
    expect(trace.setGlobalTracerProvider(new late())).toBe(false)
    expect(registeredProvider()).toBe(ours)
    await Promise.resolve()
    expect(reports.lines).toHaveLength(1)
    expect(reports.lines[0]).toMatch(
      /BasicTracerProvider was registered after Throughline had started, and stays unused.*start\(\)/,
    )
  })

  test.each<[string, object | null | undefined, string | undefined]>([
    ['null', null, undefined],
    ['nothing', undefined, undefined],
    ['a plain object', { getTracer() {} }, 'an OpenTelemetry SDK'],
    ['an object without a class', Object.create(null) as object, 'an OpenTelemetry SDK'],
    [
      'an object of a minified class',
      Object.create({ constructor: { name: 'Ga' } }) as object,
      'an OpenTelemetry SDK',
    ],
    [
      'an object of a class that a bundler has numbered',
      Object.create({ constructor: { name: 'Provider$1' } }) as object,
      'Provider',
    ],
    [
      'an object whose class has no text as its name',
      Object.create({ constructor: { name: 5 } }) as object,
      'an OpenTelemetry SDK',
    ],
    [
      'an object whose class cannot be read',
      {
        get constructor() {
          throw new Error('no')
        },
      },
      'an OpenTelemetry SDK',
    ],
  ])('does not throw into the app that registers %s too late', async (_what, given, name) => {
    const reports = said()
    started({ spanProcessors: [] })
    expect(trace.setGlobalTracerProvider(given as TracerProvider)).toBe(false)
    await Promise.resolve()
    const lines =
      name === undefined ? [] : [expect.stringMatching(`^throughline: ${name} was registered after`)]
    expect(reports.lines).toEqual(lines)
  })

  test('is silent where the registered provider is registered again', async () => {
    const reports = said()
    started({ spanProcessors: [] })
    trace.setGlobalTracerProvider(trace.getTracerProvider())
    await Promise.resolve()
    expect(reports.lines).toEqual([])
  })

  test.each<[string, (theirs: TracerProvider) => void, string[]]>([
    [
      'that is refused, and puts itself into the registered proxy, as dd-trace does',
      (theirs) => {
        if (!trace.setGlobalTracerProvider(theirs))
          (trace.getTracerProvider() as ProxyTracerProvider).setDelegate(theirs)
      },
      [
        expect.stringMatching(
          /^throughline: BasicTracerProvider was registered .* has taken its place: .*start\(\)/,
        ),
      ],
    ],
    [
      "that removes ours before, as Azure's distribution does",
      (theirs) => {
        trace.disable()
        trace.setGlobalTracerProvider(theirs)
      },
      [],
    ],
  ])('says what is true of an SDK %s, and flush() flushes both', async (_how, register, lines) => {
    const reports = said()
    const collector = await receiver()
    const tracing = started({ endpoint: collector.url })
    span('before', () => {})
    const exporter = new InMemorySpanExporter()
    const theirs = new BasicTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] })
    register(theirs)
    span('after', () => {})
    await flush()
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'after' }])
    expect(collector.spans()).toMatchObject([{ name: 'before' }])
    expect(reports.lines).toEqual(lines)
    await tracing.shutdown()
    trace.disable()
    await theirs.shutdown()
  })

  test('gives its globals and listeners back at shutdown, and works again after it', async () => {
    said()
    const before = listeners()
    const { setGlobalTracerProvider } = trace
    const kept = trace.getTracer('kept by the app')
    for (const name of ['first', 'second']) {
      const collector = await receiver()
      const tracing = started({ endpoint: collector.url, signals: true })
      expect(start({})).toBe(tracing)
      kept.startSpan(name).end()
      span('ours', () => {})
      await tracing.shutdown()
      expect(collector.spans().map((each) => each.name)).toEqual([name, 'ours'])
      expect(registeredProvider()).toBeUndefined()
      expect(listeners()).toEqual(before)
      expect(trace.setGlobalTracerProvider).toBe(setGlobalTracerProvider)
      expect(propagation.fields()).toEqual([])
      const key = Symbol('key')
      context.with(context.active().setValue(key, 1), () => {
        expect(context.active().getValue(key)).toBeUndefined()
      })
    }
  })

  test('ends what is open at shutdown and says that it is incomplete', async () => {
    const collector = await receiver()
    const tracing = started({ endpoint: collector.url })
    const open = trace.getTracer('app').startSpan('open')
    await Promise.all([tracing.shutdown(), tracing.shutdown()])
    expect(open.isRecording()).toBe(false)
    expect(collector.spans()).toMatchObject([
      { name: 'open', attributes: [{ key: 'throughline.incomplete', value: { boolValue: true } }] },
    ])
  })
})

describe('start() again, after shutdown()', () => {
  test('is obeyed by adapters and tracers from before: its sampler, its exporter, its resource', async () => {
    const server = createServer((request, response) => traceRequest(request, response, () => response.end()))
    await once(server.listen(0, '127.0.0.1'), 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const kept = trace.getTracer('kept by the app')
    async function traffic(name: string) {
      await (await fetch(`http://127.0.0.1:${port}/`)).text()
      kept.startSpan(name).end()
    }

    const first = await receiver()
    const one = started({ endpoint: first.url, serviceName: 'one' })
    await traffic('first')
    await one.shutdown()
    await traffic('between')

    const none = started({ endpoint: first.url, sampling: 0 })
    await traffic('sampled away')
    await none.shutdown()

    const second = new InMemorySpanExporter()
    const two = started({ exporter: second, serviceName: 'two', sampling: 1 })
    await traffic('second')
    await two.flush()
    const last = second.getFinishedSpans()[1]
    expect(last?.resource.attributes['service.name']).toBe('two')
    expect(last).toMatchObject({ name: 'second', kind: SpanKind.INTERNAL })
    expect(second.getFinishedSpans().map(({ name }) => name)).toEqual(['GET', 'second'])
    expect(first.spans().map(({ name }) => name)).toEqual(['GET', 'first'])
  })

  test('does not reach what was made before: after its shutdown an engine starts nothing and sends nothing', async () => {
    said()
    const collector = await receiver()
    const events: string[] = []
    const noting: SpanProcessor = {
      onStart: (span) => void events.push(`start ${span.name}`),
      onEnd: (span) => void events.push(`end ${span.name}`),
      forceFlush: async () => {},
      shutdown: async () => void events.push('shutdown'),
    }
    const one = started({ spanProcessors: [noting] })
    const provider = registeredProvider()
    const kept = trace.getTracer('kept by the app')
    const open = kept.startSpan('open')
    await one.shutdown()
    open.setAttribute('late', true).end()
    expect(kept.startSpan('late').isRecording()).toBe(false)
    expect(provider?.getTracer('asked late').startSpan('late').isRecording()).toBe(false)
    expect(events).toEqual(['start open', 'end open', 'shutdown'])

    started({ endpoint: collector.url })
    open.end()
    span('work', () => {})
    await flush()
    expect(events).toHaveLength(3)
    expect(collector.spans().map(({ name }) => name)).toEqual(['work'])
  })
})

test('a share of all traces is kept, and each one says of how many it is', async () => {
  const exporter = new InMemorySpanExporter()
  started({ spanProcessors: [new SimpleSpanProcessor(exporter)], sampling: 0.5 })
  const carriers: Record<string, string>[] = []
  for (let count = 0; count < 100; count += 1) {
    span('work', () => {
      const carrier = {}
      propagation.inject(context.active(), carrier)
      carriers.push(carrier)
    })
  }
  const spans = exporter.getFinishedSpans()
  // That none or all of 100 are kept happens once in 10^29 runs.
  expect([0, 100]).not.toContain(spans.length)
  expect(spans.every((each) => each.spanContext().traceState?.serialize() === 'ot=th:8')).toBe(true)
  for (const { traceparent, tracestate } of carriers) {
    const isKept = Number.parseInt(traceparent?.charAt(21) ?? '', 16) >= 8
    expect([traceparent?.slice(-2), tracestate]).toEqual(isKept ? ['03', 'ot=th:8'] : ['02', undefined])
  }
})

test('what stands for a disabled engine ends itself alone, and not the one after it', async () => {
  vi.stubEnv('OTEL_SDK_DISABLED', 'true')
  const first = started()
  await first.shutdown()
  started()
  await first.shutdown()
  expect(propagation.fields()).toContain('traceparent')
})

test('disabled in code is what OTEL_SDK_DISABLED says; a later start() that is not says that it does nothing', async () => {
  const reports = said()
  const tracing = started({ disabled: true })
  expect(registeredProvider()).toBeUndefined()
  expect(started({ disabled: true })).toBe(tracing)
  expect(reports.lines).toEqual([])
  expect(started({ serviceName: 'later' })).toBe(tracing)
  expect(reports.lines).toEqual([expect.stringContaining('start() did nothing')])
  await tracing.shutdown()
  started()
  expect(registeredProvider()).toBeDefined()
})

test('OTEL_SDK_DISABLED makes no spans, and still passes the trace on', async () => {
  vi.stubEnv('OTEL_SDK_DISABLED', 'TRUE')
  const reports = said()
  const tracing = started()
  expect(started()).toBe(tracing)
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  const extracted = propagation.extract(context.active(), { traceparent })
  const carrier = {}
  context.with(extracted, () =>
    span('work', (s) => {
      expect(s.isRecording()).toBe(false)
      propagation.inject(context.active(), carrier)
    }),
  )
  expect(carrier).toEqual({ traceparent })
  expect(registeredProvider()).toBeUndefined()
  await tracing.shutdown()
  expect(propagation.fields()).toEqual([])
  expect(reports.lines).toEqual([])
})
