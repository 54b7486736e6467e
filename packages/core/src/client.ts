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
import type { NamedWriter } from './attribute.ts'
import type { Ticks } from './clock.ts'
import { activeContext, isIgnored, isOrdinary, isSuppressed, spanIn, withSpan } from './context.ts'
import { tracerFor } from './current.ts'
import { CallMeasurement, durationsOf, instrumentsFor, isMetered, type DurationMetric } from './metrics.ts'
import {
  BOOLEAN,
  FUNCTION,
  guarded,
  inUpperCase,
  MATCH,
  matcher,
  validated,
  type Match,
  type Shape,
} from './options.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import { isOurs, putNamed, type InstrumentationScope } from './span.ts'
// The first span starts tracing, also where it is that of a package which uses this door alone.
import './start.ts'
import { DeferredOptions, isOurTracer } from './tracer.ts'

/** What a call has before it has begun. */
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
 * One call of a client library that is under way: what its span says, and whose it is. A library extends it by what it
 * must know of a call, so that a call is one object: with closures in its place it was six, 1 µs.
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

  /** Whether its end is to be noticed: somebody wants to know of it. */
  get isOpen(): boolean {
    return this.measurement !== undefined || this.span.isRecording()
  }

  /** Adds attributes to its span in a quick way; false where they have to be set: see Span's `putNamed`. */
  protected putNamed(write: NamedWriter, first: AttributeValue, second?: AttributeValue): boolean {
    return putNamed(this.span, write, first, second)
  }

  /** The name of the span. */
  abstract name(): string
  /**
   * What its duration is counted by when it has ended, where its library measures calls: of its attributes those of few
   * values, but for `error.type`.
   */
  dimensions(): Attributes {
    return {}
  }
  /** Whether it gets no span outside of any, where the app has not said what it wants by `requireParent`. */
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
  /** Whether nothing of its calls' spans goes along on the wire: one that is dropped then need not be started. */
  readonly isSilent?: boolean
  /** What its calls are measured by, where the app has a MeterProvider. */
  readonly duration?: DurationMetric
  /** The text that `ignore` compares. */
  text(...subject: Subject): string
  /** Whether that text is always in upper case; the app's own may then be in any. */
  readonly isUpperCase?: boolean
}

export interface Sender<Subject extends unknown[], Outcome extends unknown[]> {
  /** Whether the app adds attributes when a call has ended; nobody else asks for a call's outcome. */
  readonly asksOutcome: boolean
  /** The context of a call that is made now; undefined where it is to have no span, so that none need be prepared. */
  caller(): Context | undefined
  /**
   * Starts a CLIENT span. False when nobody need watch its end: the call is to have no span, or one
   * that does not record, and it is not measured.
   */
  begin(call: Call<Subject, Outcome>): boolean
  /** Ends a call that went well; `endTicks` is given where it is over already. */
  succeed(call: Call<Subject, Outcome>, endTicks?: Ticks): void
  /**
   * Ends a call that did not: status Error, with a message where the attributes do not say it already. With
   * `hasOutcome` the app got an answer all the same.
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
  const isIgnoredCall = matcher('ignore', ignore, library.text)
  const moreAttributes = guarded('attributes', options.attributes)
  const { requireParent } = options

  const { duration } = library
  const durationsNow = duration && instrumentsFor(library.scope, (meter) => durationsOf(meter, duration))

  function caller(): Context | undefined {
    try {
      const active = activeContext()
      // Nearly every call: nothing is left to be decided.
      if (isOrdinary(active) && isOurs(spanIn(active))) return active
      return callerNow()
    } catch (error) {
      sayUntraced(error)
      return undefined
    }
  }

  function callerNow(): Context | undefined {
    // First of all: with the default start comes the context, and the propagator, for calls without a span too.
    const maker = tracer()
    const active = activeContext()
    if (isSuppressed(active) || isIgnored(active)) return undefined
    // One that has no span is measured all the same.
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
      if (!isOurTracer(maker)) call.span = maker.startSpan(call.name(), call, call.caller)
      else {
        // One that is sure to be dropped is asked for no name.
        const isDropped = parent !== undefined && !isOurs(parent) && maker.dropsUnder(parent)
        call.span = maker.startDeferred(isDropped ? '' : call.name(), call, call.caller, SpanKind.CLIENT)
      }
      return call.isOpen
    } catch (error) {
      sayUntraced(error)
      return call.isOpen
    }
  }

  function sayUntraced(error: unknown): void {
    reportOnce(`send:${library.scope.name}`, 'error', 'a call could not be traced', error)
  }

  function succeed(call: Call<Subject, Outcome>, endTicks?: Ticks): void {
    const { span } = call
    if (span.isRecording()) {
      if (moreAttributes !== undefined) addMore(call)
      span.end(endTicks)
    }
    if (call.measurement !== undefined) measure(call, call.measurement, undefined, endTicks)
  }

  function fail(
    call: Call<Subject, Outcome>,
    type = '_OTHER',
    message?: string,
    hasOutcome = false,
    endTicks?: Ticks,
  ): void {
    const { span } = call
    if (span.isRecording()) {
      span.setAttribute(semconv.ERROR_TYPE, type)
      span.setStatus(
        message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
      )
      if (hasOutcome && moreAttributes !== undefined) addMore(call)
      span.end(endTicks)
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
      measurement.end(attributes, call.span, endTicks, call.context)
    } catch (error) {
      reportOnce(`measure:${library.scope.name}`, 'error', 'a call could not be measured', error)
    }
  }

  function addMore(call: Call<Subject, Outcome>): void {
    const more = moreAttributes?.(...call.outcome())
    if (more !== undefined) call.span.setAttributes(more)
  }

  return { asksOutcome: moreAttributes !== undefined, caller, begin, succeed, fail }
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
