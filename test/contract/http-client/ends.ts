import { SpanStatusCode } from '@opentelemetry/api'
import type { ReadableSpan } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import { createServer } from 'node:net'
import { describe, expect, test, vi } from 'vitest'
import { record } from '../../recording.ts'
import { codeOf, failure, listening, read, refusedPort, served, type Contract } from './client.ts'

const certificate = (name: string) =>
  readFileSync(new URL(`../../core/certificates/${name}.pem`, import.meta.url))

function millisecondsOf({ duration: [seconds, nanoseconds] }: ReadableSpan): number {
  return seconds * 1e3 + nanoseconds / 1e6
}

/** When a request is over, and what is an error. */
export function endsWithTheLastByte({ name, gaps, traced, untraced }: Contract): void {
  describe(`${name}: the span of a request`, () => {
    test('ends with the last byte of the body, and not before', async () => {
      const recording = record()
      const arrived = new EventEmitter()
      const { url } = await served((_request, response) => {
        response.write('the first of two, ')
        arrived.emit('response', response)
      })
      const ask = await traced()
      const asked = ask({ url })
      const [response] = (await once(arrived, 'response')) as [ServerResponse]
      const answer = await asked
      const text = answer.text()
      await new Promise((resolve) => setTimeout(resolve, 50))
      expect(recording.spans).toEqual([])
      response.end('the second')
      expect(await text).toBe('the first of two, the second')
      const [span] = await recording.all(1)
      expect(millisecondsOf(span as ReadableSpan)).toBeGreaterThan(45)
    })

    test('tells by an event when the response began, where it is asked to', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced({ firstByteEvent: true })
      await read(ask({ url }))
      const [span] = await recording.all(1)
      expect(span?.events).toMatchObject([{ name: 'http.response.first_byte' }])
    })

    test('ends at the time of the headers, when nobody has read the body for half a minute', async () => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
      try {
        const recording = record()
        const { url } = await served((_request, response) => void response.write('the first of two'))
        const ask = await traced()
        await ask({ url })
        vi.advanceTimersByTime(29_000)
        expect(recording.spans).toEqual([])
        vi.advanceTimersByTime(6_000)
        const [span] = await recording.all(1)
        expect(millisecondsOf(span as ReadableSpan)).toBeLessThan(1_000)
        expect(span?.status.code).toBe(SpanStatusCode.UNSET)
      } finally {
        vi.useRealTimers()
      }
    })

    test('ends unset when the caller gives the body up', async () => {
      const recording = record()
      const { url } = await served((_request, response) => void response.write('the first of two'))
      const ask = await traced()
      const answer = await ask({ url })
      await answer.cancel()
      const [span] = await recording.all(1)
      expect(span?.status.code).toBe(SpanStatusCode.UNSET)
      expect(span?.attributes).toMatchObject({ 'http.response.status_code': 200 })
      expect(span?.attributes).not.toHaveProperty('error.type')
    })
  })

  describe(`${name}: an error`, () => {
    test('of the system at the connection has its code, its message, and comes to the app as before', async () => {
      const recording = record()
      const url = `http://127.0.0.1:${await refusedPort()}/`
      const before = await failure((await untraced())({ url }))
      const after = await failure((await traced())({ url }))
      expect(after).toEqual(before)
      const [span] = await recording.all(1)
      expect(span?.status).toEqual({
        code: SpanStatusCode.ERROR,
        message: expect.stringContaining('ECONNREFUSED'),
      })
      expect(span?.attributes['error.type']).toBe('ECONNREFUSED')
      expect(span?.attributes).not.toHaveProperty('http.response.status_code')
    })

    test('of a name that nobody has is the code of the resolver', async () => {
      const recording = record()
      const ask = await traced()
      const error = await failure(ask({ url: 'http://nobody.invalid/' }))
      const [span] = await recording.all(1)
      // Where there is no resolver at all it is the latter.
      expect(['ENOTFOUND', 'EAI_AGAIN']).toContain(span?.attributes['error.type'])
      expect(span?.attributes['error.type']).toBe(codeOf(error))
    })

    test('of a certificate that cannot be believed is the code of TLS', async () => {
      const recording = record()
      const server = createSecureServer({ key: certificate('app.key'), cert: certificate('app') })
      const port = await listening(server)
      const ask = await traced()
      const error = await failure(ask({ url: `https://127.0.0.1:${port}/` }))
      const [span] = await recording.all(1)
      expect(span?.attributes['error.type']).toMatch(/SELF_SIGNED|UNABLE_TO_VERIFY|CERT/)
      expect(span?.attributes['error.type']).toBe(codeOf(error))
    })

    test.each([
      ['a success', 200, codeOf],
      ['an error, which stays the reason', 503, () => '503'],
    ] as const)(
      'of a connection that breaks in the body of %s keeps the status',
      async (_of, status, typeOf) => {
        const recording = record()
        const server = createServer((socket) => {
          socket.on('error', () => {})
          socket.once('data', () => {
            socket.write(`HTTP/1.1 ${status} Said\r\ncontent-length: 100\r\n\r\nthe first`, () =>
              socket.resetAndDestroy(),
            )
          })
        })
        const port = await listening(server)
        const ask = await traced()
        const error = await failure(read(ask({ url: `http://127.0.0.1:${port}/` })))
        const [span] = await recording.all(1)
        expect(span?.status.code).toBe(SpanStatusCode.ERROR)
        expect(span?.attributes).toMatchObject({
          'http.response.status_code': status,
          'error.type': typeOf(error),
        })
      },
    )

    test('of a server that closes without a word is the code of it', async () => {
      const recording = record()
      const server = createServer((socket) => {
        socket.on('error', () => {})
        socket.once('data', () => socket.destroy())
      })
      const port = await listening(server)
      const ask = await traced()
      const error = await failure(ask({ url: `http://127.0.0.1:${port}/` }))
      const [span] = await recording.all(1)
      expect(span?.attributes['error.type']).toBe(codeOf(error))
      expect(span?.attributes).not.toHaveProperty('http.response.status_code')
    })
  })

  describe(`${name}: an abort`, () => {
    class Cancelled extends Error {
      override name = 'Cancelled'
    }
    const reasons: [string, unknown][] = [
      ['no reason', undefined],
      ['an error of the app as its reason', new Cancelled('the user left')],
      ['a text as its reason', 'the user left'],
    ]

    test.each(reasons)(
      'by the caller before anything was sent makes no error: %s',
      async (_title, reason) => {
        const recording = record()
        const { url } = await served()
        const ask = await traced()
        const bare = await untraced()
        const controller = new AbortController()
        controller.abort(reason)
        const outcome = async (by: typeof ask) =>
          by({ url, signal: controller.signal }).then(
            () => 'answered',
            (error: unknown) => error,
          )
        const before = await outcome(bare)
        expect(await outcome(ask)).toEqual(before)
        // Whether there is a span is the client's: some do not begin at all.
        for (const { status } of recording.spans) expect(status.code).toBe(SpanStatusCode.UNSET)
      },
    )

    test.each(reasons)('by the caller while the server thinks is no error: %s', async (_title, reason) => {
      const recording = record()
      const arrived = new EventEmitter()
      const { url } = await served(() => void arrived.emit('request'))
      const ask = await traced()
      const controller = new AbortController()
      const asked = ask({ url, signal: controller.signal }).catch((error: unknown) => error)
      await once(arrived, 'request')
      controller.abort(reason)
      await asked
      const [span] = await recording.all(1)
      expect(span?.status).toEqual({ code: SpanStatusCode.UNSET })
      expect(span?.attributes).not.toHaveProperty('error.type')
      expect(span?.attributes).not.toHaveProperty('http.response.status_code')
    })

    test.each(reasons)('by the caller in mid-body is no error: %s', async (_title, reason) => {
      const recording = record()
      const { url } = await served((_request, response) => void response.write('the first of two'))
      const ask = await traced()
      const controller = new AbortController()
      const answer = await ask({ url, signal: controller.signal })
      const text = answer.text().catch((error: unknown) => error)
      controller.abort(reason)
      await text
      const [span] = await recording.all(1)
      expect(span?.status).toEqual({ code: SpanStatusCode.UNSET })
      expect(span?.attributes).toMatchObject({ 'http.response.status_code': 200 })
      expect(span?.attributes).not.toHaveProperty('error.type')
    })

    test.each([
      ['before the headers', () => {}],
      ['in mid-body', (response: ServerResponse) => void response.write('the first of two')],
    ])('by a time limit is an error: %s', async (title, answer) => {
      const recording = record()
      const { url } = await served((_request, response) => answer(response))
      const ask = await traced()
      await failure(read(ask({ url, signal: AbortSignal.timeout(100) })))
      const [span] = await recording.all(1)
      const isSeen = gaps.timeLimit !== true || title === 'before the headers'
      expect(span?.status.code).toBe(isSeen ? SpanStatusCode.ERROR : SpanStatusCode.UNSET)
      expect(span?.attributes['error.type']).toBe(isSeen ? 'TimeoutError' : undefined)
    })
  })
}
