import { request as httpRequest } from 'node:http'
import type { IncomingHttpHeaders } from 'node:http'
import { connect } from 'node:net'
import { once } from 'node:events'
import { gzipSync } from 'node:zlib'
import type { Gunzip } from 'node:zlib'
import { context, createTraceState, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import type { Attributes } from '@opentelemetry/api'
import { OTLPTraceExporter as JsonExporter } from '@opentelemetry/exporter-trace-otlp-http'
import { OTLPTraceExporter as ProtobufExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { resourceFromAttributes } from '@opentelemetry/resources'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import type { ReadableSpan, SpanExporter } from '@opentelemetry/sdk-trace-base'
import { receive, toOtlpJson } from '@throughline/viewer'
import type { ReceiveOptions, Receiver, Span } from '@throughline/viewer'
import protobuf from 'protobufjs'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { otlpExporter } from '../../packages/core/src/otlp/send.ts'
import { checkout, hex, span, traceId } from './sample.ts'

/** Every stream that inflates something, so that a test can see it end. */
const inflating = vi.hoisted(() => [] as Gunzip[])
vi.mock(import('node:zlib'), async (original) => {
  const zlib = await original()
  function createGunzip(): Gunzip {
    const stream = zlib.createGunzip()
    inflating.push(stream)
    return stream
  }
  return { ...zlib, createGunzip }
})

const open: Receiver[] = []
afterEach(async () => {
  await Promise.all(open.splice(0).map((receiver) => receiver.close()))
  inflating.length = 0
})

/** A receiver on a free port, and what it received so far. */
async function receiving(options: Partial<ReceiveOptions> = {}) {
  const spans: Span[] = []
  const receiver = await receive({ port: 0, onSpans: (batch) => spans.push(...batch), ...options })
  open.push(receiver)
  return { receiver, spans }
}

type Answer = { status: number | undefined; headers: IncomingHttpHeaders; body: Buffer }

/** One request over a socket of its own, body and headers exactly as given. */
function send(
  receiver: Receiver,
  { method = 'POST', path = '/v1/traces', headers = {}, body = Buffer.alloc(0) as Buffer | string } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = httpRequest(receiver.url + path, { method, headers, agent: false }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('end', () =>
        resolve({
          status: response.statusCode,
          headers: response.headers,
          body: Buffer.concat(chunks),
        }),
      )
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

const json = { 'content-type': 'application/json' }
const binary = { 'content-type': 'application/x-protobuf' }

function reason(answer: Answer): { code: number; message: string } {
  return JSON.parse(answer.body.toString())
}

const attributes = {
  text: 'héllo 注文 🎉',
  empty: '',
  yes: true,
  no: false,
  zero: 0,
  int: 42,
  negative: -42,
  fraction: 0.5,
  texts: ['a', 'b'],
  numbers: [1, 2.5],
}

/** Spans as the official SDK makes them: root, client with everything on it, and a child of a remote parent. */
function officialSpans(): ReadableSpan[] {
  const memory = new InMemorySpanExporter()
  const provider = new BasicTracerProvider({
    resource: resourceFromAttributes({ 'service.name': 'shop', 'host.cpus': 8, tags: ['a', 'b'] }),
    spanProcessors: [new SimpleSpanProcessor(memory)],
    spanLimits: { attributeCountLimit: 12, eventCountLimit: 1, linkCountLimit: 1 },
  })
  const tracer = provider.getTracer('official', '1.2.3')
  const remote = {
    traceId: '0af7651916cd43dd8448eb211c80319c',
    spanId: 'b7ad6b7169203331',
    traceFlags: 1,
    isRemote: true,
    traceState: createTraceState('vendor=1,other=2'),
  }
  const server = tracer.startSpan(
    'GET /',
    { kind: SpanKind.SERVER, attributes },
    trace.setSpanContext(ROOT_CONTEXT, remote),
  )
  const client = tracer.startSpan(
    'POST',
    {
      kind: SpanKind.CLIENT,
      startTime: [1_700_000_000, 1],
      links: [
        { context: { ...remote, spanId: '00f067aa0ba902b7' }, attributes: { why: 'batch' } },
        { context: remote },
      ],
    },
    trace.setSpan(context.active(), server),
  )
  client.addEvent('sent', { bytes: 12 }, [1_700_000_000, 500])
  client.addEvent('one too many')
  client.setStatus({ code: SpanStatusCode.ERROR, message: 'refused' })
  client.end([1_700_000_000, 999_999_999])
  server.setStatus({ code: SpanStatusCode.OK })
  server.end()
  tracer.startSpan('publish', { kind: SpanKind.PRODUCER, root: true }).end()
  tracer.startSpan('process', { kind: SpanKind.CONSUMER, root: true }).end()
  tracer.startSpan('work', { root: true }).end()
  return memory.getFinishedSpans()
}

function nanos([seconds, rest]: readonly [number, number]): bigint {
  return BigInt(seconds) * 1_000_000_000n + BigInt(rest)
}

const kinds = ['internal', 'server', 'client', 'producer', 'consumer'] as const
const codes = ['unset', 'ok', 'error'] as const

/** What must arrive of a span of the official SDK. */
function expectedOf(sent: ReadableSpan): Span {
  const parent = sent.parentSpanContext
  return {
    traceId: sent.spanContext().traceId,
    spanId: sent.spanContext().spanId,
    parentSpanId: parent?.spanId,
    name: sent.name,
    kind: kinds[sent.kind] ?? 'unspecified',
    startTimeUnixNano: nanos(sent.startTime),
    endTimeUnixNano: nanos(sent.endTime),
    attributes: sent.attributes as Span['attributes'],
    events: sent.events.map((event) => ({
      timeUnixNano: nanos(event.time),
      name: event.name,
      attributes: (event.attributes ?? {}) as Span['attributes'],
      droppedAttributesCount: event.droppedAttributesCount ?? 0,
    })),
    links: sent.links.map((link) => ({
      traceId: link.context.traceId,
      spanId: link.context.spanId,
      traceState: link.context.traceState?.serialize() ?? '',
      attributes: (link.attributes ?? {}) as Span['attributes'],
      droppedAttributesCount: link.droppedAttributesCount ?? 0,
      flags: 0x301,
    })),
    status: { code: codes[sent.status.code], message: sent.status.message ?? '' },
    traceState: sent.spanContext().traceState?.serialize() ?? '',
    flags: parent?.isRemote ? 0x301 : 0x101,
    droppedAttributesCount: sent.droppedAttributesCount,
    droppedEventsCount: sent.droppedEventsCount,
    droppedLinksCount: sent.droppedLinksCount,
    serviceName: 'shop',
    resource: {
      attributes: { 'service.name': 'shop', 'host.cpus': 8, tags: ['a', 'b'] },
      droppedAttributesCount: 0,
      schemaUrl: '',
    },
    scope: { name: 'official', version: '1.2.3', attributes: {}, droppedAttributesCount: 0, schemaUrl: '' },
  }
}

async function exported(exporter: SpanExporter, spans: ReadableSpan[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    exporter.export(spans, (result) => (result.code === 0 ? resolve() : reject(result.error)))
  })
  await exporter.shutdown()
}

const official = (Exporter: typeof ProtobufExporter | typeof JsonExporter, compression: 'none' | 'gzip') => {
  return (url: string): SpanExporter => new Exporter({ url, compression: compression as never })
}
const ours = (protocol: 'http/protobuf' | 'http/json', compression: 'none' | 'gzip') => {
  return (url: string) =>
    otlpExporter({ url, protocol, compression, headers: {}, timeoutMillis: 10_000, isDefault: false })
}

describe.each([
  ['the official exporter (protobuf)', official(ProtobufExporter, 'none')],
  ['the official exporter (protobuf, gzip)', official(ProtobufExporter, 'gzip')],
  ['the official exporter (JSON)', official(JsonExporter, 'none')],
  ['the official exporter (JSON, gzip)', official(JsonExporter, 'gzip')],
  ['our exporter (protobuf)', ours('http/protobuf', 'none')],
  ['our exporter (protobuf, gzip)', ours('http/protobuf', 'gzip')],
  ['our exporter (JSON)', ours('http/json', 'none')],
  ['our exporter (JSON, gzip)', ours('http/json', 'gzip')],
])('%s', (name, exporter) => {
  const exporterTo = (receiver: Receiver) => exporter(`${receiver.url}/v1/traces`) as SpanExporter

  it('delivers every field of its spans', async () => {
    const { receiver, spans } = await receiving()
    const sent = officialSpans()
    await exported(exporterTo(receiver), sent)
    expect(spans).toEqual(sent.map(expectedOf))
    const client = spans.find(({ name }) => name === 'POST')
    expect(client?.traceState).toBe('vendor=1,other=2')
    expect(client).toMatchObject({ droppedEventsCount: 1, droppedLinksCount: 1, links: [{}], events: [{}] })
    expect(spans.map(({ kind }) => kind)).toEqual(['client', 'server', 'producer', 'consumer', 'internal'])
  })

  it('delivers bytes, maps, nested lists and nothing as attributes', async () => {
    const { receiver, spans } = await receiving()
    // An attribute that is nothing is left out by ours; the official ones send it.
    const nothing = name.startsWith('our') ? {} : { nothing: null }
    const rich = {
      bytes: Uint8Array.of(0, 1, 255),
      map: { a: 1, b: { c: ['d'] } },
      lists: [[1, 2], ['x', true], []],
      ...nothing,
    }
    const sent = officialSpans().map((finished) =>
      Object.create(finished, { attributes: { value: rich as unknown as Attributes } }),
    )
    await exported(exporterTo(receiver), sent.slice(0, 1))
    expect(spans).toMatchObject([{ attributes: rich }])
    expect(Object.getPrototypeOf(spans[0]?.attributes['bytes'])).toBe(Uint8Array.prototype)
  })
})

describe('an answer', () => {
  it('to protobuf is an empty ExportTraceServiceResponse', async () => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { headers: binary })
    expect(answer).toMatchObject({ status: 200, headers: binary, body: Buffer.alloc(0) })
  })

  it('to JSON is an empty object', async () => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { headers: json, body: '{}' })
    expect(answer).toMatchObject({ status: 200, headers: json, body: Buffer.from('{}') })
  })

  it.each([
    'application/json; charset=utf-8',
    'Application/JSON;charset=UTF-8',
    'APPLICATION/JSON',
    'application/json ; x="y"',
  ])('is 200 for the content type %s', async (type) => {
    const { receiver, spans } = await receiving()
    const headers = { 'content-type': type, 'content-encoding': 'Identity' }
    const answer = await send(receiver, { headers, body: toOtlpJson(checkout()) })
    expect(answer.status).toBe(200)
    expect(spans).toEqual(expect.arrayContaining(checkout()))
  })

  it('is 500 when the one who receives the spans fails', async () => {
    const { receiver } = await receiving({
      onSpans: () => {
        throw new Error('disk full')
      },
    })
    const answer = await send(receiver, { headers: json, body: '{}' })
    expect(answer.status).toBe(500)
    expect(reason(answer)).toEqual({ code: 13, message: 'disk full' })
  })
})

