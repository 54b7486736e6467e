import { context, reportOnce } from '@throughline/core'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { isCovered } from './dispatcher.ts'
import type { Attempt, HttpRequest, HttpResponse, RequestTracer } from './request.ts'

/**
 * What undici publishes of each attempt on the wire, redirects and retries each by itself. The copy inside Node and the
 * one from npm publish on the same channels. `create` is published while the headers can still be changed, inside the
 * call that the app makes, except on a pool that is busy.
 */
interface PublishedRequest extends HttpRequest {
  /** Name, value, name, value. */
  headers: (string | string[])[]
  addHeader(name: string, value: string): void
}

interface Message {
  request: PublishedRequest
  response?: { statusCode: number; headers: readonly Buffer[] }
  error?: unknown
}

let stop: (() => void) | undefined

/** Traces every attempt until the function that it returns is called. While it is on, a second call changes nothing. */
export function onAttempts(begin: RequestTracer): () => void {
  if (stop !== undefined) return stop
  const attempts = new WeakMap<PublishedRequest, Attempt>()

  const listeners: Record<string, (message: Message) => void> = {
    create({ request }) {
      // Its dispatcher is traced too, and has made the span already.
      if (isCovered(headerOf(request, 'traceparent'), context.active())) return
      const attempt = begin(request, (name) => headerOf(request, name))
      for (const [name, value] of Object.entries(attempt.headers)) replaceHeader(request, name, value)
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
  stop = function stopTracing() {
    for (const [name, listener] of subscribed) unsubscribe(`undici:request:${name}`, listener)
    stop = undefined
  }
  return stop
}

function headerOf({ headers }: PublishedRequest, name: string): string | undefined {
  for (let index = 0; index < headers.length; index += 2) {
    if (String(headers[index]).toLowerCase() === name) return String(headers[index + 1])
  }
  return undefined
}

/** There is one trace context on the wire: what the app or another tracer has set gives way. */
function replaceHeader(request: PublishedRequest, name: string, value: string): void {
  const { headers } = request
  for (let index = headers.length - 2; index >= 0; index -= 2) {
    if (String(headers[index]).toLowerCase() === name) headers.splice(index, 2)
  }
  request.addHeader(name, value)
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
