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

const SLASH = 0x2f
const HTTP_PORT = 80
const HTTPS_PORT = 443
/** More than most services have others to ask. */
const MOST_ORIGINS = 100

const UNKNOWN: Server = { address: undefined, port: undefined }

/** The servers of the origins that were asked last: taking a URL apart costs 1 µs. */
const servers = new Map<string, Server>()
let latestKey = ''
let latestServer = UNKNOWN

export function urlOf({ origin, path }: HttpRequest): string {
  if (!isPath(path)) return path
  const base = String(origin)
  return (base.endsWith('/') ? base.slice(0, -1) : base) + path
}

/** `server.address` and `server.port`, which is there also where it is the scheme's own. */
export function serverOf({ origin, path }: HttpRequest): Server {
  if (!isPath(path)) return parsed(path)
  const key = String(origin)
  // Each request comes with a text of its own, and to look that up takes a hash of it: 0.1 µs.
  if (key === latestKey) return latestServer
  let server = servers.get(key)
  if (server === undefined) {
    server = parsed(key)
    if (servers.size >= MOST_ORIGINS) servers.clear()
    servers.set(key, server)
  }
  latestKey = key
  latestServer = server
  return server
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
