import type { Node, Tree } from './tree.ts'

/** A stretch of time, in nanoseconds since the start of the trace. */
export type Stretch = { from: number; to: number }

export type CriticalPath = {
  /** For each span on the path, the stretches that nothing but its own work accounts for; they never overlap. */
  own: Map<Node, Stretch[]>
  /** Nanoseconds of the trace in which no span at all was running. */
  idle: number
}

/** A node and the part of its time in which the end of the trace waited for it; no node is the trace itself. */
type Visit = { node: Node | undefined; children: readonly Node[]; from: number; to: number }

/**
 * What the end of the trace waited for. Going back in time from the end of a span: the child that ended last is
 * what it waited for, before that child's start the one that had ended last by then, and so on; what is left
 * between them is the span's own time. A child that mostly ran beside a later one was not waited for.
 */
export function criticalPath(tree: Tree): CriticalPath {
  const own = new Map<Node, Stretch[]>()
  const top = tree.rows.filter((node) => !node.parent || isDetached(node))
  const visits: Visit[] = [{ node: undefined, children: top, from: 0, to: tree.total }]

  for (let visit = visits.pop(); visit; visit = visits.pop()) {
    const { node, children, from, to } = visit
    const stretches: Stretch[] = []
    let cursor = to
    for (const child of children.toSorted((a, b) => b.end - a.end)) {
      const start = Math.max(child.start, from)
      const end = Math.min(child.end, cursor)
      const isBeside = end < child.end && (end - start) * 2 < child.end - child.start
      if (end <= start || isBeside) continue
      if (end < cursor) stretches.push({ from: end, to: cursor })
      const attached = child.children.filter((grandchild) => !isDetached(grandchild))
      visits.push({ node: child, children: attached, from: start, to: end })
      cursor = start
    }
    if (from < cursor) stretches.push({ from, to: cursor })
    if (node) own.set(node, stretches)
  }
  return { own, idle: idle(tree) }
}

/** It ran mostly when its parent did not (a consumer of a message, a skewed clock): its parent did not wait. */
function isDetached(node: Node): boolean {
  if (!node.parent) return false
  const shared = Math.min(node.end, node.parent.end) - Math.max(node.start, node.parent.start)
  return shared * 2 < node.end - node.start
}

function idle(tree: Tree): number {
  let sum = 0
  let covered = 0
  for (const node of tree.rows.toSorted((a, b) => a.start - b.start)) {
    sum += Math.max(0, node.start - covered)
    covered = Math.max(covered, node.end)
  }
  return sum
}
