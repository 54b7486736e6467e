// One request by undici that another tracer and ours see, in whichever order they came: the official instrumentation, or
// one that we do not know.
const { subscribe } = require('node:diagnostics_channel')
const { asked, headers, plain, tell, wire } = require('./app.cjs')
const { UndiciInstrumentation } = require('@opentelemetry/instrumentation-undici')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')
const { Agent, request } = require('undici')
const { span, start } = require('@throughline/core')
const { traceUndici } = require('@throughline/undici')

async function main() {
  const exporter = new InMemorySpanExporter()
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  const other = await wire()
  const agent = new Agent()

  const official = []
  const THEIRS = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  function begin() {
    if (asked.tracer === 'official') return official.push(new UndiciInstrumentation())
    return subscribe('undici:request:create', (message) => message.request.addHeader('traceparent', THEIRS))
  }
  if (asked.first === 'theirs') begin()
  if (asked.form === 'dispatcher') traceUndici(agent)
  else traceUndici()
  if (asked.first === 'ours') begin()

  const text = await span('caller', async () => {
    if (asked.form !== 'dispatcher') return (await fetch(`${other.url}/prices`)).text()
    return (await request(`${other.url}/prices`, { dispatcher: agent })).body.text()
  })
  other.close()
  await agent.close()
  for (const instrumentation of official) instrumentation.disable()
  const spans = exporter.getFinishedSpans().map(plain)
  await tracing.shutdown()
  tell({ text, spans, traceparents: other.heads.map((head) => headers(head, 'traceparent')) })
}

void main()
