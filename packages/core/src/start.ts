import { context, propagation } from '@opentelemetry/api'
import { Socket } from 'node:net'
import { clearInterval, clearTimeout, setImmediate, setInterval, setTimeout } from 'node:timers'
import { batchProcessor, isAnnounced, type BatchProcessor, type SpanExporter } from './batch.ts'
import { hasDestination, readConfig, type Config, type StartOptions } from './config.ts'
import { contextManager } from './context.ts'
import { onFirstSpan, register, registeredProvider } from './current.ts'
import { otlpExporter, type OtlpExporter, type Patience } from './otlp/send.ts'
import { misreadsFlags } from './propagation.ts'
import { forgetReports, registered, report, reportOnce, takeErrors } from './report.ts'
import type { SpanProcessor } from './span.ts'
import { TracerProvider } from './tracer.ts'

/** The result of `start()`. Neither method rejects; each ends within its deadline. */
export interface Tracing {
  /** Sends all spans that have ended. */
  flush(): Promise<void>
  /** Ends open spans, sends everything, and unregisters us from the API; `start()` works again afterwards. */
  shutdown(): Promise<void>
}

/** The longest that a caller of `flush()` or `shutdown()` waits. */
const FLUSH_DEADLINE_MS = 5000
/** The longest that the end of the process is held up. */
const EXIT_DEADLINE_MS = 2000
/**
 * Signals that come this close together are one: a terminal sends Ctrl-C to all processes of a group, and the one that has
 * started the app (`node --watch`, nodemon, concurrently) hands it on a few milliseconds later. Nobody presses it twice so fast.
 */
const SAME_SIGNAL_MS = 200
/** How often a batch being sent checks whether it alone keeps the process alive. */
const HELD_CHECK_MS = 500

interface Engine extends Tracing {
  provider: TracerProvider
  /** Whether the first span, not the app, has started it. */
  isDefault: boolean
}

let running: Engine | undefined
/** Stands for the engine while there is none. */
let disabled: Tracing | undefined
/** Whether that is wanted. Otherwise the API has refused us, which was reported. */
let isWanted = false
/** The first span starts tracing by itself only where nobody has ever started or stopped it. */
let isUntouched = true

/**
 * Starts tracing in this process. Optional: without it, the first span starts tracing with the environment's settings.
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export function start(options: StartOptions = {}): Tracing {
  const config = readConfig(options)
  if (disabled !== undefined) {
    if (isWanted && !config.isDisabled)
      report('warn', 'start() did nothing: an earlier one has switched tracing off, until its shutdown()')
    return disabled
  }
  // Somebody has shut down the provider itself: its spans would go nowhere.
  if (running?.provider.isStopped === true) void running.shutdown()
  if (running !== undefined) {
    if (Object.values(options).some((option) => option !== undefined)) {
      const why = running.isDefault ? ': the first span has started it, so call start() before that' : ''
      reportOnce(
        'start again',
        'warn',
        `start() was called while tracing runs already; the running one is returned and the options are unused${why}`,
      )
    }
    return running
  }
  if (registeredProvider() !== undefined) {
    report('info', 'an OpenTelemetry SDK is registered and stays in charge; start() did nothing')
    return { flush, shutdown: async () => {} }
  }
  return launch(config, { isPropagatorGiven: options.propagator !== undefined })
}

/** Sends all spans that have ended, whichever provider is registered. Does not reject, and ends within 5 seconds. */
export async function flush(): Promise<void> {
  const provider = registeredProvider()
  // Somebody may have put another one in the place of ours, as dd-trace and Azure's distribution do.
  await Promise.all([running?.flush(), provider === running?.provider ? undefined : flushOther(provider)])
}

async function flushOther(provider: object | undefined): Promise<void> {
  if (provider === undefined || !('forceFlush' in provider)) return
  const { forceFlush } = provider as { forceFlush(): Promise<void> }
  await settledWithin(FLUSH_DEADLINE_MS, () => forceFlush.call(provider))
}

