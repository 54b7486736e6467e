import {
  context,
  propagation,
  SpanKind,
  SpanStatusCode,
  trace,
  type Attributes,
  type Context,
  type Span,
  type TimeInput,
} from '@opentelemetry/api'
import { isIgnored, isSuppressed, withSpan } from './context.ts'
import { tracerFor } from './current.ts'
import { BOOLEAN, FUNCTION, guarded, MATCH, matcher, validated, type Match, type Shape } from './options.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import { errorType, messageOf } from './exception.ts'
import type { InstrumentationScope } from './span.ts'
import { LazyOptions } from './tracer.ts'

/**
 * The options of everything that sends. `Subject` is what tells one call from another (a URL, a command), `Outcome` what
 * a function of the app gets when the call has ended.
 */
export interface SendingOptions<Subject extends unknown[], Outcome extends unknown[]> {
  /** Calls that get no span, by a function or by text; the current trace still goes along on the wire. */
  ignore?: Match<Subject> | undefined
  /** Attributes to add when the span ends. */
  attributes?: ((...outcome: Outcome) => Attributes) | undefined
  /** Whether a call outside of any span gets none. */
  requireParent?: boolean | undefined
}

/** One call that is under way. */
export interface Call {
  readonly span: Span
  /** The caller's context with the span as the current one: what the library does runs in it. */
  readonly context: Context
  /** The context of the caller: its callbacks run in it. */
  readonly caller: Context
}

/** What the seam must know of a client library. */
export interface Library<Subject extends unknown[]> {
  readonly scope: InstrumentationScope
  /** The text that `ignore` compares. */
  text(...subject: Subject): string
}

/** How a call ended. */
export interface Ending<Outcome> {
  /** What the app's `attributes` is called with; it is not called where this is left out. */
  readonly outcome?: Outcome
  /** `error.type`, and the status's description where the attributes do not say it already. */
  readonly failure?: { readonly type: string; readonly message?: string }
  readonly endTime?: TimeInput | undefined
}

export interface Sender<Subject extends unknown[], Outcome extends unknown[]> {
  /** Starts a CLIENT span; undefined when this call is to have none. `attributes` is asked only for a span that records. */
  begin(subject: Subject, name: () => string, attributes: () => Attributes): Call | undefined
  /** Ends the span of a call that went well. */
  succeed(call: Call, ...outcome: Outcome): void
  /** Ends the span of a call that did not: status Error, with the error's message unless another text is given. */
  fail(call: Call, error: unknown, type?: string, message?: string): void
  /** Ends the span of a call whose end is neither of the two. */
  conclude(call: Call, ending: Ending<Outcome>): void
}

export const SENDING_SHAPE = {
  ignore: MATCH('ignore: /^\\/internal/'),
  attributes: FUNCTION("attributes: () => ({ 'app.shard': 3 })"),
  requireParent: BOOLEAN('requireParent'),
} satisfies Shape<SendingOptions<never, never>>

/**
 * The outbound seam: one call of a client library as a CLIENT span under the caller's.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function sender<
  Subject extends unknown[],
  Outcome extends unknown[],
  Options extends SendingOptions<Subject, Outcome> = SendingOptions<Subject, Outcome>,
>(
  library: Library<Subject>,
  caller: string,
  options: Options,
  shape: Shape<Options> = SENDING_SHAPE as unknown as Shape<Options>,
): Sender<Subject, Outcome> {
  validated(`${library.scope.name}: ${caller}`, shape, options)
  const tracer = tracerFor(library.scope)
  const isIgnoredCall = matcher('ignore', options.ignore, library.text)
  const moreAttributes = guarded('attributes', options.attributes)
  const { requireParent = false } = options

  function begin(subject: Subject, name: () => string, attributes: () => Attributes): Call | undefined {
    try {
      // First of all: with the default start comes the propagator, for calls without a span too.
      const maker = tracer()
      const active = context.active()
      if (isSuppressed(active) || isIgnored(active)) return undefined
      if (requireParent && trace.getSpan(active) === undefined) return undefined
      if (isIgnoredCall?.(...subject) === true) return undefined
      const span = maker.startSpan(name(), new LazyOptions(SpanKind.CLIENT, attributes), active)
      return { span, context: withSpan(active, span), caller: active }
    } catch (error) {
      reportOnce(`send:${library.scope.name}`, 'error', 'a call could not be traced', error)
      return undefined
    }
  }

  function conclude({ span }: Call, { outcome, failure, endTime }: Ending<Outcome>): void {
    if (!span.isRecording()) return
    if (failure !== undefined) {
      const { type, message } = failure
      span.setAttribute(semconv.ERROR_TYPE, type)
      span.setStatus(
        message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
      )
    }
    const more = outcome === undefined ? undefined : moreAttributes?.(...outcome)
    if (more !== undefined) span.setAttributes(more)
    span.end(endTime)
  }

  function succeed(call: Call, ...outcome: Outcome): void {
    conclude(call, { outcome })
  }

  function fail(call: Call, error: unknown, type = errorType(error), message = messageOf(error)): void {
    conclude(call, { failure: { type: type ?? '_OTHER', message } })
  }

  return { begin, succeed, fail, conclude }
}

/** The headers that carry this context: traceparent and tracestate, baggage, or what the app's propagator sends. */
export function headersOf(from: Context): Record<string, string> {
  const headers: Record<string, string> = {}
  try {
    propagation.inject(from, headers)
  } catch (error) {
    reportOnce('inject', 'error', 'the propagator threw, so a call carries no trace context', error)
  }
  return headers
}
