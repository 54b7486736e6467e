import {
  context,
  INVALID_SPAN_CONTEXT,
  ProxyTracerProvider,
  SpanStatusCode,
  trace,
  type Attributes,
  type Context,
  type Span,
  type SpanContext,
  type Tracer,
  type TracerProvider,
} from '@opentelemetry/api'
// By its namespace: where it is imported by name, webpack answers `createRequire` itself, with undefined.
import * as modules from 'node:module'
import { withSpan } from './context.ts'
import { globalVersion, registered, report, reportOnce } from './report.ts'
import { VERSION } from './resource.ts'
import { errorType, isError, messageOf, showable } from './exception.ts'
import { showType } from './options.ts'
import type { InstrumentationScope } from './span.ts'
import * as semconv from './semconv.ts'

/** What the API's proxy delegates to while no provider is registered. */
export const NOBODY = new ProxyTracerProvider().getDelegate()

let startDefault = (): void => {}

/** Sets what to do when a span is wanted and no provider is registered. */
export function onFirstSpan(start: () => void): void {
  startDefault = start
}

// The API's last answer, and what was registered then; it holds while that is unchanged. While nothing is registered the API
// answers a proxy, a new one after each unregistering.
let answer: TracerProvider = trace.getTracerProvider()
let answeredFor: TracerProvider | undefined

/**
 * Whether there has been a provider, another's or that of another copy of ours: who removes it has ended tracing, and would be
 * refused with the next one by an engine that nobody has asked for.
 */
let hasBeenServed = false

/** The provider registered with the API, ours or any other; undefined if there is none. */
export function registeredProvider(): TracerProvider | undefined {
  const now = registered()?.trace
  if (now === undefined || now !== answeredFor) {
    answer = trace.getTracerProvider()
    answeredFor = now
  }
  let provider = answer
  // Re-registering a provider that was taken from the API puts one proxy behind another.
  for (let depth = 0; depth < MOST_PROXIES && isProxy(provider); depth++) provider = provider.getDelegate()
  if (provider === NOBODY) return undefined
  hasBeenServed = true
  return provider
}

/** The most proxies to follow: one may be set to delegate to itself. */
const MOST_PROXIES = 10

/** Not by `instanceof`: the registered proxy may come from another copy of the API. */
function isProxy(provider: TracerProvider): provider is ProxyTracerProvider {
  return 'getDelegate' in provider
}

/** Who comes second, as dd-trace, is put into the proxy that is registered already. */
function delegateOf(provider: TracerProvider): TracerProvider {
  return isProxy(provider) ? provider.getDelegate() : provider
}

/**
 * A function that returns this scope's tracer from whichever provider is registered at the time, and starts ours when there has
 * been none. The tracer is looked up again only when the provider changes.
 */
export function tracerFor(scope: InstrumentationScope): () => Tracer {
  let known: TracerProvider | undefined
  let tracer: Tracer | undefined
  // What was registered when the tracer was looked up, and what that delegated to; the tracer holds while both are unchanged.
  let knownFor: TracerProvider | undefined
  let knownDelegate: TracerProvider | undefined
  return () => {
    const before = registered()?.trace
    if (
      tracer !== undefined &&
      before !== undefined &&
      before === knownFor &&
      delegateOf(before) === knownDelegate
    )
      return tracer
    let provider = registeredProvider()
    if (provider === undefined) {
      if (!hasBeenServed) startDefault()
      provider = registeredProvider() ?? NOBODY
    }
    if (tracer === undefined || provider !== known) {
      known = provider
      tracer = provider.getTracer(scope.name, scope.version)
    }
    // After the default start, which registers.
    knownFor = provider === NOBODY ? undefined : registered()?.trace
    knownDelegate = knownFor && delegateOf(knownFor)
    return tracer
  }
}

// The API keeps the registered provider in one place per process. But there may be several copies of the API in it, and each
// has a proxy of its own, which hands out tracers before anybody is registered.

type TraceApi = typeof trace

/**
 * Registers the provider, for all copies of the API, and returns what undoes that. Undefined, with a report, if the API refuses
 * because another version of it registered something first.
 */
