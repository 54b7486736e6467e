import { context, createTraceState, propagation, trace, type Context } from '@opentelemetry/api'
import { b3MultiPropagator, b3Propagator, span } from '@throughline/core'
import { createServer } from 'node:net'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import {
  HEADER_FORMS,
  listening,
  read,
  served,
  traceparentOf,
  valuesOf,
  type Contract,
  type HeaderForm,
} from './client.ts'

const FOREIGN = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
const FORMS = Object.keys(HEADER_FORMS) as HeaderForm[]

/** Another trace, in each form of B3. */
const FOREIGN_B3 = { b3: '4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1' }
const FOREIGN_FIELDS_OF_B3 = {
  'X-B3-TraceId': '4bf92f3577b34da6a3ce929d0e0e4736',
  'X-B3-SpanId': '00f067aa0ba902b7',
  'X-B3-Sampled': '1',
}
/** With a propagator of one form, headers of the other. */
const OTHER_FORMS_OF_B3 = [
  ['one header of B3', 'several', b3MultiPropagator, FOREIGN_B3],
  ['several headers of B3', 'one', b3Propagator, FOREIGN_FIELDS_OF_B3],
] as const

/** The current context with baggage. */
function carrying(): Context {
  const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
  return propagation.setBaggage(context.active(), baggage)
}

