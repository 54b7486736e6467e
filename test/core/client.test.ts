import {
  context,
  ROOT_CONTEXT,
  SamplingDecision,
  trace,
  type Attributes,
  type ProxyTracerProvider,
  type Span,
} from '@opentelemetry/api'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { span } from '@throughline/core'
import { Call, sender, type Sender, type SendingOptions } from '@throughline/core/client'
import { afterEach, describe, expect, test } from 'vitest'
import { ignoreTracing, suppressTracing } from '../../packages/core/src/context.ts'
import { measure } from '../measuring.ts'
import { record } from '../recording.ts'
import { processor, said } from './engine.ts'

type Outcome = [answer: string]

/** A call that counts what it is asked for. */
class Counted extends Call<[text: string], Outcome> {
  readonly asked: string[] = []

  override name(): string {
    this.asked.push('name')
    return 'call'
  }

  override subject(): [string] {
    this.asked.push('subject')
    return ['text']
  }

  override dimensions(): Attributes {
    this.asked.push('dimensions')
    return { 'call.kind': 'counted' }
  }

  override outcome(): Outcome {
    this.asked.push('outcome')
    return ['answer']
  }

  override build(): Attributes {
    this.asked.push('attributes')
    return { 'call.number': 1 }
  }
}

function made(options: SendingOptions<[text: string], Outcome> = {}): Sender<[text: string], Outcome> {
  return sender({ scope: { name: 'a-client' }, text: (text: string) => text }, 'wrap()', options)
}

function begun(send: Sender<[text: string], Outcome>): { call: Counted; isWatched: boolean } {
  const call = new Counted(send.caller() ?? context.active())
  return { call, isWatched: send.begin(call) }
}

describe('a call is asked only for what somebody wants to know', () => {
  test('one that is recorded: for its attributes, once', () => {
    const recording = record()
    const send = made()
    const { call, isWatched } = begun(send)
    send.succeed(call)
    expect(isWatched).toBe(true)
    expect(call.asked).toEqual(['name', 'attributes'])
    expect(recording.spans[0]?.attributes).toEqual({ 'call.number': 1 })
  })

  test('one of an unsampled caller: for nothing, and its end need not be watched', () => {
    record({ sampling: 0 })
    const send = made({ attributes: () => ({}) })
    span('caller', () => {
      const { call, isWatched } = begun(send)
      send.succeed(call)
      send.fail(call, 'a-type', 'a message', true)
      expect(isWatched).toBe(false)
      expect(call.asked).toEqual([])
      expect(call.context).not.toBe(call.caller)
    })
  })

  test('one that may be ignored: for what it is about', () => {
    record()
    const { call, isWatched } = begun(made({ ignore: 'text' }))
    expect(isWatched).toBe(false)
    expect(call.asked).toEqual(['subject'])
    expect(call.context).toBe(call.caller)
  })

  test('one whose outcome the app wants to know: for that, when it has ended, and once', () => {
    const recording = record()
    const send = made({ attributes: (answer) => ({ 'app.answer': answer }) })
    const { call } = begun(send)
    expect(call.asked).toEqual(['name', 'attributes'])
    send.succeed(call)
    send.succeed(call)
    expect(call.asked).toEqual(['name', 'attributes', 'outcome'])
    expect(recording.spans[0]?.attributes).toMatchObject({ 'app.answer': 'answer' })
    expect(send.asksOutcome).toBe(true)
    expect(made().asksOutcome).toBe(false)
  })

  test('one that failed with no answer: for none', () => {
    const recording = record()
    const send = made({ attributes: (answer) => ({ 'app.answer': answer }) })
    const { call } = begun(send)
    send.fail(call, 'ECONNREFUSED', 'refused')
    expect(call.asked).toEqual(['name', 'attributes'])
    expect(recording.spans[0]).toMatchObject({
      attributes: { 'error.type': 'ECONNREFUSED' },
      status: { code: 2, message: 'refused' },
    })
  })
})

