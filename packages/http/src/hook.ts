import { dropOptions, holdOptions, override, reportOnce, untrace } from '@throughline/core'
import { yieldsTo } from '@throughline/core/client'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import http, { OutgoingMessage, type ClientRequest } from 'node:http'
import https from 'node:https'
import { syncBuiltinESMExports } from 'node:module'
import { noteDestinations } from './destination.ts'

type Begin = (request: ClientRequest) => void
type Make = (this: unknown, ...args: unknown[]) => ClientRequest

const CREATED = 'http.client.request.created'

/** All copies of this package see the same requests: while one of them is on, another changes nothing. */
const shared = ((globalThis as Record<symbol, unknown>)[Symbol.for('throughline.http')] ??= {}) as {
  stop?: (() => void) | undefined
}

/**
 * Calls `begin` with each request as soon as it is made, inside the call that the app makes, before a byte of it has been
 * sent; until the function that it returns is called.
 */
export function onRequests(options: object, begin: Begin): () => void {
  if (shared.stop !== undefined) {
    dropOptions(shared.stop, options, 'traceHttp()', "stop(); traceHttp({ headers: 'keep' })")
    return shared.stop
  }
  const forgetDestinations = noteDestinations()
  const end = isPublished() ? onPublished(begin) : onMade(begin)
  function stopTracing(): void {
    if (shared.stop !== stopTracing) return
    shared.stop = undefined
    end()
    forgetDestinations()
  }
  shared.stop = stopTracing
  holdOptions(stopTracing, options)
  return stopTracing
}

/** Whether this Node publishes what it makes: from 22.12 and 23.2 on. A channel is there for whoever asks for it. */
function isPublished(): boolean {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  return major === 22 ? minor >= 12 : major === 23 ? minor >= 2 : major > 23
}

/** Sees also what is made by `new ClientRequest`. */
function onPublished(begin: Begin): () => void {
  function created(message: unknown): void {
    guardedly(begin, (message as { request: ClientRequest }).request)
  }
  subscribe(CREATED, created)
  return () => unsubscribe(CREATED, created)
}

/** Sees what is made by the functions of the two modules, for those too that import them by name. */
function onMade(begin: Begin): () => void {
  for (const module of [http, https] as Record<'request' | 'get', Make>[]) {
    for (const name of ['request', 'get'] as const) {
      override(module, name, (original, state) => {
        return function (this: unknown, ...args) {
          const request = original.apply(this, args)
          if (state.isOn && !isOfficial(original)) guardedly(begin, request)
          return request
        }
      })
    }
  }
  syncBuiltinESMExports()
  return () => {
    untrace(http)
    untrace(https)
    syncBuiltinESMExports()
  }
}

// Node turns what a subscriber throws into an uncaught exception of the app.
function guardedly(begin: Begin, request: ClientRequest): void {
  try {
    if (!isOfNode(request)) return
    if (isOfficial((request.protocol === 'https:' ? https : http).request)) return
    begin(request)
  } catch (error) {
    reportOnce('http:created', 'error', 'a request could not be traced', error)
  }
}

/**
 * A test's stand-in is not one of Node's requests, even if it inherits from those: it goes to no host. `http.ClientRequest`
 * cannot tell, since a test library may have replaced it.
 */
function isOfNode(request: ClientRequest): boolean {
  return request instanceof OutgoingMessage && typeof request.host === 'string'
}

/**
 * Whether the official instrumentation is at work: it makes a span of every request and gives it headers, so ours yields.
 * It may come after us, so this is asked each time.
 */
function isOfficial(request: object): boolean {
  return yieldsTo(request, 'node:http', 'traceHttp')
}
