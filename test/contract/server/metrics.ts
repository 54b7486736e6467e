import type { Attributes } from '@opentelemetry/api'
import type { ReadableSpan } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { connect } from 'node:net'
import { describe, expect, test } from 'vitest'
import { measure } from '../../measuring.ts'
import { record } from '../../recording.ts'
import { never, ok, type App, type Contract, type Handler } from './app.ts'
import { ask, asking, raw } from './client.ts'
import { complaints, signal, theOnly, turn } from './watch.ts'

const DURATION = 'http.server.request.duration'
const ACTIVE = 'http.server.active_requests'

/** What a span and its metric both say. */
const SHARED = new Set([
  'http.request.method',
  'url.scheme',
  'network.protocol.version',
  'http.response.status_code',
  'http.route',
  'error.type',
])

/** What of a span its metric is to say. */
function sharedBy(span: ReadableSpan | undefined): Attributes {
  const entries = Object.entries(span?.attributes ?? {}).filter(([name]) => SHARED.has(name))
  return Object.fromEntries(entries)
}

function secondsOf({ duration: [seconds, nanoseconds] }: ReadableSpan): number {
  return seconds + nanoseconds / 1e9
}

/** What is measured for an app that has a MeterProvider. */
export function measuresRequests({ name, gaps, served }: Contract): void {
  describe(`${name}: metrics`, () => {
    test('have the duration of a request in seconds, in the standard buckets, as its span has it', async () => {
      const measuring = measure()
      const recording = record()
      const serving = await served({ routes: { 'GET /users/:id': ok } })
      await ask(serving, '/users/42?page=2', { headers: { host: 'a.com', 'user-agent': 'contract/1.0' } })
      const span = await theOnly(recording)
      const [point, ...others] = await measuring.all(DURATION, 1)

      expect(others).toEqual([])
      expect(point?.attributes).toEqual({
        'http.request.method': 'GET',
        'url.scheme': 'http',
        'network.protocol.version': '1.1',
        'http.response.status_code': 200,
        ...(gaps.router ? {} : { 'http.route': '/users/:id' }),
      })
      expect(point?.value).toBe(secondsOf(span))
      expect(await measuring.metric(DURATION)).toMatchObject({
        descriptor: { unit: 's', description: 'Duration of HTTP server requests.' },
        dataPoints: [
          {
            value: {
              buckets: {
                boundaries: [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10],
              },
            },
          },
        ],
      })
      expect(await measuring.scopes()).toEqual([span.instrumentationScope.name])
      expect(await measuring.metric(ACTIVE)).toBeUndefined()
    })

    const boom: Handler = () => Promise.reject(new TypeError('no such thing'))
    test.each<[string, App, string, string]>([
      ['that no route takes', {}, 'GET', '/nothing'],
      ['of a method that is not in the list', {}, 'PROPFIND', '/'],
      ['that the client got wrong', { routes: { 'GET /': ({ answer }) => answer(422) } }, 'GET', '/'],
      ['that fails by its status', { routes: { 'GET /': ({ answer }) => answer(503) } }, 'GET', '/'],
      ['whose handler rejects', { routes: { 'GET /:id': boom } }, 'GET', '/7'],
      [
        'whose error the app answers',
        { routes: { 'GET /': boom }, onError: (_error, { answer }) => answer(200) },
        'GET',
        '/',
      ],
      [
        'of a router that is mounted',
        { mounted: { prefix: '/api', routes: { 'GET /users/:id': ok } } },
        'GET',
        '/api/users/7',
      ],
    ])('count a request %s once, and say of it what its span says', async (_title, app, method, path) => {
      const measuring = measure()
      const recording = record()
      await ask(await served(app), path, { method })
      const span = await theOnly(recording)
      const [point] = await measuring.all(DURATION, 1)
      expect(point?.attributes).toEqual(sharedBy(span))
      expect(point?.value).toBe(secondsOf(span))
    })

    test('count a request whose client goes away, as aborted, before the answer and in the middle of it', async () => {
      const measuring = measure()
      const recording = record()
      const arrived = signal()
      const serving = await served({
        routes: {
          'GET /never/:id': (exchange) => (arrived.give(), never(exchange)),
          'GET /half': ({ response }) => {
            response.write('half')
            return new Promise(() => {})
          },
        },
      })
      const waiting = asking(serving, '/never/1')
      await arrived.given
      waiting.destroy()
      const reading = asking(serving, '/half')
      const [response] = await once(reading, 'response')
      response.on('error', () => {})
      reading.destroy()
      const spans = await recording.all(2)
      const points = await measuring.all(DURATION, 2)
      expect(points.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
      expect(points.map(({ attributes }) => attributes)).toEqual(
        expect.arrayContaining(spans.map((span) => sharedBy(span))),
      )
    })

    test('are exact also for requests that are not sampled, their routes included', async () => {
      const measuring = measure()
      const recording = record({ sampling: 0 })
      const serving = await served({ routes: { 'GET /users/:id': ok, 'GET /fails': boom } })
      await ask(serving, '/users/1')
      await ask(serving, '/users/2')
      await ask(serving, '/fails')
      const points = await measuring.all(DURATION, 3)
      expect(recording.spans).toEqual([])
      expect(points).toEqual([
        {
          attributes: expect.objectContaining({
            'http.response.status_code': 200,
            ...(gaps.router ? {} : { 'http.route': '/users/:id' }),
          }),
          value: expect.any(Number),
          count: 2,
        },
        {
          attributes: expect.objectContaining({
            'http.response.status_code': 500,
            'error.type': 'TypeError',
            ...(gaps.router ? {} : { 'http.route': '/fails' }),
          }),
          value: expect.any(Number),
          count: 1,
        },
      ])
      for (const { value } of points) expect(value).toBeGreaterThan(0)
    })

    test('know nothing of requests that the app ignores', async () => {
      const measuring = measure()
      record()
      const serving = await served(
        { routes: { 'GET /health': ok, 'GET /': ok } },
        { ignore: '/health', activeRequests: true },
      )
      await ask(serving, '/health')
      await ask(serving, '/')
      const points = await measuring.all(DURATION, 1)
      expect(points).toHaveLength(1)
      expect(await measuring.points(ACTIVE)).toMatchObject([{ value: 0 }])
    })

    test('count a request once when tracing is mounted twice', async () => {
      const measuring = measure()
      record()
      const serving = await served(ok, { activeRequests: true }, 2)
      await ask(serving, '/')
      expect(await measuring.all(DURATION, 1)).toHaveLength(1)
      expect(await measuring.points(ACTIVE)).toMatchObject([{ value: 0 }])
    })

    test('have the scheme that the proxy tells, where it is trusted', async () => {
      const measuring = measure()
      record()
      const headers = { 'x-forwarded-proto': 'https' }
      await ask(await served(ok), '/', { headers })
      await ask(await served(ok, { trustProxy: true }), '/', { headers })
      const points = await measuring.all(DURATION, 2)
      expect(points.map(({ attributes }) => attributes['url.scheme'])).toEqual(['http', 'https'])
    })

    test('begin when a MeterProvider is registered, also after the first requests, and follow the next', async () => {
      record()
      const serving = await served(ok)
      await ask(serving, '/')
      const first = measure()
      await ask(serving, '/')
      await first.all(DURATION, 1)
      first.unregister()
      await ask(serving, '/')
      const second = measure()
      await ask(serving, '/')
      expect(await second.all(DURATION, 1)).toHaveLength(1)
      expect(await first.all(DURATION, 1)).toHaveLength(1)
    })

    test('have the requests that are under way, where the app asks for them', async () => {
      const measuring = measure()
      const recording = record()
      const arrived = new EventEmitter()
      const go = signal()
      let count = 0
      const serving = await served(
        async ({ answer }) => {
          count += 1
          arrived.emit(`${count}`)
          await go.given
          answer(200)
        },
        { activeRequests: true },
      )
      const both = once(arrived, '2')
      const answered = ask(serving, '/')
      const leaving = asking(serving, '/')
      await both
      const attributes = { 'http.request.method': 'GET', 'url.scheme': 'http' }
      expect(await measuring.points(ACTIVE)).toEqual([{ attributes, value: 2, count: 1 }])
      expect((await measuring.metric(ACTIVE))?.descriptor).toMatchObject({
        unit: '{request}',
        type: 'UP_DOWN_COUNTER',
      })
      leaving.destroy()
      await recording.all(1)
      expect(await measuring.points(ACTIVE)).toEqual([{ attributes, value: 1, count: 1 }])
      go.give()
      await answered
      await recording.all(2)
      expect(await measuring.points(ACTIVE)).toEqual([{ attributes, value: 0, count: 1 }])
    })

    test('count each of those that a client sends without waiting for answers', async () => {
      const measuring = measure()
      record()
      const one = 'GET / HTTP/1.1\r\nHost: a\r\n'
      await raw(await served(ok), `${one}\r\n${one}Connection: close\r\n\r\n`)
      expect(await measuring.all(DURATION, 2)).toHaveLength(1)
    })

    test('count nothing of a connection that brings no request', async () => {
      const measuring = measure()
      record()
      const serving = await served(ok)
      const socket = connect(serving.port, '127.0.0.1')
      await once(socket, 'connect')
      socket.end()
      await once(socket.resume(), 'close')
      await ask(serving, '/')
      expect(await measuring.all(DURATION, 1)).toHaveLength(1)
    })

    test('that cannot be made are reported once, and requests go on', async () => {
      const said = complaints()
      const { metrics } = await import('@opentelemetry/api')
      metrics.setGlobalMeterProvider({
        getMeter() {
          throw new Error('a bug of the provider’s')
        },
      })
      const recording = record()
      try {
        const serving = await served(ok)
        for (let i = 0; i < 2; i += 1) expect((await ask(serving, '/')).status).toBe(200)
        await recording.all(2)
        await turn()
        expect(said).toEqual([expect.stringContaining('the MeterProvider threw')])
      } finally {
        metrics.disable()
      }
    })
  })
}
