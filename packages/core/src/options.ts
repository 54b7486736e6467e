import { isDeepStrictEqual } from 'node:util'
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

/** What the texts of a Match are, in words and as a pattern: another could never match, and would do so in silence. */
export interface Texts {
  readonly one: string
  readonly many: string
  readonly pattern: RegExp
}

const ANY_TEXTS: Texts = { one: 'a string', many: 'strings', pattern: /^/ }

export const MATCH = (example: string, { one, many, pattern }: Texts = ANY_TEXTS): Expectation =>
  expected(
    `a function, ${one}, a RegExp or a list of ${many} and RegExps`,
    example,
    (value) => wrongTests(value, pattern).length === 0,
    (value) => {
      const [first] = wrongTests(value, pattern)
      return Array.isArray(value) ? `an array with ${showNoUrl(first)}` : showNoUrl(value)
    },
  )

/** Headers to record: `capture` of all that speak HTTP. */
export const CAPTURE = expected(
  'lists of header names',
  "capture: { requestHeaders: ['x-request-id'], responseHeaders: ['content-type'] }",
  (value) => isRecord(value) && wrongEntry(value, isCapture) === undefined,
  (value) => showEntry(value, isCapture),
)

function isCapture(key: string, names: unknown): boolean {
  return (key === 'requestHeaders' || key === 'responseHeaders') && isStrings(names)
}

/**
 * Whether a value is an object with properties as options, of whichever class. A list, a Map or a Headers keeps its content
 * elsewhere, and would pass for empty options.
 */
export function isRecord(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !(Symbol.iterator in value)
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
  if (!isRecord(given)) throw noOptions(caller, shape, given)
  for (const [key, value] of Object.entries(given)) {
    const expectation = (shape as Record<string, Expectation>)[key]
    if (expectation === undefined || !Object.hasOwn(shape, key)) {
      // What has a class of its own is more likely something else, as an app or an agent is.
      if ((given.constructor?.name ?? 'Object') !== 'Object') throw noOptions(caller, shape, given)
      const names = Object.keys(shape).join(', ')
      const [first] = Object.values<Expectation>(shape)
      throw new TypeError(
        `${caller}: expected options among ${names}, received an unknown one, "${key}"; example: { ${first?.example} }`,
      )
    }
    if (value !== undefined && !expectation.accepts(value)) {
      const { wanted, example, shows } = expectation
      throw new TypeError(
        `${caller}: expected ${key} to be ${wanted}, received ${shows(value)}; example: { ${example} }`,
      )
    }
  }
  return given
}

function noOptions(caller: string, shape: object, given: unknown): TypeError {
  const [first] = Object.values<Expectation>(shape as Record<string, Expectation>)
  return new TypeError(
    `${caller}: expected an object of options, received ${show(given)}; example: { ${first?.example} }`,
  )
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
  if (typeof value === 'function') return `a function${value.name === '' ? '' : ` (${value.name})`}`
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'object' && value !== null)
    return `an object of ${value.constructor?.name ?? 'no class'}`
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

type IsRight = (key: string, value: unknown) => boolean

function wrongEntry(of: object, isRight: IsRight): [key: string, value: unknown] | undefined {
  return Object.entries(of).find(([key, value]) => !isRight(key, value))
}

/** An object by the first of its properties that is wrong, the value of which is shown as its type. */
export function showEntry(value: unknown, isRight: IsRight, shows = showType): string {
  const wrong = isRecord(value) ? wrongEntry(value, isRight) : undefined
  return wrong === undefined
    ? showType(value)
    : `an object with ${JSON.stringify(wrong[0])}: ${shows(wrong[1])}`
}

/** A value that must not be shown, as its type. */
export function showType(value: unknown): string {
  if (value === undefined) return 'undefined'
  return typeof value === 'object' || typeof value === 'function' ? show(value) : `a ${typeof value}`
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
      if (!(answer instanceof Promise)) return answer
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
 * if the app gave strings or RegExps; `isText` says whether it is a string of the app's.
 */
export function matcher<Subject extends unknown[]>(
  name: string,
  match: Match<Subject> | undefined,
  text: (...subject: Subject) => string,
  isText: (given: string, text: string) => boolean = isSame,
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

function isSame(given: string, text: string): boolean {
  return given === text
}

/** The same Match for texts in upper case: the app's strings may be in any case. A RegExp stays as it is. */
export function inUpperCase<Subject extends unknown[]>(
  match: Match<Subject> | undefined,
): Match<Subject> | undefined {
  if (match === undefined || typeof match === 'function') return match
  const tests = (Array.isArray(match) ? match : [match]) as readonly TextMatch[]
  return tests.map((test) => (typeof test === 'string' ? test.toUpperCase() : test))
}

/** What of a Match is neither a RegExp nor a text of that kind. */
function wrongTests(value: unknown, pattern: RegExp): unknown[] {
  if (typeof value === 'function') return []
  const tests: unknown[] = Array.isArray(value) ? value : [value]
  return tests.filter((test) => !(typeof test === 'string' ? pattern.test(test) : test instanceof RegExp))
}
