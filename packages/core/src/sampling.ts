import {
  SamplingDecision,
  trace,
  TraceFlags,
  type Attributes,
  type AttributeValue,
  type Context,
  type Link,
  type SamplingResult,
  type SpanContext,
  type SpanKind,
  type TraceState,
} from '@opentelemetry/api'
import { isPlain, isPrimitive } from './attribute.ts'
import { isUndecided } from './b3.ts'
import { spanIn } from './context.ts'
import { RANDOM_FLAG, validContextOf } from './ids.ts'
import {
  expected,
  hasMethods,
  isRatio,
  MATCH,
  matcher,
  validated,
  type Match,
  type Shape,
} from './options.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import { emptyTraceState, ownState } from './trace-context.ts'

/** Decides at a span's start whether it is recorded; the shape of the official SDK's Sampler. */
export interface Sampler {
  shouldSample(
    context: Context,
    traceId: string,
    spanName: string,
    spanKind: SpanKind,
    attributes: Attributes,
    links: Link[],
  ): SamplingResult
  toString(): string
}

/** A sampler with what it may say of itself. */
interface MarkedSampler extends Sampler {
  /** It never looks at attributes: for it none are built before the decision. */
  readonly ignoresAttributes?: boolean
  /** Its tracestate says by which threshold a trace was kept. */
  readonly setsThreshold?: boolean
  /** It follows the parent's decision, if there is one, for every span. */
  readonly followsParents?: boolean
  /** What it decides about a new trace, where it goes by nothing but the id. */
  readonly decideRoot?: RootDecision | undefined
}

/**
 * Decides about a new trace by the randomness in its id, the last 56 bits, as a number of 24 and one of 32 bits: most traces of
 * a small share are dropped, and nobody ever asks for their ids.
 */
export type RootDecision = (upper: number, lower: number) => SamplingResult

// The verdicts are shared: a decision allocates nothing.
const KEEP: SamplingResult = { decision: SamplingDecision.RECORD_AND_SAMPLED }
const DROP: SamplingResult = { decision: SamplingDecision.NOT_RECORD }

export const alwaysOn: MarkedSampler = {
  ignoresAttributes: true,
  shouldSample(context) {
    const parent = parentIn(context)
    return parent === undefined || isSampled(parent) ? KEEP : withoutThreshold(KEEP, parent.traceState)
  },
  decideRoot: () => KEEP,
  toString: () => 'AlwaysOnSampler',
}

export const alwaysOff: MarkedSampler = {
  ignoresAttributes: true,
  shouldSample: (context) => dropped(trace.getSpanContext(context)?.traceState),
  decideRoot: () => DROP,
  toString: () => 'AlwaysOffSampler',
}

/**
 * Keeps this share of all traces, 0 to 1, by the trace id alone: every service decides alike for the same trace, and a
 * higher ratio keeps all that a lower one keeps (OpenTelemetry trace SDK, TraceIdRatioBased). It says nothing of the ratio
 * in the tracestate, where `probability` does, and lets nobody else's threshold stand for it.
 */
export function traceIdRatio(ratio: number): MarkedSampler {
  const threshold = exactThreshold(ratio)
  const keeps = keptBy(threshold)
  return {
    ignoresAttributes: true,
    shouldSample(context, traceId) {
      const parent = trace.getSpanContext(context)
      if (parent !== undefined && !isUndecided(parent)) {
        reportOnce(
          'ratio of children',
          'warn',
          'TraceIdRatioBased decides about spans whose parents were decided about already, so that traces may come in parts: parentbased_traceidratio follows the parents',
        )
      }
      const isKept = threshold !== undefined && randomnessOf(traceId) >= threshold
      return withoutThreshold(isKept ? KEEP : DROP, parent?.traceState)
    },
    decideRoot: (upper, lower) => (keeps(upper, lower) ? KEEP : DROP),
    toString: () => `TraceIdRatioBased{${decimal(ratio)}}`,
  }
}

