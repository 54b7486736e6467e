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
