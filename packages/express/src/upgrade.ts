import type { Request } from 'express'

/** What express-ws puts behind the path that was asked for, and behind that of each route for WebSockets. */
const SUFFIX = /\/\.websocket(?=\?|$)/

/** Express-ws says whether one of its handlers has got the socket; whoever else routes upgraded requests does not. */
interface Upgraded {
  readonly upgrade?: boolean
  readonly wsHandled?: boolean
}

/** Whether the connection is no longer one of HTTP: nobody will see a response. */
export function isUpgraded(request: Request): boolean {
  return (request as Upgraded).upgrade === true
}

/** Whether the route that has an upgraded request is the one that takes its socket. */
export function hasSocketTaken(request: Request): boolean {
  return (request as Upgraded).wsHandled !== false
}

/** The path or the pattern as it was before express-ws. */
export function withoutSuffix(path: string): string {
  const before = path.replace(SUFFIX, '')
  return before === path || before.startsWith('/') ? before : `/${before}`
}
