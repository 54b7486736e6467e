import { Socket } from 'node:net'
import type { SpanExporter } from './batch.ts'
import type { TracerProvider } from './tracer.ts'

/** How long the end of the process is held up at most. */
export const EXIT_DEADLINE_MS = 2000
/** How often a batch that is on its way has a look whether the process would end but for it. */
const HELD_CHECK_MS = 500

/**
 * The queue may hold spans when the app has nothing left to do. What is sent then brings `beforeExit` once more, so only
 * new spans are a reason to send again, and all of it together may take no longer than the deadline.
 */
export function onExit(
  provider: TracerProvider,
  finish: (within: number) => Promise<void>,
  abandon: () => void,
  onHeld: (listener: () => void) => void,
): () => void {
  let seen = 0
  let left = EXIT_DEADLINE_MS
  const listener = async () => {
    if (provider.endedCount === seen) return
    seen = provider.endedCount
    const began = performance.now()
    await finish(left)
    left = Math.max(0, left - (performance.now() - began))
  }
  onHeld(listener)
  process.on('beforeExit', listener)
  // Who calls `process.exit()` does not wait for anything.
  process.on('exit', abandon)
  return () => {
    process.off('beforeExit', listener)
    process.off('exit', abandon)
  }
}

/**
 * `unref()` covers a socket, and not what the system was asked to do with it: to connect, or to send what the other end does
 * not read. `beforeExit` would not come before that has ended.
 */
export function watched(exporter: SpanExporter, held: () => void): SpanExporter {
  return {
    ...exporter,
    export(spans, done, late, handover) {
      const timer = setInterval(() => {
        if (isHeldByRequests()) held()
      }, HELD_CHECK_MS).unref()
      const end: typeof done = (result) => {
        clearInterval(timer)
        done(result)
      }
      late?.addEventListener('abort', () => clearInterval(timer))
      exporter.export(spans, end, late, handover)
    },
  }
}

/** A socket of anybody else's is named beside its requests; stdout and stderr are named though they hold nothing. */
function isHeldByRequests(): boolean {
  const names = process.getActiveResourcesInfo().filter((name) => !/(?:Connect|Write)Wrap$/.test(name))
  const standard = [process.stdout, process.stderr].filter((stream) => stream instanceof Socket)
  return names.length <= standard.length && names.every((name) => name === 'PipeWrap' || name === 'TTYWrap')
}
