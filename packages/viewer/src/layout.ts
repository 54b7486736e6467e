/** The columns of a waterfall; 0 for one that there is no room for. A gap stands before each but the first. */
export type Layout = { labels: number; bars: number; ranges: number; durations: number }

/** Between two columns. */
export const gap = 2

/** What a screen that tells no width, or an endless one, gets for its bars. */
const barsWhenEndless = 72

/** Below this, a bar says nothing. */
const barsAtLeast = 10

/** From here on, bars are wide enough to give room for the ranges. */
const barsComfortable = 20

/** The share of the width that labels may take. */
const labelShare = 0.45

/**
 * Gives a width out to labels, bars, ranges and durations, given what each would like. When it gets narrow the
 * ranges go first, then the bars, and what is left is clipped.
 */
export function layoutOf(width: number, wish: Omit<Layout, 'bars'>): Layout {
  const { ranges, durations } = wish
  if (!Number.isFinite(width)) return { ...wish, bars: barsWhenEndless }
  const labels = Math.min(wish.labels, Math.floor(width * labelShare))
  const bars = width - labels - gap - durations - gap
  if (bars - ranges - gap >= barsComfortable) return { labels, bars: bars - ranges - gap, ranges, durations }
  if (bars >= barsAtLeast) return { labels, bars, ranges: 0, durations }
  const left = Math.max(0, width - durations - gap)
  return { labels: Math.min(wish.labels, left), bars: 0, ranges: 0, durations: left > 0 ? durations : 0 }
}
