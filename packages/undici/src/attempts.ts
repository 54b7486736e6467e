import { context, reportOnce } from '@throughline/core'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { isCovered, shared, yieldsToOfficial } from './dispatcher.ts'
import { headerOf, setHeaders, type PublishedRequest } from './published.ts'
import type { Attempt, HttpResponse, RequestTracer } from './request.ts'

interface Message {
  request: PublishedRequest
  response?: { statusCode: number; headers: readonly Buffer[] }
  error?: unknown
}

/** Traces every attempt until the function that it returns is called. While it is on, a second call changes nothing. */
export function onAttempts(begin: RequestTracer): () => void {
  if (shared.stop !== undefined) return shared.stop
  const attempts = new WeakMap<PublishedRequest, Attempt>()

  const listeners: Record<string, (message: Message) => void> = {
    create({ request }) {
      // Its dispatcher is traced too, and has made the span already.
      if (yieldsToOfficial() || isCovered(headerOf(request, 'traceparent'), context.active())) return
      const attempt = begin(request, (name) => headerOf(request, name))
      setHeaders(request, attempt.headers)
      if (attempt.call !== undefined) attempts.set(request, attempt)
    },
    headers({ request, response }) {
      const attempt = attempts.get(request)
      if (attempt !== undefined && response !== undefined && response.statusCode >= 200) {
        attempt.answered(readResponse(response))
      }
    },
    trailers({ request }) {
      attempts.get(request)?.completed()
    },
    error({ request, error }) {
      attempts.get(request)?.failed(error)
    },
  }

  // What a subscriber throws, Node makes an uncaught exception of the app.
  const subscribed = Object.entries(listeners).map(([name, listener]) => {
    const guarded = (message: unknown) => {
      try {
        listener(message as Message)
      } catch (error) {
        reportOnce(`undici:${name}`, 'error', 'a request could not be traced', error)
      }
    }
    return [name, guarded] as const
  })
  for (const [name, listener] of subscribed) subscribe(`undici:request:${name}`, listener)
  function stopTracing(): void {
    for (const [name, listener] of subscribed) unsubscribe(`undici:request:${name}`, listener)
    shared.stop = undefined
  }
  shared.stop = stopTracing
  return stopTracing
}

function readResponse({ statusCode, headers }: NonNullable<Message['response']>): HttpResponse {
  return {
    statusCode,
    get headers() {
      const read: Record<string, string | string[]> = {}
      for (let index = 0; index + 1 < headers.length; index += 2) {
        const name = String(headers[index]).toLowerCase()
        const value = String(headers[index + 1])
        const before = read[name]
        read[name] = before === undefined ? value : [before, value].flat()
      }
      return read
    },
  }
}
