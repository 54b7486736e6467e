import {
  INVALID_SPAN_CONTEXT,
  propagation,
  SpanKind,
  SpanStatusCode,
  trace,
  type Attributes,
  type AttributeValue,
  type Context,
  type Span,
} from '@opentelemetry/api'
import { sayUnreadable, type NamedWriter } from './attribute.ts'
import type { Ticks } from './clock.ts'
import { activeContext, isIgnored, isOrdinary, isSuppressed, spanIn, withSpan } from './context.ts'
import { tracerFor } from './current.ts'
import { CallMeasurement, durationsOf, instrumentsFor, isMetered, type DurationMetric } from './metrics.ts'
import {
  answeredAttributes,
  BOOLEAN,
  FUNCTION,
  guarded,
  MATCH,
  matcher,
  validated,
  type Match,
  type Shape,
  type TextMatch,
} from './options.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import { isOurs, putNamed, type InstrumentationScope } from './span.ts'
import { DeferredOptions, isOurTracer } from './tracer.ts'

/** A call's span before it has begun. */
const NO_SPAN = trace.wrapSpanContext(INVALID_SPAN_CONTEXT)

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

/**
 * One call of a client library in progress: its span, and the caller's context. Each library extends it with what it must know,
 * so that a call is one object: closures would be six, and cost 1 µs more.
 */
export abstract class Call<
  Subject extends unknown[] = unknown[],
  Outcome extends unknown[] = unknown[],
> extends DeferredOptions {
  readonly kind = SpanKind.CLIENT
  /** Set by `begin`. */
  span: Span = NO_SPAN
  /** Set by `begin` where the app has a MeterProvider. */
  measurement: CallMeasurement | undefined = undefined
  /** The context of the caller: its callbacks run in it. */
  readonly caller: Context

  constructor(caller: Context) {
    super()
    this.caller = caller
  }

  /** The caller's context with the span as the current one: what is sent carries it. */
  get context(): Context {
    return this.span === NO_SPAN ? this.caller : withSpan(this.caller, this.span)
  }

  /** Whether anybody needs to know when it ends. */
  get isOpen(): boolean {
    return this.measurement !== undefined || this.span.isRecording()
  }

  /** Ends the span of a call that will not be answered, marked as incomplete. It is not measured, since it never ends. */
  abandon(): void {
    this.measurement = undefined
    try {
      if (this.span.isRecording()) this.span.setAttribute(semconv.INCOMPLETE, true).end()
    } catch (error) {
      sayUnended(error)
    }
  }

  /** Adds attributes to its span quickly; false if they must be set with `setAttribute`: see Span's `putNamed`. */
  protected putNamed(write: NamedWriter, first: AttributeValue, second?: AttributeValue): boolean {
    return putNamed(this.span, write, first, second)
  }

  /**
   * The attributes of its duration metric, if its library measures calls: those with few distinct values, without `error.type`.
   */
  dimensions(): Attributes {
    return {}
  }

  /** Whether it gets no span without a parent, unless the app sets `requireParent`. */
  needsParent(): boolean {
    return false
  }

  /** What `ignore` is called with. */
  abstract subject(): Subject

  /** What the app's `attributes` is called with. */
  abstract outcome(): Outcome
}

/** What the seam must know of a client library. */
export interface Library<Subject extends unknown[]> {
  readonly scope: InstrumentationScope
  /** Whether its calls send no trace context: a span that will be dropped then need not be started. */
  readonly isSilent?: boolean
  /** What its calls are measured by, where the app has a MeterProvider. */
  readonly duration?: DurationMetric
  /** The text that `ignore` compares. */
  text(...subject: Subject): string
  /** Whether that is a text which the app has given to `ignore`, where that need not be the same. */
  readonly isText?: (given: string, text: string) => boolean
  /** Whether that text is always in upper case; the app may then write its own in any case. */
  readonly isUpperCase?: boolean
}

export interface Sender<Subject extends unknown[], Outcome extends unknown[]> {
  /** Whether the app adds attributes when a call has ended; only then is its outcome needed. */
  readonly asksOutcome: boolean
  /** The context of a call made now; undefined if it gets no span, so that nothing need be prepared. */
  caller(): Context | undefined
  /**
   * Starts a CLIENT span. False if nobody needs to watch for its end: it has no span or one that does not record, and is not
   * measured.
   */
  begin(call: Call<Subject, Outcome>): boolean
  /** Ends a call that succeeded; `endTicks` is given if it ended earlier. */
  succeed(call: Call<Subject, Outcome>, endTicks?: Ticks): void
  /**
   * Ends a call that failed: status Error, with a message unless the attributes already say it. `hasOutcome`: the app got an
   * answer nevertheless.
   */
  fail(
    call: Call<Subject, Outcome>,
    type: string | undefined,
    message?: string,
    hasOutcome?: boolean,
    endTicks?: Ticks,
  ): void
}

