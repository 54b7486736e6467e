/** @param {number[]} values */
export function median(values) {
  return quantile(values, 0.5)
}

/** Between two neighbours it is what lies between them. @param {number[]} values @param {number} share */
export function quantile(values, share) {
  const sorted = values.toSorted((a, b) => a - b)
  const position = (sorted.length - 1) * share
  const below = Math.floor(position)
  const lower = sorted[below] ?? Number.NaN
  const upper = sorted[below + 1] ?? lower
  // Infinity stands for what never came.
  if (!Number.isFinite(upper)) return position === below ? lower : upper
  return lower + (upper - lower) * (position - below)
}

/**
 * The list in an order of chance: nobody always follows the same one, whose traces are still in the processor's caches.
 *
 * @template T
 * @param {readonly T[]} list
 */
export function shuffled(list) {
  const drawn = [...list]
  for (let left = drawn.length; left > 1; left--) {
    const index = Math.floor(Math.random() * left)
    ;[drawn[left - 1], drawn[index]] = [drawn[index], drawn[left - 1]]
  }
  return drawn
}

/** What makes a standard deviation of a median absolute deviation, and how much less a median tells than a mean. */
const DEVIATIONS = 1.4826
const OF_MEDIAN = 1.2533

/** How many processes tell how processes differ. */
const FEWEST_PROCESSES = 3

/**
 * Twice the standard error of a ratio: of what two contenders add to the bare app, in paired rounds. How their rounds differ is
 * told by medians, since a neighbour on the machine spoils a round now and then. Where the processes differ by more than their
 * rounds let expect, since V8 has not made the same of the same code, it is told by them.
 *
 * @param {number} ratio as it was found
 * @param {number[][] | undefined} rounds of the one, by processes
 * @param {number[][] | undefined} others of whom it is compared with
 * @param {number[][] | undefined} bares
 * @returns {number | undefined} undefined where there are no such rounds, or too few
 */
export function ratioError(ratio, rounds, others, bares) {
  if (![rounds, others, bares].every((all) => Array.isArray(all?.[0]))) return undefined
  const processes = rounds
    .map((process, p) =>
      process
        .map((value, r) => {
          const bare = bares[p]?.[r]
          return { one: value - bare, other: others[p]?.[r] - bare }
        })
        .filter(({ one, other }) => Number.isFinite(one - other)),
    )
    .filter((pairs) => pairs.length > 0)
  const known = processes.flat()
  if (known.length < 4) return undefined
  const leftOf = (pairs) => pairs.map(({ one, other }) => one - ratio * other)
  const error = Math.max(
    errorOfRounds(leftOf(known)),
    errorOfProcesses(processes.map((each) => median(leftOf(each)))),
  )
  return (2 * error) / Math.abs(median(known.map(({ other }) => other)))
}

/** @param {number[]} left */
function errorOfRounds(left) {
  const middle = median(left)
  const deviation = DEVIATIONS * median(left.map((each) => Math.abs(each - middle)))
  return (OF_MEDIAN * deviation) / Math.sqrt(left.length)
}

/** @param {number[]} left */
function errorOfProcesses(left) {
  const { length } = left
  if (length < FEWEST_PROCESSES) return 0
  const mean = left.reduce((sum, each) => sum + each, 0) / length
  const variance = left.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (length - 1)
  return Math.sqrt(variance / length)
}
