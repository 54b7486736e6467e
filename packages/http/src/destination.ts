import { override, untrace } from '@throughline/core'
import type { HttpRequest } from '@throughline/core/http-client'
import { Agent, type ClientRequest } from 'node:http'

/** Older agents hand on a host and a port in place of options. */
type Adder = Record<
  'addRequest',
  (
    request: ClientRequest,
    options: { port?: unknown; auth?: unknown; path?: unknown } | string,
    ...rest: unknown[]
  ) => void
>

const PORTS: Record<string, number> = { 'http:': 80, 'https:': 443 }

// The request that an agent was given last. Node tells the agent of the port, and keeps it nowhere: the Host header has it
// only where that is Node's own, and what a reverse proxy passes on has the Host of somebody else.
let latest: ClientRequest | undefined
let latestPort: unknown
let hasLatestAuth = false

/** Notes where requests go, from what Node tells their agents, until the function that it returns is called. */
export function noteDestinations(): () => void {
  const prototype = Agent.prototype as unknown as Adder
  override(prototype, 'addRequest', (original) => {
    return function addRequest(this: unknown, request, options, ...rest) {
      original.call(this, request, options, ...rest)
      // After that, for the agent may have made a request of its own to the proxy.
      latest = request
      latestPort = typeof options === 'string' ? rest[0] : options?.port
      hasLatestAuth = typeof options !== 'string' && Boolean(options?.auth) && isPath(options.path)
    }
  })
  return () => untrace(prototype)
}

/**
 * Whether the app has asked for a path. Where it has asked a proxy for a whole URL, credentials are the proxy's; where the agent
 * makes the path one, as Node's own does by `proxyEnv`, they are the URL's.
 */
function isPath(asked: unknown): boolean {
  return !asked || String(asked).startsWith('/')
}

function portOf(request: ClientRequest, isNoted: boolean): string | undefined {
  if (isNoted && latestPort !== undefined) return String(latestPort)
  const header = request.getHeader('host')
  return typeof header === 'string' ? /:(\d+)$/.exec(header)?.[1] : undefined
}

/** Where a request of Node's goes. Found out when asked: mostly nobody asks for one whose span is dropped. */
export class Destination implements HttpRequest {
  readonly #request: ClientRequest
  readonly #port: string | undefined
  readonly #hasCredentials: boolean

  /** Right after the request was made. */
  constructor(request: ClientRequest) {
    const isNoted = latest === request
    this.#request = request
    this.#port = portOf(request, isNoted)
    this.#hasCredentials = isNoted && hasLatestAuth
    latest = undefined
  }

  get method(): string {
    return this.#request.method
  }

  get origin(): string {
    const { protocol, host } = this.#request
    const name = host.includes(':') && !host.startsWith('[') ? `[${host}]` : host
    const port = this.#port
    return port === undefined || Number(port) === PORTS[protocol]
      ? `${protocol}//${name}`
      : `${protocol}//${name}:${port}`
  }

  /** A proxy is asked with the whole URL. What begins otherwise (`OPTIONS *`) is not to be taken for one. */
  get path(): string {
    const { path } = this.#request
    return path.startsWith('/') || /^[a-z]+:\/\//i.test(path) ? path : `/${path}`
  }

  /** Node makes a header of them. */
  get hasCredentials(): boolean {
    return this.#hasCredentials
  }
}
