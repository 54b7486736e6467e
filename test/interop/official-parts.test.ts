import { traceRequest, flush, span, start, type StartOptions } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import {
  context,
  createTraceState,
  propagation,
  ROOT_CONTEXT,
  SamplingDecision,
  SpanKind,
  SpanStatusCode,
  trace,
  TraceFlags,
} from '@opentelemetry/api'
import { CompositePropagator, W3CBaggagePropagator, W3CTraceContextPropagator } from '@opentelemetry/core'
import { OTLPTraceExporter as JsonExporter } from '@opentelemetry/exporter-trace-otlp-http'
import { OTLPTraceExporter as ProtobufExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { B3InjectEncoding, B3Propagator } from '@opentelemetry/propagator-b3'
import {
  defaultResource,
  detectResources,
  envDetector,
  hostDetector,
  processDetector,
  resourceFromAttributes,
} from '@opentelemetry/resources'
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ConsoleSpanExporter,
  InMemorySpanExporter,
  ParentBasedSampler,
  RandomIdGenerator,
  SimpleSpanProcessor,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { ask, listening, type Serving } from '../contract/server.ts'
import { receiver, type Received } from '../core/receiver.ts'
import { decodeRequest } from '../otlp-definition.ts'

const running: { shutdown(): Promise<void> }[] = []

function started(options: StartOptions) {
  const tracing = start({ signals: false, ...options })
  running.push(tracing)
  return tracing
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((tracing) => tracing.shutdown()))
})

/** Starts with an official in-memory exporter, and answers what it holds. */
function inMemory(options: StartOptions) {
  const exporter = new InMemorySpanExporter()
  started({ ...options, spanProcessors: [new SimpleSpanProcessor(exporter)] })
  return () => exporter.getFinishedSpans()
}

describe('what the official exporters send of our spans is what ours sends', () => {
  const endpoint = (url: string) => ({ endpoint: url })
  const official = (Exporter: typeof ProtobufExporter | typeof JsonExporter, url: string) =>
    new Exporter({ url: `${url}/v1/traces` })
  const pipelines: Record<string, (url: string) => StartOptions> = {
    'ours, JSON': (url) => ({ endpoint: url, protocol: 'http/json' }),
    'official, protobuf': (url) => ({ exporter: official(ProtobufExporter, url) }),
    'official, JSON': (url) => ({ exporter: official(JsonExporter, url) }),
    'official, protobuf, behind the official batch': (url) => ({
      spanProcessors: [new BatchSpanProcessor(official(ProtobufExporter, url))],
    }),
    'official, JSON, behind the official batch': (url) => ({
      spanProcessors: [new BatchSpanProcessor(official(JsonExporter, url))],
    }),
  }

  test.each(Object.keys(pipelines))('%s', async (name) => {
    const ours = await sent(endpoint)
    const theirs = await sent(pipelines[name] as (url: string) => StartOptions)
    expect(theirs).toEqual(ours)
    // What is compared is all there.
    const [{ resource, scopeSpans } = {} as Plain] = ours['resourceSpans'] as Plain[]
    expect(resource).toMatchObject({ attributes: { 'service.name': 'orders', 'host.cpus': '8' } })
    expect(scopeSpans).toMatchObject([
      { scope: { name: 'app', version: '1.2.3' }, spans: [{ name: 'inner' }, { name: 'POST /orders' }] },
      { scope: { name: 'worker' }, spans: [{ name: 'process' }] },
    ])
  })

  /** The one request that a life of tracing sends, whose spans are the same each time. */
  async function sent(options: (url: string) => StartOptions): Promise<Plain> {
    const collector = await receiver()
    let count = 0
    const next = (length: number) => (count += 1).toString(16).padStart(length, '0')
    const tracing = started({
      ...options(collector.url),
      resource: { 'service.instance.id': 'one', 'host.cpus': 8, tags: ['a', 'b'] },
      serviceName: 'orders',
      idGenerator: { generateTraceId: () => next(32), generateSpanId: () => next(16) },
    })
    makeSpans()
    await tracing.flush()
    await tracing.shutdown()
    expect(collector.requests).toHaveLength(1)
    return readable(collector.requests[0] as Received)
  }

  function makeSpans(): void {
    const tracer = trace.getTracer('app', '1.2.3')
    const remote = {
      traceId: '0af7651916cd43dd8448eb211c80319c',
      spanId: 'b7ad6b7169203331',
      traceFlags: TraceFlags.SAMPLED,
      isRemote: true,
      traceState: createTraceState('vendor=1,other=2'),
    }
    const at = (nanoseconds: number): [number, number] => [1_700_000_000, nanoseconds]
    const outer = tracer.startSpan(
      'POST',
      {
        kind: SpanKind.SERVER,
        startTime: at(1),
        attributes: {
          text: 'ü',
          empty: '',
          yes: true,
          no: false,
          zero: 0,
          whole: -42,
          part: 0.5,
          list: [1, 2.5],
        },
      },
      trace.setSpanContext(ROOT_CONTEXT, remote),
    )
    const inner = tracer.startSpan(
      'inner',
      { startTime: at(2), links: [{ context: remote, attributes: { why: 'batch' } }] },
      trace.setSpan(ROOT_CONTEXT, outer),
    )
    inner.addEvent('sent', { bytes: 12 }, at(3))
    inner.recordException({ name: 'RangeError', message: 'no', stack: 'here' }, at(4))
    inner.setStatus({ code: SpanStatusCode.ERROR, message: 'refused' }).end(at(5))
    outer.updateName('POST /orders').setStatus({ code: SpanStatusCode.OK }).end(at(6))
    const worker = trace.getTracer('worker')
    worker.startSpan('process', { kind: SpanKind.CONSUMER, startTime: at(7), root: true }).end(at(8))
  }
})

