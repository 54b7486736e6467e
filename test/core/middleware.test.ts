import {
  context,
  createContextKey,
  SpanKind,
  trace,
  type ProxyTracerProvider,
  type Tracer,
} from '@opentelemetry/api'
import { middlewareSpans, span as manualSpan, traceRequest, type BeginLayer } from '@throughline/core'
import { createServer } from 'node:http'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ask, listening } from '../contract/server.ts'
import { record } from '../recording.ts'
import { said } from './engine.ts'

const SCOPE = { name: '@throughline/test', version: '1.2.3' }

function begins(wanted: Parameters<typeof middlewareSpans>[1] = true): BeginLayer {
  const begin = middlewareSpans(SCOPE, wanted)
  if (begin === undefined) throw new Error('there are to be spans')
  return begin
}

const currentId = () => trace.getActiveSpan()?.spanContext().spanId

describe('spans of middleware', () => {
  test.each([undefined, false] as const)('are not made for %j', (wanted) => {
    expect(middlewareSpans(SCOPE, wanted)).toBeUndefined()
  })

  test('are children of the current span, of kind INTERNAL, by the package that makes them', async () => {
    const recording = record()
    const begin = begins()
    manualSpan('request', () => begin('session', { 'app.layer': 'session' })?.end())
    const [layer, request] = await recording.all(2)
    expect(layer).toMatchObject({
      name: 'session',
      kind: SpanKind.INTERNAL,
      status: { code: 0 },
      attributes: { 'app.layer': 'session' },
      instrumentationScope: SCOPE,
    })
    expect(layer?.parentSpanContext?.spanId).toBe(request?.spanContext().spanId)
  })

  test('are current within the layer and nowhere else: what it hands the request on to is beside it', async () => {
    const recording = record()
    const begin = begins()
    const seen: unknown[] = []
    await manualSpan('request', async () => {
      const outer = begin('outer')
      await outer?.within(async () => {
        seen.push(currentId())
        await manualSpan('query', async () => {})
        await outer.outside(async () => {
          seen.push(currentId())
          const inner = begin('inner')
          inner?.end()
        })
        seen.push(currentId())
      })
      outer?.end()
      seen.push(currentId())
    })
    const spans = await recording.all(4)
    const ids = Object.fromEntries(spans.map((each) => [each.name, each.spanContext().spanId] as const))
    const parents = Object.fromEntries(
      spans.map((each) => [each.name, each.parentSpanContext?.spanId] as const),
    )
    expect(seen).toEqual([ids['outer'], ids['request'], ids['outer'], ids['request']])
    expect(parents).toEqual({
      query: ids['outer'],
      inner: ids['request'],
      outer: ids['request'],
      request: undefined,
    })
  })

  test('last until their end, which comes once: later ones change nothing', async () => {
    const recording = record()
    const begin = begins()
    manualSpan('request', () => {
      const layer = begin('session')
      layer?.end()
      layer?.end(new TypeError('too late'))
    })
    const [layer] = await recording.all(2)
    expect(layer?.status).toEqual({ code: 0 })
  })

  test.each([
    [new TypeError('no such thing'), 'TypeError'],
    ['a text', '_OTHER'],
    [0, '_OTHER'],
  ])('that end with %j are failed, without the exception, which the SERVER span has', async (error, type) => {
    const recording = record()
    const begin = begins()
    manualSpan('request', () => begin('session')?.end(error))
    const [layer] = await recording.all(2)
    expect(layer?.status).toEqual({ code: 2 })
    expect(layer?.attributes['error.type']).toBe(type)
    expect(layer?.events).toEqual([])
  })

  test.each([null, undefined])('that end with %j are not failed', async (nothing) => {
    const recording = record()
    const begin = begins()
    manualSpan('request', () => begin('session')?.end(nothing))
    const [layer] = await recording.all(2)
    expect(layer?.status).toEqual({ code: 0 })
  })

  test('return what the layer returns, and throw what it throws', async () => {
    const recording = record()
    const begin = begins()
    const bug = new RangeError('it broke')
    const fault = () => {
      throw bug
    }
    manualSpan('request', () => {
      const layer = begin('session')
      const value = {}
      expect(layer?.within(() => value)).toBe(value)
      expect(layer?.outside(() => value)).toBe(value)
      expect(() => layer?.within(fault)).toThrow(bug)
      expect(() => layer?.outside(fault)).toThrow(bug)
      layer?.end()
    })
    await recording.all(2)
  })
})

test('what a layer hands the request on to runs in the span of the app, where the layer has begun one', async () => {
  const recording = record()
  const begin = begins()
  const seen: unknown[] = []
  manualSpan('request', () => {
    const layer = begin('session')
    layer?.within(() =>
      manualSpan('of the app', (own) => {
        layer.outside(() => seen.push(currentId() === own.spanContext().spanId))
      }),
    )
    layer?.end()
  })
  await recording.all(3)
  expect(seen).toEqual([true])
})

