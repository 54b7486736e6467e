import type { HttpRequest } from './request.ts'

/**
 * What undici publishes of each attempt on the wire, redirects and retries each by itself. The copy inside Node and the
 * one from npm publish on the same channels. `create` is published while the headers can still be changed, inside the
 * call that the app makes, except on a pool that is busy.
 */
export interface PublishedRequest extends HttpRequest {
  /** Name, value, name, value. */
  headers: (string | string[])[]
  addHeader(name: string, value: string): void
}

export function headerOf({ headers }: PublishedRequest, name: string): string | undefined {
  for (let index = 0; index < headers.length; index += 2) {
    if (String(headers[index]).toLowerCase() === name) return String(headers[index + 1])
  }
  return undefined
}

/**
 * There is one trace context on the wire: what the app or another tracer has set gives way, and what a tracer adds that
 * listens after us is not taken.
 */
export function setHeaders(request: PublishedRequest, ours: Readonly<Record<string, string>>): void {
  const { headers, addHeader } = request
  const isOurs = (name: unknown) => Object.hasOwn(ours, String(name).toLowerCase())
  for (let index = headers.length - 2; index >= 0; index -= 2) {
    if (isOurs(headers[index])) headers.splice(index, 2)
  }
  for (const [name, value] of Object.entries(ours)) request.addHeader(name, value)
  request.addHeader = function (name, value) {
    if (!isOurs(name)) addHeader.call(this, name, value)
  }
}
