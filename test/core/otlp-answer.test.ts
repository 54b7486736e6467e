import type * as http from 'node:http'
import { getEventListeners, once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { gzipSync } from 'node:zlib'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { ExportResult } from '../../packages/core/src/batch.ts'
import { encodeResponse } from '../otlp-definition.ts'
import { finished, said } from './engine.ts'
import { exporterTo, hurried, send, statuses } from './exporter.ts'
import { receiver } from './receiver.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

describe('an answer', () => {
  test.each([429, 502, 503, 504])('%i is tried again', async (status) => {
    const { url, requests } = await receiver(statuses(status, status, 200))
    expect(await send(hurried(exporterTo(url)))).toEqual({ code: 0 })
    expect(requests).toHaveLength(3)
    expect(requests[2]?.body).toEqual(requests[0]?.body)
  })

  test.each([301, 400, 401, 404, 408, 413, 500, 501])('%i is final', async (status) => {
    const { url, requests } = await receiver(statuses(status))
    const { code, error } = await send(exporterTo(url))
    const hint = status === 401 ? `: ${CREDENTIALS}` : ''
    expect([code, error?.message]).toEqual([1, `${url}/v1/traces answered ${status}${hint}`])
    expect(requests).toHaveLength(1)
  })

  const CREDENTIALS = 'OTEL_EXPORTER_OTLP_HEADERS, or start({ headers }), authenticates'
  const KEY = 'invalid API key'
  const statusMessage = (message: string) =>
    Buffer.concat([Buffer.of(0x08, 16, 0x12, message.length), Buffer.from(message)])

  test.each([
    [401, 'application/x-protobuf', statusMessage(KEY), `: ${KEY}; ${CREDENTIALS}`],
    [403, 'application/json', JSON.stringify({ code: 7, message: KEY }), `: ${KEY}; ${CREDENTIALS}`],
    [400, 'text/plain; charset=utf-8', `${KEY}\nat line 1`, `: ${KEY}`],
    [400, 'text/plain', 'no\u001b[2J\u2028forged', ': no\\u001b[2J\\u2028forged'],
    [400, 'text/plain', 'x'.repeat(2000), `: ${'x'.repeat(1024)}`],
    [400, 'application/json', JSON.stringify({ message: 'a\nthroughline: b' }), ': a\\u000athroughline: b'],
    [403, 'text/html', '<h1>Forbidden', `: ${CREDENTIALS}`],
    [500, 'application/x-protobuf', 'oops', ''],
    [503, 'text/plain', 'full', ': full'],
  ] as const)('%i may say why, as %s', async (status, type, body, told) => {
    const { url } = await receiver((response) =>
      response.writeHead(status, { 'Content-Type': type }).end(body),
    )
    const exporter = exporterTo(url)
    exporter.setPatience('once')
    const { error } = await send(exporter)
    expect(error?.message).toBe(`${url}/v1/traces answered ${status}${told}`)
  })

  test('that repeats what we authenticate by has it masked in what is said of its answer', async () => {
    const reports = said()
    const basic = Buffer.from('user:pass-of-ours').toString('base64')
    const words = `no: Bearer token-of-ours, key-of-ours, ${basic}, pass-of-ours, query-of-ours`
    const { url } = await receiver((response, _request, number) => {
      if (number === 1) response.writeHead(401, { 'Content-Type': 'text/plain' }).end(words)
      else response.end(encodeResponse({ partialSuccess: { rejectedSpans: 1, errorMessage: words } }))
    })
    const exporter = exporterTo(url, {
      url: `${url.replace('//', '//user:pass-of-ours@')}/v1/traces?key=query-of-ours`,
      headers: { authorization: 'Bearer token-of-ours', 'x-key': 'key-of-ours', 'x-tenant': 'no' },
    })
    const { error } = await send(exporter)
    expect(error?.message).toBe(`${url}/v1/traces answered 401: no: ?, ?, ?, ?, ?; ${CREDENTIALS}`)
    await send(exporter)
    expect(reports.lines).toEqual([`throughline: ${url}/v1/traces rejected 1 span: no: ?, ?, ?, ?, ?`])
  })

  test('that refuses and is packed says no more than its status', async () => {
    const { url } = await receiver((response) =>
      response
        .writeHead(400, { 'Content-Type': 'text/plain', 'Content-Encoding': 'gzip' })
        .end(gzipSync(KEY)),
    )
    expect((await send(exporterTo(url))).error?.message).toBe(`${url}/v1/traces answered 400`)
  })

  test.each([
    ['twice', 404, '/v1/traces/v1/traces', true],
    ['twice, below another', 404, '/otlp/v1/traces/v1/traces', true],
    ['not at all', 404, '', true],
    ['below another', 404, '/otlp/v1/traces', false],
    ['twice, and found', 400, '/v1/traces/v1/traces', false],
  ])(
    'where the path is in the URL %s: %i, with a hint where that may be why',
    async (_row, status, path, hints) => {
      const { url } = await receiver(statuses(status))
      const { error } = await send(exporterTo(url, { url: url + path }))
      const hint =
        ': /v1/traces is appended to OTEL_EXPORTER_OTLP_ENDPOINT and to start({ endpoint }), and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is used as it is'
      expect(error?.message).toBe(`${url}${path || '/'} answered ${status}${hints ? hint : ''}`)
    },
  )

  test('with a 2xx of any kind is a success', async () => {
    const { url, requests } = await receiver(statuses(200, 202, 204))
    const exporter = exporterTo(url)
    for (let count = 0; count < 3; count += 1) expect(await send(exporter)).toEqual({ code: 0 })
    expect(requests).toHaveLength(3)
  })

  test('that sends us elsewhere is not followed: our headers are for nobody else', async () => {
    const elsewhere = await receiver()
    const { url } = await receiver((response) => {
      response.writeHead(307, { Location: `${elsewhere.url}/v1/traces` }).end()
    })
    expect((await send(exporterTo(url))).error?.message).toBe(`${url}/v1/traces answered 307`)
    expect(elsewhere.requests).toEqual([])
  })

  test('that says no for ever is asked six times in all', async () => {
    const { url, requests } = await receiver(statuses(503))
    expect((await send(hurried(exporterTo(url)))).code).toBe(1)
    expect(requests).toHaveLength(6)
  })

  const asked = (header: string | undefined) =>
    receiver((response, _request, number) => {
      if (header !== undefined) response.setHeader('Retry-After', header)
      response.writeHead(number === 1 ? 503 : 200).end()
    })

  // An own pause is cut short here, and one that was asked for is not.
  const asks = async (header: string | undefined) => {
    const { url, requests } = await asked(header)
    const { code } = await send(hurried(exporterTo(url)))
    expect(code).toBe(requests.length === 1 ? 1 : 0)
    return requests.length
  }

  test.each([
    ['an hour', '3600'],
    ['seconds that would be a year', '2001'],
    ['an hour, by date', new Date(Date.now() + 3_600_000).toUTCString()],
    ['more seconds than there are', '9'.repeat(400)],
    ['a date in the far future', 'Fri, 31 Dec 9999 23:59:59 GMT'],
    ['a date in the form of RFC 850', 'Friday, 31-Dec-49 23:59:59 GMT'],
    ['a date in the form of asctime', 'Fri Dec 31 23:59:59 2049'],
  ])('may ask for more time than the batch has, which ends it: %s', async (_form, header) => {
    expect(await asks(header)).toBe(1)
  })

  test.each([undefined, '', '-5', '1.5', 'soon', 'in 5 minutes', '0x10', '1e1', 'Sun, sometime'])(
    'may say when to come again in words that mean nothing, which are taken as none: %s',
    async (header) => {
      expect(await asks(header)).toBe(2)
    },
  )

  // An own pause is longer here than the batch may take, and the one that was asked for is not.
  test.each(['0', ' 0 ', '1', 'Sun, 06 Nov 1994 08:49:37 GMT', 'Sun Nov  6 08:49:37 1994'])(
    'may ask for a shorter pause than ours, or by a clock that is behind our own, and gets ours: %s',
    async (header) => {
      vi.spyOn(Math, 'random').mockReturnValue(0.999)
      const { url, requests } = await asked(header)
      expect((await send(exporterTo(url, { timeoutMillis: 1150 }))).code).toBe(1)
      expect(requests).toHaveLength(1)
    },
  )

  test('by a date without a time zone means GMT, wherever we are', async () => {
    vi.stubEnv('TZ', 'Asia/Tokyo')
    const [day, date, month, year, time] = new Date(Date.now() + 3_600_000).toUTCString().split(/,? /)
    expect(await asks(`${day} ${month} ${date?.replace(/^0/, ' ')} ${time} ${year}`)).toBe(1)
  })

  test('without a word on when is tried again after a pause, which a flush cuts short', async () => {
    const collector = await receiver(statuses(503, 503, 200))
    expect(await send(hurried(exporterTo(collector.url)))).toEqual({ code: 0 })
    expect(collector.requests).toHaveLength(3)
  })

  test('is not asked again by each of those who wait for a flush at the same time, but by the first', async () => {
    const collector = await receiver(statuses(503))
    const exporter = exporterTo(collector.url)
    const late = new AbortController()
    const sent = new Promise<ExportResult>((resolve) =>
      exporter.export([finished('work')], resolve, late.signal),
    )
    await collector.nth(1)
    exporter.setPatience('brief')
    await collector.nth(2)
    // What another sends takes longer than the answer.
    const other = exporterTo(collector.url)
    other.setPatience('once')
    for (let count = 0; count < 8; count += 1) {
      exporter.setPatience('brief')
      await send(other, 'another')
    }
    late.abort()
    await sent
    expect(collector.spans().filter(({ name }) => name === 'work')).toHaveLength(2)
  })

  test('leaves nothing with the one who may give the export up', async () => {
    const { url } = await receiver(statuses(503, 503, 200))
    const late = new AbortController()
    const exporter = hurried(exporterTo(url))
    const result = await new Promise<ExportResult>((resolve) =>
      exporter.export([finished('work')], resolve, late.signal),
    )
    expect(result).toEqual({ code: 0 })
    expect(getEventListeners(late.signal, 'abort')).toEqual([])
  })

  // Each pause is cut short, so that no time passes; what ends it is that the next one would be longer than the timeout.
  test.each([
    [700, 0.5, 1],
    [1000, 0.999, 1],
    [1000, 0, 2],
    [2000, 0.5, 3],
    [3000, 0.5, 4],
    [4300, 0.5, 5],
    [7000, 0.5, 6],
  ])(
    'is tried again after 1, 1.5, 2.25, 3.4 and 5 s, give or take a fifth, as the timeout allows: in %i ms, with the dice at %d, %i times',
    async (timeoutMillis, dice, tries) => {
      const { url, requests } = await receiver((response) => response.writeHead(503).end())
      vi.spyOn(Math, 'random').mockReturnValue(dice)
      const exporter = hurried(exporterTo(url, { timeoutMillis }))
      expect((await send(exporter)).code).toBe(1)
      expect(requests).toHaveLength(tries)
    },
  )

  test('is not waited for again by a process on its way out', async () => {
    const { url, requests } = await receiver(statuses(503))
    const exporter = exporterTo(url)
    exporter.setPatience('once')
    expect((await send(exporter)).code).toBe(1)
    expect(requests).toHaveLength(1)
  })

  test('that names a time is obeyed also while somebody waits for a flush, but not by a process on its way out', async () => {
    const collector = await receiver((response, _request, number) => {
      response.writeHead(number === 1 ? 503 : 200, { 'Retry-After': '9' }).end()
    })
    const obedient = exporterTo(collector.url)
    const sent = send(obedient, 'told to wait')
    await collector.nth(1)
    const others = exporterTo(collector.url)
    await send(others, 'another')
    obedient.setPatience('brief')
    for (const name of ['a third', 'a fourth']) await send(others, name)
    expect(collector.spans().map(({ name }) => name)).toEqual([
      'told to wait',
      'another',
      'a third',
      'a fourth',
    ])
    obedient.setPatience('once')
    expect(await sent).toEqual({ code: 0 })
    expect(collector.requests).toHaveLength(5)
  })

  test.each([
    ['that names a time beyond the end of all is not waited for', 'brief', '9', 1],
    ['without one is asked again by then', 'brief', undefined, 2],
    ['is asked once more by a process on its way out', 'once', '9', 2],
  ] as const)('%s', async (_row, patience, seconds, tries) => {
    const collector = await receiver((response, _request, number) => {
      response.writeHead(number === 1 ? 503 : 200, seconds && { 'Retry-After': seconds }).end()
    })
    const exporter = exporterTo(collector.url)
    const sent = send(exporter)
    await collector.nth(1)
    // What others send takes longer than the answer.
    const others = await receiver()
    for (let count = 0; count < 4; count += 1) await send(exporterTo(others.url))
    exporter.setPatience(patience, performance.now() + 500)
    expect((await sent).code).toBe(tries === 1 ? 1 : 0)
    expect(collector.requests).toHaveLength(tries)
  })

  const partly = (protocol: 'http/protobuf' | 'http/json', rejectedSpans: number, errorMessage: string) =>
    receiver((response) => {
      const partialSuccess = { rejectedSpans, errorMessage }
      response.end(
        protocol === 'http/json' ? JSON.stringify({ partialSuccess }) : encodeResponse({ partialSuccess }),
      )
    })

  test.each(['http/protobuf', 'http/json'] as const)(
    'that takes a part is no failure, is not tried again, and is said by the minute, the rest at the end: %s',
    async (protocol) => {
      const reports = said()
      const { url, requests } = await partly(protocol, 2, 'too old')
      const exporter = exporterTo(url, { protocol })
      const sendThree = () => send(exporter, 'one', 'two', 'three')
      for (let count = 0; count < 3; count += 1) expect(await sendThree()).toEqual({ code: 0 })
      expect(requests).toHaveLength(3)
      expect(reports.lines).toEqual([`throughline: ${url}/v1/traces rejected 2 spans: too old`])
      await exporter.shutdown()
      expect(reports.lines.slice(1)).toEqual([`throughline: ${url}/v1/traces rejected 4 spans: too old`])
    },
  )

  test('that takes a part is said again after a minute', async () => {
    const reports = said()
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    onTestFinished(() => void vi.useRealTimers())
    const { url } = await partly('http/protobuf', 1, '')
    const exporter = exporterTo(url)
    for (let count = 0; count < 5; count += 1) await send(exporter)
    vi.advanceTimersByTime(60_000)
    await send(exporter)
    expect(reports.lines).toEqual(
      [1, 4, 1].map(
        (count) => `throughline: ${url}/v1/traces rejected ${count} ${count === 1 ? 'span' : 'spans'}`,
      ),
    )
  })

  test('that takes all and warns is said; one that rejects more than it got is not believed', async () => {
    const reports = said()
    const warning = await partly('http/protobuf', 0, 'your clock is off')
    await send(exporterTo(warning.url))
    const boasting = await partly('http/protobuf', 1_000_000, 'no')
    await send(exporterTo(boasting.url), 'one', 'two')
    expect(reports.lines).toEqual([
      `throughline: ${warning.url}/v1/traces took all spans, and warns: your clock is off`,
      `throughline: ${boasting.url}/v1/traces rejected 2 spans: no`,
    ])
  })

  test.each(['http/protobuf', 'http/json'] as const)(
    'that holds line ends and escape codes is said in one line, and harms no terminal: %s',
    async (protocol) => {
      const reports = said()
      const { url } = await partly(
        protocol,
        1,
        'quota\r\n\u001b[31mFATAL:\u009b2J\u2028\u202eforged é' + 'x'.repeat(2000),
      )
      await send(exporterTo(url, { protocol }))
      expect(reports.lines).toHaveLength(1)
      const [, detail = ''] = reports.lines[0]?.split('1 span: ') ?? []
      expect(detail).toMatch(
        /^quota\\u000d\\u000a\\u001b\[31mFATAL:\\u009b2J\\u2028\\u202eforged éx{900,1024}$/,
      )
    },
  )

  test('of no HTTP is said in one line, too', async () => {
    const server = createServer((socket) => void socket.end('SSH\u001b[2J\nthroughline: all is well\n'))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const { error } = await send(exporterTo(`http://127.0.0.1:${port}`))
    expect(error?.message).toContain('"SSH\\u001b[2J\\u000athroughline')
  })

  test('that is empty or says nothing is a success like any other', async () => {
    const reports = said()
    for (const body of [Buffer.alloc(0), encodeResponse({ partialSuccess: {} }), Buffer.from('{}')]) {
      const { url } = await receiver((response) => response.end(body))
      expect(await send(exporterTo(url))).toEqual({ code: 0 })
    }
    const { url } = await receiver((response) => response.end('{ "partialSuccess": {} }'))
    expect(await send(exporterTo(url, { protocol: 'http/json' }))).toEqual({ code: 0 })
    expect(reports.lines).toEqual([])
  })

  const typed = (type: string, body: string | Uint8Array) =>
    receiver((response) => response.writeHead(200, { 'Content-Type': type }).end(body))

  test.each([
    ['http/protobuf', 'application/json', JSON.stringify({ partialSuccess: { rejectedSpans: '1' } })],
    ['http/json', 'application/x-protobuf', encodeResponse({ partialSuccess: { rejectedSpans: 1 } })],
  ] as const)('to %s may be %s', async (protocol, type, body) => {
    const reports = said()
    const { url } = await typed(type, body)
    expect(await send(exporterTo(url, { protocol }))).toEqual({ code: 0 })
    expect(reports.lines).toEqual([`throughline: ${url}/v1/traces rejected 1 span`])
  })

  test.each([
    ['http/protobuf', 'protobuf', 'application/x-protobuf', '{"partialSuccess":{}}'],
    ['http/json', 'JSON', 'application/json', '{"partialSuccess":'],
  ] as const)(
    'to %s that is no message of %s is a success of which that is said, once: %s, %s',
    async (protocol, form, type, body) => {
      const reports = said()
      const { url } = await typed(type, body)
      const exporter = exporterTo(url, { protocol })
      for (let count = 0; count < 2; count += 1) expect(await send(exporter)).toEqual({ code: 0 })
      expect(reports.lines).toEqual([
        `throughline: what ${url}/v1/traces answered cannot be read: expected an ExportTraceServiceResponse as ${form}, received ${type}: "${body}"; whether it took all spans is not known`,
      ])
    },
  )

  test.each([
    ['http/protobuf', 'text/html', '<html>Sign in'],
    ['http/json', 'text/html; charset=utf-8', '<html>Sign in'],
    ['http/protobuf', 'Text/Plain', 'OK'],
    ['http/json', 'text/plain', 'OK'],
  ] as const)(
    'to %s that is a page or a text asks, once, who answers there: %s, %s',
    async (protocol, type, body) => {
      const reports = said()
      const { url } = await typed(type, body)
      const exporter = exporterTo(url, { protocol })
      for (let count = 0; count < 2; count += 1) expect(await send(exporter)).toEqual({ code: 0 })
      const [name] = type.split(';')
      expect(reports.lines).toEqual([
        `throughline: ${url}/v1/traces answered 200 with ${name}: expected an OTLP response; whether it took all spans is not known. Is a web page there, and the receiver at another port (4318 as a rule)?`,
      ])
    },
  )

  test.each([
    ['text/html', '', 'http/json'],
    ['text/plain', '{}'],
    ['text/plain', Buffer.of(0x0a, 0)],
    ['text/plain', '{"ok":true}'],
    ['application/json', '{"ok":true}'],
  ] as [string, string | Buffer, ('http/protobuf' | 'http/json')?][])(
    'that says nothing of spans is a full success, whatever it is called: %s, %s',
    async (type, body, protocol = 'http/protobuf') => {
      const reports = said()
      const { url } = await typed(type, body)
      expect(await send(exporterTo(url, { protocol }))).toEqual({ code: 0 })
      expect(reports.lines).toEqual([])
    },
  )

  test('that is packed was not asked for, and is said to be so', async () => {
    const reports = said()
    const { url, requests } = await receiver((response, _request, number) => {
      const body = number === 1 ? { partialSuccess: { rejectedSpans: 1 } } : {}
      response.setHeader('Content-Encoding', number === 1 ? 'GZIP' : 'identity')
      response.end(number === 1 ? gzipSync(encodeResponse(body)) : '<html>')
    })
    const exporter = exporterTo(url)
    expect(await send(exporter)).toEqual({ code: 0 })
    expect(await send(exporter)).toEqual({ code: 0 })
    expect(requests[0]?.headers['accept-encoding']).toBe('identity')
    expect(reports.lines).toEqual([
      `throughline: what ${url}/v1/traces answered cannot be read: expected no Content-Encoding, received gzip; whether it took all spans is not known`,
    ])
    const headers = { 'accept-encoding': 'br' }
    await send(exporterTo(url, { headers }))
    expect(requests[2]?.headers).toMatchObject(headers)
  })

  test('of 5 MB is not read, and the request not made again', async () => {
    const { url, requests } = await receiver((response) => response.end(Buffer.alloc(5 * 2 ** 20)))
    const { code, error } = await send(exporterTo(url))
    expect([code, error?.message]).toEqual([
      1,
      expect.stringContaining(`what ${url}/v1/traces answered is over 4194304 bytes`),
    ])
    expect(requests).toHaveLength(1)
  })

  test('that never comes ends with the timeout', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    onTestFinished(() => void vi.useRealTimers())
    const collector = await receiver(() => {})
    const sent = send(exporterTo(collector.url, { timeoutMillis: 1234 }))
    await collector.nth(1)
    vi.advanceTimersByTime(1234)
    const { code, error } = await sent
    expect([code, error?.message]).toEqual([1, expect.stringContaining('the export timed out')])
    expect(collector.requests).toHaveLength(1)
  })

  test('may take as long as it likes where the timeout is 0', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    onTestFinished(() => void vi.useRealTimers())
    const open: http.ServerResponse[] = []
    const collector = await receiver((response) => void open.push(response))
    const unlimited = send(exporterTo(collector.url, { timeoutMillis: 0 }))
    const limited = send(exporterTo(collector.url, { timeoutMillis: 60_000 }))
    await collector.nth(2)
    vi.advanceTimersByTime(2 ** 32)
    expect((await limited).code).toBe(1)
    for (const response of open) response.end()
    expect(await unlimited).toEqual({ code: 0 })
  })

  test.each([
    [200, 'is taken at its word', 1],
    [503, 'is tried again', 2],
  ])('that breaks off behind its status %i %s', async (status, _what, tries) => {
    const { url, requests } = await receiver((response, { socket }, number) => {
      if (number > 1) {
        response.end()
        return
      }
      response.writeHead(status, { 'Content-Length': '100' })
      response.write('half', () => socket.destroy())
    })
    expect(await send(hurried(exporterTo(url)))).toEqual({ code: 0 })
    expect(requests).toHaveLength(tries)
  })
})
