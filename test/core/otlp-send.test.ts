import { context, trace } from '@opentelemetry/api'
import dns from 'node:dns'
import * as http from 'node:http'
import { once } from 'node:events'
import { Socket } from 'node:net'
import { gunzipSync } from 'node:zlib'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { batchProcessor, type ExportResult } from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import { otlpExporter, type OtlpExporter } from '../../packages/core/src/otlp/send.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { engine, finished, said } from './engine.ts'
import { exporterTo, send, statuses } from './exporter.ts'
import { deadPort, receiver } from './receiver.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

test('at the default endpoint a collector that has answered once is one, and what it misses is counted', async () => {
  const reports = said()
  const port = await deadPort()
  const exporter = exporterTo(`http://127.0.0.1:${port}`, { isDefault: true })
  const { processor, ended } = batched(exporter)
  for (const count of [1, 2]) {
    await ended(count)
    const close = await collectorAt(port)
    await ended(1)
    await close()
  }
  await ended(3)
  await processor.shutdown()
  expect(reports.lines).toEqual([
    expect.stringContaining('nobody listens at'),
    'throughline: spans are exported again; 1 was lost',
    expect.stringMatching(/^throughline: spans are being lost: .* could not be reached: /),
    'throughline: spans are exported again; 2 were lost',
    expect.stringContaining('3 spans were lost'),
  ])
})

test('at the default endpoint a connection that --permission forbids is no collector that is not there', async () => {
  const denied = Object.assign(new Error('getaddrinfo ERR_ACCESS_DENIED localhost'), {
    code: 'ERR_ACCESS_DENIED',
    syscall: 'getaddrinfo',
  })
  vi.spyOn(dns, 'lookup').mockImplementation(((
    _host: string,
    _options: object,
    done: (error: Error) => void,
  ) => process.nextTick(done, denied)) as unknown as typeof dns.lookup)
  const reports = said()
  const { processor, ended } = batched(exporterTo('http://localhost:4318', { isDefault: true }))
  await ended(1)
  await processor.shutdown()
  expect(reports.lines).toEqual([
    'throughline: spans are being lost: http://localhost:4318/v1/traces could not be reached: getaddrinfo ERR_ACCESS_DENIED localhost',
    expect.stringContaining('1 span was lost'),
  ])
})

/** Takes all that comes, until it is closed. */
async function collectorAt(port: number): Promise<() => Promise<void>> {
  const server = http.createServer((request, response) => request.resume().on('end', () => response.end()))
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  }
}

/** A batch in front of it; `ended` ends so many spans and has them sent. */
function batched(exporter: OtlpExporter) {
  exporter.setPatience('brief')
  const processor = batchProcessor(exporter, BATCH)
  const { tracer } = engine({ processors: [processor] })
  const ended = async (count: number) => {
    for (let index = 0; index < count; index += 1) tracer.startSpan('work').end()
    await processor.forceFlush().catch(() => {})
  }
  return { processor, ended }
}

const BATCH = {
  maxQueueSize: 100,
  maxExportBatchSize: 100,
  scheduledDelayMillis: 60_000,
  exportTimeoutMillis: 10_000,
}

test('at the default endpoint a collector that has answered once is waited for', async () => {
  const port = await deadPort()
  const exporter = exporterTo(`http://127.0.0.1:${port}`, { isDefault: true })
  const close = await collectorAt(port)
  await send(exporter)
  await close()
  const refused = new Promise<void>((resolve) => {
    const { connect } = Socket.prototype
    vi.spyOn(Socket.prototype, 'connect').mockImplementationOnce(function (
      this: Socket,
      ...given: unknown[]
    ) {
      this.once('error', () => resolve())
      return Reflect.apply(connect, this, given) as Socket
    })
  })
  const sent = send(exporter)
  await refused
  await collectorAt(port)
  expect(await sent).toEqual({ code: 0 })
})

const UNREADABLE = {
  get(): never {
    throw new Error('no')
  },
}