describe('official exporters and processors', () => {
  test('the console exporter prints what our spans hold', async () => {
    const dir = vi.spyOn(console, 'dir').mockImplementation(() => {})
    const tracing = started({ exporter: new ConsoleSpanExporter(), serviceName: 'orders' })
    const { traceId, spanId } = span('work', { 'order.id': 7 }, (s) => s.addEvent('paid').spanContext())
    await tracing.flush()
    expect(dir.mock.calls.map(([printed]) => printed as unknown)).toMatchObject([
      {
        resource: { attributes: { 'service.name': 'orders', 'telemetry.sdk.name': 'throughline' } },
        instrumentationScope: { name: '@throughline/core' },
        traceId,
        id: spanId,
        name: 'work',
        attributes: { 'order.id': 7 },
        events: [{ name: 'paid' }],
        timestamp: expect.any(Number),
        duration: expect.any(Number),
      },
    ])
  })

  test('several of them get the same spans, each in its own way', async () => {
    const [simple, batched] = [new InMemorySpanExporter(), new InMemorySpanExporter()]
    // Nothing leaves the batch by itself while this runs.
    const batch = new BatchSpanProcessor(batched, { scheduledDelayMillis: 600_000 })
    const tracing = started({ spanProcessors: [new SimpleSpanProcessor(simple), batch] })
    span('outer', () => span('inner', () => {}))
    expect(simple.getFinishedSpans().map(({ name }) => name)).toEqual(['inner', 'outer'])
    expect(batched.getFinishedSpans()).toEqual([])
    await flush()
    expect(batched.getFinishedSpans()).toEqual(simple.getFinishedSpans())
    await tracing.shutdown()
    expect(simple.getFinishedSpans(), 'shutdown reached it').toEqual([])
  })

  test('a span that is not sampled reaches none of them', () => {
    const exporter = new InMemorySpanExporter()
    started({
      sampling: 0,
      spanProcessors: [new SimpleSpanProcessor(exporter), new BatchSpanProcessor(exporter)],
    })
    span('work', () => {})
    expect(exporter.getFinishedSpans()).toEqual([])
  })
})