/** What arrives of one span, given as it is written in the request. */
async function arrived(written: string): Promise<Span | undefined> {
  const { receiver, spans } = await receiving()
  const body = `{"resourceSpans":[{"scopeSpans":[{"spans":[${written}]}]}]}`
  expect(await send(receiver, { headers: json, body })).toMatchObject({ status: 200 })
  return spans[0]
}

describe('JSON', () => {
  const required = `"traceId":"${traceId}","spanId":"${hex(1)}"`

  it.each([
    ['absent', ''],
    ['empty', ',"parentSpanId":""'],
    ['zero', ',"parentSpanId":"0000000000000000"'],
  ])('may have ids in upper case, a parent that is %s, and fields that nobody knows', async (_, parent) => {
    const id = `"traceId":"${traceId.toUpperCase()}","spanId":"00F067AA0BA902B7"`
    expect(await arrived(`{${id}${parent},"newField":{"a":[1]}}`)).toMatchObject({
      traceId,
      spanId: '00f067aa0ba902b7',
      parentSpanId: undefined,
      serviceName: 'unknown_service',
      kind: 'unspecified',
    })
  })

  it('may have 64-bit integers as strings or numbers, and neither is rounded', async () => {
    const times = '"startTimeUnixNano":"1700000000000000001","endTimeUnixNano" : 1700000000000000003'
    const values = ['{"intValue":"9223372036854775807"}', '{"intValue":9007199254740993}', '{"intValue":7}']
    const list = values.map((value, index) => `{"key":"${index}","value":${value}}`).join()
    expect(await arrived(`{${required},${times},"attributes":[${list}]}`)).toMatchObject({
      startTimeUnixNano: 1_700_000_000_000_000_001n,
      endTimeUnixNano: 1_700_000_000_000_000_003n,
      attributes: { 0: 9_223_372_036_854_775_807n, 1: 9_007_199_254_740_993n, 2: 7 },
    })
  })

  it('may have doubles by name, null for absent, new kinds, and integers larger than any', async () => {
    const values = ['{"doubleValue":"NaN"}', '{"doubleValue":"-Infinity"}', '{"doubleValue":null}', '{}']
    values.push('{"intValue":1e300}', '{"intValue":18446744073709552000}', '{"doubleValue":"1.5"}')
    const list = values.map((value, index) => `{"key":"${index}","value":${value}}`).join()
    const rest = `"status":null,"kind":17,"events":null,"attributes":[${list}]`
    expect(await arrived(`{${required},${rest}}`)).toMatchObject({
      kind: 'unspecified',
      status: { code: 'unset', message: '' },
      events: [],
      attributes: { 0: Number.NaN, 1: -Infinity, 2: null, 3: null, 4: 1e300, 5: 2 ** 64, 6: 1.5 },
    })
  })

  it('may name an attribute like a part of JavaScript', async () => {
    const list = ['__proto__', 'constructor'].map((key) => `{"key":"${key}","value":{"stringValue":"x"}}`)
    const received = await arrived(`{${required},"attributes":[${list.join()}]}`)
    expect(Object.entries(received?.attributes ?? {})).toEqual([
      ['__proto__', 'x'],
      ['constructor', 'x'],
    ])
  })

  it.each([
    ['not JSON', '{"resourceSpans":', /Unexpected end of JSON input/],
    ['not UTF-8', Buffer.from([0x7b, 0xff, 0x7d]), /not valid for encoding utf-8/],
    ['nothing', '', /Unexpected end of JSON input/],
    ['not an object', '[]', /the request: expected an object with resourceSpans, received \[\]/],
    ['no array', '{"resourceSpans":{}}', /resourceSpans: expected an array, received {}/],
    ['no object inside', '{"resourceSpans":[1]}', /resourceSpans\[0\]: expected an object, received 1/],
  ])('that is broken (%s) is told why', async (_, body, message) => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { headers: json, body })
    expect(answer).toMatchObject({ status: 400, headers: json })
    expect(reason(answer)).toEqual({ code: 3, message: expect.stringMatching(message) })
  })

  it.each([
    ['"traceId":"xyz"', 'traceId: expected 32 hex characters, not all zero, received "xyz"'],
    [`"traceId":"${'0'.repeat(32)}"`, 'traceId: expected 32 hex characters, not all zero'],
    ['"traceId":7', 'traceId: expected 32 hex characters, not all zero, received 7'],
    ['"spanId":""', 'spanId: expected 16 hex characters, not all zero, received ""'],
    ['"parentSpanId":"12"', 'parentSpanId: expected 16 hex characters'],
    ['"name":5', 'name: expected a string, received 5'],
    ['"kind":"SPAN_KIND_SERVER"', 'kind: expected an integer, received "SPAN_KIND_SERVER"'],
    ['"flags":-1', 'flags: expected an integer from 0 to 4294967295, received -1'],
    ['"startTimeUnixNano":"soon"', 'startTimeUnixNano: expected an integer, as a string or a number'],
    ['"startTimeUnixNano":-1', 'startTimeUnixNano: expected an integer from 0 to 2^64 - 1, received -1'],
    ['"endTimeUnixNano":1.5', 'endTimeUnixNano: expected an integer, as a string or a number, received 1.5'],
    ['"status":"ok"', 'status: expected an object, received "ok"'],
    ['"attributes":{}', 'attributes: expected an array, received {}'],
    [
      '"attributes":[{"key":"a","value":{"boolValue":"yes"}}]',
      'attributes[0].boolValue: expected true or false',
    ],
    [
      '"attributes":[{"key":"a","value":{"doubleValue":"x"}}]',
      'attributes[0].doubleValue: expected a number',
    ],
    ['"attributes":[{"key":"a","value":{"bytesValue":"§"}}]', 'attributes[0].bytesValue: expected base64'],
    ['"links":[{"traceId":"00"}]', 'links[0].traceId: expected 32 hex characters'],
  ])('with %s is told the place and what was expected there', async (wrong, message) => {
    const { receiver, spans } = await receiving()
    const body = `{"resourceSpans":[{"scopeSpans":[{"spans":[{${required},${wrong}}]}]}]}`
    const answer = await send(receiver, { headers: json, body })
    expect(answer.status).toBe(400)
    expect(reason(answer).message).toContain(`resourceSpans[0].scopeSpans[0].spans[0].${message}`)
    expect(spans).toEqual([])
  })

  it('that nests without end is refused, not followed', async () => {
    const { receiver } = await receiving()
    const deep = `${'{"arrayValue":{"values":['.repeat(20_000)}${']}}'.repeat(20_000)}`
    const body = `{"resourceSpans":[{"resource":{"attributes":[{"key":"a","value":${deep}}]}}]}`
    const answer = await send(receiver, { headers: json, body })
    expect(answer.status).toBe(400)
    expect(reason(answer).message).toContain('expected at most 100 levels of nesting')
  })
})

