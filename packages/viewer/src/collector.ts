import { callback, limit, validated, whole } from './options.ts'
import type { Shape } from './options.ts'
import type { Span } from './span.ts'

/** What has arrived of one trace. */
export type Trace = {
  traceId: string
  /** In the order in which they arrived; a span that was sent twice is here once. */
  spans: Span[]
  /** 0 until it was handed to `onTrace`, then how often. Above 1: late spans made it be handed over again. */
  revision: number
  /** How many of the spans came since it was last handed over. */
  lateSpans: number
  /** How many spans are missing here because the trace was full. */
  droppedSpans: number
  /** True when earlier spans of this trace are missing here: they were let go to bound memory. */
  forgotten: boolean
}

export type CollectOptions = {
  /** Called with a trace when no span of it came for `quiet` ms, and again when late spans came. */
  onTrace?: ((trace: Trace) => void) | undefined
  /** Milliseconds. Default 6000: exporters send every 5 s. */
  quiet?: number | undefined
  /** How many traces are held, for their late spans. Default 1000. */
  maxTraces?: number | undefined
  /** Default 10 000. */
  maxSpansPerTrace?: number | undefined
  /** In all traces together. Default 200 000. */
  maxSpans?: number | undefined
}

export type Collector = {
  /** Sorts spans into traces. It is what `receive` wants as `onSpans`. */
  add: (spans: readonly Span[]) => void
  /** Everything that is held, oldest first. */
  traces: () => Trace[]
  /**
   * The first trace, held or still to come, for which `predicate` is true; it is asked each time that a trace gets
   * spans. Rejects when `signal` aborts (with its reason), when the predicate throws, and at `close()`.
   */
  when: (
    predicate: (trace: Trace) => boolean,
    options?: { signal?: AbortSignal | undefined },
  ) => Promise<Trace>
  /** Hands over at once what waits for its quiet time. */
  flush: () => void
  /** Stops all timers and lets everything go; nothing more is handed over. */
  close: () => void
}

/** What setTimeout can wait at most. */
export const maxQuiet = 2 ** 31 - 1

const shape: Shape<CollectOptions> = {
  onTrace: callback('onTrace: (trace) => console.log(waterfall(trace.spans))'),
  quiet: whole('quiet', 0, maxQuiet, 500),
  maxTraces: limit('maxTraces', 1000),
  maxSpansPerTrace: limit('maxSpansPerTrace', 10_000),
  maxSpans: limit('maxSpans', 200_000),
}

type Entry = Omit<Trace, 'spans'> & {
  bySpan: Map<string, Span>
  /** How much text is in its spans, and in what made them. */
  text: number
  /** The last span that was put: what made it is counted once for those that share it. */
  last: Span | undefined
  timer: NodeJS.Timeout | undefined
}
type Waiter = { look: (trace: Trace) => void; reject: (reason: unknown) => void }

/** Characters in all traces together, and in one of them: spans of what asks language models may hold 100 KB of it each. */
const maxText = 256 * 1024 * 1024
const maxTextPerTrace = maxText / 4

/** Ids of traces that were let go, so that their late spans can be told from new traces. */
const maxForgotten = 10_000

/**
 * Gathers spans into traces, whichever request brought them, and says when a trace has been quiet. Memory is
 * bounded: when there are too many, traces that were handed over already are let go first, oldest first; one that
 * was not is handed over early, so that nothing goes unseen. Throws a TypeError for options that are unknown or wrong.
 */
