import type { Stretch } from './critical-path.ts'
import { inUnit, unitOf } from './duration.ts'
import { piece } from './text.ts'
import type { Piece, Style } from './text.ts'

/** Where on a ruler of `columns` something lies: it ends before column `to`. */
type Columns = { from: number; to: number }

/** One column has at least this many to itself and its neighbour's label on the ruler. */
const columnsPerTick = 10

/**
 * A span on the ruler: `├──┤`, with heavy ends when it is on the critical path, and heavy (`━`) where the time is
 * its own. The stretches of a trace never overlap, and neither do their columns: each column is heavy once.
 */
export function bar(
  span: { start: number; end: number },
  own: readonly Stretch[] | undefined,
  scale: { total: number; columns: number; style: Style },
): Piece[] {
  const { total, columns, style } = scale
  const perNano = total > 0 ? columns / total : 0
  const from = Math.min(columns - 1, Math.floor(span.start * perNano))
  const to = Math.min(columns, Math.max(from + 1, Math.ceil(span.end * perNano)))
  const heavy = (own ?? []).map((stretch) => rounded(stretch, perNano))

  const cells: Piece[] = []
  for (let column = from; column < to; column++) {
    const isHeavy = heavy.some((part) => column >= part.from && column < part.to)
    const isEnd = column === from || column === to - 1
    const looks = isHeavy || (isEnd && own) ? heavyStyle(style) : style
    cells.push(piece(glyph(column, { from, to }, own !== undefined, isHeavy), looks))
  }
  return [piece(' '.repeat(from)), ...joined(cells)]
}

function rounded({ from, to }: Stretch, perNano: number): Columns {
  return { from: Math.round(from * perNano), to: Math.round(to * perNano) }
}

function heavyStyle(style: Style): Style {
  return style === 'error' ? 'error' : 'critical'
}

function glyph(column: number, { from, to }: Columns, isCritical: boolean, isHeavy: boolean): string {
  if (to - from === 1) return isCritical ? '┃' : '│'
  if (column === from) return isCritical ? '┣' : '├'
  if (column === to - 1) return isCritical ? '┫' : '┤'
  return isHeavy ? '━' : '─'
}

/** Neighbours of one style as one piece. */
function joined(cells: readonly Piece[]): Piece[] {
  const pieces: Piece[] = []
  for (const cell of cells) {
    const last = pieces.at(-1)
    if (last?.style === cell.style) pieces[pieces.length - 1] = piece(last.text + cell.text, last.style)
    else pieces.push(cell)
  }
  return pieces
}

/** Two lines: the times, each beginning at its tick and the last ending at the end, and the ticks. */
export function ruler(total: number, columns: number): [times: string, ticks: string] {
  const unit = unitOf(total)
  const last = total > 0 ? `${inUnit(total, unit)}${unit.name}` : ''
  let times = '0'
  let ticks = '┌'
  const step = stepOf(total, columns)
  for (let time = step; time > 0 && time < total; time += step) {
    const column = Math.round((time / total) * columns)
    const text = `${inUnit(time, unit, total)}${unit.name}`
    if (column + text.length + 1 + last.length > columns) break
    times = times.padEnd(column) + text
    ticks = `${ticks.padEnd(column, '─')}┬`
  }
  return [times + last.padStart(columns - times.length), `${ticks.padEnd(columns - 1, '─')}┐`]
}

/** The smallest of 1, 2, 5, 10, 20, 50 … nanoseconds that leaves room for the times. */
function stepOf(total: number, columns: number): number {
  const least = total / Math.max(1, columns / columnsPerTick)
  const power = 10 ** Math.floor(Math.log10(Math.max(1, least)))
  return (total > 0 ? [1, 2, 5, 10].map((factor) => factor * power) : []).find((step) => step >= least) ?? 0
}
