import { alternativesOf, type Alternative, type Key } from './regexp.ts'

type Path = string | RegExp
type Paths = Path | readonly Paths[]

/** What a layer knows of its path. */
export interface Patterned {
  readonly route?: { readonly path: Paths } | undefined
  /** Router 2.3 and newer. */
  readonly rawPath?: Paths
  /** Router 2. */
  readonly matchers?: readonly Matcher[]
  readonly slash?: boolean
  /** Express 4. */
  readonly regexp?: RegExp & { fast_slash?: boolean }
  readonly keys?: readonly Key[]
  match(path: string): unknown
}

const alternatives = new WeakMap<Patterned, readonly Alternative[]>()

/** The pattern of a route's own path; of several, the one that this path matches. */
export function routePattern(layer: Patterned, path: () => string): string | undefined {
  const own = layer.route?.path
  if (!isSeveral(own)) return shown(own)
  if (layer.rawPath !== undefined) return shown(matchedPath(layer, path()))
  const all = (own as readonly unknown[]).flat(Infinity) as Path[]
  if (layer.regexp === undefined) {
    const index = layer.matchers?.findIndex((matcher) => matcher(path()) !== false) ?? -1
    return own.length === all.length ? shown(all[index]) : undefined
  }
  const made = alternativesIn(layer, layer.regexp)
  const index = made.findIndex((each) => each.matched(path()) !== undefined)
  return shown(made.length === all.length ? all[index] : made[index]?.path)
}

/** The pattern of a mount path, where `segment` is what it matched. */
export function mountPattern(layer: Patterned, segment: string): string | undefined {
  const path = mountPath(layer, segment)
  // A slash at its end means nothing there; that of a RegExp belongs to it.
  return shown(typeof path === 'string' && path.length > 1 ? path.replace(/\/+$/, '') : path)
}

function mountPath(layer: Patterned, segment: string): Path | undefined {
  const { rawPath, regexp, slash, matchers = [] } = layer
  if (rawPath !== undefined) return isSeveral(rawPath) ? matchedPath(layer, segment) : rawPath
  if (regexp?.fast_slash === true || slash === true) return '/'
  if (regexp !== undefined)
    return alternativesIn(layer, regexp).find((each) => each.matched(segment) !== undefined)?.path
  const matcher = matchers.find((each) => each(segment) !== false)
  return matcher === undefined ? undefined : patternIn(matcher, segment)
}

/** The text that a mount path matches, without the slash at its end; undefined where it does not match. */
export function matchedText(layer: Patterned, path: string): string | undefined {
  const text = matchedIn(layer, path)
  return text?.endsWith('/') === true ? text.slice(0, -1) : text
}

function matchedIn(layer: Patterned, path: string): string | undefined {
  const { regexp, rawPath, slash, matchers = [] } = layer
  if (regexp?.fast_slash === true || slash === true) return ''
  if (regexp !== undefined)
    return firstOf(alternativesIn(layer, regexp), (alternative) => alternative.matched(path))
  if (rawPath === undefined) return firstOf(matchers, (matcher) => (matcher(path) || undefined)?.path)
  const match = layer.match(path)
  return typeof match === 'object' && match !== null && 'path' in match ? String(match.path) : undefined
}

/** Router 2.3: of several paths the match tells which. */
function matchedPath(layer: Patterned, path: string): Path | undefined {
  const match = layer.match(path)
  return typeof match === 'object' && match !== null && 'pattern' in match
    ? (match.pattern as Path)
    : undefined
}

function alternativesIn(layer: Patterned, regexp: RegExp): readonly Alternative[] {
  let made = alternatives.get(layer)
  if (made === undefined) {
    made = alternativesOf(regexp, layer.keys ?? [], layer.route === undefined ? 'mount' : 'route')
    alternatives.set(layer, made)
  }
  return made
}

function shown(path: Path | undefined): string | undefined {
  return path === undefined ? undefined : String(path)
}

function isSeveral(path: Paths | undefined): path is readonly Paths[] {
  return Array.isArray(path)
}

function firstOf<T, R>(all: readonly T[], of: (each: T) => R | undefined): R | undefined {
  for (const each of all) {
    const found = of(each)
    if (found !== undefined) return found
  }
  return undefined
}

