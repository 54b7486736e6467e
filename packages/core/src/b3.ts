import type { SpanContext } from '@opentelemetry/api'
import { combineFields, trimBlanks } from './trace-context.ts'

// The B3 headers ⇄ SpanContext (https://github.com/openzipkin/b3-propagation): one header, `b3`, or several, `x-b3-…`.
// Nothing here throws, whatever a carrier holds, and the cost is linear in what it holds.

/** What B3 headers say. */
export interface B3 {
  spanContext: SpanContext
  /** "Force trace": sampled, and to be passed on unchanged. */
  isDebug: boolean
}

/** The receiver decides whether the trace is kept: the sender gave only its ids. */
interface Undecided extends SpanContext {
  readonly isUndecided: true
}

/** `{TraceId}-{SpanId}-{SamplingState}-{ParentSpanId}`, the last two being optional. */
const SINGLE = /^((?:[0-9a-f]{16}){1,2})-([0-9a-f]{16})(?:-([01d]))?(?:-[0-9a-f]{16})?$/
const TRACE_ID = /^(?:[0-9a-f]{16}){1,2}$/
const SPAN_ID = /^[0-9a-f]{16}$/
const ZEROS = /^0*$/

const TRACE_ID_DIGITS = 32

/** `true` and `false` come from senders older than the specification. */
const STATES = new Map([
  ['1', '1'],
  ['true', '1'],
  ['0', '0'],
  ['false', '0'],
])

/**
 * Reads the single header.
 * @returns undefined if it is not there or not valid. A lone sampling state, `b3: 0`, has no ids to continue, and counts as
 * none.
 */
export function parseB3(field: unknown): B3 | undefined {
  const value = firstValue(field)
  const match = value === undefined ? null : SINGLE.exec(value)
  return match === null ? undefined : b3(match[1]!, match[2]!, match[3])
}

/** The fields of the other form, as a carrier holds them. */
interface B3Fields {
  traceId: unknown
  spanId: unknown
  sampled: unknown
  flags: unknown
}

/** Reads the headers of the other form. @returns undefined if one that it takes is not there or not valid. */
export function parseB3Fields(fields: B3Fields): B3 | undefined {
  const traceId = firstValue(fields.traceId)
  const spanId = firstValue(fields.spanId)
  if (traceId === undefined || !TRACE_ID.test(traceId)) return undefined
  if (spanId === undefined || !SPAN_ID.test(spanId)) return undefined
  // Debug implies that the trace is kept, whatever else is sent.
  if (firstValue(fields.flags) === '1') return b3(traceId, spanId, 'd')
  if (fields.sampled === undefined || fields.sampled === '') return b3(traceId, spanId, undefined)
  const state = STATES.get(firstValue(fields.sampled)?.toLowerCase() ?? '')
  return state === undefined ? undefined : b3(traceId, spanId, state)
}

/** Writes the single header of a valid context. */
export function formatB3(context: SpanContext, isDebug: boolean): string {
  const state = samplingState(context, isDebug)
  return `${context.traceId}-${context.spanId}${state === undefined ? '' : `-${state}`}`
}

/** Kept, not kept, kept by force; undefined where the receiver is to decide. */
export function samplingState(context: SpanContext, isDebug: boolean): '1' | '0' | 'd' | undefined {
  if (isDebug) return 'd'
  if (isUndecided(context)) return undefined
  return (context.traceFlags & 1) === 1 ? '1' : '0'
}

/** Whether the sender has left the sampling decision to us. */
export function isUndecided(context: SpanContext): boolean {
  return 'isUndecided' in context
}

function b3(traceId: string, spanId: string, state: string | undefined): B3 | undefined {
  if (ZEROS.test(traceId) || ZEROS.test(spanId)) return undefined
  const isDebug = state === 'd'
  const spanContext: SpanContext = {
    traceId: traceId.padStart(TRACE_ID_DIGITS, '0'),
    spanId,
    traceFlags: isDebug || state === '1' ? 1 : 0,
    isRemote: true,
  }
  if (state !== undefined) return { spanContext, isDebug }
  const undecided: Undecided = { ...spanContext, isUndecided: true }
  return { spanContext: undecided, isDebug }
}

/** Of several values the first one wins. */
function firstValue(field: unknown): string | undefined {
  const fields = combineFields(field)
  if (fields === undefined) return undefined
  const comma = fields.indexOf(',')
  return trimBlanks(fields, 0, comma < 0 ? fields.length : comma)
}
