import { span, type ReadableSpan } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import ky from 'ky'
import type { IncomingMessage } from 'node:http'
import { PassThrough, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import OpenAI from 'openai'
import * as undici from 'undici'
import { expect, onTestFinished, test, vi } from 'vitest'
import { served } from '../contract/http-client.ts'
import { record } from '../recording.ts'

function expectCarried(call: ReadableSpan | undefined, [request]: IncomingMessage[]): void {
  const sent = request?.rawHeaders.filter((_, index, all) => all[index - 1] === 'traceparent')
  const { traceId, spanId } = call?.spanContext() ?? {}
  expect(sent).toEqual([`00-${traceId}-${spanId}-03`])
}

test('ky sends one traceparent, of the span of its request', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url, requests } = await served((request, response) => request.pipe(response))
  const headers = { traceparent: `00-${'1'.repeat(32)}-${'2'.repeat(16)}-01` }
  const answer = await span('caller', () =>
    ky.post(`${url}/items?sig=s3cret`, { json: { n: 1 }, headers }).text(),
  )
  expect(answer).toBe('{"n":1}')
  const [call, caller] = await recording.all(2)
  expect(call).toMatchObject({ name: 'POST', attributes: { 'url.full': `${url}/items?sig=REDACTED` } })
  expect(call?.parentSpanContext?.spanId).toBe(caller?.spanContext().spanId)
  expectCarried(call, requests)
})

test('each try of ky is a span under its caller, and counts', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  let count = 0
  const { url } = await served((_request, response) => {
    count += 1
    response.writeHead(count === 3 ? 200 : 503).end()
  })
  await span('caller', () => ky(url, { retry: { limit: 2, delay: () => 1 } }).text())
  const attempts = (await recording.all(4)).filter(({ name }) => name === 'GET')
  expect(attempts.map(({ attributes }) => attributes['http.request.resend_count'])).toEqual([undefined, 1, 2])
})

test('a stream of events that the client of OpenAI reads by fetch is one span, to the last event', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url, requests } = await served((_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    for (const content of ['one ', 'two']) {
      response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { content } }] })}\n\n`)
    }
    response.end('data: [DONE]\n\n')
  })
  const client = new OpenAI({ apiKey: 's3cret', baseURL: url, maxRetries: 0 })
  const said = await span('caller', async () => {
    const stream = await client.chat.completions.create({
      model: 'any',
      stream: true,
      messages: [{ role: 'user', content: 'hello' }],
    })
    let read = ''
    for await (const { choices } of stream) read += choices[0]?.delta.content ?? ''
    return read
  })
  expect(said).toBe('one two')
  const [call] = await recording.all(2)
  expect(call).toMatchObject({ name: 'POST', status: { code: 0 } })
  expect(JSON.stringify(call?.attributes)).not.toContain('s3cret')
  expectCarried(call, requests)
})

test('undici.stream and undici.pipeline are spans under their caller', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url, requests } = await served((request, response) => request.pipe(response))
  const into = new PassThrough()
  const [streamed, piped] = await span('caller', async () => {
    const read = text(into)
    await undici.stream(url, { method: 'POST', body: 'streamed' }, () => into)
    const through = undici.pipeline(url, { method: 'POST' }, ({ body }) => body)
    return [await read, await text(Readable.from(['piped']).pipe(through))]
  })
  expect([streamed, piped]).toEqual(['streamed', 'piped'])
  const spans = await recording.all(3)
  const caller = spans.find(({ name }) => name === 'caller')
  const calls = spans.filter((each) => each !== caller)
  expect(calls.map(({ parentSpanContext }) => parentSpanContext?.spanId)).toEqual(
    calls.map(() => caller?.spanContext().spanId),
  )
  for (const [index, call] of calls.entries()) expectCarried(call, requests.slice(index))
})

test('a proxy that the environment names tells of no span of its own', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url, requests } = await served((_request, response) => response.end('proxied'))
  vi.stubEnv('http_proxy', url)
  vi.stubEnv('no_proxy', '')
  const dispatcher = new undici.EnvHttpProxyAgent({ proxyTunnel: false })
  onTestFinished(() => dispatcher.destroy())
  const { body } = await undici.request('http://service.invalid/a', { dispatcher })
  expect(await body.text()).toBe('proxied')
  const [call] = await recording.all(1)
  expect(call?.attributes).toMatchObject({
    'url.full': 'http://service.invalid/a',
    'server.address': 'service.invalid',
    'server.port': 80,
  })
  expectCarried(call, requests)
})
