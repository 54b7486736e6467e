import { SpanKind, type Attributes } from '@opentelemetry/api'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { roomFor } from './attribute.ts'
import { redactQuery } from './redact.ts'
import * as semconv from './semconv.ts'

// OpenTelemetry semantic conventions, HTTP: what both ends of a request have in common.
const KNOWN_METHODS = [
  'CONNECT',
  'DELETE',
  'GET',
  'HEAD',
  'OPTIONS',
  'PATCH',
  'POST',
  'PUT',
  'QUERY',
  'TRACE',
]
const SLASH = 0x2f
const NO_HOST: Host = { address: undefined, port: undefined }

let knownMethods: ReadonlySet<string> | undefined
let latestKnown: string | undefined

/** Asked three times a request, and most requests are GETs. */
function isKnown(method: string): boolean {
  return method === latestKnown || isListed(method)
}

function isListed(method: string): boolean {
  if (knownMethods === undefined) {
    const given = process.env['OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS']?.trim()
    // The variable replaces the list, it does not add to it.
    knownMethods = new Set(given ? given.split(',').map((name) => name.trim()) : KNOWN_METHODS)
  }
  if (!knownMethods.has(method)) return false
  latestKnown = method
  return true
}

/** `http.request.method`: the method where it is a known one, else `_OTHER`. */
export function methodAttribute(method: string): string {
  return isKnown(method) ? method : semconv.OTHER
}

/** Routes and templates come from code; an app that makes them from data only loses this cache. */
const NAMES_LIMIT = 1000

const names = new Map<string, Map<string, string>>()
let namesCount = 0

/** The span's name: the method, and the route or template where one is known; never a path. */
export function spanName(method: string, target?: string): string {
  const shown = isKnown(method) ? method : 'HTTP'
  if (target === undefined) return shown
  // The same few names repeat: a new string for each span costs 0.1 µs here, as much again when encoded, and 70 bytes while the
  // span is queued.
  const ofMethod = namesOf(shown)
  let name = ofMethod.get(target)
  if (name === undefined) {
    name = `${shown} ${target}`
    // Cleared, not closed: names made from data must not lock the others out.
    if (namesCount >= NAMES_LIMIT) forgetNames()
    namesCount += 1
    ofMethod.set(target, name)
  }
  return name
}

let latestMethod = ''
let latestNames: Map<string, string> | undefined

function namesOf(method: string): Map<string, string> {
  if (method === latestMethod && latestNames !== undefined) return latestNames
  let ofMethod = names.get(method)
  if (ofMethod === undefined) names.set(method, (ofMethod = new Map()))
  latestMethod = method
  latestNames = ofMethod
  return ofMethod
}

function forgetNames(): void {
  for (const ofMethod of names.values()) ofMethod.clear()
  namesCount = 0
}

interface Host {
  readonly address: string | undefined
  readonly port: number | undefined
}

let latestHost = ''
let latestSplit: Host = NO_HOST

/** `splitHost` for the Host header, which is the same in nearly all requests of a server: saves 0.2 µs. */
function hostOf(header: unknown): Host {
  if (typeof header !== 'string' || header === '') return NO_HOST
  if (header !== latestHost) {
    const split = splitHost(header)
    // Credentials alone, or a port, name nobody.
    latestSplit = split.address === '' ? NO_HOST : split
    latestHost = header
  }
  return latestSplit
}

const MOST_PORT = 65_535

/**
 * `host:8080`, `[::1]:8080`, `::1`, `host`: the address without brackets, and the port if it is there. Clients may send
 * credentials with it that must not leave (RFC 9110, 4.2.4).
 */
function splitHost(given: string): { address: string; port: number | undefined } {
  const host = given.slice(given.lastIndexOf('@') + 1)
  const match = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d{0,5}))?$/.exec(host)
  if (match === null) return { address: host, port: undefined }
  const [, bracketed, name = '', digits] = match
  if (Number(digits) > MOST_PORT) return { address: host, port: undefined }
  return { address: bracketed ?? name, port: digits ? Number(digits) : undefined }
}

