import type { Attributes, Exception } from '@opentelemetry/api'
import { types } from 'node:util'
import { sayUnreadable, textOf } from './attribute.ts'
import { redactText } from './redact.ts'
import * as semconv from './semconv.ts'

// Anything can be thrown, and what is caught is passed on as it is: null, a number, an object of no class, a proxy whose
// properties throw in their turn. Nothing here throws.

/** An error's message as it was, and the one that may leave the process. */
interface Shown {
  readonly raw: string
  readonly message: string
}

/** Shared by all copies of this package: the copy that masks a message need not be the one that records the error. */
const SHOWN = Symbol.for('throughline.shown-messages')

/** Tells the message of an error without the values in it; undefined for an error that is not of its library. */
type Mask = (error: object) => string | undefined

/** Shared by all copies, too. */
const MASKS = Symbol.for('throughline.masks')

/**
 * Masks a library's errors even if no span of that library saw them. A mask is called when a span records an error, but not for
 * errors that it reads itself meanwhile.
 */
export function maskErrors(mask: Mask): void {
  const known = globalThis as { [MASKS]?: Set<Mask> }
  ;(known[MASKS] ??= new Set()).add(mask)
}

let isMasking = false

/** What a mask or `showAs` says of an error; of any other without what is secret in the URLs that its message names. */
function shownOf(error: object): Shown | undefined {
  return maskedOf(error) ?? withoutSecrets(error)
}

function withoutSecrets(error: object): Shown | undefined {
  const raw = readFrom(error, 'message')
  if (typeof raw !== 'string') return undefined
  const message = redactText(raw)
  return message === raw ? undefined : { raw, message }
}

/** What a mask or `showAs` says of an error, or of one below it whose message it repeats. */
function maskedOf(error: object): Shown | undefined {
  return maskedItself(error) ?? maskedByCause(error)
}

function maskedItself(error: object): Shown | undefined {
  const known = globalThis as { [SHOWN]?: WeakMap<object, Shown>; [MASKS]?: Set<Mask> }
  const shown = known[SHOWN]?.get(error)
  if (shown !== undefined || known[MASKS] === undefined || isMasking) return shown
  isMasking = true
  try {
    for (const mask of known[MASKS]) {
      const message = mask(error)
      if (message !== undefined) showAs(error, message)
    }
  } catch (trouble) {
    sayUnreadable('an exception', trouble)
  } finally {
    isMasking = false
  }
  return known[SHOWN]?.get(error)
}

/** How many errors below one are looked at, by either way: one may be its own cause. */
const MOST_BELOW = 8

/** `new Error('could not save: ' + error.message, { cause: error })` holds what the error below it holds. */
function maskedByCause(error: object): Shown | undefined {
  try {
    const { message: raw } = error as { message?: unknown }
    if (typeof raw !== 'string' || raw === '') return undefined
    let message = raw
    for (const each of errorsBelow(error)) {
      const below = maskedItself(each)
      if (below !== undefined && below.raw !== '')
        message = message.replaceAll(below.raw, () => below.message)
    }
    return message === raw ? undefined : { raw, message: redactText(message) }
  } catch {
    // Who records the error reads it, too, and says what cannot be read.
    return undefined
  }
}

/** Those that an AggregateError stands for, and the cause, its cause and so on. */
function errorsBelow(error: object): object[] {
  const { errors } = error as { errors?: unknown }
  const below: unknown[] = Array.isArray(errors) ? errors.slice(0, MOST_BELOW) : []
  let { cause } = error as { cause?: unknown }
  for (let depth = 0; depth < MOST_BELOW && isObject(cause); depth++) {
    below.push(cause)
    ;({ cause } = cause as { cause?: unknown })
  }
  return below.filter(isObject)
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}

/**
 * Makes every span that records this very error show this message instead of its own, which holds values. The error itself is
 * the app's and stays unchanged.
 *
 * @returns the message as it is shown, without what is secret in its URLs.
 */
export function showAs(error: unknown, message: string): string {
  const shown = redactText(message)
  if (typeof error !== 'object' || error === null || messageOf(error) === shown) return shown
  const raw = rawMessageOf(error)
  const known = globalThis as { [SHOWN]?: WeakMap<object, Shown> }
  const map = (known[SHOWN] ??= new WeakMap<object, Shown>())
  map.set(error, { raw, message: shown })
  return shown
}

/** The error as it may be recorded: itself, or a masked stand-in for foreign spans, which do not mask. */
export function showable(error: Error): Exception {
  const shown = shownOf(error)
  if (shown === undefined) return error
  const name = errorType(error) ?? 'Error'
  return { name, message: shown.message, stack: maskedStack(name, error.stack, shown) }
}

