import {
  context,
  INVALID_SPAN_CONTEXT,
  SamplingDecision,
  SpanKind,
  trace,
  TraceFlags,
  type Attributes,
  type Context,
  type Link,
  type Span as ApiSpan,
  type SpanContext,
  type SpanOptions,
  type Tracer as ApiTracer,
  type TracerProvider as ApiTracerProvider,
} from '@opentelemetry/api'
import { plainCopy, soundCopy, textOf } from './attribute.ts'
import { isSuppressed, spanIn, withSpan } from './context.ts'
import { NOBODY, registeredProvider, unstarted } from './current.ts'
import { isPromise } from './exception.ts'
import {
  guardedIds,
  isValid,
  randomIds,
  RANDOM_FLAG,
  takeTraceId,
  traceIdOf,
  validContextOf,
  wordAt,
  type Checked,
  type IdGenerator,
} from './ids.ts'
import { reportOnce, shownName } from './report.ts'
import type { Resource } from './resource.ts'
import {
  decide,
  followsParents,
  isDroppedWith,
  isKeptWith,
  looksAtAttributes,
  rootDecisionOf,
  type RootDecision,
  type Sampler,
} from './sampling.ts'
import * as semconv from './semconv.ts'
import {
  beginSpan,
  contextOf,
  countKeys,
  ignoreStart,
  isOurs,
  sayFrozen,
  type Span,
  type InstrumentationScope,
  type SpanHome,
  type SpanLimits,
  type SpanMaker,
  type SpanProcessor,
} from './span.ts'

/**
 * How many open spans are remembered, to be ended at shutdown. Spans beyond it work like any other, but are not exported unless
 * somebody ends them.
 */
const MOST_OPEN = 20_000

/** How many tracers are remembered: names made from data, of a tenant or a job, would fill the memory of the process. */
const MOST_TRACERS = 1000

/** Up to 1,000 gaps (8 KB) are tolerated, above that up to half the list. */
const MOST_GAPS = 1000

/** The bits of a trace id's third word that count as random. */
const LOWER_24 = 0xffffff

const NO_LINKS: Link[] = []
const NO_ATTRIBUTES: Attributes = {}

/**
 * A span's options whose attributes are built only when somebody asks for them, so that an unsampled span costs none.
 * The engine takes the object as it is, so `build` must return a fresh one.
 */
export abstract class DeferredOptions implements SpanOptions {
  abstract readonly kind: SpanKind
  readonly links: Link[]
  private built: Attributes | undefined = undefined
  /** An upper bound of the attributes that `build` returns: declaring it is cheaper than counting them. */
  mostAttributes = 32

  constructor(links: Link[] = NO_LINKS) {
    this.links = links
  }

  abstract build(): Attributes

  /** The span's name, asked only for one that may be kept. */
  abstract name(): string

  get attributes(): Attributes {
    return (this.built ??= this.build())
  }
}

export interface ProviderConfig {
  resource: Resource
  limits: SpanLimits
  sampler: Sampler
  idGenerator: IdGenerator
  /** Whether new traces say that their ids are random (W3C Trace Context Level 2). */
  flagsRandom: boolean
  /** Whether those that go on say nothing of it either. */
  hidesRandom?: boolean
  processors: readonly SpanProcessor[]
}

/** Makes tracers and spans, and hands them to the processors. */
export class TracerProvider implements ApiTracerProvider, SpanHome {
  readonly resource: Resource
  readonly limits: SpanLimits
  readonly sampler: Sampler
  readonly idGenerator: IdGenerator
  readonly flagsRandom: boolean
  /** The flags that a span takes over from its parent. */
  readonly inheritedFlags: number
  /** Whether spans need not ask the generator for an id. */
  readonly hasRandomIds: boolean
  /** Whether the sampler follows a parent's decision. */
  readonly followsParents: boolean
  /** What decides about new traces with random ids, where it follows parents and goes by ids alone. */
  readonly decideRoot: RootDecision | undefined
  readonly #processors: readonly SpanProcessor[]
  /** The processors that want to know of a span that starts, or is about to end. */
  readonly #starting: readonly SpanProcessor[]
  readonly #ending: readonly SpanProcessor[]
  readonly #tracers = new Map<string, Tracer>()
  /** How many spans have ended; whoever flushes can tell whether there is anything new. */
  endedCount = 0
  /**
   * In start order; an ended span leaves a gap, whose index is the span's `place`. Filling it with the last span would touch
   * one that is not in the cache: 0.3 µs per span.
   */
  readonly #open: (Span | undefined)[] = []
  /** Index of the next free slot. The array is never shortened, since it would only grow again. */
  #openEnd = 0
  /** Gaps below `#openEnd`. */
  #gaps = 0
  #stopping: Promise<void> | undefined

