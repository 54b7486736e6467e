import { SpanKind } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { only, run, type PlainSpan } from './child.ts'
import { installedElsewhere } from './copy.ts'

interface Told {
  text: string
  spans: PlainSpan[]
  traceparents: string[][]
}

describe.each(['process', 'dispatcher'])('another tracer of undici beside ours for a %s', (form) => {
  test.each([
    ['official', 'theirs'],
    ['official', 'ours'],
    ['unknown', 'theirs'],
    ['unknown', 'ours'],
  ])('is one traceparent on the wire, and one CLIENT span: an %s one, %s first', async (tracer, first) => {
    const { text, spans, traceparents, said } = await run<Told>('wire-attempt.cjs', { form, tracer, first })
    expect(text).toBe('ok')
    expect(traceparents).toHaveLength(1)
    expect(traceparents[0]).toHaveLength(1)
    const { traceId, spanId, parentSpanId, scope } = only(spans, { kind: SpanKind.CLIENT })
    expect(traceparents[0]).toEqual([`00-${traceId}-${spanId}-03`])
    expect(parentSpanId).toBe(only(spans, { name: 'caller' }).spanId)
    // The official one sees every request of the process, so ours yields to it, as elsewhere.
    const yielded = 'throughline: another instrumentation traces undici already, so traceUndici does not\n'
    expect([scope, said]).toEqual(
      tracer === 'official'
        ? ['@opentelemetry/instrumentation-undici', yielded]
        : ['@throughline/undici', ''],
    )
  })
})

test('two copies of our package for undici make one CLIENT span of a request', async () => {
  const folder = installedElsewhere(['core', 'express', 'undici', 'pg'], 'shared')
  const told = await run<Told>('copies.mjs', { folder, undici: 'both' })
  const { traceId, spanId } = only(told.spans, { scope: '@throughline/undici' })
  expect(told.traceparents).toEqual([[`00-${traceId}-${spanId}-03`]])
})