describe('a call that sends nothing of its span along', () => {
  const silent = () =>
    sender<[text: string], Outcome>(
      { scope: { name: 'a-client' }, isSilent: true, text: (text: string) => text },
      'wrap()',
      {},
    )
  const drop = {
    shouldSample: () => ({ decision: SamplingDecision.NOT_RECORD }),
    toString: () => 'Drop',
  }

  test('is not begun below a span that is not sampled, where the sampler follows parents', () => {
    record({ sampling: 0 })
    span('caller', () => expect(silent().caller()).toBeUndefined())
  })

  test.each([
    ['where nobody calls', () => {}, {}],
    ['below a span that is sampled', (ask: () => void) => span('caller', ask), {}],
    ['where the sampler is the app’s', (ask: () => void) => span('caller', ask), { sampler: drop }],
    [
      'below a context that came from elsewhere',
      (ask: () => void) => {
        const remote = { traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 0, isRemote: true }
        context.with(trace.setSpan(ROOT_CONTEXT, trace.wrapSpanContext(remote)), ask)
      },
      {},
    ],
  ])('is begun %s', (_title, within, options) => {
    record(options)
    const callers: unknown[] = []
    const ask = () => callers.push(silent().caller())
    if (within.length === 0) ask()
    else within(ask)
    expect(callers).toEqual([expect.anything()])
  })
})

describe('a call below a span of ours', () => {
  test.each([
    ['suppressed', suppressTracing],
    ['ignored', ignoreTracing],
  ] as const)('has none where tracing is %s', (_, turnedOff) => {
    const recording = record()
    const send = made()
    span('caller', () => {
      begun(send)
      context.with(turnedOff(context.active()), () => expect(send.caller()).toBeUndefined())
    })
    expect(recording.spans.map(({ name }) => name)).toEqual(['caller'])
  })

  test('goes to whoever is in charge by then', async () => {
    const first = record()
    const send = made()
    const end = () => send.succeed(begun(send).call)
    let within = context.active()
    span('caller', () => {
      within = context.active()
      end()
    })
    await first.stop()
    expect(first.spans.map(({ name }) => name)).toEqual(['call', 'caller'])
    const parent = trace.getSpan(within) as Span
    // Nobody, and then a second life of ours.
    expect(send.begin(new Counted(within))).toBe(false)
    const second = record()
    const call = new Counted(trace.setSpan(context.active(), parent))
    expect(send.begin(call)).toBe(true)
    send.succeed(call)
    const [ofSecond] = await second.all(1)
    expect(ofSecond?.parentSpanContext?.spanId).toBe(parent.spanContext().spanId)
    const proxy = trace.getTracerProvider() as ProxyTracerProvider
    trace.disable()
    expect(send.begin(new Counted(within))).toBe(false)
    trace.setGlobalTracerProvider(proxy.getDelegate())
  })
})

describe('a call that its library wants no trace to begin with', () => {
  class OfLoop extends Counted {
    override needsParent(): boolean {
      return true
    }
  }

  const called = (options: SendingOptions<[text: string], Outcome>) => {
    const send = made(options)
    const call = new OfLoop(send.caller() ?? context.active())
    const isWatched = send.begin(call)
    send.succeed(call)
    return isWatched
  }

  test('has a span in a trace that there is, and none elsewhere', () => {
    const recording = record()
    expect(called({})).toBe(false)
    expect(span('caller', () => called({}))).toBe(true)
    expect(recording.spans.map(({ name }) => name)).toEqual(['call', 'caller'])
  })

  test('begins one where the app says that no call needs a parent', () => {
    const recording = record()
    expect(called({ requireParent: false })).toBe(true)
    expect(recording.spans.map(({ name }) => name)).toEqual(['call'])
  })
})

