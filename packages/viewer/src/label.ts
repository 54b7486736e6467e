import type { AttributeValue, Span } from './span.ts'
import { harmless, piece } from './text.ts'
import type { Piece } from './text.ts'
import type { Node } from './tree.ts'

/** Systems that speak SQL are all shown as `db`; others (redis, mongodb) by their name. */
const sqlSystems = /sql|^mariadb$|^oracle|^sqlite$|^cockroachdb$|^db2|^ibm\.db2$|^h2$|^clickhouse$/

/** What a span is called in its row: `[service] name`, with the service only where it changes. */
export function label(node: Node): Piece[] {
  const isSameService = node.parent?.span.serviceName === node.span.serviceName
  return isSameService ? nameOf(node, false) : [service(node), ...nameOf(node, true)]
}

/** What a span is called where it stands alone: with its service, or with whom it called. */
export function fullLabel(node: Node): Piece[] {
  const name = nameOf(node, false)
  return name[0]?.style === 'callee' ? name : [service(node), ...name]
}

function service({ span }: Node): Piece {
  return piece(`[${harmless(span.serviceName)}] `, 'service')
}

function nameOf(node: Node, hasService: boolean): Piece[] {
  const { span } = node
  const name = harmless(span.name).trim() || '(no name)'
  const server = node.children.find(({ span: child }) => child.kind === 'server' || child.kind === 'consumer')
  if (span.kind === 'producer') return [piece(`→ ${name}`)]
  if (span.kind !== 'client') return [piece(name)]
  if (server) return [piece(`→ ${withName(name, harmless(server.span.serviceName))}`, 'dim')]

  const system = text(span, 'db.system.name') || text(span, 'db.system')
  if (system) return [piece(`${sqlSystems.test(system) ? 'db' : harmless(system)}: `, 'callee'), piece(name)]
  const callee = calleeOf(span)
  if (!callee) return [piece(`→ ${name}`)]
  return hasService ? [piece(`→ ${withName(name, callee)}`)] : [piece(`[${callee}] `, 'callee'), piece(name)]
}

function withName(name: string, callee: string): string {
  return name.includes(callee) ? name : `${name} ${callee}`
}

/** Who a CLIENT span called, if it says so: `service.peer.name`, else `host:port`. */
function calleeOf(span: Span): string {
  const peer = text(span, 'service.peer.name') || text(span, 'peer.service')
  if (peer) return harmless(peer)
  const host = text(span, 'server.address')
  const port = text(span, 'server.port')
  return harmless(host && port ? `${host.includes(':') ? `[${host}]` : host}:${port}` : host)
}

/** Why a span failed, in the best words that it has: its status, its exception, the status code of the answer. */
export function errorOf(span: Span): string {
  const { message } = span.status
  if (message) return harmless(message)
  const exception = span.events.findLast((event) => event.name === 'exception')
  const words = exception && [
    exception.attributes['exception.type'],
    exception.attributes['exception.message'],
  ]
  const said = words?.map(textOf).filter(Boolean).join(': ')
  if (said) return harmless(said)
  const status = text(span, 'http.response.status_code')
  if (status) return harmless(`HTTP ${status}`)
  return harmless(text(span, 'error.type')) || 'error'
}

function text(span: Span, key: string): string {
  return textOf(Object.hasOwn(span.attributes, key) ? span.attributes[key] : undefined)
}

function textOf(value: AttributeValue | undefined): string {
  return typeof value === 'string' || typeof value === 'number' ? String(value) : ''
}
