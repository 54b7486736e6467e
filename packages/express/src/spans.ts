import { semconv, type BeginLayer, type LayerSpan } from '@throughline/core'
import type { NextFunction } from 'express'

/** The spans of the layers that have a request. */
export interface Spans {
  readonly begin: BeginLayer
  /** The innermost last. */
  readonly open: Set<LayerSpan>
}

export function spansOf(begin: BeginLayer): Spans {
  return { begin, open: new Set() }
}

/**
 * Runs a layer in a span of its own, which ends when the layer passes the request on; what follows runs outside of it.
 *
 * @param fn the app's function
 * @param met the error that an error handler has been called with: to pass it on is no failure of its own
 */
export function inSpan(
  { begin, open }: Spans,
  name: string,
  fn: Function,
  next: NextFunction,
  run: (next: NextFunction) => void,
  met?: unknown,
): void {
  const span = begin(name, fn.name === '' ? undefined : { [semconv.CODE_FUNCTION_NAME]: fn.name })
  if (span === undefined) return run(next)
  open.add(span)
  span.within(() =>
    run(function passOn(error?: unknown) {
      open.delete(span)
      span.end(isFailure(error) && error !== met ? error : undefined)
      span.outside(() => next(error))
    }),
  )
}

/** The request has closed: layers that still have it have answered, or never will. */
export function endSpans({ open }: Spans): void {
  for (const span of [...open].toReversed()) span.end()
  open.clear()
}

/** Whether the argument of `next` is an error, and not a routing instruction. */
export function isFailure(error: unknown): boolean {
  return Boolean(error) && error !== 'route' && error !== 'router'
}
