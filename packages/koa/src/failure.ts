import { override, recordError } from '@throughline/core'
import type Application from 'koa'
import type { Context } from 'koa'
import { EventEmitter } from 'node:events'

/**
 * Hears of the errors that an app tells: what its middleware emits, as Koa's manual says, and what comes to `onerror` of
 * the context, which is also told of a body that cannot be serialised, and of a stream that breaks. A listener of ours would
 * be one that the app can see, and could stand in for the one that it forgot.
 *
 * @returns whether every error that the outermost middleware lets pass will be heard
 */
export function hearErrors(app: Application): boolean {
  override(
    app,
    'emit',
    (emit) =>
      function (event: string | symbol, ...args: unknown[]) {
        const [error, ctx] = args as [unknown, Context | undefined]
        if (event === 'error' && ctx?.req !== undefined) hear(ctx, error)
        return emit.call(app, event, ...args)
      },
  )
  return isPlain(app) && hearHandler(app.context)
}

function hear(ctx: Context, error: unknown): void {
  if (error !== undefined && error !== null && !isReset(ctx, error)) recordError(ctx.req, error)
}

// The error of a connection that the client reset is an abort. It is known by a response that can no longer be written,
// though nobody here has destroyed it. In HTTP/1 it is the socket's own error: an app that ended its response may fail yet.
function isReset(ctx: Context, error: unknown): boolean {
  const { req, res } = ctx
  // A connection of koa-websocket has no response, and Koa's `writable` asks it.
  if (res === undefined || ctx.writable || res.destroyed) return false
  return req.httpVersionMajor > 1 || req.socket?.errored === error
}

type Handler = (this: Context, ...args: unknown[]) => unknown

/**
 * Hears what the app's `onerror` is called with: Koa's, one that the app puts in its place, or one request's own. A context
 * that inherits it still does so afterwards, from an object of ours in between: an own property would be one more key, or, if it
 * were not enumerable, would hide Koa's from `for (key in ctx)`.
 */
function hearHandler(context: object & { onerror?: unknown }): boolean {
  const before = descriptorOf(context, 'onerror')
  if (!Object.isExtensible(context) || before?.get !== undefined) return false
  const isOwn = Object.hasOwn(context, 'onerror')
  if (isOwn && before?.configurable === false) return false
  let handler = heard(context.onerror)
  const holder = isOwn ? context : (Object.create(Object.getPrototypeOf(context) as object) as object)
  Object.defineProperty(holder, 'onerror', {
    configurable: true,
    enumerable: before?.enumerable ?? false,
    get: () => handler,
    set(this: object, given: unknown) {
      if (this === context) handler = heard(given)
      else Object.defineProperty(this, 'onerror', { ...OWN, value: heard(given) })
    },
  })
  if (!isOwn) {
    readThrough(holder)
    Object.setPrototypeOf(context, holder)
  }
  return true
}

/** After some dozens V8 looks at what a function has read; they take some microseconds, once for each app. */
const READS = 1000

/**
 * V8 keeps an object that becomes a prototype in a slow form until something is read through it, and looks no further than a
 * prototype that it has seen before: what is put in between later would stay slow, and with it, in each request, all that Koa's
 * context inherits from behind it.
 */
function readThrough(prototype: object): void {
  const reader = Object.create(prototype) as { onerror?: unknown }
  for (let read = 0; read < READS; read++) void reader.onerror
}

function descriptorOf(object: object | null, key: string): PropertyDescriptor | undefined {
  if (object === null) return undefined
  return Object.getOwnPropertyDescriptor(object, key) ?? descriptorOf(Object.getPrototypeOf(object), key)
}

const OWN = { configurable: true, enumerable: true, writable: true }

function heard(handler: unknown): unknown {
  if (typeof handler !== 'function') return handler
  const onerror: Handler = function (...args) {
    if (this?.req !== undefined) hear(this, args[0])
    return Reflect.apply(handler, this, args)
  }
  Object.defineProperty(onerror, 'name', { value: handler.name, configurable: true })
  Object.defineProperty(onerror, 'length', { value: handler.length, configurable: true })
  return onerror
}

/** Koa's own class, of which apps are made. */
interface Koa {
  readonly handleRequest: unknown
  readonly callback: unknown
  readonly constructor: new () => { readonly compose?: unknown }
}

/** Whether it is Koa that runs the middleware of this app, not a subclass, a patch, or a `compose` of the app's. */
function isPlain(app: Application): boolean {
  let koa = Object.getPrototypeOf(app) as Koa | null
  while (koa !== null && Object.getPrototypeOf(koa) !== EventEmitter.prototype)
    koa = Object.getPrototypeOf(koa) as Koa | null
  if (koa === null) return false
  const { handleRequest, callback, compose } = app as unknown as Koa & { compose?: unknown }
  return (
    handleRequest === koa.handleRequest &&
    callback === koa.callback &&
    compose === new koa.constructor().compose
  )
}
