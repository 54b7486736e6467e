import { SpanKind, SpanStatusCode } from '@opentelemetry/api'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { measure } from '../../measuring.ts'
import { record } from '../../recording.ts'
import { failure, read, refusedPort, served, valuesOf, type Contract } from './client.ts'

/** What the span of a request says (OpenTelemetry semantic conventions, HTTP client spans). */
export function describesExchanges({ name, gaps, scope, traced }: Contract): void {
  describe(`${name}: a request`, () => {
    test('is a CLIENT span that says all that is known of it, and nothing more', async () => {
      const recording = record()
      const { url, port, requests } = await served()
      const ask = await traced()
      await read(ask({ url: `${url}/stock?sku=7` }))
      const [span] = await recording.all(1)
      expect(span).toMatchObject({ name: 'GET', kind: SpanKind.CLIENT, events: [] })
      expect(span?.status).toEqual({ code: SpanStatusCode.UNSET })
      expect(span?.instrumentationScope.name).toBe(scope)
      expect(span?.attributes).toEqual({
        'http.request.method': 'GET',
        'url.full': `${url}/stock?sku=7`,
        'server.address': '127.0.0.1',
        'server.port': port,
        'http.response.status_code': 200,
        'network.protocol.version': '1.1',
        ...(gaps.peer ? {} : { 'network.peer.address': '127.0.0.1', 'network.peer.port': port }),
      })
      expect(requests[0]?.url).toBe('/stock?sku=7')
    })

    test.each([
      [200, SpanStatusCode.UNSET],
      [204, SpanStatusCode.UNSET],
      [302, SpanStatusCode.UNSET],
      [400, SpanStatusCode.ERROR],
      [404, SpanStatusCode.ERROR],
      [500, SpanStatusCode.ERROR],
      [503, SpanStatusCode.ERROR],
    ])('that is answered with %d has the status %d, and no description', async (status, code) => {
      const recording = record()
      const { url } = await served((_request, response) => response.writeHead(status).end())
      const ask = await traced()
      await read(ask({ url }))
      const [span] = await recording.all(1)
      expect(span?.status).toEqual({ code })
      expect(span?.attributes).toMatchObject({ 'http.response.status_code': status })
      expect(span?.attributes['error.type']).toBe(code === SpanStatusCode.ERROR ? String(status) : undefined)
    })

    test('that is answered after an early hint has the status of the answer', async () => {
      const recording = record()
      const { url } = await served((_request, response) => {
        response.writeEarlyHints({ link: '</a.css>; rel=preload' })
        response.writeHead(201).end('made')
      })
      const ask = await traced()
      expect(await read(ask({ url }))).toBe('made')
      const [span] = await recording.all(1)
      expect(span?.attributes['http.response.status_code']).toBe(201)
    })

    test.each(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])(
      'by %s is named by it',
      async (method) => {
        const recording = record()
        const { url, requests } = await served()
        const ask = await traced()
        await read(ask({ url, method }))
        const [span] = await recording.all(1)
        expect(span?.name).toBe(method)
        expect(span?.attributes['http.request.method']).toBe(method)
        expect(span?.attributes).not.toHaveProperty('http.request.method_original')
        expect(requests[0]?.method).toBe(method)
      },
    )

    test('by a method that nobody knows is HTTP, and says which it was', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced()
      await read(ask({ url, method: 'PROPFIND' }))
      const [span] = await recording.all(1)
      expect(span?.name).toBe('HTTP')
      expect(span?.attributes).toMatchObject({
        'http.request.method': '_OTHER',
        'http.request.method_original': 'PROPFIND',
      })
      expect(requests[0]?.method).toBe('PROPFIND')
    })

    test('by a method in lower case is told as it was sent', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced()
      const asked = ask({ url, method: 'get' })
      const method = gaps.lowerCase ? 'GET' : 'get'
      await asked.then(
        (answer) => answer.text(),
        () => {},
      )
      const [span] = await recording.all(1)
      expect(span?.name).toBe(gaps.lowerCase ? 'GET' : 'HTTP')
      expect(span?.attributes).toMatchObject(
        gaps.lowerCase
          ? { 'http.request.method': method }
          : { 'http.request.method': '_OTHER', 'http.request.method_original': method },
      )
    })

    test('with credentials and signatures in its URL keeps them to itself', async () => {
      const recording = record()
      const { url, port, requests } = await served()
      const ask = await traced()
      const login = gaps.credentials === 'refused' ? '' : 'alice:s3cret@'
      const query = 'a=1&sig=s3cret&X-Amz-Signature=s3cret&Sig=kept#'
      await read(ask({ url: `http://${login}127.0.0.1:${port}/a?${query}` }))
      const [span] = await recording.all(1)
      const shown = gaps.credentials ? url : url.replace('://', '://REDACTED:REDACTED@')
      expect(span?.attributes).toMatchObject({
        'url.full': `${shown}/a?a=1&sig=REDACTED&X-Amz-Signature=REDACTED&Sig=kept`,
        'server.address': '127.0.0.1',
        'server.port': port,
      })
      expect(JSON.stringify(span?.attributes)).not.toContain('s3cret')
      expect(requests[0]?.url).toContain('sig=s3cret')
    })

    test('hides the keys that the app names in place of the usual ones', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced({ redactQueryKeys: ['token'] })
      await read(ask({ url: `${url}/a?token=t0p&sig=shown` }))
      const [span] = await recording.all(1)
      expect(span?.attributes['url.full']).toBe(`${url}/a?token=REDACTED&sig=shown`)
    })

    test('to an address in brackets, and to a name, is told of the host without them', async () => {
      const recording = record()
      const { port } = await served()
      const ask = await traced()
      await read(
        ask({ url: `http://localhost:${port}/` }).catch(() => ({
          status: 0,
          text: async () => '',
          cancel() {},
        })),
      )
      await ask({ url: `http://[::1]:${port}/` }).then(
        (answer) => answer.text(),
        () => {},
      )
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['server.address'])).toEqual(['localhost', '::1'])
      expect(spans.map(({ attributes }) => attributes['server.port'])).toEqual([port, port])
    })

    test('without a port says the port of its scheme', async () => {
      const recording = record()
      const ask = await traced()
      for (const url of ['http://nobody.invalid/', 'https://nobody.invalid/']) {
        await ask({ url }).catch(() => {})
      }
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['server.port'])).toEqual([80, 443])
    })

    test.each<[variable: string, value: string, method: string, wanted: Record<string, unknown>]>([
      [
        'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS',
        'GET,PROPFIND',
        'PROPFIND',
        { 'http.request.method': 'PROPFIND' },
      ],
      [
        'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS',
        'GET,PROPFIND',
        'POST',
        { 'http.request.method': '_OTHER', 'http.request.method_original': 'POST' },
      ],
      [
        'OTEL_SEMCONV_STABILITY_OPT_IN',
        'http/dup',
        'POST',
        {
          'http.request.method': 'POST',
          'http.response.status_code': 404,
          'http.method': 'POST',
          'http.status_code': 404,
          'http.flavor': '1.1',
          'net.peer.name': '127.0.0.1',
        },
      ],
    ])('obeys the environment: %s=%s for %s', async (variable, value, method, wanted) => {
      vi.resetModules()
      onTestFinished(() => void vi.resetModules())
      vi.stubEnv(variable, value)
      const measuring = measure()
      const recording = record()
      const { url, port } = await served((_request, response) => response.writeHead(404).end())
      const ask = await traced()
      await read(ask({ url: `${url}/a?sig=s3cret`, method }))
      const [span] = await recording.all(1)
      expect(span?.attributes).toMatchObject(wanted)
      expect(span?.name).toBe(wanted['http.request.method'] === '_OTHER' ? 'HTTP' : method)
      const [point] = await measuring.all('http.client.request.duration', 1)
      expect(point?.attributes['http.request.method']).toBe(wanted['http.request.method'])
      const [old] = await measuring.points('http.client.duration')
      if (value !== 'http/dup') expect(old).toBeUndefined()
      else {
        expect(span?.attributes['http.url']).toBe(`${url}/a?sig=REDACTED`)
        expect(old?.value).toBe((point?.value ?? NaN) * 1000)
        expect(old?.attributes).toEqual({
          'http.method': 'POST',
          'http.host': `127.0.0.1:${port}`,
          'net.peer.name': '127.0.0.1',
          'net.peer.port': port,
          'http.status_code': 404,
          'http.flavor': '1.1',
          'net.protocol.version': '1.1',
        })
      }
    })
  })

  describe(`${name}: the duration of requests`, () => {
    const METRIC = 'http.client.request.duration'

    test('is measured with the status, the version and the template, as long as the span', async () => {
      const measuring = measure()
      const recording = record()
      const { url, port } = await served()
      const ask = await traced({ urlTemplate: () => '/users/{id}' })
      await read(ask({ url: `${url}/users/7` }))
      const [span] = await recording.all(1)
      const [seconds = NaN, nanoseconds = NaN] = span?.duration ?? []
      expect(await measuring.all(METRIC, 1)).toEqual([
        {
          attributes: {
            'http.request.method': 'GET',
            'server.address': '127.0.0.1',
            'server.port': port,
            'http.response.status_code': 200,
            'network.protocol.version': '1.1',
            'url.template': '/users/{id}',
          },
          value: seconds + nanoseconds / 1e9,
          count: 1,
        },
      ])
      expect(await measuring.metric(METRIC)).toMatchObject({
        descriptor: { unit: 's' },
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
    })

    test('has no status where none came', async () => {
      const measuring = measure()
      record()
      const port = await refusedPort()
      const ask = await traced()
      await failure(ask({ url: `http://127.0.0.1:${port}/` }))
      const [point] = await measuring.all(METRIC, 1)
      expect(point?.attributes).toEqual({
        'http.request.method': 'GET',
        'server.address': '127.0.0.1',
        'server.port': port,
        'error.type': 'ECONNREFUSED',
      })
    })

    test('is measured for unsampled requests too, whose trace goes along all the same', async () => {
      const measuring = measure()
      const recording = record({ sampling: 0 })
      const { url, requests } = await served((_request, response) => response.writeHead(500).end())
      const ask = await traced()
      await read(ask({ url }))
      const [point] = await measuring.all(METRIC, 1)
      expect(point?.attributes).toMatchObject({ 'http.response.status_code': 500, 'error.type': '500' })
      expect(recording.spans).toEqual([])
      expect(valuesOf(requests[0] as never, 'traceparent')).toEqual([expect.stringMatching(/-02$/)])
    })
  })
}
