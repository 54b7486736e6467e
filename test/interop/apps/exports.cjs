// An app whose HTTP client the official instrumentation traces: what exports the spans is a client of that kind too.
const { once } = require('node:events')
const { asked, headers, tell, wire } = require('./app.cjs')
const { registerInstrumentations } = require('@opentelemetry/instrumentation')
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http')
const { UndiciInstrumentation } = require('@opentelemetry/instrumentation-undici')
registerInstrumentations({ instrumentations: [new HttpInstrumentation(), new UndiciInstrumentation()] })
const http = require('node:http')

const { flush, start } = require('@throughline/core')
const { BatchSpanProcessor, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')
const url = `${asked.collector}/v1/traces`
const exporterOf = (name) =>
  new (require(`@opentelemetry/exporter-trace-otlp-${name}`).OTLPTraceExporter)({ url })

const pipelines = {
  ours: () => ({ endpoint: asked.collector }),
  'ours as JSON': () => ({ endpoint: asked.collector, protocol: 'http/json' }),
  'the official exporter behind our batch': () => ({ exporter: exporterOf('proto') }),
  'the official JSON exporter behind our batch': () => ({ exporter: exporterOf('http') }),
  'the official batch': () => ({ spanProcessors: [new BatchSpanProcessor(exporterOf('proto'))] }),
  'the official simple processor': () => ({ spanProcessors: [new SimpleSpanProcessor(exporterOf('http'))] }),
}

async function main() {
  const tracing = start({ ...pipelines[asked.pipeline](), serviceName: 'orders', signals: false })
  const other = await wire()
  const sending = http.get(`${other.url}/prices`)
  const [response] = await once(sending, 'response')
  response.resume()
  await once(response, 'end')
  // What the first export had left behind would leave with the second.
  await flush()
  await tracing.flush()
  await tracing.shutdown()
  other.close()
  tell({ traceparents: other.heads.map((head) => headers(head, 'traceparent')) })
}

void main()
