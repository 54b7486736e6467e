import { SpanKind } from '@opentelemetry/api'
import { expect, test } from 'vitest'
import { only, run, type PlainSpan } from './child.ts'

interface Told {
  texts: string[]
  spans: PlainSpan[]
  traceparents: string[][]
}

test.each([
  ['official', 'theirs'],
  ['official', 'ours'],
  ['unknown', 'theirs'],
  ['unknown', 'ours'],
])(
  'another tracer of node:http beside ours is one traceparent on the wire, and one CLIENT span: an %s one, %s first',
  async (tracer, first) => {
    const { texts, spans, traceparents, said } = await run<Told>('http-attempt.cjs', { tracer, first })
    expect(texts).toEqual(['ok', 'ok', 'ok'])
    const calls = spans.filter(({ kind }) => kind === SpanKind.CLIENT)
    // The third was made when ours had ended.
    const byOurs = tracer === 'official' ? [] : calls
    expect(calls.map(({ scope }) => scope)).toEqual(
      tracer === 'official'
        ? Array.from({ length: 3 }, () => '@opentelemetry/instrumentation-http')
        : ['@throughline/http', '@throughline/http'],
    )
    expect(traceparents.map((each) => each.length)).toEqual([1, 1, 1])
    expect(traceparents.slice(0, 2)).toEqual(
      calls.slice(0, 2).map(({ traceId, spanId }) => [`00-${traceId}-${spanId}-03`]),
    )
    expect(byOurs.map(({ parentSpanId }) => parentSpanId)).toEqual(
      byOurs.map((_, index) => only(spans, { name: index === 0 ? 'caller' : 'second caller' }).spanId),
    )
    // The official one sees every request of the process, so ours yields to it, and says so once.
    expect(said).toBe(
      tracer === 'official'
        ? 'throughline: another instrumentation traces node:http already, so traceHttp does not\n'
        : '',
    )
  },
)
