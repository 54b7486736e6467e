import { createRequire } from 'node:module'
import { join } from 'node:path'
import { versionOf } from '../version.mjs'
import { apiOperations } from './api.mjs'
import { BATCH_SPANS } from './sample.mjs'

/** @type {import('./worker.mjs').Load} */
export async function load({ install, purpose, kept }) {
  const require = createRequire(join(install, 'package.json'))
  const api = require('@opentelemetry/api')
  const { AsyncLocalStorageContextManager } = require('@opentelemetry/context-async-hooks')
  const { W3CTraceContextPropagator } = require('@opentelemetry/core')
  const { ProtobufTraceSerializer } = require('@opentelemetry/otlp-transformer')
  const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-proto')
  const { resourceFromAttributes } = require('@opentelemetry/resources')
  const isNewest = install.endsWith('newest')
  const sdk = isNewest ? '@opentelemetry/sdk-trace' : '@opentelemetry/sdk-trace-base'
  const { BasicTracerProvider, BatchSpanProcessor, TracerProvider = BasicTracerProvider } = require(sdk)
  // Version 3 has other names for the provider and the package, and takes an object here.
  const batched = (exporter) => new BatchSpanProcessor(isNewest ? { exporter } : exporter)
  const version = versionOf(install, sdk)

  let encoded = 0
  let bytes = 0
  const exporter = {
    export(spans, done) {
      encoded += spans.length
      bytes += ProtobufTraceSerializer.serializeRequest(spans).length
      done({ code: 0 })
    },
    forceFlush: async () => {},
    shutdown: async () => {},
  }
  const keeper = {
    onStart() {},
    onEnd(span) {
      kept.spans[kept.count++] = span
    },
    forceFlush: async () => {},
    shutdown: async () => {},
  }
  const processors = {
    heap: () => keeper,
    burst: () => batched(new OTLPTraceExporter()),
    time: () => batched(exporter),
  }
  const provider = new TracerProvider({
    resource: resourceFromAttributes({ 'service.name': 'bench' }),
    spanProcessors: [processors[purpose]()],
  })
  api.trace.setGlobalTracerProvider(provider)
  api.context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
  api.propagation.setGlobalPropagator(new W3CTraceContextPropagator())

  const finished = []
  const { operations, startSpan } = apiOperations(api, {
    encodeBatch() {
      bytes += ProtobufTraceSerializer.serializeRequest(finished).length
    },
  })
  while (finished.length < BATCH_SPANS) {
    const span = startSpan(finished.length)
    span.end()
    finished.push(span)
  }

  return {
    version,
    async exported() {
      await provider.forceFlush()
      return { spans: encoded, bytes }
    },
    operations,
    keep(into) {
      kept.spans = into
      kept.count = 0
      for (let index = 0; index < into.length; index++) startSpan(index).end()
    },
    async burst(count) {
      for (let index = 0; index < count; index++) startSpan(index).end()
      await provider.forceFlush()
    },
  }
}
