import type { Attributes } from '@opentelemetry/api'
import { isDeepStrictEqual } from 'node:util'
import { isPromise } from './exception.ts'
import { REDACTED, redactUrl } from './redact.ts'
import { reportOnce } from './report.ts'

/** What one option must be: in words, by example, and as a test; and how a message shows a wrong value. */
export interface Expectation {
  readonly wanted: string
  readonly example: string
  readonly accepts: (value: unknown) => boolean
  readonly shows: (value: unknown) => string
}

/** An expectation for every option that there is. */
export type Shape<T> = { readonly [Key in keyof Required<T>]: Expectation }

/** A test of text (a path, a URL, a command): a string is compared whole. */
export type TextMatch = string | RegExp

/** Selects subjects: by a function of the subject, or by its text. */
export type Match<Subject extends unknown[]> =
  | ((...subject: Subject) => boolean)
  | TextMatch
  | readonly TextMatch[]

export function expected(
  wanted: string,
  example: string,
  accepts: (value: unknown) => boolean,
  shows: (value: unknown) => string = show,
): Expectation {
  return { wanted, example, accepts, shows }
}

export function choice(name: string, choices: readonly string[]): Expectation {
  const wanted = `one of ${choices.map((value) => `'${value}'`).join(', ')}`
  return expected(wanted, `${name}: '${choices[0]}'`, (value) => choices.includes(value as string))
}

export const BOOLEAN = (name: string): Expectation =>
  expected('true or false', `${name}: true`, (value) => typeof value === 'boolean')

export const FUNCTION = (example: string): Expectation =>
  expected('a function', example, (value) => typeof value === 'function')

/** Texts that do not fit `pattern` could never match, so they are refused: else nobody would notice. */
export const MATCH = (example: string, texts = 'a string', pattern = /^/): Expectation => {
  const isRight = (test: unknown) => (typeof test === 'string' ? pattern.test(test) : test instanceof RegExp)
  const wrong = (value: unknown) => [value].flat().filter((test) => !isRight(test))
  return expected(
    `a function, ${texts}, a RegExp or a list of those`,
    example,
    (value) => typeof value === 'function' || wrong(value).length === 0,
    (value) => (Array.isArray(value) ? 'an array with ' : '') + showNoUrl(wrong(value)[0]),
  )
}

/** An object whose properties are right, shown by the first that is not. */
export function entries(
  wanted: string,
  example: string,
  isRight: (key: string, value: unknown) => boolean,
  shows: (value: unknown) => string = showType,
): Expectation {
  const wrong = (of: object) => Object.entries(of).find(([key, value]) => !isRight(key, value))
  return expected(
    wanted,
    example,
    (value) => isRecord(value) && wrong(value) === undefined,
    (value) => {
      const entry = isRecord(value) && wrong(value)
      return entry ? `an object with "${entry[0]}": ${shows(entry[1])}` : shows(value)
    },
  )
}

/** Headers to record, by name: `capture` of all that speak HTTP. */
export interface HeadersToCapture {
  readonly requestHeaders?: readonly string[] | undefined
  readonly responseHeaders?: readonly string[] | undefined
}

export const CAPTURE = entries(
  'lists of header names',
  "capture: { requestHeaders: ['x-request-id'], responseHeaders: ['content-type'] }",
  (key, names) => /^(request|response)Headers$/.test(key) && (names === undefined || isStrings(names)),
)

/**
 * Whether a value is an object with properties as options, of whichever class. A list, a Map or a Headers keeps its content
 * elsewhere, and would pass for empty options; so would a RegExp, or the promise of options that nobody awaits.
 */
export function isRecord(value: unknown): value is object {
  if (typeof value !== 'object' || value === null || Symbol.iterator in value) return false
  return Object.prototype.toString.call(value) === '[object Object]' || Object.keys(value).length > 0
}

/** Whether a value is an object with all of these methods, of whichever class. */
export function hasMethods(value: unknown, ...methods: string[]): boolean {
  return (
    typeof value === 'object' &&
    value !== null &&
    methods.every((method) => typeof (value as Record<string, unknown>)[method] === 'function')
  )
}

/** Whether a value is a share of something: a number from 0 to 1. */
export function isRatio(value: unknown): boolean {
  return typeof value === 'number' && value >= 0 && value <= 1
}

export function isStrings(value: unknown): boolean {
  return Array.isArray(value) && value.every((each) => typeof each === 'string')
}

/**
 * The options as they were given, checked.
 * @throws TypeError that says what was expected, what was received, and an example, for an option that is unknown or of
 *   the wrong shape.
 */
export function validated<T extends object>(caller: string, shape: Shape<T>, given: T): T {
  const [first] = Object.values<Expectation>(shape)
  const mistake = (wanted: string, received: string, example = first?.example): TypeError =>
    new TypeError(`${caller}: expected ${wanted}, received ${received}; example: { ${example} }`)
  const noOptions = (): TypeError => mistake('an object of options', show(given))

  if (!isRecord(given)) throw noOptions()
  for (const key of Object.keys(given)) {
    if (Object.hasOwn(shape, key)) continue
    // Of a class, and with none of ours, it may be an app or an agent.
    const isOptions = Object.keys(given).some((each) => Object.hasOwn(shape, each))
    if (!isOptions && (given.constructor?.name ?? 'Object') !== 'Object') throw noOptions()
    throw mistake(`options among ${Object.keys(shape).join(', ')}`, `an unknown one, "${key}"`)
  }
  // Not by the keys of what is given: a class may have an option by a getter.
  for (const [key, { wanted, example, accepts, shows }] of Object.entries<Expectation>(shape)) {
    const value: unknown = given[key as keyof T]
    if (value !== undefined && !accepts(value)) throw mistake(`${key} to be ${wanted}`, shows(value), example)
  }
  return given
}

