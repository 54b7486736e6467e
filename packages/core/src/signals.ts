/**
 * A signal that would have ended the process still does, after a flush: `finish`. Where the app listens itself, the end
 * is its own affair: we `begin` a flush, and what ends during its drain leaves with `beforeExit` or `shutdown()`.
 */
export function onSignals(finish: () => Promise<void>, begin: () => void): () => void {
  // Each knows its signal: an app that emits one itself need not name it again.
  const listeners = (['SIGTERM', 'SIGINT'] as const).map((signal) => {
    const listener = () => hear(signal, listener)
    ours.add(listener)
    return [signal, listener] as const
  })
  let isOn = true
  let isEnding = false

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
      // Whoever counts the listeners to find out whether to end the process is not to count ours.
      process.off(signal, listener)
      setImmediate(() => {
        if (isOn) process.prependListener(signal, listener)
      })
      begin()
    } else if (isEnding) {
      die(signal)
    } else {
      isEnding = true
      void finish().then(() => die(signal))
    }
  }
  // In front of the app's own listeners: those added with `once` are gone by the time that a later one is called.
  for (const [signal, listener] of listeners) process.prependListener(signal, listener)
  return undo
}

/** Ours are those of all engines: the next may have started while the last one still sends. */
const ours = new WeakSet<object>()

function othersListening(signal: NodeJS.Signals): number {
  return process.listeners(signal).filter((listener) => !ours.has(listener)).length
}

/**
 * How many listeners of a signal are the signal-exit package's, whose versions tell one another so. It ends the process
 * if nobody but itself listens: without this, it would wait for us and we for it.
 */
function politeListeners(): number {
  const emitters = [
    (globalThis as Record<symbol, unknown>)[Symbol.for('signal-exit emitter')],
    (process as unknown as Record<string, unknown>)['__signal_exit_emitter__'],
  ] as ({ count?: unknown } | undefined)[]
  return emitters.reduce((sum, emitter) => sum + (typeof emitter?.count === 'number' ? emitter.count : 0), 0)
}