  constructor(config: ProviderConfig) {
    this.resource = config.resource
    this.limits = config.limits
    this.sampler = config.sampler
    this.idGenerator = guardedIds(config.idGenerator)
    this.flagsRandom = config.flagsRandom
    this.inheritedFlags = TraceFlags.SAMPLED | (config.hidesRandom === true ? TraceFlags.NONE : RANDOM_FLAG)
    this.hasRandomIds = config.idGenerator === randomIds
    this.followsParents = followsParents(config.sampler)
    this.decideRoot = this.hasRandomIds && this.followsParents ? rootDecisionOf(config.sampler) : undefined
    // A copy: the app may change its list later.
    this.#processors = [...config.processors]
    this.#starting = this.#processors.filter(({ onStart }) => onStart !== ignoreStart)
    this.#ending = this.#processors.filter(({ onEnding }) => onEnding !== undefined)
  }

  getTracer(given: string, version?: string, options?: { schemaUrl?: string }): Tracer {
    // JavaScript callers may pass anything, and the encoder would lose all spans of a scope whose name is not a string.
    const scope = {
      name: textOf(given ?? ''),
      version: textIn(version),
      schemaUrl: textIn(schemaUrlIn(options)),
    }
    // Names hold no NUL, so two scopes never share a key.
    const key = [scope.name, scope.version, scope.schemaUrl].join('\0')
    let tracer = this.#tracers.get(key)
    if (tracer === undefined) {
      tracer = new Tracer(this, scope)
      // Cleared, not closed: whoever has a tracer keeps it.
      if (this.#tracers.size >= MOST_TRACERS) this.#tracers.clear()
      this.#tracers.set(key, tracer)
    }
    return tracer
  }

  get isStopped(): boolean {
    return this.#stopping !== undefined
  }

  started(span: Span, parent: Context): void {
    if (this.#openEnd - this.#gaps < MOST_OPEN) {
      span.place = this.#openEnd
      this.#open[this.#openEnd++] = span
    }
    if (this.#starting.length > 0) this.#tellStarted(span, parent)
  }

  #tellStarted(span: Span, parent: Context): void {
    for (const processor of this.#starting) {
      try {
        handleRejection('onStart', processor.onStart(span, parent))
      } catch (error) {
        failed('onStart', error)
      }
    }
  }

  ended(span: Span): void {
    this.endedCount += 1
    this.#forget(span)
    if (this.#ending.length > 0) this.#tellEnding(span)
    try {
      span.close()
    } catch (error) {
      sayFrozen(error)
    }
    for (const processor of this.#processors) {
      try {
        const result: unknown = processor.onEnd(span)
        if (result !== undefined) handleRejection('onEnd', result)
      } catch (error) {
        failed('onEnd', error)
      }
    }
  }

  #tellEnding(span: Span): void {
    for (const processor of this.#ending) {
      try {
        handleRejection('onEnding', processor.onEnding?.(span))
      } catch (error) {
        failed('onEnding', error)
      }
    }
  }

  /** Resolves when every processor has passed on what it had; rejects with the first of their errors. */
  async forceFlush(): Promise<void> {
    await all(this.#processors, (processor) => processor.forceFlush())
  }

  /** Ends the spans that are open, marked as incomplete, and stops the processors. Later calls await the first. */
  shutdown(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  async #stop(): Promise<void> {
    // Children before parents. Spans that a processor starts meanwhile are not waited for.
    const open = this.#open.splice(0).toReversed()
    this.#openEnd = 0
    this.#gaps = 0
    for (const span of open) {
      if (span === undefined) continue
      putPlace(span, -1)
      span.setAttribute(semconv.INCOMPLETE, true).end()
    }
    await all(this.#processors, (processor) => processor.shutdown())
  }

  /** What ends may be a view (a Proxy or `Object.create`), so it is matched by place and id. */
  #forget(ended: Span): void {
    const { place } = ended
    if (place < 0) return
    const span = this.#open[place]
    if (span === undefined || (span !== ended && span.spanId !== ended.spanId)) return
    putPlace(span, -1)
    this.#open[place] = undefined
    if (place === this.#openEnd - 1) this.#openEnd -= 1
    else if (++this.#gaps > MOST_GAPS && 2 * this.#gaps > this.#openEnd) this.#closeRanks()
  }

  #closeRanks(): void {
    const open = this.#open
    let end = 0
    for (let place = 0; place < this.#openEnd; place++) {
      const span = open[place]
      if (span === undefined) continue
      open[place] = undefined
      open[end] = span
      putPlace(span, end++)
    }
    this.#openEnd = end
    this.#gaps = 0
  }
}

export class Tracer implements ApiTracer, SpanMaker {
  readonly home: TracerProvider
  readonly scope: InstrumentationScope

  constructor(home: TracerProvider, scope: InstrumentationScope) {
    this.home = home
    this.scope = scope
  }

  /** Whether a child of this span is sure to be dropped, so that its attributes need not be prepared. */
  dropsUnder(parent: ApiSpan): boolean {
    if (isOurs(parent) || !this.home.followsParents || this.home.isStopped) return false
    if (parent instanceof DroppedSpan) return true
    const given = parent.spanContext()
    return given.isRemote !== true && (given.traceFlags & TraceFlags.SAMPLED) === 0 && isValid(given)
  }

  /**
   * `startSpan` for our own options, which have links only where there is no parent. Nearly all spans follow their parent's
   * decision and take this shorter path. `kind` is passed because reading it from options of many shapes is a megamorphic load.
   */
  startDeferred(options: DeferredOptions, parentContext: Context, kind: SpanKind): ApiSpan {
    const provider = this.home
    try {
      if (!provider.followsParents || provider.isStopped || isSuppressed(parentContext))
        return this.startSpan(options.name(), options, parentContext)
      const outer = spanIn(parentContext)
      const parent = validContextOf(outer)
      if (parent === undefined)
        return outer === undefined && provider.decideRoot !== undefined && options.links === NO_LINKS
          ? this.#startRoot(provider.decideRoot, options, parentContext, kind)
          : this.startSpan(options.name(), options, parentContext)
      if (!isKeptWith(parent)) {
        const keepsFlags = (parent.traceFlags & ~provider.inheritedFlags) === 0
        return provider.hasRandomIds && keepsFlags && isDroppedWith(parent)
          ? (new DroppedSpan(parent) as DroppedSpan & ApiSpan)
          : this.startSpan(options.name(), options, parentContext)
      }
      const span = beginSpan(
        this,
        options.name(),
        kind,
        parent.traceId,
        provider.hasRandomIds ? undefined : provider.idGenerator.generateSpanId(),
        parent.traceFlags & provider.inheritedFlags,
        parent.traceState,
        parent,
        isOurs(outer) ? outer.anchor : undefined,
        options.build(),
        options.mostAttributes,
      )
      provider.started(span, parentContext)
      return span
    } catch (error) {
      return unstarted(parentContext, error)
    }
  }

  /** The first span of a trace that nothing but its id decides about. */
  #startRoot(
    decide: RootDecision,
    options: DeferredOptions,
    parentContext: Context,
    kind: SpanKind,
  ): ApiSpan {
    const provider = this.home
    const at = takeTraceId()
    const third = wordAt(at + 2)
    const fourth = wordAt(at + 3)
    const { decision, traceState } = decide(third & LOWER_24, fourth >>> 0)
    const flags = provider.flagsRandom ? RANDOM_FLAG : TraceFlags.NONE
    if (decision === SamplingDecision.NOT_RECORD)
      return new DroppedSpan(new UnnamedTrace(third, fourth, flags)) as DroppedSpan & ApiSpan
    const span = beginSpan(
      this,
      options.name(),
      kind,
      traceIdOf(wordAt(at), wordAt(at + 1), third, fourth),
      undefined,
      flags | TraceFlags.SAMPLED,
      traceState,
      undefined,
      undefined,
      options.build(),
      options.mostAttributes,
    )
    provider.started(span, parentContext)
    return span
  }

  /** Never throws: for arguments that break the API's types, the parent's context passes through. */
  startSpan(name: string, options: SpanOptions = {}, parentContext: Context = context.active()): ApiSpan {
    try {
      return this.#start(name, options ?? {}, parentContext ?? context.active())
    } catch (error) {
      return unstarted(parentContext, error)
    }
  }

  #start(name: string, options: SpanOptions, parentContext: Context): ApiSpan {
    if (isSuppressed(parentContext)) return trace.wrapSpanContext(INVALID_SPAN_CONTEXT)
    const provider = this.home
    if (provider.isStopped) return this.#successor().startSpan(name, options, parentContext)

    const { idGenerator, sampler } = provider
    // Our own options have neither `root` nor a start time, so these are not looked up.
    const isDeferred = options instanceof DeferredOptions
    const outer = !isDeferred && options.root === true ? undefined : spanIn(parentContext)
    const parent = validContextOf(outer)
    const traceId = parent === undefined ? idGenerator.generateTraceId() : parent.traceId
    const kind =
      options.kind === undefined || SpanKind[options.kind] === undefined ? SpanKind.INTERNAL : options.kind

    // Order of the SDK specification: trace id, sampler, span id (also for a dropped span), span.
    const asked =
      parent === undefined && spanIn(parentContext) !== undefined
        ? withSpan(parentContext, undefined)
        : parentContext
    const known = looksAtAttributes(sampler, parent) ? soundCopy(options.attributes) : NO_ATTRIBUTES
    const verdict = decide(sampler, asked, traceId, name, kind, known, options.links ?? NO_LINKS)
    const spanId = provider.hasRandomIds ? undefined : idGenerator.generateSpanId()
    const own = provider.flagsRandom ? RANDOM_FLAG : TraceFlags.NONE
    const random = parent === undefined ? own : parent.traceFlags & provider.inheritedFlags & RANDOM_FLAG
    const isSampled = verdict.decision === SamplingDecision.RECORD_AND_SAMPLED
    const traceFlags = isSampled ? random | TraceFlags.SAMPLED : random
    const traceState = verdict.traceState ?? parent?.traceState
    if (verdict.decision === SamplingDecision.NOT_RECORD) {
      const spanContext: SpanContext = { traceId, spanId: spanId ?? idGenerator.generateSpanId(), traceFlags }
      if (traceState !== undefined) spanContext.traceState = traceState
      return trace.wrapSpanContext(spanContext)
    }

    const given = options.attributes
    const attributes = isDeferred || given === undefined ? given : plainCopy(given)
    const span = beginSpan(
      this,
      name,
      kind,
      traceId,
      spanId,
      traceFlags,
      traceState,
      parent,
      isOurs(outer) ? outer.anchor : undefined,
      attributes ?? {},
      countKeys(attributes ?? NO_ATTRIBUTES),
    )
    if (!isDeferred && options.startTime !== undefined) span.beganAt(options.startTime)
    if (attributes === undefined && given !== undefined) span.setAttributes(given)
    if (verdict.attributes !== undefined) span.setAttributes(verdict.attributes)
    if (options.links !== undefined && options.links !== NO_LINKS) span.addLinks(options.links)
    provider.started(span, asked)
    return span
  }

  startActiveSpan<F extends (span: ApiSpan) => ReturnType<F>>(name: string, fn: F): ReturnType<F>
  startActiveSpan<F extends (span: ApiSpan) => ReturnType<F>>(
    name: string,
    options: SpanOptions,
    fn: F,
  ): ReturnType<F>
  startActiveSpan<F extends (span: ApiSpan) => ReturnType<F>>(
    name: string,
    options: SpanOptions,
    parentContext: Context,
    fn: F,
  ): ReturnType<F>
  startActiveSpan<F extends (span: ApiSpan) => ReturnType<F>>(
    name: string,
    ...rest: [F] | [SpanOptions, F] | [SpanOptions, Context, F]
  ): ReturnType<F> {
    const fn = rest.at(-1) as F
    if (typeof fn !== 'function') {
      sayNothingToRun(name, fn)
      return undefined as ReturnType<F>
    }
    const options = rest.length > 1 ? (rest[0] as SpanOptions) : {}
    const parentContext = (rest.length > 2 ? (rest[1] as Context | undefined) : undefined) ?? context.active()
    const span = this.startSpan(name, options, parentContext)
    return context.with(withSpan(parentContext, span), fn, undefined, span)
  }

  /**
   * Makes the spans after our shutdown: apps keep tracers for as long as the process lives, and a second `start()` must reach
   * them too. While no provider is registered, the caller's context passes through.
   */
  #successor(): ApiTracer {
    const provider = registeredProvider()
    const { name, version, schemaUrl } = this.scope
    const heir = provider === undefined || provider === this.home ? NOBODY : provider
    return heir.getTracer(name, version, schemaUrl === undefined ? undefined : { schemaUrl })
  }
}

