import { trace as api } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import { once } from 'node:events'
import { createServer, IncomingMessage, type RequestListener, type Server } from 'node:http'
import { Socket, type AddressInfo } from 'node:net'
import { Readable, Writable } from 'node:stream'
import { text } from 'node:stream/consumers'
import * as undici from 'undici'
import * as undici6 from 'undici6'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { clientContract } from '../contract/client.ts'
import { shared } from '../../packages/undici/src/covered.ts'
import { traceparents } from '../contract/http-client.ts'
import { record } from '../recording.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

interface Listening {
  url: string
  port: number
  requests: IncomingMessage[]
  server: Server
}

const closing: (() => unknown)[] = []

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close()
})

async function serve(answer: RequestListener = respond): Promise<Listening> {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    answer(request, response)
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, port, requests, server }
}

async function served(answer?: RequestListener): Promise<Listening> {
  const listening = await serve(answer)
  closing.push(() => close(listening.server))
  return listening
}

function close(server: Server): Promise<unknown> {
  server.closeAllConnections()
  return new Promise((resolve) => server.close(resolve))
}

const respond: RequestListener = (request, response) => {
  response.statusCode = request.url?.startsWith('/none') ? 404 : 200
  response.end('hello')
}

const PATH = '/stock?sig=s3cret'

const common = {
  result: 'hello',
  name: 'GET',
  scope: '@throughline/undici',
  attributes: {
    'http.request.method': 'GET',
    'http.response.status_code': 200,
    'server.address': '127.0.0.1',
  },
  failure: { type: '404', rejects: false },
  ignoredText: /\/stock/,
  secret: 's3cret',
}

clientContract<string>('global fetch', {
  ...common,
  isProcessWide: true,
  async open() {
    const { url, server } = await serve()
    return { target: url, close: async () => void (await close(server)) }
  },
  trace: (_url, options) => traceUndici(options),
  call: async (url) => (await fetch(url + PATH)).text(),
  fail: async (url) => (await fetch(`${url}/none`)).text(),
})

