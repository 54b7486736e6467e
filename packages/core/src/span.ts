import {
  INVALID_SPANID,
  INVALID_TRACEID,
  SpanStatusCode,
  TraceFlags,
  type Attributes,
  type AttributeValue,
  type Context,
  type Exception,
  type HrTime,
  type Link,
  type Span as ApiSpan,
  type SpanContext,
  type SpanKind,
  type SpanStatus,
  type TimeInput,
  type TraceState,
} from '@opentelemetry/api'
import { isDate } from 'node:util/types'
import {
  isAttribute,
  isName,
  isPrimitive,
  kept,
  limitedAttributes,
  putAttribute,
  sayNoAttribute,
  sayUnreadable,
  textOf,
  type NamedWriter,
} from './attribute.ts'
import {
  between,
  checkedAnchor,
  elapsedAt,
  hrTimeAt,
  currentClock,
  NS_PER_MS,
  NS_PER_SECOND,
  readTime,
  toHrTime,
  writeElapsed,
  writeHrTime,
  type Anchor,
  type Clock,
  type Elapsed,
  type Ticks,
} from './clock.ts'
import { exceptionAttributes } from './exception.ts'
import { lowerAt, spanIdOf, takeSpanId, wordAt, type Checked } from './ids.ts'
import { reportOnce, shownName } from './report.ts'
import type { Resource } from './resource.ts'
import * as semconv from './semconv.ts'

/** What made the span: a package's name and version. One object per tracer: official serializers group by identity. */
export interface InstrumentationScope {
  readonly name: string
  readonly version?: string | undefined
  readonly schemaUrl?: string | undefined
}

/** An event on a span, `time` as [seconds, nanoseconds] since the Unix epoch. */
export interface TimedEvent {
  time: HrTime
  name: string
  attributes?: Attributes
  droppedAttributesCount?: number
}

/** A link on a span, with the count of attributes dropped at its limit. */
interface RecordedLink extends Link {
  droppedAttributesCount?: number
}

/** A finished span as exporters read it; the shape of the official SDK's ReadableSpan. */
export interface ReadableSpan {
  readonly name: string
  readonly kind: SpanKind
  readonly spanContext: () => SpanContext
  readonly parentSpanContext?: SpanContext | undefined
  readonly startTime: HrTime
  readonly endTime: HrTime
  readonly status: SpanStatus
  readonly attributes: Attributes
  readonly links: Link[]
  readonly events: TimedEvent[]
  readonly duration: HrTime
  readonly ended: boolean
  readonly resource: Resource
  readonly instrumentationScope: InstrumentationScope
  readonly droppedAttributesCount: number
  readonly droppedEventsCount: number
  readonly droppedLinksCount: number
}

/** Receives recorded spans; the shape of the official SDK's SpanProcessor. Exported spans are ReadableSpans. */
export interface SpanProcessor {
  // Not our class: a processor written for the official SDK's Span accepts only what the two have in common.
  onStart(span: ApiSpan & ReadableSpan, parentContext: Context): void
  onEnding?(span: ApiSpan & ReadableSpan): void
  onEnd(span: ReadableSpan): void
  forceFlush(): Promise<void>
  shutdown(): Promise<void>
}

/** The `onStart` of a processor that has nothing to do there: it is recognised and never called. */
export function ignoreStart(): void {}

/** How much a span may hold (OpenTelemetry trace SDK, span limits). More is dropped and counted. */
export interface SpanLimits {
  readonly attributeCountLimit: number
  readonly attributeValueLengthLimit: number
  readonly eventCountLimit: number
  readonly linkCountLimit: number
  readonly attributePerEventCountLimit: number
  readonly attributePerLinkCountLimit: number
}

/** What a span needs of the provider that it belongs to. */
export interface SpanHome {
  readonly resource: Resource
  readonly limits: SpanLimits
  ended(span: Span): void
}

/** What makes a span: a tracer. */
export interface SpanMaker {
  readonly home: SpanHome
  readonly scope: InstrumentationScope
}

// A span's kind, flags, whether it has ended, and how many attributes it has at most, in one number: as fields of their own
// they would hold 24 bytes more, in a queue of thousands. From the lowest bit:
const KIND_BITS = 0x7
const FLAGS_SHIFT = 3
const FLAGS_BITS = 0xff
const ENDED_BIT = 1 << 11
const COUNT_SHIFT = 12
/** The other 19 of 31 bits. Higher limits are capped here. */
const MOST_ATTRIBUTES = 2 ** 19 - 1