/** `/api` and `/users` → `/api/users`; `/api` and `/` → `/api`. */
export function joined(mount: string | undefined, path: string | undefined): string | undefined {
  if (mount === undefined || path === undefined) return undefined
  if (mount === '') return path
  const start = mount === '/' ? '' : mount
  return path === '/' && start !== '' ? start : start + path
}

// ---- Router 2.0 to 2.2 ----

/** Of router 2: tells for one of a layer's paths whether it matches, which text, and with which values. */
type Matcher = (path: string) => false | { readonly path: string; readonly params: Values }

type Values = Readonly<Record<string, string | readonly string[] | undefined>>

interface Known {
  readonly regexp: RegExp
  readonly names: readonly string[]
  readonly pattern: string
}

/** A value that no app expects, in the place of another. */
const PROBE = 'throughline0'
/** In a longer text no pattern is searched for, since the search is quadratic: a shorter one of the same path will show it. */
const LONGEST = 256

/**
 * A mount path has a pattern or two, more with parts that are optional. Where so many searches were not enough, its texts
 * cannot be told by the patterns that were found, and clients could have one made for each request.
 */
const MOST_SEARCHES = 32

interface Search {
  readonly patterns: Known[]
  count: number
}

const known = new WeakMap<Matcher, Search>()

/**
 * Router 2.0 to 2.2 keep a mount path in this function alone. In a text that it matches, the values give way to their
 * names, wherever another value in that place becomes the value of that name. Undefined where this does not say
 * which: the app gave a RegExp, or the client encoded what needs no encoding.
 */
function patternIn(matcher: Matcher, text: string): string | undefined {
  // The closure around a RegExp of the app’s.
  if (matcher.name === 'regexpMatcher') return undefined
  const match = matcher(text)
  if (match === false || match.path !== text) return undefined
  let search = known.get(matcher)
  if (search === undefined) known.set(matcher, (search = { patterns: [], count: 0 }))
  const same = search.patterns.find((each) => isOf(each, text, match.params))
  if (same !== undefined) return same.pattern
  if (text.length > LONGEST || search.count >= MOST_SEARCHES) return undefined
  search.count += 1
  const found = find(matcher, text, match.params)
  if (found === undefined) return undefined
  if (!search.patterns.some(({ pattern }) => pattern === found.pattern)) search.patterns.push(found)
  return found.pattern
}

/** Whether a text is of this pattern. */
function isOf({ regexp, names }: Known, text: string, values: Values): boolean {
  const match = regexp.exec(text)
  return (
    match !== null &&
    names.length === Object.keys(values).length &&
    names.every((name, i) => spellings(values[name]).includes(match[i + 1] as string))
  )
}

function find(matcher: Matcher, text: string, values: Values): Known | undefined {
  const places: Place[] = []
  let from = 0
  for (const name of Object.keys(values)) {
    const place = placeOf(matcher, text, values, name, from)
    if (place === undefined) return undefined
    places.push(place)
    from = place.end
  }
  const lower = lowerCased(text, places)
  const match = matcher(lower)
  // Of a path whose case does not matter, each client would have another pattern.
  const isCase = match !== false && match.path === lower && isSame(match.params, values)
  return made(isCase ? lower : text, places, values)
}

/** The text with the values as they are. */
function lowerCased(text: string, places: readonly Place[]): string {
  let [lower, from] = ['', 0]
  for (const { start, end } of places) {
    lower += text.slice(from, start).toLowerCase() + text.slice(start, end)
    from = end
  }
  return lower + text.slice(from).toLowerCase()
}

function made(text: string, places: readonly Place[], values: Values): Known {
  const names = Object.keys(values)
  let [pattern, source, from] = ['', '', 0]
  for (const [i, { start, end }] of places.entries()) {
    const name = names[i] as string
    const between = text.slice(from, start)
    const isWildcard = typeof values[name] !== 'string'
    pattern += `${between}${isWildcard ? '*' : ':'}${name}`
    source += `${escaped(between)}${isWildcard ? '(.+)' : '([^/]+?)'}`
    from = end
  }
  const last = text.slice(from)
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
  return isSame(found, { ...values, [name]: PROBE })
}

function isSame(found: Values, values: Values): boolean {
  const names = Object.keys(values)
  return (
    Object.keys(found).length === names.length &&
    names.every((name) => String(found[name]) === String(values[name]))
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
