import { GetObjectCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import { span } from '@throughline/core'
import axios from 'axios'
import got from 'got'
import fetch from 'node-fetch'
import { createHash, createHmac } from 'node:crypto'
import type * as http from 'node:http'
import OpenAI from 'openai'
import superagent from 'superagent'
import supertest from 'supertest'
import { expect, onTestFinished, test } from 'vitest'
import { record, type Recording } from '../recording.ts'
import { traceparents } from '../contract/http-client.ts'
import { served, traced } from './served.ts'

const OLD = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'

const shop: http.RequestListener = (request, response) => {
  if (request.url === '/old') response.writeHead(302, { location: '/new' }).end()
  else request.pipe(response.setHeader('content-type', 'application/json'))
}

/** One traceparent arrived with each request, of its own span; and all spans are the caller's children. */
async function expectOneEach(recording: Recording, requests: http.IncomingMessage[]): Promise<void> {
  const spans = await recording.all(requests.length + 1)
  const caller = spans.find(({ name }) => name === 'caller')
  const calls = spans.filter((each) => each !== caller)
  expect(requests.map(traceparents)).toEqual(
    calls.map((each) => [`00-${each.spanContext().traceId}-${each.spanContext().spanId}-03`]),
  )
  for (const call of calls) {
    expect(call.parentSpanContext?.spanId).toBe(caller?.spanContext().spanId)
    expect(call.instrumentationScope.name).toBe('@throughline/http')
  }
}

/** Each sends a body with a traceparent of its own, and answers what came back; and follows a redirect. */
const clients: Record<
  string,
  { post(url: string): Promise<unknown>; follow(url: string): Promise<unknown> }
> = {
  axios: {
    post: async (url) =>
      (await axios.post(url, { n: 1 }, { adapter: 'http', headers: { traceparent: OLD } })).data,
    follow: async (url) => (await axios.get(url, { adapter: 'http' })).data,
  },
  got: {
    post: (url) => got.post(url, { json: { n: 1 }, headers: { traceparent: OLD } }).json(),
    follow: (url) => got(url).text(),
  },
  'node-fetch': {
    post: async (url) =>
      (await fetch(url, { method: 'POST', body: '{"n":1}', headers: { traceparent: OLD } })).json(),
    follow: async (url) => (await fetch(url)).text(),
  },
  superagent: {
    post: async (url) => (await superagent.post(url).set('traceparent', OLD).send({ n: 1 })).body,
    follow: async (url) => (await superagent.get(url)).text,
  },
}

test.each(Object.entries(clients))(
  '%s sends one traceparent, of the span of its request',
  async (_name, { post }) => {
    const recording = record()
    const { url, requests } = await served(shop)
    traced()
    expect(await span('caller', () => post(`${url}/items?sig=s3cret`))).toEqual({ n: 1 })
    await expectOneEach(recording, requests)
    expect(recording.spans[0]).toMatchObject({
      name: 'POST',
      attributes: { 'url.full': `${url}/items?sig=REDACTED`, 'http.response.status_code': 200 },
    })
  },
)

test.each(Object.entries(clients))(
  '%s follows a redirect by requests with a span each',
  async (_name, { follow }) => {
    const recording = record()
    const { url, requests } = await served(shop)
    traced()
    await span('caller', () => follow(`${url}/old`))
    expect(requests.map((each) => each.url)).toEqual(['/old', '/new'])
    await expectOneEach(recording, requests)
    expect(recording.spans.map((each) => each.attributes['http.response.status_code'])).toEqual([
      302,
      200,
      undefined,
    ])
  },
)

test('got tries again by requests with a span each, and its own timeout is an error', async () => {
  const recording = record()
  const { url, requests } = await served((request, response) => {
    if (request.url === '/slow') return
    response.writeHead(requests.length === 1 ? 503 : 200).end('hello')
  })
  traced()
  const text = await span('caller', () => got(url, { retry: { limit: 1, calculateDelay: () => 1 } }).text())
  expect(text).toBe('hello')
  await expectOneEach(recording, requests)
  expect(recording.spans[0]?.attributes).toMatchObject({ 'error.type': '503' })
  await expect(got(`${url}/slow`, { timeout: { response: 20 }, retry: { limit: 0 } })).rejects.toThrow(
    'Timeout',
  )
  expect((await recording.all(4)).at(-1)?.attributes).toMatchObject({ 'error.type': 'ETIMEDOUT' })
})

test('a stream of got, of node-fetch and of axios ends its span with its last byte', async () => {
  const recording = record()
  let finish = () => {}
  const { url } = await served((_request, response) => {
    response.write('first ')
    finish = () => void response.end('last')
  })
  traced()
  const streams: (() => Promise<AsyncIterable<unknown>>)[] = [
    async () => got.stream(url),
    async () => (await fetch(url)).body as AsyncIterable<unknown>,
    async () =>
      (await axios.get(url, { adapter: 'http', responseType: 'stream' })).data as AsyncIterable<unknown>,
  ]
  for (const [index, open] of streams.entries()) {
    let text = ''
    for await (const chunk of await open()) {
      if (text === '') {
        expect(recording.spans).toHaveLength(index)
        finish()
      }
      text += String(chunk)
    }
    expect(text).toBe('first last')
    await recording.all(index + 1)
  }
})

test('supertest asks an app as before, with a span for each request', async () => {
  const recording = record()
  const requests: http.IncomingMessage[] = []
  const app: http.RequestListener = (request, response) => {
    requests.push(request)
    response.setHeader('content-type', 'application/json').end('{"n":1}')
  }
  traced()
  await span('caller', async () => {
    await supertest(app).get('/items').expect(200, { n: 1 })
  })
  await expectOneEach(recording, requests)
})

/** Whether a request's signature (AWS Signature Version 4) is that of what has arrived. */
function isSigned(request: http.IncomingMessage, secret: string): boolean {
  const fields = /Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=(\w+)/.exec(
    request.headers.authorization ?? '',
  )
  const [, credential = '', names = '', signature = ''] = fields ?? []
  const [, date = '', region = '', service = ''] = credential.split('/')
  const [path = '', query = ''] = (request.url ?? '').split('?')
  const canonical = [
    request.method,
    path,
    query
      .split('&')
      .map((pair) => (pair.includes('=') ? pair : pair && `${pair}=`))
      .sort()
      .join('&'),
    ...names.split(';').map((name) => `${name}:${String(request.headers[name]).trim()}`),
    '',
    names,
    request.headers['x-amz-content-sha256'],
  ].join('\n')
  const scope = `${date}/${region}/${service}/aws4_request`
  const hash = createHash('sha256').update(canonical).digest('hex')
  const text = ['AWS4-HMAC-SHA256', request.headers['x-amz-date'], scope, hash].join('\n')
  const key = [date, region, service, 'aws4_request'].reduce<string | Buffer>(
    (by, part) => createHmac('sha256', by).update(part).digest(),
    `AWS4${secret}`,
  )
  return createHmac('sha256', key).update(text).digest('hex') === signature
}

test('what the AWS SDK signs arrives with its signature intact, and one traceparent beside it', async () => {
  const recording = record()
  const stored = new Map<string, Buffer>()
  const { url, requests } = await served(async (request, response) => {
    const name = String(request.url).split('?')[0] as string
    if (request.method === 'PUT') {
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      stored.set(name, Buffer.concat(chunks))
      response.setHeader('etag', '"1"').end()
    } else response.end(stored.get(name))
  })
  // From two megabytes on it asks the server first, by Expect: 100-continue.
  const body = 'hello '.repeat(500_000)
  const secretAccessKey = 's3cret'
  const client = new S3Client({
    endpoint: url,
    region: 'eu-central-1',
    forcePathStyle: true,
    requestChecksumCalculation: 'WHEN_REQUIRED',
    credentials: { accessKeyId: 'key', secretAccessKey },
  })
  onTestFinished(() => client.destroy())
  traced()
  const name = { Bucket: 'shop', Key: 'item' }
  const text = await span('caller', async () => {
    await client.send(new PutObjectCommand({ ...name, Body: body }))
    return (await client.send(new GetObjectCommand(name))).Body?.transformToString()
  })
  expect(text).toBe(body)
  expect(requests.map(({ method }) => method)).toEqual(['PUT', 'GET'])
  expect(requests.map((each) => isSigned(each, secretAccessKey))).toEqual([true, true])
  expect(requests.map((each) => isSigned(each, 'another'))).toEqual([false, false])
  expect(requests[0]?.headers).toMatchObject({ expect: '100-continue' })
  await expectOneEach(recording, requests)
  expect(JSON.stringify(recording.spans.map(({ attributes }) => attributes))).not.toContain(secretAccessKey)
})

test('a stream of server-sent events, as of a language model, ends its span when it is done or left', async () => {
  const recording = record()
  const { url, requests } = await served((request, response) => {
    request.resume()
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    const chunk = (content: string) =>
      `data: ${JSON.stringify({ object: 'chat.completion.chunk', choices: [{ index: 0, delta: { content } }] })}\n\n`
    response.write(chunk('hel') + chunk('lo'))
    if (requests.length === 1) response.end('data: [DONE]\n\n')
  })
  traced()
  // This client takes any fetch: here one that is made of node:http.
  const client = new OpenAI({ apiKey: 's3cret', baseURL: url, fetch: fetch as never, maxRetries: 0 })
  const ask = () =>
    client.chat.completions.create({ model: 'm', stream: true, messages: [{ role: 'user', content: 'hi' }] })
  let text = ''
  await span('caller', async () => {
    for await (const { choices } of await ask()) text += choices[0]?.delta.content ?? ''
    for await (const { choices } of await ask()) if (choices.length > 0) break
  })
  expect(text).toBe('hello')
  await expectOneEach(recording, requests)
  for (const { attributes } of recording.spans) expect(attributes).not.toHaveProperty('error.type')
})

test.each<[string, (url: string, signal: AbortSignal) => Promise<unknown>]>([
  ['axios', (url, signal) => axios.get(url, { adapter: 'http', signal })],
  ['got', (url, signal) => got(url, { signal, retry: { limit: 0 } }).text()],
  ['node-fetch', (url, signal) => fetch(url, { signal: signal as never })],
])('what the caller aborts of %s is no error', async (_name, ask) => {
  const recording = record()
  const controller = new AbortController()
  const { url } = await served(() => controller.abort())
  traced()
  await expect(ask(url, controller.signal)).rejects.toBeInstanceOf(Error)
  const [call] = await recording.all(1)
  expect(call?.status.code).toBe(0)
  expect(call?.attributes).not.toHaveProperty('error.type')
})