/** The options by which each object is traced, shared by all copies of this package like its marks on those objects. */
const HELD = Symbol.for('throughline.held-options')

function heldOptions(): WeakMap<object, object> {
  const known = globalThis as { [HELD]?: WeakMap<object, object> }
  return (known[HELD] ??= new WeakMap<object, object>())
}

/** Keeps the options in force for a target, until it is traced anew. */
export function holdOptions(of: object, options: object): void {
  heldOptions().set(of, options)
}

/**
 * For a target that is already traced: options that differ from those in force are dropped, which is reported once for each
 * caller. `example` shows how to apply new ones, and `otherwise` what else the app can do.
 */
export function dropOptions(
  of: object,
  options: object,
  caller: string,
  example: string,
  otherwise = ', or end its tracing before',
): void {
  const first = heldOptions().get(of) as Record<string, unknown> | undefined
  const dropped = Object.entries(options).filter(
    ([name, value]) => value !== undefined && !isDeepStrictEqual(value, first?.[name]),
  )
  if (dropped.length === 0) return
  const names = dropped.map(([name]) => name).join(', ')
  reportOnce(
    `second call:${caller}`,
    'warn',
    `${caller}: expected the options of the first call, for those hold, received others: ${names}; give all of them to the first call${otherwise}; for example ${example}`,
  )
}

/** A value as an error message shows it; a connection string without its password. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(redactUrl(value))
  if (typeof value === 'function') return `a function${value.name === '' ? '' : ` (${String(value.name)})`}`
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'object' && value !== null)
    return `an object of ${String(value.constructor?.name ?? 'no class')}`
  return String(value)
}

/**
 * An invalid URL without what may be a secret in it: all before the last `@` and after the `?`. If these overlap, it is unclear
 * which part is the host.
 */
export function showNoUrl(value: unknown): string {
  if (typeof value !== 'string') return show(value)
  const [place = '', ...query] = value.split(/[?#]/)
  const at = value.lastIndexOf('@')
  if (at > place.length) return JSON.stringify(REDACTED)
  const host = at === -1 ? place : `${REDACTED}@${place.slice(at + 1)}`
  return JSON.stringify(query.length === 0 ? host : `${host}?${REDACTED}`)
}

/** A value that must not be shown, as its type. */
export function showType(value: unknown): string {
  if (value === undefined) return 'undefined'
  return typeof value === 'object' || typeof value === 'function' ? show(value) : `a ${typeof value}`
}

/**
 * Reports what a function of the app has answered, by its type: it may be data. Null and false are no mistakes: `user && { … }`
 * has nothing to add.
 */
export function sayUnfit(option: string, answer: unknown, wanted: string, example: string): void {
  if (answer === undefined || answer === null || answer === false) return
  const received = answer === '' ? "''" : showType(answer)
  reportOnce(
    `unfit:${option}`,
    'error',
    `${option}: expected ${wanted}, received ${received}, which is left out; for example ${example}`,
  )
}

/** What the app's `attributes` has answered, if those are any. */
export function answeredAttributes(answer: unknown): Attributes | undefined {
  if (isRecord(answer)) return answer as Attributes
  sayUnfit('attributes', answer, 'an object of attributes', "attributes: () => ({ 'app.tenant': 'acme' })")
  return undefined
}

/**
 * The app's function, made never to throw: trouble is reported once, and the call returns undefined. Undefined if the app gave
 * none.
 */
export function guarded<A extends unknown[], R>(
  name: string,
  fn: ((...args: A) => R) | undefined,
): ((...args: A) => R | undefined) | undefined {
  if (fn === undefined) return undefined
  const sayThrown = (error: unknown) =>
    reportOnce(`callback:${name}`, 'error', `the function given as ${name} threw`, error)
  return (...args) => {
    try {
      const answer = fn(...args)
      if (!isPromise(answer)) return answer
      // A promise settles too late. An unhandled rejection would end the process.
      reportOnce(
        `promise:${name}`,
        'warn',
        `the function given as ${name} returned a promise, which is not awaited`,
      )
      answer.catch(sayThrown)
      return undefined
    } catch (error) {
      sayThrown(error)
      return undefined
    }
  }
}

/**
 * A Match as a predicate that never throws; undefined if none was given. `text` returns the subject's text, and is called only
 * if the app gave strings or RegExps.
 */
export function matcher<Subject extends unknown[]>(
  name: string,
  match: Match<Subject> | undefined,
  text: (...subject: Subject) => string,
  isText: (given: string, text: string) => boolean = Object.is,
): ((...subject: Subject) => boolean) | undefined {
  if (match === undefined) return undefined
  if (typeof match === 'function') {
    const ask = guarded(name, match)
    return (...subject) => ask?.(...subject) === true
  }
  const given = (Array.isArray(match) ? match : [match]) as readonly TextMatch[]
  // A copy: with the flag g or y a RegExp stores its position, which a frozen one cannot.
  const tests = given.map((test) =>
    Object.isFrozen(test) && typeof test === 'object' ? new RegExp(test) : test,
  )
  return (...subject) => {
    const candidate = text(...subject)
    return tests.some((test) =>
      typeof test === 'string' ? isText(test, candidate) : candidate.search(test) !== -1,
    )
  }
}
