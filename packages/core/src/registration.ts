import { trace, type ProxyTracerProvider, type TracerProvider } from '@opentelemetry/api'
import { createRequire } from 'node:module'
import { globalVersion, report, reportOnce } from './report.ts'

// The API keeps the provider that is in charge in one place per process. But there may be several copies of the API in it,
// and each has a proxy of its own, which hands out tracers before anybody is registered.

type TraceApi = typeof trace

/**
 * Puts the provider in charge, for all copies of the API, and answers what undoes that. Undefined, and said, where the API
 * refuses, since another version of it has registered something first.
 */
export function register(provider: TracerProvider): (() => void) | undefined {
  const copies = otherCopies()
  const proxies = copies.map((copy) => copy.getTracerProvider())
  if (!trace.setGlobalTracerProvider(provider)) {
    report(
      'error',
      `tracing could not be started: another version of @opentelemetry/api (${globalVersion()}) came first in this process, and it refuses ours. Install one version for all; npm ls @opentelemetry/api shows who brings which`,
    )
    return undefined
  }
  const undo = [tellCopies(copies, proxies, provider), ...[trace, ...copies].map(refuseSuccessors)]
  return () => {
    trace.disable()
    for (const step of undo) step()
  }
}

/**
 * The other copies of the API that this process has loaded. From 1.10 on there are two of each version, one for `import`
 * and one for `require`; and packages bring copies of their own along.
 */
function otherCopies(): TraceApi[] {
  // The cache is one for the whole process. In a bundle there may be no import.meta.url to ask from.
  const { cache } = createRequire(process.execPath)
  return Object.entries(cache).flatMap(([path, loaded]) => {
    if (!/[\\/]@opentelemetry[\\/]api[\\/].*[\\/]index\.c?js$/.test(path)) return []
    const copy = (loaded?.exports as { trace?: TraceApi } | undefined)?.trace
    return typeof copy?.setGlobalTracerProvider === 'function' && copy !== trace ? [copy] : []
  })
}

/**
 * A tracer that a copy gave out before anybody was registered asks that copy's own proxy for ever: this one is to know us
 * too. Copies that do not see our registration, for they are of another version, are left alone.
 */
function tellCopies(
  copies: readonly TraceApi[],
  proxies: readonly TracerProvider[],
  provider: TracerProvider,
): () => void {
  const undo = copies.map((copy, index) => {
    const proxy = proxies[index] as ProxyTracerProvider
    if (copy.getTracerProvider() !== trace.getTracerProvider() || !('setDelegate' in proxy)) return () => {}
    const before = proxy.getDelegate()
    proxy.setDelegate(provider)
    return () => proxy.setDelegate(before)
  })
  return () => {
    for (const step of undo) step()
  }
}

/** The API lets nobody follow us while we run, and says so only to its logger: here whoever tries is told what to do. */
function refuseSuccessors(api: TraceApi): () => void {
  const { setGlobalTracerProvider } = api
  function refuse(this: TraceApi, provider: TracerProvider): boolean {
    // Bundlers number the names of classes.
    const name = provider.constructor?.name.replace(/\$\d+$/, '') ?? 'an OpenTelemetry SDK'
    reportOnce(
      'SDK too late',
      'error',
      `${name} was registered after Throughline had started, and stays unused. Either register it before the first span is made, and Throughline uses it; or leave it out, and give its exporter or span processors to Throughline's start()`,
    )
    return Reflect.apply(setGlobalTracerProvider, this, [provider]) as boolean
  }
  api.setGlobalTracerProvider = refuse
  return () => {
    if (api.setGlobalTracerProvider === refuse) api.setGlobalTracerProvider = setGlobalTracerProvider
  }
}
