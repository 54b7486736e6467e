import { dropOptions, holdOptions, reportOnce } from '@throughline/core'
import type { HttpAttempt, HttpClient, HttpClientOptions } from '@throughline/core/http-client'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { coveredBy, shared } from './covered.ts'
import { isAlone, yieldsToOfficial } from './dispatcher.ts'
import { endWith, isOwn } from './failure.ts'
import {
  answerHere,
  FINAL,
  handlerOf,
  headerOf,
  isMaker,
  noticeUpgrade,
  readHeaders,
  sendFrom,
  setHeaders,
  tellPeer,
  type PublishedRequest,
} from './published.ts'

/** Key of a request's attempt. Not in a WeakMap: that would cost 2 µs a request, most of it in garbage collection. */
const ATTEMPT = Symbol('throughline.attempt')

interface Message {
  request: PublishedRequest & { [ATTEMPT]?: HttpAttempt | undefined }
  response?: { statusCode: number; headers: readonly Buffer[] }
  error?: unknown
  socket?: Parameters<typeof tellPeer>[1]
}

/**
 * Returns the attempt of a finished request and removes it there: V8 keeps what `fetch` has made until it collects the old
 * space, and the attempt, its span and all they refer to, 1 KB, would be copied there too.
 */
function takeFrom(request: Message['request']): HttpAttempt | undefined {
  const attempt = request[ATTEMPT]
  if (attempt !== undefined) request[ATTEMPT] = undefined
  return attempt
}

/** Traces every attempt until the returned function is called. A second call meanwhile changes nothing. */
export function onAttempts(options: HttpClientOptions, tracer: HttpClient): () => void {
  if (shared.stop !== undefined) {
    dropOptions(shared.stop, options, 'traceUndici()', "stop(); traceUndici({ headers: 'keep' })")
    return shared.stop
  }

  function begin(request: Message['request']): void {
    const attempt = tracer.begin(request, request, headerOf)
    // First, so that the span ends also where the headers cannot be set.
    if (attempt.isTraced && attempt.isOpen) {
      request[ATTEMPT] = attempt
      if (request.upgrade) noticeUpgrade(request, attempt)
    }
    setHeaders(request, attempt.headers, isAlone())
    sendFrom(request, attempt.isTraced ? attempt.caller : attempt.context)
  }

  function enter(request: Message['request'], handler: unknown): void {
    begin(request)
    answerHere(request, handler)
  }

  const listeners: Record<string, (message: Message) => void> = {
    'request:create'({ request }) {
      // A CONNECT only opens a tunnel, mostly for a ProxyAgent; the request goes through it.
      if (request.method === 'CONNECT') return
      // Its dispatcher is traced too, and has made the span already.
      if (yieldsToOfficial() || coveredBy(request) !== undefined) return
      const handler = handlerOf(request)
      if (isMaker(handler)) handler.runInAsyncScope(enter, undefined, request, handler)
      else enter(request, handler)
    },
    'client:sendHeaders'({ request, socket }) {
      tellPeer(request[ATTEMPT], socket)
    },
    'request:headers'({ request, response }) {
      const attempt = request[ATTEMPT]
      if (attempt !== undefined && response !== undefined && response.statusCode >= FINAL) {
        attempt.answered(response.statusCode, undefined, response.headers, readHeaders)
      }
    },
    'request:trailers'({ request }) {
      takeFrom(request)?.completed()
    },
    'request:error'({ request, error }) {
      const attempt = takeFrom(request)
      if (attempt !== undefined) endWith(attempt, error, isOwn(request, error))
    },
  }

  // Node turns what a subscriber throws into an uncaught exception of the app.
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
  for (const [name, listener] of subscribed) subscribe(`undici:${name}`, listener)
  function stopTracing(): void {
    if (shared.stop !== stopTracing) return
    for (const [name, listener] of subscribed) unsubscribe(`undici:${name}`, listener)
    shared.stop = undefined
  }
  shared.stop = stopTracing
  holdOptions(stopTracing, options)
  return stopTracing
}
