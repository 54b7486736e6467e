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
} from '@opentelemetry/api'
import { isAttribute, limited, limitedAttributes, sayUnreadable, textOf } from './attribute.ts'
import {
  between,
  checkedAnchor,
  latestAnchor,
  now,
  readTime,
  toHrTime,
  type Anchor,
  type Ticks,
} from './clock.ts'
import { exceptionAttributes } from './exception.ts'
import { reportOnce } from './report.ts'
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

/** A link on a span, with the count of attributes that its limit cost it. */
export interface RecordedLink extends Link {
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

/** Where recorded spans go; the shape of the official SDK's SpanProcessor. Exported spans are ReadableSpans. */
export interface SpanProcessor {
  // Not our class: processors that were written for the official SDK's fit only what both of them are.
  onStart(span: ApiSpan & ReadableSpan, parentContext: Context): void
  onEnding?(span: ApiSpan & ReadableSpan): void
  onEnd(span: ReadableSpan): void
  forceFlush(): Promise<void>
  shutdown(): Promise<void>
}

/** How much a span may hold (OpenTelemetry trace SDK, span limits). More is dropped and counted. */
export interface SpanLimits {
  readonly attributeCountLimit: number
  readonly attributeValueLengthLimit: number
  readonly eventCountLimit: number
  readonly linkCountLimit: number
  readonly attributePerEventCountLimit: number
  readonly attributePerLinkCountLimit: number
}

/** What a span needs of the provider that made it. */
export interface SpanHome {
  readonly resource: Resource
  readonly limits: SpanLimits
  ended(span: Span): void
}

const UNSET: SpanStatus = { code: SpanStatusCode.UNSET }
// Most spans have neither events nor links: they share these two, and get arrays of their own when they need them.
const NO_EVENTS: TimedEvent[] = []
const NO_LINKS: RecordedLink[] = []

/**
 * One timed operation: the API's Span for those who make it, the exporters' ReadableSpan for those who read it. Nothing
 * here throws, whatever it is given.
 */
export class Span implements ApiSpan, ReadableSpan {
  name: string
  readonly kind: SpanKind
  readonly parentSpanContext: SpanContext | undefined
  readonly instrumentationScope: InstrumentationScope
  attributes: Attributes
  status: SpanStatus = UNSET
  events: TimedEvent[] = NO_EVENTS
  links: RecordedLink[] = NO_LINKS
  ended = false
  droppedAttributesCount = 0
  droppedEventsCount = 0
  droppedLinksCount = 0
  /** The provider's list of open spans runs through these two. */
  previousOpen: Span | undefined = undefined
  nextOpen: Span | undefined = undefined
  readonly #home: SpanHome
  readonly #context: SpanContext
  readonly #anchor: Anchor
  readonly #startTicks: Ticks
  readonly #startGiven: HrTime | undefined
  /** Zero while the span is open: no span ends at the very start of its process. */
  #endTicks: Ticks = 0
  #endGiven: HrTime | undefined = undefined
  #attributeCount: number

  /** `attributes` become the span's own: unless they pass a limit they are neither copied nor checked. */
  constructor(
    home: SpanHome,
    scope: InstrumentationScope,
    name: string,
    kind: SpanKind,
    context: SpanContext,
    parent: SpanContext | undefined,
    startTime: TimeInput | undefined,
    attributes: Attributes,
  ) {
    this.name = textOf(name)
    this.kind = kind
    this.parentSpanContext = parent
    this.instrumentationScope = scope
    this.attributes = attributes
    this.#home = home
    this.#context = context
    const ticks = now()
    this.#startTicks = ticks
    this.#anchor = parent === undefined || parent.isRemote === true ? checkedAnchor(ticks) : latestAnchor()
    this.#startGiven = startTime === undefined ? undefined : readTime(startTime)
    this.#attributeCount = countKeys(attributes)
    const { attributeCountLimit, attributeValueLengthLimit } = home.limits
    if (this.#attributeCount > attributeCountLimit || attributeValueLengthLimit !== Infinity) {
      this.attributes = {}
      this.#attributeCount = 0
      this.setAttributes(attributes)
    }
  }