onFirstSpan(() => {
  if (!isUntouched) return
  try {
    const config = readConfig({})
    // A test run is not real traffic: it is sent only if an endpoint was named.
    if (isTestRun() && !hasDestination()) config.exporters = []
    launch(config, { isDefault: true })
  } catch (error) {
    isUntouched = false
    reportOnce('default start', 'error', 'tracing could not be started', error)
  }
})

/** `isPropagatorGiven`: the propagator is the app's. `isDefault`: started by the first span. */
function launch(config: Config, { isPropagatorGiven = false, isDefault = false }): Tracing {
  isUntouched = false
  const manager = contextManager()
  const { propagator } = config
  // The first to register stays: the API would log another attempt as an error.
  const before = registered()
  const isManager = before?.context === undefined && context.setGlobalContextManager(manager)
  const isFirst = before?.propagation === undefined
  const isPropagator = propagator !== undefined && isFirst && propagation.setGlobalPropagator(propagator)
  if (isPropagatorGiven && !isPropagator) {
    report(
      'warn',
      'start({ propagator }) is unused: another propagator was registered first, and stays in charge',
    )
  }
  // Not if somebody has since replaced ours.
  const undoGlobals = () => {
    if (isManager && registered()?.context === manager) context.disable()
    if (isPropagator && registered()?.propagation === propagator) propagation.disable()
  }
  if (config.isDisabled) {
    // The standard: a disabled SDK makes no spans, and still passes the context on.
    const standIn: Tracing = {
      flush: async () => {},
      async shutdown() {
        // A later engine must not be ended by this one.
        if (disabled !== standIn) return
        undoGlobals()
        disabled = undefined
      },
    }
    disabled = standIn
    isWanted = true
    return standIn
  }

  const { processors, setPatience, giveUp, hasten, sayLosses, abandon, onHeld } = pipeline(config)
  const flagsRandom = config.flagsRandom && (propagator === undefined ? isFirst : isPropagator)
  const provider = new TracerProvider({ ...config, flagsRandom, hidesRandom: misreadsFlags(), processors })
  const unregister = register(provider)
  if (unregister === undefined) {
    undoGlobals()
    isWanted = false
    disabled = { flush: async () => {}, shutdown: async () => void (disabled = undefined) }
    return disabled
  }

  async function finish(patience: Patience, within: number): Promise<void> {
    if (!(await hurry(patience, within, { end: performance.now() + within }))) await giveUp()
    sayLosses()
  }
  const finishExit = (within: number) => finish('brief', within)
  // Whoever sends a signal is waiting.
  const finishSignal = () => finish('once', EXIT_DEADLINE_MS)
  const { unhookExit, expectSignal } = onExit(provider, finishExit, abandon, onHeld)
  const unhook = [unregister, unhookExit]
  const begin = () => {
    hasten()
    expectSignal()
    void provider.forceFlush().catch(sayFailed)
  }
  const unhookSignals = config.signals ? onSignals(finishSignal, begin, abandon) : () => {}

  const paces: Pace[] = []
  const keepPace = () => setPatience(strictest(paces), Math.min(...paces.map(({ end }) => end)))
  /** `end`: when what has not been sent is given up, by `performance.now()`. */
  async function hurry(
    patience: Patience,
    within: number,
    { end = Infinity, keepsAlive = true } = {},
  ): Promise<boolean> {
    const pace: Pace = { patience, end }
    paces.push(pace)
    keepPace()
    const isInTime = await settledWithin(within, () => provider.forceFlush(), keepsAlive)
    paces.splice(paces.indexOf(pace), 1)
    keepPace()
    return isInTime
  }

  // Who waits for it keeps the process alive, for as long as they wait.
  const flushShared = shared(() => hurry('brief', FLUSH_DEADLINE_MS, { keepsAlive: false }))

  async function stop(): Promise<void> {
    undoGlobals()
    for (const undo of unhook) undo()
    running = undefined
    paces.push({ patience: 'brief', end: performance.now() + FLUSH_DEADLINE_MS })
    keepPace()
    if (!(await settledWithin(FLUSH_DEADLINE_MS, () => provider.shutdown()))) await giveUp()
    sayLosses()
    // Not before: a signal that comes meanwhile must wait for what is being sent.
    unhookSignals()
    // Not if the next engine has started: the reports are now its own.
    if (running === undefined) forgetReports()
  }

  let stopping: Promise<void> | undefined
  const engine: Engine = {
    provider,
    isDefault,
    flush: async () => void (await settledWithin(FLUSH_DEADLINE_MS, flushShared)),
    shutdown: () => (stopping ??= stop()),
  }
  running = engine
  return engine
}

