import { context, propagation, SpanStatusCode, trace } from '@opentelemetry/api'
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import {
  endRequest,
  forgetError,
  receiver,
  recordError,
  rejoin,
  start,
  traceRequest,
} from '@throughline/core'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { between } from '../../packages/core/src/clock.ts'
import { httpAdapter } from '../contract/http.ts'
import { ask, raw, serverContract } from '../contract/server.ts'
import { record } from '../recording.ts'
import { serve, spanOf, type Listener, type Options } from './served.ts'

serverContract('node:http', httpAdapter)

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
