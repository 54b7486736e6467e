import { reportOnce } from '@throughline/core'
import type { HttpAttempt, HttpClient, HttpResponse } from '@throughline/core/http-client'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { isAlone, isCovered, shared, yieldsToOfficial } from './dispatcher.ts'
import { FINAL, headerOf, setHeaders, type PublishedRequest } from './published.ts'

/** Where a request has its attempt. Not in a WeakMap: that cost 2 µs a request, most of it in garbage collection. */
const ATTEMPT = Symbol('throughline.attempt')

interface Message {
  request: PublishedRequest & { [ATTEMPT]?: HttpAttempt }
  response?: { statusCode: number; headers: readonly Buffer[] }
  error?: unknown
}

/** Traces every attempt until the function that it returns is called. While it is on, a second call changes nothing. */
export function onAttempts(tracer: HttpClient): () => void {
  if (shared.stop !== undefined) return shared.stop

  const listeners: Record<string, (message: Message) => void> = {
    create({ request }) {
      // Its dispatcher is traced too, and has made the span already.
      if (yieldsToOfficial() || isCovered(request)) return
      const attempt = tracer.begin(request, request, headerOf)
      // First, so that the span ends also where the headers cannot be set.
      if (attempt.isTraced && attempt.isOpen) request[ATTEMPT] = attempt
      setHeaders(request, attempt.headers, isAlone())
    },
    headers({ request, response }) {
      const attempt = request[ATTEMPT]
      if (attempt !== undefined && response !== undefined && response.statusCode >= FINAL) {
        attempt.answered(response.statusCode, undefined, response.headers, readHeaders)
      }
    },
    trailers({ request }) {
      request[ATTEMPT]?.completed()
    },
    error({ request, error }) {
      request[ATTEMPT]?.failed(error)
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

function readHeaders(pairs: readonly Buffer[]): HttpResponse['headers'] {
  const read: Record<string, string | string[]> = {}
  for (let index = 0; index + 1 < pairs.length; index += 2) {
    const name = String(pairs[index]).toLowerCase()
    const value = String(pairs[index + 1])
    const before = read[name]
    read[name] = before === undefined ? value : [before, value].flat()
  }
  return read
}