function varint(number: number): Buffer {
  return Buffer.from(protobuf.Writer.create().uint32(number).finish())
}

describe('protobuf', () => {
  const status = protobuf
    .parse('syntax = "proto3"; message Status { int32 code = 1; string message = 2; }')
    .root.lookupType('Status')

  it.each([
    ['cut off', [0x0a, 0x05, 0x01], 'index out of range'],
    ['of another kind', [...Buffer.from('{"resourceSpans":[]}')], 'not an OTLP trace request in protobuf'],
    ['an id of three bytes', [0x0a, 9, 0x12, 7, 0x12, 5, 0x0a, 3, 1, 2, 3], 'traceId: expected 32 hex'],
  ])('that is broken (%s) is told why, in protobuf', async (_, bytes, message) => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { headers: binary, body: Buffer.from(bytes) })
    expect(answer).toMatchObject({ status: 400, headers: binary })
    expect(status.decode(answer.body).toJSON()).toEqual({
      code: 3,
      message: expect.stringContaining(message),
    })
  })

  it('that nests without end is refused, not followed', async () => {
    const { receiver } = await receiving()
    // AnyValue { arrayValue { values { … } } } by length, from the inside out; then KeyValue, Resource, ResourceSpans.
    let deep = Buffer.alloc(0)
    for (const tag of [
      ...Array<number>(500)
        .fill(0)
        .flatMap(() => [0x0a, 0x2a]),
      0x12,
      0x0a,
      0x0a,
      0x0a,
    ]) {
      deep = Buffer.concat([Buffer.from([tag]), varint(deep.length), deep])
    }
    const answer = await send(receiver, { headers: binary, body: deep })
    expect(answer.status).toBe(400)
    expect(status.decode(answer.body).toJSON()).toMatchObject({ message: expect.stringContaining('depth') })
  })
})