/**
 * Keeps this share of all traces, 0 to 1, consistently with all other probability samplers (OpenTelemetry trace SDK,
 * ProbabilitySampler): by the trace's `rv`, else by its id. A kept trace carries its threshold as `ot=th:…` in the tracestate;
 * a dropped one none.
 */
export function probability(ratio: number): MarkedSampler {
  const threshold = roundedThreshold(ratio)
  const keeps = keptBy(threshold)
  const keptRoot: SamplingResult = {
    decision: SamplingDecision.RECORD_AND_SAMPLED,
    traceState: withThreshold(undefined, threshold),
  }
  return {
    ignoresAttributes: true,
    setsThreshold: true,
    shouldSample(context, traceId) {
      const parent = trace.getSpanContext(context)
      const state = parent?.traceState
      if (threshold === undefined) return dropped(state)
      if (parent !== undefined && threshold !== '0') warnOfPresumption(parent)
      if (randomnessOf(traceId, otOf(state)) < threshold) return dropped(state)
      return state === undefined ? keptRoot : { ...keptRoot, traceState: withThreshold(state, threshold) }
    },
    decideRoot: (upper, lower) => (keeps(upper, lower) ? keptRoot : DROP),
    toString: () => `ProbabilitySampler{${decimal(ratio)}}`,
  }
}

function warnOfPresumption(parent: SpanContext): void {
  if ((parent.traceFlags & RANDOM_FLAG) !== 0 || explicitRandomness(otOf(parent.traceState)) !== undefined)
    return
  reportOnce(
    'presumed random',
    'warn',
    'a trace id that is not flagged as random is presumed to be, to sample by: if its last 14 digits are not random, another share is kept than the one that was asked for',
  )
}

/**
 * Follows the parent's decision; asks `rootSampler` where there is no parent, or one whose sender left the decision to us.
 * Where the root sampler sets thresholds, one that comes from elsewhere is checked: if it cannot be why the trace is
 * sampled, or the trace is not, it is not passed on. To the others the member `ot` is as opaque as any (Trace Context §3.3).
 */
export function parentBased(rootSampler: MarkedSampler): MarkedSampler {
  const isChecking = rootSampler.setsThreshold === true
  return {
    followsParents: true,
    ignoresAttributes: ignoresAttributes(rootSampler),
    shouldSample(context, traceId, spanName, spanKind, attributes, links) {
      // Not with the API's function, which would validate both ids again for each child of a span: 1,600 instructions.
      const parent = validContextOf(spanIn(context))
      if (parent === undefined || !isDecided(parent)) {
        return rootSampler.shouldSample(context, traceId, spanName, spanKind, attributes, links)
      }
      const verdict = isSampled(parent) ? KEEP : DROP
      return isChecking && parent.isRemote === true && parent.traceState !== undefined
        ? checked(verdict, traceId, parent.traceState)
        : verdict
    },
    decideRoot: rootSampler.decideRoot,
    toString: () =>
      `ParentBased{root=${String(rootSampler)}, remoteParentSampled=AlwaysOnSampler, remoteParentNotSampled=AlwaysOffSampler, localParentSampled=AlwaysOnSampler, localParentNotSampled=AlwaysOffSampler}`,
  }
}

/** Whether a sampler that follows parents keeps the children of this one, with its tracestate unchanged. */
export function isKeptWith(parent: SpanContext): boolean {
  return isSampled(parent) && (parent.traceState === undefined || parent.isRemote !== true)
}

/** Whether it drops the children of this one, with its tracestate unchanged. */
export function isDroppedWith(parent: SpanContext): boolean {
  return (
    !isSampled(parent) && isDecided(parent) && (parent.traceState === undefined || parent.isRemote !== true)
  )
}

/** The app's own span may throw, which must not break the sampler. */
function parentIn(context: Context): SpanContext | undefined {
  try {
    return spanIn(context)?.spanContext()
  } catch {
    return undefined
  }
}

/** Whether the sender of this parent has decided about the trace. */
function isDecided(parent: SpanContext): boolean {
  return parent.isRemote !== true || isSampled(parent) || !isUndecided(parent)
}

