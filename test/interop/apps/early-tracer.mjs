// A library with its own copy of the API, which took its tracer before anybody was in charge, or registers too late.
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { span, start } from '@throughline/core'

const { asked, tell } = createRequire(import.meta.url)('./app.cjs')
const { trace } = createRequire(join(asked.folder, 'app.js'))('@opentelemetry/api')
const tracer = trace.getTracer('library')

/** One life of tracing, and what ended in it. */
async function live(startIt = start, spanOf = span) {
  const names = []
  const exporter = new InMemorySpanExporter()
  const tracing = startIt({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  spanOf('of the app', () => tracer.startActiveSpan('of the library', (made) => made.end()))
  names.push(...exporter.getFinishedSpans().map(({ name }) => name))
  const late = asked.late ? [register(), register()] : []
  await tracing.shutdown()
  return { names, late }
}

function register() {
  return trace.setGlobalTracerProvider(new BasicTracerProvider())
}

const lives = []
const first = await live()
lives.push(first.names)
if (asked.late) {
  tell({ registered: [...first.late, register()] })
} else {
  // Nobody is in charge: there is nothing to record.
  lives.push(tracer.startSpan('between').isRecording() ? ['between'] : [])
  lives.push((await live()).names)
  // What we told that copy is gone with us: a core that sees it finds nobody in charge.
  const core = createRequire(join(asked.folder, 'app.js'))('@throughline/core')
  lives.push((await live(core.start, core.span)).names)
  tell({ lives })
}