/**
 * Who comes while a flush is at work shares the one behind it, which begins no later than their spans could leave. An app may
 * flush at the end of each request: one for each of them would cost the more the more there are, and keep 6 KB until the
 * collector answers.
 */
function shared(flush: () => Promise<unknown>): () => Promise<unknown> {
  let current: Promise<unknown> | undefined
  let next: Promise<unknown> | undefined
  function begin(): Promise<unknown> {
    current = flush()
    void current.then(() => (current = undefined))
    return current
  }
  return () => {
    if (current === undefined) return begin()
    next ??= current.then(() => {
      next = undefined
      return begin()
    })
    return next
  }
}

/** Of one who waits for the spans. */
interface Pace {
  readonly patience: Patience
  /** When the rest is given up, by `performance.now()`; Infinity for never. */
  readonly end: number
}

function strictest(paces: readonly Pace[]): Patience {
  const wanted = new Set(paces.map(({ patience }) => patience))
  return (['once', 'brief'] as const).find((patience) => wanted.has(patience)) ?? 'patient'
}

interface Pipeline {
  processors: readonly SpanProcessor[]
  setPatience: OtlpExporter['setPatience']
  /** What has not been sent by now is lost. */
  giveUp: () => Promise<void>
  /** The app is finishing its work: what ends leaves at once. */
  hasten: () => void
  /** Reports what was lost and is not reported yet. */
  sayLosses: () => void
  /** The same, with what will be lost because the process ends now. */
  abandon: () => void
  /** From now on `listener` is called when only our requests keep the process alive. */
  onHeld: (listener: () => void) => void
}

function pipeline({ spanProcessors, exporters, otlp, batch }: Config): Pipeline {
  const nothing = () => {}
  // A foreign exporter cannot be told to hurry.
  let setPatience: Pipeline['setPatience'] = nothing
  let sayRejected = nothing
  let held = nothing
  const onHeld: Pipeline['onHeld'] = (listener) => (held = listener)
  // Processors of the app's take the place of all of ours.
  const batches = (spanProcessors === undefined ? exporters : []).map((exporter): BatchProcessor => {
    if (exporter === 'console') return batchProcessor(consoleExporter, batch)
    if (exporter !== 'otlp') return batchProcessor(exporter, batch)
    const sending = otlpExporter(otlp)
    setPatience = sending.setPatience
    sayRejected = sending.sayRejected
    return batchProcessor(
      watched(sending, () => held()),
      batch,
    )
  })
  const giveUp = async () => void (await Promise.all(batches.map((each) => each.giveUp())))
  const hasten = () => {
    for (const each of batches) each.hasten()
  }
  const said = (say: (each: BatchProcessor) => void) => () => {
    for (const each of batches) say(each)
    sayRejected()
  }
  const sayLosses = said((each) => each.sayLosses())
  const abandon = said((each) => each.abandon())
  return { processors: spanProcessors ?? batches, setPatience, giveUp, hasten, sayLosses, abandon, onHeld }
}

/**
 * `unref()` covers a socket, but not pending system requests on it: to connect, or to send what the other end does not read.
 * `beforeExit` would only come after those.
 */