function isSampled({ traceFlags }: SpanContext): boolean {
  return (traceFlags & TraceFlags.SAMPLED) !== 0
}

/** The parent's verdict, with its threshold only where that explains it. */
function checked(verdict: SamplingResult, traceId: string, state: TraceState): SamplingResult {
  const ot = otOf(state)
  const threshold = thresholdIn(ot)
  const isTrue = verdict === KEEP && typeof threshold === 'string' && randomnessOf(traceId, ot) >= threshold
  return isTrue ? verdict : withoutThreshold(verdict, state)
}

/** A dropped span represents no others: a threshold in its tracestate would say that it does. */
function dropped(state: TraceState | undefined): SamplingResult {
  return withoutThreshold(DROP, state)
}

function withoutThreshold(verdict: SamplingResult, state: TraceState | undefined): SamplingResult {
  if (state === undefined || thresholdIn(otOf(state)) === undefined) return verdict
  return { ...verdict, traceState: withThreshold(state, undefined) }
}

/**
 * The app's sampler, whose answers are checked: a promise, invalid attributes or a tracestate that cannot be sent would do harm
 * later, far from their cause. If it decides against the parent without giving a tracestate, or drops the span, the parent's
 * threshold is not passed on.
 */
export function guardedSampler(given: Sampler): MarkedSampler {
  const isHead = ignoresAttributes(given)
  return {
    ignoresAttributes: isHead,
    shouldSample(context, traceId, spanName, spanKind, known, links) {
      // Copies: the sampler may keep and change the list and the attributes.
      const asked = [isHead ? {} : known, Array.isArray(links) ? [...links] : []] as const
      const verdict = given.shouldSample(context, traceId, spanName, spanKind, ...asked)
      const { decision, attributes, traceState } = verdict
      if (decision === undefined && hasMethods(verdict, 'then')) {
        // An unhandled rejection would end the process.
        Promise.resolve(verdict).catch(() => {})
        throw new TypeError('expected a decision, received a promise')
      }
      const hasAttributes =
        attributes === undefined || (typeof attributes === 'object' && attributes !== null)
      const hasState = traceState === undefined || hasMethods(traceState, 'serialize')
      if (!hasAttributes || !hasState) {
        const wrong = hasAttributes ? 'tracestate' : 'attributes'
        reportOnce(`sampler:${wrong}`, 'error', `the sampler gave ${wrong} that are none; they are ignored`)
      }
      const sound: SamplingResult = { decision }
      if (hasAttributes && attributes !== undefined) sound.attributes = attributes
      const parent = parentIn(context)
      if (hasState && traceState !== undefined && traceState !== parent?.traceState) {
        sound.traceState = traceState
        return sound
      }
      const agrees =
        decision === SamplingDecision.RECORD_AND_SAMPLED && (parent === undefined || isSampled(parent))
      return agrees ? sound : withoutThreshold(sound, parent?.traceState)
    },
    toString: () => String(given),
  }
}

/** A number from 0 to 1 in decimal notation, which `String` gives only down to a millionth. */
function decimal(ratio: number): string {
  const [mantissa = '', exponent] = String(ratio).split('e-')
  if (exponent === undefined) return mantissa
  return `0.${'0'.repeat(Number(exponent) - 1)}${mantissa.replace('.', '')}`
}

export function followsParents(sampler: MarkedSampler): boolean {
  return sampler.followsParents === true
}

/** Of a sampler that decides about new traces by their ids alone. */
export function rootDecisionOf(sampler: MarkedSampler): RootDecision | undefined {
  return sampler.decideRoot
}

export function ignoresAttributes(sampler: MarkedSampler): boolean {
  return sampler.ignoresAttributes === true
}

/** Whether this sampler may read the attributes of a span with this parent. */
export function looksAtAttributes(sampler: Sampler, parent: SpanContext | undefined): boolean {
  if (ignoresAttributes(sampler)) return false
  return parent === undefined || !followsParents(sampler) || !isDecided(parent)
}

