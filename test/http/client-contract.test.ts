import { traceHttp } from '@throughline/http'
import * as http from 'node:http'
import * as https from 'node:https'
import { text } from 'node:stream/consumers'
import { vi } from 'vitest'
import { httpClientContract, type Asking, type Gaps, type OpenClient } from '../contract/http-client.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

const READ_ONCE = ['OTEL_SEMCONV_STABILITY_OPT_IN', 'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS']

/** A copy of its own for a test that sets what is read but once from the environment. */
async function load(): Promise<typeof traceHttp> {
  const isSet = READ_ONCE.some((name) => process.env[name] !== undefined)
  return isSet ? (await import('@throughline/http')).traceHttp : traceHttp
}

const gaps: Gaps = { headers: ['Headers', 'a Map'], lowerCase: true }

function contract(name: string, own: Gaps, ask: OpenClient['ask']): void {
  httpClientContract(name, {
    scope: '@throughline/http',
    gaps: own,
    async open(options) {
      const stop = options && (await load())(options)
      return { ask, close: () => stop?.() }
    },
  })
}

/** What has no body is asked for by `get` too: Node ends that before it is handed out. */
function asks(byGet: boolean): OpenClient['ask'] {
  return async ({ url, method = 'GET', headers, body, signal }: Asking) => {
    const { get, request } = url.startsWith('https:') ? https : http
    const options = { method, headers, signal, agent: false } as http.RequestOptions
    const answer = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const isGot = byGet && body === undefined
      const asked = isGot ? get(url, options) : request(url, options)
      asked.on('response', resolve).on('error', reject)
      if (!isGot) asked.end(body)
    })
    // One that nobody reads is in error when its connection ends.
    answer.on('error', () => {})
    return {
      status: answer.statusCode ?? 0,
      text: () => text(answer),
      cancel: () => void answer.destroy(),
    }
  }
}

contract('node:http', gaps, asks(false))
contract('node:http by get', gaps, asks(true))
