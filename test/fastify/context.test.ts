import multipart from '@fastify/multipart'
import { trace } from '@opentelemetry/api'
import { readFileSync } from 'node:fs'
import { request as secureRequest } from 'node:https'
import type { AddressInfo } from 'node:net'
import { Transform } from 'node:stream'
import { once } from 'node:events'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { FastifyInstance } from 'fastify'
import { record } from '../recording.ts'
import { ask, traced, versions } from './app.ts'

const current = () => trace.getActiveSpan()?.spanContext().spanId

describe.each(versions)('%s: the current span is the request’s', (name, create) => {
  /** Everything that was seen is the one span's id. */
  async function expectOwn(app: FastifyInstance, seen: unknown[], init: RequestInit): Promise<void> {
    const recording = record()
    expect((await ask(app, '/', init)).status).toBe(200)
    const [span] = await recording.all(1)
    expect(seen.length).toBeGreaterThan(0)
    expect(new Set(seen)).toEqual(new Set([span?.spanContext().spanId]))
  }

  // @fastify/multipart 10 is for Fastify 5.
  if (name === 'Fastify 5') {
    test('while the parts of a form come in', async () => {
      const seen: unknown[] = []
      const app = traced(create)
      app.register(multipart)
      app.post('/', async (request) => {
        for await (const part of request.files()) {
          seen.push(current())
          part.file.on('end', () => seen.push(current()))
          await part.toBuffer()
        }
        return 'ok'
      })
      const body = new FormData()
      body.append('file', new Blob(['hello'.repeat(10_000)]), 'a.txt')
      await expectOwn(app, seen, { method: 'POST', body })
      expect(seen).toHaveLength(2)
    })
  }

  test('while a handler reads the raw body', async () => {
    const seen: unknown[] = []
    const app = traced(create)
    app.addContentTypeParser('text/raw', (_request, payload, done) => done(null, payload))
    app.post('/', async ({ raw }) => {
      for await (const _ of raw) seen.push(current())
      seen.push(current())
      return 'ok'
    })
    const body = 'x'.repeat(200_000)
    await expectOwn(app, seen, { method: 'POST', body, headers: { 'content-type': 'text/raw' } })
    expect(seen.length).toBeGreaterThan(1)
  })

  test('in a stream that a hook puts around the answer', async () => {
    const seen: unknown[] = []
    const app = traced(create)
    app.addHook('onSend', async (_request, _reply, payload) => {
      const upper = new Transform({
        transform(chunk, _encoding, done) {
          seen.push(current())
          done(null, String(chunk).toUpperCase())
        },
      })
      upper.end(payload)
      return upper
    })
    app.get('/', async () => 'hello')
    await expectOwn(app, seen, {})
  })

  test('in what the app mixes into its log', async () => {
    const seen: unknown[] = []
    const lines: string[] = []
    const logger = {
      level: 'info',
      stream: { write: (line: string) => void lines.push(line) },
      mixin: () => ({ span: current() ?? 'none' }),
    }
    const app = traced(create, {}, { logger, disableRequestLogging: true })
    app.get('/', async (request) => {
      request.log.info('in the handler')
      return 'ok'
    })
    const recording = record()
    await ask(app, '/')
    const [span] = await recording.all(1)
    const line = lines.map((each) => JSON.parse(each)).find(({ msg }) => msg === 'in the handler')
    seen.push(line?.span)
    expect(seen).toEqual([span?.spanContext().spanId])
  })
})

test.each(versions)('%s: a request over HTTPS says so', async (_name, create) => {
  const pem = (name: string) => readFileSync(new URL(`../core/certificates/${name}.pem`, import.meta.url))
  const recording = record()
  const app = traced(create, {}, { https: { key: pem('app.key'), cert: pem('app') } } as object)
  onTestFinished(() => app.close())
  app.get('/', async () => 'ok')
  await app.listen()
  const { port } = app.server.address() as AddressInfo
  const [response] = await once(secureRequest({ port, rejectUnauthorized: false }).end(), 'response')
  response.resume()
  const [span] = await recording.all(1)
  expect(span?.attributes).toMatchObject({ 'url.scheme': 'https', 'server.port': port })
})