for (const [version, library] of [
  ['7', undici],
  ['6', undici6 as unknown as typeof undici],
] as const) {
  clientContract<undici.Pool>(`a pool of undici ${version}`, {
    ...common,
    async open() {
      const { url, server } = await serve()
      const pool = new library.Pool(url, { connections: 2 })
      return {
        target: pool,
        async close() {
          await pool.close()
          await close(server)
        },
      }
    },
    trace: (pool, options) => traceUndici(pool, options),
    overrides: ['dispatch'],
    call: async (pool) => (await pool.request({ method: 'GET', path: PATH })).body.text(),
    fail: async (pool) => (await pool.request({ method: 'GET', path: '/none' })).body.text(),
  })

  describe(`undici ${version}`, () => {
    test.each([
      ['that is traced', (pool: undici.Pool) => void traceUndici(pool)],
      ['of a process that is', () => void closing.push(traceUndici())],
    ])(
      'fifty callers of a pool with one connection %s each find their own span as parent',
      async (_title, trace) => {
        const recording = record()
        const { url, requests } = await served()
        const pool = new library.Pool(url, { connections: 1 })
        trace(pool)
        closing.push(() => pool.close())
        const callers = Array.from({ length: 50 }, (_, index) => `caller ${index}`)
        await Promise.all(
          callers.map((name) =>
            span(name, async () => (await pool.request({ method: 'GET', path: '/' })).body.text()),
          ),
        )

        const spans = await recording.all(100)
        const ids = new Map(spans.map((each) => [each.name, each.spanContext()]))
        const sent = requests.flatMap(traceparents)
        expect(new Set(sent)).toHaveLength(50)
        for (const call of spans.filter(({ name }) => name === 'GET')) {
          const { traceId, spanId } = call.spanContext()
          expect(sent).toContain(`00-${traceId}-${spanId}-03`)
          const parent = callers.find((name) => ids.get(name)?.spanId === call.parentSpanContext?.spanId)
          expect(ids.get(parent as string)?.traceId).toBe(traceId)
        }
        expect(new Set(spans.map((each) => each.parentSpanContext?.spanId))).toHaveLength(51)
      },
    )

    describe.each<[string, (pool: undici.Pool) => void]>([
      ['that is traced', (pool) => void traceUndici(pool)],
      ['of a process that is', () => void closing.push(traceUndici())],
    ])('on a pool with one connection %s', (_title, trace) => {
      /** What is current where the bodies of two requests are made, of which the second waits for the first. */
      async function current(make: (note: () => void) => unknown): Promise<(string | undefined)[]> {
        const recording = record()
        const { url } = await served()
        const pool = new library.Pool(url, { connections: 1 })
        trace(pool)
        closing.push(() => pool.close())
        const seen: (string | undefined)[] = []
        const post = (name: string) =>
          span(name, async (self) => {
            const note = () =>
              void seen.push(api.getActiveSpan() === self ? name : `another than that of ${name}`)
            const body = make(note) as undici.Dispatcher.DispatchOptions['body']
            await (await pool.request({ method: 'POST', path: '/', body: body as string })).body.text()
          })
        await Promise.all([post('first'), post('second')])
        await recording.stop()
        return seen
      }

      test('who hears of the body of an answer does so in the context of its own caller', async () => {
        const recording = record()
        const { url } = await served((_request, response) => {
          response.write('a')
          setImmediate(() => response.end('b'))
        })
        const pool = new library.Pool(url, { connections: 1 })
        trace(pool)
        closing.push(() => pool.close())
        const seen: string[] = []
        const get = (name: string) =>
          span(name, async (self) => {
            const note = (event: string) => {
              if (api.getActiveSpan() !== self) seen.push(`${event} of ${name}`)
            }
            const { body } = await pool.request({ method: 'GET', path: '/' })
            body.on('data', () => note('data')).on('end', () => note('end'))
            await once(body, 'close')
            const into = () =>
              new Writable({
                write(_chunk, _encoding, done) {
                  note('write')
                  done()
                },
                final(done) {
                  note('final')
                  done()
                },
              })
            await pool.stream({ method: 'GET', path: '/' }, into)
            const echo = pool.pipeline({ method: 'GET', path: '/' }, ({ body: answer }) => answer).end()
            await once(
              echo.on('data', () => note('data of a pipeline')).on('end', () => note('its end')),
              'end',
            )
          })
        await Promise.all([get('first'), get('second')])
        expect(seen).toEqual([])
        await recording.stop()
      })

      async function* generated(note: () => void) {
        note()
        yield 'a'
        await new Promise(setImmediate)
        note()
        // More than a connection takes at once.
        yield 'b'.repeat(1_000_000)
        note()
      }

      test.each<[string, (note: () => void) => unknown]>([
        ['a generator', generated],
        ['a stream of one', (note) => Readable.from(generated(note))],
        [
          'a generator that waits for nothing',
          function* plain(note) {
            for (let left = 3; left > 0; left -= 1) {
              note()
              yield 'a'
            }
          },
        ],
        [
          'a stream with a method to read',
          (note) => {
            let left = 3
            return new Readable({
              read() {
                note()
                left -= 1
                this.push(left === 0 ? null : 'a')
              },
            })
          },
        ],
      ])('%s makes its body in the context of its own caller', async (_body, make) => {
        const seen = await current(make)
        expect(seen).toEqual([
          ...Array.from({ length: 3 }, () => 'first'),
          ...Array.from({ length: 3 }, () => 'second'),
        ])
      })
    })

    test.each([
      [
        'a body that is gone through once more',
        (name: string) => ({
          *[Symbol.iterator]() {
            yield name
          },
        }),
      ],
      [
        'a form',
        (name: string) => {
          const form = new library.FormData()
          form.append('name', name)
          return form
        },
      ],
      ['a stream of the web', (name: string) => new Blob([name]).stream()],
    ])('%s is sent as it was', async (_title, make) => {
      record()
      const bodies: string[] = []
      const { url } = await served(async (request, response) => {
        bodies.push(await text(request))
        respond(request, response)
      })
      const pool = traceUndici(new library.Pool(url, { connections: 1 }))
      closing.push(() => pool.close())
      const post = async (body: unknown) =>
        (await pool.request({ method: 'POST', path: '/', body: body as string })).body.text()
      await Promise.all([post(make('one')), post(make('two'))])
      expect(bodies).toEqual([expect.stringContaining('one'), expect.stringContaining('two')])
    })

    test('a request that is passed on as the body has nothing of ours', async () => {
      record()
      const { url } = await served()
      const pool = traceUndici(new library.Pool(url))
      closing.push(() => pool.close())
      const passed = new IncomingMessage(new Socket())
      passed.push('a')
      passed.push(null)
      const before = Reflect.ownKeys(passed)
      const { body } = await pool.request({ method: 'POST', path: '/', body: passed })
      await body.text()
      const more = Reflect.ownKeys(passed).filter((key) => !before.includes(key))
      expect(more.map(String)).not.toContain('_read')
      expect(more.map(String)).not.toContain('Symbol(throughline.patches)')
    })

    test('a generator that the app gives up, or that fails, is ended as ever', async () => {
      record()
      let count = 0
      const aborting = new AbortController()
      const { url } = await served((request, response) => {
        if (++count === 2) aborting.abort()
        request.resume().on('end', () => response.end())
      })
      const pool = traceUndici(new library.Pool(url, { connections: 1 }))
      closing.push(() => pool.close())
      const ends: string[] = []
      async function* body(name: string) {
        try {
          yield 'a'
          if (name === 'fails') throw new RangeError('no more')
          await once(aborting.signal, 'abort')
          yield 'b'
          yield 'c'
        } finally {
          ends.push(name)
        }
      }
      const options = { method: 'POST', path: '/' } as const
      await expect(pool.request({ ...options, body: body('fails') as never })).rejects.toThrow('no more')
      const given = pool.request({ ...options, body: body('given up') as never, signal: aborting.signal })
      await expect(given).rejects.toThrow(/abort/i)
      await vi.waitUntil(() => ends.length === 2)
      expect(ends).toEqual(['fails', 'given up'])
    })

    test('both forms together make one span, also where no header may be sent', async () => {
      const recording = record()
      const { url, requests } = await served()
      for (const options of [{}, { propagateTo: 'https://nobody.example' }]) {
        const pool = traceUndici(new library.Pool(url), options)
        const stop = traceUndici(options)
        await (await pool.request({ method: 'GET', path: '/' })).body.text()
        stop()
        await pool.close()
      }
      await recording.all(2)
      expect(requests.map((request) => traceparents(request).length)).toEqual([1, 0])
    })

    test('nothing is kept of the names of headers that a propagator makes of what it sends', async () => {
      let sent = 0
      record({
        propagator: {
          inject(_scope, carrier, setter) {
            setter.set(carrier, `uberctx-${(sent += 1)}`, 'x')
          },
          extract: (scope) => scope,
          fields: () => [],
        },
      })
      const { url } = await served()
      const pool = traceUndici(new library.Pool(url))
      closing.push(() => pool.close())
      for (let count = 0; count < 5; count += 1)
        await (await pool.request({ method: 'GET', path: '/' })).body.text()
      expect(sent).toBe(5)
      expect(shared.names.size).toBe(0)
    })

    test.each([
      ['an object', { TraceParent: 'old', 'x-own': '1' }],
      ['a flat list', ['TraceParent', 'old', 'x-own', '1']],
      ['a Map', new Map([['TraceParent', 'old'], ['x-own', '1']])], // prettier-ignore
    ])(
      'headers given as %s are sent with one traceparent, and are not changed for the app',
      async (_form, headers) => {
        const recording = record()
        const { url, requests } = await served()
        const pool = traceUndici(new library.Pool(url))
        closing.push(() => pool.close())
        const before = structuredClone(headers)
        await (
          await pool.request({
            method: 'GET',
            path: '/',
            headers: headers as undici.Dispatcher.RequestOptions['headers'] as never,
          })
        ).body.text()
        const [call] = await recording.all(1)
        expect(headers).toEqual(before)
        expect(traceparents(requests[0] as IncomingMessage)).toEqual([
          `00-${call?.spanContext().traceId}-${call?.spanContext().spanId}-03`,
        ])
        expect(requests[0]?.headers).toMatchObject({ 'x-own': '1' })
      },
    )

    test.each([[{}], [{ path: 7 }], [{ path: '/', method: 7 }], [{ path: '/', headers: 'text' }]])(
      'what undici refuses is refused in its own words: %j',
      async (options) => {
        record()
        const { url } = await served()
        const outcome = async (pool: undici.Pool) => {
          closing.push(() => pool.close())
          return pool.request({ method: 'GET', ...options } as never).catch((error: unknown) => error)
        }
        const bare = await outcome(new library.Pool(url))
        expect(bare).toBeInstanceOf(Error)
        expect(await outcome(traceUndici(new library.Pool(url)))).toEqual(bare)
      },
    )

    test('headers that undici refuses are refused as before', async () => {
      record()
      const { url } = await served()
      const pool = traceUndici(new library.Pool(url))
      closing.push(() => pool.close())
      const request = pool.request({ method: 'GET', path: '/', headers: ['alone'] })
      await expect(request).rejects.toThrow('headers array must be even')
    })

    test('a request that nobody answers is an error with the code of the system', async () => {
      const recording = record()
      const { url, server } = await served()
      await close(server)
      const pool = traceUndici(new library.Pool(url))
      closing.push(() => pool.destroy())
      await expect(pool.request({ method: 'GET', path: '/' })).rejects.toThrow('ECONNREFUSED')
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'error.type': 'ECONNREFUSED' })
      expect(call?.attributes).not.toHaveProperty('http.response.status_code')
    })
  })
}

