import {
  context,
  ProxyTracerProvider,
  SpanStatusCode,
  trace,
  type Attributes,
  type Span,
  type Tracer,
  type TracerProvider,
} from '@opentelemetry/api'
import { withSpan } from './context.ts'
import { reportOnce } from './report.ts'
import { VERSION } from './resource.ts'
import { errorType, messageOf } from './exception.ts'
import type { InstrumentationScope } from './span.ts'
import * as semconv from './semconv.ts'

// What a proxy of the API answers as long as nobody has registered a provider.
const NOBODY = new ProxyTracerProvider().getDelegate()

let startDefault = (): void => {}

/** Names what is to be done when a span is to be made and nobody has registered a provider. */
export function onFirstSpan(start: () => void): void {
  startDefault = start
}

/** The provider that is in charge: ours or any other that was registered with the API. Undefined for none. */
export function registeredProvider(): TracerProvider | undefined {
  const registered = trace.getTracerProvider()
  // Not by instanceof: the proxy that is registered may be another copy's of the API.
  const provider =
    'getDelegate' in registered ? (registered as ProxyTracerProvider).getDelegate() : registered
  return provider === NOBODY ? undefined : provider
}

/**
 * A function that answers this scope's tracer of whichever provider is in charge at the time, and starts ours when there
 * is none. The tracer is looked up again only when the provider changes.
 */
export function tracerFor(scope: InstrumentationScope): () => Tracer {
  let known: TracerProvider | undefined
  let tracer: Tracer | undefined
  return () => {
    let provider = registeredProvider()
    if (provider === undefined) {
      startDefault()
      provider = registeredProvider() ?? NOBODY
    }
    if (tracer === undefined || provider !== known) {
      known = provider
      tracer = provider.getTracer(scope.name, scope.version)
    }
    return tracer
  }
}

const manualTracer = tracerFor({ name: '@throughline/core', version: VERSION })

/**
 * Runs `fn` in a span of its own (kind INTERNAL), a child of the current one, and returns what `fn` returns. The span
 * ends when `fn` has returned or, where it returns a promise, when that has settled. An error is recorded on the span,
 * sets its status to Error, and goes on to the caller.
 *
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
  const attributes = rest.length > 1 ? (rest[0] as Attributes) : {}
  const parent = context.active()
  const made = manualTracer().startSpan(name, { attributes }, parent)
  const work = fn as (span: Span) => T

  let result: T
  try {
    result = context.with(withSpan(parent, made), work, undefined, made)
  } catch (error) {
    endFailed(made, error)
    throw error
  }
  if (!isThenable(result)) {
    endOnce(made)
    return result
  }
  return result.then(
    (value) => {
      endOnce(made)
      return value
    },
    (error: unknown) => {
      endFailed(made, error)
      throw error
    },
  ) as T
}

// The app may have ended it itself.
function endOnce(made: Span): void {
  if (made.isRecording()) made.end()
}

// Whatever was thrown goes on to the caller as it is: nothing may be thrown in its place here.
function endFailed(failed: Span, error: unknown): void {
  if (!failed.isRecording()) return
  const message = messageOf(error)
  try {
    failed.recordException(error instanceof Error ? error : message)
    failed.setAttribute(semconv.ERROR_TYPE, errorType(error) ?? '_OTHER')
  } catch (trouble) {
    reportOnce('manual span', 'error', 'an error could not be recorded on its span', trouble)
  }
  failed.setStatus({ code: SpanStatusCode.ERROR, message })
  failed.end()
}

function isThenable<T>(value: T): value is T & PromiseLike<unknown> {
  try {
    return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
  } catch {
    return false
  }
}
