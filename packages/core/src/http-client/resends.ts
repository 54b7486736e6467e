import type { Context } from '@opentelemetry/api'
import { setImmediate } from 'node:timers'
import { spanIn } from '../context.ts'

/** Statuses after which clients follow the response's Location. */
const REDIRECTS = new Set([301, 302, 303, 307, 308])
/** Statuses after which clients ask the same again, by themselves or with credentials. */
const PASSING = new Set([401, 407, 408, 421, 425, 429, 500, 502, 503, 504])

/** Below, no answer has its request sent again, nor another one. */
export const FIRST_TO_REPEAT = 300

/** Of one caller. Most of what fails is not asked again, and a caller may live as long as its process. */
const MOST_EXPECTED = 16

/**
 * What is likely to be asked next by a caller, and how often it has been asked by then. No client tells that it sends a
 * request once more; but it does so in the context of the first time, which an app rarely does for a reason of its own.
 */
const expected = new WeakMap<Context, Map<string, number[]>>()
/** Whether anything was ever expected: until then nobody is looked up. */
let isExpecting = false

/** `http.request.resend_count` of a request that is made now: 0 where it is no repetition. */
export function resendsOf(caller: Context, method: string, url: string): number {
  if (!isExpecting) return 0
  const known = expected.get(caller)
  if (known === undefined) return 0
  return take(known, redirected(url)) ?? take(known, repeated(method, url)) ?? 0
}

/** A request was answered so, and had been sent again so often. `location` is asked where that matters. */
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
  // Where nobody is the caller, what is asked later may be anybody's.
  if (spanIn(caller) !== undefined) expect(caller, repeated(method, url), resends + 1)
}

/** Of nobody's requests a redirect is known by the moment: clients follow it before anything else comes. */
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
  if (known.size >= MOST_EXPECTED) {
    for (const oldest of known.keys()) {
      known.delete(oldest)
      break
    }
  }
  known.set(key, [count])
}

function take(known: Map<string, number[]>, key: string): number | undefined {
  const counts = known.get(key)
  const count = counts?.shift()
  if (counts?.length === 0) known.delete(key)
  return count
}