describe('a call that is measured', () => {
  const DURATION = 'db.client.operation.duration'
  const measured = (options: SendingOptions<[text: string], Outcome> = {}) =>
    sender<[text: string], Outcome>(
      {
        scope: { name: 'a-client', version: '1.2.3' },
        isSilent: true,
        text: (text: string) => text,
        duration: { name: DURATION, description: 'Duration of database calls.', buckets: [1, 10] },
      },
      'wrap()',
      options,
    )

  test('counts once, in the buckets that its library names, as long as its span', async () => {
    const measuring = measure()
    const recording = record()
    const send = measured()
    const { call } = begun(send)
    send.succeed(call)
    send.fail(call, 'too-late')

    const [seconds, nanoseconds] = recording.spans[0]?.duration ?? [NaN, NaN]
    expect(await measuring.points(DURATION)).toEqual([
      { attributes: { 'call.kind': 'counted' }, value: seconds + nanoseconds / 1e9, count: 1 },
    ])
    expect(await measuring.metric(DURATION)).toMatchObject({
      descriptor: { unit: 's', description: 'Duration of database calls.' },
      dataPoints: [{ value: { buckets: { boundaries: [1, 10], counts: [1, 0, 0] } } }],
    })
    expect(await measuring.scopes()).toEqual(['a-client'])
  })

  test('counts the whole seconds of its span and the rest of one', async () => {
    const measuring = measure()
    record()
    const send = measured()
    const { call } = begun(send)
    // As one of another provider has it when it has ended.
    call.span = Object.assign(trace.wrapSpanContext(call.span.spanContext()), { duration: [2, 500_000_000] })
    send.succeed(call)
    const [point] = await measuring.points(DURATION)
    expect(point?.value).toBe(2.5)
  })

  test('counts with the type of its error where it failed', async () => {
    const measuring = measure()
    record()
    const send = measured()
    send.fail(begun(send).call, '42P01')
    const [point] = await measuring.points(DURATION)
    expect(point?.attributes).toEqual({ 'call.kind': 'counted', 'error.type': '42P01' })
  })

  test('has ended when it is said to have ended', async () => {
    const measuring = measure()
    record({ sampling: 0 })
    const send = measured()
    const before = performance.now()
    const { call } = begun(send)
    send.succeed(call, before + 60_000)
    const [point] = await measuring.points(DURATION)
    expect(point?.value).toBeGreaterThan(59)
    expect(point?.value).toBeLessThanOrEqual(60)
  })

  test.each([
    ['where it is not sampled', { sampling: 0 }, {}, ['dimensions']],
    ['where it has no caller but needs one for a span', {}, { requireParent: true }, ['dimensions']],
  ])('counts %s, and is asked for nothing else', async (_title, started, options, asked) => {
    const measuring = measure()
    const recording = record(started)
    const send = measured(options)
    const ended = () => {
      const { call, isWatched } = begun(send)
      expect(isWatched).toBe(true)
      send.succeed(call)
      expect(call.asked).toEqual(asked)
    }
    if ('requireParent' in options) ended()
    else span('caller', ended)
    expect(recording.spans).toEqual([])
    expect((await measuring.points(DURATION)).map(({ count }) => count)).toEqual([1])
  })

  test('does not count where it is ignored', async () => {
    const measuring = measure()
    record()
    const send = measured({ ignore: 'text' })
    const { call, isWatched } = begun(send)
    send.succeed(call)
    expect(isWatched).toBe(false)
    expect(await measuring.points(DURATION)).toEqual([])
  })

  test('harms nobody where its library cannot say what it is counted by', async () => {
    const reports = said()
    const measuring = measure()
    const recording = record()
    const send = measured()
    const { call } = begun(send)
    call.dimensions = () => {
      throw new Error('a bug of ours')
    }
    send.succeed(call)
    expect(recording.spans).toHaveLength(1)
    expect(await measuring.points(DURATION)).toEqual([])
    expect(reports.lines).toEqual([expect.stringContaining('a call could not be measured')])
  })
})

describe('a call with another provider harms nobody', () => {
  const ends: [string, (send: Sender<[text: string], Outcome>, call: Counted) => void][] = [
    ['succeeds', (send, call) => send.succeed(call)],
    ['fails', (send, call) => send.fail(call, 'ECONNRESET', 'reset', true)],
    ['is never answered', (_send, call) => call.abandon()],
  ]
  afterEach(() => trace.disable())

  test.each(ends)('that %s where a processor throws at its end: that is said once', (_how, end) => {
    const reports = said()
    const throwing = processor({
      onEnd() {
        throw new Error('of the processor')
      },
    })
    trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [throwing] }))
    const send = made()
    for (let count = 0; count < 2; count++) end(send, begun(send).call)
    expect(reports.lines).toEqual([expect.stringContaining('the end of a call could not be recorded')])
  })

  test('that has a provider whose tracers give no spans', () => {
    const reports = said()
    trace.setGlobalTracerProvider({ getTracer: () => ({ startSpan() {} }) as never })
    const { call, isWatched } = begun(made())
    expect([isWatched, call.context]).toEqual([false, call.caller])
    expect(reports.lines).toEqual([expect.stringContaining('a call could not be traced')])
  })

  test.each(ends.slice(0, 2))('that %s where an attribute of the app cannot be read', (_how, end) => {
    const reports = said()
    const exporter = new InMemorySpanExporter()
    trace.setGlobalTracerProvider(
      new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }),
    )
    const attributes = () => ({
      get 'app.answer'(): string {
        throw new Error('of the getter')
      },
    })
    const send = made({ attributes })
    end(send, begun(send).call)
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'call' }])
    expect(reports.lines).toEqual([expect.stringContaining('left out, since to read it threw: attributes')])
  })
})
