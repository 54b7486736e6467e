import {
  context,
  createContextKey,
  propagation,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  trace,
  type Span,
} from '@opentelemetry/api'
import type { RPCMetadata } from '@opentelemetry/core'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'
import { endRequest, recordError, traceRequest, type StartOptions } from '@throughline/core'
import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { randomIds } from '../../packages/core/src/ids.ts'
import { ask } from '../contract/server.ts'
import { signal } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { said } from './engine.ts'
import { serve, spanOf } from './served.ts'

/** A request that comes by no connection, as those that tests and gateways make up, and fails. */
function failMadeUp(handle: () => unknown = () => {}) {
  const request = new IncomingMessage(new Socket())
  const response = new ServerResponse(request)
  traceRequest(request, response, handle)
  response.writeHead(500).end()
  endRequest(request)
}

test('a propagator that throws costs a request its parent, and not its span', async () => {
  const reports = said()
  const recording = record({
    propagator: {
      inject() {},
      extract(into, carrier) {
        JSON.parse((carrier as Record<string, string>)['x-trace'] ?? '{}')
        return into
      },
      fields: () => ['x-trace'],
    },
  })
  const serving = await serve((request, response) => traceRequest(request, response, () => response.end()))
  await ask(serving, '/', { headers: { 'x-trace': '{' } })
  await ask(serving, '/')
  const spans = await recording.all(2)
  expect(spans.map(({ parentSpanContext }) => parentSpanContext)).toEqual([undefined, undefined])
  expect(reports.lines).toEqual([expect.stringContaining('which begins a trace of its own')])
})

test.each([undefined, null, 'text', {}])(
  'a propagator that answers %s in place of a context costs no more',
  async (answer) => {
    const reports = said()
    const recording = record({
      propagator: { inject() {}, extract: () => answer as never, fields: () => [] },
    })
    const serving = await serve((request, response) => traceRequest(request, response, () => response.end()))
    await ask(serving, '/')
    expect(await recording.all(1)).toMatchObject([{ kind: SpanKind.SERVER }])
    expect(reports.lines).toEqual([expect.stringContaining('which begins a trace of its own')])
  },
)

test.each<[string, StartOptions, string]>([
  ['is said to be random', {}, '02'],
  ['nothing is said of where ids are of the app', { idGenerator: { ...randomIds } }, '00'],
])(
  'a request that is ignored, and brings no trace, begins one whose id %s',
  async (_what, options, flags) => {
    record(options)
    const carrier: Record<string, string> = {}
    const serving = await serve((request, response) =>
      traceRequest(
        request,
        response,
        () => {
          propagation.inject(context.active(), carrier)
          response.end()
        },
        { ignore: '/' },
      ),
    )
    await ask(serving, '/')
    expect(carrier['traceparent']).toMatch(new RegExp(`^00-[0-9a-f]{32}-[0-9a-f]{16}-${flags}$`))
  },
)

describe('the parent', () => {
  test('is not what was current when the server was made', async () => {
    const recording = record()
    const serving = await trace.getTracer('app').startActiveSpan('boot', async (boot) => {
      const made = await serve((request, response) => traceRequest(request, response, () => response.end()))
      boot.end()
      return made
    })
    await ask(serving, '/')
    const [, span] = await recording.all(2)
    expect(span?.kind).toBe(SpanKind.SERVER)
    expect(span?.parentSpanContext).toBeUndefined()
  })

  test('is not the request that has let this one in, and neither is its baggage', async () => {
    const recording = record()
    let letIn: (() => void) | undefined
    const waits = signal()
    const seen: unknown[] = []
    const serving = await serve((request, response) => {
      const handle = () =>
        traceRequest(request, response, () => {
          seen.push(propagation.getActiveBaggage()?.getEntry('tenant')?.value)
          letIn?.()
          response.end()
        })
      if (request.url === '/other') return handle()
      // In front of the tracing there is a queue, which the other request releases.
      letIn = () => {
        letIn = undefined
        handle()
      }
      waits.give()
    })
    const first = ask(serving, '/')
    await waits.given
    await Promise.all([first, ask(serving, '/other', { headers: { baggage: 'tenant=acme' } })])
    const spans = await recording.all(2)
    expect(seen).toEqual(['acme', undefined])
    expect(spans.map((span) => span.parentSpanContext)).toEqual([undefined, undefined])
  })
})

