// An official SDK that registers after Throughline has started by itself.
import { createRequire } from 'node:module'
import { flush, span } from '@throughline/core'
import { trace } from '@opentelemetry/api'
import { NodeSDK } from '@opentelemetry/sdk-node'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'

const { tell } = createRequire(import.meta.url)('./app.cjs')
const exporter = new InMemorySpanExporter()

span('first', () => {})
const sdk = new NodeSDK({ autoDetectResources: false, spanProcessors: [new SimpleSpanProcessor(exporter)] })
sdk.start()
// Whoever tries it again, by whichever door, is not told again.
new NodeTracerProvider().register()
span('second', () => {
  trace.getTracer('app').startActiveSpan('inside', (inner) => inner.end())
})
await flush()
await sdk.shutdown()
span('third', () => {})
await flush()
tell({ theirs: exporter.getFinishedSpans().map(({ name }) => name) })
