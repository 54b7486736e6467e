import { patternIn, type Matcher } from './matcher.ts'
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
