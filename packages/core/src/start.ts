import { context, propagation, trace } from '@opentelemetry/api'
import { batchProcessor, type SpanExporter } from './batch.ts'
import { hasEndpoint, readConfig, type Config, type StartOptions } from './config.ts'
import { AsyncContextManager } from './context.ts'
import { onFirstSpan, registeredProvider } from './current.ts'
import { otlpExporter, type Patience } from './otlp/send.ts'
import { forgetReports, report, reportOnce } from './report.ts'
import type { SpanProcessor } from './span.ts'
import { TracerProvider } from './tracer.ts'

/** What `start()` answers. Neither rejects; each ends within its deadline. */
export interface Tracing {
  /** Sends all spans that have ended. */
  flush(): Promise<void>
  /** Ends what is open, sends it, and takes our globals away; `start()` works again afterwards. */
  shutdown(): Promise<void>
}

/** How long a caller of `flush()` or `shutdown()` waits at most. */
const FLUSH_DEADLINE_MS = 5000
/** How long the end of the process is held up at most. */
const EXIT_DEADLINE_MS = 2000

interface Engine extends Tracing {
  provider: TracerProvider
}

let running: Engine | undefined
let state: 'new' | 'running' | 'disabled' | 'stopped' = 'new'

/**
 * Starts tracing in this process. Nobody has to: without it, the first span that is to be made starts with the
 * environment's settings.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function start(options: StartOptions = {}): Tracing {
  const config = readConfig(options)
  if (running !== undefined) {
    report(
      'warn',
      'start() was called while tracing runs already; the running one is returned and the options are unused',
    )
    return running
  }
  if (registeredProvider() !== undefined) {
    report('info', 'an OpenTelemetry SDK is registered and stays in charge; start() did nothing')
    return { flush, shutdown: async () => {} }
  }
  return launch(config)
}

/** Sends all spans that have ended, whoever is in charge. Does not reject, and ends within 5 seconds. */
export async function flush(): Promise<void> {
  if (running !== undefined) return running.flush()
  const provider = registeredProvider()
  if (provider !== undefined && 'forceFlush' in provider) {
    const { forceFlush } = provider as { forceFlush(): Promise<void> }
    await settledWithin(FLUSH_DEADLINE_MS, () => forceFlush.call(provider))
  }
}

onFirstSpan(() => {
  if (state !== 'new') return
  const config = readConfig({})
  // A test run is nobody's traffic: it reaches a receiver only when one was named.
  if (isTestRun() && !hasEndpoint() && process.env['OTEL_TRACES_EXPORTER'] === undefined)
    config.exporter = 'none'
  launch(config)
})

function launch(config: Config): Tracing {
  const manager = new AsyncContextManager()
  const isManager = context.setGlobalContextManager(manager.enable())
  const isPropagator = config.propagator !== undefined && propagation.setGlobalPropagator(config.propagator)
  const undoGlobals = () => {
    if (isManager) context.disable()
    if (isPropagator) propagation.disable()
  }
  if (config.isDisabled) {
    // The standard: a disabled SDK makes no spans, and still passes the context on.
    state = 'disabled'
    const shutdown = async () => {
      undoGlobals()
      state = 'stopped'
    }
    return { flush: async () => {}, shutdown }
  }

  const { processors, setPatience } = pipeline(config)
  const provider = new TracerProvider({ ...config, processors })
  trace.setGlobalTracerProvider(provider)

  const unhook = [onExit(provider, () => hurry('once', EXIT_DEADLINE_MS))]
  if (config.signals) unhook.push(onSignals(() => hurry('once', EXIT_DEADLINE_MS)))

  async function hurry(patience: Patience, deadline: number): Promise<void> {
    setPatience(patience)
    await settledWithin(deadline, () => provider.forceFlush())
    setPatience('patient')
  }

  async function stop(): Promise<void> {
    trace.disable()
    undoGlobals()
    for (const undo of unhook) undo()
    running = undefined
    state = 'stopped'
    setPatience('brief')
    await settledWithin(FLUSH_DEADLINE_MS, () => provider.shutdown())
    forgetReports()
  }

  let stopping: Promise<void> | undefined
  const engine: Engine = {
    provider,
    flush: () => hurry('brief', FLUSH_DEADLINE_MS),
    shutdown: () => (stopping ??= stop()),
  }
  running = engine
  state = 'running'
  return engine
}

