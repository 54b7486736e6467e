import {
  context,
  createContextKey,
  ROOT_CONTEXT,
  trace,
  type Baggage,
  type Context,
  type ContextManager,
  type Span,
} from '@opentelemetry/api'
import { AsyncLocalStorage } from 'node:async_hooks'
import { EventEmitter } from 'node:events'
import { registered } from './report.ts'

// The API's and the official SDK's keys are made with Symbol.for, so that all copies of these packages agree on them.
const SPAN_KEY = createContextKey('OpenTelemetry Context Key SPAN')
const BAGGAGE_KEY = createContextKey('OpenTelemetry Baggage Key')
const RPC_METADATA_KEY = createContextKey('OpenTelemetry SDK Context Key RPC_METADATA')
const SUPPRESS_KEY = createContextKey('OpenTelemetry SDK Context Key SUPPRESS_TRACING')
const IGNORED_KEY = createContextKey('throughline ignored')
const PASSED_KEY = createContextKey('throughline passed')
const REQUEST_SPAN_KEY = createContextKey('throughline request span')

// Shared by all copies of this package.
const TAKEN = Symbol.for('throughline.taken')

/**
 * In the context of a request that has a SERVER span. The official HTTP instrumentation leaves it there, so that those of
 * frameworks do not make another one.
 */
export interface RpcMetadata {
  type: string
  span: Span
  route?: string
  /** A request of ours has this span. */
  [TAKEN]?: boolean
}

/** Stands for the metadata of our own requests, which is made only if asked for. */
const OURS = Symbol('throughline.ours')

const ours = new WeakMap<Span, RpcMetadata>()

/** The metadata of one of our requests; undefined if that is not recorded. */
function metadataOf(span: Span | undefined): RpcMetadata | undefined {
  if (span?.isRecording() !== true) return undefined
  let metadata = ours.get(span)
  if (metadata === undefined) ours.set(span, (metadata = { type: 'http', span, [TAKEN]: true }))
  return metadata
}

/**
 * An immutable Context with a field for each value that a request sets. The API's own Context copies a Map for every
 * `setValue`; a request does three or four of them.
 */
class SlottedContext implements Context {
  readonly span: Span | undefined
  readonly baggage: Baggage | undefined
  readonly rpcMetadata: RpcMetadata | typeof OURS | undefined
  readonly suppressed: unknown
  readonly others: ReadonlyMap<symbol, unknown> | undefined
  /** The span of the request that this context belongs to, whichever span is current. */
  readonly requestSpan: Span | undefined

  constructor(
    span: Span | undefined,
    baggage: Baggage | undefined,
    rpcMetadata: RpcMetadata | typeof OURS | undefined,
    suppressed: unknown,
    others: ReadonlyMap<symbol, unknown> | undefined,
    requestSpan: Span | undefined,
  ) {
    this.span = span
    this.baggage = baggage
    this.rpcMetadata = rpcMetadata
    this.suppressed = suppressed
    this.others = others
    this.requestSpan = requestSpan
  }

  getValue(key: symbol): unknown {
    if (key === SPAN_KEY) return this.span
    if (key === BAGGAGE_KEY) return this.baggage
    if (key === SUPPRESS_KEY) return this.suppressed
    if (key === RPC_METADATA_KEY)
      return this.rpcMetadata === OURS ? metadataOf(this.requestSpan) : this.rpcMetadata
    return this.others?.get(key)
  }

  setValue(key: symbol, value: unknown): Context {
    if (key === SPAN_KEY) return withSpan(this, value as Span | undefined)
    const { span, baggage, rpcMetadata, suppressed, others, requestSpan } = this
    if (key === BAGGAGE_KEY)
      return new SlottedContext(span, value as Baggage, rpcMetadata, suppressed, others, requestSpan)
    if (key === SUPPRESS_KEY)
      return new SlottedContext(span, baggage, rpcMetadata, value, others, requestSpan)
    if (key === RPC_METADATA_KEY)
      return new SlottedContext(span, baggage, value as RpcMetadata, suppressed, others, requestSpan)
    const more = new Map(others).set(key, value)
    return new SlottedContext(span, baggage, rpcMetadata, suppressed, more, requestSpan)
  }

  deleteValue(key: symbol): Context {
    if (this.others?.has(key) !== true)
      return this.getValue(key) === undefined ? this : this.setValue(key, undefined)
    const { span, baggage, rpcMetadata, suppressed, requestSpan } = this
    const others = new Map(this.others)
    others.delete(key)
    return new SlottedContext(span, baggage, rpcMetadata, suppressed, others, requestSpan)
  }
}

export const root = new SlottedContext(undefined, undefined, undefined, undefined, undefined, undefined)

/** One comparison: `instanceof` walks the prototype chain and adds 250 to 500 bytes of machine code at each use. */
function isSlotted(of: Context): of is SlottedContext {
  return of.constructor === SlottedContext
}

/** The span that is current there. */
export function spanIn(of: Context): Span | undefined {
  return isSlotted(of) ? of.span : trace.getSpan(of)
}

