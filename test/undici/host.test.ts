import { b3MultiPropagator, b3Propagator, span } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import { EventEmitter, once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { runInNewContext } from 'node:vm'
import * as undici from 'undici'
import * as undici6 from 'undici6'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { served } from '../contract/http-client.ts'
import { said } from '../core/engine.ts'
import { record } from '../recording.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

type Dispatch = Parameters<undici.Dispatcher['dispatch']>

describe.each([
  ['undici 7', undici],
  ['undici 6', undici6 as unknown as typeof undici],
])('%s', (version, library) => {
  function pooled(url: string, isTraced = true): undici.Pool {
    const pool = new library.Pool(url, { connections: 1 })
    onTestFinished(() => pool.destroy())
    return isTraced ? traceUndici(pool) : pool
  }

  test.each([
    ['b3', b3Propagator],
    ['several headers of b3', b3MultiPropagator],
  ])('callers of a pool with one connection each send their own trace by %s', async (_title, propagator) => {
    const recording = record({ propagator })
    onTestFinished(traceUndici())
    const { url, requests } = await served()
    const pool = pooled(url)
    await Promise.all(
      Array.from({ length: 6 }, (_, index) =>
        span('caller', async () => (await pool.request({ method: 'GET', path: `/${index}` })).body.text()),
      ),
    )
    const spans = await recording.all(12)
    for (const request of requests) {
      const call = spans.find(({ attributes }) =>
        String(attributes['url.full']).endsWith(String(request.url)),
      )
      const { traceId, spanId } = call?.spanContext() ?? {}
      const { b3, 'x-b3-traceid': trace, 'x-b3-spanid': id } = request.headers
      expect(b3 ?? `${trace}-${id}-1`).toBe(`${traceId}-${spanId}-1`)
    }
  })

  test('callers of a pool with one connection each have one span where no header may be sent, in both forms', async () => {
    const recording = record()
    onTestFinished(traceUndici())
    const { url } = await served()
    const pool = new library.Pool(url, { connections: 1 })
    onTestFinished(() => pool.destroy())
    traceUndici(pool, { propagateTo: () => false })
    await Promise.all(
      Array.from({ length: 6 }, (_, index) =>
        span('caller', async () => (await pool.request({ method: 'GET', path: `/${index}` })).body.text()),
      ),
    )
    const calls = (await recording.all(12)).filter(({ name }) => name === 'GET')
    expect(new Set(calls.map(({ parentSpanContext }) => parentSpanContext?.spanId)).size).toBe(6)
  })

  test('a query that is given beside the path is told of as it is sent, and known by its owner', async () => {
    const recording = record()
    onTestFinished(traceUndici())
    const { url, requests } = await served()
    const agent = new library.Agent()
    onTestFinished(() => agent.destroy())
    const asked: string[] = []
    traceUndici(agent, { propagateTo: (to) => asked.push(to) === 0 })
    const query = { sig: 'secret', 'a b': ['1', '2'] }
    await (await library.request(`${url}/a`, { query, dispatcher: agent })).body.text()
    const [call] = await recording.all(1)
    expect(requests[0]?.url).toBe('/a?sig=secret&a%20b=1&a%20b=2')
    expect(asked).toEqual([`${url}/a?sig=secret&a%20b=1&a%20b=2`])
    expect(call?.attributes['url.full']).toBe(`${url}/a?sig=REDACTED&a%20b=1&a%20b=2`)
    const refused = library.request(`${url}/a?b=1`, { query, dispatcher: agent })
    await expect(refused).rejects.toThrow('Query params cannot be passed')
  })

  test.each([
    ['is sent', true],
    ['may be sent', false],
  ])(
    'of a dispatcher that knows by itself where it leads to, the server is told, also where no header %s',
    async (_title, sends) => {
      const recording = record()
      onTestFinished(traceUndici())
      const { url, port } = await served()
      const asked: string[] = []
      const options = { propagateTo: (to: string) => asked.push(to) > 0 && sends }
      const balanced = traceUndici(new library.BalancedPool([url]), options)
      const pool = new library.Pool(url)
      // As a RetryAgent does.
      class Through extends library.Dispatcher {
        override dispatch(...given: Dispatch): boolean {
          return pool.dispatch(...given)
        }
        override destroy(): Promise<void> {
          return pool.destroy()
        }
      }
      for (const dispatcher of [balanced, traceUndici(new Through(), options)]) {
        onTestFinished(() => dispatcher.destroy())
        await (await dispatcher.request({ method: 'GET', path: '/a?sig=s3cret' } as never)).body.text()
      }
      const told = {
        'url.full': `${url}/a?sig=REDACTED`,
        'server.address': '127.0.0.1',
        'server.port': port,
      }
      expect(await recording.all(2)).toMatchObject([{ attributes: told }, { attributes: told }])
      expect(asked[0]).toBe(`${url}/a?sig=s3cret`)
    },
  )

  test('an origin that is given as a URL has no slash more in that of the request', async () => {
    const recording = record()
    const { url } = await served()
    const agent = traceUndici(new library.Agent())
    onTestFinished(() => agent.destroy())
    const { body } = await agent.request({ origin: new URL(url), method: 'GET', path: '/a' })
    await body.text()
    const [call] = await recording.all(1)
    expect(call?.attributes['url.full']).toBe(`${url}/a`)
  })

  test.each([true, false])(
    'a request that fails with an error of another realm is an error: traced for itself %s',
    async (isTraced) => {
      const recording = record()
      if (!isTraced) onTestFinished(traceUndici())
      const error = runInNewContext("Object.assign(new Error('refused'), { code: 'ECONNREFUSED' })") as Error
      const agent = new library.Agent({ connect: (_options, made) => made(error, null) })
      onTestFinished(() => agent.destroy())
      const dispatcher = isTraced ? traceUndici(agent) : agent
      await expect(library.request('http://api.example', { dispatcher })).rejects.toBe(error)
      const [call] = await recording.all(1)
      expect(call?.status).toMatchObject({ code: 2, message: 'refused' })
      expect(call?.attributes['error.type']).toBe('ECONNREFUSED')
    },
  )

  test.each<[string, unknown]>([
    ['an object', { 'x-a': ['1', '2'] }],
    ['a list', ['x-a', '1', 'X-A', '2']],
  ])(
    'a header of a request that is sent twice is recorded as two values: given by %s',
    async (_title, given) => {
      const recording = record()
      const { url } = await served()
      const options = { capture: { requestHeaders: ['x-a'] } }
      const headers = given as string[]
      const traced = traceUndici(new library.Agent(), options)
      const other = new library.Agent()
      onTestFinished(async () => void (await Promise.all([traced.destroy(), other.destroy()])))
      await (await library.request(url, { dispatcher: traced, headers })).body.text()
      onTestFinished(traceUndici(options))
      await (await library.request(url, { dispatcher: other, headers })).body.text()
      for (const { attributes } of await recording.all(2))
        expect(attributes['http.request.header.x-a']).toEqual(['1', '2'])
    },
  )

  class Asked {
    readonly #path = '/a'
    get path() {
      return this.#path
    }
    get method() {
      return 'POST'
    }
    readonly body = 'x'
  }

  test.each<[string, () => object]>([
    ['inherits', () => Object.assign(Object.create({ method: 'POST', body: 'x' }) as object, { path: '/a' })],
    ['answers for by a class', () => new Asked()],
    ['has frozen', () => Object.freeze({ path: '/a', method: 'POST', body: 'x' })],
  ])('a request has the options that its object %s', async (_title, options) => {
    record()
    const { url, requests } = await served((request, response) => request.pipe(response))
    const { body } = await pooled(url).request(options() as never)
    expect(await body.text()).toBe('x')
    expect(requests[0]?.method).toBe('POST')
    expect(requests[0]?.headers['traceparent']).toBeDefined()
  })

  test.each([
    ['captured', { capture: { requestHeaders: ['x-a'] } }],
    ['kept', { headers: 'keep' as const }],
  ])('headers that can be gone through once arrive also where some are %s', async (_title, options) => {
    const recording = record()
    const { url, requests } = await served()
    const pool = new library.Pool(url)
    onTestFinished(() => pool.destroy())
    traceUndici(pool, options)
    const headers = new Map([
      ['x-a', '1'],
      ['x-b', '2'],
    ]).entries()
    await (await pool.request({ method: 'GET', path: '/', headers: headers as never })).body.text()
    expect(requests[0]?.headers).toMatchObject({ 'x-a': '1', 'x-b': '2', traceparent: expect.any(String) })
    await recording.all(1)
  })

  test.each<[string, unknown, unknown]>([
    ['an object', { 'x-a': '1', TraceParent: 'old' }, { 'x-a': '1', traceparent: expect.any(String) }],
    ['a list', ['x-a', '1', 'TraceParent', 'old'], ['x-a', '1', 'traceparent', expect.any(String)]],
    ['nothing', undefined, { traceparent: expect.any(String) }],
  ])('a dispatcher gets the headers as %s where the app gave them so', (_title, headers, expected) => {
    record()
    let told: unknown
    class Told extends library.Dispatcher {
      override dispatch(options: Dispatch[0]): boolean {
        told = options.headers
        return true
      }
    }
    const dispatcher: undici.Dispatcher = traceUndici(new Told())
    dispatcher.dispatch({ method: 'GET', path: '/', headers } as Dispatch[0], {})
    expect(told).toEqual(expected)
  })

  test('a RetryAgent goes on with a body that broke off, with the headers of the app', async () => {
    record()
    const { url, requests } = await served((request, response) => {
      response.setHeader('etag', '"a"')
      if (request.headers.range === undefined) {
        response.setHeader('content-length', '6')
        response.write('abc', () => response.destroy())
      } else {
        response.writeHead(206, { 'content-range': 'bytes 3-5/6', 'content-length': '3' }).end('def')
      }
    })
    const agent = new library.RetryAgent(new library.Agent(), { minTimeout: 1 })
    onTestFinished(() => agent.destroy())
    const headers = { authorization: 'Bearer x' }
    const { body } = await traceUndici(agent).request({ origin: url, method: 'GET', path: '/', headers })
    expect(await body.text()).toBe('abcdef')
    expect(requests.map((request) => request.headers.authorization)).toEqual(['Bearer x', 'Bearer x'])
  })

  const modern = {
    onRequestStart() {},
    onResponseStart() {},
    onResponseData() {},
    onResponseEnd() {},
    onResponseError() {},
  }
  const old = {
    onConnect() {},
    onHeaders: () => true,
    onData: () => true,
    onComplete() {},
    onError() {},
  }

  test('a handler may be frozen', async () => {
    const recording = record()
    const { url } = await served()
    const handler = Object.freeze({ ...(version === 'undici 6' ? old : modern) })
    pooled(url).dispatch({ method: 'GET', path: '/' }, handler as Dispatch[1])
    const [call] = await recording.all(1)
    expect(call?.attributes['http.response.status_code']).toBe(200)
  })

  test.each([
    [
      'puts it off',
      () => {
        let isReady = false
        class Later extends library.Agent {
          override dispatch(...given: Dispatch): boolean {
            if (isReady) return super.dispatch(...given)
            isReady = true
            setImmediate(() => this.dispatch(...given))
            return true
          }
        }
        return new Later()
      },
    ],
    [
      'leads to another one that is traced',
      () => {
        const inner = traceUndici(new library.Agent())
        class Leading extends library.Agent {
          override dispatch(...given: Dispatch): boolean {
            return inner.dispatch(...given)
          }
        }
        return new Leading()
      },
    ],
  ])('a request has one span where its dispatcher %s', async (_title, make) => {
    const recording = record()
    const { url, requests } = await served()
    const dispatcher = traceUndici(make())
    onTestFinished(() => dispatcher.destroy())
    await span('caller', async () => (await library.request(url, { dispatcher })).body.text())
    const [call] = await recording.all(2)
    expect(requests.map(({ headers }) => String(headers['traceparent']).split('-')[2])).toEqual([
      call?.spanContext().spanId,
    ])
  })

  const ofVersion: object = version === 'undici 6' ? old : modern
  const end = version === 'undici 6' ? 'onComplete' : 'onResponseEnd'
  type Handler = Record<string, (...args: unknown[]) => unknown>

  /** As an interceptor does that hears of the end. */
  const hearing: [
    title: string,
    hear: (handler: Handler, ended: (...args: unknown[]) => void) => Handler,
    // What inherits what is frozen may not be written to.
    frozen?: boolean[],
  ][] = [
    ['copies', (handler, ended) => ({ ...handler, [end]: ended })],
    ['assigns', (handler, ended) => Object.assign({}, handler, { [end]: ended })],
    [
      'inherits from',
      (handler, ended) => Object.assign(Object.create(handler) as Handler, { [end]: ended }),
      [false],
    ],
    [
      'asks for each of the methods of',
      (handler, ended) =>
        Object.fromEntries(
          Object.entries(handler).map(([name, method]) => [name, name === end ? ended : method]),
        ),
    ],
    [
      'takes the properties of',
      (handler, ended) =>
        Object.defineProperties({} as Handler, {
          ...Object.getOwnPropertyDescriptors(handler),
          [end]: { value: ended },
        }),
    ],
  ]

  describe.each(hearing)('an interceptor that %s its handler', (_title, hear, frozen = [false, true]) => {
    test.each(frozen)('hears of the end, and the handler too: frozen %s', async (isFrozen) => {
      const recording = record()
      const { url } = await served()
      const heard: unknown[] = []
      const agent = new library.Agent()
      class Own extends library.Dispatcher {
        override dispatch(options: Dispatch[0], handler: Dispatch[1]): boolean {
          const given = handler as unknown as Handler
          const ended = (...args: unknown[]) => {
            heard.push('interceptor')
            given[end]?.(...args)
          }
          return agent.dispatch(options, hear(given, ended) as unknown as Dispatch[1])
        }
        override destroy(): Promise<void> {
          return agent.destroy()
        }
      }
      const dispatcher = traceUndici(new Own())
      onTestFinished(() => dispatcher.destroy())
      const handler = { ...ofVersion, [end]: () => heard.push('handler') } as object
      if (isFrozen) Object.freeze(handler)
      const own = Reflect.get(handler, end) as unknown
      dispatcher.dispatch({ origin: url, method: 'GET', path: '/' }, handler as Dispatch[1])
      const [call] = await recording.all(1)
      expect(heard).toEqual(['interceptor', 'handler'])
      expect(Reflect.get(handler, end)).toBe(own)
      expect(call?.attributes['http.response.status_code']).toBe(200)
      expect(call?.attributes).not.toHaveProperty('error.type')
    })
  })

  test('what an interceptor sees and writes is the handler’s, and what inherits from it is called as it is', async () => {
    record()
    const seen: unknown[] = []
    const symbol = Symbol('own')
    const handler = {
      ...ofVersion,
      [symbol]: 1,
      note: 'a',
      who(this: unknown) {
        return this
      },
    }
    Object.defineProperty(handler, 'hidden', { value: 'b', enumerable: false, configurable: false })
    class Own extends library.Dispatcher {
      override dispatch(_options: unknown, given: Dispatch[1]): boolean {
        const shown = given as unknown as typeof handler & { hidden: string; added?: number }
        const derived = Object.create(shown) as typeof shown
        seen.push(Reflect.ownKeys(shown), Object.keys(shown), Object.hasOwn(shown, 'none'), shown.hidden)
        seen.push(shown.who() === handler, derived.who() === derived)
        derived.note = 'c'
        shown.added = 1
        Reflect.deleteProperty(shown, symbol)
        return true
      }
    }
    const keys = [Reflect.ownKeys(handler), Object.keys(handler)]
    traceUndici(new Own()).dispatch({ origin: 'http://a.com', method: 'GET', path: '/' }, handler as never)
    expect(seen).toEqual([...keys, false, 'b', true, true])
    expect(handler).toMatchObject({ note: 'a', added: 1 })
    expect(symbol in handler).toBe(false)
  })

  test('a request without a handler, or with headers that are none, is refused in the words of undici', async () => {
    record()
    const { url } = await served()
    const told = (pool: undici.Pool, ...[options, handler]: [object, unknown]) => {
      const errors: unknown[] = []
      const noted =
        handler === undefined ? handler : { ...old, onError: (error: unknown) => errors.push(error) }
      try {
        pool.dispatch({ method: 'GET', path: '/', ...options } as Dispatch[0], noted as Dispatch[1])
      } catch (error) {
        errors.push(error)
      }
      return errors.map((error) => [(error as Error).message, (error as { code?: unknown }).code])
    }
    for (const [options, handler] of [
      [{}, undefined],
      [{ headers: 'bad' }, old],
      [{ headers: 7 }, old],
    ] as const) {
      const before = told(pooled(url, false), options, handler)
      expect(before).toHaveLength(1)
      expect(told(pooled(url), options, handler)).toEqual(before)
    }
  })

  test('a request that undici refuses for its headers has a span, which ends', async () => {
    const recording = record()
    const { url } = await served()
    await expect(pooled(url).request({ method: 'GET', path: '/', headers: 'bad' as never })).rejects.toThrow(
      /headers/,
    )
    const [call] = await recording.all(1)
    expect(call?.attributes['error.type']).toBe('UND_ERR_INVALID_ARG')
  })

  test('a dispatcher of the app’s own that calls a handler with less is not broken', async () => {
    const reports = said()
    const recording = record()
    class Odd extends library.Dispatcher {
      override dispatch(_options: unknown, handler: Dispatch[1]): boolean {
        const given = handler as unknown as Record<string, (...args: unknown[]) => void>
        given['onRequestStart']?.(undefined, {})
        given['onHeaders']?.(200, null, () => {}, 'OK')
        given['onComplete']?.([])
        return true
      }
    }
    const dispatcher = traceUndici(new Odd())
    const handler = { ...old, onRequestStart() {} }
    dispatcher.dispatch({ origin: 'http://a.com', method: 'GET', path: '/' }, handler as Dispatch[1])
    const [call] = await recording.all(1)
    expect(call?.attributes['http.response.status_code']).toBe(200)
    expect(reports.lines).toEqual([])
  })

  test.each<[string, (agent: undici.Agent) => void]>([
    ['all of undici', () => onTestFinished(traceUndici())],
    ['its agent', (agent) => void traceUndici(agent)],
  ])(
    'a body that goes on to come is not taken for one that nobody reads, with %s traced',
    async (_title, trace) => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
      try {
        const recording = record()
        const arrived = new EventEmitter()
        const { url } = await served((_request, response) => {
          response.write('0')
          arrived.emit('response', response)
        })
        const agent = new library.Agent({ bodyTimeout: 0, headersTimeout: 0 })
        onTestFinished(() => agent.destroy())
        trace(agent)
        const asked = library.request(url, { dispatcher: agent })
        const [response] = (await once(arrived, 'response')) as [ServerResponse]
        const { body } = await asked
        const read: string[] = []
        const parts = body[Symbol.asyncIterator]()
        const next = async () => read.push(String((await parts.next()).value))
        await next()
        for (let count = 1; count <= 8; count += 1) {
          vi.advanceTimersByTime(10_000)
          response.write(`${count}`)
          await next()
        }
        expect(recording.spans).toEqual([])
        response.end()
        await parts.next()
        const [call] = await recording.all(1)
        expect(call?.duration[0]).toBeGreaterThanOrEqual(80)
        expect(read.join('')).toBe('012345678')
      } finally {
        vi.useRealTimers()
      }
    },
  )
})

test('what a proxy is asked by a whole URL is one span where no header may be sent, in both forms', async () => {
  const recording = record()
  onTestFinished(traceUndici())
  const { url, requests } = await served()
  const proxied = new undici.ProxyAgent({ uri: url, proxyTunnel: false })
  onTestFinished(() => proxied.destroy())
  traceUndici(proxied, { propagateTo: () => false })
  await (await undici.request('http://api.example/a', { dispatcher: proxied })).body.text()
  const [call] = await recording.all(1)
  expect(call?.attributes['url.full']).toBe('http://api.example/a')
  expect(requests[0]?.url).toBe('http://api.example/a')
  expect(requests[0]?.headers['traceparent']).toBeUndefined()
})
