import { trace } from '@opentelemetry/api'
import { expect, test } from 'vitest'
import { roomIn, type Span } from '../../packages/core/src/span.ts'
import { engine, LIMITS } from './engine.ts'

const NONE = trace.wrapSpanContext({ traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 })

function spanWith(count: number, limits: Partial<typeof LIMITS> = {}): Span {
  const attributes = Object.fromEntries(
    Array.from({ length: count }, (_, index) => [`given.${index}`, index]),
  )
  const { tracer } = engine({ limits: { ...LIMITS, ...limits } })
  return tracer.startSpan('work', { attributes }) as Span
}

test('what is written into the room of a span is what the span says', () => {
  const span = spanWith(2)
  const room = roomIn(span, 2)
  if (room === undefined) throw new Error('there is room')
  room['http.route'] = '/users/:id'
  room['http.response.status_code'] = 204
  span.end()
  expect(span.attributes).toEqual({
    'given.0': 0,
    'given.1': 1,
    'http.route': '/users/:id',
    'http.response.status_code': 204,
  })
})

test.each([0, 1, 2, 3, 4, 5, 6])('there is room for two beside two only within the limit: %i', (limit) => {
  const span = spanWith(2, { attributeCountLimit: limit })
  expect(roomIn(span, 2) === undefined).toBe(limit < 4)
})

test('what finds no room is counted, and what there was room for is in that count', () => {
  const span = spanWith(2, { attributeCountLimit: 4 })
  const room = roomIn(span, 1)
  if (room === undefined) throw new Error('there is room')
  room['http.route'] = '/'
  expect(roomIn(span, 2)).toBeUndefined()
  span.setAttributes({ 'app.last': 1, 'app.one_too_many': 2 })
  expect(Object.keys(span.attributes)).toEqual(['given.0', 'given.1', 'http.route', 'app.last'])
  expect(span.droppedAttributesCount).toBe(1)
})

test('room that was asked for in vain costs no other attribute its place', () => {
  const span = spanWith(2, { attributeCountLimit: 4 })
  // Both are there already, or none comes.
  roomIn(span, 1)
  roomIn(span, 1)
  span.setAttributes({ 'app.third': 3, 'app.fourth': 4 })
  expect(Object.keys(span.attributes)).toHaveLength(4)
  expect(span.droppedAttributesCount).toBe(0)
})

test('there is none where texts have to be cut, in a span that has ended, or in one of others', () => {
  expect(roomIn(spanWith(0, { attributeValueLengthLimit: 8 }), 1)).toBeUndefined()
  const ended = spanWith(0)
  ended.end()
  expect(roomIn(ended, 1)).toBeUndefined()
  expect(roomIn(NONE, 1)).toBeUndefined()
})
