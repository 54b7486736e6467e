import { context, isTraced, override, reportOnce, untrace, type Context } from '@throughline/core'
import type { Method } from './form.ts'
import type { QueryCall } from './query.ts'

/**
 * What pg calls an object that submits itself: pg's own Query, pg-cursor, pg-query-stream, pg-copy-streams. pg calls its
 * `handle…` methods with what the server answers.
 */
export interface Submittable {
  submit(connection: unknown): unknown
  readonly text?: unknown
  readonly values?: unknown
  readonly name?: unknown
  /** A stream of rows has one inside. */
  readonly cursor?: { readonly text?: unknown; readonly values?: unknown }
  /** Where it has rows. */
  readonly _result?: unknown
  readonly _results?: unknown
  /** Of COPY. */
  readonly rowCount?: unknown
  /** Set where a row could not be parsed. */
  readonly _canceledDueToError?: unknown
  /** Of a cursor that has been submitted. */
  readonly connection?: unknown
}

export function isSubmittable(first: unknown): first is Submittable {
  return typeof first === 'object' && first !== null && typeof (first as Submittable).submit === 'function'
}

/** What it asks for. */
export function statementOf({ text, values, name, cursor }: Submittable): {
  text: string
  values: readonly unknown[] | undefined
  name: string | undefined
} {
  const statement = text ?? cursor?.text
  const given = values ?? cursor?.values
  return {
    text: typeof statement === 'string' ? statement : '',
    values: Array.isArray(given) ? given : undefined,
    name: typeof name === 'string' ? name : undefined,
  }
}

/**
 * Ends the call when the object has come to its end: the server is ready for another query, the query or the connection
 * failed, or the app has closed or destroyed it. What the object emits and calls back runs in `scope`.
 */
export function watch(submittable: Submittable, call: QueryCall | undefined, scope: Context): void {
  try {
    overrideAll(submittable, call, scope)
  } catch (error) {
    // It is frozen, and of the app's own class.
    reportOnce('pg:submittable', 'error', 'what submits itself to pg could not be traced', error)
    call?.end(undefined)
  }
}

function overrideAll(submittable: Submittable, call: QueryCall | undefined, scope: Context): void {
  // It is being submitted again.
  if (isTraced(submittable)) untrace(submittable)
  const target = submittable as unknown as Record<string, Method>
  const isAnswered = typeof target['handleReadyForQuery'] === 'function'

  if (typeof target['handleError'] === 'function')
    override(target, 'handleError', (original) => {
      return function handleError(this: unknown, ...args) {
        const error = args[0] ?? new Error('the query failed')
        if (isAnswered) call?.end(error)
        try {
          return context.with(scope, original, this, ...args)
        } finally {
          // pg-native's errors have their SQLSTATE only now.
          if (!isAnswered) call?.end(error)
        }
      }
    })

  if (isAnswered)
    override(target, 'handleReadyForQuery', (original) => {
      return function handleReadyForQuery(this: unknown, ...args) {
        call?.end(submittable._canceledDueToError, resultOf(submittable))
        return context.with(scope, original, this, ...args)
      }
    })

  if (typeof target['emit'] === 'function')
    override(target, 'emit', (original) => {
      return function emit(this: unknown, ...args) {
        const [event, first] = args
        if (event === 'error') call?.end(first ?? new Error('the query failed'))
        // For pg-native there is no other sign of the end.
        else if (event === 'end' && !isAnswered) call?.end(undefined, first ?? resultOf(submittable))
        else if (event === 'close') call?.end(undefined, resultOf(submittable))
        return context.with(scope, original, this, ...args)
      }
    })

  if (isCursor(target)) watchCursor(target, call)
}

/** A cursor is read in steps, each in a context of its own. */
function watchCursor(cursor: Record<'read' | 'close', Method>, call: QueryCall | undefined): void {
  override(cursor, 'read', (original) => {
    return function read(this: unknown, ...args) {
      if (typeof args[1] === 'function') args[1] = context.bind(context.active(), args[1])
      return Reflect.apply(original, this, args)
    }
  })
  override(cursor, 'close', (original) => {
    return function close(this: unknown, ...args) {
      // A cursor that was never submitted will not report its end.
      if (!(cursor as Partial<Submittable>).connection) call?.end(undefined, resultOf(cursor as never))
      if (typeof args[0] === 'function') args[0] = context.bind(context.active(), args[0])
      return Reflect.apply(original, this, args)
    }
  })
}

function isCursor(target: Record<string, unknown>): target is Record<'read' | 'close', Method> {
  const { read, close, pipe } = target
  return typeof read === 'function' && typeof close === 'function' && pipe === undefined
}

/** What the app's `attributes` gets: of a COPY, which has no rows, the number of those that were copied. */
function resultOf({ _results, _result, rowCount }: Submittable): unknown {
  const count = typeof rowCount === 'number' ? rowCount : null
  return _results ?? _result ?? { command: 'COPY', rowCount: count, oid: 0, fields: [], rows: [] }
}