describe('official samplers', () => {
  test('decide by the ratio of their trace ids, as on their own SDK', () => {
    const sampler = new TraceIdRatioBasedSampler(0.5)
    const finished = inMemory({ sampler, idGenerator: new RandomIdGenerator() })
    const roots = Array.from({ length: 200 }, () => span('work', (made) => made.spanContext()))
    const wanted = roots.filter(
      ({ traceId }) =>
        sampler.shouldSample(ROOT_CONTEXT, traceId).decision === SamplingDecision.RECORD_AND_SAMPLED,
    )
    expect(finished().map((each) => each.spanContext().traceId)).toEqual(wanted.map(({ traceId }) => traceId))
    // By chance alone: one in 2^200.
    expect(wanted).not.toHaveLength(0)
    for (const { traceFlags } of wanted) expect(traceFlags).toBe(TraceFlags.SAMPLED)
  })

  test('AlwaysOff makes no span, and its context goes on unsampled', () => {
    const finished = inMemory({ sampler: new AlwaysOffSampler() })
    const carrier: Record<string, string> = {}
    span('work', (made) => {
      expect(made.isRecording()).toBe(false)
      propagation.inject(context.active(), carrier)
    })
    expect(finished()).toEqual([])
    expect(carrier['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]$/)
  })

  test('ParentBased asks each of its samplers where it is due', () => {
    const sampler = new ParentBasedSampler({
      root: new AlwaysOffSampler(),
      remoteParentNotSampled: new AlwaysOnSampler(),
    })
    const finished = inMemory({ sampler })
    const remote = (traceFlags: number) =>
      trace.setSpanContext(ROOT_CONTEXT, {
        traceId: 'a'.repeat(32),
        spanId: 'b'.repeat(16),
        traceFlags,
        isRemote: true,
      })
    const tracer = trace.getTracer('app')
    tracer.startSpan('root').end()
    tracer.startSpan('of a sampled caller', {}, remote(1)).end()
    tracer.startActiveSpan('of an unsampled caller', {}, remote(0), (outer) => {
      tracer.startSpan('child').end()
      outer.end()
    })
    expect(finished().map(({ name }) => name)).toEqual([
      'of a sampled caller',
      'child',
      'of an unsampled caller',
    ])
  })
})

describe('official propagators, over the wire', () => {
  const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
  const PARENT_ID = '00f067aa0ba902b7'

  test('W3C, trace context and baggage', async () => {
    const propagators = [new W3CTraceContextPropagator(), new W3CBaggagePropagator()]
    const { spans, onward } = await passOn(new CompositePropagator({ propagators }), {
      traceparent: `00-${TRACE_ID}-${PARENT_ID}-01`,
      tracestate: 'vendor=1',
      baggage: 'tenant=acme',
    })
    const [client, server] = spans
    expect(server).toMatchObject({
      parentSpanContext: { traceId: TRACE_ID, spanId: PARENT_ID, isRemote: true },
    })
    expect(onward).toMatchObject({
      traceparent: `00-${TRACE_ID}-${client?.spanContext().spanId}-01`,
      tracestate: 'vendor=1',
      baggage: 'tenant=acme',
    })
  })

  test.each([
    ['in one header', B3InjectEncoding.SINGLE_HEADER, { b3: `${TRACE_ID}-${PARENT_ID}-1` }],
    [
      'in several headers',
      B3InjectEncoding.MULTI_HEADER,
      { 'x-b3-traceid': TRACE_ID, 'x-b3-spanid': PARENT_ID, 'x-b3-sampled': '1' },
    ],
  ])('B3 %s, and nothing of ours beside it', async (_form, injectEncoding, headers) => {
    const { spans, onward } = await passOn(new B3Propagator({ injectEncoding }), headers)
    const [client, server] = spans
    expect(server).toMatchObject({ parentSpanContext: { traceId: TRACE_ID, spanId: PARENT_ID } })
    const expected = JSON.parse(
      JSON.stringify(headers).replace(PARENT_ID, client?.spanContext().spanId as string),
    ) as object
    expect(onward).toMatchObject(expected)
    expect(onward).not.toHaveProperty('traceparent')
    expect(
      Object.keys(onward)
        .filter((name) => name.includes('b3'))
        .sort(),
    ).toEqual(Object.keys(headers).sort())
  })

  /** Asks a service that asks another one; the two spans of the first, and what came to the second. */
  async function passOn(propagator: CompositePropagator | B3Propagator, headers: Record<string, string>) {
    const finished = inMemory({ propagator })
    onTestFinished(traceUndici())
    let onward: IncomingHttpHeaders = {}
    const second = await served((request, response) => {
      onward = request.headers
      response.end()
    })
    const first = await served((request, response) =>
      traceRequest(request, response, async () => {
        await (await fetch(`http://127.0.0.1:${second.port}/`)).text()
        response.end()
      }),
    )
    await ask(first, '/', { headers })
    expect(finished().map(({ kind }) => kind)).toEqual([SpanKind.CLIENT, SpanKind.SERVER])
    return { spans: finished(), onward }
  }
})

describe('official resources', () => {
  test('arrive with what their detectors find out later', async () => {
    const collector = await receiver()
    let find = (_region: string): void => {}
    const region = new Promise<string>((resolve) => {
      find = resolve
    })
    const tracing = started({
      endpoint: collector.url,
      resource: resourceFromAttributes({ 'service.version': '1.4.0', 'cloud.region': region }),
      serviceName: 'orders',
    })
    span('work', () => {})
    const flushed = tracing.flush()
    expect(collector.requests).toEqual([])
    find('eu-west-1')
    await flushed
    expect(resourceOf(collector.requests)).toMatchObject({
      'service.name': 'orders',
      'service.version': '1.4.0',
      'cloud.region': 'eu-west-1',
      'telemetry.sdk.name': 'throughline',
    })
  })

  test('of detectors, merged with the default one, arrive; who made the spans stays true', async () => {
    vi.stubEnv('OTEL_RESOURCE_ATTRIBUTES', 'deployment.environment.name=test')
    const collector = await receiver()
    const detected = detectResources({ detectors: [envDetector, hostDetector, processDetector] })
    const resource = defaultResource().merge(detected)
    const tracing = started({
      exporter: new ProtobufExporter({ url: `${collector.url}/v1/traces` }),
      resource,
    })
    span('work', () => {})
    await tracing.flush()
    expect(resourceOf(collector.requests)).toMatchObject({
      'deployment.environment.name': 'test',
      'host.arch': expect.any(String),
      'process.pid': String(process.pid),
      'telemetry.sdk.name': 'throughline',
    })
  })

  function resourceOf([request]: Received[]): unknown {
    const [{ resource } = {} as Plain] = readable(request as Received)['resourceSpans'] as Plain[]
    return (resource as Plain)['attributes']
  }
})

test('the official id generator gives the ids, and no one says of them that they are random', () => {
  const idGenerator = new RandomIdGenerator()
  const traceIds = vi.spyOn(idGenerator, 'generateTraceId')
  const spanIds = vi.spyOn(idGenerator, 'generateSpanId')
  const finished = inMemory({ idGenerator })
  span('outer', () => span('inner', () => {}))
  const [inner, outer] = finished().map((each) => each.spanContext())
  expect(traceIds.mock.results.map(({ value }) => value as string)).toEqual([outer?.traceId])
  expect(spanIds.mock.results.map(({ value }) => value as string)).toEqual([outer?.spanId, inner?.spanId])
  expect([outer?.traceFlags, inner?.traceFlags]).toEqual([TraceFlags.SAMPLED, TraceFlags.SAMPLED])
})

type Plain = Record<string, unknown>

async function served(handler: Parameters<typeof createServer>[1] & {}): Promise<Serving> {
  const serving = await listening(createServer(handler as never))
  onTestFinished(() => serving.close())
  return serving
}

/** An OTLP request in one form, whichever it came in: ids in hex, times and integers as text, attributes by their names. */
function readable({ headers, body }: Received): Plain {
  const isJson = headers['content-type'] === 'application/json'
  const request: unknown = isJson ? JSON.parse(body.toString()) : decodeRequest(body)
  return plain(request, '') as Plain
}

/** What protobuf leaves out because it is nothing, and JSON writes: an unset status too. */
function isNothing(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.keys(value).length === 0
  return value === undefined || value === 0 || value === ''
}

function plain(value: unknown, name: string): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (name === 'attributes') {
    const pairs = value as { key: string; value?: Plain }[]
    return Object.fromEntries(pairs.map((pair) => [pair.key, scalar(pair.value ?? {})]))
  }
  if (Array.isArray(value)) return value.map((element) => plain(element, ''))
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).map(([key, inner]) => [key, plain(inner, key)] as const)
  return Object.fromEntries(entries.filter(([, inner]) => !isNothing(inner)))
}

/** Integers are text in one form and numbers in the other. */
function scalar(value: Plain): unknown {
  const [[type, held] = ['none', undefined]] = Object.entries(value)
  if (type === 'intValue') return String(held)
  if (type !== 'arrayValue') return held
  return ((held as { values?: Plain[] }).values ?? []).map((element) => scalar(element))
}
