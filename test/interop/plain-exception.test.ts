import { start } from '@throughline/core'
import { trace, type Exception } from '@opentelemetry/api'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { expect, onTestFinished, test } from 'vitest'

function recorded(exception: Exception) {
  const exporter = new InMemorySpanExporter()
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })
  onTestFinished(() => tracing.shutdown())
  const span = trace.getTracer('of a library').startSpan('work')
  span.recordException(exception)
  span.end()
  return exporter.getFinishedSpans()[0]?.events[0]?.attributes
}

test('an exception that has a message and no name, as Prisma records them, has no type either', () => {
  expect(recorded({ message: 'slow' })).toEqual({ 'exception.message': 'slow' })
})

test.each(['Error', 'TypeError', 'AI_APICallError'])(
  'an exception that is a copy of an error, as the AI SDK records them, has its name as its type: %s',
  (name) => {
    const stack = `${name}: no\n    at work`
    expect(recorded({ name, message: 'no', stack })).toEqual({
      'exception.type': name,
      'exception.message': 'no',
      'exception.stacktrace': stack,
    })
  },
)

test('so has one that is of no class at all', () => {
  const bare = Object.assign(Object.create(null) as object, { name: 'Error', message: 'no' })
  expect(recorded(bare)).toEqual({ 'exception.type': 'Error', 'exception.message': 'no' })
})
