import { context, createContextKey, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { RPCType, setRPCMetadata, type RPCMetadata } from '@opentelemetry/core'
import { tracing } from '@throughline/express'
import express, { type Request, type Response } from 'express'
import { createServer } from 'node:http'
import { describe, expect, test } from 'vitest'
import { expressAdapter } from './contract/express.ts'
import { ask, serverContract } from './contract/server.ts'
import { express4, ok, quiet, serve, spanOf, versions } from './express/app.ts'
import { record } from './recording.ts'

for (const [name, create] of versions) serverContract(name, expressAdapter(create))

test.each(versions)(
  '%s: the functions of the app are given request and response, with what the app put on them',
  async (_name, create) => {
    const application = quiet(create())
    application.use(
      tracing({
        ignore: ({ path }) => path === '/health',
        attributes: ({ params, query }, { locals, statusCode }) => ({
          'app.user': String(locals['user']),
          'app.id': String(params['id']),
          'app.page': String(query['page']),
          'app.status': statusCode,
        }),
        spanName: ({ method, route }) => `${method} at ${route.path}`,
      }),
    )
    application.get('/users/:id', (_request, response) => {
      response.locals['user'] = 'ann'
      response.status(201).send('ok')
    })
    const span = await spanOf(application, '/users/7?page=2')
    expect(span.name).toBe('GET at /users/:id')
    expect(span.attributes).toMatchObject({
      'app.user': 'ann',
      'app.id': '7',
      'app.page': '2',
      'app.status': 201,
    })
  },
)

describe('an app that hands a request over to one of another Express', () => {
  test.each([
    ['Express 5 to 4', express, express4],
    ['Express 4 to 5', express4, express],
  ])('%s: the span ends, and listeners run in its context', async (_title, outer, inner) => {
    const current: unknown[] = []
    const other = inner().post('/x', (request: Request, response: Response) => {
      request.on('end', () => {
        current.push(trace.getActiveSpan()?.spanContext().spanId)
        response.send('inner')
      })
      request.resume()
    })
    const application = outer().use(tracing())
    application.post('/x', (request, response) => void other(request as never, response as never))
    const span = await spanOf(application, '/x', { method: 'POST' })
    expect(span.attributes).toMatchObject({ 'http.response.status_code': 200 })
    expect(current).toEqual([span.spanContext().spanId])
  })
})

test('an app that is not traced keeps what it binds, whatever another app of the process traces', async () => {
  const key = createContextKey('of the app')
  const seen: unknown[] = []
  const untraced = express().post('/', (request, response) => {
    context.bind(ROOT_CONTEXT.setValue(key, 'bound'), request)
    request.on('end', () => {
      seen.push(context.active().getValue(key))
      response.send('ok')
    })
    request.resume()
  })
  const serving = await serve(untraced)
  record()
  await ask(await serve(express().use(tracing()).get('/', ok)), '/')
  await ask(serving, '/', { method: 'POST' })
  expect(seen).toEqual(['bound'])
})

test('a request that was bound before it came to the app runs its listeners in the span’s context', async () => {
  const current: unknown[] = []
  const application = express().use(tracing())
  application.post('/', (request, response) => {
    request.on('end', () => {
      current.push(trace.getActiveSpan()?.spanContext().spanId)
      response.send('ok')
    })
    request.resume()
  })
  const recording = record()
  const serving = await serve(
    createServer((request, response) => {
      context.bind(ROOT_CONTEXT, request)
      application(request, response)
    }),
  )
  await ask(serving, '/', { method: 'POST' })
  const [span] = await recording.all(1)
  expect(current).toEqual([span?.spanContext().spanId])
})

test('the official instrumentation is told the route of an unsampled request too, for its metrics', async () => {
  const span = trace.wrapSpanContext({ traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 0 })
  const metadata: RPCMetadata = { type: RPCType.HTTP, span }
  record()
  const application = express().use(tracing()).get('/users/:id', ok)
  let resolve = (): void => {}
  const closed = new Promise<void>((settle) => (resolve = settle))
  const serving = await serve(
    createServer((request, response) => {
      response.on('close', resolve)
      const official = setRPCMetadata(trace.setSpan(ROOT_CONTEXT, span), metadata)
      context.with(official, () => application(request, response))
    }),
  )
  await ask(serving, '/users/7')
  await closed
  expect(metadata.route).toBe('/users/:id')
})
