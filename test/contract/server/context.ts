import { SpanKind, trace } from '@opentelemetry/api'
import { span as manualSpan } from '@throughline/core'
import { once } from 'node:events'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { Transform } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import { PARENT_ID, serverOf, type Contract } from './app.ts'
import { ask, asking, raw } from './client.ts'
import { theOnly, signal, turn } from './watch.ts'

const currentId = () => trace.getActiveSpan()?.spanContext().spanId

/** What is current while a request is answered. */
export function keepsContext({ name, served, spanOf }: Contract): void {
  describe(`${name}: the current span is the request’s`, () => {
    test('in the handler, after awaits, in timers, and in listeners of the request and of the response', async () => {
      const seen = new Map<string, string | undefined>()
      const note = (place: string) => () => {
        seen.set(place, trace.getActiveSpan()?.spanContext().spanId)
      }
      const arrived = signal()
      const closed = signal()
      const recording = record()
      const serving = await served(async ({ request, response, answer }) => {
        note('handler')()
        request.on('data', note('data'))
        request.on('end', note('end'))
        response.on('finish', note('finish'))
        response.on('close', () => {
          note('close')()
          closed.give()
        })
        arrived.give()
        await once(request, 'end')
        note('after an event')()
        await new Promise((resolve) => setTimeout(resolve, 1))
        note('after a timer')()
        await new Promise<void>((resolve) => {
          setImmediate(() => {
            note('immediate')()
            process.nextTick(() => {
              note('tick')()
              resolve()
            })
          })
        })
        answer(200, 'ok')
      })
      const asked = asking(serving, '/', { method: 'POST' }, '')
      asked.flushHeaders()
      await arrived.given
      asked.end('what comes later, from the socket')
      await once(asked, 'response')
      await closed.given
      const span = await theOnly(recording)
      const places = [
        'handler',
        'data',
        'end',
        'after an event',
        'after a timer',
        'immediate',
        'tick',
        'finish',
        'close',
      ]
      const { spanId } = span.spanContext()
      expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(places.map((place) => [place, spanId])))
    })

    test('while the handler reads the body bit by bit', async () => {
      const seen: unknown[] = []
      const span = await spanOf(
        async ({ request, answer }) => {
          let text = ''
          for await (const chunk of request) {
            text += String(chunk)
            seen.push(trace.getActiveSpan()?.spanContext().spanId)
          }
          answer(200, text)
        },
        '/',
        { method: 'POST', body: 'hello' },
      )
      expect(seen).toEqual([span.spanContext().spanId])
    })

    test('while the body comes bit by bit, through pipes, and in listeners that were there before us', async () => {
      const seen = new Map<string, unknown>()
      const note = (place: string) => seen.set(place, currentId())
      const server = signal<Server>()
      const serving = await served({
        routes: {
          'GET /': ({ request, answer }) => {
            server.give(serverOf(request))
            answer(200)
          },
          'POST /': async ({ request, answer }) => {
            const upper = new Transform({
              transform(chunk, _encoding, done) {
                note(`pipe ${chunk}`)
                done(null, String(chunk).toUpperCase())
              },
            })
            let text = ''
            for await (const chunk of request.pipe(upper)) {
              note(`loop ${chunk}`)
              request.emit('read')
              text += String(chunk)
            }
            note('after')
            answer(200, text)
          },
        },
      })
      await ask(serving, '/')
      const inner = await server.given
      const read = signal()
      inner.prependListener('request', (request: IncomingMessage, response: ServerResponse) => {
        request.on('read', read.give)
        request.on('end', () => note('end'))
        response.on('finish', () => note('finish'))
      })
      const recording = record()
      const asked = asking(serving, '/', { method: 'POST' }, 'one')
      await read.given
      asked.end('two')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'end')
      const { spanId } = (await theOnly(recording)).spanContext()
      const places = ['pipe one', 'loop ONE', 'pipe two', 'loop TWO', 'after', 'end', 'finish']
      expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(places.map((place) => [place, spanId])))
    })

    test('when the request ends after its answer, of which only Node hears', async () => {
      const ended = signal<unknown>()
      const span = await spanOf(({ request, answer }) => {
        request.on('end', () => ended.give(currentId()))
        answer(200)
      })
      expect(await ended.given).toBe(span.spanContext().spanId)
    })

    test('when what it has answered behind another request on its connection is sent', async () => {
      const recording = record()
      const seen: unknown[] = []
      const answered = signal()
      const serving = await served(async ({ request, response, answer }) => {
        if (request.method === 'GET') {
          await answered.given
          answer(200, 'first')
          return
        }
        response.write('sec', () => seen.push(currentId()))
        response.end('ond', () => seen.push(currentId()))
        answered.give()
      })
      const close = 'Connection: close\r\n'
      await raw(
        serving,
        `GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n${close}Content-Length: 2\r\n\r\nhi`,
      )
      const spans = await recording.all(2)
      const second = spans.find(({ attributes }) => attributes['http.request.method'] === 'POST')
      const { spanId } = second?.spanContext() ?? {}
      expect(seen).toEqual([spanId, spanId])
    })

    test('so that spans of the app nest in it, by our function or by the API’s', async () => {
      const recording = record()
      const serving = await served(async ({ answer }) => {
        await manualSpan('ours', async () => {
          await turn()
          trace.getTracer('app').startActiveSpan('theirs', (inner) => inner.end())
        })
        answer(200)
      })
      await ask(serving, '/')
      const [theirs, ours, server] = await recording.all(3)
      expect(theirs?.parentSpanContext?.spanId).toBe(ours?.spanContext().spanId)
      expect(ours?.parentSpanContext?.spanId).toBe(server?.spanContext().spanId)
      expect(server?.kind).toBe(SpanKind.SERVER)
    })

    test('and never another’s, among two hundred at the same time', async () => {
      const recording = record()
      const COUNT = 200
      const all = signal()
      let arrived = 0
      const mixed: string[] = []
      const serving = await served(async ({ request, answer }) => {
        const wanted = String(request.headers['traceparent']).split('-')[1]
        const check = () => {
          const got = trace.getActiveSpan()?.spanContext().traceId
          if (got !== wanted) mixed.push(`${got} for ${wanted}`)
        }
        request.on('end', check)
        check()
        arrived += 1
        if (arrived === COUNT) all.give()
        await all.given
        check()
        await manualSpan('inside', async () => {
          await turn()
          check()
        })
        request.resume()
        answer(200)
      })
      const ids = Array.from({ length: COUNT }, (_, i) => (i + 1).toString(16).padStart(32, '0'))
      await Promise.all(
        ids.map((id) => ask(serving, '/', { headers: { traceparent: `00-${id}-${PARENT_ID}-01` } })),
      )
      const spans = await recording.all(2 * COUNT)
      expect(mixed).toEqual([])
      expect(new Set(spans.map((span) => span.spanContext().traceId))).toEqual(new Set(ids))
    })
  })
}