describe('where the official HTTP instrumentation has made the span', () => {
  const key = createContextKey('OpenTelemetry SDK Context Key RPC_METADATA')

  /** Handles a request in the context that the official instrumentation leaves. */
  function inTheirs(response: ServerResponse, handle: (theirs: Span) => void) {
    const official = trace.getTracer('official').startSpan('GET', { kind: SpanKind.SERVER })
    response.on('close', () => official.end())
    const metadata = { type: 'http', span: official }
    const scope = trace.setSpan(context.active(), official).setValue(key, metadata)
    context.with(scope, () => handle(official))
  }

  test('that one is enriched, and there is no second', async () => {
    const recording = record()
    const inside: unknown[] = []
    let theirs: Span | undefined
    const serving = await serve((request, response) =>
      inTheirs(response, (official) => {
        theirs = official
        traceRequest(
          request,
          response,
          () => {
            inside.push(trace.getActiveSpan())
            recordError(request, new RangeError('it broke'))
            response.writeHead(500).end()
          },
          { attributes: () => ({ 'app.tenant': 'acme' }) },
        )
      }),
    )
    await ask(serving, '/')
    const [span] = await recording.all(1)
    expect(inside).toEqual([theirs])
    expect(span?.instrumentationScope.name).toBe('official')
    expect(span?.attributes).toEqual({ 'app.tenant': 'acme', 'error.type': 'RangeError' })
    expect(span?.events).toHaveLength(1)
  })

  test('a request that is ignored has that one alone, with nothing of ours, and our clients have none', async () => {
    const recording = record()
    let isIgnored: unknown
    const serving = await serve((request, response) =>
      inTheirs(response, () =>
        traceRequest(
          request,
          response,
          () => {
            isIgnored = context.active().getValue(createContextKey('throughline ignored'))
            response.end()
          },
          { ignore: '/', attributes: () => ({ 'app.tenant': 'acme' }) },
        ),
      ),
    )
    await ask(serving, '/')
    const [span] = await recording.all(1)
    expect(span?.instrumentationScope.name).toBe('official')
    expect(span?.attributes).toEqual({})
    expect(isIgnored).toBe(true)
  })

  test('that one is the span of its own request alone: another that comes in there has one, in a trace of its own', async () => {
    const recording = record()
    const serving = await serve((request, response) =>
      inTheirs(response, () =>
        traceRequest(request, response, () => {
          failMadeUp()
          response.end()
        }),
      ),
    )
    await ask(serving, '/')
    const spans = await recording.all(2)
    expect(spans.map((span) => [span.instrumentationScope.name, span.status.code])).toEqual([
      ['@throughline/core', SpanStatusCode.ERROR],
      ['official', SpanStatusCode.UNSET],
    ])
    expect(spans[0]?.parentSpanContext).toBeUndefined()
  })

  test('that one says the status by its own names, also of an answer that is cut off', async () => {
    const recording = record()
    const serving = await serve((request, response) =>
      inTheirs(response, () =>
        traceRequest(request, response, () => response.write('half', () => response.destroy())),
      ),
    )
    await fetch(`http://127.0.0.1:${serving.port}/`)
      .then((answer) => answer.text())
      .catch(() => {})
    const [span] = await recording.all(1)
    expect(span?.attributes).toEqual({ 'error.type': 'aborted' })
    expect(span?.status.code).toBe(2)
  })
})

describe('the official RPC metadata', () => {
  const key = createContextKey('OpenTelemetry SDK Context Key RPC_METADATA')
  const metadata = (of = context.active()) => of.getValue(key) as RPCMetadata | undefined

  test('of a request has its span, whatever is current by now, and what others write there changes nothing', async () => {
    const found: unknown[] = []
    const span = await spanOf((_request, response) => {
      const own = metadata()
      found.push(own?.type, own?.span.spanContext().spanId)
      context.with(trace.deleteSpan(context.active()), () => found.push(metadata() === own))
      found.push(metadata(context.active().deleteValue(key)))
      if (own !== undefined) own.route = '/theirs'
      response.end()
    })
    expect(found).toEqual(['http', span.spanContext().spanId, true, undefined])
    expect(span.name).toBe('GET')
    expect(span.attributes).not.toHaveProperty('http.route')
  })

  test.each([
    ['nobody samples', { sampling: 0 }, {}],
    ['is ignored', {}, { ignore: ['/'] }],
  ])('is not there of a request that %s', async (_title, config, options) => {
    record(config)
    const found: unknown[] = []
    const serving = await serve((request, response) =>
      traceRequest(request, response, () => response.end(String(found.push(metadata()))), options),
    )
    await ask(serving, '/')
    expect(found).toEqual([undefined])
  })

  test('has our span on the official SDK, and a request that this one makes up has a span of its own', async () => {
    const exporter = new InMemorySpanExporter()
    const sdk = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    sdk.register()
    onTestFinished(async () => {
      await sdk.shutdown()
      for (const api of [trace, context, propagation]) api.disable()
    })
    const found: unknown[] = []
    const serving = await serve((request, response) =>
      traceRequest(request, response, () => {
        found.push(metadata()?.span.spanContext().spanId)
        failMadeUp(() => found.unshift(metadata()?.span.spanContext().spanId, propagation.getActiveBaggage()))
        response.end()
      }),
    )
    await ask(serving, '/', {
      headers: { baggage: 'tenant=acme', traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` },
    })
    await expect.poll(() => exporter.getFinishedSpans()).toHaveLength(2)
    const [inner, outer] = exporter.getFinishedSpans().toSorted((a) => (a.parentSpanContext ? 1 : -1))
    expect(found).toEqual([inner?.spanContext().spanId, undefined, outer?.spanContext().spanId])
    expect([inner?.status.code, outer?.status.code]).toEqual([SpanStatusCode.ERROR, SpanStatusCode.UNSET])
  })
})

test('a context manager of the app’s without a span in it keeps its values', async () => {
  const recording = record()
  const key = createContextKey('tenant')
  const seen: unknown[] = []
  const serving = await serve((request, response) =>
    context.with(ROOT_CONTEXT.setValue(key, 'acme'), () =>
      traceRequest(request, response, () => {
        seen.push(context.active().getValue(key), propagation.getActiveBaggage())
        response.end()
      }),
    ),
  )
  await ask(serving, '/')
  await recording.all(1)
  expect(seen).toEqual(['acme', undefined])
})