function watched(exporter: SpanExporter, held: () => void): SpanExporter {
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

/**
 * Whether only our requests are left, and there is one. Work in Node's thread pool or in a Worker is not listed, so it is
 * overlooked while a request of ours hangs connecting. Other sockets are listed beside their requests; so are stdout and
 * stderr, though they keep nothing alive.
 */
function isHeldByRequests(): boolean {
  const standard = [process.stdout, process.stderr].filter((stream) => stream instanceof Socket).length
  let requests = 0
  let pipes = 0
  // A busy server lists its connections and timers by the thousand: the first of them is enough.
  for (const name of process.getActiveResourcesInfo()) {
    if (/(?:Connect|Write)Wrap$/.test(name)) requests += 1
    else if (name === 'PipeWrap' || name === 'TTYWrap') pipes += 1
    else return false
  }
  return requests > 0 && pipes <= standard
}

/** `OTEL_TRACES_EXPORTER=console`: one span at a time, as objects on stdout. */
const consoleExporter: SpanExporter = {
  export(spans, done) {
    takeErrors(process.stdout, sayUnprinted)
    for (const span of spans) {
      const { traceId, spanId } = span.spanContext()
      console.dir(
        {
          traceId,
          spanId,
          parentSpanId: span.parentSpanContext?.spanId,
          name: span.name,
          kind: span.kind,
          scope: span.instrumentationScope.name,
          startTime: span.startTime,
          duration: span.duration,
          status: span.status,
          attributes: span.attributes,
          events: span.events,
          links: span.links,
        },
        { depth: 4 },
      )
    }
    done({ code: 0 })
  },
  shutdown: async () => {},
}

function sayUnprinted(error: Error): void {
  reportOnce('stdout', 'warn', 'spans cannot be printed on stdout, and are lost', error)
}

/**
 * The queue may hold spans when the app has nothing left to do. Sending them leads to another `beforeExit`, whose listeners of
 * the app may make spans again. So we send again only for new spans, but not for those of such listeners alone: an app that
 * makes one each time would never end. All of it must end within the deadline.
 */
function onExit(
  provider: TracerProvider,
  finish: (within: number) => Promise<void>,
  abandon: () => void,
  onHeld: Pipeline['onHeld'],
): { unhookExit: () => void; expectSignal: () => void } {
  let isOn = true
  /** Whether the app may send itself a signal again, to die of it, as its last act. */
  let isExpected = false
  let seen = 0
  let left = EXIT_DEADLINE_MS
  let looked = 0
  let hasSent = false
  const send = async () => {
    if (provider.endedCount === seen) return
    seen = provider.endedCount
    const began = performance.now()
    await finish(left)
    left = Math.max(0, left - (performance.now() - began))
  }
  /** With us listening a signal is heard in the next turn of the loop, which there would not be. */
  const giveTurn = () => {
    const idle = process.getActiveResourcesInfo().length
    setImmediate(() => {})
    // The app's last act may also come after what its own listeners have begun.
    void inLastTick(() => (isExpected = process.getActiveResourcesInfo().length > idle + 1))
  }
  const listener = () => {
    // A listener before ours has shut us down.
    if (!isOn) return
    if (isExpected) giveTurn()
    const before = provider.endedCount
    // Before all others next time: spans that have ended by then are not theirs.
    if (process.listeners('beforeExit')[0] !== listener) {
      process.off('beforeExit', listener)
      process.prependListener('beforeExit', listener)
    }
    const look = () => {
      if (provider.endedCount === looked) return
      const isOfListeners = before === looked
      looked = provider.endedCount
      if (!isOn || left === 0 || (isOfListeners && hasSent)) return
      hasSent = true
      void send()
    }
    void inLastTick(look)
  }
  onHeld(send)
  process.prependListener('beforeExit', listener)
  // `process.exit()` waits for nothing.
  process.on('exit', abandon)
  const unhookExit = () => {
    isOn = false
    process.off('beforeExit', listener)
    process.off('exit', abandon)
  }
  return { unhookExit, expectSignal: () => (isExpected = true) }
}

/**
 * After the app's listeners of `beforeExit` and their microtasks, but before Node checks whether to end. Not by the global `Promise`:
 * bluebird's in its place takes a turn of the loop, after which Node asks again.
 */
async function inLastTick(act: () => unknown): Promise<void> {
  await undefined
  process.nextTick(act)
}

/**
 * A signal that would have ended the process still does, after a flush: `finish`. Where the app listens itself, the end is its
 * own affair: we `begin` a flush, and what ends during its drain leaves as it ends, since many apps exit right behind their last
 * answer. Who sends a second one does not wait for our flush: we `abandon` what has not left.
 */
function onSignals(finish: () => Promise<void>, begin: () => void, abandon: () => void): () => void {
  // Each knows its signal: an app that emits one itself need not name it again.
  const listeners = (['SIGTERM', 'SIGINT'] as const).map((signal) => {
    const listener = () => hear(signal, listener)
    ours.add(listener)
    return [signal, listener] as const
  })
  let isOn = true
  /** When the first of the signals came that end the process, by `performance.now()`. */
  let endingSince: number | undefined

  const undo = () => {
    isOn = false
    for (const [signal, listener] of listeners) process.off(signal, listener)
  }
  const die = (signal: NodeJS.Signals) => {
    undo()
    process.kill(process.pid, signal)
  }
  function hear(signal: NodeJS.Signals, listener: () => void): void {
    if (othersListening(signal) > politeListeners()) {
      // Code that counts listeners to decide whether to end the process must not count ours.
      process.off(signal, listener)
      setImmediate(() => {
        if (isOn) process.prependListener(signal, listener)
      })
      begin()
    } else if (endingSince === undefined) {
      endingSince = performance.now()
      void finish().then(() => die(signal))
    } else if (performance.now() - endingSince > SAME_SIGNAL_MS) {
      abandon()
      die(signal)
    }
  }
  // Before the app's own listeners: those added with `once` are already removed when a later one is called.
  for (const [signal, listener] of listeners) process.prependListener(signal, listener)
  return undo
}

/** The listeners of all engines: the next may have started while the last one still sends. */
const ours = new WeakSet<object>()

function othersListening(signal: NodeJS.Signals): number {
  return process.listeners(signal).filter((listener) => !ours.has(listener)).length
}

/**
 * How many listeners of a signal belong to the signal-exit package, whose versions count them globally. It ends the process if
 * only it listens: without this, it would wait for us and we for it.
 */
function politeListeners(): number {
  const emitters = [
    (globalThis as Record<symbol, unknown>)[Symbol.for('signal-exit emitter')],
    (process as unknown as Record<string, unknown>)['__signal_exit_emitter__'],
  ] as ({ count?: unknown } | undefined)[]
  return emitters.reduce((sum, emitter) => sum + (typeof emitter?.count === 'number' ? emitter.count : 0), 0)
}

/**
 * Waits for the work, but no longer than this, and never rejects; false if the time was not enough.
 *
 * @param keepsAlive whether the process stays alive meanwhile
 */
async function settledWithin(
  milliseconds: number,
  work: () => Promise<unknown>,
  keepsAlive = true,
): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  let isInTime = true
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      reportOnce(
        'flush late',
        'warn',
        `the spans could not all be sent within ${Math.round(milliseconds)} ms`,
      )
      isInTime = false
      resolve()
    }, milliseconds)
    if (!keepsAlive) timer.unref()
  })
  try {
    await Promise.race([work(), late])
  } catch (error) {
    sayFailed(error)
  } finally {
    clearTimeout(timer)
  }
  return isInTime
}

function sayFailed(error: unknown): void {
  if (isAnnounced(error)) return
  reportOnce('flush failed', 'error', 'the spans could not be flushed', error)
}

function isTestRun(): boolean {
  const { NODE_ENV, VITEST, JEST_WORKER_ID } = process.env
  return NODE_ENV === 'test' || VITEST !== undefined || JEST_WORKER_ID !== undefined
}
