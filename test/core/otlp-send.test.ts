import { context, trace } from '@opentelemetry/api'
import * as http from 'node:http'
import { gunzipSync } from 'node:zlib'
import { describe, expect, test, vi } from 'vitest'
import { batchProcessor, type ExportResult } from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import { otlpExporter, type OtlpExporter, type OtlpOptions } from '../../packages/core/src/otlp/send.ts'
import { decodeRequest, encodeResponse } from '../otlp-definition.ts'
import { engine, finished, said } from './engine.ts'
import { deadPort, receiver, type Answer } from './receiver.ts'

function exporterTo(url: string, options: Partial<OtlpOptions> = {}): OtlpExporter {
  return otlpExporter({
    url: `${url}/v1/traces`,
    headers: {},
    protocol: 'http/protobuf',
    compression: 'none',
    timeoutMillis: 10_000,
    isDefault: false,
    ...options,
  })
}

function send(exporter: OtlpExporter, ...names: string[]): Promise<ExportResult> {
  const spans = (names.length === 0 ? ['work'] : names).map((name) => finished(name))
  return new Promise((resolve) => exporter.export(spans, resolve))
}

/** Answers with these statuses in turn, the last one for ever, and asks for no pause before the next try. */
function statuses(...codes: number[]): Answer {
  return (response, _request, number) => {
    response.writeHead(codes[Math.min(number, codes.length) - 1] as number, { 'Retry-After': '0' }).end()
  }
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

  test('that would be larger than collectors take goes in halves; a span that is too large alone is lost', async () => {
    const collector = await receiver()
    const large = (length: number) => {
      const { tracer, ended } = engine()
      tracer.startSpan('large', { attributes: { text: 'x'.repeat(length) } }).end()
      return ended[0] as never
    }
    const exporter = exporterTo(collector.url)
    const halves = [large(9 * 2 ** 20), large(9 * 2 ** 20)]
    expect(await new Promise((resolve) => exporter.export(halves, resolve))).toEqual({ code: 0 })
    expect(collector.requests).toHaveLength(2)
    const result = await new Promise<ExportResult>((resolve) =>
      exporter.export([large(17 * 2 ** 20)], resolve),
    )
    expect(result.code).toBe(1)
    expect(result.error?.message).toMatch(/a span of \d+ bytes is larger than \d+/)
    expect(collector.requests).toHaveLength(2)
  })

  test('of ours is neither traced nor given a traceparent', async () => {
    context.setGlobalContextManager(new AsyncContextManager())
    const requests = vi.spyOn(http.ClientRequest.prototype, 'end')
    const seen: boolean[] = []
    requests.mockImplementation(function end(this: http.ClientRequest, ...args: unknown[]) {
      seen.push(isSuppressed(context.active()))
      requests.mockRestore()
      return Reflect.apply(this.end, this, args)
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

describe('an answer', () => {
  test.each([429, 502, 503, 504])('%i is tried again', async (status) => {
    const { url, requests } = await receiver(statuses(status, status, 200))
    expect(await send(exporterTo(url))).toEqual({ code: 0 })
    expect(requests).toHaveLength(3)
    expect(requests[2]?.body).toEqual(requests[0]?.body)
  })

  test.each([301, 400, 401, 404, 408, 413, 500, 501])('%i is final', async (status) => {
    const { url, requests } = await receiver(statuses(status))
    const { code, error } = await send(exporterTo(url))
    expect([code, error?.message]).toEqual([1, `${url}/v1/traces answered ${status}`])
    expect(requests).toHaveLength(1)
  })

  test('that says no for ever is asked six times in all', async () => {
    const { url, requests } = await receiver(statuses(503))
    expect((await send(exporterTo(url))).code).toBe(1)
    expect(requests).toHaveLength(6)
  })

  test('may say when to come again, in seconds or by date; later than the timeout is never', async () => {
    for (const header of ['3600', new Date(Date.now() + 3_600_000).toUTCString()]) {
      const { url, requests } = await receiver((response) =>
        response.writeHead(503, { 'Retry-After': header }).end(),
      )
      expect((await send(exporterTo(url))).code).toBe(1)
      expect(requests).toHaveLength(1)
    }
    for (const header of ['0', new Date(Date.now() - 1000).toUTCString()]) {
      const { url, requests } = await receiver((response, _request, number) =>
        response.writeHead(number === 1 ? 503 : 200, { 'Retry-After': header }).end(),
      )
      expect((await send(exporterTo(url))).code).toBe(0)
      expect(requests).toHaveLength(2)
    }
  })

  test('without a word on when is tried again after a pause, which a flush cuts short', async () => {
    const collector = await receiver((response, _request, number) =>
      response.writeHead(number < 3 ? 503 : 200).end(),
    )
    const exporter = exporterTo(collector.url)
    const sent = send(exporter)
    for (const number of [1, 2]) {
      await collector.nth(number)
      const woken = setInterval(() => exporter.setPatience('brief'), 5)
      await collector.nth(number + 1)
      clearInterval(woken)
    }
    expect(await sent).toEqual({ code: 0 })
  })

  test('is not waited for again by a process on its way out', async () => {
    const { url, requests } = await receiver(statuses(503))
    const exporter = exporterTo(url)
    exporter.setPatience('once')
    expect((await send(exporter)).code).toBe(1)
    expect(requests).toHaveLength(1)
  })

  test.each(['http/protobuf', 'http/json'] as const)(
    'that takes a part is no failure, is not tried again, and is said, not once per batch: %s',
    async (protocol) => {
      const reports = said()
      const partialSuccess = { rejectedSpans: 2, errorMessage: 'too old' }
      const { url, requests } = await receiver((response) =>
        response.end(
          protocol === 'http/json' ? JSON.stringify({ partialSuccess }) : encodeResponse({ partialSuccess }),
        ),
      )
      const exporter = exporterTo(url, { protocol })
      for (let count = 0; count < 3; count += 1) expect(await send(exporter)).toEqual({ code: 0 })
      expect(requests).toHaveLength(3)
      expect(reports.lines).toEqual([`throughline: ${url}/v1/traces rejected 2 spans: too old`])
    },
  )

  test('that is empty, says nothing or is garbage is a success like any other', async () => {
    const reports = said()
    for (const body of [Buffer.alloc(0), encodeResponse({ partialSuccess: {} }), Buffer.from('<html>')]) {
      const { url } = await receiver((response) => response.end(body))
      expect(await send(exporterTo(url))).toEqual({ code: 0 })
    }
    expect(reports.lines).toEqual([])
  })

  test('of 5 MB is not read, and the request not made again', async () => {
    const { url, requests } = await receiver((response) => response.end(Buffer.alloc(5 * 2 ** 20)))
    const { code, error } = await send(exporterTo(url))
    expect([code, error?.message]).toEqual([1, expect.stringContaining('the answer is over 4194304 bytes')])
    expect(requests).toHaveLength(1)
  })

  test('that never comes ends with the timeout', async () => {
    const { url, requests } = await receiver(() => {})
    const { code, error } = await send(exporterTo(url, { timeoutMillis: 100 }))
    expect([code, error?.message]).toEqual([1, expect.stringContaining('the export timed out')])
    expect(requests).toHaveLength(1)
  })

  test('that breaks off in the middle is tried again', async () => {
    const { url, requests } = await receiver((response, { socket }, number) => {
      if (number > 1) {
        response.end()
        return
      }
      response.writeHead(200, { 'Content-Length': '100' })
      response.write('half', () => socket.destroy())
    })
    expect(await send(exporterTo(url))).toEqual({ code: 0 })
    expect(requests).toHaveLength(2)
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
