import { duration } from './duration.ts'
import { errorOf } from './label.ts'
import type { SpanLink } from './span.ts'
import { harmless } from './text.ts'
import type { Style } from './text.ts'
import type { Node, Tree } from './tree.ts'

/** Something about a span that its bar cannot say; it stands below its row. */
export type Note = { text: string; style: Style }

/** Clocks of two processes are never set alike to the last bit; from here on, in nanoseconds, it is said. */
const skewWorthSaying = 1e6

/** A batch may link hundreds of messages. */
const maxLinks = 3

/** What is to be said about a span: its error, what is odd about its place and its times, and its links. */
export function notesOf(node: Node, tree: Tree): Note[] {
  const { span } = node
  const said: (Note | false)[] = [
    span.status.code === 'error' && { text: `✗ ${errorOf(span)}`, style: 'error' },
    node.isOrphan && note(`its parent ${span.parentSpanId} never arrived`),
    node.wasCycle && note('its parents lead back to itself'),
    node.isDuplicate && note(`its id ${span.spanId} is there more than once`),
    timeNote(node),
    skewNote(node),
  ]
  return [...said.filter((item) => item !== false), ...linkNotes(node, tree)]
}

function note(text: string): Note {
  return { text: `! ${text}`, style: 'dim' }
}

function timeNote({ span }: Node): Note | false {
  const { startTimeUnixNano: start, endTimeUnixNano: end } = span
  if (start === 0n && end === 0n) return note('it came without times')
  if (start === 0n) return note('it came without a start')
  if (end === 0n) return note('it came without an end')
  return end < start && note(`it ends ${duration(Number(start - end))} before it starts`)
}

/** Shown as measured, never moved into place: nobody knows which of the two clocks is right. */
function skewNote({ start, parent }: Node): Note | false {
  const ahead = parent ? parent.start - start : 0
  return ahead >= skewWorthSaying && note(`it starts ${duration(ahead)} before its parent (clock skew?)`)
}

function linkNotes({ span }: Node, tree: Tree): Note[] {
  const shown = span.links.slice(0, maxLinks).map((link) => linkNote(link, span.traceId, tree))
  const more = span.links.length - shown.length
  return more > 0
    ? [...shown, { text: `↗ and ${more} more ${more === 1 ? 'link' : 'links'}`, style: 'dim' }]
    : shown
}

function linkNote(link: SpanLink, traceId: string, tree: Tree): Note {
  if (link.traceId !== traceId) {
    return { text: `↗ links to span ${link.spanId} of trace ${link.traceId}`, style: 'dim' }
  }
  const target = tree.byId.get(link.spanId)?.[0]
  const name = target ? `[${harmless(target.span.serviceName)}] ${harmless(target.span.name)}` : link.spanId
  return { text: `↗ links to ${target ? name : `span ${name}, which is not here`}`, style: 'dim' }
}