export function collect(options: CollectOptions = {}): Collector {
  const {
    onTrace,
    quiet = 6000,
    maxTraces = 1000,
    maxSpansPerTrace = 10_000,
    maxSpans = 200_000,
  } = validated('collect()', shape, options)
  const entries = new Map<string, Entry>()
  const forgotten = new Set<string>()
  const waiters = new Set<Waiter>()
  let held = 0
  let heldText = 0

  function add(spans: readonly Span[]): void {
    const touched = new Set<Entry>()
    for (const span of spans) {
      const entry = entries.get(span.traceId) ?? open(span.traceId)
      if (!take(entry, span)) continue
      touched.add(entry)
      arm(entry)
      makeRoom(entry)
    }
    for (const entry of touched) {
      const trace = snapshot(entry)
      for (const waiter of waiters) waiter.look(trace)
    }
  }

  function open(traceId: string): Entry {
    const entry: Entry = {
      traceId,
      bySpan: new Map(),
      text: 0,
      last: undefined,
      revision: 0,
      lateSpans: 0,
      droppedSpans: 0,
      forgotten: forgotten.has(traceId),
      timer: undefined,
    }
    entries.set(traceId, entry)
    return entry
  }

  /** Whether the trace changed: an exporter that got no answer sends the same span again. */
  function take(entry: Entry, span: Span): boolean {
    const { spanId, kind, serviceName, startTimeUnixNano, endTimeUnixNano } = span
    const key = [spanId, kind, startTimeUnixNano, endTimeUnixNano, serviceName].join()
    if (entry.bySpan.has(key)) return false
    const { resource, scope } = span
    let text = textIn([span.name, span.status, span.traceState, span.attributes, span.events, span.links])
    if (resource !== entry.last?.resource) text += textIn(resource)
    if (scope !== entry.last?.scope) text += textIn(scope)
    if (entry.bySpan.size >= maxSpansPerTrace || entry.text + text > maxTextPerTrace) {
      entry.droppedSpans++
      return true
    }
    entry.bySpan.set(key, span)
    entry.lateSpans++
    entry.text += text
    entry.last = span
    held++
    heldText += text
    return true
  }

  function arm(entry: Entry): void {
    if (entry.timer) entry.timer.refresh()
    else entry.timer = setTimeout(handOver, quiet, entry).unref()
  }

  function handOver(entry: Entry): void {
    clearTimeout(entry.timer)
    entry.timer = undefined
    entry.revision++
    const trace = snapshot(entry)
    entry.lateSpans = 0
    onTrace?.(trace)
  }

  function makeRoom(current: Entry): void {
    while (entries.size > maxTraces || held > maxSpans || heldText > maxText) {
      const others = [...entries.values()].filter((entry) => entry !== current)
      const oldest = others.find((entry) => !entry.timer) ?? others[0]
      if (!oldest) return
      if (oldest.timer) handOver(oldest)
      letGo(oldest)
    }
  }

  function letGo(entry: Entry): void {
    clearTimeout(entry.timer)
    entries.delete(entry.traceId)
    held -= entry.bySpan.size
    heldText -= entry.text
    forgotten.add(entry.traceId)
    const [first] = forgotten
    if (forgotten.size > maxForgotten && first) forgotten.delete(first)
  }

  function traces(): Trace[] {
    return Array.from(entries.values(), snapshot)
  }

  function when(
    predicate: (trace: Trace) => boolean,
    { signal }: { signal?: AbortSignal | undefined } = {},
  ): Promise<Trace> {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted()
      const waiter: Waiter = { look, reject: finish(reject) }
      const abort = () => waiter.reject(signal?.reason)

      function finish<T>(settle: (value: T) => void): (value: T) => void {
        return (value) => {
          waiters.delete(waiter)
          signal?.removeEventListener('abort', abort)
          settle(value)
        }
      }

      function look(trace: Trace): void {
        try {
          if (predicate(trace)) finish(resolve)(trace)
        } catch (error) {
          waiter.reject(error)
        }
      }

      waiters.add(waiter)
      signal?.addEventListener('abort', abort)
      for (const trace of traces()) look(trace)
    })
  }

  function flush(): void {
    for (const entry of entries.values()) if (entry.timer) handOver(entry)
  }

  function close(): void {
    for (const entry of entries.values()) clearTimeout(entry.timer)
    entries.clear()
    held = 0
    heldText = 0
    for (const waiter of waiters)
      waiter.reject(new Error('the collector was closed before such a trace came'))
  }

  return { add, traces, when, flush, close }
}

function snapshot(entry: Entry): Trace {
  const { traceId, revision, lateSpans, droppedSpans, forgotten } = entry
  return { traceId, spans: [...entry.bySpan.values()], revision, lateSpans, droppedSpans, forgotten }
}

/** How many characters of text, or bytes, are in a value. */
function textIn(value: unknown): number {
  if (typeof value === 'string' || value instanceof Uint8Array) return value.length
  if (typeof value !== 'object' || value === null) return 0
  let text = 0
  for (const [key, each] of Object.entries(value)) text += key.length + textIn(each)
  return text
}
