import { start } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { Agent, IncomingMessage, ServerResponse, type Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { describe, expect, onTestFinished, test } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { record } from '../../recording.ts'
import { never, ok, serverOf, type Contract, type Exchange, type Handler } from './app.ts'
import { ask, asking, raw } from './client.ts'
import { theOnly, signal, turn } from './watch.ts'

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

    describe('of a request that becomes a WebSocket', () => {
      /** Its handler gives the connection to a `ws` server of its own, as koa-easy-ws and @fastify/http-proxy do. */
      function taking(isWelcome: boolean): Handler {
        const sockets = new WebSocketServer({ noServer: true, verifyClient: () => isWelcome })
        return (exchange) => {
          const { socket } = exchange.request
          sockets.handleUpgrade(exchange.request, socket, Buffer.alloc(0), (accepted) => {
            accepted.on('message', () =>
              accepted.send(Object.hasOwn(socket, 'write') ? 'watched' : 'as before'),
            )
          })
          return never(exchange)
        }
      }

      test('is the handshake', async () => {
        const recording = record()
        const { port } = await served(taking(true))
        const client = new WebSocket(`ws://localhost:${port}/`)
        onTestFinished(() => client.terminate())
        await once(client, 'open')
        const [span] = await recording.all(1)
        expect(span).toMatchObject({ status: { code: 0 }, events: [] })
        expect(span?.attributes['http.response.status_code']).toBe(101)
        expect(span?.attributes).not.toHaveProperty('error.type')
        client.send('hello')
        expect(String((await once(client, 'message'))[0])).toBe('as before')
        client.terminate()
        await theOnly(recording)
      })

      test('is the refusal', async () => {
        const recording = record()
        const { port } = await served(taking(false))
        const client = new WebSocket(`ws://localhost:${port}/`).on('error', () => {})
        onTestFinished(() => client.terminate())
        const [, response] = (await once(client, 'unexpected-response')) as [unknown, IncomingMessage]
        response.resume()
        const span = await theOnly(recording)
        expect(span.status).toEqual({ code: 0 })
        expect(span.attributes['http.response.status_code']).toBe(401)
        expect(span.attributes).not.toHaveProperty('error.type')
      })

      test.each<[string, string | Uint8Array, number]>([
        [
          'in bytes',
          Buffer.from('HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n'),
          101,
        ],
        ['of an older server', 'HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\n', 404],
        ['without a reason', new Uint8Array(Buffer.from('HTTP/1.1 403\r\nConnection: close\r\n\r\n')), 403],
      ])('is what the app passes on by the socket, %s', async (_title, head, status) => {
        const recording = record()
        const { port } = await served((exchange) => {
          exchange.request.socket.end(head)
          return never(exchange)
        })
        const client = new WebSocket(`ws://localhost:${port}/`).on('error', () => {})
        onTestFinished(() => client.terminate())
        const span = await theOnly(recording)
        expect(span.status).toEqual({ code: 0 })
        expect(span.attributes['http.response.status_code']).toBe(status)
        expect(span.attributes).not.toHaveProperty('error.type')
      })

      test('is the answer of the app, and not the early hints before it', async () => {
        const recording = record()
        const serving = await served(({ response, answer }) => {
          response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' })
          response.writeContinue()
          return answer(201, 'ok')
        })
        await ask(serving, '/', { headers: { connection: 'Upgrade', upgrade: 'h2c' } })
        expect((await theOnly(recording)).attributes['http.response.status_code']).toBe(201)
      })

      test('is the answer of the app, where it answers as ever', async () => {
        const recording = record()
        const serving = await served(ok)
        await ask(serving, '/', { headers: { connection: 'Upgrade', upgrade: 'h2c' } })
        expect((await theOnly(recording)).attributes['http.response.status_code']).toBe(200)
      })
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

    const drops: [what: string, drop: (exchange: Exchange) => unknown][] = [
      ['its request', ({ request }) => request.destroy()],
      ['its response', ({ response }) => response.destroy()],
      ['its connection', ({ request }) => request.socket.destroy()],
    ]

    test.each(drops)('is an abort when the app destroys %s and answers all the same', async (_what, drop) => {
      const recording = record()
      const serving = await served({
        routes: {
          'GET /whole': (exchange) => {
            drop(exchange)
            exchange.answer(200, 'for nobody')
          },
          'GET /parts': (exchange) => {
            exchange.response.on('error', () => {})
            drop(exchange)
            exchange.response.write('for ')
            exchange.response.end('nobody')
            return new Promise(() => {})
          },
        },
      })
      for (const path of ['/whole', '/parts']) {
        const [error] = (await once(asking(serving, path), 'error')) as [NodeJS.ErrnoException]
        expect(error.code).toBe('ECONNRESET')
      }
      for (const span of await recording.all(2)) {
        expect(span.status).toEqual({ code: 2 })
        expect(span.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
      }
    })

    test('is an abort when the app destroys a response that waits behind another one and answers all the same', async () => {
      const recording = record()
      const dropped = new EventEmitter()
      let count = 0
      const drop: Handler = (exchange) => {
        exchange.response.on('error', () => {}).destroy()
        if (exchange.request.method === 'GET') exchange.answer(200, 'for nobody')
        else exchange.response.end('for nobody')
        count += 1
        dropped.emit(`${count}`)
        return exchange.request.method === 'GET' ? undefined : never(exchange)
      }
      const serving = await served({ routes: { 'GET /': never, 'GET /drop': drop, 'POST /drop': drop } })
      const all = once(dropped, '2')
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /drop HTTP/1.1\r\nHost: a\r\n\r\n')
      client.write('POST /drop HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi')
      await all
      client.destroy()
      for (const span of await recording.all(3)) {
        expect(span.status).toEqual({ code: 2 })
        expect(span.attributes).toMatchObject({ 'error.type': 'aborted', 'throughline.incomplete': true })
      }
    })

    test.each(drops)('is no abort when the app destroys %s behind its answer', async (_what, drop) => {
      const recording = record()
      const serving = await served((exchange) => {
        exchange.response.end('ok')
        drop(exchange)
        return new Promise(() => {})
      })
      expect(await raw(serving, 'GET / HTTP/1.1\r\nHost: a\r\n\r\n')).toContain('ok')
      expect((await theOnly(recording)).status).toEqual({ code: 0 })
    })

    test('has the status code that was sent, when the app sets another behind its answer, and fails', async () => {
      const recording = record()
      const serving = await served(({ response }) => {
        response.statusCode = 200
        response.on('finish', () => {
          response.statusCode = 500
          response.destroy(new Error('late'))
        })
        response.end('ok')
        return new Promise(() => {})
      })
      expect(await raw(serving, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')).toContain(' 200 ')
      const span = await theOnly(recording)
      expect(span.attributes['http.response.status_code']).toBe(200)
      expect(span.status).toEqual({ code: 0 })
    })

    const tooLate: [what: string, sent: number, set: number, isBehind: boolean][] = [
      ['500 in the middle of its answer', 200, 500, false],
      ['404 in the middle of its answer', 200, 404, false],
      ['200 in the middle of its answer', 503, 200, false],
      ['500 behind its answer', 200, 500, true],
      ['200 behind its answer', 503, 200, true],
    ]

    test.each(tooLate)(
      'has the status code that was sent, when the app sets %s',
      async (_what, sent, set, isBehind) => {
        const recording = record()
        const serving = await served(({ response }) => {
          response.statusCode = sent
          response.write('o')
          if (isBehind) response.end('k')
          response.statusCode = set
          if (!isBehind) response.end('k')
          return new Promise(() => {})
        })
        const text = await raw(serving, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
        expect(text).toContain(` ${sent} `)
        const span = await theOnly(recording)
        expect(span.attributes['http.response.status_code']).toBe(sent)
        expect(span.status.code).toBe(sent === 200 ? 0 : 2)
      },
    )

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

    /** A connection on which two requests have arrived that nobody answers, sent at once with what is behind them. */
    async function twoWaiting(behind = ''): Promise<Socket> {
      const arrived = new EventEmitter()
      let count = 0
      const serving = await served((exchange) => {
        count += 1
        arrived.emit(`${count}`)
        return never(exchange)
      })
      const both = once(arrived, '2')
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n'.repeat(2) + behind)
      await both
      return client
    }

    test('comes for all of those that a client sent without waiting for answers, when it leaves', async () => {
      const recording = record()
      const client = await twoWaiting()
      client.destroy()
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
    })

    test('comes for those whose bodies were read already, too, by one listener on their connection', async () => {
      const POSTS = 12
      const recording = record()
      const arrived = new EventEmitter()
      const warned: string[] = []
      const warn = ({ name }: Error) => warned.push(name)
      process.on('warning', warn)
      onTestFinished(() => void process.off('warning', warn))
      let count = 0
      const serving = await served(async (exchange) => {
        if (exchange.request.method === 'GET') return never(exchange)
        await once(exchange.request.resume(), 'close')
        exchange.answer(200, 'ok')
        count += 1
        arrived.emit(`${count}`)
        return undefined
      })
      const all = once(arrived, `${POSTS}`)
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
      client.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi'.repeat(POSTS))
      await all
      client.destroy()
      const spans = await recording.all(1 + POSTS)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(
        Array(1 + POSTS).fill('aborted'),
      )
      // Their answers wait, too: none of them was sent.
      for (const { attributes } of spans) expect(attributes).not.toHaveProperty('http.response.status_code')
      expect(warned).toEqual([])
    })

    test('comes for one that waits behind another when a third one takes their connection away from the server', async () => {
      const recording = record()
      // Nobody listens for CONNECT: Node destroys the connection.
      const client = await twoWaiting('CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n')
      onTestFinished(() => void client.destroy())
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
    })

    test('of one that waits behind another is its own answer', async () => {
      const recording = record()
      const answered = signal()
      const serving = await served(async ({ request, answer }) => {
        const isFirst = request.method === 'GET'
        await (isFirst ? answered.given : once(request.resume(), 'close'))
        answer(isFirst ? 200 : 201, 'ok')
        answered.give()
      })
      const close = 'Connection: close\r\n'
      await raw(
        serving,
        `GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n${close}Content-Length: 2\r\n\r\nhi`,
      )
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([200, 201])
      expect(spans.map(({ status }) => status.code)).toEqual([0, 0])
    })

    test('has no status when the head of the answer has waited for its body in vain', async () => {
      const recording = record()
      const serving = await served(({ response }) => {
        response.writeHead(201)
        response.destroy()
        return new Promise(() => {})
      })
      await once(asking(serving, '/'), 'error')
      const span = await theOnly(recording)
      expect(span.attributes).toMatchObject({ 'error.type': 'aborted' })
      expect(span.attributes).not.toHaveProperty('http.response.status_code')
    })

    test('is no abort when the client has the headers that it asked for with HEAD, and leaves', async () => {
      const recording = record()
      const routes = {
        'HEAD /': (exchange: Exchange) => {
          exchange.response.writeHead(201).flushHeaders()
          return never(exchange)
        },
      }
      const serving = await served({ routes })
      const asked = asking(serving, '/', { method: 'HEAD' })
      await once(asked, 'response')
      asked.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['http.response.status_code']).toBe(201)
      expect(span.attributes).not.toHaveProperty('error.type')
    })

    test('is an abort when the client that has asked with HEAD leaves before they are sent', async () => {
      const recording = record()
      const written = signal()
      const routes = {
        'HEAD /': (exchange: Exchange) => {
          // Node keeps them back for what is to follow.
          exchange.response.writeHead(201)
          written.give()
          return never(exchange)
        },
      }
      const asked = asking(await served({ routes }), '/', { method: 'HEAD' })
      await written.given
      asked.destroy()
      expect((await theOnly(recording)).attributes['error.type']).toBe('aborted')
    })

    test('is an abort of a HEAD that waits behind another request, whatever the app has flushed', async () => {
      const recording = record()
      const flushed = signal()
      const routes = {
        // Before GET, which some routers take HEAD for.
        'HEAD /': (exchange: Exchange) => {
          exchange.response.writeHead(201).flushHeaders()
          flushed.give()
          return never(exchange)
        },
        'GET /': never,
      }
      const client = connect((await served({ routes })).port, '127.0.0.1').on('error', () => {})
      client.write('GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\nHost: a\r\n\r\n')
      await flushed.given
      client.destroy()
      const spans = await recording.all(2)
      expect(spans.map(({ attributes }) => attributes['error.type'])).toEqual(['aborted', 'aborted'])
    })

    test('is no abort when the client leaves right after the answer', async () => {
      const recording = record()
      const serving = await served(ok)
      const asked = asking(serving, '/')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'end')
      asked.destroy()
      expect((await theOnly(recording)).status.code).toBe(0)
    })

    test('is an abort, with the status code that was sent, when a reader of events has had enough', async () => {
      const recording = record()
      const body = new PassThrough()
      const serving = await served(({ response, stream }) => {
        response.setHeader('content-type', 'text/event-stream')
        stream(body)
      })
      const asked = asking(serving, '/', { headers: { accept: 'text/event-stream' } })
      body.write('data: 1\n\n')
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      response.on('error', () => {})
      await once(response, 'data')
      body.write('data: 2\n\n')
      await once(response, 'data')
      expect(recording.spans).toEqual([])
      asked.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['http.response.status_code']).toBe(200)
      expect(span.attributes['error.type']).toBe('aborted')
    })

    test('comes once, when the handler ends its answer twice', async () => {
      const recording = record()
      const serving = await served(({ response }) => {
        response.on('error', () => {})
        response.end('ok')
        response.end('again')
        return new Promise(() => {})
      })
      expect((await ask(serving, '/')).body).toBe('ok')
      expect((await theOnly(recording)).status.code).toBe(0)
    })

    test('has the status code of the answer, not of the early hints before it', async () => {
      const recording = record()
      const hinted: unknown[] = []
      const serving = await served(async ({ response, answer }) => {
        await new Promise<void>((resolve) => {
          response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' }, resolve)
        })
        answer(201, 'ok')
      })
      const asked = asking(serving, '/')
      asked.on('information', ({ statusCode }) => hinted.push(statusCode))
      const [response] = (await once(asked, 'response')) as [IncomingMessage]
      await once(response.resume(), 'end')
      expect(hinted).toEqual([103])
      expect((await theOnly(recording)).attributes['http.response.status_code']).toBe(201)
    })

    const made: [what: string, made: () => MadeUp][] = [
      ['never closes', () => madeUp((written) => written())],
      ['closes when it is written', () => closing(madeUp((written) => written()))],
      ['closes before it is written', () => closing(madeUp(setImmediate))],
    ]

    test.each(made)(
      'is the answer to a request that came by no connection, as in a function of a cloud: the response %s',
      async (_what, make) => {
        const recording = record()
        const server = signal<Server>()
        const serving = await served((exchange) => {
          if (exchange.request.socket.remotePort !== undefined) server.give(serverOf(exchange.request))
          exchange.answer(200, 'ok')
        })
        await ask(serving, '/')
        await recording.all(1)
        const { request, response } = make()
        const written = once(response, 'finish')
        ;(await server.given).emit('request', request, response)
        await written
        const [, span] = await recording.all(2)
        expect(span?.status).toEqual({ code: 0 })
        expect(span?.attributes).toMatchObject({ 'url.path': '/', 'http.response.status_code': 200 })
        expect(span?.attributes).not.toHaveProperty('error.type')
        expect(span?.attributes).not.toHaveProperty('throughline.incomplete')
      },
    )

    test('is behind the trailers', async () => {
      const recording = record()
      const serving = await served(({ response }) => {
        response.writeHead(200, { trailer: 'x-sum' })
        response.write('ok')
        response.addTrailers({ 'x-sum': '7' })
        response.end()
        return new Promise(() => {})
      })
      const [response] = (await once(asking(serving, '/'), 'response')) as [IncomingMessage]
      await once(response.resume(), 'end')
      expect(response.trailers).toEqual({ 'x-sum': '7' })
      expect((await theOnly(recording)).status.code).toBe(0)
    })

    test('is an abort when the client sends the headers of a body and nothing more, and leaves', async () => {
      const recording = record()
      const arrived = signal()
      const serving = await served(async ({ request, answer }) => {
        request.on('error', () => {})
        arrived.give()
        request.resume()
        await once(request, 'end')
        answer(200)
      })
      const client = connect(serving.port, '127.0.0.1').on('error', () => {})
      client.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n')
      await arrived.given
      client.destroy()
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes['http.request.method']).toBe('POST')
    })

    test('is the answer, where nobody waited for a body that never came', async () => {
      const recording = record()
      const serving = await served(({ response, answer }) => {
        response.setHeader('connection', 'close')
        answer(413)
      })
      await raw(serving, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n')
      const span = await theOnly(recording)
      expect(span.attributes['http.response.status_code']).toBe(413)
      expect(span.status.code).toBe(0)
    })

    test('is an abort when the connection has been silent for too long', async () => {
      const recording = record()
      const serving = await served((exchange) => {
        exchange.request.socket.setTimeout(20)
        return never(exchange)
      })
      asking(serving, '/')
      const span = await theOnly(recording)
      expect(span.attributes['error.type']).toBe('aborted')
      expect(span.attributes).not.toHaveProperty('http.response.status_code')
    })

    test('waits for what is under way when the server closes, and is an abort when it closes all connections', async () => {
      const recording = record()
      const arrived = new EventEmitter()
      const go = signal()
      const serving = await served({
        routes: {
          'GET /': async ({ request, answer }) => {
            arrived.emit('one', serverOf(request))
            await go.given
            answer(200, 'ok')
          },
          'GET /never': (exchange) => (arrived.emit('other'), never(exchange)),
        },
      })
      const both = Promise.all([once(arrived, 'one'), once(arrived, 'other')])
      const answered = ask(serving, '/')
      asking(serving, '/never')
      const [[server]] = (await both) as [[Server], unknown]
      server.close()
      go.give()
      expect((await answered).body).toBe('ok')
      const [first] = await recording.all(1)
      expect(first?.status.code).toBe(0)
      server.closeAllConnections()
      const [, second] = await recording.all(2)
      expect(second?.attributes['error.type']).toBe('aborted')
    })

    test('is there at our shutdown for what is never answered, marked as incomplete, and does not come again', async () => {
      const recording = record()
      const arrived = signal()
      const closed = signal()
      const serving = await served((exchange) => {
        exchange.response.on('close', closed.give)
        arrived.give()
        return never(exchange)
      })
      const client = asking(serving, '/')
      await arrived.given
      await recording.stop()
      const span = await theOnly(recording)
      expect(span.attributes['throughline.incomplete']).toBe(true)
      client.destroy()
      await closed.given
      expect(recording.spans).toHaveLength(1)
    })

    test('comes as often as the beginning, among a thousand requests of all kinds', async () => {
      const arrived = new EventEmitter()
      const count = { started: 0, ended: 0, endedTwice: 0 }
      const seen = new WeakSet<object>()
      const changed = new EventEmitter()
      const tracing = start({
        signals: false,
        spanProcessors: [
          {
            onStart: () => void (count.started += 1),
            onEnd(span) {
              if (seen.has(span)) count.endedTwice += 1
              seen.add(span)
              count.ended += 1
              changed.emit('end')
            },
            forceFlush: async () => {},
            shutdown: async () => {},
          },
        ],
      })
      onTestFinished(() => tracing.shutdown())
      const serving = await served(
        {
          routes: {
            'GET /': ok,
            'GET /health': ok,
            'GET /fails': () => Promise.reject(new Error('no')),
            'GET /stream': ({ stream }) => stream(Readable.from(['a', 'b', 'c'])),
            'GET /half': ({ response }) => (response.write('half'), new Promise(() => {})),
            'GET /never/:id': (exchange) => (arrived.emit(exchange.request.url ?? ''), never(exchange)),
            'POST /': async ({ request, answer }) => {
              for await (const _ of request);
              answer(200)
            },
          },
        },
        { ignore: '/health' },
      )
      const agent = new Agent({ keepAlive: true })
      onTestFinished(() => agent.destroy())
      /** Leaves when the handler has the request, or when the client has the beginning of the answer. */
      const aborted = async (path: string) => {
        const arrival = path === '/half' ? undefined : once(arrived, path)
        const client = asking(serving, path)
        if (arrival === undefined) {
          const [response] = (await once(client, 'response')) as [IncomingMessage]
          response.on('error', () => {})
        } else await arrival
        client.destroy()
      }
      const unsampled = { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-00` }
      let number = 0
      const kinds: (() => Promise<unknown>)[] = [
        () => ask(serving, '/'),
        () => ask(serving, '/', { agent }),
        () => ask(serving, '/nothing'),
        () => ask(serving, '/fails'),
        () => ask(serving, '/stream'),
        () => ask(serving, '/', { method: 'POST', body: 'hello' }),
        () => aborted('/half'),
        () => aborted(`/never/${(number += 1)}`),
        () => ask(serving, '/health'),
        () => ask(serving, '/', { headers: unsampled }),
      ]
      const COUNT = 1000
      const AT_ONCE = 50
      for (let made = 0; made < COUNT; made += AT_ONCE) {
        const batch = Array.from({ length: AT_ONCE }, (_, i) => kinds[i % kinds.length]?.())
        await Promise.all(batch)
      }
      // Those that are ignored, or not sampled, are not counted.
      const recorded = (COUNT / kinds.length) * (kinds.length - 2)
      while (count.ended < recorded) await once(changed, 'end')
      await turn()
      expect(count).toEqual({ started: recorded, ended: recorded, endedTwice: 0 })
    })
  })
}

interface MadeUp {
  readonly request: IncomingMessage
  readonly response: ServerResponse
}

/** As serverless-http makes it: in the place of each connection is an object that takes what is written. */
function madeUp(write: (written: () => void) => void): MadeUp {
  const nothing = () => {}
  const peer = Object.assign(new EventEmitter(), { remoteAddress: '203.0.113.9', destroy: nothing })
  const request = new IncomingMessage(peer as unknown as Socket)
  const version = { httpVersion: '1.1', httpVersionMajor: 1, httpVersionMinor: 1 }
  Object.assign(request, { ...version, method: 'GET', url: '/', headers: { host: 'a.com' }, complete: true })
  request.push(null)
  const response = new ServerResponse(request)
  const sink = {
    _writableState: {},
    writable: true,
    on: nothing,
    removeListener: nothing,
    destroy: nothing,
    cork: nothing,
    uncork: nothing,
    write(_data: unknown, encoding: unknown, written: unknown) {
      const done = typeof encoding === 'function' ? encoding : written
      if (typeof done === 'function') write(done as () => void)
      return true
    },
  }
  response.assignSocket(sink as unknown as Socket)
  return { request, response }
}

/** As light-my-request does it, too. */
function closing({ request, response }: MadeUp): MadeUp {
  const { end } = response
  response.end = function (this: ServerResponse, ...given: unknown[]) {
    Reflect.apply(end, this, given)
    this.emit('close')
    return this
  } as typeof end
  return { request, response }
}
