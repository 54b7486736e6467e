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
import {
  endRequest,
  forgetError,
  receiver,
  recordError,
  rejoin,
  start,
  traceRequest,
  type ReceivingOptions,
  type StartOptions,
} from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { Agent, createServer, IncomingMessage, ServerResponse } from 'node:http'
import { connect, Socket } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { between } from '../../packages/core/src/clock.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { httpAdapter } from '../contract/http.ts'
import { ask, listening, raw, serverContract, type Serving } from '../contract/server.ts'
import { signal } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { said } from './engine.ts'

serverContract('node:http', httpAdapter)

type Listener = (request: IncomingMessage, response: ServerResponse) => unknown
type Options = ReceivingOptions<IncomingMessage, [IncomingMessage, ServerResponse]>

async function serve(listener: Listener): Promise<Serving> {
  const serving = await listening(createServer((request, response) => void listener(request, response)))
  onTestFinished(() => serving.close())
  return serving
}

/** The one span of one request that this listener answers, inside `traceRequest`. */
async function spanOf(listener: Listener, options?: Options) {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => listener(request, response), options),
  )
  await ask(serving, '/')
  const [span] = await recording.all(1)
  if (span === undefined) throw new Error('there is no span')
  return span
}

/** A request that comes by no connection, as those that tests and gateways make up, and fails. */
function failMadeUp(handle: () => unknown = () => {}) {
  const request = new IncomingMessage(new Socket())
  const response = new ServerResponse(request)
  traceRequest(request, response, handle)
  response.writeHead(500).end()
  endRequest(request)
}