  spanContext(): SpanContext {
    return this.#context
  }

  isRecording(): boolean {
    return !this.ended
  }

  setAttribute(key: string, value: AttributeValue | undefined): this {
    if (this.ended) return this.#late('setAttribute')
    try {
      this.#set(key, value)
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    return this
  }

  setAttributes(attributes: Attributes): this {
    if (this.ended) return this.#late('setAttributes')
    try {
      for (const key in attributes) if (Object.hasOwn(attributes, key)) this.#set(key, attributes[key])
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    return this
  }

  /** The API's `(name, attributes, time)` and `(name, time)`. */
  addEvent(name: string, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): this {
    if (this.ended) return this.#late('addEvent')
    const { eventCountLimit, attributePerEventCountLimit, attributeValueLengthLimit } = this.#home.limits
    if (this.events.length >= eventCountLimit) {
      if (this.droppedEventsCount === 0) sayDropped('events', eventCountLimit)
      this.droppedEventsCount += 1
      return this
    }
    const given = isTime(attributesOrTime)
      ? { time: time ?? attributesOrTime }
      : { attributes: attributesOrTime, time }
    const event: TimedEvent = {
      time: readTime(given.time) ?? toHrTime(now(), this.#anchor),
      name: textOf(name),
    }
    if (typeof given.attributes === 'object' && given.attributes !== null) {
      const kept = limitedAttributes(given.attributes, attributePerEventCountLimit, attributeValueLengthLimit)
      event.attributes = kept.attributes
      if (kept.dropped > 0) event.droppedAttributesCount = kept.dropped
    }
    if (this.events === NO_EVENTS) this.events = []
    this.events.push(event)
    return this
  }

  addLink(link: Link): this {
    if (this.ended) return this.#late('addLink')
    if (!saysSomething(link)) return this
    const { linkCountLimit, attributePerLinkCountLimit, attributeValueLengthLimit } = this.#home.limits
    if (this.links.length >= linkCountLimit) {
      if (this.droppedLinksCount === 0) sayDropped('links', linkCountLimit)
      this.droppedLinksCount += 1
      return this
    }
    const recorded: RecordedLink = { context: link.context }
    if (typeof link.attributes === 'object' && link.attributes !== null) {
      const kept = limitedAttributes(link.attributes, attributePerLinkCountLimit, attributeValueLengthLimit)
      recorded.attributes = kept.attributes
      if (kept.dropped > 0) recorded.droppedAttributesCount = kept.dropped
    }
    if (this.links === NO_LINKS) this.links = []
    this.links.push(recorded)
    return this
  }

  addLinks(links: Link[]): this {
    if (Array.isArray(links)) for (const link of links) this.addLink(link)
    return this
  }

  /** Ok is final, Error wins over Unset, and only Error has a description (OpenTelemetry trace API, set status). */
  setStatus(status: SpanStatus): this {
    if (this.ended) return this.#late('setStatus')
    if (this.status.code === SpanStatusCode.OK) return this
    if (status?.code !== SpanStatusCode.OK && status?.code !== SpanStatusCode.ERROR) return this
    const hasMessage = status.code === SpanStatusCode.ERROR && typeof status.message === 'string'
    this.status = hasMessage
      ? { code: status.code, message: status.message as string }
      : { code: status.code }
    return this
  }

  updateName(name: string): this {
    if (this.ended) return this.#late('updateName')
    this.name = textOf(name)
    return this
  }

  /**
   * Adds the event `exception` (OpenTelemetry semantic conventions, exceptions on spans); the status stays as it is. The
   * API's `(exception, time)`, and `(exception, attributes, time)`: the caller's attributes win over the exception's
   * (trace SDK, record exception).
   */
  recordException(exception: Exception, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): void {
    if (this.ended) {
      this.#late('recordException')
      return
    }
    const attributes = exceptionAttributes(exception)
    if (isTime(attributesOrTime)) {
      this.addEvent(semconv.EXCEPTION_EVENT, attributes, time ?? attributesOrTime)
      return
    }
    try {
      Object.assign(attributes, attributesOrTime)
    } catch (error) {
      sayUnreadable('attributes', error)
    }
    this.addEvent(semconv.EXCEPTION_EVENT, attributes, time)
  }

  /** Ends the span and hands it to the processors. Later calls are ignored, those of a processor included. */
  end(endTime?: TimeInput): void {
    if (this.ended) {
      this.#late('end')
      return
    }
    if (this.#endTicks !== 0) return
    this.#endTicks = now()
    if (endTime !== undefined) this.#endGiven = readTime(endTime)
    this.#home.ended(this)
  }

  get startTime(): HrTime {
    return this.#startGiven ?? toHrTime(this.#startTicks, this.#anchor)
  }

  /** [0, 0] while the span is open. A span never ends before it starts. */
  get endTime(): HrTime {
    if (this.#endTicks === 0) return [0, 0]
    const start = this.startTime
    const end = this.#endGiven ?? toHrTime(this.#endTicks, this.#anchor)
    return end[0] < start[0] || (end[0] === start[0] && end[1] < start[1]) ? start : end
  }

  get duration(): HrTime {
    return this.#endTicks === 0 ? [0, 0] : between(this.startTime, this.endTime)
  }

  get resource(): Resource {
    return this.#home.resource
  }

  /** For exporters written against version 1 of the official SDK. */
  get parentSpanId(): string | undefined {
    return this.parentSpanContext?.spanId
  }

  /** For exporters written against version 1 of the official SDK. */
  get instrumentationLibrary(): InstrumentationScope {
    return this.instrumentationScope
  }

  #late(method: string): this {
    reportOnce(`ended:${method}`, 'warn', `${method}() was called on the ended span "${this.name}"`)
    return this
  }

  #set(key: string, value: AttributeValue | undefined): void {
    if (value === undefined || value === null) return
    if (!isAttribute(key, value)) {
      reportOnce(
        `attribute:${String(key)}`,
        'warn',
        `an attribute was not recorded: expected a string, number, boolean or an array of one of them, received ${typeof value} for "${String(key)}"; for example span.setAttribute('order.id', 'A-7')`,
      )
      return
    }
    const { attributeCountLimit, attributeValueLengthLimit } = this.#home.limits
    if (!Object.hasOwn(this.attributes, key)) {
      if (this.#attributeCount >= attributeCountLimit) {
        if (this.droppedAttributesCount === 0) sayDropped('attributes', attributeCountLimit)
        this.droppedAttributesCount += 1
        return
      }
      this.#attributeCount += 1
    }
    this.attributes[key] = limited(value, attributeValueLengthLimit)
  }
}

export function isSampled(span: Pick<ReadableSpan, 'spanContext'>): boolean {
  return (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0
}

/** Said once: a span that is over its limits is seldom the only one (trace SDK, span limits). */
function sayDropped(what: string, limit: number): void {
  reportOnce(
    `limit:${what}`,
    'warn',
    `a span has more than ${limit} ${what}; further ones are dropped and counted`,
  )
}

/** A link to nothing is one if it has attributes or a tracestate (trace API, link). */
function saysSomething(link: Link | undefined): boolean {
  const context = link?.context
  if (typeof context?.traceId !== 'string' || typeof context.spanId !== 'string') return false
  if (context.traceId !== INVALID_TRACEID && context.spanId !== INVALID_SPANID) return true
  return Object.keys(link?.attributes ?? {}).length > 0 || Boolean(context.traceState?.serialize())
}

function countKeys(attributes: Attributes): number {
  let count = 0
  for (const _ in attributes) count += 1
  return count
}

function isTime(value: Attributes | TimeInput | undefined): value is TimeInput {
  return typeof value === 'number' || value instanceof Date || Array.isArray(value)
}
