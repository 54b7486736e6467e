import { SpanKind } from '@opentelemetry/api'
import { expect, test } from 'vitest'
import { run, type PlainSpan } from './child.ts'

interface Told {
  made: (PlainSpan & { file: string })[]
  traceparents: string[][]
}

test.each(['undici', 'http'])(
  'each file of tests has its own traceparent on the wire, though those before it still listen: %s',
  async (client) => {
    const { made, traceparents, said } = await run<Told>(
      'registries.mjs',
      { client },
      { NODE_OPTIONS: '--experimental-vm-modules --no-warnings' },
    )
    const wanted = ['first', 'second'].flatMap((file) => {
      const own = made.filter((each) => each.file === file)
      const callers = new Set(own.filter(({ name }) => name === file).map(({ spanId }) => spanId))
      return own
        .filter(({ kind, parentSpanId }) => kind === SpanKind.CLIENT && callers.has(parentSpanId ?? ''))
        .map(({ traceId, spanId }) => [`00-${traceId}-${spanId}-03`])
    })
    expect(traceparents).toEqual(wanted)
    expect(traceparents).toHaveLength(client === 'undici' ? 2 : 4)
    expect(said).toBe('')
  },
)