describe('traceRequest', () => {
  test.each<[string, unknown[], RegExp]>([
    ['a wrong option', [() => {}, { ignored: '/health' }], /expected options among ignore, .*"ignored"/],
    ['options that are none', [() => {}, '/health'], /expected an object of options, received "\/health"/],
    [
      'a server in the place of options',
      [() => {}, createServer()],
      /expected an object of options, received an object of Server; example: \{ ignore: /,
    ],
    ['no function', [], /expected a function to run, received undefined; example: createServer\(/],
    ['options alone', [{ ignore: '/health' }], /expected a function to run, received an object/],
  ])('given %s, throws in each request a TypeError in its own name', async (_title, given, said) => {
    record()
    const misuse = traceRequest as (...given: unknown[]) => unknown
    const seen: unknown[] = []
    const serving = await serve((request, response) => {
      try {
        misuse(request, response, ...given)
      } catch (error) {
        seen.push(error)
      }
      response.end('ok')
    })
    for (const time of ['first', 'second']) await ask(serving, `/?${time}`)
    expect(seen).toEqual([expect.any(TypeError), expect.any(TypeError)])
    for (const error of seen as Error[]) {
      expect(error.message).toMatch(/^@throughline\/core: traceRequest\(\): expected /)
      expect(error.message).toMatch(said)
    }
  })

  test.each([undefined, null, 'GET /'])(
    'given %j for a request, throws a TypeError in its own name',
    (request) => {
      const misuse = () => traceRequest(request as never, undefined as never, () => 'answered')
      expect(misuse).toThrow(TypeError)
      expect(misuse).toThrow(
        /^@throughline\/core: traceRequest\(\): expected a request of a server, received .*; example: /,
      )
    },
  )

  test('returns what the handler returns, at once where that is at once', async () => {
    const seen: unknown[] = []
    record()
    const value = { answer: 42 }
    const serving = await serve(async (request, response) => {
      seen.push(traceRequest(request, response, () => value))
      seen.push(await traceRequest(request, response, async () => value))
      response.end()
    })
    await ask(serving, '/')
    expect(seen).toEqual([value, value])
    expect(seen[0]).toBe(value)
    expect(seen[1]).toBe(value)
  })

  test('throws and rejects with the very error that the handler did', async () => {
    const bug = new RangeError('it broke')
    const seen: unknown[] = []
    const recording = record()
    const serving = await serve(async (request, response) => {
      try {
        traceRequest(request, response, () => {
          throw bug
        })
      } catch (error) {
        seen.push(error)
      }
      await traceRequest(request, response, () => Promise.reject(bug)).catch((error: unknown) =>
        seen.push(error),
      )
      response.writeHead(500).end()
    })
    await ask(serving, '/')
    expect(seen).toEqual([bug, bug])
    expect(seen.every((error) => error === bug)).toBe(true)
    const [span] = await recording.all(1)
    expect(span?.events).toHaveLength(1)
  })

  test('records what an async function rejects with, also where the app has replaced Promise', async () => {
    // The promise of an async function is of the class that was there first.
    vi.stubGlobal('Promise', class extends Promise<unknown> {})
    onTestFinished(() => void vi.unstubAllGlobals())
    const bug = new RangeError('it broke')
    const recording = record()
    const serving = await serve(async (request, response) => {
      const handled = traceRequest(request, response, async () => {
        throw bug
      })
      await expect(handled).rejects.toBe(bug)
      response.writeHead(500).end()
    })
    await ask(serving, '/')
    const [span] = await recording.all(1)
    expect(span?.attributes['error.type']).toBe('RangeError')
  })

  test('a rejection that nobody handles surfaces as ever, once', async () => {
    const bug = new RangeError('it broke')
    const before = process.listeners('unhandledRejection')
    process.removeAllListeners('unhandledRejection')
    onTestFinished(() => {
      process.removeAllListeners('unhandledRejection')
      for (const listener of before) process.on('unhandledRejection', listener)
    })
    const seen: unknown[] = []
    process.on('unhandledRejection', (reason) => seen.push(reason))
    await spanOf((_request, response) => {
      response.end()
      return Promise.reject(bug)
    })
    await new Promise((resolve) => setImmediate(resolve))
    expect(seen).toEqual([bug])
  })

  test('what the handler leaves behind is no context of those outside', async () => {
    record()
    const seen: unknown[] = []
    const serving = await serve((request, response) => {
      traceRequest(request, response, () => {
        seen.push(trace.getActiveSpan() === undefined)
        response.end()
      })
      seen.push(trace.getActiveSpan() === undefined)
    })
    await ask(serving, '/')
    expect(seen).toEqual([false, true])
  })
})

describe('response headers', () => {
  test.each<[string, Listener]>([
    [
      'an object',
      (_request, response) => response.writeHead(200, { 'X-Id': 'a', 'X-Many': ['b', 'c'] }).end(),
    ],
    [
      'a message and an object',
      (_request, response) => response.writeHead(200, 'Fine', { 'X-Id': 'a', 'X-Many': ['b', 'c'] }).end(),
    ],
    [
      'one after the other',
      (_request, response) =>
        response.setHeader('x-id', 'a').setHeader('X-Many', ['b', 'c']).writeHead(200).end(),
    ],
  ])('are recorded when they are given as %s', async (_title, listener) => {
    const { attributes } = await spanOf(listener, {
      capture: { responseHeaders: ['x-id', 'x-many', 'x-none'] },
    })
    const headers = Object.entries(attributes).filter(([key]) => key.includes('.header.'))
    expect(Object.fromEntries(headers)).toEqual({
      'http.response.header.x-id': ['a'],
      'http.response.header.x-many': ['b', 'c'],
    })
  })
})

describe('a response that fails when its head is out', () => {
  /** The span of a request whose client reads until the connection ends. */
  async function cut(fail: (response: ServerResponse, request: IncomingMessage) => void) {
    const recording = record()
    const serving = await serve((request, response) =>
      traceRequest(request, response, () => {
        response.write('half', () => fail(response, request))
      }),
    )
    await fetch(`http://127.0.0.1:${serving.port}/`)
      .then((answer) => answer.text())
      .catch(() => {})
    const [span] = await recording.all(1)
    return span
  }

  test('has the status that was sent, whatever is set later', async () => {
    const span = await cut((response, request) => {
      recordError(request, new RangeError('it broke'))
      response.statusCode = 500
      response.destroy()
    })
    expect(span?.attributes).toMatchObject({ 'http.response.status_code': 200, 'error.type': 'RangeError' })
  })

  test('by being destroyed with an error has that error', async () => {
    const span = await cut((response) => response.destroy(new RangeError('it broke')))
    expect(span?.attributes).toMatchObject({ 'error.type': 'RangeError', 'throughline.incomplete': true })
    expect(span?.events.map(({ attributes }) => attributes?.['exception.message'])).toEqual(['it broke'])
  })
})

test.each<[string, (response: ServerResponse) => void]>([
  ['hints', (response) => response.writeEarlyHints({ link: '</a.css>; rel=preload; as=style' })],
  ['the word that it is at work', (response) => response.writeProcessing()],
])('a request that may be upgraded, and is sent %s first, ends with its answer', async (_what, precede) => {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => {
      precede(response)
      response.writeHead(404).end()
    }),
  )
  // As the HTTP client of Java asks.
  await ask(serving, '/', { headers: { connection: 'Upgrade, HTTP2-Settings', upgrade: 'h2c' } })
  const [span] = await recording.all(1)
  expect(span?.attributes['http.response.status_code']).toBe(404)
})

