import { context, type Context } from '@throughline/core'
import { withText } from './comment.ts'
import type { Place } from './connection.ts'
import type { Tracing } from './options.ts'
import { QueryCall } from './query.ts'
import { isSubmittable, statementOf } from './submittable.ts'

// The forms in which pg takes a query: text or config object; values, or none; a callback in one of three places, or a
// promise.

export type Method = (this: unknown, ...args: unknown[]) => unknown

const NO_VALUES: readonly unknown[] = []

/** Whether this is a query that pg will accept, other than a Submittable. */
export function isQuery(first: unknown): boolean {
  if (typeof first === 'string') return true
  if (typeof first !== 'object' || first === null) return false
  const { text, name, submit } = first as Record<string, unknown>
  return typeof submit !== 'function' && (typeof text === 'string' || typeof name === 'string')
}

/** Begins the span of the query that the arguments ask for; undefined if it gets none. */
export function begin(tracing: Tracing, args: unknown[], place: Place): QueryCall | undefined {
  const { send } = tracing
  const caller = send.caller()
  if (caller === undefined) return undefined
  const call = callOf(tracing, caller, args, place)
  if (call === undefined || !send.begin(call)) return undefined
  // A Submittable has its text already inside.
  if (tracing.comment !== undefined && !isSubmittable(args[0])) {
    const [text] = call.subject()
    const sent = call.sent()
    if (sent !== text) args[0] = withText(args[0], sent)
  }
  return call
}

function callOf(
  tracing: Tracing,
  caller: Context,
  args: readonly unknown[],
  place: Place,
): QueryCall | undefined {
  const first = args[0]
  const given = Array.isArray(args[1]) ? args[1] : undefined
  if (typeof first === 'string')
    return new QueryCall(tracing, caller, first, given ?? NO_VALUES, undefined, place)
  if (isSubmittable(first)) {
    const { text, values, name } = statementOf(first)
    return new QueryCall(tracing, caller, text, values ?? NO_VALUES, name, place)
  }
  if (!isQuery(first)) return undefined
  const { text, name, values } = first as Record<string, unknown>
  return new QueryCall(
    tracing,
    caller,
    typeof text === 'string' ? text : '',
    given ?? (Array.isArray(values) ? values : NO_VALUES),
    typeof name === 'string' ? name : undefined,
    place,
  )
}

/** Runs a query whose span has begun (or that has none), in any of pg's forms, and ends the span with it. */
export function run(
  call: QueryCall | undefined,
  original: Method,
  self: unknown,
  args: unknown[],
  configured: unknown,
): unknown {
  try {
    const position = callbackAt(args)
    const callback = args[position] ?? configured
    if (typeof callback === 'function') {
      const calledBack = answering(call, callback as Method, call?.caller ?? context.active())
      return runWith(original, self, args, position, calledBack, callback)
    }
    const promise = Reflect.apply(original, self, args)
    return call === undefined ? promise : ending(call, promise)
  } catch (error) {
    call?.end(error)
    throw error
  }
}

/** The place of the callback in the arguments of a query, if it has one. */
export function callbackAt(args: readonly unknown[]): 1 | 2 {
  return typeof args[2] !== 'function' && typeof args[1] === 'function' ? 1 : 2
}

/** The callback, run in this context after the span has ended. */
export function answering(call: QueryCall | undefined, callback: Method, scope: Context): Method {
  return function (this: unknown, ...outcome) {
    call?.end(outcome[0], outcome[1])
    return context.with(scope, callback, this, ...outcome)
  }
}

/** Runs a query with its callback replaced. */
export function runWith(
  original: Method,
  self: unknown,
  args: unknown[],
  position: number,
  calledBack: unknown,
  callback: unknown,
): unknown {
  const config = args[0] as { callback?: unknown }
  args[position] = calledBack
  const result = Reflect.apply(original, self, args)
  // pg before 8.22 writes the callback into the app's config object, where the app's own belongs.
  if (typeof config === 'object' && config.callback === calledBack) config.callback = callback
  return result
}

/** What can end: a query, or the wait for a connection. */
interface Ending {
  end(error: unknown, result?: unknown): void
}

/** The promise of a call, which settles after its span has ended. */
export function ending(call: Ending, promise: unknown): unknown {
  return (promise as Promise<unknown> | undefined)?.then(
    (result) => {
      call.end(undefined, result)
      return result
    },
    (error: unknown) => {
      call.end(error)
      throw error
    },
  )
}
