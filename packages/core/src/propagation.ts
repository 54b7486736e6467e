import {
  createContextKey,
  defaultTextMapGetter,
  propagation,
  trace,
  type Context,
  type SpanContext,
  type TextMapGetter,
  type TextMapPropagator,
  type TextMapSetter,
} from '@opentelemetry/api'
import type { ClientRequest, IncomingMessage, ServerResponse } from 'node:http'
import { formatB3, parseB3, parseB3Fields, samplingState, type B3 } from './b3.ts'
import { formatBaggage, parseBaggage } from './baggage.ts'
import { isSuppressed, passedIn, spanIn, withSpan } from './context.ts'
import { isValid, knownValid, validContextOf } from './ids.ts'
import { show } from './options.ts'
import { override, untrace } from './patch.ts'
import { registered, reportOnce } from './report.ts'
import {
  formatTraceparent,
  parseTraceContext,
  serializeTracestate,
  TRACEPARENT_LENGTH,
} from './trace-context.ts'

/** W3C Trace Context Level 2: `traceparent` and `tracestate`. A header that is not valid leaves the context as it was. */
export const traceContextPropagator: TextMapPropagator = {
  inject(from, carrier, setter) {
    const spanContext = validContextOf(spanIn(from))
    if (spanContext === undefined || isSuppressed(from)) return
    const passed = passedIn(from)
    if (passed !== undefined) {
      // With an unchanged traceparent the tracestate must not change either (Trace Context, 3.4).
      setter.set(carrier, 'traceparent', passed.traceparent)
      if (passed.tracestate !== undefined) setter.set(carrier, 'tracestate', passed.tracestate)
      return
    }
    setter.set(carrier, 'traceparent', formatTraceparent(spanContext))
    if (spanContext.traceState === undefined) return
    const tracestate = serializeTracestate(spanContext.traceState)
    if (tracestate !== '') setter.set(carrier, 'tracestate', tracestate)
  },
  extract(into, carrier, getter) {
    const traceparent = getter.get(carrier, 'traceparent')
    if (traceparent === undefined) return into
    return withParent(into, parseTraceContext(traceparent, tracestateOf(carrier, getter)))
  },
  fields: () => ['traceparent', 'tracestate'],
}

/** A tracestate that cannot even be read costs nothing but itself (Trace Context, 3.3). */
function tracestateOf<C>(carrier: C, getter: TextMapGetter<C>): ReturnType<typeof getter.get> {
  try {
    return getter.get(carrier, 'tracestate')
  } catch (error) {
    sayUnread(error)
    return undefined
  }
}

function sayUnread(error: unknown): void {
  reportOnce('carrier', 'error', 'a carrier could not be read to its end', error)
}

function sayUnwritten(error: unknown): void {
  reportOnce(
    'carrier:write',
    'error',
    'a carrier could not be written to: what goes out with it is not traced on',
    error,
  )
}

/** W3C Baggage: `baggage`. */
export const baggagePropagator: TextMapPropagator = {
  inject(from, carrier, setter) {
    const baggage = propagation.getBaggage(from)
    if (baggage === undefined || isSuppressed(from)) return
    const value = formatBaggage(baggage)
    if (value !== '') setter.set(carrier, 'baggage', value)
  },
  extract(into, carrier, getter) {
    const value = getter.get(carrier, 'baggage')
    const baggage = value === undefined ? undefined : parseBaggage(value)
    return baggage === undefined ? into : propagation.setBaggage(into, baggage)
  },
  fields: () => ['baggage'],
}

// Holds the id of the trace that a sender wants debugged, since the flag is valid for that trace alone.
const B3_DEBUG = createContextKey('throughline.b3_debug')

/** B3 as one header, `b3`. Reads the multi-header form if that is missing or invalid. */
export const b3Propagator: TextMapPropagator = {
  inject(from, carrier, setter) {
    const spanContext = validContextOf(spanIn(from))
    if (spanContext === undefined || isSuppressed(from)) return
    setter.set(carrier, 'b3', formatB3(spanContext, isDebugged(from, spanContext)))
  },
  extract: extractB3,
  fields: () => ['b3'],
}

/** B3 as several headers, `x-b3-…`. Reads the single header first, like `b3Propagator`. */
export const b3MultiPropagator: TextMapPropagator = {
  inject(from, carrier, setter) {
    const spanContext = validContextOf(spanIn(from))
    if (spanContext === undefined || isSuppressed(from)) return
    setter.set(carrier, 'x-b3-traceid', spanContext.traceId)
    setter.set(carrier, 'x-b3-spanid', spanContext.spanId)
    const state = samplingState(spanContext, isDebugged(from, spanContext))
    if (state === 'd') setter.set(carrier, 'x-b3-flags', '1')
    else if (state !== undefined) setter.set(carrier, 'x-b3-sampled', state)
  },
  extract: extractB3,
  fields: () => ['x-b3-traceid', 'x-b3-spanid', 'x-b3-sampled', 'x-b3-flags'],
}