// The API does not export the class of its non-recording spans.
const NON_RECORDING = Object.getPrototypeOf(trace.wrapSpanContext(INVALID_SPAN_CONTEXT)) as ApiSpan

/** What a dropped span goes on with: the context of its parent, or a new trace. */
type Origin = Omit<SpanContext, 'spanId'>

/**
 * A new trace that was dropped: of its id there is what the sampler went by, and the rest is made once somebody asks. Saves an
 * unsampled request two texts and an object.
 */
class UnnamedTrace implements Origin {
  private readonly third: number
  private readonly fourth: number
  readonly traceFlags: number

  constructor(third: number, fourth: number, traceFlags: number) {
    this.third = third
    this.fourth = fourth
    this.traceFlags = traceFlags
  }

  /** Another one each time. */
  get traceId(): string {
    const at = takeTraceId()
    return traceIdOf(wordAt(at), wordAt(at + 1), this.third, this.fourth)
  }
}

/** Where a dropped span keeps its context once that was asked for. */
interface Kept {
  context: SpanContext | undefined
}

/**
 * A span that was dropped, like its parent or as the first of its trace. Its id is made on demand, which saves 0.04 µs. It
 * inherits what a non-recording span does without extending its class, for V8 would look for that one's constructor with each
 * span: a tenth of our own share of an unsampled request.
 */
