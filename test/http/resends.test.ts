import { span, type ReadableSpan } from '@throughline/core'
import axios from 'axios'
import got from 'got'
import type { RequestListener } from 'node:http'
import superagent from 'superagent'
import { expect, test } from 'vitest'
import { record, type Recording } from '../recording.ts'
import { served, traced } from './served.ts'

/** `/0` leads to `/1`, and that to `/2`, which answers. */
const chain: RequestListener = ({ url = '' }, response) => {
  const step = Number(url.slice(1))
  if (step === 2) response.end('here')
  else response.writeHead(302, { location: `/${step + 1}` }).end()
}

async function countsOf(recording: Recording): Promise<unknown[]> {
  const spans = await recording.all(4)
  const caller = spans.find(({ name }) => name === 'caller')
  const isSibling = ({ parentSpanContext }: ReadableSpan) =>
    parentSpanContext?.spanId === caller?.spanContext().spanId
  const attempts = spans.filter((each) => each !== caller)
  expect(attempts.every(isSibling)).toBe(true)
  return attempts.map(({ attributes }) => attributes['http.request.resend_count'])
}

const clients: [string, (url: string) => Promise<unknown>][] = [
  ['axios', (url) => axios.get(url)],
  ['got', (url) => got(url).text()],
  ['superagent', async (url) => superagent.get(url)],
]

test.each(clients)(
  'each hop of a redirect that %s follows is a span under its caller, and counts',
  async (_client, ask) => {
    traced()
    const recording = record()
    const { url } = await served(chain)
    await span('caller', () => ask(`${url}/0`))
    expect(await countsOf(recording)).toEqual([undefined, 1, 2])
  },
)

test.each(clients)(
  'each hop of a redirect that %s follows outside of any span counts',
  async (_client, ask) => {
    traced()
    const recording = record()
    const { url } = await served(chain)
    await ask(`${url}/0`)
    const spans = await recording.all(3)
    expect(spans.map(({ attributes }) => attributes['http.request.resend_count'])).toEqual([undefined, 1, 2])
  },
)

test('each try of got is a span under its caller, and counts', async () => {
  traced()
  const recording = record()
  let count = 0
  const { url } = await served((_request, response) => {
    count += 1
    response.writeHead(count === 3 ? 200 : 503).end()
  })
  await span('caller', () =>
    got(url, {
      retry: { limit: 2, calculateDelay: ({ attemptCount }) => (attemptCount > 2 ? 0 : 1) },
    }).text(),
  )
  expect(await countsOf(recording)).toEqual([undefined, 1, 2])
})
