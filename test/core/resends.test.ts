import { context, type Context } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { describe, expect, test } from 'vitest'
import { answeredWith, failedBefore, resendsOf } from '../../packages/core/src/http-client/resends.ts'
import { record } from '../recording.ts'

const URL_A = 'http://a.com/one'
const nowhere = (): unknown => undefined

/** Runs it as the caller of requests. */
function within<T>(work: (caller: Context) => T): T {
  record()
  return span('caller', () => work(context.active()))
}

describe('a request is sent again', () => {
  test.each([301, 302, 303, 307, 308])(
    'when %i has led to it, once, from the same caller, whatever the method',
    (status) => {
      within((caller) => {
        answeredWith(status, () => '/two#part', caller, 'POST', URL_A, 0)
        expect(
          resendsOf(
            span('another', () => context.active()),
            'GET',
            'http://a.com/two',
          ),
        ).toBe(0)
        expect(resendsOf(caller, 'GET', 'http://a.com/two')).toBe(1)
        expect(resendsOf(caller, 'GET', 'http://a.com/two')).toBe(0)
      })
    },
  )

  test.each([401, 407, 408, 421, 425, 429, 500, 502, 503, 504])('when it was answered with %i', (status) => {
    within((caller) => {
      answeredWith(status, nowhere, caller, 'GET', URL_A, 0)
      expect(resendsOf(caller, 'POST', URL_A)).toBe(0)
      expect(resendsOf(caller, 'GET', URL_A)).toBe(1)
    })
  })

  test('when it got no answer', () => {
    within((caller) => {
      failedBefore(caller, 'GET', URL_A, 2)
      expect(resendsOf(caller, 'GET', URL_A)).toBe(3)
    })
  })

  test('as often as it has failed at the same time', () => {
    within((caller) => {
      failedBefore(caller, 'GET', URL_A, 0)
      failedBefore(caller, 'GET', URL_A, 0)
      const counts = [1, 2, 3].map(() => resendsOf(caller, 'GET', URL_A))
      expect(counts).toEqual([1, 1, 0])
    })
  })
})

describe('a request is a new one', () => {
  test.each([200, 204, 300, 304, 400, 404])('after %i', (status) => {
    within((caller) => {
      answeredWith(status, () => '/two', caller, 'GET', URL_A, 0)
      expect(resendsOf(caller, 'GET', URL_A)).toBe(0)
      expect(resendsOf(caller, 'GET', 'http://a.com/two')).toBe(0)
    })
  })

  test('after a redirect to nowhere', () => {
    within((caller) => {
      for (const location of [undefined, 'http://', 7]) {
        answeredWith(302, () => location, caller, 'GET', URL_A, 0)
        expect(resendsOf(caller, 'GET', URL_A)).toBe(0)
      }
    })
  })

  test('where what failed had no caller, or what led to it did so a while ago: it may be anybody’s', async () => {
    const nobody = context.active()
    failedBefore(nobody, 'GET', URL_A, 0)
    expect(resendsOf(nobody, 'GET', URL_A)).toBe(0)
    answeredWith(302, () => '/two', nobody, 'GET', URL_A, 0)
    expect(resendsOf(nobody, 'GET', 'http://a.com/two')).toBe(1)
    answeredWith(302, () => '/two', nobody, 'GET', URL_A, 0)
    await new Promise(setImmediate)
    expect(resendsOf(nobody, 'GET', 'http://a.com/two')).toBe(0)
  })

  test('not where what led to it had a caller: that may have been long ago', async () => {
    const { caller } = within((each) => {
      answeredWith(302, () => '/two', each, 'GET', URL_A, 0)
      return { caller: each }
    })
    await new Promise(setImmediate)
    expect(resendsOf(caller, 'GET', 'http://a.com/two')).toBe(1)
  })

  test('where many others have failed since: what a caller that never ends leaves behind is bounded', () => {
    within((caller) => {
      for (let count = 0; count < 17; count += 1) failedBefore(caller, 'GET', `${URL_A}/${count}`, 0)
      expect(resendsOf(caller, 'GET', `${URL_A}/0`)).toBe(0)
      expect(resendsOf(caller, 'GET', `${URL_A}/1`)).toBe(1)
      for (let count = 0; count < 17; count += 1) failedBefore(caller, 'GET', URL_A, 0)
      const counts = Array.from({ length: 17 }, () => resendsOf(caller, 'GET', URL_A))
      expect(counts.filter((count) => count === 1)).toHaveLength(16)
    })
  })
})