/** What most spans do without. A separate object, made on demand, saves 64 bytes in all others. */
interface Extras {
  status: SpanStatus
  events: TimedEvent[]
  links: RecordedLink[]
  droppedAttributes: number
  droppedEvents: number
  droppedLinks: number
  startTime: HrTime | undefined
  endTime: HrTime | undefined
}

/**
 * One timed operation: the API's Span for those who make it, the exporters' ReadableSpan for those who read it. Nothing here
 * throws, whatever it is given. No `#private` names: exporters that redact make views of spans, by `Object.create` or a Proxy,
 * which cannot reach private fields. Changes made through a view are exported; the ids must stay.
 */
export class Span implements ApiSpan, ReadableSpan, Checked {
  name: string
  readonly traceId: string
  readonly parentSpanContext: SpanContext | undefined
  attributes: Attributes
  /** Index among the provider's open spans; −1 if not listed. */
  place: number
  private readonly maker: SpanMaker
  // The span id as two words; both zero when it came from another generator and is text in `context`. Most spans are leaves
  // whose digits nobody asks for: saves 20 cache lines of code, and 32 bytes per queued span.
  private readonly upper: number
  private readonly lower: number
  /** Made on demand: most spans are exported without anybody having asked, and hold 48 bytes less. */
  private context: SpanContext | undefined
  /** Of its whole trace in this process: the order of its spans is right also when the wall clock is set meanwhile. */
  readonly anchor: Anchor
  private readonly startTicks: Ticks
  /**
   * Nanoseconds; undefined while the span is open. A whole number below 2^31, which these are up to two seconds, needs no
   * object of its own, as a second reading of the clock would: 16 bytes.
   */
  private lasted: number | undefined
  private state: number
  private extras: Extras | undefined

  /**
   * Assignments only, each once, so that V8 allocates in place, without a call or write barrier. Callers must do what
   * `beginSpan` does.
   */
  constructor(
    maker: SpanMaker,
    name: string,
    traceId: string,
    parent: SpanContext | undefined,
    attributes: Attributes,
    context: SpanContext | undefined,
    upper: number,
    lower: number,
    anchor: Anchor,
    startTicks: Ticks,
    state: number,
  ) {
    this.name = name
    this.traceId = traceId
    this.parentSpanContext = parent
    this.attributes = attributes
    this.place = -1
    this.maker = maker
    this.upper = upper
    this.lower = lower
    this.context = context
    this.anchor = anchor
    this.startTicks = startTicks
    this.lasted = undefined
    this.state = state
    this.extras = undefined
  }

  spanContext(): SpanContext {
    if (this.context !== undefined) return this.context
    const made = contextOf(this.traceId, this.spanId, this.traceFlags, undefined)
    // Not by `Reflect.set`, which does not throw but takes 0.3 µs.
    try {
      this.context = made
    } catch {
      // It is frozen: made anew each time.
    }
    return made
  }

  get spanId(): string {
    return this.context === undefined ? spanIdOf(this.upper, this.lower) : this.context.spanId
  }

  /** Writes the id as eight bytes and returns true; false if the id exists only as digits. */
  writeId(into: DataView, at: number): boolean {
    if ((this.upper | this.lower) === 0) return false
    into.setInt32(at, this.upper)
    into.setInt32(at + 4, this.lower)
    return true
  }

  get hasCheckedIds(): true {
    return true
  }

  get kind(): SpanKind {
    return this.state & KIND_BITS
  }

  set kind(kind: SpanKind) {
    putField(this, 'kind', kind)
  }

  get traceFlags(): number {
    return (this.state >> FLAGS_SHIFT) & FLAGS_BITS
  }

  get ended(): boolean {
    return (this.state & ENDED_BIT) !== 0
  }

  /** Called by its provider, after everything that may still change the span. */
  close(): void {
    this.state |= ENDED_BIT
  }

  get traceState(): TraceState | undefined {
    return this.context?.traceState
  }

  get isSampled(): boolean {
    return (this.traceFlags & TraceFlags.SAMPLED) !== 0
  }

