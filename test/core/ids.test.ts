import { defaultTextMapSetter, isValidSpanId, isValidTraceId, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { expect, test } from 'vitest'
import { randomIds } from '../../packages/core/src/ids.ts'
import { traceContextPropagator } from '../../packages/core/src/propagation.ts'
import { engine, said } from './engine.ts'

// Enough to use the pool of random bytes up several times.
const MANY = 20_000

test('trace ids are 32 and span ids 16 lower-case hex digits', () => {
  for (let count = 0; count < MANY; count += 1) {
    expect(randomIds.generateTraceId()).toMatch(/^[0-9a-f]{32}$/)
    expect(randomIds.generateSpanId()).toMatch(/^[0-9a-f]{16}$/)
  }
})

test('no id comes twice', () => {
  const ids = new Set<string>()
  for (let count = 0; count < MANY; count += 1) {
    ids.add(randomIds.generateTraceId()).add(randomIds.generateSpanId())
  }
  expect(ids.size).toBe(2 * MANY)
})

test('every digit of an id is as likely as any other, at every place', () => {
  const counts = Array.from({ length: 32 }, () => new Map<string, number>())
  for (let count = 0; count < MANY; count += 1) {
    for (const [place, digit] of [...randomIds.generateTraceId()].entries()) {
      const at = counts[place] as Map<string, number>
      at.set(digit, (at.get(digit) ?? 0) + 1)
    }
  }
  // 1,250 are expected of each; the standard deviation is 34, and 10 of them are never seen.
  for (const at of counts) {
    expect(at.size).toBe(16)
    for (const count of at.values()) expect(Math.abs(count - MANY / 16)).toBeLessThan(340)
  }
})

test('no part of an id is made of another', () => {
  const partsOf = (id: string) => id.match(/.{8}/g) ?? []
  const repeats = (id: string) => new Set(partsOf(id)).size < partsOf(id).length
  const ids = Array.from({ length: MANY }, () => [
    randomIds.generateTraceId(),
    randomIds.generateSpanId(),
  ]).flat()
  // One in 30,000 such runs has one that does.
  expect(ids.filter(repeats).length).toBeLessThan(10)
})

test('a trace that begins here says that its id is random, and its children say so too', () => {
  const { tracer } = engine()
  const root = tracer.startSpan('root')
  const child = tracer.startSpan('child', {}, trace.setSpan(ROOT_CONTEXT, root))
  expect(root.spanContext().traceFlags).toBe(0x03)
  expect(child.spanContext().traceFlags).toBe(0x03)
})

test("a trace that begins elsewhere keeps that service's word on whether its id is random", () => {
  const { tracer } = engine()
  for (const traceFlags of [0x01, 0x03]) {
    const parent = { traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags, isRemote: true }
    const child = tracer.startSpan('child', {}, trace.setSpanContext(ROOT_CONTEXT, parent))
    expect(child.spanContext().traceFlags).toBe(traceFlags)
  }
})

test("an app's own id generator is used, and nothing is said about the randomness of its ids", () => {
  const { tracer } = engine({
    idGenerator: { generateTraceId: () => 'a'.repeat(32), generateSpanId: () => 'b'.repeat(16) },
  })
  expect(tracer.startSpan('root').spanContext()).toEqual({
    traceId: 'a'.repeat(32),
    spanId: 'b'.repeat(16),
    traceFlags: 0x01,
  })
})

test('an id generator that throws or gives no ids breaks no app: random ids are taken and it is said once', () => {
  const reports = said()
  const { tracer } = engine({
    idGenerator: {
      generateTraceId: () => {
        throw new Error('out of ids')
      },
      generateSpanId: () => 'nonsense',
    },
  })
  for (const name of ['one', 'two']) {
    const { traceId, spanId } = tracer.startSpan(name).spanContext()
    expect([isValidTraceId(traceId), isValidSpanId(spanId)]).toEqual([true, true])
  }
  expect(reports.lines).toEqual([
    "throughline: the idGenerator's generateTraceId() threw",
    'throughline: the idGenerator\'s generateSpanId() gave no valid id: "nonsense"',
  ])
})

test('ids in capitals, of a span of somebody else, are never passed on so, however often they are asked for', () => {
  const { tracer } = engine()
  const given = { traceId: 'ABCDEF'.padEnd(32, '1'), spanId: 'ABCDEF'.padEnd(16, '2'), traceFlags: 1 }
  const scope = trace.setSpan(ROOT_CONTEXT, trace.wrapSpanContext(given))
  for (let time = 1; time <= 3; time += 1) {
    const carrier: Record<string, string> = {}
    traceContextPropagator.inject(scope, carrier, defaultTextMapSetter)
    expect(carrier['traceparent']).toBe(`00-${given.traceId.toLowerCase()}-${given.spanId.toLowerCase()}-01`)
    expect(tracer.startSpan('child', {}, scope).spanContext().traceId).toBe(given.traceId.toLowerCase())
  }
})
