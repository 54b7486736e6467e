import {
  flush,
  span,
  start,
  traceRequest,
  type SpanProcessor,
  type StartOptions,
  type Tracing,
} from '@throughline/core'
import {
  context,
  diag,
  DiagLogLevel,
  propagation,
  ProxyTracerProvider,
  ROOT_CONTEXT,
  SpanKind,
  trace,
  type TextMapPropagator,
  type TracerProvider,
} from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { CompositePropagator, W3CTraceContextPropagator } from '@opentelemetry/core'
import { B3Propagator } from '@opentelemetry/propagator-b3'
import { resourceFromAttributes } from '@opentelemetry/resources'
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  InMemorySpanExporter,
  ParentBasedSampler,
  RandomIdGenerator,
  SimpleSpanProcessor,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { setTimeout as later } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { registeredProvider } from '../../packages/core/src/current.ts'
import { reportOnce } from '../../packages/core/src/report.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { said } from './engine.ts'
import { deadPort, receiver, type Received } from './receiver.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

const running: Tracing[] = []

function started(options: StartOptions = {}): Tracing {
  const tracing = start({ signals: false, ...options })
  running.push(tracing)
  return tracing
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((tracing) => tracing.shutdown()))
  diag.disable()
})

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

  test('has flush and shutdown that neither reject nor wait for ever, whatever the pipeline does', async () => {
    const reports = said()
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const tracing = started({
      spanProcessors: [
        {
          onStart() {},
          onEnd() {},
          forceFlush: () => new Promise(() => {}),
          shutdown: () => Promise.reject(new Error('cannot')),
        },
      ],
    })
    const flushed = Promise.all([flush(), tracing.flush()])
    vi.advanceTimersByTime(5000)
    await flushed
    await tracing.shutdown()
    vi.useRealTimers()
    expect(reports.lines).toEqual([
      'throughline: the spans could not all be sent within 5000 ms',
      'throughline: the spans could not be flushed',
    ])
  })

  test('has a shutdown that ends though the collector never answers', async () => {
    said()
    const collector = await receiver(() => {})
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const stopped = tracing.shutdown()
    await collector.nth(1)
    vi.advanceTimersByTime(5000)
    await expect(stopped).resolves.toBeUndefined()
    vi.useRealTimers()
  })

  test('leaves a batch its time where a collector asks for more than a flush has, but not where all ends', async () => {
    const reports = said()
    const collector = await receiver((response) => response.writeHead(429, { 'Retry-After': '8' }).end())
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    const flushed = tracing.flush()
    await collector.nth(1)
    // What others fetch takes longer than the answer.
    const others = await receiver()
    for (let count = 0; count < 4; count += 1) await fetch(others.url)
    expect(reports.lines).toEqual([])
    await tracing.shutdown()
    await flushed
    expect(reports.lines.join()).toMatch(/answered 429/)
    expect(reports.lines.join()).not.toMatch(/could not all be sent/)
    expect(collector.requests).toHaveLength(1)
  })

  test('has a flush that does not wait for a collector that is not there to come back', async () => {
    const reports = said()
    const tracing = started({ endpoint: `http://127.0.0.1:${await deadPort()}` })
    span('work', () => {})
    await tracing.flush()
    // Were it to try again, it would not be done within its deadline, and that would be said too.
    expect(reports.lines.join()).toMatch(/could not be reached/)
    expect(reports.lines.join()).not.toMatch(/could not all be sent/)
  })

  test('costs each who flushes the same, however many wait: an app may do it at the end of each request', async () => {
    const collector = await receiver()
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    // What all have in common is found by this.
    const compared = vi.spyOn(Math, 'min')
    onTestFinished(() => compared.mockRestore())
    await Promise.all(Array.from({ length: 1000 }, () => tracing.flush()))
    expect(Math.max(...compared.mock.calls.map((values) => values.length))).toBeLessThan(10)
  })

  test('is shared by those who ask for it while one is at work, each of whom waits until their own spans have left', async () => {
    let release = () => {}
    const flushes: number[] = []
    let ended = 0
    const processor: SpanProcessor = {
      onStart() {},
      onEnd: () => void (ended += 1),
      forceFlush: () => new Promise((resolve) => void ((release = resolve), flushes.push(ended))),
      shutdown: async () => {},
    }
    const tracing = started({ spanProcessors: [processor] })
    const one = () => {
      span('work', () => {})
      return tracing.flush()
    }
    const first = one()
    const rest = Promise.all(Array.from({ length: 100 }, one))
    expect(flushes).toEqual([1])
    release()
    await first
    await vi.waitFor(() => expect(flushes).toEqual([1, 101]))
    release()
    await rest
    expect(flushes).toEqual([1, 101])
  })

  test('keeps the process alive for as long as somebody waits for it, also where it is shared', async () => {
    said()
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const flushes = vi.fn<() => Promise<void>>(() => new Promise(() => {}))
    const tracing = started({
      spanProcessors: [{ onStart() {}, onEnd() {}, forceFlush: flushes, shutdown: async () => {} }],
    })
    const first = tracing.flush()
    vi.advanceTimersByTime(1000)
    const second = tracing.flush()
    const timers: NodeJS.Timeout[] = []
    const { setTimeout: faked } = globalThis
    vi.stubGlobal('setTimeout', (work: () => void, milliseconds: number) => {
      const timer = faked(work, milliseconds)
      timers.push(timer)
      return timer
    })
    vi.advanceTimersByTime(4000)
    await first
    await vi.waitFor(() => expect(flushes).toHaveBeenCalledTimes(2))
    vi.unstubAllGlobals()
    vi.advanceTimersByTime(1000)
    await second
    vi.useRealTimers()
    // Of the flush that nobody waits for any more.
    expect(timers.map((timer) => timer.hasRef())).toEqual([false])
  })

  test('looks no further than to the first connection of the app while a collector takes its time', async () => {
    const collector = await receiver((response) => later(1000).then(() => response.end()))
    const looks = vi.fn<() => void>()
    const resources = new Proxy(
      Array.from({ length: 1000 }, () => 'TCPSocketWrap'),
      {
        get(names, name, receiver) {
          if (Number.isInteger(Number(String(name)))) looks()
          return Reflect.get(names, name, receiver) as unknown
        },
      },
    )
    const listed = vi.spyOn(process, 'getActiveResourcesInfo').mockReturnValue(resources)
    onTestFinished(() => listed.mockRestore())
    const tracing = started({ endpoint: collector.url })
    span('work', () => {})
    await tracing.flush()
    expect(listed).toHaveBeenCalled()
    expect(looks).toHaveBeenCalledTimes(listed.mock.calls.length)
  })

  test('puts an exporter of others behind our batch, and hands it all that our spans hold', async () => {
    const collector = await receiver()
    const exporter = new OTLPTraceExporter({ url: `${collector.url}/v1/traces` })
    const tracing = started({ exporter, serviceName: 'orders' })
    span('work', { 'order.id': 7 }, (s) => s.addEvent('paid'))
    await tracing.flush()
    expect(collector.spans()).toMatchObject([
      {
        name: 'work',
        attributes: [{ key: 'order.id', value: { intValue: '7' } }],
        events: [{ name: 'paid' }],
      },
    ])
    expect(collector.requests[0]?.headers['traceparent']).toBeUndefined()
  })

  test('puts span processors of others in place of our pipeline', async () => {
    const exporter = new InMemorySpanExporter()
    started({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    span('work', () => {})
    await flush()
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'work', resource: { attributes: {} } }])
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

describe('several exporters', () => {
  test('each get all spans', async () => {
    const collector = await receiver()
    vi.stubEnv('OTEL_TRACES_EXPORTER', 'console,otlp')
    const printed = vi.spyOn(console, 'dir').mockImplementation(() => {})
    const tracing = started({ endpoint: collector.url })
    vi.unstubAllEnvs()
    span('one', () => {})
    span('two', () => {})
    await tracing.shutdown()
    expect(printed.mock.calls.map(([object]) => (object as { name: string }).name)).toEqual(['one', 'two'])
    expect(collector.spans().map(({ name }) => name)).toEqual(['one', 'two'])
    printed.mockRestore()
  })

  test('are flushed side by side: one that never answers costs the others neither spans nor time', async () => {
    const reports = said()
    const shut: string[] = []
    const processor = (name: string, forceFlush: () => Promise<void>): SpanProcessor => ({
      onStart() {},
      onEnd() {},
      forceFlush,
      async shutdown() {
        await forceFlush()
        shut.push(name)
      },
    })
    const flushed: string[] = []
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const tracing = started({
      spanProcessors: [
        processor('hangs', () => new Promise(() => {})),
        processor('fails', () => Promise.reject(new Error('cannot'))),
        processor('throws', () => {
          throw new Error('cannot')
        }),
        processor('works', async () => void flushed.push('works')),
      ],
    })
    const flushing = tracing.flush()
    expect(flushed).toEqual(['works'])
    vi.advanceTimersByTime(5000)
    await flushing
    const stopping = tracing.shutdown()
    await vi.waitFor(() => expect(shut).toEqual(['works']))
    vi.advanceTimersByTime(5000)
    await stopping
    vi.useRealTimers()
    expect(reports.lines).toEqual(['throughline: the spans could not all be sent within 5000 ms'])
  })

  test('none of them is what OTEL_TRACES_EXPORTER=none says: spans are made, and nobody gets them', async () => {
    const collector = await receiver()
    vi.stubEnv('OTEL_TRACES_EXPORTER', 'none')
    const tracing = started({ endpoint: collector.url })
    vi.unstubAllEnvs()
    span('work', (s) => expect(s.isRecording()).toBe(true))
    await tracing.shutdown()
    expect(collector.requests).toHaveLength(0)
  })
})

test.each(['the environment', 'the code'])(
  'certificates that %s names are used: the collector is trusted, and knows who sends',
  async (by) => {
    const pem = (name: string) => fileURLToPath(new URL(`certificates/${name}.pem`, import.meta.url))
    const senders: unknown[] = []
    const collector = https.createServer(
      {
        key: readFileSync(pem('collector.key')),
        cert: readFileSync(pem('collector')),
        ca: readFileSync(pem('authority')),
        requestCert: true,
      },
      (request, response) => {
        senders.push((request.socket as TLSSocket).getPeerCertificate().subject.CN)
        request.resume().on('end', () => response.end())
      },
    )
    await once(collector.listen(0, '127.0.0.1'), 'listening')
    onTestFinished(() => {
      collector.closeAllConnections()
      collector.close()
    })
    const endpoint = `https://127.0.0.1:${(collector.address() as AddressInfo).port}`
    const [ca, cert, key] = [pem('authority'), pem('app'), pem('app.key')]
    const tls = { ca: readFileSync(ca), cert: readFileSync(cert, 'utf8'), key: readFileSync(key) }
    if (by === 'the environment') {
      vi.stubEnv('OTEL_EXPORTER_OTLP_ENDPOINT', endpoint)
      vi.stubEnv('OTEL_EXPORTER_OTLP_CERTIFICATE', ca)
      vi.stubEnv('OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE', cert)
      vi.stubEnv('OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY', key)
    }
    const reports = said()
    const tracing = started(by === 'the code' ? { endpoint, tls } : {})
    vi.unstubAllEnvs()
    span('work', () => {})
    await tracing.shutdown()
    expect(senders).toEqual(['app'])
    expect(reports.lines).toEqual([])
  },
)

describe('the parts of the official SDK', () => {
  test('a Resource whose detectors still ask is waited for before the first batch leaves', async () => {
    const collector = await receiver()
    let answer: (zone: string) => void = () => {}
    const zone = new Promise<string>((resolve) => (answer = resolve))
    const tracing = started({
      endpoint: collector.url,
      serviceName: 'orders',
      resource: resourceFromAttributes({ 'service.name': 'by-resource', zone, team: 'shop' }),
    })
    span('work', () => {})
    const flushed = tracing.flush()
    await new Promise(setImmediate)
    expect(collector.requests).toHaveLength(0)
    answer('eu-1')
    await flushed
    const { resourceSpans = [] } = decodeRequest((collector.requests[0] as Received).body)
    const sent = Object.fromEntries(
      resourceSpans[0]?.resource?.attributes?.map(({ key, value }) => [key, value?.stringValue]) ?? [],
    )
    expect(sent).toMatchObject({ zone: 'eu-1', team: 'shop', 'service.name': 'orders' })
    expect(sent['telemetry.sdk.name']).toBe('throughline')
  })

  test('a sampler, an IdGenerator and a propagator are used as they are', async () => {
    const exporter = new InMemorySpanExporter()
    const ids = new RandomIdGenerator()
    const made = vi.spyOn(ids, 'generateTraceId')
    started({
      spanProcessors: [new SimpleSpanProcessor(exporter)],
      sampler: new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(1) }),
      idGenerator: ids,
      propagator: new B3Propagator(),
    })
    const carrier: Record<string, string> = {}
    span('work', () => propagation.inject(context.active(), carrier))
    const [work] = exporter.getFinishedSpans()
    const { traceId, spanId } = work?.spanContext() ?? {}
    expect(traceId).toBe(made.mock.results[0]?.value)
    expect(carrier).toEqual({ b3: `${traceId}-${spanId}-1` })
  })

  test('a propagator of the app gets no random flag, which has another meaning to some of them', async () => {
    const flagsWith = async (options: StartOptions) => {
      const tracing = started({ spanProcessors: [], ...options })
      const flags = span('work', (work) => work.spanContext().traceFlags)
      await tracing.shutdown()
      return flags
    }
    expect(await flagsWith({})).toBe(3)
    expect(await flagsWith({ propagator: new B3Propagator() })).toBe(1)
    expect(await flagsWith({ idGenerator: new RandomIdGenerator() })).toBe(1)
    propagation.setGlobalPropagator(new B3Propagator())
    onTestFinished(() => propagation.disable())
    expect(await flagsWith({})).toBe(1)
  })

  test.each([
    ['Jaeger', 'uber-trace-id', 1],
    ['Sentry', 'sentry-trace', 1],
    ['nobody who takes it for another', 'x-b3-traceid', 3],
  ])(
    "the random flag of a caller goes on beside %s's propagator as that one can read it",
    (_, field, flags) => {
      const other: TextMapPropagator = { inject() {}, extract: (into) => into, fields: () => [field] }
      const propagators = [new W3CTraceContextPropagator(), other]
      started({ spanProcessors: [], propagator: new CompositePropagator({ propagators }) })
      const ids = `${'a'.repeat(32)}-${'b'.repeat(16)}`
      const caller = propagation.extract(ROOT_CONTEXT, { traceparent: `00-${ids}-03` })
      expect(context.with(caller, () => span('work', (work) => work.spanContext()))).toMatchObject({
        traceId: 'a'.repeat(32),
        traceFlags: flags,
      })
    },
  )

  test('an app whose propagator does not know its own headers is started as any other', () => {
    const fields = () => {
      throw new Error('none')
    }
    started({ spanProcessors: [], propagator: { inject() {}, extract: (into) => into, fields } })
    expect(span('work', (work) => work.isRecording())).toBe(true)
  })

  test('a context manager that was registered first stays, and nobody is told of an error', async () => {
    const wrong = vi.fn<(line: string) => void>()
    const quiet = () => {}
    diag.setLogger({ error: wrong, warn: wrong, info: quiet, debug: quiet, verbose: quiet })
    onTestFinished(() => diag.disable())
    const manager = new AsyncLocalStorageContextManager().enable()
    context.setGlobalContextManager(manager)
    onTestFinished(() => context.disable())
    const exporter = new InMemorySpanExporter()
    const tracing = started({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    span('outer', () => span('inner', () => {}))
    await tracing.shutdown()
    const [inner, outer] = exporter.getFinishedSpans()
    expect(inner?.parentSpanContext?.spanId).toBe(outer?.spanContext().spanId)
    expect(wrong).not.toHaveBeenCalled()
  })

  test('what somebody has registered in place of ours is not taken away at shutdown', async () => {
    const reports = said()
    const tracing = started({ spanProcessors: [] })
    for (const api of [trace, context, propagation]) api.disable()
    const exporter = new InMemorySpanExporter()
    const sdk = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    expect(trace.setGlobalTracerProvider(sdk)).toBe(true)
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
    propagation.setGlobalPropagator(new B3Propagator())
    onTestFinished(() => {
      for (const api of [trace, context, propagation]) api.disable()
    })
    await tracing.shutdown()
    trace.getTracer('app').startActiveSpan('theirs', (theirs) => {
      expect(trace.getActiveSpan()).toBe(theirs)
      theirs.end()
    })
    expect(exporter.getFinishedSpans()).toHaveLength(1)
    expect(propagation.fields()).toContain('b3')
    expect(reports.lines).toEqual([])
  })

  test('that somebody has taken away and put back as they found it ends all the same, and gives way to the next', async () => {
    const reports = said()
    const tracing = started({ spanProcessors: [] })
    const found = trace.getTracerProvider()
    trace.disable()
    trace.setGlobalTracerProvider(new BasicTracerProvider())
    trace.disable()
    trace.setGlobalTracerProvider(found)
    await tracing.shutdown()
    expect(registeredProvider()).toBeUndefined()
    const exporter = new InMemorySpanExporter()
    started({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    span('of the next', () => {})
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'of the next' }])
    expect(reports.lines).toEqual([])
  })

  test('a provider that was shut down by itself gives way to the next start', async () => {
    const reports = said()
    started({ spanProcessors: [] })
    const ours = registeredProvider() as unknown as { shutdown(): Promise<void> }
    await ours.shutdown()
    const exporter = new InMemorySpanExporter()
    started({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    span('second', () => {})
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'second' }])
    expect(reports.lines).toEqual([])
  })

  test('a propagator that comes too late is said to be unused', () => {
    const reports = said()
    propagation.setGlobalPropagator(new W3CTraceContextPropagator())
    onTestFinished(() => propagation.disable())
    started({ propagator: new B3Propagator() })
    expect(propagation.fields()).toEqual(['traceparent', 'tracestate'])
    expect(reports.lines).toEqual([expect.stringContaining('start({ propagator }) is unused')])
  })

  test('a sampler of the app that breaks is said once, and the app is traced all the same', async () => {
    const reports = said()
    const exporter = new InMemorySpanExporter()
    started({
      spanProcessors: [new SimpleSpanProcessor(exporter)],
      sampler: { shouldSample: () => Promise.reject(new Error('of the app')) } as never,
    })
    span('one', () => {})
    span('two', () => {})
    // An unhandled rejection would end this run.
    await new Promise(setImmediate)
    expect(exporter.getFinishedSpans().map(({ name }) => name)).toEqual(['one', 'two'])
    expect(reports.lines).toEqual([expect.stringContaining('the sampler threw')])
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

test('flush() without anything started ends, and starts nothing', async () => {
  await flush()
  expect(registeredProvider()).toBeUndefined()
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