describe('what is no trace request', () => {
  it.each([
    ['GET', '/v1/traces', 405, 'POST'],
    ['PUT', '/v1/traces', 405, 'POST'],
    ['OPTIONS', '/v1/traces?x=1', 405, 'POST'],
    ['POST', '/v1/metrics', 404, undefined],
    ['POST', '/v1/traces/', 404, undefined],
    ['GET', '/', 404, undefined],
  ])('%s %s gets %i', async (method, path, status, allow) => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { method, path, headers: json })
    expect(answer.status).toBe(status)
    expect(answer.headers.allow).toBe(allow)
    expect(reason(answer).message).toMatch(/POST/)
  })

  it.each([undefined, 'text/plain', 'application/grpc', 'application/jsonx'])(
    'the content type %s gets 415',
    async (type) => {
      const { receiver } = await receiving()
      const headers = type ? { 'content-type': type } : {}
      const answer = await send(receiver, { headers, body: '{}' })
      expect(answer.status).toBe(415)
      expect(reason(answer).message).toContain(`received ${type ?? 'none'}`)
    },
  )

  it.each(['br', 'deflate', 'gzip, gzip'])('the content encoding %s gets 415', async (encoding) => {
    const { receiver } = await receiving()
    const answer = await send(receiver, { headers: { ...json, 'content-encoding': encoding }, body: '{}' })
    expect(answer).toMatchObject({ status: 415, headers: { 'accept-encoding': 'gzip, identity' } })
    expect(reason(answer).message).toContain(encoding)
  })
})