/** Adds the named headers that are there, as `http.request.header.<name>: string[]`. Names are in lower case. */
export function captureHeaders(
  into: Attributes,
  prefix: typeof semconv.HTTP_REQUEST_HEADER | typeof semconv.HTTP_RESPONSE_HEADER,
  names: readonly string[],
  header: (name: string) => IncomingHttpHeaders[string] | number,
): void {
  for (const name of names) {
    const value = header(name)
    // An app may set a list of anything: Node sends the text of each.
    if (value !== undefined) into[prefix + name] = [value].flat().map(String)
  }
}

/** A header that came, and not what every object has by such a name: `constructor`. */
export function headerIn(headers: IncomingHttpHeaders, name: string): IncomingHttpHeaders[string] {
  return Object.hasOwn(headers, name) ? headers[name] : undefined
}

/** The names of the option `capture`, as `captureHeaders` takes them. */
export function lowerCased(names: readonly string[] = []): readonly string[] {
  return names.map((name) => name.toLowerCase())
}

/** What nearly every request has, its keys written out: see NamedAttributes. */
const ServerAttributes = roomFor(
  function (
    method: string,
    path: string,
    scheme: string,
    version: string,
    address: string | undefined,
    client: string | undefined,
    peer: string | undefined,
    peerPort: number | undefined,
  ) {
    this['http.request.method'] = method
    this['url.path'] = path
    this['url.scheme'] = scheme
    this['network.protocol.version'] = version
    this['server.address'] = address
    this['client.address'] = client
    this['network.peer.address'] = peer
    this['network.peer.port'] = peerPort
  },
  { 'server.port': 80, 'user_agent.original': '', 'http.route': '', 'http.response.status_code': 200 },
)

/** What is known of a request when it arrives; with `trustProxy`, as the proxies in front report it. */
export function serverAttributes(
  request: IncomingMessage,
  target: string,
  trustProxy: boolean,
  capture: readonly string[],
): Attributes {
  const { headers, socket, method = '' } = request
  const known = methodAttribute(method)
  const host = (trustProxy ? forwarded(headers, 'host') : undefined) ?? headers[':authority'] ?? headers.host
  const { address, port } = hostOf(host)
  // Requests that are made up for a test may have no socket.
  const peer = socket?.remoteAddress
  const peerPort = socket?.remotePort
  const userAgent = headers['user-agent']
  const all = new ServerAttributes(
    known,
    pathOf(target),
    schemeBy(socket, headers, trustProxy),
    protocolVersion(request),
    address,
    (trustProxy ? forwarded(headers, 'for') : undefined) ?? peer,
    peer,
    peerPort,
  )
  const isWhole = address !== undefined && peer !== undefined && peerPort !== undefined
  const attributes: Attributes = isWhole ? all : defined(all)
  // Many clients send neither; removing a key afterwards would cost 3 µs.
  if (port !== undefined) attributes['server.port'] = port
  if (userAgent !== undefined) attributes['user_agent.original'] = userAgent
  if (known !== method) attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
  const query = queryOf(target)
  if (query !== '') attributes[semconv.URL_QUERY] = redactQuery(query)
  if (capture.length > 0)
    captureHeaders(attributes, semconv.HTTP_REQUEST_HEADER, capture, (name) => headerIn(headers, name))
  return wantsOldNames('http') ? withOldNames(attributes, SpanKind.SERVER) : attributes
}

/** Without what is unknown. */
function defined(attributes: Attributes): Attributes {
  const entries = Object.entries(attributes).filter(([, value]) => value !== undefined)
  return Object.fromEntries(entries)
}

/** The path of a request line's target. */
export function pathOf(target: string): string {
  // Nearly always the target is a path, and has no fragment.
  if (target.charCodeAt(0) === SLASH && !target.includes('#')) {
    const query = target.indexOf('?')
    return query === -1 ? target : target.slice(0, query)
  }
  return pathOfOther(target)
}

