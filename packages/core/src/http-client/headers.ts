import type { Context, Span } from '@opentelemetry/api'
import { validateHeaderName, validateHeaderValue } from 'node:http'
import { headersOf } from '../client.ts'
import { isBare } from '../context.ts'
import type { Checked } from '../ids.ts'
import { w3cPropagator } from '../propagation.ts'
import { registered, reportOnce, shownName } from '../report.ts'
import { formatTraceparent } from '../trace-context.ts'

/** Headers to set on a request in place of what it has under these names, in lower case; undefined is to be taken away. */
export type HeaderChanges = Record<string, string | undefined>

/** Reads a header by its name in lower case from where a client has them: a list of values where it is there more than once. */
export type HeaderReader<From> = (from: From, name: string) => unknown

/** What a reader answers for these values of a header, each of which may be a list in its turn. */
export function headerValue(values: readonly unknown[]): unknown {
  const all = values.flat()
  return all.length > 1 ? all : all[0]
}

/** What to do with trace headers that a request has already. */
export type HeadersRule = 'replace' | 'keep'

export const NO_CHANGES: HeaderChanges = {}

const TRACEPARENT = 'traceparent'
const BAGGAGE = 'baggage'

/** Both forms of B3: who receives both goes by the first of these. */
const OF_B3 = [
  'b3',
  'x-b3-traceid',
  'x-b3-spanid',
  'x-b3-parentspanid',
  'x-b3-sampled',
  'x-b3-flags',
] as const

/**
 * The changes to a request's headers for this context, so that there is one trace on the wire. With `replace` it is ours:
 * headers of the caller or another tracer are replaced, and a `tracestate` removed if we only send a `traceparent`, as is the other
 * form of B3 if we send one. With `keep` it is the request's own, if it has one; baggage, which is no part of a trace, is kept
 * separately.
 */
export function headerChanges<From>(
  within: Context,
  rule: HeadersRule,
  from: From,
  read: HeaderReader<From>,
): HeaderChanges {
  const changes: HeaderChanges = headersOf(within)
  // Not `in`: an app may have put something into Object.prototype.
  for (const name of Object.keys(changes))
    if (name !== TRACEPARENT && !canBeSent(name, changes[name])) delete changes[name]
  // Before the request's own are looked for, which may be of the other form.
  if (changes['b3'] !== undefined || changes['x-b3-traceid'] !== undefined)
    for (const name of OF_B3) changes[name] ??= undefined
  if (rule === 'keep') dropKept(changes, from, read)
  if (changes[TRACEPARENT] !== undefined) changes['tracestate'] ??= undefined
  return changes
}

/** A header of the app's propagator that cannot be sent is left out; the request goes on. */
function canBeSent(name: string, value: string | undefined): boolean {
  try {
    validateHeaderName(name)
    validateHeaderValue(name, value as string)
    return true
  } catch (error) {
    const shown = shownName(name)
    reportOnce(`header:${name}`, 'error', `the propagator made a header that cannot be sent: ${shown}`, error)
    return false
  }
}

/**
 * `headerChanges` with `replace`, at half the cost, for the usual case: the W3C propagator, and nothing to send but a
 * traceparent. Else undefined.
 */
export function plainChanges(caller: Context, span: Span): HeaderChanges | undefined {
  if ((span as Partial<Checked>).hasCheckedIds !== true || !isBare(caller)) return undefined
  if (registered()?.propagation !== w3cPropagator) return undefined
  const spanContext = span.spanContext()
  if (spanContext.traceState !== undefined) return undefined
  return { traceparent: formatTraceparent(spanContext), tracestate: undefined }
}

function dropKept<From>(changes: HeaderChanges, from: From, read: HeaderReader<From>): void {
  const own = Object.keys(changes).filter((name) => read(from, name) !== undefined)
  const hasTrace = own.some((name) => name !== BAGGAGE)
  for (const name of Object.keys(changes)) {
    if (name === BAGGAGE ? own.includes(BAGGAGE) : hasTrace) delete changes[name]
  }
}
