import type { Context } from '@opentelemetry/api'
import { setImmediate } from 'node:timers'
import { spanIn } from '../context.ts'

/** Statuses after which clients follow the response's Location. */
const REDIRECTS = new Set([301, 302, 303, 307, 308])
/** Statuses after which clients ask the same again, by themselves or with credentials. */
const PASSING = new Set([401, 407, 408, 421, 425, 429, 500, 502, 503, 504])

/** Below this status, no answer leads to another request. */
export const FIRST_TO_REPEAT = 300

/** Per caller. Most failed requests are not sent again, and a caller may live as long as its process. */
const MOST_EXPECTED = 16

/**
 * What a caller is likely to request next, and how often it has done so before. Clients do not say that they resend a request,
 * but they do so in the context of the first one, in which an app rarely repeats a request itself.
 */
const expected = new WeakMap<Context, Map<string, number[]>>()
/** Whether anything was ever expected: before that, nothing is looked up. */
let isExpecting = false

/** `http.request.resend_count` of a request made now; 0 unless it is a repetition. */
export function resendsOf(caller: Context, method: string, url: string): number {
  if (!isExpecting) return 0
  const known = expected.get(caller)
  if (known === undefined) return 0
  return take(known, redirected(url)) ?? take(known, repeated(method, url)) ?? 0
}

/** Notes the answer to a request that had been resent this often. `location` is called only if needed. */
export function answeredWith(
  status: number,
  location: () => unknown,
  caller: Context,
  method: string,
  url: string,
  resends: number,
): void {
  if (PASSING.has(status)) failedBefore(caller, method, url, resends)
  else if (REDIRECTS.has(status)) {
    const target = location()
    if (typeof target !== 'string' || !URL.canParse(target, url)) return
    expect(caller, redirected(new URL(target, url).href), resends + 1)
    if (spanIn(caller) === undefined) forgetSoon(caller)
  }
}

/** A request got no answer. */
export function failedBefore(caller: Context, method: string, url: string, resends: number): void {
  // Without a caller's span, a later request may be anybody's.
  if (spanIn(caller) !== undefined) expect(caller, repeated(method, url), resends + 1)
}

/** Without a caller's span, a redirect is recognised by its timing: clients follow it before anything else happens. */
function forgetSoon(caller: Context): void {
  setImmediate(() => expected.delete(caller))
}

// A redirect may change the method.
function redirected(url: string): string {
  return `→ ${url.split('#', 1)[0]}`
}

function repeated(method: string, url: string): string {
  return `${method} ${url}`
}

function expect(caller: Context, key: string, count: number): void {
  isExpecting = true
  let known = expected.get(caller)
  if (known === undefined) expected.set(caller, (known = new Map()))
  const counts = known.get(key)
  if (counts !== undefined) {
    if (counts.length < MOST_EXPECTED) counts.push(count)
    return
  }
  const [oldest] = known.keys()
  if (oldest !== undefined && known.size >= MOST_EXPECTED) known.delete(oldest)
  known.set(key, [count])
}

function take(known: Map<string, number[]>, key: string): number | undefined {
  const counts = known.get(key)
  const count = counts?.shift()
  if (counts?.length === 0) known.delete(key)
  return count
}
