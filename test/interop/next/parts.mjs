// Official parts, given to our start().
import { createRequire } from 'node:module'
import { context, propagation, trace } from '@opentelemetry/api'
import { OTLPTraceExporter as JsonExporter } from '@opentelemetry/exporter-trace-otlp-http'
import { OTLPTraceExporter as ProtobufExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { B3Propagator } from '@opentelemetry/propagator-b3'
import { resourceFromAttributes } from '@opentelemetry/resources'
import {
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  RandomIdGenerator,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace'
import { flush, span, start } from '@throughline/core'

const { asked, tell } = createRequire(import.meta.url)('../apps/app.cjs')
const url = `${asked.collector}/v1/traces`
const pipelines = {
  ours: () => ({ endpoint: asked.collector }),
  proto: () => ({ exporter: new ProtobufExporter({ url }) }),
  json: () => ({ exporter: new JsonExporter({ url }) }),
  batch: () => ({ spanProcessors: [new BatchSpanProcessor({ exporter: new ProtobufExporter({ url }) })] }),
}
const region = Promise.resolve('eu-west-1')
const resource = resourceFromAttributes({ 'service.name': 'orders', 'cloud.region': region })
const tracing = start({
  ...pipelines[asked.pipeline](),
  resource,
  sampler: new ParentBasedSampler({
    root: new TraceIdRatioBasedSampler(1),
    remoteParentSampled: new AlwaysOnSampler(),
  }),
  propagator: new B3Propagator(),
  idGenerator: new RandomIdGenerator(),
  signals: false,
})
const headers = {}
const traceId = span('outer', { 'order.id': 7 }, (outer) => {
  // An AnyValue, which this version of the API allows.
  outer.setAttribute('order', { id: 7, lines: [{ sku: 'A-7' }, null, ['x', 1, true]] })
  span('inner', (inner) => {
    inner.addEvent('paid')
    propagation.inject(context.active(), headers)
  })
  return outer.spanContext().traceId
})
// What this version of the API can do beside `with`.
const job = trace.getTracer('app').startSpan('job')
const attached = context.attach(trace.setSpan(context.active(), job))
span('attached', () => {})
attached.dispose()
span('apart', () => {})
job.end()
await flush()
await tracing.shutdown()
tell({ traceId, ...headers, region: resource.attributes['cloud.region'] })
