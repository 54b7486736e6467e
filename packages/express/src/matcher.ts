/** Of router 2: tells for one of a layer's paths whether it matches, which text, and with which values. */
export type Matcher = (path: string) => false | { readonly path: string; readonly params: Values }

type Values = Readonly<Record<string, string | readonly string[] | undefined>>

interface Known {
  readonly regexp: RegExp
  readonly names: readonly string[]
  readonly pattern: string
}

/** A value that no app expects, in the place of another. */
const PROBE = 'throughline0'
/** A longer text waits for a shorter one of the same path: the search below is quadratic. */
const LONGEST = 256

const known = new WeakMap<Matcher, Known[]>()

/**
 * Router 2.0 to 2.2 keep a mount path in this function alone. In a text that it matches, the values give way to their
 * names, wherever another value in that place becomes the value of that name. Undefined where this does not say
 * which: the app gave a RegExp, or the client encoded what needs no encoding.
 */
export function patternIn(matcher: Matcher, text: string): string | undefined {
  // The closure around a RegExp of the app’s.
  if (matcher.name === 'regexpMatcher') return undefined
  const match = matcher(text)
  if (match === false || match.path !== text) return undefined
  let patterns = known.get(matcher)
  if (patterns === undefined) known.set(matcher, (patterns = []))
  const same = patterns.find((each) => isOf(each, text, match.params))
  if (same !== undefined) return same.pattern
  const found = text.length > LONGEST ? undefined : find(matcher, text, match.params)
  if (found === undefined) return undefined
  patterns.push(found)
  return found.pattern
}

/** Whether a text is of this pattern: the case that its first client wrote it in is kept. */
function isOf({ regexp, names }: Known, text: string, values: Values): boolean {
  const match = regexp.exec(text)
  return (
    match !== null &&
    names.length === Object.keys(values).length &&
    names.every((name, i) => spellings(values[name]).includes(match[i + 1] as string))
  )
}

function find(matcher: Matcher, text: string, values: Values): Known | undefined {
  const names = Object.keys(values)
  let pattern = ''
  let source = ''
  let rest = 0
  for (const name of names) {
    const value = values[name]
    const place = placeOf(matcher, text, values, name, rest)
    if (place === undefined) return undefined
    const between = text.slice(rest, place.start)
    const isWildcard = typeof value !== 'string'
    pattern += `${between}${isWildcard ? '*' : ':'}${name}`
    source += `${escaped(between)}${isWildcard ? '(.+)' : '([^/]+?)'}`
    rest = place.end
  }
  const last = text.slice(rest)
  return { regexp: new RegExp(`^${source}${escaped(last)}$`, 'i'), names, pattern: pattern + last }
}

interface Place {
  readonly start: number
  readonly end: number
}

function placeOf(
  matcher: Matcher,
  text: string,
  values: Values,
  name: string,
  from: number,
): Place | undefined {
  for (const spelling of spellings(values[name])) {
    for (let start = text.indexOf(spelling, from); start !== -1; start = text.indexOf(spelling, start + 1)) {
      const end = start + spelling.length
      const probe = text.slice(0, start) + PROBE + text.slice(end)
      const match = matcher(probe)
      if (match !== false && match.path === probe && isProbed(match.params, values, name))
        return { start, end }
    }
  }
  return undefined
}

/** Whether the probe has become the value of this name, and changed no other. */
function isProbed(found: Values, values: Values, name: string): boolean {
  const names = Object.keys(values)
  return (
    Object.keys(found).length === names.length &&
    names.every((each) => String(found[each]) === (each === name ? PROBE : String(values[each])))
  )
}

/** How a client may have written a value. */
function spellings(value: Values[string]): string[] {
  const parts = typeof value === 'string' ? [value] : (value ?? [])
  return [parts.join('/'), parts.map(encodeURIComponent).join('/')].filter((each) => each !== '')
}

function escaped(text: string): string {
  return text.replace(/[$()*+.?[\\\]^{|}]/g, String.raw`\$&`)
}