test('a request that may be upgraded may have a socket that is made up, and only writes', () => {
  record()
  const write = vi.fn<(text: string) => void>()
  const socket = { write }
  const request = new IncomingMessage(socket as unknown as Socket)
  request.headers = { upgrade: 'websocket' }
  traceRequest(request, new ServerResponse(request), () => socket.write('hello'))
  expect(write.mock.calls).toEqual([['hello']])
})

test('an error has the time at which the request met it, and not that of its end', async () => {
  const span = await spanOf((request, response) => {
    recordError(request, new RangeError('it broke'))
    const until = performance.now() + 5
    while (performance.now() < until);
    response.writeHead(500).end()
  })
  const [seconds, nanoseconds] = between(span.events[0]?.time ?? [0, 0], span.endTime)
  expect(seconds * 1000 + nanoseconds / 1e6).toBeGreaterThanOrEqual(5)
})

test('headers that are recorded count towards the limit, however many are named', async () => {
  const recording = record({ spanLimits: { attributeCountLimit: 40 } })
  const names = Array.from({ length: 40 }, (_, index) => `x-${index}`)
  const options = { capture: { requestHeaders: names } }
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => response.end(), options),
  )
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  const named = Object.fromEntries(names.map((name) => [name, '1']))
  await ask(serving, '/', { headers: { traceparent, ...named } })
  const [span] = await recording.all(1)
  expect(Object.keys(span?.attributes ?? {})).toHaveLength(40)
  expect(span?.droppedAttributesCount).toBeGreaterThan(0)
})

test('an error is taken back by itself alone', async () => {
  const span = await spanOf((request, response) => {
    recordError(request, new RangeError('the first'))
    forgetError(request, new RangeError('the first'))
    response.writeHead(500).end()
  })
  expect(span.status).toEqual({ code: SpanStatusCode.ERROR, message: 'the first' })
})

test('and is then none of the request', async () => {
  const error = new RangeError('the first')
  const span = await spanOf((request, response) => {
    recordError(request, error)
    forgetError(request, error)
    response.writeHead(500).end()
  })
  expect(span.status).toEqual({ code: SpanStatusCode.ERROR })
  expect(span.attributes['error.type']).toBe('500')
})

test('serverTiming is added to what is there', async () => {
  record()
  const serving = await serve((request, response) => {
    response.setHeader('Server-Timing', 'edge;dur=1')
    traceRequest(request, response, () => response.end(), { serverTiming: true })
  })
  const { headers } = await ask(serving, '/')
  expect(headers['server-timing']).toMatch(/^edge;dur=1, trace;desc=00-[0-9a-f]{32}-[0-9a-f]{16}-03$/)
})

test('serverTiming does not tell of a span that there is none of', async () => {
  vi.stubEnv('OTEL_SDK_DISABLED', 'true')
  const tracing = start()
  onTestFinished(async () => {
    await tracing.shutdown()
    vi.unstubAllEnvs()
  })
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => response.end(), { serverTiming: true }),
  )
  const { headers } = await ask(serving, '/')
  expect(headers['server-timing']).toBeUndefined()
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

test('a request whose connection sends the answer to another one has a span of its own', async () => {
  const recording = record()
  const serving = await serve((request, response) => {
    const { emit }: EventEmitter = request
    ;(request as EventEmitter).emit = (...given) => emit.apply(request, given)
    traceRequest(request, response, () => setImmediate(() => response.end()))
  })
  const one = 'GET / HTTP/1.1\r\nHost: a\r\n'
  await raw(serving, `${one}\r\n${one}Connection: close\r\n\r\n`)
  expect(new Set((await recording.all(2)).map((span) => span.spanContext().spanId)).size).toBe(2)
})

test('a request that is handed on with another `emit` has one span', async () => {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => {
      const { emit }: EventEmitter = request
      ;(request as EventEmitter).emit = (...given) => emit.apply(request, given)
      traceRequest(request, response, () => response.end())
    }),
  )
  for (let count = 0; count < 2; count += 1) await ask(serving, '/')
  await recording.all(2)
  expect(recording.spans).toHaveLength(2)
})

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

