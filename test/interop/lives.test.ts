import { SpanStatusCode } from '@opentelemetry/api'
import { expect, test } from 'vitest'
import { only, run, tree, type PlainSpan } from './child.ts'

interface Globals {
  isRecording: boolean
  fields: string[]
  value: string | null
}

interface Told {
  before: PlainSpan[]
  first: PlainSpan[]
  second: PlainSpan[]
  theirs: PlainSpan[]
  fourth: PlainSpan[]
  countFirst: number
  sentFirst: string[][]
  sentSecond: string[][]
  between: Globals & { traceparents: string[][] }
  after: Globals
  statuses: string[]
}

const LIBRARY = `
  INTERNAL of a library by kept by a library
    CLIENT SELECT by @throughline/pg
    CLIENT GET by @throughline/ioredis
    CLIENT GET by @throughline/undici`

const VISITS = [
  `SERVER GET /users/:id by @throughline/express${LIBRARY}`,
  `SERVER GET by @throughline/koa${LIBRARY}`,
  `SERVER GET /users/:id by @throughline/fastify${LIBRARY}`,
].join('\n')

test('an app that was there before serves each life of tracing in turn, that of an official SDK among them', async () => {
  const told = await run<Told>('lives.mjs')
  const { before, first, second, theirs, fourth } = told
  expect(told.said).toBe('')
  expect(told.statuses).toEqual(Array(17).fill('HTTP/1.1 200 OK'))

  expect(tree(before)).toBe('SERVER GET /ping by @throughline/express\n  CLIENT SELECT by @throughline/pg')
  // What was open at the end of the first life is there, and says what it is.
  const held = only(first, { name: 'GET', scope: '@throughline/express' })
  expect(held.attributes['throughline.incomplete']).toBe(true)
  expect(tree(first.filter((span) => span !== held))).toBe(VISITS)
  expect(told.countFirst, 'nothing comes to the first after its end').toBe(first.length)

  // The contexts went with the first life: what goes on in that request is a trace of its own, of the second.
  const goneOn = only(second, { name: 'SELECT', parentSpanId: undefined })
  expect(goneOn.attributes['db.query.text']).toBe('SELECT ?')
  expect(tree(second.filter((span) => span !== goneOn))).toBe(VISITS)
  expect(tree(theirs)).toBe(VISITS)
  expect(tree(fourth)).toBe(VISITS)

  const services = (spans: PlainSpan[]) => [...new Set(spans.map(({ resource }) => resource['service.name']))]
  expect([first, second, fourth].map(services)).toEqual([['first'], ['second'], ['fourth']])
  expect(theirs.every(({ resource }) => resource['telemetry.sdk.name'] === 'opentelemetry')).toBe(true)
  for (const { status } of [...before, ...first, ...second, ...theirs, ...fourth])
    expect(status.code).toBe(SpanStatusCode.UNSET)

  for (const [spans, sent] of [
    [first, told.sentFirst],
    [second, told.sentSecond],
  ] as const) {
    const calls = spans.filter(({ scope }) => scope === '@throughline/undici')
    expect(sent).toEqual(calls.map(({ traceId, spanId }) => [`00-${traceId}-${spanId}-03`]))
  }
  // Between two lives nothing of ours is there: no header, and no global.
  const nobody = { isRecording: false, fields: [], value: null }
  expect(told.between).toEqual({ ...nobody, traceparents: [[], [], []] })
  expect(told.after).toEqual(nobody)
})
