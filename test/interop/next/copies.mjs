// Two copies of our core in one process: the app's, and one that a library brings along. It sees the same API.
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { trace } from '@opentelemetry/api'
import { InMemorySpanExporter } from '@opentelemetry/sdk-trace'
import * as app from '@throughline/core'

const { plain, tell } = createRequire(import.meta.url)('../apps/app.cjs')
const modules = fileURLToPath(new URL('node_modules/', import.meta.url))
const elsewhere = mkdtempSync(join(tmpdir(), 'throughline-copy-'))
mkdirSync(join(elsewhere, 'node_modules/@opentelemetry'), { recursive: true })
cpSync(join(modules, '@throughline/core'), join(elsewhere, 'node_modules/@throughline/core'), {
  recursive: true,
})
symlinkSync(
  join(modules, '@opentelemetry/api'),
  join(elsewhere, 'node_modules/@opentelemetry/api'),
  'junction',
)
const library = createRequire(join(elsewhere, 'library.js'))('@throughline/core')

const exporter = new InMemorySpanExporter()
const tracing = library.start({ exporter, signals: false })
app.start()
await app.span('of the app', () =>
  library.span('of the library', async () =>
    trace.getTracer('app').startActiveSpan('by the API', (made) => made.end()),
  ),
)
const unflushed = exporter.getFinishedSpans().length
await app.flush()
const spans = exporter.getFinishedSpans().map(plain)
await tracing.shutdown()
rmSync(elsewhere, { recursive: true })
tell({ spans, unflushed, areTwo: app.span !== library.span })