  isRecording(): boolean {
    return !this.ended
  }

  setAttribute(key: string, value: AttributeValue | undefined): this {
    if (this.ended) return this.late('setAttribute')
    try {
      this.set(key, value)
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    return this
  }

  setAttributes(attributes: Attributes): this {
    if (this.ended) return this.late('setAttributes')
    try {
      // The characters of a string are not attributes.
      if (typeof attributes !== 'object') return this
      for (const key in attributes) if (Object.hasOwn(attributes, key)) this.set(key, attributes[key])
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    return this
  }

  /** The API's `(name, attributes, time)` and `(name, time)`. */
  addEvent(name: string, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): this {
    if (this.ended) return this.late('addEvent')
    try {
      if (isTime(attributesOrTime)) this.keepEvent(name, undefined, time ?? attributesOrTime)
      else this.keepEvent(name, attributesOrTime, time)
    } catch (error) {
      sayUnreadable('an event', error)
    }
    return this
  }

  addLink(link: Link): this {
    if (this.ended) return this.late('addLink')
    try {
      if (saysSomething(link)) this.keepLink(link)
    } catch (error) {
      sayUnreadable('a link', error)
    }
    return this
  }

  addLinks(links: Link[]): this {
    try {
      if (Array.isArray(links)) for (const link of links) this.addLink(link)
    } catch (error) {
      sayUnreadable('links', error)
    }
    return this
  }

  /** Ok is final, Error wins over Unset, and only Error has a description (OpenTelemetry trace API, set status). */
  setStatus(status: SpanStatus): this {
    if (this.ended) return this.late('setStatus')
    if (this.extras?.status.code === SpanStatusCode.OK) return this
    try {
      const { code, message } = status
      if (code === SpanStatusCode.OK) this.own().status = { code }
      else if (code === SpanStatusCode.ERROR)
        this.own().status = typeof message === 'string' ? { code, message } : { code }
    } catch (error) {
      sayUnreadable('a status', error)
    }
    return this
  }

  updateName(name: string): this {
    if (this.ended) return this.late('updateName')
    try {
      this.name = textOf(name)
    } catch (error) {
      sayFrozen(error)
    }
    return this
  }

  /**
   * Adds the event `exception` (OpenTelemetry semantic conventions, exceptions on spans); the status stays as it is. The
   * API's `(exception, time)`, and `(exception, attributes, time)`: the caller's attributes win over the exception's
   * (trace SDK, record exception).
   */
  recordException(exception: Exception, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): void {
    if (this.ended) {
      this.late('recordException')
      return
    }
    const attributes = exceptionAttributes(exception)
    try {
      if (isTime(attributesOrTime)) {
        this.keepEvent(semconv.EXCEPTION_EVENT, attributes, time ?? attributesOrTime)
        return
      }
      if (typeof attributesOrTime === 'object') assignSound(attributes, attributesOrTime)
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    this.keepEvent(semconv.EXCEPTION_EVENT, attributes, time)
  }

  /** Ends the span and hands it to the processors. Later calls are ignored, those of a processor included. */
  end(endTime?: TimeInput): void {
    if (this.ended) {
      this.late('end')
      return
    }
    if (this.lasted !== undefined) return
    try {
      this.lasted = Math.round((this.anchor.clock.now() - this.startTicks) * NS_PER_MS)
      if (endTime !== undefined) this.own().endTime = this.timeOf(endTime)
    } catch (error) {
      // Frozen, it cannot remember having ended: every call would export it again.
      sayFrozen(error)
      return
    }
    this.maker.home.ended(this)
  }

  get startTime(): HrTime {
    return this.extras?.startTime ?? toHrTime(this.startTicks, this.anchor)
  }

  set startTime(time: HrTime) {
    this.own().startTime = time
  }

  /** [0, 0] while the span is open. A span never ends before it starts. */
  get endTime(): HrTime {
    if (this.lasted === undefined) return [0, 0]
    // Ticks never run backwards: only given times can.
    if (this.extras === undefined) return hrTimeAt(this.endElapsed, this.anchor)
    const start = this.startTime
    const end = this.extras.endTime ?? hrTimeAt(this.endElapsed, this.anchor)
    // Given times need not be normalised.
    return (end[0] - start[0]) * NS_PER_SECOND + (end[1] - start[1]) < 0 ? start : end
  }

  set endTime(time: HrTime) {
    this.own().endTime = time
  }

  private get endElapsed(): Elapsed {
    return elapsedAt(this.startTicks) + (this.lasted ?? 0)
  }

  /** Both times as an exporter sends them. */
  writeTimes(into: DataView, startAt: number, endAt: number): void {
    if (this.extras === undefined) {
      const start = elapsedAt(this.startTicks)
      writeElapsed(start, this.anchor, into, startAt)
      writeElapsed(start + (this.lasted ?? 0), this.anchor, into, endAt)
    } else {
      writeHrTime(this.startTime, into, startAt)
      writeHrTime(this.endTime, into, endAt)
    }
  }

  get duration(): HrTime {
    return this.lasted === undefined ? [0, 0] : between(this.startTime, this.endTime)
  }

  /** Whether it has nothing beyond name, kind, context, attributes and times. */
  get isPlain(): boolean {
    return this.extras === undefined
  }

  // Processors that redact may write to what they read: it belongs to this span.
  get status(): SpanStatus {
    return this.own().status
  }

  set status(status: SpanStatus) {
    this.own().status = status
  }

  get events(): TimedEvent[] {
    return this.own().events
  }

  set events(events: TimedEvent[]) {
    this.own().events = events
  }

  get links(): RecordedLink[] {
    return this.own().links
  }

  set links(links: RecordedLink[]) {
    this.own().links = links
  }

  get droppedAttributesCount(): number {
    return this.extras?.droppedAttributes ?? 0
  }

  get droppedEventsCount(): number {
    return this.extras?.droppedEvents ?? 0
  }

  get droppedLinksCount(): number {
    return this.extras?.droppedLinks ?? 0
  }

  get resource(): Resource {
    return this.maker.home.resource
  }

  set resource(resource: Resource) {
    putField(this, 'resource', resource)
  }

  get instrumentationScope(): InstrumentationScope {
    return this.maker.scope
  }

  set instrumentationScope(scope: InstrumentationScope) {
    putField(this, 'instrumentationScope', scope)
  }

  // For exporters and processors that know version 1 of the official SDK. Those that make a root of a child write to the name
  // of both versions.

  get parentSpanId(): string | undefined {
    return this.parentSpanContext?.spanId
  }

  set parentSpanId(id: string | undefined) {
    putField(this, 'parentSpanId', id)
  }

  get instrumentationLibrary(): InstrumentationScope {
    return this.maker.scope
  }

  set instrumentationLibrary(library: InstrumentationScope) {
    putField(this, 'instrumentationLibrary', library)
  }

  private own(): Extras {
    if (this.extras !== undefined) return this.extras
    const made: Extras = {
      status: { code: SpanStatusCode.UNSET },
      events: [],
      links: [],
      droppedAttributes: 0,
      droppedEvents: 0,
      droppedLinks: 0,
      startTime: undefined,
      endTime: undefined,
    }
    // A frozen span cannot keep them: what is written to them is lost.
    if (!Reflect.set(this, 'extras', made))
      sayFrozen(new TypeError('what it does not have yet cannot be added'))
    return made
  }

  private late(method: string): this {
    reportOnce(
      `ended:${method}`,
      'warn',
      `${method}() was called on the ended span "${shownName(this.name)}"`,
    )
    return this
  }

  /** Readings of the monotonic clock are on this span's own anchor. */
  private timeOf(given: TimeInput | undefined): HrTime | undefined {
    try {
      return readTime(given, this.anchor)
    } catch (error) {
      sayUnreadable('a time', error)
      return undefined
    }
  }

  /**
   * Adds attributes whose names are written out in `write`, a function that is made once: V8 knows where they go, where
   * `setAttribute` must look up each: saves 0.3 µs. Returns false when the caller must use `setAttribute` after all: the span
   * has ended or is near a limit, somebody has replaced its `setAttribute`, or a value is not a primitive.
   */
  putNamed(write: NamedWriter, first: AttributeValue, second?: AttributeValue): boolean {
    if (this.ended || this.setAttribute !== setAttribute) return false
    if (!isPrimitive(first) || (second !== undefined && !isPrimitive(second))) return false
    const { attributeCountLimit, attributeValueLengthLimit } = this.maker.home.limits
    const most = (this.state >> COUNT_SHIFT) + 2
    if (most > Math.min(attributeCountLimit, MOST_ATTRIBUTES) || attributeValueLengthLimit !== Infinity)
      return false
    this.state += 2 << COUNT_SHIFT
    try {
      write(this.attributes, first, second)
    } catch (error) {
      // A processor may have frozen them.
      sayUnreadable('attributes', error)
    }
    return true
  }

  private set(key: string, value: AttributeValue | undefined): void {
    const { attributeCountLimit, attributeValueLengthLimit } = this.maker.home.limits
    const own = isName(key) ? kept(value, attributeValueLengthLimit) : undefined
    if (own === undefined) {
      sayNoAttribute(key, value)
      return
    }
    // An attribute's value is never undefined, and reading it costs a third of `hasOwn`.
    if (this.attributes[key] === undefined || !Object.hasOwn(this.attributes, key)) {
      const limit = Math.min(attributeCountLimit, MOST_ATTRIBUTES)
      // A span that has passed the limit once stays over it and is not counted again.
      if (
        this.state >> COUNT_SHIFT >= limit &&
        (this.droppedAttributesCount > 0 || this.recount() >= limit)
      ) {
        if (this.own().droppedAttributes === 0) sayDropped('attributes', attributeCountLimit)
        this.own().droppedAttributes += 1
        return
      }
      this.state += 1 << COUNT_SHIFT
    }
    putAttribute(this.attributes, key, own)
  }

  /** For the code that begins it: replaces its start time. */
  beganAt(time: TimeInput): void {
    this.own().startTime = this.timeOf(time)
  }

  /** For the code that begins it: applies the limits to attributes that may exceed them. */
  limit(): void {
    const { attributes } = this
    this.attributes = {}
    this.state &= (1 << COUNT_SHIFT) - 1
    this.setAttributes(attributes)
  }

  /** The count is an upper bound: count what is really there. */
  private recount(): number {
    const count = countKeys(this.attributes)
    this.state = (this.state & ((1 << COUNT_SHIFT) - 1)) | (count << COUNT_SHIFT)
    return count
  }

  private keepEvent(name: string, given: Attributes | undefined, time: TimeInput | undefined): void {
    const { eventCountLimit, attributePerEventCountLimit, attributeValueLengthLimit } = this.maker.home.limits
    const own = this.own()
    if (own.events.length >= eventCountLimit) {
      if (own.droppedEvents === 0) sayDropped('events', eventCountLimit)
      own.droppedEvents += 1
      return
    }
    const event: TimedEvent = {
      time: this.timeOf(time) ?? toHrTime(this.anchor.clock.now(), this.anchor),
      name: textOf(name),
    }
    if (typeof given === 'object' && given !== null) {
      const within = limitedAttributes(given, attributePerEventCountLimit, attributeValueLengthLimit)
      event.attributes = within.attributes
      if (within.dropped > 0) event.droppedAttributesCount = within.dropped
    }
    own.events.push(event)
  }

  private keepLink({ context, attributes }: Link): void {
    const { linkCountLimit, attributePerLinkCountLimit, attributeValueLengthLimit } = this.maker.home.limits
    const own = this.own()
    if (own.links.length >= linkCountLimit) {
      if (own.droppedLinks === 0) sayDropped('links', linkCountLimit)
      own.droppedLinks += 1
      return
    }
    const recorded: RecordedLink = { context }
    if (typeof attributes === 'object' && attributes !== null) {
      const within = limitedAttributes(attributes, attributePerLinkCountLimit, attributeValueLengthLimit)
      recorded.attributes = within.attributes
      if (within.dropped > 0) recorded.droppedAttributesCount = within.dropped
    }
    own.links.push(recorded)
  }
}

/** Shadows a getter with a value: nearly nobody writes these, and as a field each would cost all spans 8 bytes. */
function putField(
  span: Span,
  name: 'kind' | 'resource' | 'instrumentationScope' | 'parentSpanId' | 'instrumentationLibrary',
  value: unknown,
): void {
  Object.defineProperty(span, name, { value, writable: true, enumerable: true, configurable: true })
}

/** Whether it is one of ours, or a view of one. Not by `instanceof`: see `isSlotted` in context.ts. */
export function isOurs(span: object | undefined): span is Span {
  return span?.constructor === Span
}

/** The clock of a span's trace, as `Anchor` has it. */
export function clockOf(span: ApiSpan): Clock {
  return isOurs(span) ? span.anchor.clock : currentClock()
}

// The engine's own: an app may replace it later, on the class or on a span.
const { setAttribute } = Span.prototype

/** `putNamed` of a span of ours; false for any other. */
export function putNamed(
  span: ApiSpan,
  write: NamedWriter,
  first: AttributeValue,
  second?: AttributeValue,
): boolean {
  return isOurs(span) && span.putNamed(write, first, second)
}

/**
 * Begins a span. `attributes`, `count` at most, become its own: unless they pass a limit they are neither copied nor
 * checked. Without a `spanId` it makes a random one.
 */
export function beginSpan(
  maker: SpanMaker,
  name: string,
  kind: SpanKind,
  traceId: string,
  spanId: string | undefined,
  traceFlags: number,
  traceState: TraceState | undefined,
  parent: SpanContext | undefined,
  anchor: Anchor | undefined,
  attributes: Attributes,
  count: number,
): Span {
  let upper = 0
  let lower = 0
  if (spanId === undefined) {
    const at = takeSpanId()
    upper = wordAt(at)
    lower = lowerAt(at)
  }
  const hasContext = spanId !== undefined || traceState !== undefined
  const clock = anchor === undefined ? currentClock() : anchor.clock
  const ticks = clock.now()
  const span = new Span(
    maker,
    textOf(name),
    traceId,
    parent,
    attributes,
    hasContext ? contextOf(traceId, spanId ?? spanIdOf(upper, lower), traceFlags, traceState) : undefined,
    upper,
    lower,
    anchor ?? checkedAnchor(clock, ticks),
    ticks,
    (kind & KIND_BITS) | ((traceFlags & FLAGS_BITS) << FLAGS_SHIFT) | (count << COUNT_SHIFT),
  )
  const { attributeCountLimit, attributeValueLengthLimit } = maker.home.limits
  if (count > Math.min(attributeCountLimit, MOST_ATTRIBUTES) || attributeValueLengthLimit !== Infinity)
    span.limit()
  return span
}

export function isSampled(span: Pick<ReadableSpan, 'spanContext'>): boolean {
  if (isOurs(span)) return span.isSampled
  return (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0
}

/** A processor, or the app, has frozen it. */
export function sayFrozen(error: unknown): void {
  reportOnce('frozen span', 'error', 'a span was frozen, and may be incomplete or lost', error)
}

/** Said once: a span that is over its limits is seldom the only one (trace SDK, span limits). */
function sayDropped(what: string, limit: number): void {
  reportOnce(
    `limit:${what}`,
    'warn',
    `a span has more than ${limit} ${what}; further ones are dropped and counted`,
  )
}

/** A link with zero ids still counts if it has attributes or a tracestate (trace API, link). */
function saysSomething(link: Link | undefined): boolean {
  const context = link?.context
  if (typeof context?.traceId !== 'string' || typeof context.spanId !== 'string') return false
  if (context.traceId !== INVALID_TRACEID && context.spanId !== INVALID_SPANID) return true
  const attributes = Object.entries(link?.attributes ?? {})
  return (
    attributes.some(([key, value]) => isAttribute(key, value)) || Boolean(context.traceState?.serialize())
  )
}

export function contextOf(
  traceId: string,
  spanId: string,
  traceFlags: number,
  traceState: TraceState | undefined,
): SpanContext {
  return traceState === undefined
    ? { traceId, spanId, traceFlags }
    : { traceId, spanId, traceFlags, traceState }
}

export function countKeys(attributes: Attributes): number {
  let count = 0
  for (const _ in attributes) count += 1
  return count
}

/** Assigns the caller's valid attributes; an invalid one replaces nothing. */
function assignSound(into: Attributes, given: Attributes): void {
  for (const [key, value] of Object.entries(given)) {
    if (isAttribute(key, value)) putAttribute(into, key, value)
    else sayNoAttribute(key, value)
  }
}

function isTime(value: Attributes | TimeInput | undefined): value is TimeInput {
  return typeof value === 'number' || isDate(value) || Array.isArray(value)
}
