import { context, override, reportOnce, symbolOf, type Context } from '@throughline/core'
import { AsyncResource } from 'node:async_hooks'
import { Socket } from 'node:net'
import {
  headerValue,
  type HeaderChanges,
  type HttpAttempt,
  type HttpRequest,
  type HttpResponse,
} from '@throughline/core/http-client'

/**
 * What undici publishes of each attempt on the wire, redirects and retries each by itself. The copy inside Node and the
 * one from npm publish on the same channels. `create` is published while the headers can still be changed, inside the
 * call that the app makes, except on a pool that is busy.
 */
export interface PublishedRequest extends HttpRequest {
  /** Name, value, name, value; before undici 6.7 the text that is sent. */
  headers: (string | string[])[] | string
  addHeader(name: string, value: string): void
  /** The protocol that it asks to go on with. */
  readonly upgrade?: string | null | false
  /** A stream, where it is one. */
  body?: (object & { readonly errored?: unknown }) | null
}

/** What a connection is: a socket, or what undici has of an HTTP/2 session. */
interface Connection {
  readonly remoteAddress?: string | undefined
  readonly remotePort?: number | undefined
  readonly alpnProtocol?: string | false | null
}

/** Tells an attempt which connection has taken it. */
export function tellPeer(attempt: HttpAttempt | undefined, socket: Connection | undefined): void {
  if (attempt === undefined || !socket) return
  // Each look at one of the first two asks the connection: 0.1 µs.
  const { remoteAddress, remotePort, alpnProtocol } = socket
  // A Unix socket has none. What is no socket may be of HTTP/2 and not say so.
  if (remoteAddress === undefined && !(socket instanceof Socket)) return
  attempt.connected(remoteAddress, remotePort, alpnProtocol === 'h2' ? '2' : '1.1')
}

type OnUpgrade = (this: unknown, status: number, headers: readonly Buffer[], ...rest: unknown[]) => unknown

/** Ends an attempt with its handshake, which is not published. */
export function noticeUpgrade(request: PublishedRequest, attempt: HttpAttempt): void {
  const open = request as unknown as Record<'onUpgrade' | 'onRequestUpgrade', OnUpgrade | undefined>
  for (const name of ['onUpgrade', 'onRequestUpgrade'] as const) {
    const original = open[name]
    if (original === undefined) continue
    const noticing: OnUpgrade = function (status, headers, ...rest) {
      try {
        attempt.answered(status, undefined, headers, readHeaders)
        attempt.completed()
      } catch (error) {
        reportOnce('undici:upgrade', 'error', 'an upgrade could not be noticed', error)
      }
      return original.call(this, status, headers, ...rest)
    }
    open[name] = noticing
  }
}

type Answer = (this: unknown, ...given: unknown[]) => unknown

/** Calls `came` with each part of a request's body from now on, which not every version publishes. */
export function noticeData(request: PublishedRequest, came: () => void): void {
  const open = request as unknown as Record<'onData' | 'onResponseData', Answer | undefined>
  for (const name of ['onData', 'onResponseData'] as const) {
    const original = open[name]
    if (original === undefined) continue
    const noticing: Answer = function (...given) {
      came()
      return original.apply(this, given)
    }
    open[name] = noticing
  }
}

/** The headers of a response: name, value, name, value. What comes more than once is a list. */
export function readHeaders(pairs: readonly (Buffer | string)[] | null | undefined): HttpResponse['headers'] {
  // Not an object, which has something by names like `constructor`, and takes that of `__proto__` for another thing.
  const read = new Map<string, string | string[]>()
  if (!pairs) return {}
  for (let index = 0; index + 1 < pairs.length; index += 2) {
    const name = String(pairs[index]).toLowerCase()
    const value = pairs[index + 1] as Buffer | string | string[]
    const text = Array.isArray(value) ? value.map(String) : String(value)
    const before = read.get(name)
    read.set(name, before === undefined ? text : [before, text].flat())
  }
  return Object.fromEntries(read)
}

/** The first status that is no preliminary one (1xx). */
export const FINAL = 200

export function headerOf({ headers }: PublishedRequest, name: string): unknown {
  if (typeof headers === 'string') return valueIn(headers, name)
  const values: unknown[] = []
  for (let index = 0; index < headers.length; index += 2) {
    if (isNamed(headers[index], name)) values.push(headers[index + 1])
  }
  return headerValue(values)
}

/** Where an `addHeader` of ours, which refuses some, has undici's own. Shared by all copies of this package. */
const ADDS_ALL = Symbol.for('throughline.addHeader')

type AddHeader = PublishedRequest['addHeader'] & { [ADDS_ALL]?: AddHeader }

/**
 * There is one trace context on the wire: ours replaces what the app or another tracer has set, and later tracers' headers are
 * refused; `isAlone` says that there are none. A later copy of this package that does not know us, as in test runners with a
 * global object per file, wins: it is the newest.
 */
