import { start, type ReadableSpan, type SpanProcessor, type StartOptions } from '@throughline/core'
import { EventEmitter, once } from 'node:events'
import { afterEach, expect } from 'vitest'

export interface Recording {
  /** Every span that has ended so far, in order of their ends. */
  readonly spans: ReadableSpan[]
  /** Resolves with the first span for which this is true, now or later. */
  span(matches: (span: ReadableSpan) => boolean): Promise<ReadableSpan>
  /** Resolves with all spans as soon as there are this many; fails when there are more. */
  all(count: number): Promise<ReadableSpan[]>
  stop(): Promise<void>
}

/** Starts our engine with a processor that keeps the spans; stopped after the test. */
export function record(options: Omit<StartOptions, 'spanProcessors'> = {}): Recording {
  const spans: ReadableSpan[] = []
  const changed = new EventEmitter()
  const keep: SpanProcessor = {
    onStart() {},
    onEnd(span) {
      spans.push(span)
      changed.emit('span')
    },
    forceFlush: async () => {},
    shutdown: async () => {},
  }
  const tracing = start({ signals: false, ...options, spanProcessors: [keep] })
  running.push(tracing)

  return {
    spans,
    async span(matches) {
      for (;;) {
        const found = spans.find(matches)
        if (found !== undefined) return found
        await once(changed, 'span')
      }
    },
    async all(count) {
      while (spans.length < count) await once(changed, 'span')
      expect(spans.map((span) => span.name)).toHaveLength(count)
      return spans
    },
    stop: () => tracing.shutdown(),
  }
}

/** The messages of the exceptions that a span has recorded. */
export function exceptions(span: ReadableSpan | undefined): unknown[] {
  return (span?.events ?? [])
    .filter(({ name }) => name === 'exception')
    .map(({ attributes }) => attributes?.['exception.message'])
}

const running: { shutdown(): Promise<void> }[] = []

afterEach(async () => {
  await Promise.all(running.splice(0).map((tracing) => tracing.shutdown()))
})
