import {
  isSpanContextValid,
  isValidSpanId,
  isValidTraceId,
  type Span,
  type SpanContext,
} from '@opentelemetry/api'
import { randomFillSync } from 'node:crypto'
import { reportOnce, shownName } from './report.ts'

/** Makes ids; the shape of the official SDK's IdGenerator. Trace ids are 32, span ids 16 lower-case hex digits. */
export interface IdGenerator {
  generateTraceId(): string
  generateSpanId(): string
}

/** Trace flag bit 1: the right-most 7 bytes of the trace id are random (W3C Trace Context Level 2). */
export const RANDOM_FLAG = 0x02

const TRACE_WORDS = 4
const SPAN_WORDS = 2
const POOL_WORDS = 2048

/**
 * Random bytes for a thousand ids at once, four in each word: a call of the generator for each id costs 2 µs. Words are
 * numbers that need no object of their own.
 */
export const randomWords: Int32Array = new Int32Array(POOL_WORDS)
let used = POOL_WORDS

function refill(): void {
  randomFillSync(randomWords)
  used = 0
}

const DIGITS = Buffer.from('0123456789abcdef')

function digit(word: number): number {
  return DIGITS[word & 0xf] as number
}

// All digits in one call make a string of its own. Slices of one long string of digits are as cheap to make, but each keeps
// that string alive, 48 bytes a span, and the encoder reads them half as fast.

/** Reserves a fresh span id: two words, read with `wordAt` and `lowerAt`. */
export function takeSpanId(): number {
  return take(SPAN_WORDS)
}

/** Reserves a fresh trace id: four words, read with `wordAt`, or made with `traceIdOf`. */
export function takeTraceId(): number {
  return take(TRACE_WORDS)
}

function take(words: number): number {
  if (used + words > POOL_WORDS) refill()
  const at = used
  used = at + words
  return at
}

export function wordAt(at: number): number {
  return randomWords[at] as number
}

/** Never zero: an id of zeros is invalid. */
export function lowerAt(at: number): number {
  return wordAt(at + 1) || 1
}

/** The digits of a span id that is kept as two words. */
export function spanIdOf(upper: number, lower: number): string {
  // prettier-ignore
  return String.fromCharCode(
    digit(upper >>> 28), digit(upper >>> 24), digit(upper >>> 20), digit(upper >>> 16),
    digit(upper >>> 12), digit(upper >>> 8), digit(upper >>> 4), digit(upper),
    digit(lower >>> 28), digit(lower >>> 24), digit(lower >>> 20), digit(lower >>> 16),
    digit(lower >>> 12), digit(lower >>> 8), digit(lower >>> 4), digit(lower),
  )
}

/** The digits of a trace id of these words. Never all zeros, which is invalid. */
export function traceIdOf(first: number, b: number, c: number, d: number): string {
  const a = first || 1
  // prettier-ignore
  return String.fromCharCode(
    digit(a >>> 28), digit(a >>> 24), digit(a >>> 20), digit(a >>> 16), digit(a >>> 12), digit(a >>> 8), digit(a >>> 4), digit(a),
    digit(b >>> 28), digit(b >>> 24), digit(b >>> 20), digit(b >>> 16), digit(b >>> 12), digit(b >>> 8), digit(b >>> 4), digit(b),
    digit(c >>> 28), digit(c >>> 24), digit(c >>> 20), digit(c >>> 16), digit(c >>> 12), digit(c >>> 8), digit(c >>> 4), digit(c),
    digit(d >>> 28), digit(d >>> 24), digit(d >>> 20), digit(d >>> 16), digit(d >>> 12), digit(d >>> 8), digit(d >>> 4), digit(d),
  )
}

/**
 * Random ids from the system's generator. All 128 bits are random, so the right-most 56 may be flagged as random (W3C Trace
 * Context Level 2, random-trace-id flag).
 */
export const randomIds: IdGenerator = {
  generateTraceId() {
    const at = takeTraceId()
    return traceIdOf(wordAt(at), wordAt(at + 1), wordAt(at + 2), wordAt(at + 3))
  },
  generateSpanId() {
    const at = takeSpanId()
    return spanIdOf(wordAt(at), lowerAt(at))
  },
}

/** The app's generator. Where it throws or returns an invalid id, a random one is used, and that is reported once. */
export function guardedIds(generator: IdGenerator): IdGenerator {
  if (generator === randomIds) return generator
  return {
    generateTraceId: () =>
      guarded('generateTraceId', isValidTraceId, generator) ?? randomIds.generateTraceId(),
    generateSpanId: () => guarded('generateSpanId', isValidSpanId, generator) ?? randomIds.generateSpanId(),
  }
}

function guarded(
  method: keyof IdGenerator,
  isId: (id: string) => boolean,
  generator: IdGenerator,
): string | undefined {
  try {
    const id = generator[method]()
    // The API's test lets capitals pass, which may not be sent (W3C Trace Context, trace-id).
    if (isId(id)) return id.toLowerCase()
    reportOnce(
      `ids:${method}`,
      'error',
      `the idGenerator's ${method}() gave no valid id: "${shownName(String(id))}"`,
    )
  } catch (error) {
    reportOnce(`ids:${method}`, 'error', `the idGenerator's ${method}() threw`, error)
  }
  return undefined
}

/** The context whose ids were last found valid and lower-case. */
let latestValid: SpanContext | undefined

/** Whether both ids are valid. A request's context is checked two or three times in a row; only the first costs. */
export function isValid(context: SpanContext): boolean {
  if (context === latestValid) return true
  if (!isSpanContextValid(context)) return false
  if (!hasCapitals(context)) latestValid = context
  return true
}

/** Marks a context that was just parsed as valid, sparing its first check: 0.1 µs. */
export function knownValid(context: SpanContext): SpanContext {
  latestValid = context
  return context
}

/** A span whose ids were checked when it was made. */
export interface Checked {
  readonly hasCheckedIds: true
}

/** The span's context, if it has one that children and other services can have as their parent. */
export function validContextOf(span: Span | undefined): SpanContext | undefined {
  // A test's stand-in may have none.
  const spanContext = span?.spanContext() as SpanContext | undefined
  if (spanContext === undefined) return undefined
  // A span of ours would be checked again for each of its children and each header: 0.1 µs.
  if ((span as Partial<Checked>).hasCheckedIds === true || spanContext === latestValid) return spanContext
  return isValid(spanContext) ? inLowerCase(spanContext) : undefined
}

/** The API's test lets capitals pass, which may not be sent (W3C Trace Context, trace-id and parent-id). */
function inLowerCase(context: SpanContext): SpanContext {
  if (!hasCapitals(context)) return context
  return { ...context, traceId: context.traceId.toLowerCase(), spanId: context.spanId.toLowerCase() }
}

function hasCapitals({ traceId, spanId }: SpanContext): boolean {
  return /[A-F]/.test(traceId + spanId)
}
