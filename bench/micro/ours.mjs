import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { apiOperations } from './api.mjs'
import { BATCH_SPANS } from './sample.mjs'

/** @type {import('./worker.mjs').Load} */
export async function load({ folder, version, purpose, kept }) {
  const require = createRequire(join(folder, 'package.json'))
  const api = require('@opentelemetry/api')
  const entry = require.resolve('@throughline/core')
  const { flush, start } = await import(pathToFileURL(entry).href)
  // The encoder has no public name: what is exported in its place would be timed with the network.
  const part = (name) => import(pathToFileURL(join(dirname(entry), 'otlp', name)).href)
  const { encodeProtobuf } = await part('encode.js')
  const { giveBack } = await part('memory.js')
  // As our exporter does with each body: who keeps the memory pays for new memory, page by page.
  const lengthOf = (spans) => {
    const body = encodeProtobuf(spans)
    giveBack(body)
    return body.length
  }

  let encoded = 0
  let bytes = 0
  const exporter = {
    export(spans, done) {
      encoded += spans.length
      bytes += lengthOf(spans)
      done({ code: 0 })
    },
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
  if (purpose === 'burst') start()
  else start(purpose === 'heap' ? { spanProcessors: [keeper] } : { exporter })
  const finished = []
  const { operations, startSpan } = apiOperations(api, {
    encodeBatch() {
      bytes += lengthOf(finished)
    },
  })
  // Spans to encode, as exporters get them.
  while (finished.length < BATCH_SPANS) {
    const span = startSpan(finished.length)
    span.end()
    finished.push(span)
  }

  return {
    version,
    async exported() {
      await flush()
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
      await flush()
    },
  }
}
