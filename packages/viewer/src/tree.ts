import type { Span } from './span.ts'

/** A span in its place in the trace. Times are nanoseconds since the start of the trace, as numbers. */
export type Node = {
  span: Span
  parent: Node | undefined
  /** By start. */
  children: Node[]
  depth: number
  start: number
  /** Never before `start`, so that every span has a place on the ruler. */
  end: number
  /** It names a parent that is not among the spans. */
  isOrphan: boolean
  /** It was its own ancestor; it stands as a root now. */
  wasCycle: boolean
  /** Another span has the same id. */
  isDuplicate: boolean
}

export type Tree = {
  /** Every node, parents before children, siblings by start: the order in which they are shown. */
  rows: Node[]
  roots: Node[]
  /** The nodes of each span id, by start. */
  byId: Map<string, Node[]>
  /** Nanoseconds from the first start to the last end. */
  total: number
}

/**
 * The spans of one trace as a tree. Whatever the parent ids say, every span is in it exactly once: those whose
 * parent is missing are roots, and a circle is cut open before its earliest span.
 */
export function treeOf(spans: readonly Span[]): Tree {
  const origin = spans.reduce<bigint | undefined>(earlier, undefined) ?? 0n
  const nodes = spans.map((span) => nodeOf(span, origin)).toSorted(byStart)
  const byId = new Map<string, Node[]>()
  for (const node of nodes) {
    const same = byId.get(node.span.spanId)
    if (same) same.push(node)
    else byId.set(node.span.spanId, [node])
  }

  for (const node of nodes) {
    node.isDuplicate = (byId.get(node.span.spanId)?.length ?? 0) > 1
    node.parent = parentOf(node, byId)
    node.isOrphan = node.span.parentSpanId !== undefined && !node.parent
  }
  cutCycles(nodes)
  for (const node of nodes) node.parent?.children.push(node)

  const roots = nodes.filter((node) => !node.parent)
  const total = nodes.reduce((latest, node) => Math.max(latest, node.end), 0)
  return { rows: preorder(roots), roots, byId, total }
}

function earlier(earliest: bigint | undefined, span: Span): bigint | undefined {
  const time = span.startTimeUnixNano || span.endTimeUnixNano
  if (time === 0n) return earliest
  return earliest === undefined || time < earliest ? time : earliest
}

/** A span without a start stands where it ended; one without an end, where it started. */
function nodeOf(span: Span, origin: bigint): Node {
  const { startTimeUnixNano, endTimeUnixNano } = span
  const start = Number((startTimeUnixNano || endTimeUnixNano || origin) - origin)
  const end = Math.max(start, Number((endTimeUnixNano || startTimeUnixNano || origin) - origin))
  const unplaced = { parent: undefined, depth: 0, isOrphan: false, wasCycle: false, isDuplicate: false }
  return { span, start, end, children: [], ...unplaced }
}

/** The longer one first when two start together: it is the likelier to hold the other. */
function byStart(a: Node, b: Node): number {
  return a.start - b.start || b.end - a.end
}

/** Where an id is there twice (B3 lets client and server share one), the parent is the one of the same service. */
function parentOf(node: Node, byId: Map<string, Node[]>): Node | undefined {
  const { parentSpanId, serviceName } = node.span
  const candidates = parentSpanId === undefined ? [] : (byId.get(parentSpanId) ?? [])
  return candidates.find((candidate) => candidate.span.serviceName === serviceName) ?? candidates[0]
}

function cutCycles(nodes: readonly Node[]): void {
  const settled = new Set<Node>()
  for (const node of nodes) {
    const walked = new Set<Node>()
    let at: Node | undefined = node
    while (at && !settled.has(at) && !walked.has(at)) {
      walked.add(at)
      at = at.parent
    }
    // Nodes come by start, so the first that leads into a circle need not be on it: look for the earliest that is.
    if (at && walked.has(at)) cut(at)
    for (const done of walked) settled.add(done)
  }
}

function cut(onCycle: Node): void {
  let earliest = onCycle
  for (let at = onCycle.parent; at && at !== onCycle; at = at.parent) {
    if (byStart(at, earliest) < 0) earliest = at
  }
  earliest.parent = undefined
  earliest.wasCycle = true
}

function preorder(roots: readonly Node[]): Node[] {
  const rows: Node[] = []
  const stack = roots.toReversed()
  for (let node = stack.pop(); node; node = stack.pop()) {
    node.depth = node.parent ? node.parent.depth + 1 : 0
    rows.push(node)
    for (let i = node.children.length - 1; i >= 0; i--) stack.push(node.children[i] as Node)
  }
  return rows
}
