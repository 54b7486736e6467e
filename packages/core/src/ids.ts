import {
  INVALID_SPANID,
  INVALID_TRACEID,
  isSpanContextValid,
  isValidSpanId,
  isValidTraceId,
  type Span,
  type SpanContext,
} from '@opentelemetry/api'
import { randomFillSync } from 'node:crypto'
import { reportOnce } from './report.ts'

/** Makes ids; the shape of the official SDK's IdGenerator. Trace ids are 32, span ids 16 lower-case hex digits. */
export interface IdGenerator {
  generateTraceId(): string
  generateSpanId(): string
}

/** Trace flag bit 1: the right-most 7 bytes of the trace id are random (W3C Trace Context Level 2). */
export const RANDOM_FLAG = 0x02

const TRACE_BYTES = 16
const WORD_BYTES = 4
const POOL_BYTES = 8192

// Random bytes for a thousand ids at once: a call of the generator for each costs 2 µs.
const pool = Buffer.allocUnsafe(POOL_BYTES)
let used = POOL_BYTES

// The same bytes, read four at a time.
const words = new DataView(pool.buffer, pool.byteOffset, POOL_BYTES)

/** Where so many fresh bytes stand in the pool. */
function take(count: number): number {
  if (used + count > POOL_BYTES) {
    randomFillSync(pool)
    used = 0
  }
  const at = used
  used += count
  return at
}

const DIGITS = Buffer.from('0123456789abcdef')

function high(at: number): number {
  return DIGITS[(pool[at] as number) >> 4] as number
}

function low(at: number): number {
  return DIGITS[(pool[at] as number) & 0xf] as number
}

/** Four random bytes, as a number that needs no object of its own: a span keeps its id as two of them. */
export function randomWord(): number {
  return words.getInt32(take(WORD_BYTES))
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

function digit(word: number): number {
  return DIGITS[word & 0xf] as number
}

// All digits in one call make a text of its own. Slices of a long text of digits are as cheap to make, but each holds on
// to that text, 48 bytes a span, and is read half as fast by the encoder.
function traceIdAt(at: number): string {
  // prettier-ignore
  return String.fromCharCode(
    high(at), low(at), high(at + 1), low(at + 1), high(at + 2), low(at + 2), high(at + 3), low(at + 3),
    high(at + 4), low(at + 4), high(at + 5), low(at + 5), high(at + 6), low(at + 6), high(at + 7), low(at + 7),
    high(at + 8), low(at + 8), high(at + 9), low(at + 9), high(at + 10), low(at + 10), high(at + 11), low(at + 11),
    high(at + 12), low(at + 12), high(at + 13), low(at + 13), high(at + 14), low(at + 14), high(at + 15), low(at + 15),
  )
}

/**
 * Random ids from the system's generator. All 128 bits are random, so the right-most 56 may be told apart as random
 * (W3C Trace Context Level 2, random-trace-id flag).
 */
export const randomIds: IdGenerator = {
  generateTraceId() {
    const id = traceIdAt(take(TRACE_BYTES))
    return id === INVALID_TRACEID ? randomIds.generateTraceId() : id
  },
  generateSpanId() {
    const id = spanIdOf(randomWord(), randomWord())
    return id === INVALID_SPANID ? randomIds.generateSpanId() : id
  },
}

/** The app's generator; where it throws or gives what is no id, a random id is taken, and that is said once. */
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
    reportOnce(`ids:${method}`, 'error', `the idGenerator's ${method}() gave no valid id: "${String(id)}"`)
  } catch (error) {
    reportOnce(`ids:${method}`, 'error', `the idGenerator's ${method}() threw`, error)
  }
  return undefined
}

/** Whose ids are ones, in lower case. */
let latestValid: SpanContext | undefined

/** Whether both ids are ones. A request's context is asked about two or three times in a row: only the first time costs. */
export function isValid(context: SpanContext): boolean {
  if (context === latestValid) return true
  if (!isSpanContextValid(context)) return false
  if (!hasCapitals(context)) latestValid = context
  return true
}

/** Spares even the first time where the ids have been read, and so checked, just now: 0.1 µs. */
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
  // What a test makes up may have none.
  const spanContext = span?.spanContext() as SpanContext | undefined
  if (spanContext === undefined) return undefined
  // Of a span of ours it would be asked again for each of its children, and each header: 0.1 µs.
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