/** One trace on the wire, whoever else has set headers. */
export function carriesOneTrace({ name, gaps, traced, untraced }: Contract): void {
  const takes = (form: HeaderForm) => gaps.headers?.includes(form) !== true

  describe(`${name}: the headers of a request`, () => {
    test('hold one traceparent, which is that of its span, in the bytes that arrive', async () => {
      const recording = record()
      let bytes = ''
      const server = createServer((socket) => {
        socket.on('error', () => {})
        socket.on('data', (chunk) => {
          bytes += chunk.toString('latin1')
          if (bytes.endsWith('\r\n\r\n')) socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
        })
      })
      const port = await listening(server)
      const ask = await traced()
      expect(await read(ask({ url: `http://127.0.0.1:${port}/`, headers: { traceparent: FOREIGN } }))).toBe(
        'ok',
      )
      const [span] = await recording.all(1)
      expect(bytes.match(/^traceparent: .*$/gim)).toEqual([`traceparent: ${traceparentOf(span)}`])
      expect(bytes).not.toContain(FOREIGN)
    })

    test('hold the baggage and the state of the trace of the caller', async () => {
      record()
      const { url, requests } = await served()
      const ask = await traced()
      const [traceId, spanId] = ['1'.repeat(32), '2'.repeat(16)]
      const traceState = createTraceState('vendor=1')
      const caller = trace.wrapSpanContext({ traceId, spanId, traceFlags: 1, isRemote: true, traceState })
      await context.with(trace.setSpan(carrying(), caller), () => read(ask({ url })))
      expect(valuesOf(requests[0] as never, 'baggage')).toEqual(['tenant=acme'])
      expect(valuesOf(requests[0] as never, 'tracestate')).toEqual(['vendor=1'])
    })

    test('hold baggage, and not the state of another trace', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced()
      const own = { traceparent: FOREIGN, tracestate: 'a=1' }
      await context.with(carrying(), () => read(ask({ url, headers: own })))
      const [span] = await recording.all(1)
      expect(valuesOf(requests[0] as never, 'traceparent')).toEqual([traceparentOf(span)])
      expect(valuesOf(requests[0] as never, 'baggage')).toEqual(['tenant=acme'])
      expect(valuesOf(requests[0] as never, 'tracestate')).toEqual([])
    })

    test.each(FORMS.filter(takes))(
      'given as %s stay as they are, and arrive with one traceparent',
      async (form) => {
        const recording = record()
        const { url, requests } = await served()
        const ask = await traced()
        const own = [
          ['TraceParent', FOREIGN],
          ['X-Own', 'mine'],
          ['tracestate', 'a=1'],
        ] as const
        const headers = HEADER_FORMS[form](own)
        const before = entriesOf(headers)
        await read(ask({ url, headers }))
        const [span] = await recording.all(1)
        expect(entriesOf(headers)).toEqual(before)
        const [request] = requests as [(typeof requests)[0]]
        expect(valuesOf(request, 'traceparent')).toEqual([traceparentOf(span)])
        expect(valuesOf(request, 'tracestate')).toEqual([])
        expect(valuesOf(request, 'x-own')).toEqual(['mine'])
      },
    )

    test.each(FORMS.filter((form) => !takes(form)))(
      'given as %s come to what they come to untraced',
      async (form) => {
        record()
        const { url, requests } = await served()
        const outcome = async (ask: Awaited<ReturnType<typeof traced>>) => {
          const headers = HEADER_FORMS[form]([['x-own', 'mine']])
          const said = await read(ask({ url, headers })).catch(({ name: type, message }: Error) => [
            type,
            message,
          ])
          const request = requests.splice(0)[0]
          return { said, own: request && valuesOf(request, 'x-own') }
        }
        const before = await outcome(await untraced())
        expect(before.own).not.toEqual(['mine'])
        expect(await outcome(await traced())).toEqual(before)
      },
    )

    test('of the app stay as they are where it says so, and then nothing of ours goes along', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced({ headers: 'keep' })
      await span('caller', () => read(ask({ url, headers: { TraceParent: FOREIGN, tracestate: 'a=1' } })))
      await recording.all(2)
      const [request] = requests as [(typeof requests)[0]]
      expect(valuesOf(request, 'traceparent')).toEqual([FOREIGN])
      expect(valuesOf(request, 'tracestate')).toEqual(['a=1'])
    })

    test('are ours where the app says to keep its own and has none', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced({ headers: 'keep' })
      await read(ask({ url, headers: { 'x-own': 'mine' } }))
      const [span] = await recording.all(1)
      expect(valuesOf(requests[0] as never, 'traceparent')).toEqual([traceparentOf(span)])
    })

    test.each(OTHER_FORMS_OF_B3)(
      'name no other trace by %s where ours is named by %s',
      async (_theirs, _ours, propagator, headers) => {
        const recording = record({ propagator })
        const { url, requests } = await served()
        const ask = await traced()
        await read(ask({ url, headers }))
        const [span] = await recording.all(1)
        const { traceId, spanId } = span!.spanContext()
        const arrived = Object.entries(requests[0]!.headers).filter(([name]) => /b3/.test(name))
        expect(Object.fromEntries(arrived)).toEqual(
          propagator === b3Propagator
            ? { b3: `${traceId}-${spanId}-1` }
            : { 'x-b3-traceid': traceId, 'x-b3-spanid': spanId, 'x-b3-sampled': '1' },
        )
      },
    )

    test.each([
      ...OTHER_FORMS_OF_B3,
      // B3 lets a decision be passed on without a trace.
      ['what B3 has decided, alone', 'one', b3Propagator, { 'X-B3-Sampled': '0' }] as const,
    ])(
      'of the app stay as they are where it says so, and ours is not named beside them: %s, ours in %s',
      async (_theirs, _ours, propagator, headers) => {
        const recording = record({ propagator })
        const { url, requests } = await served()
        const ask = await traced({ headers: 'keep' })
        await read(ask({ url, headers }))
        await recording.all(1)
        const arrived = Object.entries(requests[0]!.headers).filter(([name]) => /b3/.test(name))
        const own = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value])
        expect(Object.fromEntries(arrived)).toEqual(Object.fromEntries(own))
      },
    )

    test.each([
      ['replace', 'tenant=acme'],
      ['keep', 'mine=1'],
    ] as const)('to %s: baggage that the app has set itself', async (headers, arrives) => {
      record()
      const { url, requests } = await served()
      const ask = await traced({ headers })
      const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
      await context.with(propagation.setBaggage(context.active(), baggage), () =>
        read(ask({ url, headers: { baggage: 'mine=1' } })),
      )
      const [request] = requests as [(typeof requests)[0]]
      expect(valuesOf(request, 'baggage')).toEqual([arrives])
      expect(valuesOf(request, 'traceparent')).toHaveLength(1)
    })

    test.each<[string, (url: string) => unknown]>([
      ['the beginning of a URL', (url) => `${url}/ours`],
      ['a list of beginnings, one of them a scheme', (url) => ['https:', `${url}/ours`]],
      ['a RegExp', () => /\/ours\//],
      ['a list of both', () => ['https://api.example.com/', /\/ours\//]],
      ['a function of the URL', (url) => (asked: string) => asked === `${url}/ours/a`],
    ])('go to nobody but those named by %s, and the span is made all the same', async (_form, match) => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced({ propagateTo: match(url) as string })
      await read(ask({ url: `${url}/ours/a` }))
      await read(ask({ url: `${url}/theirs`, headers: { traceparent: FOREIGN } }))
      await recording.all(2)
      expect(requests.map((request) => valuesOf(request, 'traceparent'))).toEqual([
        [traceparentOf(recording.spans[0])],
        [FOREIGN],
      ])
    })

    test('of a request that is ignored carry the trace of its caller', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced({ ignore: /\/stock/ })
      await span('caller', () => read(ask({ url: `${url}/stock` })))
      const [caller] = await recording.all(1)
      expect(valuesOf(requests[0] as never, 'traceparent')).toEqual([traceparentOf(caller)])
    })

    test('hold nothing of ours where tracing is suppressed, as in an exporter', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced()
      const SUPPRESS = Symbol.for('OpenTelemetry SDK Context Key SUPPRESS_TRACING')
      await context.with(context.active().setValue(SUPPRESS, true), () => read(ask({ url })))
      expect(recording.spans).toEqual([])
      expect(valuesOf(requests[0] as never, 'traceparent')).toEqual([])
    })

    test('that a propagator of the app makes and nobody can send cost themselves, not the request', async () => {
      const propagator = {
        inject: (_from: unknown, carrier: object) =>
          void Object.assign(carrier, { 'x-trace': 'a\nb', 'x-trace-id': '7' }),
        extract: <C>(into: C) => into,
        fields: () => [],
      }
      record({ propagator })
      const { url, requests } = await served()
      const ask = await traced()
      expect(await read(ask({ url }))).toBe('hello')
      expect(valuesOf(requests[0] as never, 'x-trace-id')).toEqual(['7'])
    })
  })
}

function entriesOf(headers: unknown): unknown[] {
  return Symbol.iterator in (headers as object)
    ? [...(headers as Iterable<unknown>)]
    : Object.entries(headers as object)
}