function extractB3<C>(into: Context, carrier: C, getter: TextMapGetter<C>): Context {
  const b3 = parseB3(getter.get(carrier, 'b3')) ?? multipleB3(carrier, getter)
  if (b3 === undefined) return into
  const { spanContext, isDebug } = b3
  const extracted = withSpan(into, trace.wrapSpanContext(spanContext))
  return isDebug ? extracted.setValue(B3_DEBUG, spanContext.traceId) : extracted
}

function multipleB3<C>(carrier: C, getter: TextMapGetter<C>): B3 | undefined {
  const traceId: unknown = getter.get(carrier, 'x-b3-traceid')
  if (traceId === undefined) return undefined
  return parseB3Fields({
    traceId,
    spanId: getter.get(carrier, 'x-b3-spanid'),
    sampled: getter.get(carrier, 'x-b3-sampled'),
    flags: getter.get(carrier, 'x-b3-flags'),
  })
}

function isDebugged(context: Context, { traceId }: SpanContext): boolean {
  return context.getValue(B3_DEBUG) === traceId
}

/** The default propagators: `tracecontext,baggage`. */
export const w3cPropagator = compositePropagator([traceContextPropagator, baggagePropagator])

/**
 * A request's incoming context, like the API's `propagation.extract`, in half the time with the W3C propagator and no baggage.
 * If the app's propagator fails, the request begins a new trace.
 */
export function extractRequest(into: Context, request: IncomingMessage): Context {
  try {
    if (registered()?.propagation === w3cPropagator) {
      // Literal property names: a name passed as a parameter costs V8 0.1 µs.
      const { headers } = request
      const { baggage, traceparent } = headers
      if (baggage === undefined)
        return traceparent === undefined || (traceparent.length > TRACEPARENT_LENGTH && hasSeveral(request))
          ? into
          : withParent(into, parseTraceContext(traceparent, headers.tracestate))
    }
  } catch {
    // A test's stand-in. The propagator reports what is wrong with it.
  }
  return extractOther(into, request)
}

/** Whether there are several traceparents, which Node joins: behind the flags of a later version a comma does not tell. */
function hasSeveral({ headers, rawHeaders }: IncomingMessage): boolean {
  try {
    if (!((headers['traceparent'] as string).length > TRACEPARENT_LENGTH)) return false
    const isOne = (name: string, index: number) => index % 2 === 0 && name.toLowerCase() === 'traceparent'
    return rawHeaders.filter(isOne).length > 1
  } catch {
    // None, or made up for a test.
    return false
  }
}

function extractOther(into: Context, request: IncomingMessage): Context {
  try {
    const carrier = hasSeveral(request) ? { ...request.headers, traceparent: undefined } : request.headers
    const extracted: Partial<Context> | undefined = propagation.extract(into, carrier, defaultTextMapGetter)
    if (typeof extracted?.getValue === 'function') return extracted as Context
    throw new TypeError(`expected a context from its extract(), received ${show(extracted)}`)
  } catch (error) {
    reportOnce(
      'extract',
      'error',
      'the propagator could not read a request, which begins a trace of its own',
      error,
    )
    return into
  }
}

function withParent(into: Context, parent: SpanContext | undefined): Context {
  return parent === undefined ? into : withSpan(into, trace.wrapSpanContext(knownValid(parent)))
}

/**
 * All of these in turn; each sees the context that the one before it made. One that throws costs only what it would have read
 * or written.
 */
export function compositePropagator(propagators: readonly TextMapPropagator[]): TextMapPropagator {
  return {
    inject<C>(from: Context, carrier: C, setter: TextMapSetter<C>) {
      for (const propagator of propagators) {
        try {
          propagator.inject(from, carrier, setter)
        } catch (error) {
          sayUnwritten(error)
        }
      }
    },
    extract<C>(into: Context, carrier: C, getter: TextMapGetter<C>) {
      let extracted = into
      for (const propagator of propagators) {
        try {
          extracted = propagator.extract(extracted, carrier, getter)
        } catch (error) {
          sayUnread(error)
        }
      }
      return extracted
    },
    fields: () => propagators.flatMap((propagator) => propagator.fields()),
  }
}

/**
 * Of propagators for which the random flag is another: Jaeger's writes flags unchanged, and to its readers this bit means "debug";
 * Sentry takes a span for sampled, and keeps its children, only where that is its one flag.
 */
const MISREADING = new Set(['uber-trace-id', 'sentry-trace'])

/** Whether such a propagator is registered, alone or among others. */
export function misreadsFlags(): boolean {
  try {
    return propagation.fields().some((field) => MISREADING.has(field))
  } catch {
    // It is the app's, and need not be sound.
    return false
  }
}

// ---- Server-Timing ----

const SERVER_TIMING = 'Server-Timing'

/**
 * Adds `Server-Timing: trace;desc=<traceparent>` to a response.
 *
 * Over HTTP/1 at the moment when its head is written: `writeHead` sends what it is given as it is, repeated names and pairs
 * included, where the response has no headers before, and else sets one name after the other.
 *
 * @throws what the response does that is made up, or that nobody may change.
 */
