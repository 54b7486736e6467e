/** What one option must be: in words, by example, and as a test. */
export type Expectation = { wanted: string; example: string; accepts: (value: unknown) => boolean }

/** What options may be: an object of whichever class, or all that a module exports. */
const PLAIN = new Set(['[object Object]', '[object Module]'])

/** An expectation for every option that there is. */
export type Shape<T> = { readonly [Key in keyof Required<T>]: Expectation }

/** Whole numbers, none of which is less or more. */
export function whole(name: string, least: number, most: number, example: number): Expectation {
  return {
    wanted: `a whole number from ${least} to ${most}`,
    example: `${name}: ${example}`,
    accepts: (value) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most,
  }
}

/** How much of something is held at most; Infinity is no limit. */
export function limit(name: string, example: number): Expectation {
  return {
    wanted: 'a number of at least 1',
    example: `${name}: ${example}`,
    accepts: (value) => typeof value === 'number' && value >= 1,
  }
}

export function callback(example: string): Expectation {
  return { wanted: 'a function', example, accepts: (value) => typeof value === 'function' }
}

/**
 * The options as they were given, checked.
 * @throws TypeError that says what was expected, what was received, and an example, for an option that is unknown or of
 *   the wrong shape.
 */
export function validated<T extends object>(caller: string, shape: Shape<T>, given: T): T {
  const expectations = Object.entries<Expectation>(shape)
  const first = expectations[0]?.[1].example ?? ''
  // A list, a Date or a promise keeps its content elsewhere, and would pass for no options.
  if (!PLAIN.has(Object.prototype.toString.call(given))) {
    throw mistake(caller, 'an object of options', show(given), `{ ${first} }`)
  }
  const unknown = Object.keys(given).find((key) => !Object.hasOwn(shape, key))
  if (unknown !== undefined) {
    const known = Object.keys(shape).join(', ')
    throw mistake(
      caller,
      `options among ${known}`,
      `an unknown one, ${JSON.stringify(unknown)}`,
      `{ ${first} }`,
    )
  }
  for (const [key, { wanted, example, accepts }] of expectations) {
    const value: unknown = given[key as keyof T]
    if (value !== undefined && !accepts(value)) {
      throw mistake(caller, `${key} to be ${wanted}`, show(value), `{ ${example} }`)
    }
  }
  return given
}

/** @throws TypeError for what is no list, such as a whole trace. */
export function checkSpans(caller: string, spans: unknown): void {
  if (!Array.isArray(spans))
    throw mistake(`${caller}()`, 'a list of spans', show(spans), `${caller}(trace.spans)`)
}

export function mistake(caller: string, wanted: string, received: string, example: string): TypeError {
  return new TypeError(`${caller}: expected ${wanted}, received ${received}; example: ${example}`)
}

/** What an error says, or whatever else was thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'function') return 'a function'
  if (Array.isArray(value)) return 'an array'
  return typeof value === 'object' && value !== null ? 'an object' : String(value)
}