export function register(provider: TracerProvider): (() => void) | undefined {
  const copies = otherCopies()
  const proxies = copies.map((copy) => copy.getTracerProvider())
  if (!trace.setGlobalTracerProvider(provider)) {
    report(
      'error',
      `tracing could not be started: another version of @opentelemetry/api (${globalVersion()}) came first in this process, and it refuses ours. Install one version for all; npm ls @opentelemetry/api shows who brings which`,
    )
    return undefined
  }
  const undo = [tellCopies(copies, proxies, provider), ...[trace, ...copies].map(refuseSuccessors)]
  return () => {
    // Somebody may have replaced it.
    if (registeredProvider() === provider) trace.disable()
    for (const step of undo) step()
  }
}

/**
 * The other copies of the API that this process has loaded. From 1.10 on there are two of each version, one for `import`
 * and one for `require`; and packages bring copies of their own along.
 */
function otherCopies(): TraceApi[] {
  return Object.entries(loadedModules()).flatMap(([path, loaded]) => {
    if (!/[\\/]@opentelemetry[\\/]api[\\/].*[\\/]index\.c?js$/.test(path)) return []
    const copy = (loaded?.exports as { trace?: TraceApi } | undefined)?.trace
    return typeof copy?.setGlobalTracerProvider === 'function' && copy !== trace ? [copy] : []
  })
}

/** One cache for the whole process. A bundle may lack `import.meta.url`, and `createRequire` too. */
function loadedModules(): NodeJS.Dict<NodeModule> {
  try {
    return modules.createRequire(process.execPath).cache
  } catch {
    return {}
  }
}

/**
 * A tracer that a copy handed out before any registration asks that copy's own proxy for ever, which must therefore know us
 * too. Copies of another version, which do not see our registration, are left alone.
 */
function tellCopies(
  copies: readonly TraceApi[],
  proxies: readonly TracerProvider[],
  provider: TracerProvider,
): () => void {
  const undo = copies.map((copy, index) => {
    const proxy = proxies[index] as ProxyTracerProvider
    if (copy.getTracerProvider() !== trace.getTracerProvider() || !('setDelegate' in proxy)) return () => {}
    const before = proxy.getDelegate()
    proxy.setDelegate(provider)
    return () => {
      // Somebody may have registered another one since.
      if (proxy.getDelegate() === provider) proxy.setDelegate(before)
    }
  })
  return () => {
    for (const step of undo) step()
  }
}

/** The API refuses other registrations while we run, and says so only to its logger: this reports what to do instead. */
function refuseSuccessors(api: TraceApi): () => void {
  const { setGlobalTracerProvider } = api
  function refuse(this: TraceApi, provider: TracerProvider): boolean {
    const isAnother = typeof provider === 'object' && provider !== null && provider !== registered()?.trace
    const isAccepted = Reflect.apply(setGlobalTracerProvider, this, [provider]) as boolean
    // Not at once: dd-trace takes our place when it has been refused. Who removes ours before, as Azure's distribution does, is
    // accepted.
    if (isAnother && !isAccepted) void Promise.resolve().then(() => sayLate(provider))
    return isAccepted
  }
  api.setGlobalTracerProvider = refuse
  return () => {
    if (api.setGlobalTracerProvider === refuse) api.setGlobalTracerProvider = setGlobalTracerProvider
  }
}

/** Of a provider that was refused: it stays unused, unless it has been put into the registered proxy. */
function sayLate(provider: TracerProvider): void {
  const outcome =
    registeredProvider() === provider
      ? 'has taken its place: spans go there from now on, and what Throughline was started with is unused'
      : 'stays unused'
  reportOnce(
    'SDK too late',
    'error',
    `${providerName(provider)} was registered after Throughline had started, and ${outcome}. Either register it before the first span is made, and Throughline uses it; or leave it out, and give its exporter or span processors to Throughline's start()`,
  )
}

/** Such a name says nothing: in @vercel/otel the provider's is `Ga`. */
const MOST_OF_A_MINIFIED_NAME = 3

function providerName(provider: TracerProvider): string {
  try {
    // Bundlers number the names of classes.
    const name = (provider.constructor as { name?: unknown } | undefined)?.name
    if (typeof name === 'string' && name !== 'Object' && name.length > MOST_OF_A_MINIFIED_NAME)
      return name.replace(/\$\d+$/, '')
  } catch {
    // It is the app's, and need not be sound.
  }
  return 'an OpenTelemetry SDK'
}

// ---- Manual spans ----