class DroppedSpan implements Checked, Pick<ApiSpan, 'spanContext'> {
  private readonly origin: Origin
  // A separate object, shared by views and shallow copies of the span, and writable where the span is frozen.
  private readonly kept: Kept

  constructor(origin: Origin) {
    this.origin = origin
    this.kept = { context: undefined }
  }

  get hasCheckedIds(): true {
    return true
  }

  spanContext(): SpanContext {
    return this.kept.context ?? contextUnder(this.origin, this.kept)
  }
}
Object.setPrototypeOf(DroppedSpan.prototype, NON_RECORDING)

/** The contexts of spans that are deeply frozen. */
const unkept = new WeakMap<Kept, SpanContext>()

function contextUnder({ traceId, traceFlags, traceState }: Origin, kept: Kept): SpanContext {
  const context = contextOf(traceId, randomIds.generateSpanId(), traceFlags & RANDOM_FLAG, traceState)
  // Not by `Reflect.set`, which does not throw but takes 0.3 µs.
  try {
    kept.context = context
    if (kept.context === context) return context
  } catch {
    // It is frozen.
  }
  const known = unkept.get(kept)
  if (known === undefined) unkept.set(kept, context)
  return known ?? context
}

/** Whether it is one of ours. Not by `instanceof`: see `isSlotted` in context.ts. */
export function isOurTracer(tracer: object | undefined): tracer is Tracer {
  return tracer?.constructor === Tracer
}