/** Of the stack only where the error comes from: it begins with a message, as it was or as others have changed it since. */
function maskedStack(name: string, stack = '', { raw, message }: Shown): string {
  const at = stack.indexOf(raw)
  const behind = at === -1 ? stack : stack.slice(at + raw.length)
  const frames = behind.indexOf('\n    at ')
  // Some libraries add the errors below it, with their messages.
  return `${name}: ${message}${frames === -1 ? '' : redactText(behind.slice(frames))}`
}

/** The attributes of the event `exception` (OpenTelemetry semantic conventions, exceptions on spans). */
export function exceptionAttributes(exception: unknown): Attributes {
  if (typeof exception !== 'object' || exception === null)
    return { [semconv.EXCEPTION_MESSAGE]: redactText(textOfThrown(exception)) }
  const attributes: Attributes = {}
  const type = errorType(exception)
  if (type !== undefined) attributes[semconv.EXCEPTION_TYPE] = type
  const message = readFrom(exception, 'message')
  const stack = readFrom(exception, 'stack')
  const shown = shownOf(exception)
  if (isText(message)) {
    attributes[semconv.EXCEPTION_MESSAGE] = shown?.message ?? String(message)
    // A plain object with a message, as some libraries throw, has no type.
    if (type === 'Object') delete attributes[semconv.EXCEPTION_TYPE]
  }
  if (typeof stack === 'string')
    attributes[semconv.EXCEPTION_STACKTRACE] =
      shown === undefined ? redactText(stack) : maskedStack(type ?? 'Error', stack, shown)
  // One of the two is required.
  if (attributes[semconv.EXCEPTION_TYPE] === undefined)
    attributes[semconv.EXCEPTION_MESSAGE] ??= textOf(exception)
  return attributes
}

/** For a class thrown without `new`, its name: its text would be its source code. */
function textOfThrown(thrown: unknown): string {
  if (typeof thrown !== 'function') return textOf(thrown)
  try {
    return `[Function: ${textOf(thrown.name)}]`
  } catch {
    return '[Function]'
  }
}

/** Read separately: a hook that fails to format the stack costs only the stack. */
function readFrom(exception: object, name: 'message' | 'stack'): unknown {
  try {
    return (exception as { message?: unknown; stack?: unknown })[name]
  } catch (error) {
    sayUnreadable(`the ${name} of an exception`, error)
    return undefined
  }
}

function isText(value: unknown): value is string | number | bigint | boolean {
  return ['string', 'number', 'bigint', 'boolean'].includes(typeof value)
}

/** Also one of Node's where the app has replaced Promise: async functions still return it. */
export function isPromise(value: unknown): value is Promise<unknown> {
  return value instanceof Promise || types.isPromise(value)
}

/** Whether it is an error, of this realm or of another: in jest, those of Node are of another than what a test imports. */
export function isError(value: unknown): value is Error {
  try {
    return value instanceof Error || types.isNativeError(value) || value instanceof DOMException
  } catch {
    // A proxy that does not say what it is.
    return false
  }
}

/** The message of an error as it may be shown; anything else that was thrown, as text. */
export function messageOf(error: unknown): string {
  return redactText(rawMessageOf(error))
}

/** The same for a mask to read, which looks for values as they were: only what was masked before is no more in it. */
export function rawMessageOf(error: unknown): string {
  try {
    if (!isError(error)) return typeof error === 'function' ? textOfThrown(error) : String(error)
    const masked = maskedOf(error)
    if (masked !== undefined) return masked.message
    // An error that stands for several (one for each address that was tried) has a code and no message.
    return String(error.message) || (errorType(error) ?? '')
  } catch {
    return 'an error without text'
  }
}

/** Classes that say nothing about what went wrong; the last is thrown for a host with several addresses. */
const PLAIN = new Set(['Error', 'Object', 'AggregateError'])

/**
 * What kind of error this is, in few different words: the code of a system error (ECONNREFUSED) or of a plain Error, else the
 * name of its class; undefined for anything but an error.
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
  const givenName = typeof name === 'string' && name !== '' ? name : undefined
  const constructorName: unknown = error.constructor?.name
  const className =
    typeof constructorName === 'string' && constructorName !== '' ? constructorName : undefined
  // A class that sets no name inherits this one. An object of no class was given it: so the AI SDK records errors.
  const isInherited = givenName === 'Error' && className !== undefined && className !== 'Object'
  const ownName = isInherited ? className : (givenName ?? className)
  const isPlain = ownName === undefined || PLAIN.has(ownName)
  if (typeof code === 'string' && code !== '' && (isPlain || syscall !== undefined)) return code
  return ownName
}
