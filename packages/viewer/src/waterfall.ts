import { bar, ruler } from './bar.ts'
import { criticalPath } from './critical-path.ts'
import type { CriticalPath, Stretch } from './critical-path.ts'
import { duration, inUnit, unitOf } from './duration.ts'
import { errorOf, fullLabel, label } from './label.ts'
import { gap, layoutOf } from './layout.ts'
import type { Layout } from './layout.ts'
import { notesOf } from './note.ts'
import type { Note } from './note.ts'
import { checkSpans, validated } from './options.ts'
import type { Shape } from './options.ts'
import type { Span } from './span.ts'
import { defaultWidth } from './terminal.ts'
import { clip, fit, paint, piece, width as widthOfText, widthOf, wrap } from './text.ts'
import type { Piece, Style } from './text.ts'
import { treeOf } from './tree.ts'
import type { Node, Tree } from './tree.ts'

export type WaterfallOptions = {
  /** Columns; no line is wider. Default 100; Infinity clips nothing. */
  width?: number | undefined
  /** ANSI colours. Default false; the text is the same with and without. */
  color?: boolean | undefined
}

const shape: Shape<WaterfallOptions> = {
  width: {
    wanted: 'a number of columns',
    example: 'width: 80',
    accepts: (value) => typeof value === 'number',
  },
  color: { wanted: 'true or false', example: 'color: true', accepts: (value) => typeof value === 'boolean' },
}

/** A row before it is laid out. */
type Row = { node: Node; indent: string; label: Piece[]; range: string; duration: string; notes: Note[] }

/** Levels of the tree that are drawn by indentation; deeper ones say their depth. */
const maxIndent = 12

/** Below this many columns, a level is indented by one instead of two. */
const narrow = 60

/** Lines of one note. */
const maxNoteLines = 3

/** A label that wishes for more is clipped, even when there is room: bars say more. */
const maxLabel = 60

/**
 * Spans as text, one block per trace, in the order in which they come: a header, a ruler, a row per span (tree, bar
 * to scale, range, duration), and what was slow, idle and failed. Pure; without a newline at its end. Everything
 * that came from outside is made harmless to a terminal. Throws a TypeError for what is no list, and for wrong options.
 */
export function waterfall(spans: readonly Span[], options: WaterfallOptions = {}): string {
  checkSpans('waterfall', spans)
  const { width = defaultWidth, color = false } = validated('waterfall()', shape, options)
  const columns = width >= 1 ? Math.floor(width) : defaultWidth
  const traces = new Map<string, Span[]>()
  for (const span of spans) {
    const trace = traces.get(span.traceId)
    if (trace) trace.push(span)
    else traces.set(span.traceId, [span])
  }
  const blocks = [...traces.values()].map((trace) => block(trace, columns))
  return blocks.map((lines) => lines.map((pieces) => paint(pieces, color)).join('\n')).join('\n\n')
}

function block(spans: readonly Span[], width: number): Piece[][] {
  const tree = treeOf(spans)
  const path = criticalPath(tree)
  const culprit = tree.rows.length > 1 ? culpritOf(path) : undefined
  const rows = tree.rows.map((node) => rowOf(node, tree, width < narrow ? ' ' : '  '))
  const layout = layoutOf(width, {
    labels: Math.min(maxLabel, longest(rows.map((row) => widthOf(row.label, maxLabel)))),
    ranges: longest(rows.map((row) => widthOfText(row.range))),
    durations: longest(rows.map((row) => widthOfText(row.duration))) + 2,
  })
  return [
    ...header(spans, tree, width),
    [],
    ...(layout.bars > 0 ? rulerLines(tree, layout) : []),
    ...rows.flatMap((row) => [line(row, tree, path, layout, row.node === culprit), ...noteLines(row, width)]),
    ...ending(tree, path, culprit, width),
  ].map((pieces) => clip(pieces, width))
}

