import { context, propagation, trace } from '@opentelemetry/api'
import { traceRequest } from '@throughline/core'
import { EventEmitter } from 'node:events'
import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { said } from './engine.ts'
import type { Options } from './served.ts'

test('a request that may be upgraded may have a socket that is made up, and only writes', () => {
  record()
  const write = vi.fn<(text: string) => void>()
  const socket = { write }
  const request = new IncomingMessage(socket as unknown as Socket)
  request.headers = { upgrade: 'websocket' }
  traceRequest(request, new ServerResponse(request), () => socket.write('hello'))
  expect(write.mock.calls).toEqual([['hello']])
})

test.each<[string, Options, string[]]>([
  ['serverTiming', { serverTiming: true }, ['throughline: a response could not be prepared']],
  ['capture', { capture: { responseHeaders: ['x-own'] } }, []],
])(
  'a response that is made up, without what %s needs of it, has its span all the same',
  async (_, options, lines) => {
    const reports = said()
    const recording = record()
    const request = Object.assign(new EventEmitter(), { method: 'GET', url: '/', headers: {} })
    const response = Object.assign(new EventEmitter(), { statusCode: 200, writableEnded: true })
    traceRequest(request as never, response as never, () => response.emit('finish'), options)
    const [span] = await recording.all(1)
    expect(span?.name).toBe('GET')
    expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
    expect(reports.lines).toEqual(lines)
  },
)

test.each<[string, object]>([
  ['no `emit` at all', { emit: null }],
  [
    'one of its own, and nothing that can be read',
    {
      emit: () => false,
      get socket(): never {
        throw new Error('of a test')
      },
    },
  ],
])('a made-up request with %s is handed on', (_, made) => {
  said()
  const request = Object.assign(Object.create(null, Object.getOwnPropertyDescriptors(made)) as object, {
    method: 'GET',
    headers: {},
  }) as IncomingMessage
  const response = new EventEmitter() as ServerResponse
  expect(traceRequest(request, response, () => 'ran')).toBe('ran')
})

test('a request or a response that is made up, with no emit of its own, does not stop the work', () => {
  const reports = said()
  record()
  const request = { method: 'GET', url: '/', headers: {} } as IncomingMessage
  const response = { statusCode: 200 } as ServerResponse
  expect(traceRequest(request, response, () => 'done')).toBe('done')
  expect(reports.lines).toEqual([])
})

test('a request that is made up, and whose tracestate cannot be read, is ignored as any other', () => {
  const reports = said()
  record()
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  const headers = Object.defineProperty({ traceparent }, 'tracestate', {
    get() {
      throw new Error('not for you')
    },
  })
  const request = { method: 'GET', url: '/', headers } as unknown as IncomingMessage
  const sent: Record<string, string> = {}
  const run = () => propagation.inject(context.active(), sent)
  traceRequest(request, { statusCode: 200 } as ServerResponse, run, { ignore: '/' })
  expect(sent).toEqual({ traceparent })
  expect(reports.lines).toEqual([expect.stringContaining('could not be read')])
})

test('a request that is made up, and whose headers cannot be read, is ignored as any other', () => {
  said()
  record()
  const request = Object.defineProperty({ method: 'GET', url: '/' }, 'headers', {
    get() {
      throw new Error('not for you')
    },
  }) as unknown as IncomingMessage
  const sent: Record<string, string> = {}
  const run = () => propagation.inject(context.active(), sent)
  traceRequest(request, { statusCode: 200 } as ServerResponse, run, { ignore: '/' })
  expect(sent['traceparent']).toMatch(/-0[02]$/)
})

test('the listeners of a request and a response that are made up run in its context, the first ones too', () => {
  record()
  const request = new IncomingMessage(new Socket())
  const response = new ServerResponse(request)
  const seen: unknown[] = []
  const spanId = traceRequest(request, response, () => {
    const note = () => seen.push(trace.getActiveSpan()?.spanContext().spanId)
    request.on('end', note)
    response.on('finish', note)
    return trace.getActiveSpan()?.spanContext().spanId
  })
  request.emit('end')
  response.emit('finish')
  expect(seen).toEqual([spanId, spanId])
  expect(spanId).toMatch(/^[0-9a-f]{16}$/)
})

test('an event that nobody hears is one for an emit of the app’s, and an error is thrown', () => {
  record()
  const request = new IncomingMessage(new Socket())
  const response = new ServerResponse(request)
  const seen: unknown[] = []
  const { emit } = response
  response.emit = function (event: string | symbol, ...given: unknown[]) {
    seen.push(event)
    return emit.call(this, event, ...given)
  }
  traceRequest(request, response, () => {})
  expect([request.emit('odd'), response.emit('odd')]).toEqual([false, false])
  expect(seen).toEqual(['odd'])
  expect(() => request.emit('error', new RangeError('unheard'))).toThrow('unheard')
  expect(() => response.emit('error', new RangeError('unheard'))).toThrow('unheard')
})

test('a made-up request that closes while its response is not done waits for that one', async () => {
  const reports = said()
  const recording = record()
  const request = new IncomingMessage({} as Socket)
  const response = new ServerResponse(request)
  traceRequest(request, response, () => {})
  request.emit('close')
  expect(recording.spans).toEqual([])
  response.writeHead(201).end()
  response.emit('finish')
  const [span] = await recording.all(1)
  expect(span?.attributes['http.response.status_code']).toBe(201)
  expect(reports.lines).toEqual([])
})

test('a request that is made up and says that it is of HTTP/2 is a made-up one', async () => {
  const recording = record()
  const request = new IncomingMessage(new Socket())
  request.httpVersion = '2.0'
  const response = new ServerResponse(request)
  traceRequest(request, response, () => response.writeHead(204).end())
  response.emit('finish')
  const [span] = await recording.all(1)
  expect(span?.attributes).not.toHaveProperty('error.type')
})

test('a request that is frozen leaves no span open', async () => {
  const reports = said()
  const recording = record()
  const request = Object.freeze(Object.assign(new EventEmitter(), { method: 'GET', url: '/', headers: {} }))
  const response = new EventEmitter()
  expect(traceRequest(request as never, response as never, () => 'done')).toBe('done')
  expect(await recording.all(1)).toHaveLength(1)
  expect(reports.lines).toEqual([expect.stringContaining('a request could not be traced')])
})
