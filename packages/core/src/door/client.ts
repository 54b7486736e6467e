/** What makes calls, for packages that need nothing else of core: their first span starts tracing, as that of an app does. */
import '../start.ts'

export * from '../client.ts'
