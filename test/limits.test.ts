import { traceRequest } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test, vi } from 'vitest'
import { record } from './recording.ts'

afterEach(() => vi.unstubAllEnvs())

/** What the spans of a request and of the `fetch` that made it say. */
async function attributesOf(env: Record<string, string>): Promise<Record<string, unknown>[]> {
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value)
  const recording = record()
  const stop = traceUndici()
  const server = createServer((request, response) =>
    traceRequest(request, response, () => response.end('ok')),
  )
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  try {
    const response = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}/users?id=7`)
    await response.text()
    const spans = await recording.all(2)
    return spans.toSorted((a, b) => a.kind - b.kind).map(({ attributes }) => attributes)
  } finally {
    stop()
    server.closeAllConnections()
    server.close()
    await recording.stop()
  }
}

// Where limits are near, attributes go another way into the span.
test.each([
  ['of the length of texts', { OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '4000' }],
  ['of how many there are', { OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '13' }],
])('a limit %s that is not reached changes nothing', async (_, env) => {
  const names = async (given: Record<string, string>) =>
    (await attributesOf(given)).map((attributes) => Object.keys(attributes))
  const [server, client] = await names({})
  expect(server).toContain('http.response.status_code')
  expect(client).toEqual(
    expect.arrayContaining([
      'network.peer.address',
      'network.peer.port',
      'network.protocol.version',
      'http.response.status_code',
    ]),
  )
  expect(await names(env)).toEqual([server, client])
})