function header(spans: readonly Span[], tree: Tree, width: number): Piece[][] {
  const services = new Set(spans.map((span) => span.serviceName)).size
  const errors = spans.filter(isError).length
  const facts = [
    piece(`trace ${spans[0]?.traceId ?? ''}`, 'bold'),
    piece(duration(tree.total), 'bold'),
    piece(count(spans.length, 'span')),
    piece(count(services, 'service')),
    piece(errors > 0 ? count(errors, 'error') : 'no errors', errors > 0 ? 'error' : 'plain'),
  ]
  const lines: Piece[][] = []
  for (const fact of facts) {
    const last = lines.at(-1)
    if (last && widthOf(last) + 3 + widthOfText(fact.text) <= width) last.push(piece(' · ', 'dim'), fact)
    else lines.push([fact])
  }
  return lines
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`
}

function rowOf(node: Node, tree: Tree, step: string): Row {
  const indent = indentOf(node, step)
  const mark = isError(node.span) ? [piece('✗ ', 'error')] : []
  const unit = unitOf(tree.total)
  const [start, end] = [node.start, node.end].map((time) => inUnit(time, unit, tree.total))
  const range = start === end ? `${start}` : `${start}–${end}`
  const measured = Number(node.span.endTimeUnixNano - node.span.startTimeUnixNano)
  const isTimed = node.span.startTimeUnixNano !== 0n && node.span.endTimeUnixNano !== 0n
  return {
    node,
    indent,
    label: [piece(indent), ...mark, ...label(node)],
    range: `${range}${tree.total > 0 ? unit.name : 'ms'}`,
    duration: isTimed ? duration(measured) : '?',
    notes: notesOf(node, tree),
  }
}

function indentOf({ depth }: Node, step: string): string {
  return depth <= maxIndent ? step.repeat(depth) : `${step.repeat(maxIndent)}+${depth - maxIndent} `
}

function rulerLines(tree: Tree, layout: Layout): Piece[][] {
  const margin = piece(' '.repeat(layout.labels + gap))
  return ruler(tree.total, layout.bars).map((text) => [margin, piece(text, 'dim')])
}

function line(row: Row, tree: Tree, path: CriticalPath, layout: Layout, isCulprit: boolean): Piece[] {
  const { node } = row
  const style: Style = isError(node.span) ? 'error' : 'plain'
  const scale = { total: tree.total, columns: layout.bars, style }
  const between = piece(' '.repeat(gap))
  return [
    ...fit(row.label, layout.labels),
    ...(layout.bars > 0 ? [between, ...fit(bar(node, path.own.get(node), scale), layout.bars)] : []),
    ...(layout.ranges > 0 ? [between, piece(row.range.padStart(layout.ranges), 'dim')] : []),
    ...(layout.durations > 0 ? [between, piece(row.duration.padStart(layout.durations - 2), 'bold')] : []),
    ...(isCulprit ? [piece(' ◄', 'critical')] : []),
  ]
}

function noteLines({ indent, notes }: Row, width: number): Piece[][] {
  const margin = ' '.repeat(indent.length + 4).slice(0, Math.floor(Math.min(width, 1000) / 3))
  return notes.flatMap(({ text, style }) =>
    wrap(text, width - margin.length, maxNoteLines).map((part) => [piece(margin), piece(part, style)]),
  )
}

/** The lines below the rows: what was slow, when nothing ran, where it went wrong. */
function ending(tree: Tree, path: CriticalPath, culprit: Node | undefined, width: number): Piece[][] {
  const said = [slowest(tree, path, culprit), idle(tree, path), origin(tree)].filter(
    (line) => line !== undefined,
  )
  const lines = said.flatMap(({ text, style }) =>
    wrap(text, width, maxNoteLines).map((part) => [piece(part, style)]),
  )
  return lines.length > 0 ? [[], ...lines] : []
}

function slowest(tree: Tree, path: CriticalPath, culprit: Node | undefined): Piece | undefined {
  if (!culprit) return undefined
  const time = sum(path.own.get(culprit))
  const own = time < culprit.end - culprit.start ? ' of its own' : ''
  return piece(`slowest: ${nameOf(culprit)} ${duration(time)}${own} (${share(time, tree.total)})`, 'critical')
}

function idle(tree: Tree, path: CriticalPath): Piece | undefined {
  if (path.idle === 0) return undefined
  return piece(`idle: ${duration(path.idle)} in no span (${share(path.idle, tree.total)})`, 'dim')
}

/** Errors travel up: the deepest one is where they come from, and of several the one that ended first. */
function origin(tree: Tree): Piece | undefined {
  const errors = tree.rows.filter((row) => isError(row.span))
  const [first] = errors.toSorted((a, b) => b.depth - a.depth || a.end - b.end)
  if (!first) return undefined
  const what = errors.length > 1 ? `origin of ${errors.length} errors` : 'error'
  return piece(`${what}: ${nameOf(first)}: ${errorOf(first.span)}`, 'error')
}

/** The span with the most time of its own on the critical path. */
function culpritOf(path: CriticalPath): Node | undefined {
  const [first] = [...path.own].toSorted(([, a], [, b]) => sum(b) - sum(a))
  return first && sum(first[1]) > 0 ? first[0] : undefined
}

function nameOf(node: Node): string {
  return fullLabel(node)
    .map((part) => part.text)
    .join('')
}

function isError(span: Span): boolean {
  return span.status.code === 'error'
}

function sum(stretches: readonly Stretch[] = []): number {
  return stretches.reduce((time, { from, to }) => time + to - from, 0)
}

function share(part: number, total: number): string {
  const percent = (part / total) * 100
  return percent > 0 && percent < 1 ? '< 1 %' : `${Math.round(percent)} %`
}

function longest(widths: readonly number[]): number {
  return widths.reduce((most, width) => Math.max(most, width), 0)
}