/** The example of `ignore` is for a library of commands: one that is compared by other text has its own. */
export const SENDING_SHAPE = {
  ignore: MATCH("ignore: ['PING', /^X?READ/]"),
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
  wrapper: string,
  options: Options,
  shape: Shape<Options> = SENDING_SHAPE as unknown as Shape<Options>,
): Sender<Subject, Outcome> {
  validated(`${library.scope.name}: ${wrapper}`, shape, options)
  const tracer = tracerFor(library.scope)
  const ignore = library.isUpperCase === true ? inUpperCase(options.ignore) : options.ignore
  const isIgnoredCall = matcher('ignore', ignore, library.text, library.isText)
  const moreAttributes = guarded('attributes', options.attributes)
  const { requireParent } = options

  const { duration } = library
  const durationsNow = duration && instrumentsFor(library.scope, (meter) => durationsOf(meter, duration))

  function caller(): Context | undefined {
    try {
      const active = activeContext()
      // The usual case: nothing else to decide.
      if (isOrdinary(active) && isOurs(spanIn(active))) return active
      return callerOf(active)
    } catch (error) {
      sayUntraced(error)
      return undefined
    }
  }

  function callerOf(current: Context): Context | undefined {
    // First: the default start registers the context manager and the propagator, which calls without a span need too.
    const maker = tracer()
    const active = spanIn(current) === undefined ? activeContext() : current
    if (isSuppressed(active) || isIgnored(active)) return undefined
    // A call without a span is measured too.
    if (durationsNow?.() !== undefined) return active
    const parent = spanIn(active)
    if (parent === undefined) return requireParent ? undefined : active
    const isDropped = library.isSilent === true && isOurTracer(maker) && maker.dropsUnder(parent)
    return isDropped ? undefined : active
  }

  function begin(call: Call<Subject, Outcome>): boolean {
    try {
      if (isIgnoredCall?.(...call.subject()) === true) return false
      const durations = isMetered() ? durationsNow?.() : undefined
      if (durations !== undefined) call.measurement = new CallMeasurement(durations)
      const parent = spanIn(call.caller)
      if (parent === undefined && (requireParent ?? call.needsParent())) return call.isOpen
      const maker = tracer()
      call.span = isOurTracer(maker)
        ? maker.startDeferred(call, call.caller, SpanKind.CLIENT)
        : maker.startSpan(call.name(), call, call.caller)
      return call.isOpen
    } catch (error) {
      sayUntraced(error)
      // What another provider has given may be no span.
      call.span = NO_SPAN
      return call.isOpen
    }
  }

  function sayUntraced(error: unknown): void {
    reportOnce(`send:${library.scope.name}`, 'error', 'a call could not be traced', error)
  }

  function succeed(call: Call<Subject, Outcome>, endTicks?: Ticks): void {
    const { span } = call
    try {
      if (span.isRecording()) {
        if (moreAttributes !== undefined) addMore(call)
        span.end(endTicks)
      }
    } catch (error) {
      sayUnended(error)
    }
    if (call.measurement !== undefined) measure(call, call.measurement, undefined, endTicks)
  }

  function fail(
    call: Call<Subject, Outcome>,
    type: string = semconv.OTHER,
    message?: string,
    hasOutcome = false,
    endTicks?: Ticks,
  ): void {
    const { span } = call
    try {
      if (span.isRecording()) {
        span.setAttribute(semconv.ERROR_TYPE, type)
        span.setStatus(
          message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
        )
        if (hasOutcome && moreAttributes !== undefined) addMore(call)
        span.end(endTicks)
      }
    } catch (error) {
      sayUnended(error)
    }
    if (call.measurement !== undefined) measure(call, call.measurement, type, endTicks)
  }

  function measure(
    call: Call<Subject, Outcome>,
    measurement: CallMeasurement,
    errorType: string | undefined,
    endTicks: Ticks | undefined,
  ): void {
    call.measurement = undefined
    try {
      const counted = call.dimensions()
      const attributes = errorType === undefined ? counted : { ...counted, [semconv.ERROR_TYPE]: errorType }
      measurement.end(attributes, call.span, call.context, endTicks)
    } catch (error) {
      reportOnce(`measure:${library.scope.name}`, 'error', 'a call could not be measured', error)
    }
  }

  // The span ends without what cannot be read of them.
  function addMore(call: Call<Subject, Outcome>): void {
    try {
      const more = answeredAttributes(moreAttributes?.(...call.outcome()))
      if (more !== undefined) call.span.setAttributes(more)
    } catch (error) {
      sayUnreadable('attributes', error)
    }
  }

  return { asksOutcome: moreAttributes !== undefined, caller, begin, succeed, fail }
}

/** An end is told in a callback of the client library: what another provider's spans and processors throw must not reach it. */
function sayUnended(error: unknown): void {
  reportOnce('call end', 'error', 'the end of a call could not be recorded', error)
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

/**
 * Whether another instrumentation has wrapped this method already: its mark is on the function. Ours yields to it then,
 * and says so once.
 */
export function yieldsTo(method: object, library: string, ours: string): boolean {
  if (!('__wrapped' in method)) return false
  const message = `another instrumentation traces ${library} already, so ${ours} does not`
  reportOnce(`instrumented:${library}`, 'warn', message)
  return true
}

/** The same Match for texts in upper case: the app's strings may be in any case. A RegExp stays as it is. */
function inUpperCase<Subject extends unknown[]>(
  match: Match<Subject> | undefined,
): Match<Subject> | undefined {
  if (match === undefined || typeof match === 'function') return match
  const tests = (Array.isArray(match) ? match : [match]) as readonly TextMatch[]
  return tests.map((test) => (typeof test === 'string' ? test.toUpperCase() : test))
}