/** `base` with this span as the current one; undefined removes it. */
export function withSpan(base: Context, span: Span | undefined): Context {
  const from = base === ROOT_CONTEXT ? root : base
  if (isSlotted(from)) {
    const { baggage, rpcMetadata, suppressed, others, requestSpan } = from
    return new SlottedContext(span, baggage, rpcMetadata, suppressed, others, requestSpan)
  }
  return span === undefined ? trace.deleteSpan(base) : trace.setSpan(base, span)
}

/** The same as the context of a request: contexts derived from it remember whose they are. */
export function withRequestSpan(base: Context, span: Span): Context {
  const from = base === ROOT_CONTEXT ? root : base
  if (isSlotted(from)) {
    const { baggage, suppressed, others } = from
    return new SlottedContext(span, baggage, OURS, suppressed, others, span)
  }
  // What another propagator has read is in a context of the API's own.
  const scope = trace.setSpan(base, span).setValue(REQUEST_SPAN_KEY, span)
  const metadata = metadataOf(span)
  return metadata === undefined ? scope : scope.setValue(RPC_METADATA_KEY, metadata)
}

/** The span of the request that this context belongs to, also one of the official HTTP instrumentation; undefined if to none. */
export function requestSpanIn(of: Context): Span | undefined {
  if (isSlotted(of)) return of.requestSpan
  return (of.getValue(REQUEST_SPAN_KEY) as Span | undefined) ?? rpcMetadata(of)?.span
}

/** `base` in which nothing is traced and nothing is injected: for our own exports. */
export function suppressTracing(base: Context): Context {
  return base.setValue(SUPPRESS_KEY, true)
}

export function isSuppressed(of: Context): boolean {
  return (isSlotted(of) ? of.suppressed : of.getValue(SUPPRESS_KEY)) === true
}

/** `base` of a request that the app asked to ignore: clients pass its context on, and make no spans of their own. */
export function ignoreTracing(base: Context): Context {
  return base.setValue(IGNORED_KEY, true)
}

export function isIgnored(of: Context): boolean {
  // Nearly no context has other values: saves 0.1 µs per client call.
  if (isSlotted(of) && of.others === undefined) return false
  return of.getValue(IGNORED_KEY) === true
}

/** The trace headers of a request as they came, and the span that was read from them. */
export interface Passed {
  readonly span: Span
  readonly traceparent: string
  readonly tracestate?: string
}

/** `base` for a request that passes its trace headers on unchanged. */
export function passThrough(base: Context, passed: Passed): Context {
  return base.setValue(PASSED_KEY, passed)
}

/** The headers to pass on unchanged; undefined once a span has been added to the trace. */
export function passedIn(of: Context): Passed | undefined {
  if (isSlotted(of) && of.others === undefined) return undefined
  const passed = of.getValue(PASSED_KEY) as Passed | undefined
  return passed !== undefined && passed.span === spanIn(of) ? passed : undefined
}

/** Whether tracing is neither suppressed nor ignored here, at one look; false where it takes more. */
export function isOrdinary(of: Context): boolean {
  return isSlotted(of) && of.others === undefined && of.suppressed === undefined
}

/**
 * Whether nothing is current there any more: a root, ours or the API's own, or a span alone that has ended, as of the app's
 * start.
 */
export function isEmpty(of: Context): boolean {
  if (of === root || of === ROOT_CONTEXT) return true
  if (isSlotted(of) && !isBare(of)) return false
  const span = spanIn(of) as (Span & { readonly ended?: unknown }) | undefined
  return span?.ended === true
}

/** Whether only its span goes on the wire, likewise. */
export function isBare(of: Context): boolean {
  return isOrdinary(of) && (of as SlottedContext).baggage === undefined
}

export function rpcMetadata(of: Context): RpcMetadata | undefined {
  return of.getValue(RPC_METADATA_KEY) as RpcMetadata | undefined
}

/** Claims somebody else's span for a request of ours; false if another request has it. */
export function claim(metadata: RpcMetadata): boolean {
  if (metadata[TAKEN] === true) return false
  metadata[TAKEN] = true
  return true
}

/** A ContextManager for the API on one AsyncLocalStorage. */
export class AsyncContextManager implements ContextManager {
  readonly #storage = new AsyncLocalStorage<Context>()

  active(): Context {
    return this.#storage.getStore() ?? root
  }

  /** `with` for a function that takes nothing. */
  run<T>(scope: Context, fn: () => T): T {
    return this.#storage.run(scope, fn)
  }

  with<A extends unknown[], F extends (...args: A) => ReturnType<F>>(
    scope: Context,
    fn: F,
    thisArg?: ThisParameterType<F>,
    ...args: A
  ): ReturnType<F> {
    // The common call has no `this`; one that has makes no closure.
    if (thisArg === undefined) return this.#storage.run(scope, fn, ...args)
    return this.#storage.run(scope, apply, fn, thisArg, args) as ReturnType<F>
  }

