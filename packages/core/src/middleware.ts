import {
  context,
  SpanKind,
  SpanStatusCode,
  type Attributes,
  type Context,
  type Span,
} from '@opentelemetry/api'
import { now } from './clock.ts'
import { isIgnored, spanIn, withSpan } from './context.ts'
import { tracerFor } from './current.ts'
import { errorType } from './exception.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import type { InstrumentationScope } from './span.ts'

/** Which parts of an app get spans of their own: none, all, or those that took longer than so many milliseconds. */
export type MiddlewareSpans = boolean | { readonly slowerThan: number }

/** The span of one run of a middleware, a hook or a handler. */
export interface LayerSpan {
  /** Runs the layer with its span as the current one; returns what it returns, throws what it throws. */
  within<T>(work: () => T): T
  /**
   * Runs what the layer passes the request on to, without the layer's span as the current one. Whatever else the layer has put
   * into the context stays: baggage, a span of the app's.
   */
  outside<T>(work: () => T): T
  /** Ends the span, once; with an error, as failed. The error itself is recorded only on the SERVER span. */
  end(error?: unknown): void
}

/** Begins the span of a layer below the current one; undefined where that one is not recorded. */
export type BeginLayer = (name: string, attributes?: Attributes) => LayerSpan | undefined

/**
 * What makes the spans that `middlewareSpans` asks for; undefined if none. With `slowerThan` a span is made once the layer
 * turns out slow, so what ran within has another parent.
 */
export function middlewareSpans(
  scope: InstrumentationScope,
  wanted: MiddlewareSpans | undefined,
): BeginLayer | undefined {
  if (wanted === undefined || wanted === false) return undefined
  const tracer = tracerFor(scope)
  const slowerThan = wanted === true ? undefined : wanted.slowerThan

  return function beginLayer(name, attributes = {}) {
    try {
      const outer = context.active()
      if (spanIn(outer)?.isRecording() !== true || isIgnored(outer)) return undefined
      if (slowerThan !== undefined) return slowLayer(name, attributes, outer, slowerThan)
      const span = tracer().startSpan(name, { kind: SpanKind.INTERNAL, attributes }, outer)
      const inner = withSpan(outer, span)
      return {
        within: (work) => context.with(inner, work),
        outside: (work) => {
          const active = context.active()
          return spanIn(active) === span ? context.with(withSpan(active, spanIn(outer)), work) : work()
        },
        end: once((error) => conclude(span, error)),
      }
    } catch (error) {
      sayUntraced(error)
      return undefined
    }
  }

  function slowLayer(name: string, attributes: Attributes, outer: Context, least: number): LayerSpan {
    const began = now()
    return {
      within: (work) => work(),
      outside: (work) => work(),
      end: once((error) => {
        if (now() - began < least) return
        const options = { kind: SpanKind.INTERNAL, attributes, startTime: began }
        conclude(tracer().startSpan(name, options, outer), error)
      }),
    }
  }
}

function once(end: (error: unknown) => void): (error?: unknown) => void {
  let hasEnded = false
  return (error) => {
    if (hasEnded) return
    hasEnded = true
    try {
      end(error)
    } catch (trouble) {
      sayUntraced(trouble)
    }
  }
}

function conclude(span: Span, error: unknown): void {
  if (error !== undefined && error !== null) {
    span.setAttribute(semconv.ERROR_TYPE, errorType(error) ?? semconv.OTHER)
    span.setStatus({ code: SpanStatusCode.ERROR })
  }
  span.end()
}

function sayUntraced(error: unknown): void {
  reportOnce('middleware', 'error', 'a middleware could not be traced', error)
}
