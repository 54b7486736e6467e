import { redactTarget, redactUrl, withCredentials } from '../redact.ts'

/** A request as the client that sends it knows it. */
export interface HttpRequest {
  readonly method: string
  /** `https://api.example.com`, with the port where it is not the scheme's own. */
  readonly origin: string | URL
  /** With the query; a proxy is asked with the whole URL. */
  readonly path: string
  /** Whether its URL has a user and a password, which are in neither of the two. */
  readonly hasCredentials?: boolean
}

export interface Server {
  readonly address: string | undefined
  readonly port: number | undefined
}

/** What all that is asked of an origin has in common. */
interface Asked extends Server {
  /** What a path comes behind. */
  readonly base: string
  /** The same as it may be shown. */
  readonly shown: string
}

const SLASH = 0x2f
const HTTP_PORT = 80
const HTTPS_PORT = 443
/** More than most services have others to ask. */
const MOST_ORIGINS = 100

const UNKNOWN: Server = { address: undefined, port: undefined }

/** The origins that were asked last: taking a URL apart costs 1 µs. */
const origins = new Map<string, Asked>()
let latestKey: string | undefined
let latest: Asked | undefined

export function urlOf({ origin, path }: HttpRequest): string {
  return isPath(path) ? askedOf(origin).base + path : path
}

/**
 * The URL without what must not leave the process; `keys` take the place of the conventions' list of query keys. Only what an
 * origin does not say already is looked through: `url` of a path is two texts for V8 still, and to make one of them costs 0.2 µs.
 *
 * @param url of the request, as `urlOf` gives it
 */
export function shownUrlOf(
  { origin, path, hasCredentials }: HttpRequest,
  url: string,
  keys: ReadonlySet<string> | undefined,
): string {
  const asked = isPath(path) ? askedOf(origin) : undefined
  // What is no URL may hold anything.
  const shown = asked?.address === undefined ? redactUrl(url, keys) : shownBehind(asked, path, url, keys)
  return hasCredentials === true ? withCredentials(shown) : shown
}

function shownBehind(
  { base, shown }: Asked,
  path: string,
  url: string,
  keys: ReadonlySet<string> | undefined,
): string {
  const target = redactTarget(path, keys)
  return shown === base && target === path ? url : shown + target
}

/** `server.address` and `server.port`, which is there also where it is the scheme's own. */
export function serverOf({ origin, path }: HttpRequest): Server {
  return isPath(path) ? askedOf(origin) : parsed(path)
}

function askedOf(origin: string | URL): Asked {
  const key = typeof origin === 'string' ? origin : String(origin)
  // Each request comes with a text of its own, and to look that up takes a hash of it: 0.1 µs.
  if (latest !== undefined && key === latestKey) return latest
  let asked = origins.get(key)
  if (asked === undefined) {
    const base = key.endsWith('/') ? key.slice(0, -1) : key
    asked = { base, shown: redactUrl(base), ...parsed(key) }
    if (origins.size >= MOST_ORIGINS) origins.clear()
    origins.set(key, asked)
  }
  latestKey = key
  latest = asked
  return asked
}

function isPath(path: string): boolean {
  return path.charCodeAt(0) === SLASH
}

/** The interface in an address of IPv6, which `URL` does not read. */
const ZONE = /^[a-z]+:\/\/\[[^\]%]*(%[^\]]*)\]/

function parsed(given: string): Server {
  const [, zone = ''] = ZONE.exec(given) ?? []
  const url = given.replace(zone, '')
  if (!URL.canParse(url)) return UNKNOWN
  const { protocol, hostname, port } = new URL(url)
  return {
    address: hostname.replace(/^\[|\]$/g, '') + zone,
    port: port === '' ? (protocol === 'https:' ? HTTPS_PORT : HTTP_PORT) : Number(port),
  }
}
