import { EventEmitter, once } from 'node:events'
import { type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { PassThrough } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import { never, type Contract } from './app.ts'
import { asking } from './client.ts'
import { theOnly, signal } from './watch.ts'

/** When a request is over, and how it ended. */
export function endsWithRequests({ name, served }: Contract): void {
  describe(`${name}: the end`, () => {
    test('is the last byte of a body that comes bit by bit', async () => {
      const recording = record()
      const body = new PassThrough()
      const serving = await served(({ stream }) => stream(body))
      const asked = asking(serving, '/')
      body.write('first')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response, 'data')
      expect(recording.spans).toEqual([])
      body.end('last')
      response.resume()
      await once(response, 'end')
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 0 })
      expect(span.attributes['http.response.status_code']).toBe(200)
    })

    test('is an abort, without a status code, when the client leaves before the answer', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served((exchange) => (arrived.give(), never(exchange)))
      const client = asking(serving, '/')
      await arrived.given
      expect(recording.spans).toEqual([])
      client.destroy()
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 2 })
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes).not.toHaveProperty('http.response.status_code')
      expect(span.events).toEqual([])
    })

    test('comes once, when the handler answers a client that has left', async () => {
      const recording = record()
      const arrived = signal()
      const left = signal()
      const answered = signal()
      const serving = await served(async ({ response, answer }) => {
        response.on('close', left.give)
        arrived.give()
        await left.given
        answer(200, 'too late')
        setImmediate(answered.give)
      })
      const client = asking(serving, '/')
      await arrived.given
      client.destroy()
      await answered.given
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
    })

    test('is an abort, with the status code that was sent, when the client leaves in the middle of the body', async () => {
      const recording = record()
      const body = new PassThrough()
      const serving = await served(({ stream }) => stream(body))
      const asked = asking(serving, '/')
      body.write('first')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      response.on('error', () => {})
      await once(response, 'data')
      asked.destroy()
      const span = await theOnly(recording)
      expect(span.status).toEqual({ code: 2 })
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes['http.response.status_code']).toBe(200)
    })

    test('is an abort when the client leaves in the middle of its own body', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served(async ({ request, answer }) => {
        request.on('error', () => {})
        request.on('data', arrived.give)
        await once(request, 'end')
        answer(200)
      })
      const client = asking(serving, '/', { method: 'POST', headers: { 'content-length': '100' } }, 'half')
      await arrived.given
      client.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
    })

    test('comes for all of those that a client sent without waiting for answers, when it leaves', async () => {
      const recording = record()
      const arrived = new EventEmitter()
      let count = 0
      const serving = await served((exchange) => {
        count += 1
        arrived.emit(`${count}`)
        return never(exchange)
      })
      const both = once(arrived, '2')
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n'.repeat(2))
      await both
      client.destroy()
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
    })
  })
}