describe('global fetch', () => {
  function started(options = {}): void {
    closing.push(traceUndici(options))
  }

  test('a body that nobody reads for half a minute ends its span at the time of the headers', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    try {
      const recording = record()
      const { url } = await served((_request, response) => response.write('the first of two'))
      started()
      const responses = [await fetch(url), await fetch(url), await fetch(url)]
      await responses[1]?.body?.cancel()
      vi.advanceTimersByTime(29_000)
      expect(recording.spans).toHaveLength(1)
      vi.advanceTimersByTime(6_000)
      expect(recording.spans).toHaveLength(3)
      for (const { duration } of recording.spans) expect(duration[0]).toBe(0)
    } finally {
      vi.useRealTimers()
    }
  })

  test('what it quotes of a request that it refuses to send is on no span', async () => {
    const recording = record()
    started()
    const refused: [RequestInit, string, string][] = [
      [{}, 'http://user:pass-1@h/', 'includes credentials: http://REDACTED:REDACTED@h/'],
      [{}, 'http://user:pass-1 "@h/', 'includes credentials: http://REDACTED:REDACTED@h/'],
      [{}, 'http:////user:pass-1@h/', 'includes credentials: http://REDACTED:REDACTED@h/'],
      [{}, '//user:pass-1@h/', 'Failed to parse URL from "REDACTED@h/"'],
      [{}, 'http://user:pass/pass-1@h/', 'Failed to parse URL from "REDACTED@h/"'],
      [{}, '/a', 'Failed to parse URL from /a'],
      [
        { headers: { authorization: 'Bearer "pass-1"\u0000' } },
        'http://h/',
        'Headers.append: "?" is an invalid header value.',
      ],
    ]
    for (const [init, url, told] of refused) {
      recording.spans.length = 0
      await expect(span('work', () => fetch(url, init))).rejects.toThrow(TypeError)
      const [work] = recording.spans
      expect(work?.status.message).toContain(told)
      expect(JSON.stringify([work?.status, work?.events])).not.toContain('pass-1')
    }
  })

  test('each hop of a redirect is a span of its own, with a traceparent of its own', async () => {
    const recording = record()
    const { url, requests } = await served((request, response) => {
      if (request.url === '/old') response.writeHead(302, { location: '/new' }).end()
      else response.end('hello')
    })
    started()
    await span('caller', async () => (await fetch(`${url}/old`)).text())
    const spans = await recording.all(3)
    expect(spans.map((each) => each.attributes['http.response.status_code'])).toEqual([302, 200, undefined])
    expect(spans[0]?.parentSpanContext).toEqual(spans[1]?.parentSpanContext)
    expect(requests.map((request) => traceparents(request)[0]?.slice(36, 52))).toEqual(
      spans.slice(0, 2).map((each) => each.spanContext().spanId),
    )
  })

  test('a header by the name of what every object has is recorded as it was sent', async () => {
    const recording = record()
    const { url } = await served((_request, response) => {
      response.setHeader('constructor', 'acme').setHeader('__proto__', ['a', 'b']).end()
    })
    started({ capture: { responseHeaders: ['constructor', '__proto__'] } })
    await (await fetch(url)).text()
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'http.response.header.constructor': ['acme'],
      'http.response.header.__proto__': ['a', 'b'],
    })
  })

  test('a method that the API writes otherwise is recorded as it was sent', async () => {
    const recording = record()
    const { url } = await served()
    started()
    await (await fetch(url, { method: 'post', body: 'x' })).text()
    await (await fetch(url, { method: 'PROPFIND' })).text()
    const [posted, found] = await recording.all(2)
    expect(posted).toMatchObject({ name: 'POST', attributes: { 'http.request.method': 'POST' } })
    expect(found).toMatchObject({
      name: 'HTTP',
      attributes: { 'http.request.method': '_OTHER', 'http.request.method_original': 'PROPFIND' },
    })
  })
})

test('what ended tracing once ends nothing that has begun since, and makes no second span of it', async () => {
  const recording = record()
  const { url, requests } = await served()
  const first = traceUndici()
  first()
  const second = traceUndici()
  first()
  const third = traceUndici()
  expect(third).toBe(second)
  await (await fetch(url)).text()
  await recording.all(1)
  third()
  await (await fetch(url)).text()
  expect(recording.spans).toHaveLength(1)
  expect(requests[1]?.headers['traceparent']).toBeUndefined()
})

test('what traceUndici gets must be a dispatcher or options', () => {
  expect(() => traceUndici('http://localhost' as never)).toThrow(TypeError)
})
