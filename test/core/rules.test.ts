import { context, propagation, trace } from '@opentelemetry/api'
import { start, traceRequest, type SamplingRule } from '@throughline/core'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { expect, test } from 'vitest'
import { record } from '../recording.ts'

const rules: SamplingRule[] = [
  { match: { path: ['/health', /^\/assets\//] }, rate: 0 },
  { match: { kind: 'server', method: 'POST' }, rate: 1 },
  { match: { kind: 'server', attributes: { 'server.address': '127.0.0.1' } }, rate: 0 },
  { match: { name: /^nightly/ }, rate: 0 },
]

async function requests(...wanted: [method: string, path: string][]): Promise<void> {
  const server = createServer((request, response) => traceRequest(request, response, () => response.end()))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  for (const [method, path] of wanted)
    await (await fetch(`http://127.0.0.1:${port}${path}`, { method })).text()
  server.closeAllConnections()
  server.close()
  await once(server, 'close')
}

test('the first rule that matches a request decides about its trace', async () => {
  const recording = record({ sampling: rules })
  await requests(['POST', '/health'], ['GET', '/assets/a.css'], ['GET', '/orders'], ['POST', '/orders'])
  const [kept] = await recording.all(1)
  expect(kept?.attributes).toMatchObject({ 'http.request.method': 'POST', 'url.path': '/orders' })
})

test('where no rule matches, the trace is kept', async () => {
  const recording = record({ sampling: rules })
  const tracer = trace.getTracer('test')
  tracer.startSpan('nightly clean-up').end()
  tracer.startSpan('hourly clean-up').end()
  expect((await recording.all(1))[0]?.name).toBe('hourly clean-up')
})

test('a rule is not asked about a trace that somebody else has started', async () => {
  const recording = record({ sampling: [{ match: {}, rate: 0 }] })
  const carrier = { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' }
  trace.getTracer('test').startSpan('continued', {}, propagation.extract(context.active(), carrier)).end()
  await recording.all(1)
})

test('a rule that throws does not match, and the request goes on', async () => {
  const broken = () => {
    throw new Error('of the app')
  }
  const recording = record({ sampling: [{ match: { path: broken }, rate: 0 }] })
  await requests(['GET', '/'])
  await recording.all(1)
})

test.each([
  [{ match: { route: '/users/:id' }, rate: 1 }, /unknown one, "route"/],
  [{ match: { path: 7 }, rate: 1 }, /expected path to be a function, a string.*received 7/],
  [{ match: { kind: 'SERVER' }, rate: 1 }, /expected kind to be one of internal, server/],
  [{ match: {}, rate: 2 }, /expected rate to be a number from 0 to 1, received 2/],
  [{ rate: 1 }, /match and rate/],
])('a rule of the wrong shape is a TypeError: %j', (rule, message) => {
  expect(() => start({ sampling: [rule as SamplingRule] })).toThrow(TypeError)
  expect(() => start({ sampling: [rule as SamplingRule] })).toThrow(message)
})
