import {
  createNoopMeter,
  metrics,
  SpanKind,
  ValueType,
  type Attributes,
  type Context,
  type Meter,
  type MeterProvider,
  type Span,
  type UpDownCounter,
} from '@opentelemetry/api'
import type { IncomingMessage } from 'node:http'
import { MS_PER_SECOND, now, NS_PER_SECOND, type Ticks } from './clock.ts'
import { methodAttribute, protocolVersion, schemeOf, withOldNames, wantsOldNames, type Area } from './http.ts'
import { registered, reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import type { InstrumentationScope, ReadableSpan } from './span.ts'

/** What the API hands out while no MeterProvider is registered. */
const NOBODY = createNoopMeter()

/**
 * Whether the app has a MeterProvider. Nearly no app has one; checking first spares the closure from `instrumentsFor`: 0.1 µs
 * per request and per call.
 */
export function isMetered(): boolean {
  return registered()?.metrics !== undefined
}

/**
 * A function that returns what `make` made of the app's meter, or undefined while the app has no MeterProvider. The API has no
 * proxy for meters, so the instruments are made when they are first needed, and anew only when another provider is registered;
 * until then a call costs one look at what is registered.
 */
export function instrumentsFor<T>(
  scope: InstrumentationScope,
  make: (meter: Meter) => T,
): () => T | undefined {
  let known: MeterProvider | undefined
  let knownFor: MeterProvider | undefined
  let instruments: T | undefined
  return () => {
    const current = registered()?.metrics
    if (known !== undefined && current === knownFor) return instruments
    knownFor = current
    const provider = metrics.getMeterProvider()
    if (provider === known) return instruments
    // First: a provider that throws is asked only once.
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

/** A histogram of durations as the conventions define it. */
export interface DurationMetric {
  readonly name: string
  readonly description: string
  /** Upper bounds in seconds, if the app's views say nothing else; those of HTTP where they are left out. */
  readonly buckets?: readonly number[]
  /** Its form before the conventions were stable, in milliseconds, if both are wanted. */
  readonly old?: OldDurationMetric
}

interface OldDurationMetric {
  readonly area: Area
  readonly name: string
  readonly description: string
  /** Its attributes, made from those of the new one. */
  attributes(attributes: Attributes): Attributes
}

/** A duration metric of the app's meter. `record` never throws. */
interface Durations {
  record(seconds: number, attributes: Attributes, within: Context): void
}

export function durationsOf(meter: Meter, metric: DurationMetric): Durations {
  const { name, description, buckets = HTTP_BUCKETS, old } = metric
  const histogram = meter.createHistogram(name, {
    description,
    unit: 's',
    valueType: ValueType.DOUBLE,
    advice: { explicitBucketBoundaries: [...buckets] },
  })
  const oldHistogram =
    old !== undefined && wantsOldNames(old.area)
      ? meter.createHistogram(old.name, {
          description: old.description,
          unit: 'ms',
          valueType: ValueType.DOUBLE,
        })
      : undefined
  return {
    record(seconds, attributes, within) {
      try {
        histogram.record(seconds, attributes, within)
        if (oldHistogram !== undefined && old !== undefined)
          oldHistogram.record(seconds * MS_PER_SECOND, old.attributes(attributes), within)
      } catch (error) {
        sayUnmeasured(error)
      }
    },
  }
}

/** The span's duration in seconds, if it has ended and has one; else the time between the ticks. */
function secondsOf(span: Span | undefined, startTicks: Ticks, endTicks: Ticks): number {
  const duration = (span as Partial<ReadableSpan> | undefined)?.duration
  return Array.isArray(duration)
    ? duration[0] + duration[1] / NS_PER_SECOND
    : (endTicks - startTicks) / MS_PER_SECOND
}

function sayUnmeasured(error: unknown): void {
  reportOnce('metrics', 'error', 'a request or a call could not be measured', error)
}

// ---- Calls that are sent ----

/** One call as its metric sees it, from its begin to its end. */
export class CallMeasurement {
  readonly #durations: Durations
  readonly #startTicks = now()

  constructor(durations: Durations) {
    this.#durations = durations
  }

  /** Records the call, whose span, where it has one, has just ended. */
  end(attributes: Attributes, span: Span, within: Context, endTicks: Ticks = now()): void {
    this.#durations.record(secondsOf(span, this.#startTicks, endTicks), attributes, within)
  }
}

// ---- Requests that are received ----

const SERVER_DURATION: DurationMetric = {
  name: semconv.HTTP_SERVER_REQUEST_DURATION,
  description: 'Duration of HTTP server requests.',
  old: {
    area: 'http',
    name: semconv.OLD_HTTP_SERVER_DURATION,
    description: 'Measures the duration of inbound HTTP requests.',
    attributes: oldServerAttributes,
  },
}

interface ServerInstruments {
  readonly durations: Durations
  /** Where the app asked for it. */
  readonly active: UpDownCounter | undefined
}

/** A function that begins to measure a request, or returns undefined while the app has no MeterProvider. */
export function requestMeasurements(
  scope: InstrumentationScope,
  trustProxy: boolean,
  countsActive: boolean,
): (request: IncomingMessage) => RequestMeasurement | undefined {
  const instrumentsOf = instrumentsFor<ServerInstruments>(scope, (meter) => ({
    durations: durationsOf(meter, SERVER_DURATION),
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

/** What is known of a request when it is over, with the values of its span. */
interface RequestOutcome {
  readonly status: number | undefined
  readonly errorType: string | undefined
  readonly route: string | undefined
}

/** One request as its metrics see it, from its headers to its close. Nothing here throws. */
export class RequestMeasurement {
  readonly #instruments: ServerInstruments
  readonly #request: IncomingMessage
  /** The attributes that an active request is counted by, the same at its start and end. */
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

  /** Records the request, once; `span` is its span if that has just ended, `within` its context. */
  end(
    { status, errorType, route }: RequestOutcome,
    span: Span | undefined,
    within: Context,
    endTicks: Ticks = now(),
  ): void {
    const seconds = secondsOf(span, this.#startTicks, endTicks)
    const attributes: Attributes = {
      ...this.#arrival,
      [semconv.NETWORK_PROTOCOL_VERSION]: protocolVersion(this.#request),
    }
    if (status !== undefined) attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = status
    if (errorType !== undefined) attributes[semconv.ERROR_TYPE] = errorType
    if (route !== undefined) attributes[semconv.HTTP_ROUTE] = route
    this.#instruments.durations.record(seconds, attributes, within)
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

// Hosts and ports, which the old metric had, are left out: clients choose them, and each makes a separate time series.
function oldServerAttributes(attributes: Attributes): Attributes {
  const all = withOldNames(attributes, SpanKind.SERVER)
  const isKept = (name: string) => name === semconv.HTTP_ROUTE || !Object.hasOwn(attributes, name)
  return Object.fromEntries(Object.entries(all).filter(([name]) => isKept(name)))
}