const manualTracer = tracerFor({ name: '@throughline/core', version: VERSION })

/**
 * Runs `fn` in a span of its own (kind INTERNAL), a child of the current one, and returns what `fn` returns. The span ends when
 * `fn` has returned or, where it returns a promise, when that has settled. An error is recorded on the span, sets its status to
 * Error, and goes on to the caller. Invalid attributes are reported once, and left out.
 *
 * @throws TypeError without a name or a function.
 * @example
 * await span('checkout.process', { 'order.id': id }, async (s) => { s.addEvent('paid') })
 */
export function span<T>(name: string, fn: (span: Span) => T): T
export function span<T>(name: string, attributes: Attributes, fn: (span: Span) => T): T
export function span<T>(name: string, ...rest: [(span: Span) => T] | [Attributes, (span: Span) => T]): T {
  const fn = rest.at(-1)
  if (typeof name !== 'string' || typeof fn !== 'function') {
    throw new TypeError(
      `span(): expected a name and a function, received ${typeof name} and ${typeof fn}; example: span('checkout.process', async (s) => { … })`,
    )
  }
  const attributes = rest.length > 1 ? attributesIn(rest[0]) : {}
  const parent = context.active()
  const made = begun(name, attributes, parent)
  const work = fn as (span: Span) => T
  const within = withSpan(parent, made)

  let result: T
  try {
    result = context.with(within, work, undefined, made)
  } catch (error) {
    endFailed(made, error)
    throw error
  }
  if (!isThenable(result)) {
    endOnce(made)
    return result
  }
  function settled<V>(value: V): V {
    endOnce(made)
    return value
  }
  function failed(error: unknown): never {
    endFailed(made, error)
    throw error
  }
  // In the span's context: a lazy thenable, such as a query builder, begins its work only now.
  const { then } = result
  return context.with(within, then, result, settled, failed) as T
}

/** Wrong attributes are reported and not thrown, since the app is running: `fn` must be called. */
function attributesIn(given: unknown): Attributes {
  if (typeof given === 'object' && given !== null && !Array.isArray(given)) return given as Attributes
  if (given !== undefined && given !== null) {
    reportOnce(
      'span attributes',
      'warn',
      `span(): expected attributes in an object, received ${showType(given)}, which is left out; for example span('checkout.process', { 'order.id': id }, async (s) => { … })`,
    )
  }
  return {}
}

// The app gets what its function returned, or the error as it was thrown: what the spans and processors of another provider throw
// may not take their place.

function begun(name: string, attributes: Attributes, parent: Context): Span {
  try {
    const made = manualTracer().startSpan(name, { attributes }, parent)
    // What another provider gives may be no span: this throws then.
    made.isRecording()
    return made
  } catch (error) {
    return unstarted(parent, error)
  }
}

/** In place of a span that could not be started: the parent's context passes through. */
export function unstarted(parentContext: Context | null, error: unknown): Span {
  reportOnce('startSpan', 'error', 'a span could not be started', error)
  return trace.wrapSpanContext(spanContextIn(parentContext) ?? INVALID_SPAN_CONTEXT)
}

function spanContextIn(of: Context | null): SpanContext | undefined {
  try {
    return trace.getSpanContext(of ?? context.active())
  } catch {
    // The app's own span may be what threw in the first place.
    return undefined
  }
}

function endOnce(made: Span): void {
  try {
    // The app may have ended it itself.
    if (made.isRecording()) made.end()
  } catch (error) {
    sayUnended(error)
  }
}

function endFailed(failed: Span, error: unknown): void {
  if (!failed.isRecording()) return
  const message = messageOf(error)
  try {
    failed.recordException(isError(error) ? showable(error) : message)
    failed.setAttribute(semconv.ERROR_TYPE, errorType(error) ?? semconv.OTHER)
  } catch (trouble) {
    reportOnce('manual span', 'error', 'an error could not be recorded on its span', trouble)
  }
  try {
    failed.setStatus({ code: SpanStatusCode.ERROR, message })
    failed.end()
  } catch (trouble) {
    sayUnended(trouble)
  }
}

function sayUnended(error: unknown): void {
  reportOnce('manual span:end', 'error', 'the end of a span could not be recorded', error)
}

function isThenable<T>(value: T): value is T & PromiseLike<unknown> {
  try {
    return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
  } catch {
    return false
  }
}