function pathOfOther(target: string): string {
  const [upToQuery = ''] = target.split(/[?#]/, 1)
  // The absolute form of a request line, as clients send it to proxies, begins with `http://host`.
  return upToQuery.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/]*/i, '') || '/'
}

/** The query of a request line's target. */
function queryOf(target: string): string {
  const start = target.indexOf('?')
  if (start === -1) return ''
  const fragment = target.indexOf('#')
  return (fragment === -1 ? target : target.slice(0, fragment)).slice(start + 1)
}

/** `url.scheme` of an incoming request; with `trustProxy`, as the proxies in front report it. */
export function schemeOf({ headers, socket }: IncomingMessage, trustProxy: boolean): string {
  return schemeBy(socket, headers, trustProxy)
}

// Properties are read once: each read of an Express request costs 0.2 to 0.3 µs on Node up to 22.
function schemeBy(
  socket: IncomingMessage['socket'],
  headers: IncomingHttpHeaders,
  trustProxy: boolean,
): string {
  const toldByProxy = trustProxy ? forwarded(headers, 'proto') : undefined
  if (toldByProxy !== undefined) return toldByProxy
  // Requests that are made up for a test may have no socket.
  const peer = socket as IncomingMessage['socket'] | undefined
  return peer !== undefined && 'encrypted' in peer && peer.encrypted === true ? 'https' : 'http'
}

/** `network.protocol.version`: 1.0, 1.1 or 2. */
export function protocolVersion({ httpVersion }: IncomingMessage): string {
  return httpVersion === '2.0' ? '2' : httpVersion
}

const VALUE = String.raw`("(?:[^"\\]|\\.)*"|[^\s;,"]+)`
/** What may stand before a parameter in the first element of `Forwarded` that is not empty. */
const OTHERS = String.raw`^[\s,;]*(?:[^\s;,="]+(?:\s*=(?:\s*${VALUE})?)?\s*;[\s;]*)*?`

/** The parameters of `Forwarded`, quoted or not (RFC 7239, 4). */
const FORWARDED = { for: patternOf('for'), host: patternOf('host'), proto: patternOf('proto') }

function patternOf(name: string): RegExp {
  return new RegExp(String.raw`${OTHERS}${name}\s*=\s*${VALUE}`, 'i')
}

/** The left-most value that proxies report: in `Forwarded` (RFC 7239) or else in the matching X-Forwarded header. */
function forwarded(headers: IncomingHttpHeaders, parameter: keyof typeof FORWARDED): string | undefined {
  const standard = headers.forwarded
  if (standard !== undefined) {
    const given = FORWARDED[parameter].exec(standard)?.at(-1) ?? ''
    const value = told(parameter, unquoted(given))
    if (value !== undefined) return value
  }
  const [first = ''] = /[^\s,][^,]*/.exec(String(headers[`x-forwarded-${parameter}`] ?? '')) ?? []
  return told(parameter, first.trim())
}

function unquoted(value: string): string {
  return value.startsWith('"') ? value.slice(1, -1).replaceAll(/\\(.)/g, '$1') : value
}

function told(parameter: keyof typeof FORWARDED, value: string): string | undefined {
  if (parameter === 'proto') return schemeTold(value)
  if (parameter === 'host') return value || undefined
  // Some proxies add the client's port. One that hides the client says `unknown`, or a made-up name or port (RFC 7239, 6).
  const { address } = splitHost(value.replace(/:_[\w.-]+$/, ''))
  return /^unknown$|^_/i.test(address) ? undefined : address || undefined
}

/** The schemes to believe. Proxies pass on what clients send, and each scheme makes a separate time series in metrics. */
const SCHEMES = new Set(['http', 'https', 'ws', 'wss'])

function schemeTold(value: string): string | undefined {
  const scheme = value.toLowerCase()
  return SCHEMES.has(scheme) ? scheme : undefined
}

/** The request line's target as it came: frameworks rewrite `url` while they route, and keep this. */
export function targetOf(request: IncomingMessage & { originalUrl?: unknown }): string {
  const { originalUrl } = request
  return typeof originalUrl === 'string' ? originalUrl : (request.url ?? '')
}

