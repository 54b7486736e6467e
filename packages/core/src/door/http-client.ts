/** What clients of HTTP have in common, for packages that need nothing else of core: their first span starts tracing. */
import '../start.ts'

export * from '../http-client.ts'