describe('spans of slow middleware', () => {
  test('are made when it is known to be slow, and begin where it began', async () => {
    const recording = record()
    const begin = begins({ slowerThan: 0 })
    const seen: unknown[] = []
    manualSpan('request', () => {
      const before = performance.now()
      const layer = begin('session')
      layer?.within(() => seen.push(currentId()))
      layer?.outside(() => seen.push(currentId()))
      while (performance.now() - before < 2);
      layer?.end(new TypeError('no'))
      layer?.end()
    })
    const [layer, request] = await recording.all(2)
    const requestId = request?.spanContext().spanId
    expect(seen).toEqual([requestId, requestId])
    expect(layer).toMatchObject({ name: 'session', status: { code: 2 }, kind: SpanKind.INTERNAL })
    expect(layer?.parentSpanContext?.spanId).toBe(requestId)
    const ms = ([seconds, nanoseconds]: [number, number] = [0, 0]) => seconds * 1000 + nanoseconds / 1e6
    // It began right at the beginning of the request, and not when it had ended.
    expect(ms(layer?.duration)).toBeGreaterThan(1)
    expect(ms(layer?.duration)).toBeLessThanOrEqual(ms(request?.duration))
  })

  test('are not made of what was fast', async () => {
    const recording = record()
    const begin = begins({ slowerThan: 60_000 })
    manualSpan('request', () => begin('session')?.end())
    const [request] = await recording.all(1)
    expect(request?.name).toBe('request')
  })

  test('are below the request also when they end in the context of another', async () => {
    const recording = record()
    const begin = begins({ slowerThan: 0 })
    let layer: ReturnType<BeginLayer>
    manualSpan('first', () => {
      layer = begin('session')
      manualSpan('second', () => layer?.end())
    })
    const spans = await recording.all(3)
    const first = spans.find(({ name }) => name === 'first')
    expect(spans[0]?.name).toBe('session')
    expect(spans[0]?.parentSpanContext?.spanId).toBe(first?.spanContext().spanId)
  })
})

describe('there is no span of middleware', () => {
  test('outside of any', () => {
    const recording = record()
    expect(begins()('session')).toBeUndefined()
    expect(recording.spans).toEqual([])
  })

  test('below one that is not sampled', () => {
    const recording = record({ sampling: 0 })
    const made = manualSpan('request', () => begins()('session'))
    expect(made).toBeUndefined()
    expect(recording.spans).toEqual([])
  })

  test('in a request that the app ignores, even under a span that comes from outside', async () => {
    const recording = record()
    const begin = begins()
    const made: unknown[] = []
    const options = { ignore: '/' }
    const serving = await listening(
      createServer((request, response) =>
        traceRequest(
          request,
          response,
          () => {
            made.push(begin('session'))
            const outside = trace.getTracer('app').startSpan('by the app')
            context.with(trace.setSpan(context.active(), outside), () => made.push(begin('session')))
            outside.end()
            response.end()
          },
          options,
        ),
      ),
    )
    onTestFinished(() => serving.close())
    // Sampled, so that the span by the app is recorded.
    const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
    await ask(serving, '/', { headers: { traceparent } })
    expect(made).toEqual([undefined, undefined])
    expect(recording.spans.map(({ name }) => name)).toContain('by the app')
    expect(recording.spans.filter(({ name }) => name === 'session')).toEqual([])
  })
})

test('a tracer that throws is reported once, and the app goes on without spans of middleware', () => {
  const reports = said()
  const recording = record()
  const begin = begins()
  manualSpan('request', () => {
    const parent = trace.getActiveSpan()
    const fault = (): never => {
      throw new Error('a bug of the tracer’s')
    }
    const proxy = trace.getTracerProvider() as ProxyTracerProvider
    const engine = proxy.getDelegate()
    proxy.setDelegate({ getTracer: () => ({ startSpan: fault }) as unknown as Tracer })
    expect(begin('session')).toBeUndefined()
    const slow = begins({ slowerThan: 0 })('session')
    expect(() => slow?.end()).not.toThrow()
    proxy.setDelegate(engine)
    expect(parent?.isRecording()).toBe(true)
  })
  expect(recording.spans.map(({ name }) => name)).toEqual(['request'])
  expect(reports.lines).toEqual([expect.stringContaining('a middleware could not be traced')])
})

test('values of the app’s context are there within and outside', async () => {
  const recording = record()
  const begin = begins()
  const key = createContextKey('tenant')
  const seen: unknown[] = []
  manualSpan('request', () =>
    context.with(context.active().setValue(key, 'acme'), () => {
      const layer = begin('session')
      layer?.within(() => seen.push(context.active().getValue(key)))
      layer?.outside(() => seen.push(context.active().getValue(key)))
      layer?.end()
    }),
  )
  await recording.all(2)
  expect(seen).toEqual(['acme', 'acme'])
})
