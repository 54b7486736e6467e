import type { HttpClientOptions } from '@throughline/core/http-client'
import { traceUndici } from '@throughline/undici'
import * as undici from 'undici'
import * as undici6 from 'undici6'
import { vi } from 'vitest'
import { httpClientContract, type Asking, type Gaps, type OpenClient } from '../contract/http-client.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

const READ_ONCE = ['OTEL_SEMCONV_STABILITY_OPT_IN', 'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS']

/** A copy of its own for a test that sets what is read but once from the environment. */
async function load(): Promise<typeof traceUndici> {
  const isSet = READ_ONCE.some((name) => process.env[name] !== undefined)
  return isSet ? (await import('@throughline/undici')).traceUndici : traceUndici
}

httpClientContract('global fetch', {
  scope: '@throughline/undici',
  gaps: { headers: ['a flat list'], credentials: 'refused', lowerCase: true },
  async open(options) {
    const stop = options && (await load())(options)
    return { ask: asking(fetch), close: () => stop?.() }
  },
})

function asking(by: typeof fetch): OpenClient['ask'] {
  return async ({ url, method = 'GET', headers, body, signal }: Asking) => {
    const response = await by(url, {
      method,
      ...(headers === undefined ? {} : { headers: headers as Record<string, string> }),
      ...(body === undefined ? {} : { body }),
      ...(signal === undefined ? {} : { signal }),
    })
    return {
      status: response.status,
      text: () => response.text(),
      cancel: () => response.body?.cancel(),
    }
  }
}

const gaps: Gaps = { headers: ['a list of pairs'], credentials: 'dropped' }

for (const [version, library] of [
  ['7', undici],
  ['6', undici6 as unknown as typeof undici],
] as const) {
  const request =
    (dispatcher: undici.Dispatcher): OpenClient['ask'] =>
    async ({ url, method = 'GET', headers, body, signal }) => {
      const options = { dispatcher, method, headers, body, signal } as Parameters<typeof library.request>[1]
      const answer = await library.request(url, options)
      // A body that nobody reads is in error when its agent is destroyed.
      answer.body.on('error', () => {})
      return {
        status: answer.statusCode,
        text: () => answer.body.text(),
        cancel: () => void answer.body.destroy(),
      }
    }

  httpClientContract(`undici ${version}, all of it`, {
    scope: '@throughline/undici',
    gaps: { ...gaps, timeLimit: true },
    async open(options: HttpClientOptions | undefined) {
      const stop = options && (await load())(options)
      const agent = new library.Agent()
      return {
        ask: request(agent),
        close() {
          stop?.()
          return agent.destroy()
        },
      }
    },
  })

  httpClientContract(`an agent of undici ${version}`, {
    scope: '@throughline/undici',
    gaps,
    async open(options) {
      const agent = new library.Agent()
      if (options !== undefined) (await load())(agent, options)
      return { ask: request(agent), close: () => agent.destroy() }
    },
  })

  httpClientContract(`fetch of undici ${version}, through an agent`, {
    scope: '@throughline/undici',
    gaps: { headers: ['a flat list'], credentials: 'refused', lowerCase: true },
    async open(options) {
      const agent = new library.Agent()
      if (options !== undefined) (await load())(agent, options)
      const by = (url: string, init: object) => library.fetch(url, { ...init, dispatcher: agent })
      return { ask: asking(by as unknown as typeof fetch), close: () => agent.destroy() }
    },
  })
}