describe('what a web page sends', () => {
  it.each([
    'http://evil.example:4318',
    'https://127.0.0.1.evil.example',
    'http://localhost.evil.example',
    'null',
  ])('gets 403 where the page is of %s, by whatever name it calls this machine', async (origin) => {
    const { receiver, spans } = await receiving()
    for (const host of ['evil.example:4318', '127.0.0.1']) {
      const answer = await send(receiver, {
        headers: { ...json, origin, host },
        body: toOtlpJson(checkout()),
      })
      expect(answer.status).toBe(403)
      expect(reason(answer)).toEqual({
        code: 7,
        message: expect.stringContaining(`received it from a page of ${origin}`),
      })
    }
    expect(spans).toEqual([])
  })

  it.each([
    'http://localhost:3000',
    'https://shop.localhost',
    'http://127.0.0.1:5173',
    'http://[::1]',
    'http://192.168.1.5',
  ])('is taken where the page is of %s', async (origin) => {
    const { receiver, spans } = await receiving()
    await send(receiver, { headers: { ...json, origin }, body: toOtlpJson(checkout()) })
    expect(spans).toHaveLength(10)
  })

  it.each(['127.1', 'LOCALHOST'])('gets 403 also where this machine was given as %s', async (host) => {
    const { receiver, spans } = await receiving({ host })
    const headers = { ...json, origin: 'http://evil.example' }
    const answer = await send(receiver, { headers, body: toOtlpJson(checkout()) })
    expect([answer.status, spans]).toEqual([403, []])
  })

  it('is taken where others than this machine are to reach the viewer', async () => {
    const { receiver, spans } = await receiving({ host: '0.0.0.0' })
    const origin = 'http://shop.example'
    await send(receiver, { headers: { ...json, origin, host: 'viewer:4318' }, body: toOtlpJson(checkout()) })
    expect(spans).toHaveLength(10)
  })

  it('is not what a service sends, which may call this machine by any name', async () => {
    const { receiver, spans } = await receiving()
    await send(receiver, {
      headers: { ...json, host: 'host.docker.internal:4318' },
      body: toOtlpJson(checkout()),
    })
    expect(spans).toHaveLength(10)
  })
})

