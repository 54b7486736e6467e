// An app whose official SDK is removed, and registered anew, as by tests and by servers that reload.
import { createRequire } from 'node:module'
import { context, propagation, trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'

const { tell } = createRequire(import.meta.url)('./app.cjs')

const lives = []
async function live(name) {
  const exporter = new InMemorySpanExporter()
  const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  provider.register()
  span(name, () => {})
  lives.push(exporter.getFinishedSpans().map((each) => each.name))
  for (const api of [trace, context, propagation]) api.disable()
  await provider.shutdown()
}

await live('first')
let isTraced
span('between', (made) => (isTraced = made.isRecording()))
await live('second')
tell({ lives, isTraced })
