import { span, type StartOptions } from '@throughline/core'
import { context, diag, propagation, ROOT_CONTEXT, trace, type TextMapPropagator } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { CompositePropagator, W3CTraceContextPropagator } from '@opentelemetry/core'
import { B3Propagator } from '@opentelemetry/propagator-b3'
import { resourceFromAttributes } from '@opentelemetry/resources'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  ParentBasedSampler,
  RandomIdGenerator,
  SimpleSpanProcessor,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { registeredProvider } from '../../packages/core/src/current.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { said } from './engine.ts'
import { receiver, type Received } from './receiver.ts'
import { started } from './tracing.ts'

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
