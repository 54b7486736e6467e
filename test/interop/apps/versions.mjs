// A library that brings our core along with a version of the API which is not the app's; the app comes first.
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { diag, DiagLogLevel, trace } from '@opentelemetry/api'
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node'

const { asked, tell } = createRequire(import.meta.url)('./app.cjs')
const logged = []
const exporter = new InMemorySpanExporter()
if (asked.first === 'logger') {
  const note = (line) => logged.push(line)
  diag.setLogger({ error: note, warn: note, info: note, debug: note, verbose: note }, DiagLogLevel.WARN)
}
if (asked.first === 'sdk') {
  new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).register()
}

const { flush, span, start } = createRequire(join(asked.folder, 'app.js'))('@throughline/core')
const listeners = () => ['SIGTERM', 'beforeExit'].map((event) => process.listenerCount(event))
const results = [span('one', () => 1), await span('two', async () => 2)]
if (asked.start) results.push(typeof start({ spanProcessors: [] }).shutdown)
await flush()
trace.getTracer('app').startSpan('of the app').end()
tell({ results, logged, listeners: listeners(), theirs: exporter.getFinishedSpans().map(({ name }) => name) })
