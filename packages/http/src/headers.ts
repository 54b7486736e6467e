import { reportOnce } from '@throughline/core'
import type { HeaderChanges, HeaderReader } from '@throughline/core/http-client'
import { validateHeaderName, validateHeaderValue, type ClientRequest } from 'node:http'
import { hide } from './hidden.ts'

/** Answers what is to be changed in the headers that can be read there. */
export type Complete = <From>(from: From, read: HeaderReader<From>) => HeaderChanges

/** What Node keeps of the headers of a request from when they are written as text until that is handed to the socket. */
interface Written {
  _header: string | null
  _headerSent: boolean
  readonly outputData: { data: unknown }[]
  outputSize: number
  _implicitHeader(): void
}

const LINE = '\r\n'

/**
 * Changes the headers of a request when they are complete. Mostly that is when its first byte is to be sent, so that the
 * app may set any before. Those given as an array, those of a request that expects `100-continue` and those of one that
 * has ended already are complete when it is made: they are text then, which no socket has taken yet.
 */
export function changeHeaders(request: ClientRequest, complete: Complete): void {
  const written = request as unknown as Written
  if (written._header) {
    rewrite(written, complete)
    return
  }
  const writeHeader = written._implicitHeader
  hide(written, '_implicitHeader', function _implicitHeader(this: Written): void {
    try {
      setHeaders(request, complete(request, headerOf))
    } catch (error) {
      reportOnce('http:headers', 'error', 'a request could not be given its trace context', error)
    }
    writeHeader.call(this)
  })
}

function headerOf(request: ClientRequest, name: string): unknown {
  return request.getHeader(name)
}

function setHeaders(request: ClientRequest, changes: HeaderChanges): void {
  for (const name in changes) {
    const value = changes[name]
    if (value === undefined) request.removeHeader(name)
    else request.setHeader(name, value)
  }
}

function rewrite(written: Written, complete: Complete): void {
  const before = written._header as string
  const [requestLine = '', ...lines] = before.slice(0, -2 * LINE.length).split(LINE)
  const changes = complete(lines, valueIn)
  const names = Object.keys(changes)
  if (names.length === 0) return
  const kept = lines.filter((line) => !names.some((name) => isNamed(line, name)))
  for (const name of names) {
    const value = changes[name]
    if (value === undefined) continue
    validateHeaderName(name)
    validateHeaderValue(name, value)
    kept.push(`${name}: ${value}`)
  }
  const after = [requestLine, ...kept, '', ''].join(LINE)
  if (written._headerSent) {
    const chunk = written.outputData.find(({ data }) => typeof data === 'string' && data.startsWith(before))
    // It is on its way, in a Node that does otherwise than those we know.
    if (chunk === undefined) return
    chunk.data = after + (chunk.data as string).slice(before.length)
    written.outputSize += after.length - before.length
  }
  written._header = after
}

function valueIn(lines: readonly string[], name: string): string | undefined {
  return lines
    .find((line) => isNamed(line, name))
    ?.slice(name.length + 1)
    .trim()
}

function isNamed(line: string, name: string): boolean {
  return line.charAt(name.length) === ':' && line.slice(0, name.length).toLowerCase() === name
}
