import { versionOf } from '../version.mjs'

/** How long a flush may take; its queue is sent in single requests. */
const FLUSH_MS = 60_000

/** Sentry with all transactions sampled, and a sink as its server. */
export function start({ require, install, endpoint, sampleRate = 1 }) {
  const sentry = require('@sentry/node')
  const dsn = new URL('/1', endpoint)
  dsn.username = 'public'
  sentry.init({ dsn: dsn.href, tracesSampleRate: sampleRate })
  const version = versionOf(install, '@sentry/node')
  return { version, flush: () => sentry.flush(FLUSH_MS) }
}