describe('a request', () => {
  test('is a POST of protobuf with its length, to the very URL, with the headers that were asked for', async () => {
    const { url, requests, spans } = await receiver()
    const headers = { Authorization: 'Bearer key', 'X-Scope': 'a' }
    expect(await send(exporterTo(url, { headers }), 'one', 'two')).toEqual({ code: 0 })
    const [request] = requests
    expect(request).toMatchObject({ method: 'POST', path: '/v1/traces' })
    expect(request?.headers).toMatchObject({
      'content-type': 'application/x-protobuf',
      'content-length': String(request?.body.length),
      authorization: 'Bearer key',
      'x-scope': 'a',
    })
    expect(request?.headers['user-agent']).toMatch(/^throughline\/.* OTel-OTLP-Exporter-JavaScript\//)
    expect(request?.headers['transfer-encoding']).toBeUndefined()
    expect(request?.headers['content-encoding']).toBeUndefined()
    expect(spans().map(({ name }) => name)).toEqual(['one', 'two'])
  })

  test('is JSON where that is asked for', async () => {
    const { url, requests } = await receiver()
    expect(await send(exporterTo(url, { protocol: 'http/json' }))).toEqual({ code: 0 })
    expect(requests[0]?.headers['content-type']).toBe('application/json')
    const { resourceSpans } = JSON.parse(String(requests[0]?.body))
    expect(resourceSpans[0].scopeSpans[0].spans[0].name).toBe('work')
  })

  test('is compressed where that is asked for, and says so', async () => {
    const { url, requests } = await receiver()
    await send(exporterTo(url, { compression: 'gzip' }))
    const [request] = requests
    expect(request?.headers).toMatchObject({
      'content-encoding': 'gzip',
      'content-length': String(request?.body.length),
    })
    expect(decodeRequest(gunzipSync(request?.body as Buffer)).resourceSpans).toHaveLength(1)
  })

  test('uses the connection of the one before it', async () => {
    const collector = await receiver()
    const exporter = exporterTo(collector.url)
    for (let count = 0; count < 3; count += 1) await send(exporter)
    expect([collector.requests.length, collector.connections]).toEqual([3, 1])
  })

  test('is sent again at once where the collector had closed the idle connection, even by a process on its way out', async () => {
    const collector = await receiver((response, { socket }, number) => {
      if (number === 2) socket.destroy()
      else response.end()
    })
    const exporter = exporterTo(collector.url)
    await send(exporter)
    exporter.setPatience('once')
    expect(await send(exporter)).toEqual({ code: 0 })
    expect([collector.requests.length, collector.connections]).toEqual([3, 2])
  })

  test('lets its headers be overridden, but not what describes the body', async () => {
    const { url, requests } = await receiver()
    const headers = { 'user-agent': 'mine/1', 'content-type': 'text/plain', 'content-length': '1' }
    expect(await send(exporterTo(url, { headers }))).toEqual({ code: 0 })
    expect(requests[0]?.headers).toMatchObject({
      'user-agent': 'mine/1',
      'content-type': 'application/x-protobuf',
      'content-length': String(requests[0]?.body.length),
    })
  })

  test('of one large span is sent, but not one of more than 64 MiB', async () => {
    const collector = await receiver()
    const exporter = exporterTo(collector.url)
    const sendLarge = (length: number) => {
      const { tracer, ended } = engine()
      tracer.startSpan('large', { attributes: { text: 'x'.repeat(length) } }).end()
      return new Promise<ExportResult>((resolve) => exporter.export(ended, resolve))
    }
    expect(await sendLarge(17 * 2 ** 20)).toEqual({ code: 0 })
    const { code, error } = await sendLarge(64 * 2 ** 20)
    expect([code, error?.message]).toEqual([
      1,
      expect.stringMatching(/^a request of \d+ bytes is larger than 67108864$/),
    ])
    expect(collector.requests).toHaveLength(1)
  })

  describe.each(['http/protobuf', 'http/json'] as const)(
    'of more than an app would feel goes in parts: %s',
    (protocol) => {
      const heavy = (count: number, length = 100 * 1024) => {
        const { tracer, ended } = engine()
        for (let index = 0; index < count; index++)
          tracer.startSpan(`heavy ${index}`, { attributes: { text: 'x'.repeat(length) } }).end()
        return ended
      }

      const indices = (body: Buffer) => {
        const request = protocol === 'http/json' ? body.toString() : JSON.stringify(decodeRequest(body))
        return [...request.matchAll(/"heavy (\d+)"/g)].map(([, index]) => Number(index))
      }

      test('one of more than 64 MiB is lost alone, and is said to be', async () => {
        const collector = await receiver()
        const exporter = exporterTo(collector.url, { protocol })
        const [large] = heavy(1, 65 * 2 ** 20)
        const spans = [...heavy(3), large, ...heavy(3)] as ReadableSpan[]
        const result = await new Promise<ExportResult>((resolve) => exporter.export(spans, resolve))
        expect([result.code, result.lost]).toEqual([1, 1])
        expect(result.error?.message).toMatch(/^a request of \d+ bytes is larger than 67108864$/)
        const told = collector.requests.map(
          ({ body }) => body.toString('latin1').match(/heavy \d/g)?.length ?? 0,
        )
        expect(told.reduce((sum, count) => sum + count, 0)).toBe(6)
      })

      test('one that is heavy goes alone, wherever it stands among others', async () => {
        const collector = await receiver()
        const exporter = exporterTo(collector.url, { protocol })
        const spans = [...heavy(10, 100), ...heavy(1, 1.2e6), ...heavy(10, 100)]
        const result = await new Promise<ExportResult>((resolve) => exporter.export(spans, resolve))
        expect(result).toEqual({ code: 0 })
        const told = collector.requests.map(({ body }) => [indices(body).length, body.length > 1e6])
        expect(told.filter(([, isHeavy]) => isHeavy)).toEqual([[1, true]])
        expect(told.reduce((sum, [count]) => sum + Number(count), 0)).toBe(21)
      })

      test('each span is in one of them', async () => {
        const collector = await receiver()
        const exporter = exporterTo(collector.url, { protocol })
        const spans = heavy(20)
        const result = await new Promise<ExportResult>((resolve) => exporter.export(spans, resolve))
        expect(result).toEqual({ code: 0 })
        expect(collector.requests.length).toBeGreaterThanOrEqual(4)
        const names = collector.requests.flatMap(({ body }) => indices(body))
        expect(names.toSorted((a, b) => a - b)).toEqual(spans.map((_, index) => index))
      })

      test('what has been taken is known before the last of it', async () => {
        const collector = await receiver((response, _request, number) => {
          if (number < 3) response.end()
        })
        const exporter = exporterTo(collector.url, { protocol })
        const late = new AbortController()
        const handover = { packed: [], delivered: 0 }
        const result = new Promise<ExportResult>((resolve) =>
          exporter.export(heavy(20), resolve, late.signal, handover),
        )
        await collector.nth(3)
        const taken = collector.requests
          .slice(0, 2)
          .flatMap(({ body }) => [...body.toString('latin1').matchAll(/heavy \d+/g)])
        expect(handover.delivered).toBe(taken.length)
        late.abort()
        expect(await result).toMatchObject({ code: 1, lost: 20 - taken.length })
      })

      test('what the first one that fails takes along is counted, what went before it is not', async () => {
        const collector = await receiver(statuses(200, 200, 401))
        const exporter = exporterTo(collector.url, { protocol })
        const result = await new Promise<ExportResult>((resolve) => exporter.export(heavy(20), resolve))
        expect(collector.requests).toHaveLength(3)
        const gone = collector.requests
          .slice(0, 2)
          .flatMap(({ body }) => [...body.toString('latin1').matchAll(/heavy \d+/g)])
        expect(result).toMatchObject({ code: 1, lost: 20 - gone.length })
        expect(result.isRefused).toBeUndefined()
      })

      test.each([400, 413, 422, 500])(
        'one that is answered %i for what it holds is lost alone, and the ones behind it are sent',
        async (status) => {
          const held: number[] = []
          const collector = await receiver((response, { body }) => {
            const told = indices(body)
            if (told.includes(3)) held.push(told.length)
            response.writeHead(told.includes(3) ? status : 200).end()
          })
          const handover = { packed: [], delivered: 0 }
          const exporter = exporterTo(collector.url, { protocol })
          const { error, ...result } = await new Promise<ExportResult>((resolve) =>
            exporter.export(heavy(20), resolve, undefined, handover),
          )
          expect(held).toHaveLength(1)
          const [lost = 0] = held
          expect(result).toEqual({ code: 1, isRefused: true, lost })
          expect(error?.message).toBe(`${collector.url}/v1/traces answered ${status}`)
          expect(handover.delivered).toBe(20 - lost)
        },
      )

      test('where each is refused for what it holds, nothing was taken', async () => {
        const collector = await receiver(statuses(400))
        const exporter = exporterTo(collector.url, { protocol })
        const result = await new Promise<ExportResult>((resolve) => exporter.export(heavy(20), resolve))
        expect(collector.requests.length).toBeGreaterThanOrEqual(4)
        expect(result).toMatchObject({ code: 1, isRefused: false, lost: 20 })
      })

      test('where one is refused and a later one fails, both are counted', async () => {
        const collector = await receiver(statuses(413, 200, 401))
        const exporter = exporterTo(collector.url, { protocol })
        const handover = { packed: [], delivered: 0 }
        const result = await new Promise<ExportResult>((resolve) =>
          exporter.export(heavy(20), resolve, undefined, handover),
        )
        expect(collector.requests).toHaveLength(3)
        const taken = indices(collector.requests[1]?.body as Buffer).length
        expect(handover.delivered).toBe(taken)
        expect(result).toMatchObject({ code: 1, lost: 20 - taken })
        expect(result.error?.message).toMatch(/ answered 401: /)
      })
    },
  )

  test.each(['http/protobuf', 'http/json'] as const)(
    'of which no span can be encoded is not sent, and says how many are lost: %s',
    async (protocol) => {
      const collector = await receiver()
      const reports = said()
      const broken = ['one', 'two'].map((name) => Object.defineProperty(finished(name), 'name', UNREADABLE))
      const exporter = exporterTo(collector.url, { protocol })
      const result = await new Promise((resolve) => exporter.export(broken, resolve))
      expect(result).toEqual({ code: 0, lost: 2 })
      expect(collector.requests).toEqual([])
      expect(reports.lines).toEqual([expect.stringContaining('a span could not be encoded')])
    },
  )

  test('of which a span cannot be encoded takes the others along, and says how many are lost', async () => {
    const collector = await receiver()
    const spans = [finished('one'), finished('broken'), finished('two')]
    Object.defineProperty(spans[1], 'name', UNREADABLE)
    const reports = said()
    const processor = batchProcessor(exporterTo(collector.url), {
      maxExportBatchSize: 3,
      maxQueueSize: 10,
      scheduledDelayMillis: 1e6,
      exportTimeoutMillis: 10_000,
    })
    for (const span of spans) processor.onEnd(span)
    await processor.shutdown()
    expect(JSON.stringify(decodeRequest(collector.requests[0]?.body as Buffer))).toMatch(/one.*two/)
    expect(reports.lines).toEqual([
      expect.stringContaining('a span could not be encoded'),
      expect.stringContaining('1 span was lost'),
    ])
  })

  test('of ours is neither traced nor given a traceparent', async () => {
    context.setGlobalContextManager(new AsyncContextManager())
    const seen: boolean[] = []
    const connecting = vi.spyOn(Socket.prototype, 'connect')
    connecting.mockImplementation(function connect(this: Socket, ...args: unknown[]) {
      seen.push(isSuppressed(context.active()))
      connecting.mockRestore()
      return Reflect.apply(this.connect, this, args)
    } as never)
    const collector = await receiver()
    const { processors } = {
      processors: [
        batchProcessor(exporterTo(collector.url), {
          maxExportBatchSize: 1,
          maxQueueSize: 1,
          scheduledDelayMillis: 1,
          exportTimeoutMillis: 1000,
        }),
      ],
    }
    const { tracer, provider } = engine({ processors })
    tracer.startActiveSpan('work', (span) => span.end())
    await provider.forceFlush()
    expect(trace.getActiveSpan()).toBeUndefined()
    context.disable()
    expect(seen).toEqual([true])
    expect(collector.requests[0]?.headers['traceparent']).toBeUndefined()
  })
})

describe('a batch whose time is over', () => {
  test('is given up at once and not tried again, and the next one goes', async () => {
    const collector = await receiver((response, _request, number) => {
      if (number > 1) response.end()
    })
    const exporter = exporterTo(collector.url)
    const late = new AbortController()
    const sent = new Promise<ExportResult>((resolve) =>
      exporter.export([finished('slow')], resolve, late.signal),
    )
    const { socket } = await collector.nth(1)
    late.abort()
    expect((await sent).code).toBe(1)
    if (!socket.destroyed) await once(socket, 'close')
    expect(await send(exporter, 'next')).toEqual({ code: 0 })
    expect(collector.spans().map(({ name }) => name)).toEqual(['slow', 'next'])
  })

  test('does not wait for its next try, and is not sent any more', async () => {
    const collector = await receiver((response, _request, number) => {
      response.writeHead(number === 1 ? 503 : 200, { 'Retry-After': '86400' }).end()
    })
    const exporter = exporterTo(collector.url, { timeoutMillis: 0 })
    const late = new AbortController()
    const sent = new Promise<ExportResult>((resolve) =>
      exporter.export([finished('late')], resolve, late.signal),
    )
    await collector.nth(1)
    await send(exporterTo(collector.url), 'another')
    late.abort()
    expect((await sent).code).toBe(1)
    await send(exporter, 'next')
    expect(collector.spans().map(({ name }) => name)).toEqual(['late', 'another', 'next'])
  })
})

describe('after its shutdown an exporter', () => {
  test('sends nothing and says so', async () => {
    const { url, requests } = await receiver()
    const exporter = exporterTo(url)
    await exporter.shutdown()
    const { code, error } = await send(exporter)
    expect([code, error?.message]).toEqual([1, expect.stringContaining('shut down')])
    expect(requests).toHaveLength(0)
  })

  test('has closed its connection and does not try again what was on its way', async () => {
    const collector = await receiver(() => {})
    const exporter = exporterTo(collector.url)
    const sent = send(exporter)
    await collector.nth(1)
    await exporter.shutdown()
    expect((await sent).code).toBe(1)
    expect(collector.requests).toHaveLength(1)
  })
})

describe('a collector that is not there', () => {
  test('is tried again, but not while somebody waits for a flush', async () => {
    const exporter = exporterTo(`http://127.0.0.1:${await deadPort()}`)
    exporter.setPatience('brief')
    const { code, error } = await send(exporter)
    expect([code, error?.message]).toEqual([
      1,
      expect.stringContaining('could not be reached: connect ECONNREFUSED'),
    ])

    const port = await deadPort()
    const patient = exporterTo(`http://127.0.0.1:${port}`)
    const sent = send(patient)
    const server = http.createServer((_request, response) => response.end()).listen(port, '127.0.0.1')
    expect(await sent).toEqual({ code: 0 })
    server.close()
    server.closeAllConnections()
  })

  test('may have an address that leads nowhere: a flush is not held up by that, either', async () => {
    const exporter = exporterTo('http://255.255.255.255:4318')
    exporter.setPatience('brief')
    const { code, error } = await send(exporter)
    expect([code, error?.message]).toEqual([1, expect.stringContaining('could not be reached: connect ')])
  })

  test('at the default address is no fault: it is said once, with the address and what to run', async () => {
    const reports = said()
    const port = await deadPort()
    const exporter = exporterTo(`http://localhost:${port}`, { isDefault: true })
    for (let count = 0; count < 3; count += 1) expect((await send(exporter)).code).toBe(1)
    expect(reports.lines).toHaveLength(1)
    expect(reports.lines[0]).toContain(`http://localhost:${port}/v1/traces`)
    expect(reports.lines[0]).toContain('npx @throughline/viewer')
  })

  test('is named without the password in its address', async () => {
    const port = await deadPort()
    const exporter = otlpExporter({
      url: `http://user:secret@127.0.0.1:${port}/v1/traces?key=secret`,
      headers: {},
      protocol: 'http/protobuf',
      compression: 'none',
      timeoutMillis: 10_000,
      isDefault: false,
    })
    exporter.setPatience('brief')
    expect((await send(exporter)).error?.message).not.toContain('secret')
  })

  test('is not asked where a header cannot be sent: the batch fails, and nothing else', async () => {
    const { url, requests } = await receiver()
    const { code } = await send(exporterTo(url, { headers: { 'x-bad': 'line\nbreak' }, timeoutMillis: 10 }))
    expect([code, requests.length]).toEqual([1, 0])
  })
})
