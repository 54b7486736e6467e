import {
  createNoopMeter,
  metrics,
  SpanKind,
  ValueType,
  type Attributes,
  type Context,
  type Histogram,
  type Meter,
  type MeterProvider,
  type Span,
  type UpDownCounter,
} from '@opentelemetry/api'
import type { IncomingMessage } from 'node:http'
import { now, type Ticks } from './clock.ts'
import { methodAttribute, protocolVersion, schemeOf, withOldNames, wantsOldNames } from './http.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import type { InstrumentationScope, ReadableSpan } from './span.ts'

/** What the API hands out while no MeterProvider is registered. */
const NOBODY = createNoopMeter()

const MS_PER_SECOND = 1000
const NS_PER_SECOND = 1e9

/**
 * A function that answers what `make` made of the app's meter, or undefined while the app has no MeterProvider. The API
 * has no proxy for meters, so the instruments are made when they are first needed, and anew only when another provider is
 * registered; until then a call costs one look at what is registered.
 */
export function instrumentsFor<T>(
  scope: InstrumentationScope,
  make: (meter: Meter) => T,
): () => T | undefined {
  let known: MeterProvider | undefined
  let instruments: T | undefined
  return () => {
    const provider = metrics.getMeterProvider()
    if (provider === known) return instruments
    // Before the rest: one that throws is asked once.
    known = provider
    instruments = undefined
    try {
      const meter = provider.getMeter(scope.name, scope.version)
      if (meter !== NOBODY) instruments = make(meter)
    } catch (error) {
      reportOnce(`meter:${scope.name}`, 'error', 'the MeterProvider threw, so there are no metrics', error)
    }
    return instruments
  }
}

/** The buckets that the conventions give to durations of HTTP requests, as upper bounds in seconds. */
const HTTP_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]

/** A histogram of durations in seconds, with these buckets if the app's views say nothing else. */
export function durationHistogram(
  meter: Meter,
  name: string,
  description: string,
  buckets: readonly number[] = HTTP_BUCKETS,
): Histogram {
  return meter.createHistogram(name, {
    description,
    unit: 's',
    valueType: ValueType.DOUBLE,
    advice: { explicitBucketBoundaries: [...buckets] },
  })
}

/** How long the span of a call or a request lasted, in seconds, where it has ended and can tell; else since `startTicks`. */
export function secondsOf(span: Span | undefined, startTicks: Ticks): number {
  const duration = (span as Partial<ReadableSpan> | undefined)?.duration
  return Array.isArray(duration)
    ? duration[0] + duration[1] / NS_PER_SECOND
    : (now() - startTicks) / MS_PER_SECOND
}

// ---- Requests that are received ----

interface ServerInstruments {
  readonly duration: Histogram
  /** Where the app wants the old names too. */
  readonly oldDuration: Histogram | undefined
  /** Where the app asked for it. */
  readonly active: UpDownCounter | undefined
}

/** A function that begins to measure a request, or answers undefined while the app has no MeterProvider. */
export function requestMeasurements(
  scope: InstrumentationScope,
  trustProxy: boolean,
  countsActive: boolean,
): (request: IncomingMessage) => RequestMeasurement | undefined {
  const instrumentsOf = instrumentsFor<ServerInstruments>(scope, (meter) => ({
    duration: durationHistogram(
      meter,
      semconv.HTTP_SERVER_REQUEST_DURATION,
      'Duration of HTTP server requests.',
    ),
    oldDuration: wantsOldNames('http')
      ? meter.createHistogram(semconv.OLD_HTTP_SERVER_DURATION, {
          description: 'Measures the duration of inbound HTTP requests.',
          unit: 'ms',
          valueType: ValueType.DOUBLE,
        })
      : undefined,
    active: countsActive
      ? meter.createUpDownCounter(semconv.HTTP_SERVER_ACTIVE_REQUESTS, {
          description: 'Number of active HTTP server requests.',
          unit: '{request}',
          valueType: ValueType.INT,
        })
      : undefined,
  }))
  return (request) => {
    const instruments = instrumentsOf()
    return instruments && new RequestMeasurement(instruments, request, trustProxy)
  }
}

/** What is known of a request when it is over. Each is as its span has it. */
export interface RequestOutcome {
  readonly status: number | undefined
  readonly errorType: string | undefined
  readonly route: string | undefined
}

/** One request as its metrics see it, from its headers to its close. Nothing here throws. */
export class RequestMeasurement {
  readonly #instruments: ServerInstruments
  readonly #request: IncomingMessage
  /** What a request is counted by while it is active: the same when it comes and when it goes. */
  readonly #arrival: Attributes
  readonly #startTicks = now()

  constructor(instruments: ServerInstruments, request: IncomingMessage, trustProxy: boolean) {
    this.#instruments = instruments
    this.#request = request
    this.#arrival = {
      [semconv.HTTP_REQUEST_METHOD]: methodAttribute(request.method ?? ''),
      [semconv.URL_SCHEME]: schemeOf(request, trustProxy),
    }
    this.#count(1)
  }

  /** Records the request, once; `span` is given where it is this request's and has just ended, `within` is its context. */
  end({ status, errorType, route }: RequestOutcome, span: Span | undefined, within: Context): void {
    const seconds = secondsOf(span, this.#startTicks)
    const attributes: Attributes = {
      ...this.#arrival,
      [semconv.NETWORK_PROTOCOL_VERSION]: protocolVersion(this.#request),
    }
    if (status !== undefined) attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = status
    if (errorType !== undefined) attributes[semconv.ERROR_TYPE] = errorType
    if (route !== undefined) attributes[semconv.HTTP_ROUTE] = route
    try {
      this.#instruments.duration.record(seconds, attributes, within)
      this.#instruments.oldDuration?.record(seconds * MS_PER_SECOND, oldAttributes(attributes), within)
    } catch (error) {
      sayUnmeasured(error)
    }
    this.#count(-1)
  }

  #count(change: 1 | -1): void {
    try {
      this.#instruments.active?.add(change, this.#arrival)
    } catch (error) {
      sayUnmeasured(error)
    }
  }
}

// Of old, hosts and ports were among them; the client chooses these, and each makes a series of its own.
function oldAttributes(attributes: Attributes): Attributes {
  const all = withOldNames(attributes, SpanKind.SERVER)
  const isKept = (name: string) => name === semconv.HTTP_ROUTE || !Object.hasOwn(attributes, name)
  return Object.fromEntries(Object.entries(all).filter(([name]) => isKept(name)))
}

function sayUnmeasured(error: unknown): void {
  reportOnce('metrics', 'error', 'a request could not be measured', error)
}
