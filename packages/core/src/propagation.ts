import {
  propagation,
  trace,
  type Context,
  type TextMapGetter,
  type TextMapPropagator,
  type TextMapSetter,
} from '@opentelemetry/api'
import { formatBaggage, parseBaggage } from './baggage.ts'
import { isSuppressed, withSpan } from './context.ts'
import { formatTraceparent, parseTraceContext, serializeTracestate } from './trace-context.ts'

/** W3C Trace Context Level 2: `traceparent` and `tracestate`. A header that is not valid leaves the context as it was. */
export const traceContextPropagator: TextMapPropagator = {
  inject(from, carrier, setter) {
    const spanContext = trace.getSpanContext(from)
    if (spanContext === undefined || !trace.isSpanContextValid(spanContext) || isSuppressed(from)) return
    setter.set(carrier, 'traceparent', formatTraceparent(spanContext))
    if (spanContext.traceState === undefined) return
    const tracestate = serializeTracestate(spanContext.traceState)
    if (tracestate !== '') setter.set(carrier, 'tracestate', tracestate)
  },
  extract(into, carrier, getter) {
    const traceparent = getter.get(carrier, 'traceparent')
    if (traceparent === undefined) return into
    const spanContext = parseTraceContext(traceparent, getter.get(carrier, 'tracestate'))
    return spanContext === undefined ? into : withSpan(into, trace.wrapSpanContext(spanContext))
  },
  fields: () => ['traceparent', 'tracestate'],
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

/** All of these in turn; each sees the context that the one before it made. */
export function compositePropagator(propagators: readonly TextMapPropagator[]): TextMapPropagator {
  return {
    inject<C>(from: Context, carrier: C, setter: TextMapSetter<C>) {
      for (const propagator of propagators) propagator.inject(from, carrier, setter)
    },
    extract<C>(into: Context, carrier: C, getter: TextMapGetter<C>) {
      let extracted = into
      for (const propagator of propagators) extracted = propagator.extract(extracted, carrier, getter)
      return extracted
    },
    fields: () => propagators.flatMap((propagator) => propagator.fields()),
  }
}