// Used when the app's sampler fails.
const fallback = parentBased(alwaysOn)

/** The sampler's verdict; if it throws or gives none, the default sampler's, which is reported once. */
export function decide(
  sampler: Sampler,
  context: Context,
  traceId: string,
  name: string,
  kind: SpanKind,
  attributes: Attributes,
  links: Link[],
): SamplingResult {
  try {
    const verdict = sampler.shouldSample(context, traceId, name, kind, attributes, links)
    if (isDecision(verdict.decision)) return verdict
    reportOnce('sampler', 'error', `the sampler gave no decision but ${String(verdict.decision)}`)
  } catch (error) {
    reportOnce('sampler', 'error', 'the sampler threw; the default one decides', error)
  }
  return fallback.shouldSample(context, traceId, name, kind, attributes, links)
}

function isDecision(given: unknown): boolean {
  return (
    given === SamplingDecision.RECORD_AND_SAMPLED ||
    given === SamplingDecision.NOT_RECORD ||
    given === SamplingDecision.RECORD
  )
}

// ---- Thresholds ----

// A share of all traces as a threshold, and how it travels: the sub-keys `th` and `rv` of the tracestate's member `ot`
// (OpenTelemetry, "TraceState Handling" and "TraceState: Probability Sampling"). All who keep the traces whose randomness R >=
// T agree, and a higher share keeps all that a lower one keeps.
//
// R and T are 56 bits, more than a number holds. Here they are strings of hex digits, R of 14, T without trailing zeros: these
// compare like the numbers.

const MEMBER = 'ot'
const DIGITS = 14
/** Of 24 bits; 32 follow. */
const UPPER_DIGITS = 6
const SPACE = 2 ** 56
const BITS_OF_A_DIGIT = 4n

/** What the specification recommends: 4 digits of T, counted behind those that only say how small the share is. */
const PRECISION = 4

/** Of the whole member (TraceState Handling). */
const MOST_CHARACTERS = 256

const RANDOMNESS = /^[0-9a-f]{14}$/
const THRESHOLD = /^[0-9a-f]{1,14}$/

/**
 * The threshold that keeps this share of all traces, 0 to 1, as exactly as 56 bits can; undefined where it keeps none, which
 * a share below 2^-57 does too.
 */
function exactThreshold(share: number): string | undefined {
  // 2^56 times a number is exact.
  const rejected = BigInt(SPACE) - BigInt(Math.round(share * SPACE))
  return rejected === BigInt(SPACE) ? undefined : hexOf(rejected)
}

/** The same, rounded to the precision that is propagated, so that the decision matches `th`. */
function roundedThreshold(share: number): string | undefined {
  const exact = exactThreshold(share)
  if (exact === undefined) return undefined
  const leading = exact.length - exact.replace(/^f+/, '').length
  const cut = BITS_OF_A_DIGIT * BigInt(Math.max(0, DIGITS - PRECISION - leading))
  const half = (1n << cut) >> 1n
  return hexOf(((BigInt(`0x${exact.padEnd(DIGITS, '0')}`) + half) >> cut) << cut)
}

/** As T is written: zeros at its end say nothing. */
function hexOf(bits: bigint): string {
  return bits.toString(16).padStart(DIGITS, '0').replace(/0+$/, '') || '0'
}

/** A test of randomness, in two numbers as `RootDecision` has it, against this threshold. */
function keptBy(threshold: string | undefined): (upper: number, lower: number) => boolean {
  if (threshold === undefined) return () => false
  const digits = threshold.padEnd(DIGITS, '0')
  const first = Number.parseInt(digits.slice(0, UPPER_DIGITS), 16)
  const rest = Number.parseInt(digits.slice(UPPER_DIGITS), 16)
  return (upper, lower) => upper > first || (upper === first && lower >= rest)
}

