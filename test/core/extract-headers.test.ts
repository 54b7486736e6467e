import { readFileSync } from 'node:fs'
import {
  defaultTextMapGetter,
  propagation,
  ROOT_CONTEXT,
  trace,
  type Context,
  type TextMapPropagator,
} from '@opentelemetry/api'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { root } from '../../packages/core/src/context.ts'
import { b3Propagator, extractRequest, w3cPropagator } from '../../packages/core/src/propagation.ts'
import { said } from './engine.ts'

afterEach(() => propagation.disable())

type Headers = IncomingHttpHeaders

function extractHeaders(into: Context, headers: Headers): Context {
  return extractRequest(into, { headers } as IncomingMessage)
}

const { parse }: { parse: { id: string; in: { headers: [string, string][] } }[] } = JSON.parse(
  readFileSync(new URL('../vectors/trace-context.json', import.meta.url), 'utf8'),
)

const TRACEPARENT = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'

/** As Node has them: what comes twice is joined. */
function headersOf(fields: [name: string, value: string][]): Headers {
  const headers: Record<string, string> = {}
  for (const [name, value] of fields) {
    const key = name.toLowerCase()
    headers[key] = headers[key] === undefined ? value : `${headers[key]}, ${value}`
  }
  return headers
}

function told(context: Context): unknown {
  const spanContext = trace.getSpanContext(context)
  return {
    ...spanContext,
    traceState: spanContext?.traceState?.serialize(),
    baggage: propagation.getBaggage(context)?.getAllEntries(),
  }
}

describe("the headers of a request are read as W3C's propagator reads them", () => {
  const ODD: [id: string, headers: unknown][] = [
    ['none', {}],
    ['no headers at all', undefined],
    ['null', null],
    ['an empty traceparent', { traceparent: '' }],
    ['a list', { traceparent: [TRACEPARENT] }],
    ['two of a list', { traceparent: [TRACEPARENT, TRACEPARENT] }],
    ['a number', { traceparent: 1 }],
    ['a Buffer', { traceparent: Buffer.from(TRACEPARENT) }],
    ['a list of tracestate', { traceparent: TRACEPARENT, tracestate: ['a=1', 'b=2'] }],
    ['a tracestate alone', { tracestate: 'a=1' }],
    ['baggage', { traceparent: TRACEPARENT, baggage: 'tenant=acme' }],
    ['baggage alone', { baggage: 'tenant=acme' }],
    ['empty baggage', { traceparent: TRACEPARENT, baggage: '' }],
  ]

  test.each([...parse.map(({ id, in: { headers } }) => [id, headersOf(headers)] as const), ...ODD])(
    '%s',
    (_, headers) => {
      propagation.setGlobalPropagator(w3cPropagator)
      for (const into of [root, ROOT_CONTEXT]) {
        const expected = w3cPropagator.extract(into, headers, defaultTextMapGetter)
        const read = extractHeaders(into, headers as Headers)
        expect(told(read)).toEqual(told(expected))
        expect(read === into).toBe(expected === into)
      }
    },
  )

  const LATER = `cc${TRACEPARENT.slice(2)}-more`

  test.each([
    ['one header', ['traceparent', `${LATER}, `], true],
    ['one beside another', ['Traceparent', `${LATER}, `, 'x', 'traceparent'], true],
    ['two', ['traceparent', LATER, 'traceparent', ''], false],
    ['two in capitals', ['Traceparent', LATER, 'TRACEPARENT', ''], false],
    ['nobody knows how many', undefined, true],
    ['what is no list of names', [1, 2, 3], true],
  ])('where a later version is followed by a comma: %s', (_row, rawHeaders, isRead) => {
    propagation.setGlobalPropagator(w3cPropagator)
    for (const more of [{}, { baggage: 'tenant=acme' }]) {
      const headers = { traceparent: `${LATER}, `, ...more }
      const request = { headers, rawHeaders } as unknown as IncomingMessage
      const read = told(extractRequest(root, request)) as { traceId?: string; baggage?: unknown }
      expect(read.traceId !== undefined).toBe(isRead)
      expect(read.baggage !== undefined).toBe('baggage' in more)
    }
  })

  test('and nobody looks for more of them where it is as long as it should be', () => {
    propagation.setGlobalPropagator(w3cPropagator)
    const request = {
      headers: { traceparent: TRACEPARENT },
      get rawHeaders(): string[] {
        throw new Error('asked')
      },
    } as unknown as IncomingMessage
    expect(told(extractRequest(root, request))).toMatchObject({ traceId: expect.any(String) })
  })

  test('without the propagator, where there is no baggage', () => {
    propagation.setGlobalPropagator(w3cPropagator)
    const extract = vi.spyOn(w3cPropagator, 'extract')
    onTestFinished(() => extract.mockRestore())
    extractHeaders(root, { traceparent: TRACEPARENT, tracestate: 'a=1' })
    extractHeaders(root, {})
    expect(extract).not.toHaveBeenCalled()
    extractHeaders(root, { traceparent: TRACEPARENT, baggage: 'tenant=acme' })
    expect(extract).toHaveBeenCalledTimes(1)
  })

  test.each(['traceparent', 'tracestate', 'baggage'])('one that throws costs itself: %s', (broken) => {
    propagation.setGlobalPropagator(w3cPropagator)
    const reports = said()
    const headers = {
      traceparent: TRACEPARENT,
      tracestate: 'a=1',
      baggage: 'tenant=acme',
      get [broken](): string {
        throw new Error('no')
      },
    }
    const read = told(extractHeaders(root, headers))
    expect(reports.lines).toHaveLength(1)
    expect(read).toEqual(told(w3cPropagator.extract(root, headers, defaultTextMapGetter)))
    expect(read).toMatchObject(
      broken === 'baggage' ? { traceId: expect.any(String) } : { baggage: [expect.anything()] },
    )
  })
})

describe('with another propagator than ours the headers are read by that', () => {
  test('b3', () => {
    propagation.setGlobalPropagator(b3Propagator)
    const headers = { traceparent: TRACEPARENT, b3: `${'c'.repeat(32)}-${'d'.repeat(16)}-1` }
    expect(told(extractHeaders(root, headers))).toMatchObject({ traceId: 'c'.repeat(32) })
  })

  test("one of the app's, of the same fields", () => {
    const extract = vi.fn<TextMapPropagator['extract']>((into) => into)
    propagation.setGlobalPropagator({ ...w3cPropagator, extract })
    expect(extractHeaders(root, { traceparent: TRACEPARENT })).toBe(root)
    expect(extract).toHaveBeenCalledTimes(1)
  })

  test('none', () => {
    expect(extractHeaders(root, { traceparent: TRACEPARENT })).toBe(root)
  })
})
