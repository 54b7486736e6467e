import type { HeaderChanges, HttpAttempt, HttpRequest } from '@throughline/core/http-client'
import { headerOf, type PublishedRequest } from './published.ts'

/** Which headers tell some attempts from others, and how many of these are under way. */
interface Names {
  readonly ours: readonly string[]
  count: number
}

/** Shared by all copies of this package, which see the same requests. */
interface Shared {
  /** The pending attempts of traced dispatchers, by the key that identifies them. */
  readonly underWay: Map<string, Set<HttpAttempt>>
  /** By which headers of ours they are known: one list for each propagator, or more where its headers are not always the same. */
  readonly names: Map<string, Names>
  /** Those of them whose dispatcher has not said which server it leads to. */
  readonly lost: WeakSet<HttpAttempt>
  /** Listens for all traced dispatchers. */
  keepHeaders?: (message: unknown) => void
  /** Ends the process-wide form, while it is on. */
  stop?: (() => void) | undefined
}

export const shared = ((globalThis as Record<symbol, unknown>)[Symbol.for('throughline.undici')] ??= {
  underWay: new Map(),
  names: new Map(),
  lost: new WeakSet(),
}) as Shared
const { underWay, names, lost } = shared

/** The origin of what goes to a server that is not known yet. A proxy may be asked by the whole URL, which is like it. */
const NOWHERE = ''

/** Many spans can have the same of these. */
const SHARED_HEADERS = new Set(['baggage', 'tracestate'])

/**
 * Notes an attempt that a traced dispatcher has begun, until the returned function is called. `isLost`: its server is not yet
 * known.
 */
export function cover(attempt: HttpAttempt, request: HttpRequest, isLost: boolean): () => void {
  if (isLost) lost.add(attempt)
  const { headers } = attempt
  const ours = namesOf(headers)
  const kind = ours.join()
  const key =
    ours.length > 0
      ? keyOf(kind, ours, (name) => headers[name])
      : keyOfRequest(request, isLost ? NOWHERE : request.origin)
  const known = ours.length > 0 ? countIn(kind, ours) : undefined
  let attempts = underWay.get(key)
  if (attempts === undefined) underWay.set(key, (attempts = new Set()))
  attempts.add(attempt)
  return () => {
    if (!attempts.delete(attempt)) return
    if (known !== undefined && --known.count === 0) names.delete(kind)
    if (attempts.size === 0 && underWay.get(key) === attempts) underWay.delete(key)
  }
}

/**
 * The attempt that a traced dispatcher has made of this request: known by our headers, and one that carries none by what it
 * asks for. Not by the context that it is created in: on a busy pool that is somebody else's.
 */
export function coveredBy(request: PublishedRequest): HttpAttempt | undefined {
  if (underWay.size === 0) return undefined
  for (const [kind, { ours }] of names) {
    // Another tracer may have added its own behind them already.
    const first = (name: string) => [headerOf(request, name)].flat()[0]
    const found = oneOf(underWay.get(keyOf(kind, ours, first)))
    if (found !== undefined) return found
  }
  return (
    oneOf(underWay.get(keyOfRequest(request, request.origin))) ??
    oneOf(underWay.get(keyOfRequest(request, NOWHERE)))
  )
}

/** Tells an attempt which server it goes to, where its dispatcher has not. */
export function tellServer(attempt: HttpAttempt, { origin }: PublishedRequest): void {
  if (lost.delete(attempt)) attempt.leadsTo(origin)
}

function oneOf(attempts: ReadonlySet<HttpAttempt> | undefined): HttpAttempt | undefined {
  return attempts?.values().next().value
}

function namesOf(changes: HeaderChanges): string[] {
  return Object.keys(changes).filter((name) => changes[name] !== undefined && !SHARED_HEADERS.has(name))
}

/** One more attempt that is known by these headers. */
function countIn(kind: string, ours: readonly string[]): Names {
  let known = names.get(kind)
  if (known === undefined) names.set(kind, (known = { ours, count: 0 }))
  known.count += 1
  return known
}

function keyOf(kind: string, ours: readonly string[], valueOf: (name: string) => unknown): string {
  return `${kind}\n${ours.map((name) => String(valueOf(name))).join('\n')}`
}

function keyOfRequest({ method, path }: HttpRequest, origin: string | URL): string {
  return `${method} ${String(origin)}${path}`
}