/** The `ot` member of the tracestate; undefined also if the app's own tracestate misbehaves. */
function otOf(state: TraceState | undefined): string | undefined {
  try {
    const ot: unknown = state?.get(MEMBER)
    return typeof ot === 'string' ? ot : undefined
  } catch {
    return undefined
  }
}

/** The randomness of a trace: what `rv` says, else the last 56 bits of its id. */
function randomnessOf(traceId: string, ot?: string): string {
  return explicitRandomness(ot) ?? traceId.slice(-DIGITS)
}

/** The value of `rv`; undefined if it is missing, or not 14 lower-case hex digits. */
function explicitRandomness(ot: string | undefined): string | undefined {
  const value = subKey(ot, 'rv:')
  return value !== undefined && RANDOMNESS.test(value) ? value : undefined
}

/** The value of `th`: the threshold, null if it is invalid, undefined if there is no `th`. */
function thresholdIn(ot: string | undefined): string | null | undefined {
  const value = subKey(ot, 'th:')
  return value === undefined || THRESHOLD.test(value) ? value : null
}

/**
 * The state with this `th` as the last sub-key of its `ot`, which moves to the front; with no `th` where none is given. The
 * other sub-keys, `rv` among them, stay as they are, and so do the members of others. Where the member would become too
 * long, it gets no `th`, and that is said once.
 */
function withThreshold(state: TraceState | undefined, th: string | undefined): TraceState {
  const before = state === undefined ? emptyTraceState : ownState(state)
  const others = (otOf(state) ?? '')
    .split(';')
    .filter((sub) => sub !== '' && !sub.startsWith('th:'))
    .join(';')
    // No value of a tracestate ends with a space, but one before a semicolon may.
    .replace(/ +$/, '')
  let ot = others
  if (th !== undefined) ot = others === '' ? `th:${th}` : `${others};th:${th}`
  if (ot.length > MOST_CHARACTERS) {
    reportOnce(
      'ot too long',
      'warn',
      "a tracestate's ot has no room for th: its spans do not say how they were sampled",
    )
    ot = others
  }
  return ot === '' ? before.unset(MEMBER) : before.set(MEMBER, ot)
}

// The left-most, should there be two. Runs for every request with a tracestate, so it allocates nothing.
function subKey(ot: string | undefined, key: 'th:' | 'rv:'): string | undefined {
  if (ot === undefined) return undefined
  let at = ot.indexOf(key)
  while (at > 0 && ot.charAt(at - 1) !== ';') at = ot.indexOf(key, at + 1)
  if (at < 0) return undefined
  const end = ot.indexOf(';', at)
  return ot.slice(at + key.length, end < 0 ? undefined : end)
}

// ---- Rules ----

/** What a new trace's first span must be like for a rule; what is left out is not asked. */
export interface RuleMatch {
  kind?: 'internal' | 'server' | 'client' | 'producer' | 'consumer'
  method?: Match<[string]>
  path?: Match<[string]>
  name?: Match<[string]>
  /** By attribute; a number or a boolean is compared as its text. */
  attributes?: Record<string, Match<[string]>>
}

/** The share of the new traces that it matches which is kept, 0 to 1. */
export interface SamplingRule {
  match: RuleMatch
  rate: number
}

type Test = (name: string, kind: SpanKind, attributes: Attributes) => boolean

const KINDS = ['internal', 'server', 'client', 'producer', 'consumer'] as const

const RULE: Shape<SamplingRule> = {
  match: expected('a plain object', "match: { path: '/health' }", isPlain),
  rate: expected('a number from 0 to 1', 'rate: 0.1', isRatio),
}

const ANY_TEXT = MATCH("'app.tier': 'free'")

const MATCHES: Shape<RuleMatch> = {
  kind: expected(`one of ${KINDS.join(', ')}`, "kind: 'server'", (value) => KINDS.includes(value as never)),
  method: MATCH("method: 'GET'"),
  path: MATCH("path: ['/health', /^\\/assets\\//]"),
  name: MATCH("name: 'nightly'"),
  attributes: expected(
    'an object of functions, strings, RegExps or lists',
    "attributes: { 'app.tier': 'free' }",
    (value) => isPlain(value) && Object.values(value).every(isTextTest),
  ),
}

