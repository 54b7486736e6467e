import { headerValue, type HeaderChanges } from '@throughline/core/http-client'
import { stringify, type ParsedUrlQueryInput } from 'node:querystring'
import type { Dispatcher } from 'undici'

type Options = Dispatcher.DispatchOptions
type Headers = Options['headers']

/** The path with the query that is given beside it. Beside one that has a query already, undici refuses it. */
export function pathOf({ path, query }: Options): string {
  if (!query || /[?#]/.test(path)) return path
  const written = stringify(query as ParsedUrlQueryInput)
  return written === '' ? path : `${path}?${written}`
}

/** The headers of a request in a form that can be read more than once: an iterator becomes a flat list. */
export function readable(given: Headers): Headers {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return given
  if (!(Symbol.iterator in given)) return given
  const isOnce = (given[Symbol.iterator]() as unknown) === given
  return isOnce ? ([...(given as Iterable<[string, unknown]>)].flat() as string[]) : given
}

/** The options with other headers; what the app handed over stays as it is, whichever way it has its properties. */
export function withHeaders(options: Options, headers: Headers): Options {
  if (headers === options.headers) return options
  const prototype: unknown = Object.getPrototypeOf(options)
  if (prototype === Object.prototype || prototype === null) return { ...options, headers } as Options
  // Inherited ones, and those that a class answers for its instance, are read and become a copy's own.
  const copy: Record<PropertyKey, unknown> = {}
  for (let from: object | null = options; from !== null && from !== Object.prototype;) {
    for (const key of Reflect.ownKeys(from)) {
      if (!(key in copy) && key !== 'constructor') copy[key] = Reflect.get(options, key)
    }
    from = Object.getPrototypeOf(from) as object | null
  }
  return { ...copy, headers } as unknown as Options
}

/**
 * A copy of the headers, with these in place of those of the same name. It has the form that the headers came in, since
 * dispatchers read them too, as a RetryAgent does before it sends again; of what is gone through it is a flat list.
 */
export function changed(given: Headers, changes: HeaderChanges): Headers {
  const names = Object.keys(changes)
  if (names.length === 0 || isRefused(given)) return given
  const kept = pairsOf(given).filter(([name]) => !names.includes(name.toLowerCase()))
  const added = Object.entries(changes).filter(([, value]) => value !== undefined)
  const pairs = [...kept, ...added]
  const isList = typeof given === 'object' && given !== null && Symbol.iterator in given
  return isList ? (pairs.flat() as string[]) : (Object.fromEntries(pairs) as Headers)
}

/** What undici refuses is not mended here. */
function isRefused(given: unknown): boolean {
  if (Array.isArray(given)) return Array.isArray(given[0]) || given.length % 2 === 1
  return given !== undefined && given !== null && typeof given !== 'object'
}

export function headerIn(given: Headers, name: string): unknown {
  const pairs = pairsOf(given).filter(([candidate]) => candidate.toLowerCase() === name)
  return headerValue(pairs.map(([, value]) => value))
}

function pairsOf(given: Headers): [string, unknown][] {
  if (typeof given !== 'object' || given === null) return []
  if (Array.isArray(given)) {
    if (Array.isArray(given[0])) return given as unknown as [string, unknown][]
    return given.flatMap((name, index) =>
      index % 2 === 0 ? [[String(name), given[index + 1]] as [string, unknown]] : [],
    )
  }
  if (Symbol.iterator in given) return [...(given as Iterable<[string, unknown]>)]
  return Object.entries(given)
}
