import { reportOnce } from '@throughline/core'
import { headerValue, type HeaderChanges, type HeaderReader } from '@throughline/core/http-client'
import { ClientRequest, validateHeaderName, validateHeaderValue } from 'node:http'
import { hide } from './hidden.ts'

/** Answers what is to be changed in the headers that can be read there. */
type Complete = <From>(from: From, read: HeaderReader<From>) => HeaderChanges

/** What Node keeps of the headers of a request from when they are written as text until that is handed to the socket. */
interface Written {
  _header: string | null
  _headerSent: boolean
  readonly outputData: { data: unknown }[]
  outputSize: number
  _implicitHeader(): void
}

const LINE = '\r\n'

/** Node's own. Another one is of a copy of ours, of which each file of jest's tests has its own: it has headers in the text. */
const WRITE_HEADER = (ClientRequest.prototype as unknown as Written)._implicitHeader

/**
 * Changes the headers that a request sends, when they are complete. Mostly that is when its first byte is to be sent, so
 * that the app may set any before. Those given as an array, those of a request that expects `100-continue` and those of one
 * that has ended already are complete when it is made: they are text then, which no socket has taken yet.
 *
 * What the app has set is left to it: what is written into the text is not among the headers that it asks for, nor among
 * those that it copies to another request.
 */
export function changeHeaders(request: ClientRequest, complete: Complete): void {
  const written = request as unknown as Written
  if (written._header) rewrite(written, complete(linesOf(written._header), valueIn))
  // Also of those: an agent that leads to a proxy by the whole URL writes them anew.
  const writeHeader = written._implicitHeader
  hide(written, '_implicitHeader', function _implicitHeader(this: Written): void {
    let changes: HeaderChanges = {}
    guardedly(() => {
      changes = complete(request, headerOf)
      if (!request.hasHeader('expect')) return
      // Such a header may be with the socket as soon as it is text.
      setHeaders(request, changes)
      changes = {}
    })
    writeHeader.call(this)
    guardedly(() => {
      const isNew =
        writeHeader === WRITE_HEADER && Object.keys(changes).every((name) => !request.hasHeader(name))
      if (isNew) append(this, changes)
      else rewrite(this, changes)
    })
  })
}

function guardedly(change: () => void): void {
  try {
    change()
  } catch (error) {
    reportOnce('http:headers', 'error', 'a request could not be given its trace context', error)
  }
}

function headerOf(request: ClientRequest, name: string): unknown {
  return request.getHeader(name)
}

function setHeaders(request: ClientRequest, changes: HeaderChanges): void {
  // Not `in`, here and below: an app may have put something into Object.prototype.
  for (const name of Object.keys(changes)) {
    const value = changes[name]
    if (value === undefined) request.removeHeader(name)
    else request.setHeader(name, value)
  }
}

/** For headers of which the request has none: nothing needs to be looked for in its text. */
function append(written: Written, changes: HeaderChanges): void {
  const header = written._header
  if (!header) return
  written._header = header.slice(0, -LINE.length) + linesFor(changes).join('') + LINE
}

function rewrite(written: Written, changes: HeaderChanges): void {
  const before = written._header
  const names = Object.keys(changes)
  if (!before || names.length === 0) return
  const kept = linesOf(before).filter((line) => !names.some((name) => isNamed(line, name)))
  const after = [...kept.map((line) => line + LINE), ...linesFor(changes), LINE].join('')
  if (written._headerSent) {
    const chunk = written.outputData.find(({ data }) => typeof data === 'string' && data.startsWith(before))
    // It is on its way, in a Node that does otherwise than those we know.
    if (chunk === undefined) return
    chunk.data = after + (chunk.data as string).slice(before.length)
    written.outputSize += after.length - before.length
  }
  written._header = after
}

/** The request line is the first, and has no name. */
function linesOf(header: string): string[] {
  return header.slice(0, -2 * LINE.length).split(LINE)
}

function linesFor(changes: HeaderChanges): string[] {
  const lines: string[] = []
  for (const name of Object.keys(changes)) {
    const value = changes[name]
    if (value === undefined) continue
    validateHeaderName(name)
    validateHeaderValue(name, value)
    lines.push(`${name}: ${value}${LINE}`)
  }
  return lines
}

function valueIn(lines: readonly string[], name: string): unknown {
  return headerValue(
    lines.filter((line) => isNamed(line, name)).map((line) => line.slice(name.length + 1).trim()),
  )
}

function isNamed(line: string, name: string): boolean {
  return line.charAt(name.length) === ':' && line.slice(0, name.length).toLowerCase() === name
}
