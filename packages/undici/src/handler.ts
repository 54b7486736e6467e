import { context, reportOnce } from '@throughline/core'
import type { HttpAttempt, HttpResponse } from '@throughline/core/http-client'
import type { Dispatcher } from 'undici'
import { endWith } from './failure.ts'
import { FINAL, readHeaders } from './published.ts'

type Method = (...args: unknown[]) => unknown
type Abort = (reason?: unknown) => void

/** What handlers of undici 7 end their request with. */
interface Controller {
  abort: Abort
}

const WATCHED = Symbol('watched')

/** Not what inherits from one that is watched. */
export function isWatched(handler: Dispatcher.DispatchHandler): boolean {
  return (handler as { [WATCHED]?: unknown })[WATCHED] === handler
}

/**
 * The handler with its end noticed, in either of undici's interfaces: `onHeaders` and so on, or from version 7
 * `onResponseStart` and so on. What it calls runs in the caller's context, not in that of whoever freed a connection.
 * `forget` is called when it is over.
 */
export function watched(
  handler: Dispatcher.DispatchHandler,
  signal: Partial<AbortSignal> | undefined,
  attempt: HttpAttempt,
  forget: () => void,
): Dispatcher.DispatchHandler {
  const { caller } = attempt
  let isAborted = false

  const notice: Record<string, (...args: never[]) => void> = {
    onRequestStart: (controller: Controller | undefined) => {
      if (typeof controller?.abort === 'function') controller.abort = noted(controller.abort)
    },
    onHeaders: (status: number, raw: readonly Buffer[]) => answered(status, readHeaders(raw)),
    onResponseStart: (_controller: unknown, status: number, headers: HttpResponse['headers']) =>
      answered(status, headers),
    onData: () => attempt.dataCame(),
    onResponseData: () => attempt.dataCame(),
    onUpgrade: (status: number, raw: readonly Buffer[]) => upgraded(status, readHeaders(raw)),
    onRequestUpgrade: (_controller: unknown, status: number, headers: HttpResponse['headers']) =>
      upgraded(status, headers),
    onComplete: completed,
    onResponseEnd: completed,
    onError: failed,
    onResponseError: (_controller: unknown, error: unknown) => failed(error),
  }

  function noted(abort: Abort): Abort {
    return function (this: unknown, reason) {
      isAborted = true
      abort.call(this, reason)
    }
  }
  function answered(statusCode: number, headers: HttpResponse['headers']): void {
    if (statusCode >= FINAL) attempt.answered(statusCode, undefined, headers, itself)
  }
  function upgraded(statusCode: number, headers: HttpResponse['headers']): void {
    attempt.answered(statusCode, undefined, headers, itself)
    completed()
  }
  function completed(): void {
    forget()
    attempt.completed()
  }
  // The reason that a signal was aborted with need not be the error that comes of it.
  function failed(error: unknown): void {
    forget()
    const isOwn = isAborted || signal?.aborted === true
    endWith(attempt, (isOwn ? signal?.reason : undefined) ?? error, isOwn)
  }

  function guarded(name: string, args: unknown[]): void {
    try {
      ;(notice[name] as Method | undefined)?.(...args)
    } catch (error) {
      reportOnce(`undici:${name}`, 'error', 'what became of a request could not be noticed', error)
    }
  }

  function read(name: string | symbol): unknown {
    if (name === WATCHED) return shown
    const method: unknown = Reflect.get(handler, name, handler)
    if (typeof method !== 'function') return method
    const isConnect = name === 'onConnect'
    return function (this: unknown, ...args: unknown[]) {
      if (!isConnect) guarded(String(name), args)
      else if (typeof args[0] === 'function') args[0] = noted(args[0] as Abort)
      // What inherits from the handler, or has copied its methods, is told by them as the handler would be.
      return context.with(caller, () => Reflect.apply(method, ownerOf(this), args))
    }
  }
  function ownerOf(asked: unknown): unknown {
    return asked === shown ? handler : asked
  }

  // On an object of its own: what a frozen handler has, a proxy on it may not replace.
  const shown: Dispatcher.DispatchHandler = new Proxy({} as Dispatcher.DispatchHandler, {
    get: (_target, name) => read(name),
    set: (_target, name, value, receiver) => Reflect.set(handler, name, value, ownerOf(receiver)),
    has: (_target, name) => Reflect.has(handler, name),
    deleteProperty: (_target, name) => Reflect.deleteProperty(handler, name),
    ownKeys: () => Reflect.ownKeys(handler),
    getOwnPropertyDescriptor(_target, name) {
      const own = Reflect.getOwnPropertyDescriptor(handler, name)
      if (own === undefined) return undefined
      const { enumerable = false, writable = true } = own
      // Of what its own object has not, a proxy may not say that it stays.
      return { value: read(name), enumerable, writable, configurable: true }
    },
    getPrototypeOf: () => Reflect.getPrototypeOf(handler),
  })
  return shown
}

function itself(headers: HttpResponse['headers']): HttpResponse['headers'] {
  return headers
}
