// An app whose route asks PostgreSQL and another service: with the official instrumentation, with ours, or with both, on
// our engine or on the official SDK.
const { asked } = require('../apps/app.cjs')
const { BatchSpanProcessor, InMemorySpanExporter } = require('@opentelemetry/sdk-trace')

const { engine, order, official = [] } = asked
const exporter = new InMemorySpanExporter()
// Nothing leaves it by itself while this runs: only a flush does it.
const spanProcessors = [new BatchSpanProcessor({ exporter, scheduledDelayMillis: 600_000 })]

const packages = {
  http: ['@opentelemetry/instrumentation-http', 'HttpInstrumentation'],
  express: ['@opentelemetry/instrumentation-express', 'ExpressInstrumentation'],
  pg: ['@opentelemetry/instrumentation-pg', 'PgInstrumentation'],
  undici: ['@opentelemetry/instrumentation-undici', 'UndiciInstrumentation'],
}
const instrumentations = official.map((library) => {
  const [name, type] = packages[library]
  return new (require(name)[type])()
})

function register() {
  const { NodeSDK } = require('@opentelemetry/sdk-node')
  const sdk = new NodeSDK({ spanProcessors, instrumentations, autoDetectResources: false })
  sdk.start()
  return sdk
}

let sdk = engine === 'sdk' && order !== 'after' ? register() : undefined
if (engine === 'ours')
  require('@opentelemetry/instrumentation').registerInstrumentations({ instrumentations })
const { flush, start } = require('@throughline/core')
const adapters = {
  express: require('@throughline/express'),
  pg: require('@throughline/pg'),
  undici: require('@throughline/undici'),
}
if (engine === 'sdk') sdk ??= register()
const tracing =
  engine === 'ours' ? start({ spanProcessors, signals: false }) : { flush, shutdown: () => sdk.shutdown() }
if (asked.start) start({ endpoint: asked.start })

require('./serve.cjs').serve(require('express'), require('pg').Pool, adapters, exporter, tracing)
