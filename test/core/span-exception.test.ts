import { SpanStatusCode, type Exception, type TimeInput } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { errorType } from '../../packages/core/src/exception.ts'
import { said } from './engine.ts'
import { started } from './spans.ts'

describe('an exception', () => {
  test('becomes the event `exception` and leaves the status alone', () => {
    const span = started()
    const error = new RangeError('too far')
    span.recordException(error, [1_700_000_000, 1])
    expect(span.events).toEqual([
      {
        name: 'exception',
        time: [1_700_000_000, 1],
        attributes: {
          'exception.type': 'RangeError',
          'exception.message': 'too far',
          'exception.stacktrace': error.stack,
        },
      },
    ])
    expect(span.status.code).toBe(SpanStatusCode.UNSET)
  })

  test('loses nothing to attributes of the caller that are none', () => {
    const span = started()
    const reports = said()
    const given = {
      'exception.message': undefined,
      'exception.stacktrace': null,
      'exception.type': new Set(),
    }
    span.recordException(new RangeError('too far'), given as unknown as TimeInput)
    expect(span.events[0]?.attributes).toMatchObject({
      'exception.type': 'RangeError',
      'exception.message': 'too far',
      'exception.stacktrace': expect.stringContaining('too far') as string,
    })
    expect(reports.lines).toEqual([expect.stringContaining('received [object Set] for "exception.type"')])
  })

  test('takes attributes of the caller, who knows better, before or instead of a time', () => {
    const span = started()
    const given = { 'exception.message': 'hidden', 'order.id': 'A-7' }
    const error = new RangeError('card 4111')
    span.recordException(error, given as unknown as TimeInput)
    // Not in the API's types yet.
    const record = span.recordException.bind(span) as (...rest: unknown[]) => void
    record(error, given, [1_700_000_000, 1])
    record(error, undefined, [1_700_000_000, 2])
    const own = { 'exception.type': 'RangeError', 'exception.stacktrace': error.stack }
    expect(span.events[0]).toEqual({
      name: 'exception',
      time: expect.any(Array),
      attributes: { ...own, ...given },
    })
    expect(span.events[1]).toEqual({
      name: 'exception',
      time: [1_700_000_000, 1],
      attributes: { ...own, ...given },
    })
    expect(span.events[2]?.time).toEqual([1_700_000_000, 2])
    expect(span.events[2]?.attributes).toEqual({ ...own, 'exception.message': 'card 4111' })
  })

  const thrown: [string, unknown, object][] = [
    ['a text', 'no', { 'exception.message': 'no' }],
    ['null', null, { 'exception.message': 'null' }],
    ['undefined', undefined, { 'exception.message': 'undefined' }],
    ['a number', 7, { 'exception.message': '7' }],
    ['an object of no class', Object.create(null), { 'exception.message': '' }],
    [
      'an object like an error',
      { name: 'Odd', message: 'ish' },
      { 'exception.type': 'Odd', 'exception.message': 'ish' },
    ],
    [
      'an object with a code',
      { code: 'E_ODD', message: 'ish', stack: 'at odd' },
      { 'exception.type': 'E_ODD', 'exception.message': 'ish', 'exception.stacktrace': 'at odd' },
    ],
    ['an object with a message alone', { message: 'ish' }, { 'exception.message': 'ish' }],
    ['a symbol', Symbol('odd'), { 'exception.message': 'Symbol(odd)' }],
    ['a class, for want of a new', RangeError, { 'exception.message': '[Function: RangeError]' }],
    [
      'a class whose name nobody can read',
      Object.defineProperty(() => {}, 'name', {
        get() {
          throw new Error('of a class')
        },
      }),
      { 'exception.message': '[Function]' },
    ],
    ['an object of odd fields', { name: 5, message: 6, stack: 7 }, { 'exception.message': '6' }],
    ['an object of odder ones', { name: 5, message: {}, stack: 7 }, { 'exception.type': 'Object' }],
    [
      'an error whose stack nobody can format',
      Object.defineProperty(new RangeError('card declined'), 'stack', {
        get() {
          throw new Error('of a hook')
        },
      }),
      { 'exception.type': 'RangeError', 'exception.message': 'card declined' },
    ],
  ]
  test.each(thrown)('may be anything that can be thrown: %s', (_row, value, attributes) => {
    const span = started()
    span.recordException(value as Exception)
    expect(span.events[0]?.attributes).toEqual(attributes)
  })

  test('has a type of few words: the code of a system error or of a plain one, else the class', () => {
    class PaymentDeclined extends Error {}
    const system = Object.assign(new Error('connect'), { code: 'ECONNREFUSED', syscall: 'connect' })
    const named = Object.assign(new Error('x'), { name: 'AbortError' })
    expect(errorType(system)).toBe('ECONNREFUSED')
    expect(errorType(Object.assign(new Error('x'), { code: 'ERR_X' }))).toBe('ERR_X')
    expect(errorType(Object.assign(new TypeError('x'), { code: 'ERR_INVALID_ARG_TYPE' }))).toBe('TypeError')
    expect(errorType(new PaymentDeclined('x'))).toBe('PaymentDeclined')
    const declined = Object.assign(new PaymentDeclined('x'), { code: 'E_CARD' })
    expect(errorType(declined)).toBe('PaymentDeclined')
    expect(errorType(Object.assign(declined, { code: 'ECONNRESET', syscall: 'read' }))).toBe('ECONNRESET')
    expect(errorType(named)).toBe('AbortError')
    expect(errorType(new Error('x'))).toBe('Error')
    for (const value of ['text', 5, null, undefined]) expect(errorType(value)).toBeUndefined()
  })
})
