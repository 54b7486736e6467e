// Two minor versions of the API in one process: the app's with an official SDK in charge, and that of a library which
// brings our core along. The older line is the one that this repository's root has installed.
const { createRequire } = require('node:module')
const { join } = require('node:path')
const { asked, plain, tell } = require('../apps/app.cjs')

const next = createRequire(__filename)
const old = createRequire(join(__dirname, '../../../package.json'))
const [app, library] = asked.newer === 'app' ? [next, old] : [old, next]

const [exporter, provider] = started()
const { context, trace } = app('@opentelemetry/api')
const { AsyncLocalStorageContextManager } = app('@opentelemetry/context-async-hooks')
context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
trace.setGlobalTracerProvider(provider)

const { flush, span } = library('@throughline/core')

async function main() {
  const results = await trace.getTracer('app').startActiveSpan('of the app', async (made) => {
    const values = [span('of the library', () => 1), await (async () => 2)()]
    made.end()
    return values
  })
  await flush()
  tell({ results, theirs: exporter.getFinishedSpans().map(plain) })
}

/** An official provider of the app's line, and what keeps its spans. */
function started() {
  if (asked.newer === 'app') {
    const { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } = app('@opentelemetry/sdk-trace')
    const exporter = new InMemorySpanExporter()
    return [exporter, new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] })]
  }
  const { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } = app(
    '@opentelemetry/sdk-trace-base',
  )
  const exporter = new InMemorySpanExporter()
  return [exporter, new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })]
}

void main()
