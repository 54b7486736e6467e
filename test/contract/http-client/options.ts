import type { HttpResponse } from '@throughline/core/http-client'
import { span } from '@throughline/core'
import { describe, expect, test } from 'vitest'
import { said } from '../../core/engine.ts'
import { record } from '../../recording.ts'
import { failure, read, refusedPort, served, type Contract } from './client.ts'

/** What an app may say of its requests. */
export function takesOptions({ name, traced }: Contract): void {
  describe(`${name}: the options`, () => {
    test('capture: named headers are recorded, and no others', async () => {
      const recording = record()
      const { url } = await served((_request, response) => {
        response.setHeader('x-region', 'eu').setHeader('x-other', 's3cret').end()
      })
      const ask = await traced({
        capture: { requestHeaders: ['X-Tenant'], responseHeaders: ['X-Region', 'x-none'] },
      })
      await read(ask({ url, headers: { 'x-tenant': 'acme', authorization: 's3cret' } }))
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({
        'http.request.header.x-tenant': ['acme'],
        'http.response.header.x-region': ['eu'],
      })
      expect(call?.attributes).not.toHaveProperty('http.response.header.x-none')
      expect(JSON.stringify(call?.attributes)).not.toContain('s3cret')
    })

    test('capture: a header that comes twice is two values', async () => {
      const recording = record()
      const { url } = await served((_request, response) => {
        response.setHeader('set-cookie', ['a=1', 'b=2']).end()
      })
      const ask = await traced({ capture: { responseHeaders: ['set-cookie'] } })
      await read(ask({ url }))
      const [call] = await recording.all(1)
      expect(call?.attributes['http.response.header.set-cookie']).toEqual(['a=1', 'b=2'])
    })

    test('urlTemplate: names the span, and is asked with the URL and the method', async () => {
      const recording = record()
      const { url } = await served()
      const asked: unknown[] = []
      const ask = await traced({
        urlTemplate(...given) {
          asked.push(given)
          return given[0].includes('/users/') ? '/users/{id}' : undefined
        },
      })
      await read(ask({ url: `${url}/users/7?a=1` }))
      await read(ask({ url: `${url}/other` }))
      const [first, second] = await recording.all(2)
      expect(first).toMatchObject({ name: 'GET /users/{id}', attributes: { 'url.template': '/users/{id}' } })
      expect(second?.name).toBe('GET')
      expect(second?.attributes).not.toHaveProperty('url.template')
      expect(asked).toEqual([
        [`${url}/users/7?a=1`, 'GET'],
        [`${url}/other`, 'GET'],
      ])
    })

    test('ignore: is asked with the URL and the method', async () => {
      const recording = record()
      const { url } = await served()
      const asked: unknown[] = []
      const ask = await traced({
        ignore(...given) {
          asked.push(given)
          return true
        },
      })
      await read(ask({ url: `${url}/a?b=1`, method: 'POST' }))
      expect(asked).toEqual([[`${url}/a?b=1`, 'POST']])
      expect(recording.spans).toEqual([])
    })

    test('attributes: gets the request and the response, at the end', async () => {
      const recording = record()
      const { url } = await served((_request, response) =>
        response.writeHead(404, { 'x-region': 'eu' }).end(),
      )
      const ask = await traced({
        attributes: ({ method, origin, path }, response) => ({
          'app.asked': `${method} ${String(origin)}${path}`,
          'app.answer': `${response?.statusCode} ${String((response as HttpResponse).headers['x-region'])}`,
        }),
      })
      await read(ask({ url: `${url}/a?b=1` }))
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'app.asked': `GET ${url}/a?b=1`, 'app.answer': '404 eu' })
    })

    test('attributes: gets the request alone where that failed', async () => {
      const recording = record()
      const port = await refusedPort()
      const given: unknown[] = []
      const ask = await traced({
        attributes({ path }, response) {
          given.push(response)
          return { 'app.asked': path }
        },
      })
      await failure(ask({ url: `http://127.0.0.1:${port}/a` }))
      const [call] = await recording.all(1)
      expect(call?.attributes).toMatchObject({ 'app.asked': '/a', 'error.type': 'ECONNREFUSED' })
      expect(given).toEqual([undefined])
    })

    test('functions of the app that throw, or answer with a promise, cost their own and nothing else', async () => {
      const recording = record()
      const { url } = await served()
      const broken = () => {
        throw new Error('of the app')
      }
      const late = () => Promise.reject(new Error('of the app')) as never
      for (const fn of [broken, late]) {
        const ask = await traced({ ignore: fn, attributes: fn, urlTemplate: fn, propagateTo: fn })
        expect(await read(ask({ url }))).toBe('hello')
      }
      const spans = await recording.all(2)
      for (const call of spans) {
        expect(call.name).toBe('GET')
        expect(call.attributes).toMatchObject({ 'http.response.status_code': 200 })
      }
    })

    test('attributes that are none are told of once, and nothing to add is none of those', async () => {
      const told = said()
      const recording = record()
      const { url } = await served()
      const answers = [undefined, null, false, 'tenant=acme', ['a']]
      const ask = await traced({ attributes: () => answers.shift() as never })
      for (let left = answers.length; left > 0; left--) await read(ask({ url }))
      const spans = await recording.all(5)
      expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual(
        Array(5).fill(200),
      )
      expect(told.lines).toEqual([
        expect.stringMatching(
          /^throughline: attributes: expected an object of attributes, received a string, /,
        ),
      ])
    })

    test('requireParent: a request outside of any span has none', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced({ requireParent: true })
      await read(ask({ url }))
      expect(recording.spans).toEqual([])
      await span('caller', () => read(ask({ url })))
      await recording.all(2)
    })

    test.each([
      ['unsampled', { sampling: 0 }, undefined],
      ['ignored', {}, /.*/],
    ])(
      'a request that is %s has no name, no attributes and no template made for it',
      async (_title, started, ignore) => {
        record(started)
        const { url } = await served()
        const asked: string[] = []
        const note = (option: string) => (): undefined => void asked.push(option)
        const ask = await traced({
          ignore,
          urlTemplate: note('urlTemplate'),
          attributes: note('attributes') as never,
          firstByteEvent: true,
        })
        await span('caller', () => read(ask({ url: `${url}/?sig=s3cret` })))
        expect(asked).toEqual([])
      },
    )

    test('ignore: a text without a query is that URL with any query, one with a query is that alone', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced({ ignore: [`${url}/health`, `${url}/stock?sku=1`] })
      for (const path of ['/health', '/health?full=1', '/stock?sku=1']) await read(ask({ url: url + path }))
      const others = ['/healthy', '/health/all', '/stock', '/stock?sku=12', '/stock?sku=1?', '/?to=/health']
      for (const path of others) await read(ask({ url: url + path }))
      const spans = await recording.all(others.length)
      expect(spans.map(({ attributes }) => attributes['url.full'])).toEqual(others.map((path) => url + path))
    })

    test.each<[object, RegExp]>([
      [{ headers: 'both' }, /expected headers to be one of 'replace', 'keep', received "both"/],
      [
        { ignore: 7 },
        /expected ignore to be .*, received 7; example: \{ ignore: \['https:\/\/api\.example\.com\//,
      ],
      [
        { ignore: '/health' },
        /expected ignore to be a function, a URL from http:\/\/ or https:\/\/ to its path, .* received "\/health"; example: /,
      ],
      [
        { ignore: 'https://api.example.com' },
        /to its path, .* received "https:\/\/api\.example\.com"; example: /,
      ],
      [
        { ignore: [/health/, 'https://api.example.com/', 'localhost:3000/?sig=s3cret'] },
        /received an array with "localhost:3000\/\?REDACTED"; example: /,
      ],
      [{ ignore: ['https://api.example.com/', 7] }, /received an array with 7; example: /],
      [{ propagateTo: 7 }, /expected propagateTo to be .* received 7/],
      [
        { propagateTo: '127.0.0.1' },
        /expected propagateTo to be a function, the beginning of a URL, from its scheme on, .* received "127\.0\.0\.1"; example: /,
      ],
      [
        { propagateTo: ['https://api.example.com', 'api.example.com'] },
        /received an array with "api\.example\.com"; example: /,
      ],
      [{ redactQueryKeys: 'sig' }, /expected redactQueryKeys to be a list of query keys/],
      [{ urlTemplate: '/users' }, /expected urlTemplate to be a function/],
      [{ firstByteEvent: 1 }, /expected firstByteEvent to be true or false/],
      [{ capture: { requestHeaders: 'x' } }, /expected capture to be lists of header names/],
      [
        { capture: { headers: ['x'] } },
        /expected capture to be lists of header names, received an object with "headers": an array; example: /,
      ],
    ])('%j is a mistake that is told at set-up', async (options, message) => {
      await expect((async () => traced(options))()).rejects.toThrow(message)
      await expect((async () => traced(options))()).rejects.toThrow(TypeError)
    })
  })
}