export function setHeaders(request: PublishedRequest, ours: HeaderChanges, isAlone: boolean): void {
  const { headers } = request
  const names = Object.keys(ours)
  const addHeader: AddHeader = request.addHeader
  const addAny = addHeader[ADDS_ALL] ?? addHeader
  if (typeof headers === 'string') request.headers = without(headers, names)
  else {
    for (let index = headers.length - 2; index >= 0; index -= 2) {
      if (isOneOf(headers[index], names)) headers.splice(index, 2)
    }
  }
  for (const name of names) {
    const value = ours[name]
    if (value !== undefined) addAny.call(request, name, value)
  }
  if (isAlone) return
  const addOther: AddHeader = function (this: PublishedRequest, name, value) {
    if (!isOneOf(name, names)) addHeader.call(this, name, value)
  }
  addOther[ADDS_ALL] = addAny
  request.addHeader = addOther
}

const LINE = '\r\n'

function valueIn(text: string, name: string): unknown {
  const lines = text.split(LINE).filter((each) => isNamed(nameOf(each), name))
  return headerValue(lines.map((line) => line.slice(name.length + 1).trim()))
}

function without(text: string, names: readonly string[]): string {
  return text
    .split(LINE)
    .filter((line) => !isOneOf(nameOf(line), names))
    .join(LINE)
}

function nameOf(line: string): string {
  return line.slice(0, Math.max(0, line.indexOf(':')))
}

function isOneOf(given: unknown, names: readonly string[]): boolean {
  for (const name of names) if (isNamed(given, name)) return true
  return false
}

// Most names differ in length; lower-casing each would cost 1 µs per request.
function isNamed(given: unknown, name: string): boolean {
  const text = typeof given === 'string' ? given : String(given)
  return text.length === name.length && text.toLowerCase() === name
}

// Each copy of undici has a symbol of its own.
let handlerKey: symbol | undefined

/** Who is to hear of the answer. */
export function handlerOf(request: PublishedRequest): unknown {
  const from = request as unknown as Record<symbol, unknown>
  if (handlerKey === undefined || !(handlerKey in from)) {
    handlerKey = symbolOf(from, 'handler')
  }
  return handlerKey && from[handlerKey]
}

/**
 * Whether the handler is the call that made a request, which undici keeps as an AsyncResource (`request`, `stream`, `pipeline`,
 * `connect`, `upgrade`): on a busy pool the request is created in the context of whoever frees a connection.
 */
export function isMaker(handler: unknown): handler is AsyncResource {
  return handler instanceof AsyncResource
}

/** What a request is answered by, in either of undici's interfaces. */
const ANSWERS = [
  'onHeaders',
  'onResponseStart',
  'onData',
  'onResponseData',
  'onUpgrade',
  'onRequestUpgrade',
  'onComplete',
  'onResponseEnd',
  'onError',
  'onResponseError',
] as const

/**
 * Runs what hears of an answer (listeners of its body, interceptors, the app's own handlers) in the current context, the caller's.
 * undici calls it in that of whoever opened the connection, and retries and redirects would begin there. `fetch` needs none of
 * this: its promises keep the caller's context.
 */
export function answerHere(request: PublishedRequest, handler: unknown): void {
  if (typeof handler !== 'object' || handler === null || isOfFetch(handler)) return
  const caller = context.active()
  const open = request as unknown as Record<(typeof ANSWERS)[number], Answer | undefined>
  for (const name of ANSWERS) {
    const original = open[name]
    if (original === undefined) continue
    const answering: Answer = function (...given) {
      return context.with(caller, original, this, ...given)
    }
    open[name] = answering
  }
}

function isOfFetch(handler: object): boolean {
  return handler.constructor === Object && 'body' in handler
}

/**
 * Runs the app's code in a body (a generator, the `_read` of a stream) in its caller's context. undici begins to read when the
 * connection is free, in the context of whoever opened it.
 */
export function sendFrom(request: PublishedRequest, caller: Context): void {
  const { body } = request
  if (typeof body !== 'object' || body === null || ArrayBuffer.isView(body)) return
  // A form runs nothing, and must be one; nor does a request or an answer of Node's that is passed on, or a connection.
  if ('append' in body || 'httpVersion' in body || 'remoteAddress' in body) return
  if ('_read' in body)
    override(body as Record<'_read', Answer>, '_read', (read) => context.bind(caller, read))
  else if (Symbol.asyncIterator in body || Symbol.iterator in body) request.body = within(caller, body)
}

/** Its methods, and those of the iterator that they make, in this context. A proxy may not replace what a frozen object has. */
function within(scope: Context, target: object): object {
  return new Proxy(
    {},
    {
      get(_target, name) {
        const method: unknown = Reflect.get(target, name)
        if (typeof method !== 'function') return method
        const bound = context.bind(scope, method.bind(target) as () => object)
        return typeof name === 'symbol' ? () => within(scope, bound()) : bound
      },
    },
  )
}
