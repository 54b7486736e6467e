// One request by node:http that another tracer and ours see, in whichever order they came: the official instrumentation, or
// one that we do not know.
const { once } = require('node:events')
const { asked, headers, plain, tell, wire } = require('./app.cjs')
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')
const { span, start } = require('@throughline/core')
const { traceHttp } = require('@throughline/http')

async function main() {
  const exporter = new InMemorySpanExporter()
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  const other = await wire()

  const official = []
  const THEIRS = `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`
  function begin() {
    if (asked.tracer === 'official') {
      official.push(new HttpInstrumentation())
      return
    }
    const http = require('node:http')
    for (const name of ['request', 'get']) {
      const original = http[name]
      http[name] = (url, options, ...rest) =>
        original(url, { ...options, headers: { ...options?.headers, traceparent: THEIRS } }, ...rest)
    }
  }
  if (asked.first === 'theirs') {
    begin()
    void require('node:http')
  }
  const stop = traceHttp()
  if (asked.first === 'ours') begin()

  const ask = async () => {
    const request = require('node:http').get(`${other.url}/prices`)
    const [response] = await once(request, 'response')
    let text = ''
    for await (const chunk of response) text += chunk
    return text
  }
  const texts = [await span('caller', ask), await span('second caller', ask)]
  stop()
  // What they have put over ours, or ours over theirs, still works.
  texts.push(await ask())
  other.close()
  for (const instrumentation of official) instrumentation.disable()
  const spans = exporter.getFinishedSpans().map(plain)
  await tracing.shutdown()
  tell({ texts, spans, traceparents: other.heads.map((head) => headers(head, 'traceparent')) })
}

void main()