describe('gzip', () => {
  const gzip = { ...json, 'content-encoding': 'GZIP' }

  const whole = gzipSync(toOtlpJson(checkout()))

  it.each([
    ['broken', Buffer.from('not gzip'), 'incorrect header check'],
    ['cut off', whole.subarray(0, -10), 'unexpected end of file'],
    ['empty', Buffer.alloc(0), 'unexpected end of file'],
  ])('that is %s gets 400', async (_, body, message) => {
    const { receiver, spans } = await receiving()
    const answer = await send(receiver, { headers: gzip, body })
    expect(answer.status).toBe(400)
    expect(reason(answer).message).toContain(message)
    expect(spans).toEqual([])
  })

  it('that inflates beyond the limit gets 413, long before it is inflated', async () => {
    const { receiver } = await receiving({ maxBytes: 1_000_000 })
    const bomb = gzipSync(Buffer.alloc(200_000_000), { level: 9 })
    expect(bomb.length).toBeLessThan(1_000_000)
    const answer = await send(receiver, { headers: gzip, body: bomb })
    expect(answer.status).toBe(413)
    expect(reason(answer)).toEqual({ code: 8, message: expect.stringContaining('at most 1000000 bytes') })
    expect(inflating.map(({ destroyed, bytesWritten }) => destroyed && bytesWritten < bomb.length)).toEqual([
      true,
    ])
  })
})

