import { untrace, span, type ReadableSpan } from '@throughline/core'
import { traceUndici } from '@throughline/undici'
import type { IncomingMessage, RequestListener } from 'node:http'
import * as undici from 'undici'
import * as undici6 from 'undici6'
import { describe, expect, onTestFinished, test } from 'vitest'
import { served } from '../contract/http-client.ts'
import { record, type Recording } from '../recording.ts'

const COUNT = 'http.request.resend_count'

/** `/0` leads to `/1`, and that to `/2`, which answers. */
const chain: RequestListener = ({ url = '' }, response) => {
  const step = Number(url.slice(1))
  if (step === 2) response.end('here')
  else response.writeHead(step === 0 ? 302 : 307, { location: `/${step + 1}` }).end()
}

/** Fails twice: with no answer, and with one that asks to come again. */
function failing(): RequestListener {
  let count = 0
  return ({ socket }, response) => {
    count += 1
    if (count === 1) socket.destroy()
    else if (count === 2) response.writeHead(503).end()
    else response.end('here')
  }
}

async function attemptsOf(
  recording: Recording,
  count: number,
): Promise<[ReadableSpan[], ReadableSpan | undefined]> {
  const spans = await recording.all(count + 1)
  const caller = spans.find(({ name }) => name === 'caller')
  return [spans.filter((each) => each !== caller), caller]
}

function expectSiblings(
  attempts: ReadableSpan[],
  caller: ReadableSpan | undefined,
  requests: IncomingMessage[],
) {
  const parents = attempts.map(({ parentSpanContext }) => parentSpanContext?.spanId)
  expect(new Set(parents)).toEqual(new Set([caller?.spanContext().spanId]))
  const sent = requests.map(({ headers }) => String(headers['traceparent']).split('-')[2])
  expect(sent).toEqual(attempts.map((attempt) => attempt.spanContext().spanId))
}

test('each hop of a redirect that fetch follows is a span under its caller, and counts', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url, requests } = await served(chain)
  await span('caller', async () => (await fetch(`${url}/0`)).text())
  const [attempts, caller] = await attemptsOf(recording, 3)
  expect(attempts.map(({ attributes }) => attributes[COUNT])).toEqual([undefined, 1, 2])
  expect(attempts.map(({ attributes }) => attributes['http.response.status_code'])).toEqual([302, 307, 200])
  expectSiblings(attempts, caller, requests)
})

test('each hop of a redirect that fetch follows outside of any span counts; what is asked later does not', async () => {
  onTestFinished(traceUndici())
  const recording = record()
  const { url } = await served(chain)
  await (await fetch(`${url}/0`)).text()
  const manual = await fetch(`${url}/0`, { redirect: 'manual' })
  await manual.text()
  await new Promise(setImmediate)
  await (await fetch(`${url}/1`, { redirect: 'manual' })).text()
  const spans = await recording.all(5)
  expect(spans.map(({ attributes }) => attributes[COUNT])).toEqual([undefined, 1, 2, undefined, undefined])
  expect(spans.every(({ parentSpanContext }) => parentSpanContext === undefined)).toBe(true)
})

describe.each([
  ['undici 7', undici],
  ['undici 6', undici6 as unknown as typeof undici],
])('%s', (_version, library) => {
  const RETRY = { minTimeout: 1, maxTimeout: 5, timeoutFactor: 1 }
  const REDIRECT = { maxRedirections: 5 }

  describe.each([
    [
      'all of undici',
      () => {
        onTestFinished(traceUndici())
        return new library.Agent()
      },
    ],
    [
      'an agent',
      () => {
        const agent = new library.Agent()
        traceUndici(agent)
        return agent
      },
    ],
    [
      'both',
      () => {
        onTestFinished(traceUndici())
        const agent = new library.Agent()
        traceUndici(agent)
        return agent
      },
    ],
  ])('with %s traced', (_form, open) => {
    function opened(): undici.Agent {
      const agent = open()
      onTestFinished(() => agent.destroy())
      return agent
    }

    test('each hop of a redirect that an interceptor follows is a span under its caller, and counts', async () => {
      const recording = record()
      const { url, requests } = await served(chain)
      const dispatcher = opened().compose(library.interceptors.redirect(REDIRECT))
      const body = await span('caller', async () =>
        (await library.request(`${url}/0`, { dispatcher })).body.text(),
      )
      expect(body).toBe('here')
      const [attempts, caller] = await attemptsOf(recording, 3)
      expect(attempts.map(({ attributes }) => attributes[COUNT])).toEqual([undefined, 1, 2])
      expectSiblings(attempts, caller, requests)
    })

    test.each<[string, (agent: undici.Agent) => undici.Dispatcher]>([
      ['a redirect', (agent: undici.Agent) => agent.compose(library.interceptors.redirect(REDIRECT))],
      ['another try', (agent: undici.Agent) => agent.compose(library.interceptors.retry(RETRY))],
      ['another try of a RetryAgent', (agent: undici.Agent) => new library.RetryAgent(agent, RETRY)],
    ])(
      '%s is below its own caller on a connection that another caller has opened',
      async (what, composed) => {
        const recording = record()
        let tries = 0
        const { url, requests } = await served(({ url: path }, response) => {
          if (path === '/moved') response.writeHead(302, { location: '/here' }).end()
          else response.writeHead(path === '/failing' && ++tries === 1 ? 503 : 200).end('here')
        })
        const agent = opened()
        const path = what === 'a redirect' ? '/moved' : '/failing'
        const dispatcher = composed(agent)
        await span('opener', async () =>
          (await library.request(`${url}/`, { dispatcher: agent })).body.text(),
        )
        // The connection is free in the next turn.
        await new Promise(setImmediate)
        await span('caller', async () => (await library.request(`${url}${path}`, { dispatcher })).body.text())
        const spans = await recording.all(5)
        const caller = spans.find(({ name }) => name === 'caller')
        const attempts = spans.filter(
          ({ kind, attributes }) => kind === 2 && attributes['url.full'] !== `${url}/`,
        )
        expectSiblings(attempts, caller, requests.slice(1))
      },
    )

    test.each([
      ['a RetryAgent', (agent: undici.Agent) => new library.RetryAgent(agent, RETRY)],
      ['an interceptor', (agent: undici.Agent) => agent.compose(library.interceptors.retry(RETRY))],
    ])('each try of %s is a span under its caller, and counts', async (_by, retrying) => {
      const recording = record()
      const { url, requests } = await served(failing())
      const dispatcher = retrying(opened())
      const body = await span('caller', async () => (await library.request(url, { dispatcher })).body.text())
      expect(body).toBe('here')
      const [attempts, caller] = await attemptsOf(recording, 3)
      expect(attempts.map(({ attributes }) => attributes[COUNT])).toEqual([undefined, 1, 2])
      expect(attempts.map(({ attributes }) => attributes['error.type'])).toEqual([
        'UND_ERR_SOCKET',
        '503',
        undefined,
      ])
      expectSiblings(attempts, caller, requests)
    })
  })
})

test('undici 7: what compose() makes has to be made of a traced dispatcher, and says so', () => {
  const agent = new undici.Agent()
  onTestFinished(() => agent.destroy())
  expect(() => traceUndici(agent.compose(undici.interceptors.retry({})))).toThrow(
    expect.objectContaining({
      name: 'TypeError',
      message: expect.stringMatching(/^@throughline\/undici: .*expected.*compose/s),
    }),
  )
  expect(Object.hasOwn(agent, 'dispatch')).toBe(false)
  untrace(agent)
})
