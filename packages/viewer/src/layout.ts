/** The columns of a waterfall; 0 for one that there is no room for. A gap stands before each but the first. */
export type Layout = { labels: number; bars: number; ranges: number; durations: number }

/** Between two columns. */
export const gap = 2

/** What a screen that tells no width, or an endless one, gets for its bars. */
const barsWhenEndless = 72

/** Below this, a bar says nothing. */
const barsAtLeast = 10

/** Bars are made no narrower than this for the ranges, or for names that are long. */
const barsComfortable = 20

/** The share of the width that labels have before bars get what is comfortable. */
const labelShare = 0.45

/**
 * Gives a width out to labels, bars, ranges and durations, given what each would like. When it gets narrow the ranges
 * go first, then labels are clipped down to their share, then bars get narrower and go.
 */
export function layoutOf(width: number, wish: Omit<Layout, 'bars'>): Layout {
  const { ranges, durations } = wish
  if (!Number.isFinite(width)) return { ...wish, bars: barsWhenEndless }
  const room = width - gap - gap - durations
  const beside = room - wish.labels - gap - ranges
  if (beside >= barsComfortable) return { ...wish, bars: beside }
  const share = Math.max(Math.floor(width * labelShare), room - barsComfortable)
  const labels = Math.min(wish.labels, share)
  if (room - labels >= barsAtLeast) return { labels, bars: room - labels, ranges: 0, durations }
  const left = Math.max(0, width - durations - gap)
  return { labels: Math.min(wish.labels, left), bars: 0, ranges: 0, durations: left > 0 ? durations : 0 }
}