test('options are read once, and not for each request', async () => {
  const recording = record()
  let reads = 0
  const options = {
    get ignore() {
      reads += 1
      return '/health'
    },
  }
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => response.end(), options),
  )
  await ask(serving, '/')
  const before = reads
  await ask(serving, '/')
  await recording.all(2)
  expect(reads).toBe(before)
})

test('a framework is told to follow those requests alone whose route somebody will want', async () => {
  const recording = record()
  const followed: unknown[] = []
  const receive = receiver<IncomingMessage, []>({
    scope: { name: 'test' },
    subject: (request) => request,
    given: () => [],
    following: ({ url }) => void followed.push(url),
  })
  const serving = await serve((request, response) =>
    receive(request, response, request, () => response.end()),
  )
  for (const flags of ['00', '01'])
    await ask(serving, `/${flags}`, {
      headers: { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-${flags}` },
    })
  await recording.all(1)
  expect(followed).toEqual(['/01'])
})

test('a request for the whole server is ignored by its target', async () => {
  const recording = record()
  const ignore = ['*', '/health']
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => response.end(), { ignore }),
  )
  for (const line of ['OPTIONS *', 'GET /health?full=1', 'GET /'])
    await raw(serving, `${line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
  const [span] = await recording.all(1)
  expect(span?.attributes['url.path']).toBe('/')
})

describe('attributes', () => {
  test.each([null, undefined, 'text', 7])('a function that returns %j adds none', async (value) => {
    const { attributes } = await spanOf((_request, response) => response.end(), {
      attributes: (() => value) as unknown as NonNullable<Options['attributes']>,
    })
    expect(Object.keys(attributes).filter((key) => !/^(http|url|server|client|network)\./.test(key))).toEqual(
      [],
    )
  })

  test('are the app’s last word: they win over ours', async () => {
    const { attributes } = await spanOf((_request, response) => response.end(), {
      attributes: () => ({ 'http.route': '/mine' }),
    })
    expect(attributes['http.route']).toBe('/mine')
  })
})

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

describe('the seam for adapters', () => {
  test.each(['01', '00'])(
    'a request that another one calls back goes on in its own context on the official SDK, with the flags %s',
    async (flags) => {
      const sdk = new NodeTracerProvider()
      sdk.register()
      onTestFinished(async () => {
        await sdk.shutdown()
        for (const api of [trace, context, propagation]) api.disable()
      })
      const waiting: (() => void)[] = []
      const seen: unknown[] = []
      const serving = await serve((request, response) =>
        traceRequest(request, response, () => {
          waiting.pop()?.()
          waiting.push(() => rejoin(request, () => seen.push(trace.getActiveSpan()?.spanContext().traceId)))
          response.end()
        }),
      )
      const ids = ['a'.repeat(32), 'b'.repeat(32)]
      for (const id of ids)
        await ask(serving, '/', { headers: { traceparent: `00-${id}-${'c'.repeat(16)}-${flags}` } })
      expect(seen).toEqual([ids[0]])
    },
  )

  test('a request that nobody traces has nothing to record or to end', async () => {
    const recording = record()
    const serving = await serve((request, response) => {
      recordError(request, new Error('it broke'))
      endRequest(request)
      response.end('ok')
    })
    expect((await ask(serving, '/')).body).toBe('ok')
    expect(recording.spans).toEqual([])
  })

  test('endRequest ends a request as complete, and its close does not end it again', async () => {
    const recording = record()
    const serving = await serve((request, response) =>
      traceRequest(request, response, () => {
        response.flushHeaders()
        endRequest(request)
        response.end()
      }),
    )
    await ask(serving, '/')
    const [span] = await recording.all(1)
    expect(span?.status.code).toBe(0)
    expect(span?.attributes['http.response.status_code']).toBe(200)
  })
})

describe('a client that is too slow for the server’s limits', () => {
  /** What it is sent, and the spans that there are then. */
  async function slow(text: string, listener: Listener) {
    const recording = record()
    const limits = { connectionsCheckingInterval: 5, requestTimeout: 20, headersTimeout: 20 }
    const server = createServer(limits, (request, response) =>
      traceRequest(request, response, () => listener(request, response)),
    )
    const serving = await listening(server)
    onTestFinished(() => serving.close())
    const answer = await raw(serving, text)
    // Node answers by itself.
    expect(answer).toMatch(/^HTTP\/1\.1 408 /)
    // What has ended by the end of the next request, which may take its time, is all that there is to end.
    Object.assign(server, { requestTimeout: 0, headersTimeout: 0 })
    await ask(serving, '/')
    return recording
  }

  const answering: Listener = (request, response) => void request.on('end', () => response.end('ok')).resume()

  test('with its body ends its span as an abort that the app has not answered, once', async () => {
    const recording = await slow('POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n', answering)
    const [late, next] = await recording.all(2)
    expect(recording.spans).toHaveLength(2)
    expect(late?.attributes).toMatchObject({
      'url.path': '/slow',
      'error.type': 'aborted',
      'throughline.incomplete': true,
    })
    expect(late?.attributes).not.toHaveProperty('http.response.status_code')
    expect(next?.attributes).toMatchObject({ 'url.path': '/', 'http.response.status_code': 200 })
  })

  test('with its headers has no span, since no request has come', async () => {
    const recording = await slow('POST /slow HTTP/1.1\r\nHost: a\r\n', answering)
    const [next] = await recording.all(1)
    expect(recording.spans).toHaveLength(1)
    expect(next?.attributes['url.path']).toBe('/')
  })
})

test('a response of HTTP/1 that the app has given a stream of its own is answered as any other', async () => {
  const { attributes, status } = await spanOf((_request, response) => {
    Object.assign(response, { stream: new EventEmitter() })
    response.writeHead(201).end('ok')
  })
  expect(status.code).toBe(0)
  expect(attributes).toMatchObject({ 'http.response.status_code': 201 })
  expect(attributes).not.toHaveProperty('throughline.incomplete')
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

test('a request whose client has left before it comes to us has a span, which ends', async () => {
  const recording = record()
  const arrived = signal()
  const serving = await serve(async (request, response) => {
    arrived.give()
    await once(request.socket, 'close')
    traceRequest(request, response, () => {})
  })
  const client = connect(serving.port, '127.0.0.1')
  client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
  await arrived.given
  client.destroy()
  const [span] = await recording.all(1)
  expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
})

test('a request that was answered before it comes to us has a span, which ends', async () => {
  const recording = record()
  const serving = await serve(async (request, response) => {
    response.writeHead(503).end()
    await once(response, 'close')
    traceRequest(request, response, () => {})
  })
  const agent = new Agent({ keepAlive: true })
  onTestFinished(() => agent.destroy())
  expect((await ask(serving, '/', { agent })).status).toBe(503)
  const [span] = await recording.all(1)
  expect(span?.attributes['http.response.status_code']).toBe(503)
  expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
})

describe('a request that waits behind another one, and whose body was read before it comes to us,', () => {
  const READ_FIRST = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi'

  /** Serves GET when `first` says so, and POST when its body was read. */
  async function serving(first: Promise<void>, traced: (request: IncomingMessage) => void): Promise<Serving> {
    return serve(async (request, response) => {
      if (request.method === 'GET') await first
      else await once(request.resume(), 'close')
      traceRequest(request, response, () => response.end('ok'))
      if (request.method === 'POST') traced(request)
    })
  }

  test('has a span, which ends with their connection', async () => {
    const recording = record()
    const traced = signal<IncomingMessage>()
    const { port } = await serving(new Promise(() => {}), traced.give)
    const client = connect(port, '127.0.0.1')
    client.write(`GET / HTTP/1.1\r\nHost: a\r\n\r\n${READ_FIRST}`)
    await traced.given
    client.destroy()
    const [span] = await recording.all(1)
    expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'http.request.method': 'POST' })
  })

  test('is let go of when it is answered, though their connection lasts', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    record()
    const first = signal()
    const traced = signal<WeakRef<object>>()
    const { port } = await serving(first.given, (request) => traced.give(new WeakRef(request)))
    const client = connect(port, '127.0.0.1')
    onTestFinished(() => void client.destroy())
    let answers = 0
    const answered = new Promise<void>((resolve) => {
      client.setEncoding('latin1').on('data', (text: string) => {
        answers += text.split('HTTP/1.1 200').length - 1
        if (answers === 3) resolve()
      })
    })
    // The last one takes the place that Node's parser keeps for the newest.
    client.write(`GET / HTTP/1.1\r\nHost: a\r\n\r\n${READ_FIRST}GET / HTTP/1.1\r\nHost: a\r\n\r\n`)
    const request = await traced.given
    first.give()
    await answered
    for (let turns = 0; turns < 20 && request.deref() !== undefined; turns += 1) {
      await new Promise((resolve) => setImmediate(resolve))
      collect()
    }
    expect(request.deref()).toBeUndefined()
  })
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
