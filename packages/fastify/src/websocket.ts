import { beforeEvent, context, endRequest, reportOnce, type Context } from '@throughline/core'
import type { FastifyRequest } from 'fastify'
import { EventEmitter } from 'node:events'
import type { IncomingMessage } from 'node:http'

/** The contexts of requests that ask to become a WebSocket. */
const scopes = new WeakMap<IncomingMessage, Context>()
const servers = new WeakSet<EventEmitter>()

/** The header is read only where @fastify/websocket is. */
export function isUpgrade({ raw, server }: FastifyRequest): boolean {
  return 'websocketServer' in server && raw.headers.upgrade !== undefined
}

/**
 * If @fastify/websocket turns this request into a WebSocket, its span ends at the handshake, and the socket's listeners run in
 * the current context. To be called in the request's context.
 */
export function endsAtHandshake({ raw, server }: FastifyRequest): void {
  const { websocketServer } = server as { websocketServer?: unknown }
  if (!(websocketServer instanceof EventEmitter)) return
  scopes.set(raw, context.active())
  if (servers.has(websocketServer)) return
  servers.add(websocketServer)
  beforeEvent(websocketServer, 'connection', opened)
}

function opened(socket: unknown, request: unknown): void {
  try {
    // As ws documents its event.
    const raw = request as IncomingMessage
    const scope = scopes.get(raw)
    if (scope === undefined) return
    endRequest(raw, 101)
    context.bind(scope, socket)
  } catch (error) {
    reportOnce('websocket', 'error', 'a WebSocket could not be traced', error)
  }
}
