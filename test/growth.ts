import { expect } from 'vitest'

/** What a clock cannot tell counts as much as it can. */
const FLOOR_MS = 0.05
const TIMES_AS_LONG = 16
/** A machine that is busy for a moment makes one of them too slow; growth makes the second one too slow every time. */
const TRIES = 4

/**
 * Holds the cost of `run` against that for an input 16 times as long: linear growth makes it 16 times as much, quadratic
 * growth 256 times. The least of several runs is taken.
 *
 * @param run prepares an input of this size; what it returns is measured, to the end of its promise if it gives one
 */
export async function expectNoQuadraticGrowth(
  run: (size: number) => () => unknown,
  size: number,
): Promise<void> {
  const limit = (TIMES_AS_LONG * TIMES_AS_LONG) / 2
  let ratio = Infinity
  for (let tries = 0; tries < TRIES && ratio >= limit; tries++) {
    const short = Math.max(await leastMs(run(size)), FLOOR_MS)
    ratio = (await leastMs(run(size * TIMES_AS_LONG))) / short
  }
  expect(ratio).toBeLessThan(limit)
}

async function leastMs(work: () => unknown): Promise<number> {
  let least = Infinity
  for (let times = 0; times < 3; times++) {
    const before = performance.now()
    await work()
    least = Math.min(least, performance.now() - before)
  }
  return least
}