/** The conventions whose old names can be had beside the stable ones. */
const AREAS = ['http', 'database'] as const

export type Area = (typeof AREAS)[number]

let wanted: Readonly<Record<Area, boolean>> | undefined

/**
 * Whether this area's old names are wanted beside the new ones, as `http/dup` and `database/dup` in
 * OTEL_SEMCONV_STABILITY_OPT_IN ask for; the new ones are always there, with `http` and `database` and without. It is read
 * once. Other libraries read the same list and know more of its words, so unknown ones are not reported.
 */
export function wantsOldNames(area: Area): boolean {
  return (wanted ??= readWanted())[area]
}

function readWanted(): Record<Area, boolean> {
  const list = process.env['OTEL_SEMCONV_STABILITY_OPT_IN'] ?? ''
  const names = new Set(list.split(',').map((name) => name.trim().toLowerCase()))
  const entries = AREAS.map((area) => [area, names.has(`${area}/dup`)])
  return Object.fromEntries(entries) as Record<Area, boolean>
}

const OLD_NAMES = new Map<string, string>([
  [semconv.HTTP_REQUEST_METHOD, semconv.OLD_HTTP_METHOD],
  // The old name held every method as sent.
  [semconv.HTTP_REQUEST_METHOD_ORIGINAL, semconv.OLD_HTTP_METHOD],
  [semconv.HTTP_RESPONSE_STATUS_CODE, semconv.OLD_HTTP_STATUS_CODE],
  [semconv.URL_FULL, semconv.OLD_HTTP_URL],
  [semconv.URL_SCHEME, semconv.OLD_HTTP_SCHEME],
  [semconv.USER_AGENT_ORIGINAL, semconv.OLD_HTTP_USER_AGENT],
  [semconv.CLIENT_ADDRESS, semconv.OLD_HTTP_CLIENT_IP],
  [semconv.NETWORK_PEER_ADDRESS, semconv.OLD_NET_SOCK_PEER_ADDR],
  [semconv.NETWORK_PEER_PORT, semconv.OLD_NET_SOCK_PEER_PORT],
  [semconv.NETWORK_PROTOCOL_VERSION, semconv.OLD_NET_PROTOCOL_VERSION],
])

/** The old names of the requested host: the server's own, or the client's peer. */
const OLD_HOST = {
  [SpanKind.SERVER]: [semconv.OLD_NET_HOST_NAME, semconv.OLD_NET_HOST_PORT],
  [SpanKind.CLIENT]: [semconv.OLD_NET_PEER_NAME, semconv.OLD_NET_PEER_PORT],
} as const

/**
 * The attributes of a span of HTTP, and what of them had another name before the conventions were stable, under that name
 * too (OpenTelemetry semantic conventions, HTTP migration). For those whose `wantsOldNames('http')` is true.
 */
export function withOldNames(attributes: Attributes, kind: keyof typeof OLD_HOST): Attributes {
  const all: Attributes = { ...attributes }
  // In the map's order, so that the original method wins.
  for (const [name, old] of OLD_NAMES) if (attributes[name] !== undefined) all[old] = attributes[name]

  const version = attributes[semconv.NETWORK_PROTOCOL_VERSION]
  if (version !== undefined) all[semconv.OLD_HTTP_FLAVOR] = version === '2' ? '2.0' : version
  const path = attributes[semconv.URL_PATH]
  const query = attributes[semconv.URL_QUERY]
  if (path !== undefined) all[semconv.OLD_HTTP_TARGET] = query === undefined ? path : `${path}?${query}`
  const address = attributes[semconv.SERVER_ADDRESS]
  const port = attributes[semconv.SERVER_PORT]
  const [hostName, hostPort] = OLD_HOST[kind]
  if (address !== undefined) {
    all[hostName] = address
    // As the Host header has it.
    const shown = String(address).includes(':') ? `[${address}]` : address
    all[semconv.OLD_HTTP_HOST] = port === undefined ? shown : `${shown}:${port}`
  }
  if (port !== undefined) all[hostPort] = port
  return all
}
