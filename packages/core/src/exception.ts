import type { Attributes } from '@opentelemetry/api'
import { sayUnreadable, textOf } from './attribute.ts'
import * as semconv from './semconv.ts'

// Anything can be thrown, and what is caught is passed on as it is: null, a number, an object of no class, a proxy whose
// properties throw in their turn. Nothing here throws.

/** The attributes of the event `exception` (OpenTelemetry semantic conventions, exceptions on spans). */
export function exceptionAttributes(exception: unknown): Attributes {
  if (typeof exception !== 'object' || exception === null)
    return { [semconv.EXCEPTION_MESSAGE]: textOf(exception) }
  const attributes: Attributes = {}
  const type = errorType(exception)
  if (type !== undefined) attributes[semconv.EXCEPTION_TYPE] = type
  try {
    const { message, stack } = exception as { message?: unknown; stack?: unknown }
    if (typeof message === 'string') {
      attributes[semconv.EXCEPTION_MESSAGE] = message
      // A plain object with a message, as some libraries hand over, is of no type.
      if (type === 'Object') delete attributes[semconv.EXCEPTION_TYPE]
    }
    if (typeof stack === 'string') attributes[semconv.EXCEPTION_STACKTRACE] = stack
  } catch (error) {
    sayUnreadable('an exception', error)
  }
  return attributes
}

/** The message of an error, or the thing itself as text where it is none. */
export function messageOf(error: unknown): string {
  try {
    if (!(error instanceof Error)) return String(error)
    // An error that stands for several (one for each address that was tried) has a code and no message.
    return String(error.message) || (errorType(error) ?? '')
  } catch {
    return 'an error without text'
  }
}

/** Classes that say nothing of what went wrong; the last is what a host with several addresses fails with. */
const PLAIN = new Set(['Error', 'Object', 'AggregateError'])

/**
 * What kind of error this is, in few different words: the code of a system error (ECONNREFUSED) or of a plain Error,
 * else the name of its class; undefined for what is no error.
 */
export function errorType(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined
  try {
    return typeOf(error)
  } catch {
    return undefined
  }
}

function typeOf(error: object): string | undefined {
  const { code, name, syscall } = error as { code?: unknown; name?: unknown; syscall?: unknown }
  const className: unknown = error.constructor?.name
  const isNamed = typeof name === 'string' && name !== '' && name !== 'Error'
  const ownName = isNamed ? name : typeof className === 'string' && className !== '' ? className : undefined
  const isPlain = ownName === undefined || PLAIN.has(ownName)
  if (typeof code === 'string' && code !== '' && (isPlain || syscall !== undefined)) return code
  return ownName
}
