import { dropOptions, isTraced, maskErrors, show } from '@throughline/core'
import type { ClientBase, Pool } from 'pg'
import { isOfOthers, setTracing, traceClient } from './client.ts'
import { clientsOf } from './connection.ts'
import { maskedReport } from './failure.ts'
import { SCOPE, tracingBy, type PgOptions } from './options.ts'
import { tracePool } from './pool.ts'

export type { SqlComment, SqlTags } from './comment.ts'
export type { PgOptions, Query } from './options.ts'

/**
 * Traces the queries of a Pool or of a Client of pg, each as a CLIENT span (semantic conventions, database spans), and
 * gives the same object back. The clients of a Pool are traced with it, those of `pool.connect()` too. Twice is once:
 * the options of the first call hold, until `untrace()` ends it.
 *
 * @throws TypeError for what is neither a Pool nor a Client, and for an option that is unknown or of the wrong shape.
 */
export function tracePg<Target extends Pool | ClientBase>(target: Target, options: PgOptions = {}): Target {
  if (typeof target?.query !== 'function' || typeof target.connect !== 'function') {
    throw new TypeError(
      `${SCOPE.name}: tracePg(): expected a Pool or a Client of pg, received ${show(target)}; example: tracePg(new Pool())`,
    )
  }
  const tracing = tracingBy(options)
  const clients = isPool(target) ? clientsOf(target) : undefined
  if (isTraced(target)) {
    dropOptions(target, options, 'tracePg()', 'untrace(pool); tracePg(pool, { requireParent: true })')
    return target
  }
  if (isOfOthers(clients?.query === undefined ? target : clients)) return target
  setTracing(target, tracing)
  maskErrors(maskedReport)
  if (isPool(target)) tracePool(target, tracing)
  else traceClient(target, target)
  return target
}

function isPool(target: Pool | ClientBase): target is Pool {
  return 'totalCount' in target
}