describe('a body that is too large', () => {
  it('gets 413 by its length alone', async () => {
    const { receiver } = await receiving({ maxBytes: 10 })
    const socket = connect(receiver.port, '127.0.0.1')
    const head = 'POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
    socket.write(`${head}Content-Length: 11\r\n\r\n`)
    const [answer]: [Buffer] = (await once(socket, 'data')) as [Buffer]
    expect(answer.toString()).toMatch(/^HTTP\/1\.1 413 /)
    socket.destroy()
  })

  it('gets 413 when it does not tell its length', async () => {
    const { receiver } = await receiving({ maxBytes: 100_000 })
    const headers = { ...json, 'transfer-encoding': 'chunked' }
    const answer = await send(receiver, { headers, body: ' '.repeat(5_000_000) })
    expect(answer.status).toBe(413)
  })

  it('may be exactly as large as the limit', async () => {
    const { receiver } = await receiving({ maxBytes: 10 })
    expect(await send(receiver, { headers: json, body: '{}        ' })).toMatchObject({ status: 200 })
    const body = gzipSync('{}')
    const larger = await receiving({ maxBytes: body.length })
    const headers = { ...json, 'content-encoding': 'gzip' }
    expect(await send(larger.receiver, { headers, body })).toMatchObject({ status: 200 })
  })
})

describe('a connection', () => {
  it.each([
    ['plain', ''],
    ['gzip', 'Content-Encoding: gzip\r\n'],
  ])('that breaks off in the middle of an upload (%s) harms nobody', async (_, encoding) => {
    const { receiver, spans } = await receiving()
    const socket = connect(receiver.port, '127.0.0.1')
    const head = `POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${encoding}`
    socket.write(`${head}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n`)
    await once(socket, 'data')
    socket.write(gzipSync('{"resourceSpans":[').subarray(0, 15))
    socket.resetAndDestroy()
    await once(socket, 'close')
    const answer = await send(receiver, { headers: json, body: toOtlpJson(checkout()) })
    expect(answer.status).toBe(200)
    expect(spans).toHaveLength(10)
    await vi.waitFor(() => expect(inflating.filter(({ destroyed }) => !destroyed)).toEqual([]))
  })

  it('that is kept alive, or in the middle of an upload, does not keep the receiver from closing', async () => {
    const { receiver } = await receiving()
    const idle = connect(receiver.port, '127.0.0.1')
    const busy = connect(receiver.port, '127.0.0.1')
    const head = 'HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
    idle.write(`POST /v1/traces ${head}Content-Length: 2\r\n\r\n{}`)
    busy.write(`POST /v1/traces ${head}Content-Length: 99\r\nExpect: 100-continue\r\n\r\n`)
    busy.on('error', () => {})
    await Promise.all([once(idle, 'data'), once(busy, 'data')])
    const ended = Promise.all([once(idle, 'close'), once(busy, 'close')])
    await receiver.close()
    await ended
    await expect(send(receiver, { headers: json, body: '{}' })).rejects.toThrow('ECONNREFUSED')
  })
})

describe('listening', () => {
  it('is on this machine only, and says where', async () => {
    const { receiver } = await receiving()
    expect(receiver.url).toBe(`http://127.0.0.1:${receiver.port}`)
  })

  it('on a port that is taken fails with the port and the way out', async () => {
    const { receiver } = await receiving()
    const next = receiver.port < 65535 ? receiver.port + 1 : receiver.port - 1
    await expect(receiving({ port: receiver.port })).rejects.toThrow(
      `port ${receiver.port} on 127.0.0.1 is already in use, by another viewer or a collector? ` +
        `Stop it, or choose another port: --port ${next}`,
    )
  })

  it('on an address that is not ours fails with the address', async () => {
    await expect(receiving({ host: '192.0.2.1' })).rejects.toThrow(/^cannot listen on 192\.0\.2\.1, port 0: /)
  })
})

it('spans of one request share their resource and scope', async () => {
  const { receiver, spans } = await receiving()
  const two = [span(1, 'shop', 'a', [0, 1]), span(2, 'shop', 'b', [0, 1])]
  await send(receiver, { headers: json, body: toOtlpJson(two) })
  expect(spans[0]?.resource).toBe(spans[1]?.resource)
  expect(spans[0]?.scope).toBe(spans[1]?.scope)
})