/** Like the official SDK, `startActiveSpan` without a function begins no span; JavaScript callers get no error. */
function sayNothingToRun(name: unknown, received: unknown): void {
  reportOnce(
    'startActiveSpan',
    'error',
    `startActiveSpan(): expected a function to run, received ${typeof received}; no span was begun for "${shownName(textOf(name))}"; for example tracer.startActiveSpan('work', (span) => { …; span.end() })`,
  )
}

function putPlace(span: Span, place: number): void {
  try {
    span.place = place
  } catch (error) {
    sayFrozen(error)
  }
}

function textIn(given: unknown): string | undefined {
  return given === undefined || given === null ? undefined : textOf(given)
}

function schemaUrlIn(options: { schemaUrl?: string } | undefined): unknown {
  try {
    return options?.schemaUrl
  } catch {
    return undefined
  }
}

function failed(step: string, error: unknown): void {
  reportOnce(`processor:${step}`, 'error', `a span processor threw in ${step}`, error)
}

/** The app's method may be async: an unhandled rejection would end the process. */
function handleRejection(step: string, result: unknown): void {
  if (isPromise(result)) result.catch((error: unknown) => failed(step, error))
}

// A processor that throws or returns no promise does not keep the others from theirs.
async function all(
  processors: readonly SpanProcessor[],
  step: (processor: SpanProcessor) => Promise<void>,
): Promise<void> {
  const results = await Promise.allSettled(processors.map(async (processor) => step(processor)))
  for (const result of results) if (result.status === 'rejected') throw result.reason
}