/** Exporters of others have a pace of their own. */
const anyPace = (): void => {}

interface Pipeline {
  processors: SpanProcessor[]
  setPatience: (patience: Patience) => void
}

function pipeline({ spanProcessors, exporter, otlp, batch }: Config): Pipeline {
  if (spanProcessors !== undefined) return { processors: spanProcessors, setPatience: anyPace }
  if (exporter === 'none') return { processors: [], setPatience: anyPace }
  if (exporter === 'otlp') {
    const sending = otlpExporter(otlp)
    return { processors: [batchProcessor(sending, batch)], setPatience: sending.setPatience }
  }
  const chosen = exporter === 'console' ? consoleExporter : exporter
  return { processors: [batchProcessor(chosen, batch)], setPatience: anyPace }
}

/** `OTEL_TRACES_EXPORTER=console`: a span a time, as objects on stdout. */
const consoleExporter: SpanExporter = {
  export(spans, done) {
    for (const span of spans) {
      const { name, kind, status, attributes, events, links, startTime, duration, parentSpanContext } = span
      const { traceId, spanId } = span.spanContext()
      const scope = span.instrumentationScope.name
      const parentSpanId = parentSpanContext?.spanId
      console.dir(
        {
          traceId,
          spanId,
          parentSpanId,
          name,
          kind,
          scope,
          startTime,
          duration,
          status,
          attributes,
          events,
          links,
        },
        { depth: 4 },
      )
    }
    done({ code: 0 })
  },
  shutdown: async () => {},
}

/**
 * The queue may hold spans when the app has nothing left to do. What is sent then brings `beforeExit` once more, so only
 * new spans are a reason to send again.
 */
function onExit(provider: TracerProvider, finish: () => Promise<void>): () => void {
  let seen = 0
  const listener = () => {
    if (provider.endedCount === seen) return
    seen = provider.endedCount
    void finish()
  }
  process.on('beforeExit', listener)
  return () => process.off('beforeExit', listener)
}

/**
 * A signal that would have ended the process still does, after a flush. Where the app listens itself, the end is its own
 * affair: we flush, and what ends during its drain leaves with `beforeExit` or `shutdown()`.
 */
function onSignals(finish: () => Promise<void>): () => void {
  const signals = ['SIGTERM', 'SIGINT'] as const
  const undo = () => {
    for (const signal of signals) process.off(signal, listener)
  }
  function listener(signal: NodeJS.Signals): void {
    const isAlone = process.listenerCount(signal) === 1
    const flushed = finish()
    if (!isAlone) return
    undo()
    void flushed.then(() => process.kill(process.pid, signal))
  }
  // In front of the app's own listeners: those added with `once` are gone by the time that a later one is called.
  for (const signal of signals) process.prependListener(signal, listener)
  return undo
}

/** Waits for the work, but not longer than this, and never rejects. The timer keeps the process alive meanwhile. */
async function settledWithin(milliseconds: number, work: () => Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      reportOnce('flush late', 'warn', `the spans could not all be sent within ${milliseconds} ms`)
      resolve()
    }, milliseconds)
  })
  try {
    await Promise.race([work(), late])
  } catch (error) {
    reportOnce('flush failed', 'error', 'the spans could not be flushed', error)
  } finally {
    clearTimeout(timer)
  }
}

function isTestRun(): boolean {
  const { NODE_ENV, VITEST, JEST_WORKER_ID } = process.env
  return NODE_ENV === 'test' || VITEST !== undefined || JEST_WORKER_ID !== undefined
}
