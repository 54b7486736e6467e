import {
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

/** One timed operation: the API's Span for those who make it, the exporters' ReadableSpan for those who read it. */
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
    this.name = name
    this.kind = kind
    this.parentSpanContext = parent
    this.instrumentationScope = scope
    this.attributes = attributes
    this.#home = home
    this.#context = context
    this.#startTicks = now()
    this.#anchor =
      parent === undefined || parent.isRemote === true ? checkedAnchor(this.#startTicks) : latestAnchor()
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
    if (this.#isOpen('setAttribute')) this.#setAttribute(key, value)
    return this
  }

  setAttributes(attributes: Attributes): this {
    if (this.#isOpen('setAttributes')) {
      for (const key in attributes) this.#setAttribute(key, attributes[key])
    }
    return this
  }

  addEvent(name: string, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): this {
    if (!this.#isOpen('addEvent')) return this
    const { eventCountLimit, attributePerEventCountLimit } = this.#home.limits
    if (this.events.length >= eventCountLimit) {
      this.droppedEventsCount += 1
      return this
    }
    const given = isTime(attributesOrTime)
      ? { time: attributesOrTime }
      : { attributes: attributesOrTime, time }
    const event: TimedEvent = { time: readTime(given.time) ?? toHrTime(now(), this.#anchor), name }
    if (given.attributes !== undefined) {
      const { attributes, dropped } = this.#limited(given.attributes, attributePerEventCountLimit)
      event.attributes = attributes
      if (dropped > 0) event.droppedAttributesCount = dropped
    }
    if (this.events === NO_EVENTS) this.events = []
    this.events.push(event)
    return this
  }

  addLink(link: Link): this {
    if (!this.#isOpen('addLink') || link?.context === undefined) return this
    const { linkCountLimit, attributePerLinkCountLimit } = this.#home.limits
    if (this.links.length >= linkCountLimit) {
      this.droppedLinksCount += 1
      return this
    }
    const recorded: RecordedLink = { context: link.context }
    if (link.attributes !== undefined) {
      const { attributes, dropped } = this.#limited(link.attributes, attributePerLinkCountLimit)
      recorded.attributes = attributes
      if (dropped > 0) recorded.droppedAttributesCount = dropped
    }
    if (this.links === NO_LINKS) this.links = []
    this.links.push(recorded)
    return this
  }

  addLinks(links: Link[]): this {
    for (const link of links) this.addLink(link)
    return this
  }

  /** Ok is final, Error wins over Unset, and only Error has a description (OpenTelemetry trace API, set status). */
  setStatus(status: SpanStatus): this {
    if (!this.#isOpen('setStatus') || typeof status?.code !== 'number') return this
    if (this.status.code === SpanStatusCode.OK || status.code === SpanStatusCode.UNSET) return this
    const hasMessage = status.code === SpanStatusCode.ERROR && typeof status.message === 'string'
    this.status = hasMessage
      ? { code: status.code, message: status.message as string }
      : { code: status.code }
    return this
  }

  updateName(name: string): this {
    if (this.#isOpen('updateName')) this.name = name
    return this
  }

  /** Adds the event `exception` (OpenTelemetry semantic conventions, exceptions on spans). The status stays as it is. */
  recordException(exception: Exception, time?: TimeInput): void {
    this.addEvent(semconv.EXCEPTION_EVENT, exceptionAttributes(exception), time)
  }

  /** Ends the span and hands it to the processors. Later calls are ignored, those of a processor included. */
  end(endTime?: TimeInput): void {
    if (!this.#isOpen('end') || this.#endTicks !== 0) return
    this.#endTicks = now()
    this.#endGiven = endTime === undefined ? undefined : readTime(endTime)
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

  #isOpen(method: string): boolean {
    if (this.ended)
      reportOnce(`ended:${method}`, 'warn', `${method}() was called on the ended span "${this.name}"`)
    return !this.ended
  }

  #setAttribute(key: string, value: AttributeValue | undefined): void {
    if (value === undefined || value === null) return
    if (!isKey(key) || !isAttributeValue(value)) {
      reportOnce(
        `attribute:${key}`,
        'warn',
        `an attribute was not recorded: expected a string, number, boolean or an array of one of them, received ${typeof value} for "${key}"; for example span.setAttribute('order.id', 'A-7')`,
      )
      return
    }
    if (!Object.hasOwn(this.attributes, key)) {
      if (this.#attributeCount >= this.#home.limits.attributeCountLimit) {
        this.droppedAttributesCount += 1
        return
      }
      this.#attributeCount += 1
    }
    this.attributes[key] = truncate(value, this.#home.limits.attributeValueLengthLimit)
  }

  #limited(given: Attributes, limit: number): { attributes: Attributes; dropped: number } {
    const attributes: Attributes = {}
    let kept = 0
    let dropped = 0
    for (const key in given) {
      const value = given[key]
      if (!isKey(key) || value === undefined || value === null || !isAttributeValue(value)) continue
      if (kept >= limit) {
        dropped += 1
        continue
      }
      kept += 1
      attributes[key] = truncate(value, this.#home.limits.attributeValueLengthLimit)
    }
    return { attributes, dropped }
  }
}

export function isSampled(span: Pick<ReadableSpan, 'spanContext'>): boolean {
  return (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0
}

function countKeys(attributes: Attributes): number {
  let count = 0
  for (const _ in attributes) count += 1
  return count
}

function isTime(value: Attributes | TimeInput | undefined): value is TimeInput {
  return typeof value === 'number' || value instanceof Date || Array.isArray(value)
}

// An assignment to `__proto__` sets no property.
function isKey(key: string): boolean {
  return key !== '' && key !== '__proto__'
}

function isAttributeValue(value: unknown): value is AttributeValue {
  if (Array.isArray(value)) {
    const type = typeof value.find((element) => element !== null && element !== undefined)
    return value.every((element) => element === null || element === undefined || isPrimitive(element, type))
  }
  return isPrimitive(value, typeof value)
}

function isPrimitive(value: unknown, type: string): boolean {
  return typeof value === type && (type === 'string' || type === 'number' || type === 'boolean')
}

// Arrays are copied: the caller may go on to change its own.
function truncate(value: AttributeValue, limit: number): AttributeValue {
  if (typeof value === 'string') return value.length > limit ? value.slice(0, limit) : value
  if (!Array.isArray(value)) return value
  return value.map((element) =>
    typeof element === 'string' ? element.slice(0, limit) : element,
  ) as AttributeValue
}

// Anything can be thrown, and what is caught is passed on as it is: null, a number, an object of no class.
function exceptionAttributes(exception: unknown): Attributes {
  if (typeof exception !== 'object' || exception === null)
    return { [semconv.EXCEPTION_MESSAGE]: String(exception) }
  const { message, stack } = exception as { message?: unknown; stack?: unknown }
  const attributes: Attributes = {}
  const type = errorType(exception)
  if (type !== undefined) attributes[semconv.EXCEPTION_TYPE] = type
  if (typeof message === 'string') attributes[semconv.EXCEPTION_MESSAGE] = message
  if (typeof stack === 'string') attributes[semconv.EXCEPTION_STACKTRACE] = stack
  return attributes
}

/** The message of an error, or the thing itself as text where it is none; never throws, whatever was thrown. */
export function messageOf(error: unknown): string {
  try {
    if (!(error instanceof Error)) return String(error)
    // An error that stands for several (one for each address that was tried) has a code and no message.
    return String(error.message) || (errorType(error) ?? '')
  } catch {
    return 'an error without text'
  }
}

/** Classes that say nothing of what went wrong; the last is what a host with several addresses fails with. */
const PLAIN = new Set(['Error', 'Object', 'AggregateError'])

/**
 * What kind of error this is, in few different words: the code of a system error (ECONNREFUSED) or of a plain Error,
 * else the name of its class; undefined for what is no error.
 */
export function errorType(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined
  const { code, name, syscall } = error as { code?: unknown; name?: unknown; syscall?: unknown }
  const className: unknown = error.constructor?.name
  const isNamed = typeof name === 'string' && name !== '' && name !== 'Error'
  const ownName = isNamed ? name : typeof className === 'string' && className !== '' ? className : undefined
  const isPlain = ownName === undefined || PLAIN.has(ownName)
  if (typeof code === 'string' && code !== '' && (isPlain || syscall !== undefined)) return code
  return ownName
}
