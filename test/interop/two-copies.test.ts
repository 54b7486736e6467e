import { SpanStatusCode } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { only, run, tree, type PlainSpan } from './child.ts'
import { API, installedElsewhere, type Api } from './copy.ts'

interface Told {
  areTwo: boolean
  isSame: boolean
  statuses: string[]
  spans: PlainSpan[]
  unflushed: number
  after: string[]
  isTracedAfter: boolean
  next: string[]
  traceparents: string[][]
}

interface Versions {
  results: unknown[]
  theirs: string[]
}

describe.each<[string, Api]>([
  ['which share a copy of the API', 'shared'],
  ['each with a copy of the API', 'own'],
  ['each with a version of the API, of one minor', API.otherPatch],
])('two copies of our packages in one process, %s', (_title, api) => {
  test.each(['app', 'library'])(
    'are one engine and one trace, whichever is started: the %s’s',
    async (starter) => {
      const folder = installedElsewhere(['core', 'express', 'undici', 'pg'], api)
      const told = await run<Told>('copies.mjs', { folder, starter })
      expect(told).toMatchObject({ areTwo: true, isSame: true })
      expect(told.said).toBe(
        'throughline: an OpenTelemetry SDK is registered and stays in charge; start() did nothing\n',
      )
      expect(told.statuses).toEqual(['HTTP/1.1 200 OK', 'HTTP/1.1 500 Internal Server Error'])
      // Both trace the same app and the same pool.
      expect(tree(told.spans)).toBe(
        `
SERVER GET /users/:id by @throughline/express
  INTERNAL of the app by @throughline/core
    INTERNAL of the library by @throughline/core
      INTERNAL by the API by app
        CLIENT SELECT by @throughline/pg
        CLIENT GET by @throughline/undici
SERVER GET /broken by @throughline/express ✗`.trim(),
      )
      const call = only(told.spans, { scope: '@throughline/undici' })
      expect(told.traceparents).toEqual([[`00-${call.traceId}-${call.spanId}-03`]])
      const broken = only(told.spans, { name: 'GET /broken' })
      expect(broken.status).toMatchObject({ code: SpanStatusCode.ERROR, message: 'it broke' })
      expect(broken.events).toHaveLength(1)

      // One queue: the one that did not start it flushes it, and does not stop it.
      expect(told.unflushed).toBe(0)
      expect(told.after).toEqual(['goes on'])
      expect(told.isTracedAfter).toBe(false)
      expect(told.next).toEqual(['of the next life'])
    },
  )
})

test('an SDK of the same minor is used, whatever its patch', async () => {
  const folder = installedElsewhere(['core'], API.otherPatch)
  const { results, theirs, said } = await run<Versions>('versions.mjs', { folder, first: 'sdk' })
  expect(results).toEqual([1, 2])
  expect(theirs).toEqual(['one', 'two', 'of the app'])
  expect(said).toBe('')
})