  /**
   * Makes a context the current one for what follows, until `dispose()` of the result is called (API 1.10,
   * ContextManager.attach). For code that `with` cannot wrap: it leaks out of an async function that has not awaited anything
   * yet.
   */
  attach(scope: Context): { dispose(): void } {
    const before = this.#storage.getStore()
    let isDisposed = false
    this.#storage.enterWith(scope)
    return {
      dispose: () => {
        if (isDisposed) return
        isDisposed = true
        this.#storage.enterWith(before as Context)
      },
    }
  }

  bind<T>(scope: Context, target: T): T {
    if (target instanceof EventEmitter) {
      // A frozen emitter is left as it is, and must not throw.
      if (Object.isExtensible(target)) emitIn(scope, target)
      return target
    }
    return typeof target === 'function' ? bindFunction(scope, target as T & Callable) : target
  }

  enable(): this {
    return this
  }

  disable(): this {
    this.#storage.disable()
    return this
  }
}

let latestManager: AsyncContextManager | undefined

/** A manager to register. While it is registered, the next two functions call it directly instead of through the API. */
export function contextManager(): AsyncContextManager {
  latestManager = new AsyncContextManager()
  return latestManager.enable()
}

/** The API's `context.active()`. */
export function activeContext(): Context {
  return latestManager !== undefined && registered()?.context === latestManager
    ? latestManager.active()
    : context.active()
}

/** The API's `context.with(scope, fn)`. */
export function runIn<T>(scope: Context, fn: () => T): T {
  return latestManager !== undefined && registered()?.context === latestManager
    ? latestManager.run(scope, fn)
    : context.with(scope, fn)
}

type Callable = (this: unknown, ...args: unknown[]) => unknown

function bindFunction<F extends Callable>(scope: Context, fn: F): F {
  function bound(this: unknown, ...args: unknown[]): unknown {
    return context.with(scope, () => Reflect.apply(fn, this, args))
  }
  // Frameworks tell an error handler from a handler by the number of its parameters.
  Object.defineProperty(bound, 'length', { value: fn.length, configurable: true })
  return bound as F
}

/** Keeps the context of an emitter's listeners. */
export interface Scoped {
  /** Puts another context in its place. */
  rescope(emitter: EventEmitter, scope: Context): void
}

/** An `emit` of ours, which says who keeps the context of its emitter's listeners. */
export type ScopedEmit = EventEmitter['emit'] & { [SCOPED]?: Scoped }

// Shared by all copies of this package.
export const SCOPED = Symbol.for('throughline.scoped')

interface Binding {
  readonly emit: EventEmitter['emit']
  scope: Context
}

const BINDING = Symbol('throughline.binding')

type Bound = EventEmitter & { [BINDING]?: Binding }

/**
 * Runs all listeners of an emitter in this context, those added by others before and after included, by one override
 * of its `emit`. The app sees no listener of ours. An emitter that is bound already keeps its one override, and the
 * context is the newest one.
 */
function emitIn(scope: Context, emitter: EventEmitter): void {
  const scoped = (emitter.emit as ScopedEmit)[SCOPED]
  if (scoped !== undefined) {
    scoped.rescope(emitter, scope)
    return
  }
  const bound = emitter as Bound
  if (bound[BINDING] === undefined) {
    bound[BINDING] = { emit: emitter.emit, scope }
    emitter.emit = emitBound
  } else bound[BINDING].scope = scope
}

function emitBound(this: Bound, ...args: Emission): boolean {
  const { emit, scope } = this[BINDING] as Binding
  return emitWithin(scope, this, emit, args)
}

emitBound[SCOPED] = {
  rescope(emitter: Bound, scope: Context) {
    ;(emitter[BINDING] as Binding).scope = scope
  },
}

/** What `emit` is called with. */
export type Emission = [name: string | symbol, ...given: unknown[]]

/** Emits an event with its listeners in this context. */
export function emitWithin(
  scope: Context,
  emitter: EventEmitter,
  emit: EventEmitter['emit'],
  args: Emission,
): boolean {
  // Half of the events are emitted in the request's own context already: saves 0.2 µs each on Node 24.
  if (activeContext() === scope) return Reflect.apply(emit, emitter, args)
  return context.with(scope, apply, undefined, emit, emitter, args) as boolean
}

/**
 * Calls `act`, which must not throw, before the listeners of an event, by overriding `emit`: the app sees no listener of ours.
 * The listeners' context stays as it is.
 */
export function beforeEvent(emitter: EventEmitter, event: string, act: (...given: unknown[]) => void): void {
  const before = emitter.emit as ScopedEmit
  const emit: ScopedEmit = function emit(this: EventEmitter, name, ...given) {
    if (name === event) act(...given)
    return Reflect.apply(before, this, [name, ...given])
  }
  const scoped = before[SCOPED]
  if (scoped !== undefined) emit[SCOPED] = scoped
  Object.defineProperty(emitter, 'emit', { value: emit, writable: true, configurable: true })
}

function apply(fn: unknown, self: unknown, args: unknown[]): unknown {
  return Reflect.apply(fn as Callable, self, args)
}