/**
 * A sampler for roots: the first rule that matches what is known at the start decides; where none does, the trace is kept.
 * The route is not among what can be matched: which framework will serve is not known here, and only Fastify knows the
 * route at the start. There it is an attribute like any other.
 * @throws TypeError for a rule of the wrong shape.
 */
export function ruleBased(rules: readonly SamplingRule[]): MarkedSampler {
  // A hole in the list is not a rule either.
  const compiled = Array.from(rules, (rule) => {
    const { match, rate } = validated('start(): a rule of sampling', RULE, rule)
    if (match === undefined || rate === undefined) {
      const missing = [match === undefined && 'match', rate === undefined && 'rate']
        .filter(Boolean)
        .join(' and ')
      throw new TypeError(
        `start(): expected each rule of sampling to have match and rate, received one without ${missing}; example: { match: { path: '/health' }, rate: 0 }`,
      )
    }
    return { test: testOf(match), sampler: probability(rate) }
  })

  return {
    setsThreshold: true,
    ignoresAttributes: rules.every(
      ({ match }) => !('method' in match || 'path' in match || 'attributes' in match),
    ),
    shouldSample(context, traceId, name, kind, attributes, links) {
      const rule = compiled.find(({ test }) => test(name, kind, attributes))
      return (rule?.sampler ?? everything).shouldSample(context, traceId, name, kind, attributes, links)
    },
    toString: () => `RuleBased{${rules.map(({ rate }) => rate).join(', ')}}`,
  }
}

const everything = probability(1)

function testOf(match: RuleMatch): Test {
  if ('route' in match) {
    throw new TypeError(
      `start(): expected match of sampling to have kind, method, path, name or attributes, received route, which is not known when a span starts: the router has not run yet. Only Fastify knows it by then, as attributes: { 'http.route': '/users/:id' }. Elsewhere match the path instead; example: { match: { path: /^\\/users\\/[^/]+$/ }, rate: 0.1 }`,
    )
  }
  const {
    kind,
    method,
    path,
    name,
    attributes = {},
  } = validated('start(): match of sampling', MATCHES, match)
  refuseUnset('match', match)
  refuseUnset('attributes', attributes)
  const isName = textTest('name', name)
  const wanted = [
    { key: semconv.HTTP_REQUEST_METHOD, isWanted: textTest('method', method) },
    { key: semconv.URL_PATH, isWanted: textTest('path', path) },
    ...Object.entries(attributes).map(([key, one]) => ({ key, isWanted: textTest(key, one) })),
  ].filter(({ isWanted }) => isWanted !== undefined)

  return (spanName, spanKind, given) =>
    (kind === undefined || KINDS[spanKind] === kind) &&
    isName?.(spanName) !== false &&
    wanted.every(
      ({ key, isWanted }) => isWanted?.(Object.hasOwn(given, key) ? given[key] : undefined) === true,
    )
}

/** `{ kind: 'server', path: process.env['QUIET'] }` would match every request if that is not set. */
function refuseUnset(of: string, given: object): void {
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined) continue
    throw new TypeError(
      `start(): expected each value in ${of} of sampling to be there, received ${name}: undefined, which would match everything; example: { match: { path: '/health' }, rate: 0 }`,
    )
  }
}

function isTextTest(value: unknown): boolean {
  return value === undefined || ANY_TEXT.accepts(value)
}

function textTest(
  name: string,
  match: Match<[string]> | undefined,
): ((value: AttributeValue | undefined) => boolean) | undefined {
  const test = matcher<[string]>(name, match, (text) => text)
  return test && ((value) => hasText(value) && test(String(value)))
}

/** A text, a number, a boolean, or a list of them: bytes and records match nothing. */
function hasText(value: unknown): boolean {
  if (Array.isArray(value))
    return value.every((item) => item === null || item === undefined || isPrimitive(item))
  return isPrimitive(value)
}
