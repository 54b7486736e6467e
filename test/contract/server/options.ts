import {
  context,
  createTraceState,
  INVALID_SPAN_CONTEXT,
  propagation,
  trace,
  type SpanContext,
  type TextMapPropagator,
} from '@opentelemetry/api'
import { span as manualSpan, traceContextPropagator } from '@throughline/core'
import { once } from 'node:events'
import { type IncomingMessage } from 'node:http'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import { TRACE_ID, PARENT_ID, TRACEPARENT, ok, type Options, type Contract } from './app.ts'
import { asking, ask } from './client.ts'
import { theOnly, signal, turn, complaints } from './watch.ts'

/** What the app asked for. */
export function takesOptions({ name, gaps, served, spanOf }: Contract): void {
  describe(`${name}: requests to ignore`, () => {
    /** What would go on from an ignored request that has come with these headers. */
    async function sentOn(headers: Record<string, string>): Promise<Record<string, string>> {
      const sent: Record<string, string> = {}
      const serving = await served(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        { ignore: '/' },
      )
      await ask(serving, '/', { headers })
      return sent
    }

    test.each<[string, NonNullable<Options['ignore']>]>([
      ['a string', '/health'],
      ['a RegExp', /^\/hea/],
      ['a list', ['/other', /lth$/]],
      ['a function', ({ url }) => url?.startsWith('/health') === true],
    ])('by %s have no span; others have', async (_title, ignore) => {
      const recording = record()
      const serving = await served({ routes: { 'GET /health': ok, 'GET /': ok } }, { ignore })
      expect((await ask(serving, '/health?deep=1')).status).toBe(200)
      await ask(serving, '/')
      const span = await theOnly(recording)
      expect(span.attributes['url.path']).toBe('/')
    })

    test('pass on what came in, as it came, also from listeners', async () => {
      const recording = record()
      const headers = { traceparent: TRACEPARENT, tracestate: 'a=1', baggage: 'user=42' }
      const inHandler: Record<string, string> = {}
      const inListener: Record<string, string> = {}
      const arrived = signal()
      const serving = await served(
        async ({ request, answer }) => {
          request.on('data', () => propagation.inject(context.active(), inListener))
          arrived.give()
          await once(request, 'end')
          propagation.inject(context.active(), inHandler)
          answer(200)
        },
        { ignore: '/' },
      )
      const asked = asking(serving, '/', { method: 'POST', headers }, '')
      asked.flushHeaders()
      await arrived.given
      asked.end('what comes later, from the socket')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'close')
      expect(inHandler).toEqual(headers)
      expect(inListener).toEqual(headers)
      expect(recording.spans).toEqual([])
    })

    test.each([
      ['flags that nobody knows, and blanks', `${TRACEPARENT.slice(0, -2)}ff`, 'foo=1 , bar=2'],
      [
        'more than 4096 characters',
        TRACEPARENT,
        Array.from({ length: 32 }, (_, i) => `k${i}=${'v'.repeat(190)}`).join(),
      ],
      ['the same key twice', TRACEPARENT, 'a=1,b=2,a=3'],
      ['no list', TRACEPARENT, undefined],
    ])('leave the headers as they came, to the letter: %s', async (_title, traceparent, tracestate) => {
      const recording = record()
      const given = tracestate === undefined ? { traceparent } : { traceparent, tracestate }
      const sent: Record<string, string> = {}
      const inside: Record<string, string> = {}
      const serving = await served(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          // Who takes part after all says so.
          manualSpan('inside', () => propagation.inject(context.active(), inside))
          answer(200)
        },
        { ignore: '/' },
      )
      await ask(serving, '/', { headers: given })
      expect(sent).toEqual(given)
      expect(inside['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]$/)
      expect(inside['traceparent']?.slice(36, 52)).not.toBe(PARENT_ID)
      await recording.all(1)
    })

    test.each([
      ['a version of the future', `cc${TRACEPARENT.slice(2)}-more`, 'foo=1', 'foo=1'],
      ['a list that nobody can read', TRACEPARENT, 'a=1,B=2', undefined],
      ['an empty list', TRACEPARENT, ' ', undefined],
      [
        'more than the next server may take',
        TRACEPARENT,
        Array.from({ length: 32 }, (_, i) => `k${i}=${'v'.repeat(252)}`).join(),
        expect.stringMatching(/^k.{3000,4095}$/),
      ],
    ])('pass on of %s what we can say', async (_title, traceparent, tracestate, left) => {
      record()
      const sent = await sentOn({ traceparent, tracestate })
      expect(sent['traceparent']).toBe(TRACEPARENT)
      expect(sent['tracestate']).toEqual(left)
    })

    test.each<[string, Partial<SpanContext>, Record<string, string>]>([
      [
        'another trace',
        { traceId: 'c'.repeat(32) },
        { traceparent: TRACEPARENT.replace(TRACE_ID, 'c'.repeat(32)) },
      ],
      [
        'another parent',
        { spanId: 'd'.repeat(16) },
        { traceparent: TRACEPARENT.replace(PARENT_ID, 'd'.repeat(16)) },
      ],
      ['other flags', { traceFlags: 0 }, { traceparent: `${TRACEPARENT.slice(0, -2)}00` }],
      ['another list', { traceState: createTraceState('b=2') }, { tracestate: 'b=2' }],
    ])('pass on what a propagator of the app has read: %s', async (_title, changed, expected) => {
      const own: TextMapPropagator = {
        ...traceContextPropagator,
        extract(into, carrier, getter) {
          const extracted = traceContextPropagator.extract(into, carrier, getter)
          const read = trace.getSpanContext(extracted) ?? INVALID_SPAN_CONTEXT
          return trace.setSpanContext(extracted, { ...read, ...changed })
        },
      }
      record({ propagator: own })
      const sent = await sentOn({ traceparent: TRACEPARENT, tracestate: 'a=1 , b=2' })
      expect(sent).toEqual({ traceparent: TRACEPARENT, tracestate: 'a=1,b=2', ...expected })
    })

    test('tell those that they call to record nothing, when nothing came in', async () => {
      const recording = record()
      const sent = await sentOn({})
      expect(sent['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]$/)
      expect(recording.spans).toEqual([])
    })

    test('have no span of a second mount either, which is not asked', async () => {
      const recording = record()
      let asked = 0
      const ignore = () => {
        asked += 1
        return asked === 1
      }
      await ask(await served(ok, { ignore }, 2), '/')
      expect(recording.spans).toEqual([])
      expect(asked).toBe(1)
    })
  })

  describe(`${name}: options`, () => {
    test('attributes are asked at the end, and added', async () => {
      let user = 'nobody'
      const span = await spanOf(
        async ({ answer }) => {
          await turn()
          user = 'ann'
          answer(200)
        },
        '/?a=1',
        {},
        { attributes: ({ url }) => ({ 'app.user': user, 'app.url': url ?? '' }) },
      )
      expect(span.attributes).toMatchObject({ 'app.user': 'ann', 'app.url': '/?a=1' })
    })

    test('spanName has the last word', async () => {
      const span = await spanOf(ok, '/?op=list', {}, { spanName: ({ url }) => `custom ${url}` })
      expect(span.name).toBe('custom /?op=list')
    })

    test('capture records the headers that it names, in any case, and no others', async () => {
      const span = await spanOf(
        ({ answer }) => answer(200, 'ok'),
        '/',
        { headers: { 'x-request-id': 'abc', authorization: 'secret' } },
        {
          capture: {
            requestHeaders: ['X-Request-Id', 'x-missing'],
            responseHeaders: ['Content-Type', 'x-none'],
          },
        },
      )
      const headers = Object.entries(span.attributes).filter(([key]) => key.includes('.header.'))
      expect(Object.fromEntries(headers)).toEqual({
        'http.request.header.x-request-id': ['abc'],
        'http.response.header.content-type': [expect.stringMatching(/^text\//)],
      })
    })

    test('capture takes options that nobody can change, and a list that is not given', async () => {
      const recording = record()
      const capture = Object.freeze({ requestHeaders: ['x-tenant'], responseHeaders: undefined } as const)
      const serving = await served(ok, Object.freeze({ capture }))
      await ask(serving, '/', { headers: { 'x-tenant': 'acme' } })
      expect((await theOnly(recording)).attributes['http.request.header.x-tenant']).toEqual(['acme'])
    })

    test('capture has the headers that the app set, one value for each', async () => {
      const span = await spanOf(
        ({ response, answer }) => {
          response.setHeader('x-count', 3)
          response.setHeader('x-many', ['a', 'b'])
          // Node sends the text of anything.
          response.setHeader('x-all', ['a', 1] as string[])
          response.setHeader('x-hit', true as unknown as string)
          answer(200, 'ok')
        },
        '/',
        {},
        { capture: { responseHeaders: ['x-count', 'x-many', 'x-all', 'x-hit'] } },
      )
      expect(span.attributes).toMatchObject({
        'http.response.header.x-count': ['3'],
        'http.response.header.x-many': ['a', 'b'],
        'http.response.header.x-all': ['a', '1'],
        'http.response.header.x-hit': ['true'],
      })
    })

    test("inbound 'restart' begins a trace that is linked to what came in", async () => {
      const span = await spanOf(
        ok,
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1' } },
        { inbound: 'restart' },
      )
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.spanContext().traceId).not.toBe(TRACE_ID)
      expect(span.spanContext().traceState).toBeUndefined()
      expect(span.links).toMatchObject([{ context: { traceId: TRACE_ID, spanId: PARENT_ID } }])
    })

    test("inbound 'restart' of nothing is a trace without links", async () => {
      expect((await spanOf(ok, '/', {}, { inbound: 'restart' })).links).toEqual([])
    })

    test("inbound 'ignore' begins a trace that knows nothing of what came in", async () => {
      const sent: Record<string, string> = {}
      const span = await spanOf(
        ({ answer }) => {
          propagation.inject(context.active(), sent)
          answer(200)
        },
        '/',
        { headers: { traceparent: TRACEPARENT, tracestate: 'a=1', baggage: 'user=42' } },
        { inbound: 'ignore' },
      )
      expect(span.parentSpanContext).toBeUndefined()
      expect(span.links).toEqual([])
      expect(sent).toEqual({
        traceparent: `00-${span.spanContext().traceId}-${span.spanContext().spanId}-03`,
      })
    })

    test('inbound as a function decides for each request', async () => {
      const recording = record()
      const serving = await served(ok, {
        inbound: ({ headers }) => (headers['x-internal'] === 'yes' ? 'continue' : 'restart'),
      })
      await ask(serving, '/', { headers: { traceparent: TRACEPARENT } })
      await ask(serving, '/', { headers: { traceparent: TRACEPARENT, 'x-internal': 'yes' } })
      const [outside, inside] = await recording.all(2)
      expect(outside?.parentSpanContext).toBeUndefined()
      expect(outside?.links).toHaveLength(1)
      expect(inside?.parentSpanContext?.spanId).toBe(PARENT_ID)
    })

    test('inbound as a function that answers neither of them continues the trace, and that is said once', async () => {
      const said = complaints()
      const recording = record()
      const answers = ['Continue', null]
      const serving = await served(ok, { inbound: () => answers.shift() as never })
      for (let i = 0; i < 2; i += 1) await ask(serving, '/', { headers: { traceparent: TRACEPARENT } })
      const spans = await recording.all(2)
      expect(spans.map((span) => span.parentSpanContext?.spanId)).toEqual([PARENT_ID, PARENT_ID])
      expect(said).toEqual([expect.stringContaining("inbound: expected 'continue', 'restart' or 'ignore'")])
    })

    test.each<[string, unknown[], RegExp]>([
      [
        'attributes',
        ['oops', [['app.user', 'ann']], 7],
        /attributes: expected an object of attributes, received a string, .*; for example/,
      ],
      ['spanName', ['', 7, {}], /spanName: expected a text that is not empty, received '', .*; for example/],
    ])(
      '%s as a function that answers something else is told of once, and the span is as ever',
      async (option, answers, told) => {
        const said = complaints()
        const recording = record()
        await ask(await served(ok), '/')
        const left = [...answers]
        const serving = await served(ok, { [option]: () => left.shift() })
        for (const _ of answers) await ask(serving, '/')
        const [usual, ...spans] = await recording.all(1 + answers.length)
        for (const span of spans) {
          expect(span.name).toBe(usual?.name)
          expect(Object.keys(span.attributes)).toEqual(Object.keys(usual?.attributes ?? {}))
        }
        expect(said).toEqual([expect.stringMatching(told)])
      },
    )

    test.each([undefined, null])(
      'attributes and spanName may answer %s, for nothing of their own',
      async (none) => {
        const said = complaints()
        const span = await spanOf(
          ok,
          '/',
          {},
          { attributes: () => none as never, spanName: () => none as never },
        )
        expect(span.name).toMatch(/^GET/)
        expect(said).toEqual([])
      },
    )

    test('of a second mount are not heard where they differ, and that is said once', async () => {
      const said = complaints()
      const recording = record()
      const serving = await served(ok, { capture: {}, spanName: () => 'first' }, 3, {
        capture: {},
        spanName: () => 'second',
        ignore: '/',
      })
      for (let i = 0; i < 2; i += 1) await ask(serving, '/')
      expect((await recording.all(2)).map((span) => span.name)).toEqual(['first', 'first'])
      expect(said).toEqual([
        expect.stringMatching(
          /expected the options of the first call, for those hold, received others: spanName, ignore; .*; for example /,
        ),
      ])
    })

    test('of a second mount may be none, or the same', async () => {
      const said = complaints()
      const recording = record()
      const options = { spanName: () => 'first', trustProxy: true }
      for (const later of [{}, { ignore: undefined }, options])
        await ask(await served(ok, options, 2, later), '/')
      await recording.all(3)
      expect(said).toEqual([])
    })

    test('serverTiming tells the client which span was its own', async () => {
      const recording = record()
      const serving = await served(
        ({ response, answer }) => {
          response.appendHeader('Server-Timing', 'db;dur=53')
          answer(200, 'ok')
        },
        { serverTiming: true },
      )
      const { headers } = await ask(serving, '/')
      const { traceId, spanId } = (await theOnly(recording)).spanContext()
      expect(headers['server-timing']).toBe(`db;dur=53, trace;desc=00-${traceId}-${spanId}-03`)
    })

    test('functions that throw are reported once each, and change nothing', async () => {
      const said = complaints()
      const recording = record()
      const fault = (): never => {
        throw new Error('a bug of the app’s')
      }
      const serving = await served(ok, { ignore: fault, attributes: fault, spanName: fault, inbound: fault })
      for (let i = 0; i < 2; i += 1) {
        expect(await ask(serving, '/', { headers: { traceparent: TRACEPARENT } })).toMatchObject({
          status: 200,
          body: 'ok',
        })
      }
      const spans = await recording.all(2)
      for (const span of spans) {
        expect(span.name).toBe(gaps.router ? 'GET' : 'GET /')
        expect(span.parentSpanContext?.spanId).toBe(PARENT_ID)
      }
      expect(said.toSorted()).toEqual(
        ['attributes', 'ignore', 'inbound', 'spanName'].map((option) => expect.stringContaining(option)),
      )
    })

    test.each<[string, object, RegExp]>([
      [
        'unknown',
        { ignored: '/health' },
        /expected options among ignore, .* received an unknown one, "ignored"/,
      ],
      [
        'a wrong shape of ignore',
        { ignore: 7 },
        /expected ignore to be a function, .* received 7; example: \{ ignore: /,
      ],
      [
        'a wrong inbound',
        { inbound: 'stop' },
        /expected inbound to be 'continue', .* received "stop"; example: /,
      ],
      ['a wrong capture', { capture: ['x-id'] }, /expected capture to be .* received an array; example: /],
      [
        'a text for a switch',
        { trustProxy: 'yes' },
        /expected trustProxy to be true or false, received "yes"; example: /,
      ],
      [
        'a text for a function',
        { spanName: 'GET' },
        /expected spanName to be a function, received "GET"; example: /,
      ],
      [
        'an object for a function',
        { attributes: {} },
        /expected attributes to be a function, received an object/,
      ],
      [
        'a list with a number to ignore',
        { ignore: ['/a', 7] },
        /expected ignore to be a function, .* received an array with 7; example: /,
      ],
      [
        'what is no path to ignore',
        { ignore: 'health' },
        /expected ignore to be a function, a path from '\/' up to the query, .* received "health"; example: /,
      ],
      [
        'what is no path to ignore, in a list',
        { ignore: [/^\/a/, '/b', '*', 'https://api.example.com/health'] },
        /received an array with "https:\/\/api\.example\.com\/health"; example: /,
      ],
      [
        'a path with a query to ignore',
        { ignore: '/health?key=s3cret' },
        /up to the query, .* received "\/health\?REDACTED"; example: /,
      ],
      [
        'a header name that is none',
        { capture: { requestHeaders: 'x-id' } },
        /expected capture to be lists of header names, received an object with "requestHeaders": a string; example: /,
      ],
      [
        'unknown headers to capture',
        { capture: { responseHeaders: [], headers: ['x-id'] } },
        /expected capture to be lists of .* received an object with "headers": an array; example: /,
      ],
      ['a number for a switch', { serverTiming: 1 }, /expected serverTiming to be true or false, received 1/],
      [
        'a text for another switch',
        { activeRequests: 'yes' },
        /expected activeRequests to be true or false, received "yes"/,
      ],
      [
        'a wrong middlewareSpans',
        { middlewareSpans: { fasterThan: 3 } },
        // Unknown where there is no middleware.
        /expected (middlewareSpans to be .* received an object with "fasterThan": 3|options among .*"middlewareSpans"); example: /,
      ],
    ])(
      '%s: a TypeError says what was expected, what was received, and an example',
      async (_title, options, said) => {
        record()
        if (gaps.earlyChecks) {
          const serving = await served(ok, options as Options)
          expect(await ask(serving, '/')).toMatchObject({ status: 500, body: expect.stringMatching(said) })
          return
        }
        const failure = await served(ok, options as Options).catch((error: unknown) => error)
        expect(failure).toBeInstanceOf(TypeError)
        expect((failure as Error).message).toMatch(said)
        expect((failure as Error).message).toMatch(/^@throughline\//)
      },
    )
  })
}
