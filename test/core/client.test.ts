import { context, ROOT_CONTEXT, SamplingDecision, trace, type Attributes } from '@opentelemetry/api'
import { Call, sender, span, type Sender, type SendingOptions } from '@throughline/core'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'

type Outcome = [answer: string]

/** A call that counts what it is asked for. */
class Counted extends Call<[text: string], Outcome> {
  readonly asked: string[] = []

  override name(): string {
    return 'call'
  }

  override subject(): [string] {
    this.asked.push('subject')
    return ['text']
  }

  override outcome(): Outcome {
    this.asked.push('outcome')
    return ['answer']
  }

  protected override build(): Attributes {
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
    expect(call.asked).toEqual(['attributes'])
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
    expect(call.asked).toEqual(['attributes'])
    send.succeed(call)
    send.succeed(call)
    expect(call.asked).toEqual(['attributes', 'outcome'])
    expect(recording.spans[0]?.attributes).toMatchObject({ 'app.answer': 'answer' })
    expect(send.asksOutcome).toBe(true)
    expect(made().asksOutcome).toBe(false)
  })

  test('one that failed with no answer: for none', () => {
    const recording = record()
    const send = made({ attributes: (answer) => ({ 'app.answer': answer }) })
    const { call } = begun(send)
    send.fail(call, 'ECONNREFUSED', 'refused')
    expect(call.asked).toEqual(['attributes'])
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
