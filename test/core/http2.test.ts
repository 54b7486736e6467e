import { trace, type HrTime } from '@opentelemetry/api'
import { traceRequest } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import type { OutgoingHttpHeaders } from 'node:http'
import {
  connect,
  constants,
  createServer,
  type ClientHttp2Session,
  type ClientHttp2Stream,
  type Http2ServerResponse,
  type ServerHttp2Stream,
} from 'node:http2'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { signal } from '../contract/server/watch.ts'
import { http2ClientOf } from '../http2.ts'
import { record } from '../recording.ts'

const { NGHTTP2_CANCEL: CANCELLED, NGHTTP2_NO_ERROR: NO_ERROR, NGHTTP2_REFUSED_STREAM: REFUSED } = constants

type Answer = (response: Http2ServerResponse) => unknown

test('a request has its span, to the authority, aborts are aborts, and a method in lower case is another one', async () => {
  const recording = record()
  const server = createServer((request, response) => {
    traceRequest(
      request,
      response,
      () => {
        if (request.url === '/slow') stream?.close(8)
        else response.writeHead(200, { 'x-id': 'a' }).end('ok')
      },
      { capture: { responseHeaders: ['x-id'] }, serverTiming: true },
    )
  })
  const { client, port } = await http2ClientOf(server)
  let stream = client.request({
    ':path': '/fast?a=1',
    traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`,
  })
  const [headers] = (await once(stream, 'response')) as [Record<string, string>]
  stream.resume()
  await once(stream, 'end')
  stream = client.request({ ':path': '/slow', ':method': 'get' })
  stream.on('error', () => {})
  const [fast, slow] = await recording.all(2)
  expect(headers['server-timing']).toContain(fast?.spanContext().spanId)
  expect(fast?.parentSpanContext?.spanId).toBe('b'.repeat(16))
  expect(fast?.attributes).toMatchObject({
    'url.path': '/fast',
    'url.query': 'a=1',
    'network.protocol.version': '2',
    'server.address': '127.0.0.1',
    'server.port': port,
    'http.response.header.x-id': ['a'],
  })
  expect(fast?.status.code).toBe(0)
  expect(slow?.attributes).toMatchObject({
    'error.type': 'aborted',
    'http.request.method': '_OTHER',
    'http.request.method_original': 'get',
  })
})

function nanoseconds([seconds, nanos]: HrTime = [0, 0]): bigint {
  return BigInt(seconds) * 1_000_000_000n + BigInt(nanos)
}

describe('an answer', () => {
  /** The one span of a request that is answered so; the client has seen the end of its stream. */
  async function spanOverHttp2(
    answer: Answer,
    leave?: (stream: ClientHttp2Stream) => void,
    headers: OutgoingHttpHeaders = {},
    options?: Parameters<typeof traceRequest>[3],
  ) {
    const recording = record()
    const server = createServer((request, response) =>
      traceRequest(request, response, () => void answer(response), options),
    )
    const { client } = await http2ClientOf(server)
    const stream = client.request({ ':path': '/', ...headers }).end()
    stream.on('error', () => {})
    if (leave === undefined) stream.resume()
    else stream.on('response', () => leave(stream))
    const [span] = await recording.all(1)
    if (span === undefined) throw new Error('there is no span')
    return span
  }

  test.each<[string, number | undefined, Answer]>([
    ['before it is given', undefined, (response) => response.stream.close(REFUSED)],
    [
      'before it is given all the same',
      undefined,
      (response) => {
        response.stream.close(REFUSED)
        response.end('for nobody')
      },
    ],
    [
      'without a reason, and given all the same',
      undefined,
      (response) => {
        response.stream.close()
        response.end('for nobody')
      },
    ],
    [
      'in the middle, and ended all the same',
      200,
      (response) => {
        response.write('first')
        response.stream.close(REFUSED)
        response.end('last')
      },
    ],
  ])('whose stream the app resets %s is an abort', async (_when, status, answer) => {
    const { attributes, events } = await spanOverHttp2(answer)
    expect(attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
    expect(attributes['http.response.status_code']).toBe(status)
    expect(events).toEqual([])
  })

  test('that the client gives up in the middle of is an abort, also when the app has ended it', async () => {
    const { attributes } = await spanOverHttp2(
      (response) => response.end('x'.repeat(1_000_000)),
      (stream) => stream.close(CANCELLED),
    )
    expect(attributes).toMatchObject({ 'error.type': 'aborted', 'http.response.status_code': 200 })
  })

  test('by the stream of the response is that one, with its status', async () => {
    const { attributes, status } = await spanOverHttp2(({ stream }) => {
      stream.respond({ ':status': 203 })
      stream.end('ok')
    })
    expect(attributes['http.response.status_code']).toBe(203)
    expect(attributes).not.toHaveProperty('error.type')
    expect(status.code).toBe(0)
  })

  test.each<[string, Answer]>([
    [
      'the stream',
      ({ stream }) => {
        stream.respond({ 'X-Id': 'a', 'x-many': ['b', 'c'] })
        stream.end('ok')
      },
    ],
    ['its head', (response) => response.writeHead(200, { 'X-Id': 'a', 'x-many': ['b', 'c'] }).end('ok')],
    [
      'the response',
      (response) => {
        response.setHeader('X-Id', 'a')
        response.setHeader('x-many', ['b', 'c'])
        response.end('ok')
      },
    ],
  ])('has its headers recorded, given to %s', async (_title, answer) => {
    const capture = { responseHeaders: ['x-id', 'x-many', 'x-none'] }
    const { attributes } = await spanOverHttp2(answer, undefined, {}, { capture })
    expect(attributes['http.response.header.x-id']).toEqual(['a'])
    expect(attributes['http.response.header.x-many']).toEqual(['b', 'c'])
    expect(attributes).not.toHaveProperty(['http.response.header.x-none'])
  })

  describe('to HEAD', () => {
    test.each<[string, number, Answer]>([
      ['by the stream of the response', 201, ({ stream }) => stream.respond({ ':status': 201 })],
      ['by the response', 202, (response) => response.writeHead(202).end()],
      ['with a body that nobody gets', 203, (response) => response.writeHead(203).end('body')],
    ])('given %s is complete', async (_how, code, answer) => {
      const { attributes, status } = await spanOverHttp2(answer, undefined, { ':method': 'HEAD' })
      expect(attributes).toMatchObject({
        'http.request.method': 'HEAD',
        'http.response.status_code': code,
      })
      expect(attributes).not.toHaveProperty('error.type')
      expect(status.code).toBe(0)
    })

    test.each<[string, Answer]>([
      ['is never given', () => {}],
      ['is given when it has gone', (response) => response.stream.once('close', () => response.end())],
    ])('that the client does not wait for is an abort: it %s', async (_when, answer) => {
      const recording = record()
      const arrived = signal()
      const server = createServer((request, response) => {
        traceRequest(request, response, () => void answer(response))
        arrived.give()
      })
      const { client } = await http2ClientOf(server)
      const stream = client.request({ ':path': '/', ':method': 'HEAD' })
      await arrived.given
      stream.close(CANCELLED)
      const [span] = await recording.all(1)
      expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
      expect(span?.attributes).not.toHaveProperty('http.response.status_code')
    })
  })

  test.each<[code: number, errorType: string | undefined]>([
    [204, undefined],
    [413, undefined],
    [500, '500'],
  ])('%i without a body is over with its headers, though the client cancels its own body', async (...row) => {
    const [code, errorType] = row
    const recording = record()
    const finished = signal()
    const server = createServer((request, response) => {
      traceRequest(request, response, () => {
        response.stream.once('finish', () => {
          trace.getTracer('test').startSpan('after the answer').end()
          finished.give()
        })
        request.resume()
        response.writeHead(code).end()
      })
    })
    const { client } = await http2ClientOf(server)
    const stream = client.request({ ':path': '/', ':method': 'POST' })
    stream.on('error', () => {})
    stream.write('the first half')
    await finished.given
    stream.close(CANCELLED)
    const [after, span] = await recording.all(2)
    expect(span?.attributes['http.response.status_code']).toBe(code)
    expect(span?.attributes['error.type']).toBe(errorType)
    expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
    expect(nanoseconds(span?.endTime)).toBeLessThanOrEqual(nanoseconds(after?.startTime))
  })

  describe('by the stream that is a file', () => {
    const sendFile: Answer = ({ stream }) => stream.respondWithFile(process.execPath, { ':status': 200 })

    test('is an abort when the client gives it up', async () => {
      const { attributes } = await spanOverHttp2(sendFile, (stream) => stream.close(CANCELLED))
      expect(attributes).toMatchObject({ 'error.type': 'aborted', 'http.response.status_code': 200 })
    })

    test('is over when all of it is out', async () => {
      const recording = record()
      const server = createServer((request, response) => {
        traceRequest(request, response, () => {
          response.stream.on('error', () => {})
          response.stream.respondWithFile(import.meta.filename, { ':status': 200 })
          // Node has ended the stream by then, and sends the file.
          response.stream.once('finish', () => trace.getTracer('test').startSpan('begun').end())
        })
      })
      const { client } = await http2ClientOf(server)
      client.request({ ':path': '/' }).resume()
      const [begun, span] = await recording.all(2)
      expect(span?.attributes).not.toHaveProperty('error.type')
      expect(nanoseconds(span?.endTime)).toBeGreaterThan(nanoseconds(begun?.endTime))
    })
  })

  test.each<[how: string, answer: Answer, method: string]>([
    [
      'piped into the stream',
      async (response) => {
        response.writeHead(200)
        await pipeline(Readable.from(['a', 'b']), response.stream)
        response.end()
      },
      'GET',
    ],
    [
      'a file',
      async (response) => {
        response.stream.respondWithFile(import.meta.filename, { ':status': 200 })
        await once(response.stream, 'finish')
        response.end()
      },
      'GET',
    ],
    [
      'piped into the stream to a body that was read',
      async (response) => {
        await once(response.req.resume(), 'end')
        response.stream.respond({ ':status': 200 })
        await pipeline(Readable.from(['a', 'b']), response.stream)
        response.end()
      },
      'POST',
    ],
  ])('%s, which the app then ends, is complete', async (_how, answer, method) => {
    const { attributes, status } = await spanOverHttp2(answer, undefined, { ':method': method })
    expect(attributes['http.response.status_code']).toBe(200)
    expect(attributes).not.toHaveProperty('error.type')
    expect(status.code).toBe(0)
  })

  test('by the stream is over when it is out, though the client cancels its own body', async () => {
    const recording = record()
    const finished = signal()
    const server = createServer((request, response) => {
      request.on('error', () => {})
      traceRequest(request, response, () => {
        request.resume()
        response.stream.respond({ ':status': 200 })
        response.stream.once('finish', finished.give).end('ok')
      })
    })
    const { client } = await http2ClientOf(server)
    const stream = client.request({ ':path': '/', ':method': 'POST' }).resume()
    stream.on('error', () => {})
    stream.write('the first half')
    await finished.given
    stream.close(CANCELLED)
    const [span] = await recording.all(1)
    expect(span?.attributes).not.toHaveProperty('error.type')
    expect(span?.status.code).toBe(0)
  })

  test('to HEAD is told to the app before it is over', async () => {
    const { attributes } = await spanOverHttp2(
      (response) => {
        const span = trace.getActiveSpan()
        response.on('finish', () => span?.setAttribute('app.finished', true))
        response.end()
      },
      undefined,
      { ':method': 'HEAD' },
    )
    expect(attributes['app.finished']).toBe(true)
  })

  test.each(['before', 'after'])(
    'to one that is traced late, %s its client has left, ends its span',
    async (when) => {
      const recording = record()
      const arrived = signal()
      const traced = signal()
      const server = createServer(async (request, response) => {
        arrived.give()
        if (when === 'after') await new Promise<void>((resolve) => response.stream.once('close', resolve))
        traceRequest(request, response, () => {})
        traced.give()
      })
      const { client } = await http2ClientOf(server)
      const stream = client.request({ ':path': '/' })
      stream.on('error', () => {})
      await (when === 'after' ? arrived : traced).given
      stream.close(CANCELLED)
      const [span] = await recording.all(1)
      expect(span?.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
    },
  )

  test('by the stream to a body that was read before it is traced is complete', async () => {
    const recording = record()
    const server = createServer(async (request, response) => {
      await once(request.resume(), 'end')
      traceRequest(request, response, () => {
        response.stream.respond({ ':status': 203 })
        response.stream.end('ok')
      })
    })
    const { client } = await http2ClientOf(server)
    client.request({ ':path': '/', ':method': 'POST' }).resume().end('hi')
    const [span] = await recording.all(1)
    expect(span?.attributes).toMatchObject({ 'http.response.status_code': 203 })
    expect(span?.attributes).not.toHaveProperty('error.type')
  })

  test('by the stream, to a body that was read, is complete', async () => {
    const { attributes, status } = await spanOverHttp2(
      async ({ req, stream }) => {
        await once(req.resume(), 'end')
        stream.respond({ ':status': 203 })
        stream.end('ok')
      },
      undefined,
      { ':method': 'POST' },
    )
    expect(attributes['http.response.status_code']).toBe(203)
    expect(attributes).not.toHaveProperty('error.type')
    expect(status.code).toBe(0)
  })

  test('by the stream, to a body that was read, is an abort when the app destroys the session', async () => {
    const { attributes } = await spanOverHttp2(
      async ({ req, stream }) => {
        await once(req.resume(), 'end')
        const { session } = stream
        stream.respond({ ':status': 203 })
        stream.end('x'.repeat(1_000_000))
        session?.destroy()
      },
      () => {},
      { ':method': 'POST' },
    )
    expect(attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
  })

  test.each<[what: string, Answer]>([
    ['has ended', (response) => response.end('x'.repeat(1_000_000))],
    [
      'has ended when it had read the body',
      (response) => response.req.on('end', () => response.end('x'.repeat(1_000_000))).resume(),
    ],
    ['has begun', (response) => response.write('x'.repeat(1_000_000))],
  ])('that the app %s is an abort when the client resets it for no error', async (_what, answer) => {
    const { attributes } = await spanOverHttp2(answer, (stream) => stream.close(NO_ERROR))
    expect(attributes).toMatchObject({ 'error.type': 'aborted', 'http.response.status_code': 200 })
  })

  test('that is destroyed with an error has that error', async () => {
    const { attributes, events } = await spanOverHttp2(({ stream }) =>
      stream.destroy(new RangeError('it broke')),
    )
    expect(attributes).toMatchObject({ 'error.type': 'RangeError', 'throughline.incomplete': true })
    expect(events.map((event) => event.attributes?.['exception.message'])).toEqual(['it broke'])
  })
})

test('a request that is not sampled has no listener of ours on its stream', async () => {
  record()
  const counts: unknown[] = []
  const server = createServer((request, response) => {
    const { stream } = response
    const count = () => stream.eventNames().map((name) => [name, stream.listenerCount(name)])
    counts.push(count())
    traceRequest(request, response, () => counts.push(count()))
    response.end()
  })
  const { client } = await http2ClientOf(server)
  const traceparent = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-00`
  await once(client.request({ ':path': '/', traceparent }).resume(), 'end')
  expect(counts).toHaveLength(2)
  expect(counts[1]).toEqual(counts[0])
})

describe('each request has one span, which ends, whatever the app does', () => {
  const whole: Record<string, Answer> = {
    answers: (response) => response.writeHead(201).end('ok'),
    'answers without a body': (response) => response.writeHead(201).end(),
    'answers what it has read': (response) =>
      response.req.on('end', () => response.writeHead(201).end('ok')).resume(),
    'answers by the stream': ({ stream }) => answerBy(stream),
    'answers what it has read by the stream': ({ req, stream }) =>
      req.on('end', () => answerBy(stream)).resume(),
  }
  const cutOff: Record<string, Answer> = {
    'resets the stream': ({ stream }) => stream.close(REFUSED),
    fails: ({ stream }) => stream.destroy(new RangeError('it broke')),
    'never answers': () => {},
  }
  const either: Record<string, Answer> = {
    'answers at length': (response) => response.writeHead(201).end('x'.repeat(300_000)),
    'begins to answer': (response) => response.writeHead(201).write('the first half'),
  }
  const answers = { ...whole, ...cutOff, ...either }
  const options = { capture: { requestHeaders: ['x-case'] } }

  function answerBy(stream: ServerHttp2Stream): void {
    if (stream.destroyed) return
    stream.respond({ ':status': 201 })
    stream.end('ok')
  }

  function closed(stream: ClientHttp2Stream): Promise<void> {
    return new Promise((resolve) => (stream.closed ? resolve() : stream.once('close', resolve)))
  }

  const partings: [string, (stream: ClientHttp2Stream, client: ClientHttp2Session) => void][] = [
    ['cancels what is not over', (stream) => stream.close(CANCELLED)],
    ['resets it for no error', (stream) => stream.close(NO_ERROR)],
    ['leaves with its connection', (_stream, client) => client.destroy()],
  ]
  test.each(partings)('and the client %s', async (_what, part) => {
    const recording = record()
    const arrived = new EventEmitter().setMaxListeners(0)
    const server = createServer((request, response) => {
      const [name = '', how = ''] = /^[^:]+: (.*)/.exec(String(request.headers['x-case'])) ?? []
      for (const emitter of [request, response, response.stream]) emitter.on('error', () => {})
      traceRequest(request, response, () => void answers[how]?.(response), options)
      arrived.emit(name)
    }).listen(0, '127.0.0.1')
    onTestFinished(() => void server.close())
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo

    /** A request on a connection of its own. */
    async function ask(method: string, isHalf: boolean, how: string): Promise<string> {
      const name = `${isHalf ? 'half a ' : ''}${method}: ${how}`
      const reached = once(arrived, name)
      const client = connect(`http://127.0.0.1:${port}`).on('error', () => {})
      const stream = client.request({ ':path': '/', ':method': method, 'x-case': name }, { endStream: false })
      stream.on('error', () => {})
      // One that takes nothing is in the way of a long answer.
      if (how !== 'answers at length') stream.resume()
      if (method === 'POST') stream.write('the first half')
      if (!isHalf) stream.end()
      await reached
      const isWhole = how in whole && !isHalf
      if (isWhole) await closed(stream)
      part(stream, client)
      await closed(stream)
      client.destroy()
      return isWhole ? name : ''
    }

    const asked = await Promise.all(
      Object.keys(answers).flatMap((how) => [
        ask('GET', false, how),
        ask('HEAD', false, how),
        ask('POST', false, how),
        ask('POST', true, how),
      ]),
    )
    const spans = await recording.all(asked.length)
    const told = new Map(
      spans.map(({ attributes }) => [String(attributes['http.request.header.x-case']), attributes]),
    )
    expect(told.size).toBe(asked.length)
    for (const [name, attributes] of told) {
      const isIncomplete = attributes['throughline.incomplete'] === true
      const status = attributes['http.response.status_code']
      if (asked.includes(name)) expect([name, isIncomplete, status]).toEqual([name, false, 201])
      else if (Object.keys(cutOff).some((how) => name.endsWith(how)))
        expect([name, isIncomplete, status]).toEqual([name, true, undefined])
    }
  })
})
