import { start } from '@throughline/core'
import { trace } from '@opentelemetry/api'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { expect, onTestFinished, test } from 'vitest'

test('an exception that has a message and no name, as Prisma records them, has no type either', () => {
  const exporter = new InMemorySpanExporter()
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  onTestFinished(() => tracing.shutdown())
  const span = trace.getTracer('prisma').startSpan('query')
  span.recordException({ message: 'slow' })
  span.end()
  expect(exporter.getFinishedSpans()[0]?.events[0]?.attributes).toEqual({ 'exception.message': 'slow' })
})
