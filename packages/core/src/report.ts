import type {
  ContextManager,
  DiagLogger,
  MeterProvider,
  TextMapPropagator,
  TracerProvider,
} from '@opentelemetry/api'
import { setImmediate } from 'node:timers'

// Trouble of our own is said once, never thrown: to the logger that the app gave the API's `diag`, else on stderr, since
// `diag` without a logger drops what it is told. `OTEL_LOG_LEVEL=none` silences the latter.

type Level = 'error' | 'warn' | 'info'

const RANK = { none: 0, error: 1, warn: 2, info: 3, debug: 4, verbose: 5, all: 6 } as const

/** The values of OTEL_LOG_LEVEL. */
export const LOG_LEVELS = Object.keys(RANK)

// Distinct keys of one kind, such as attribute names: beyond this they are made from data, and another report says nothing new.
const MOST_OF_A_KIND = 100

/** The rest of a longer key is not kept. */
const MOST_OF_A_KEY = 200
/** A longer line holds data. Our longest have about 500 characters, without a collector's answer. */
const MOST_OF_A_LINE = 4096
/** A longer name is made from data. */
const MOST_OF_A_NAME = 100
/** Control characters, the two other line ends, and what changes the direction of the text after it. */
const UNPRINTABLE = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu

const said = new Map<string, Set<string>>()

/**
 * Reports the first time it is called with this key, and is silent after that. The part before the key's first colon is its
 * kind, each with a limit of its own, so that keys made from data silence no other kind.
 */
export function reportOnce(key: string, level: Level, message: string, cause?: unknown): void {
  const known = keptKey(key)
  const [kind = ''] = known.split(':', 1)
  let ofKind = said.get(kind)
  if (ofKind === undefined) said.set(kind, (ofKind = new Set()))
  if (ofKind.has(known) || ofKind.size >= MOST_OF_A_KIND) return
  ofKind.add(known)
  report(level, message, cause)
}

/** Copied when cut: V8's slice would keep the whole string alive. */
function keptKey(key: string): string {
  return key.length > MOST_OF_A_KEY ? Buffer.from(key.slice(0, MOST_OF_A_KEY)).toString() : key
}

/**
 * Reports each time, in one line, whatever is in the message; a cause is shown as it is. The caller sees to it that this is
 * not once per request.
 */
export function report(level: Level, message: string, cause?: unknown): void {
  const args = cause === undefined ? [] : [cause]
  try {
    const line = `throughline: ${inOneLine(message, MOST_OF_A_LINE)}`
    const logger = registered()?.diag
    if (logger !== undefined) {
      // A logger's methods may be async: an unhandled rejection would end the process.
      const logged: unknown = logger[level](line, ...args)
      Promise.resolve(logged).catch(() => {})
    } else if (RANK[level] <= stderrRank()) {
      takeErrors(process.stderr)
      console.error(line, ...args)
    }
  } catch {
    // A logger that throws is not allowed to break the app that is being traced.
  }
}

const takes = new Set<NodeJS.WriteStream>()
const drop = () => {}

/**
 * Where nobody reads stdout or stderr any more each write to it fails, before the next turn of the loop. Node's console takes
 * only the first of these errors: another would end an app that itself says nothing there. For what is about to be written.
 */
export function takeErrors(stream: NodeJS.WriteStream, hear: (error: Error) => void = drop): void {
  if (takes.has(stream)) return
  stream.on('error', hear)
  takes.add(stream)
  setImmediate(() => {
    stream.off('error', hear)
    takes.delete(stream)
  }).unref()
}

/** Foreign text with unprintable characters escaped as in JSON, so that nobody can forge a line or clear a terminal by it. */
export function inOneLine(text: string, most: number): string {
  return text
    .slice(0, most)
    .replace(UNPRINTABLE, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** A name that may be data, as much of it as a message shows. */
export function shownName(name: string): string {
  return name.length > MOST_OF_A_NAME ? `${name.slice(0, MOST_OF_A_NAME)}…` : name
}

/** Forgets what was reported, so that a restarted engine may report it again. */
export function forgetReports(): void {
  said.clear()
}

/** So many spans, as the subject of a sentence: `1 span was`, `2 spans were`. */
export function spansWere(count: number): string {
  return `${spansOf(count)} ${count === 1 ? 'was' : 'were'}`
}

export function spansOf(count: number): string {
  return `${count} ${count === 1 ? 'span' : 'spans'}`
}

/** The version of the API that registered first: only copies of this very version may register after it. */
export function globalVersion(): string {
  return registered()?.version ?? 'unknown'
}

/** What is registered with the API, by whichever of its copies. */
interface Registered {
  readonly version?: string
  readonly diag?: DiagLogger
  readonly trace?: TracerProvider
  readonly context?: ContextManager
  readonly propagation?: TextMapPropagator
  readonly metrics?: MeterProvider
}

const API = Symbol.for('opentelemetry.js.api.1')

/**
 * The API keeps what is registered on one global object per major version, shared by all its copies. Its `diag` reads the
 * logger there only if that was given to a version it knows; what went wrong between two versions must be said as well.
 * Checking here whether a cached answer still holds is far cheaper than asking the API: a request and its calls would ask
 * twenty times.
 */
export function registered(): Registered | undefined {
  return (globalThis as { [API]?: Registered })[API]
}

function stderrRank(): number {
  const level = process.env['OTEL_LOG_LEVEL']?.trim().toLowerCase() ?? ''
  return Object.hasOwn(RANK, level) ? RANK[level as keyof typeof RANK] : RANK.info
}
