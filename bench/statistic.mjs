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
 * The list, begun at another place each round, so that nobody always comes first or always follows the same one.
 *
 * @template T
 * @param {readonly T[]} list
 * @param {number} round
 */
export function rotated(list, round) {
  const start = round % list.length
  const turned = [...list.slice(start), ...list.slice(0, start)]
  return round % 2 === 0 ? turned : turned.toReversed()
}
