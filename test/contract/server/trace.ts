import { context, propagation } from '@opentelemetry/api'
import { span as manualSpan, type ReadableSpan } from '@throughline/core'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import { TRACE_ID, PARENT_ID, TRACEPARENT, ok, type Contract } from './app.ts'
import { ask, raw } from './client.ts'
import { theOnly, turn } from './watch.ts'

/** Of a version that may have anything behind its flags. */
const LATER = `traceparent: cc-${TRACE_ID}-${PARENT_ID}-01-what-comes`

/** Which trace a request belongs to. */
export function continuesTraces({ name, served, spanOf }: Contract): void {
  describe(`${name}: the trace that comes in`, () => {
    test('is continued, with its tracestate and as a remote parent', async () => {
      const span = await spanOf(ok, '/', { headers: { traceparent: TRACEPARENT, tracestate: 'a=1,b=2' } })
      expect(span.parentSpanContext).toMatchObject({ traceId: TRACE_ID, spanId: PARENT_ID, isRemote: true })
      expect(span.spanContext()).toMatchObject({ traceId: TRACE_ID, traceFlags: 1 })
      expect(span.spanContext().isRemote).not.toBe(true)
      expect(span.spanContext().traceState?.serialize()).toBe('a=1,b=2')
    })

    test.each([
      ['of a header in capitals', `TRACEPARENT: ${TRACEPARENT}`],
      ['with blanks around it', `traceparent:  \t${TRACEPARENT} \t`],
      ['of a later version with more in it', LATER],
      ['of a later version, with more in it, beside baggage', `${LATER}\r\nbaggage: a=1`],
      ['with flags that nobody knows', `traceparent: 00-${TRACE_ID}-${PARENT_ID}-f9`],
      ['whose tracestate is not valid', `traceparent: ${TRACEPARENT}\r\ntracestate: A=1`],
    ])('is continued: %s', async (_title, lines) => {
      const span = await spanOfRaw(lines)
      expect(span.spanContext().traceId).toBe(TRACE_ID)
      expect(span.parentSpanContext?.spanId).toBe(PARENT_ID)
    })

    test.each([
      ['two headers', `traceparent: ${TRACEPARENT}\r\ntraceparent: 00-${TRACE_ID}-00f067aa0ba902b8-01`],
      ['two headers that are the same', `traceparent: ${TRACEPARENT}\r\ntraceparent: ${TRACEPARENT}`],
      ['two values in one', `traceparent: ${TRACEPARENT}, ${TRACEPARENT}`],
      ...['', 'garbage', TRACEPARENT.toUpperCase()].map((second) => [
        `two headers, of a later version and "${second}"`,
        `${LATER}\r\ntraceparent: ${second}`,
      ]),
      [
        'two headers, of a later version and none, beside baggage',
        `${LATER}\r\ntraceparent:\r\nbaggage: a=1`,
      ],
      ['capitals in the ids', `traceparent: ${TRACEPARENT.toUpperCase()}`],
      ['a trace id of zeros', `traceparent: 00-${'0'.repeat(32)}-${PARENT_ID}-01`],
      ['a parent id of zeros', `traceparent: 00-${TRACE_ID}-${'0'.repeat(16)}-01`],
      ['version ff', `traceparent: ff-${TRACE_ID}-${PARENT_ID}-01`],
      ['version 00 with more in it', `traceparent: ${TRACEPARENT}-more`],
      ['another name', `trace-parent: ${TRACEPARENT}`],
      ['nothing in it', 'traceparent:'],
      ['a tracestate alone', 'tracestate: a=1'],
    ])('is not to be believed with %s: a new one begins, without tracestate', async (_title, lines) => {
      const span = await spanOfRaw(`${lines}\r\ntracestate: a=1`)
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceId).not.toBe(TRACE_ID)
      expect(span.spanContext().traceState).toBeUndefined()
      expect(span.spanContext().traceFlags).toBe(3)
    })

    test('brings its baggage to the handler, and on to what the handler calls', async () => {
      record()
      const sent: Record<string, string> = {}
      const serving = await served(({ answer }) => {
        propagation.inject(context.active(), sent)
        answer(200, propagation.getActiveBaggage()?.getEntry('user')?.value)
      })
      const { body } = await ask(serving, '/', { headers: { baggage: 'user=42,b=%C3%A9' } })
      expect(body).toBe('42')
      expect(sent['baggage']).toBe('user=42,b=%C3%A9')
    })

    test('goes on to what the handler calls, with the id of the span', async () => {
      const sent: Record<string, string> = {}
      const span = await spanOf(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1' } },
      )
      expect(sent).toEqual({
        traceparent: `00-${TRACE_ID}-${span.spanContext().spanId}-01`,
        tracestate: 'a=1',
      })
    })

    test('makes no span when it is not sampled, and goes on as not sampled', async () => {
      const recording = record()
      const sent: Record<string, string> = {}
      const serving = await served(({ answer }) => {
        manualSpan('inside', () => propagation.inject(context.active(), sent))
        answer(200)
      })
      const traceparent = `00-${TRACE_ID}-${PARENT_ID}-02`
      await ask(serving, '/', { headers: { traceparent, tracestate: 'a=1' } })
      expect(recording.spans).toEqual([])
      expect(sent['traceparent']).toMatch(new RegExp(`^00-${TRACE_ID}-[0-9a-f]{16}-02$`))
      expect(sent['traceparent']).not.toContain(PARENT_ID)
      expect(sent['tracestate']).toBe('a=1')
    })

    test('makes none when this service samples nothing, and what goes out says so', async () => {
      const recording = record({ sampling: 0 })
      const sent: Record<string, string> = {}
      const serving = await served(async ({ answer }) => {
        await turn()
        propagation.inject(context.active(), sent)
        answer(200)
      })
      await ask(serving, '/')
      expect(recording.spans).toEqual([])
      expect(sent['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-02$/)
    })

    async function spanOfRaw(lines: string): Promise<ReadableSpan> {
      const recording = record()
      await raw(await served(ok), `GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${lines}\r\n\r\n`)
      return theOnly(recording)
    }
  })
}
