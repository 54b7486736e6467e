import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { Unread, type Answered } from '../../packages/core/src/http-client/unread.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** One that was answered, and says when nothing will come of it any more. */
function answered(abandoned: () => void): Answered {
  return {
    heardAt: 0,
    isWatched: false,
    previous: undefined,
    next: undefined,
    now: () => performance.now(),
    watchBody: () => {},
    abandoned,
  }
}

test.each([1, 2, 5])('of %i answers that nobody reads each is abandoned once', async (count) => {
  const unread = new Unread()
  const gone: number[] = []
  for (let index = 0; index < count; index++) {
    unread.add(answered(() => gone.push(index)))
    await vi.advanceTimersByTimeAsync(100)
  }
  await vi.advanceTimersByTimeAsync(29_000 - count * 100)
  expect(gone).toEqual([])
  await vi.advanceTimersByTimeAsync(10_000)
  expect(gone).toEqual(Array.from({ length: count }, (_, index) => index))
  await vi.advanceTimersByTimeAsync(100_000)
  expect(gone).toHaveLength(count)
})

test.each([0, 1, 2])('one that has been read is not, whichever of three: %i', async (read) => {
  const unread = new Unread()
  const gone: number[] = []
  const all = [0, 1, 2].map((index) => answered(() => gone.push(index)))
  for (const each of all) unread.add(each)
  unread.remove(all[read] as Answered)
  await vi.advanceTimersByTimeAsync(60_000)
  expect(gone).toEqual([0, 1, 2].filter((index) => index !== read))
})

test('one that is answered while another one is abandoned is so in its turn', async () => {
  const unread = new Unread()
  const gone: string[] = []
  const second = answered(() => gone.push('second'))
  unread.add(
    answered(() => {
      gone.push('first')
      unread.add(second)
    }),
  )
  await vi.advanceTimersByTimeAsync(36_000)
  expect(gone).toEqual(['first'])
  await vi.advanceTimersByTimeAsync(36_000)
  expect(gone).toEqual(['first', 'second'])
})