export function announce(response: ServerResponse, spanContext: SpanContext): void {
  if (response.headersSent || !isValid(spanContext)) return
  const timing = `trace;desc=${formatTraceparent(spanContext)}`
  // Of HTTP/1 and not yet written. One of HTTP/2 sets name after name in any case; what is made up may never write a head.
  const isToWrite = (response as ServerResponse & { readonly _header?: unknown })._header === null
  if (isToWrite) announceInHead(response, timing)
  else response.appendHeader(SERVER_TIMING, timing)
}

/** Until the head is written, once: then the response has its own `writeHead` back. */
function announceInHead(response: ServerResponse, timing: string): void {
  const isOwn = Object.hasOwn(response, 'writeHead')
  override(response, 'writeHead', (own) => {
    function writeHead(this: ServerResponse, ...given: unknown[]): ServerResponse {
      const original = isOwn ? own : inheritedBy(response)
      const all = quietly(() => withTiming(this, given, timing)) ?? given
      const written = Reflect.apply(original, this, all) as ServerResponse
      quietly(() => untrace(response))
      return written
    }
    return writeHead as ServerResponse['writeHead']
  })
}

/** An Express app that is mounted in another one changes the prototype of its responses. */
function inheritedBy(response: ServerResponse): ServerResponse['writeHead'] {
  return (Object.getPrototypeOf(response) as ServerResponse).writeHead
}

function quietly<T>(run: () => T): T | undefined {
  try {
    return run()
  } catch (error) {
    reportOnce('prepare:head', 'error', 'a response could not be prepared', error)
    return undefined
  }
}

/**
 * What `writeHead` is to be given: (status), (status, headers), (status, reason) or (status, reason, headers). Where headers were
 * set before, and none of those that are given takes the place of ours, it is set as well, and what is given stays.
 */
function withTiming(response: ServerResponse, given: unknown[], timing: string): unknown[] {
  // It throws.
  if (response.headersSent) return given
  const [, reason, last] = given
  const place = typeof reason === 'string' || (last !== undefined && last !== null) ? 2 : 1
  const isFirst = response.getHeaderNames().length === 0
  const headers = added(given[place] || {}, timing, isFirst)
  if (headers !== undefined) return given.toSpliced(place, 1, headers)
  setTiming(response, timing)
  return given
}

/** A copy of these headers, in the same form; undefined where the response has ours to be set. */
function added(headers: unknown, timing: string, isFirst: boolean): unknown {
  if (Array.isArray(headers)) {
    return Array.isArray(headers[0])
      ? addedToPairs(headers, timing, isFirst)
      : addedToList(headers, timing, isFirst)
  }
  // Node takes the properties of any other object; of what can be gone through, a later version may take more.
  const isKnown = typeof headers === 'object' && headers !== null && !(Symbol.iterator in headers)
  return isKnown ? addedToRecord(headers as Record<string, unknown>, timing, isFirst) : undefined
}

function addedToList(list: readonly unknown[], timing: string, isFirst: boolean): unknown {
  // It throws, and shows what it was given.
  if (list.length % 2 !== 0) return list
  const at = list.findLastIndex((each, index) => index % 2 === 0 && isTiming(each))
  if (at !== -1) return list.with(at + 1, beside(list[at + 1], timing))
  return isFirst ? [...list, SERVER_TIMING, timing] : undefined
}

function addedToPairs(pairs: readonly unknown[], timing: string, isFirst: boolean): unknown {
  const at = pairs.findLastIndex((pair) => Array.isArray(pair) && isTiming(pair[0]))
  if (at === -1) return isFirst ? [...pairs, [SERVER_TIMING, timing]] : undefined
  const [name, value] = pairs[at] as unknown[]
  return pairs.with(at, [name, beside(value, timing)])
}

function addedToRecord(record: Readonly<Record<string, unknown>>, timing: string, isFirst: boolean): unknown {
  const own = Object.keys(record).findLast(isTiming)
  if (own !== undefined) return { ...record, [own]: beside(record[own], timing) }
  return isFirst ? { ...record, [SERVER_TIMING]: timing } : undefined
}

function setTiming(response: ServerResponse, timing: string): void {
  const { getRawHeaderNames } = response as ServerResponse & Pick<ClientRequest, 'getRawHeaderNames'>
  const own = getRawHeaderNames.call(response).find(isTiming)
  // Not appended: Node would write to the list that the app has set.
  if (own === undefined) response.setHeader(SERVER_TIMING, timing)
  else response.setHeader(own, beside(response.getHeader(own), timing) as string[])
}

function isTiming(name: unknown): boolean {
  return typeof name === 'string' && name.toLowerCase() === 'server-timing'
}

/** The app's values and ours, which is there already where the app calls again after a throw. Node refuses undefined. */
function beside(value: unknown, timing: string): unknown {
  if (value === undefined) return undefined
  const values = [value].flat()
  return values.includes(timing) ? value : [...values, timing]
}
