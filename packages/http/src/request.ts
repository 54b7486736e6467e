import { isError, reportOnce } from '@throughline/core'
import type { HttpAttempt, HttpClient, HttpResponse } from '@throughline/core/http-client'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { Destination } from './destination.ts'
import { changeHeaders } from './headers.ts'
import { hide } from './hidden.ts'

/** With what Node has of it beside what its types tell. */
type Request = ClientRequest & { socketPath?: string; res?: Response | null }
type Response = IncomingMessage & { upgrade?: boolean }

/** What `request.setTimeout(ms, () => request.destroy())` means: Node leaves it to the app to end what takes too long. */
const TIMED_OUT = Object.assign(new Error('the request timed out'), { code: 'ETIMEDOUT' })

type Emit = (this: Request, name: string | symbol, ...given: unknown[]) => boolean

/** Traces a request that has been made just now, of which nothing is sent yet. */
export function traceRequest(request: ClientRequest, tracer: HttpClient): void {
  // A CONNECT only opens a tunnel, mostly for an agent; the request goes through it.
  if (request.method === 'CONNECT') return
  const destination = new Destination(request)
  const opened = tracer.open(destination)
  // First, so that the span ends also where the headers cannot be changed.
  if (opened.isTraced && opened.isOpen) watch(request as Request, opened)
  changeHeaders(request, (from, read) => tracer.complete(opened, destination, from, read))
}

/**
 * Follows a request through its events without adding listeners, which the app would see and which would change what Node does:
 * it discards a response that nobody listens for, and throws an unhandled error.
 */
function watch(request: Request, attempt: HttpAttempt): void {
  const emitBefore = request.emit as Emit
  const destroyBefore = request.destroy
  let isTimingOut = false

  hide(request, 'emit', function emit(this: Request, name: string | symbol, ...given: unknown[]): boolean {
    notice(request, attempt, name, given[0])
    if (name !== 'timeout') return emitBefore.call(this, name, ...given)
    isTimingOut = true
    try {
      return emitBefore.call(this, name, ...given)
    } finally {
      isTimingOut = false
    }
  } as Request['emit'])

  // Node reports a connection closed by the server and one closed by the app alike: this is where the app does it.
  hide(request, 'destroy', function destroy(this: Request, error?: Error): Request {
    if (!this.destroyed) notice(request, attempt, 'destroy', error ?? (isTimingOut ? TIMED_OUT : undefined))
    return destroyBefore.call(this, error) as Request
  })
}

function notice(request: Request, attempt: HttpAttempt, event: string | symbol, given: unknown): void {
  try {
    switch (event) {
      case 'response':
        answered(request, attempt, given as Response)
        onLastByte(given as Response, attempt)
        break
      case 'upgrade':
        answered(request, attempt, given as Response)
        attempt.completed()
        break
      case 'drain':
      case 'finish':
        // Node remembers an address that was asked for, also of a connection that has failed.
        void request.socket?.remoteAddress
        break
      case 'error':
      case 'destroy':
        tellPeer(request, attempt)
        // Without an error, the app has aborted it.
        attempt.failed(reasonOf(given))
        break
      case 'close':
        if (attempt.isOpen) closed(request, attempt)
        break
      default:
    }
  } catch (error) {
    reportOnce('http:notice', 'error', 'the end of a request could not be recorded', error)
  }
}

function answered(request: Request, attempt: HttpAttempt, response: Response): void {
  tellPeer(request, attempt)
  attempt.answered(response.statusCode ?? 0, response.httpVersion, response, headersOf)
}

function tellPeer({ socketPath, socket }: Request, attempt: HttpAttempt): void {
  if (!attempt.isOpen) return
  if (socketPath) attempt.connected(socketPath, undefined)
  // There is no socket as long as an agent has none to give.
  else if (socket?.remoteAddress !== undefined) attempt.connected(socket.remoteAddress, socket.remotePort)
}

/** The last byte has come when Node tells the response that there is no more, whether the app has read it or not. */
function onLastByte(response: Response, attempt: HttpAttempt): void {
  const pushBefore = response.push
  hide(response, 'push', function push(this: Response, chunk: unknown, encoding?: BufferEncoding): boolean {
    if (chunk !== null) attempt.dataCame()
    else {
      try {
        attempt.completed()
      } catch (error) {
        reportOnce('http:notice', 'error', 'the end of a request could not be recorded', error)
      }
    }
    return pushBefore.call(this, chunk, encoding)
  })
}

/** Nothing more comes. */
function closed(request: Request, attempt: HttpAttempt): void {
  const { res: response } = request
  if (response?.upgrade === true) {
    // Nobody listens for that, so Node has closed the connection, and says no more of it.
    answered(request, attempt, response)
    attempt.completed()
  } else attempt.failed(reasonOf(response?.errored))
}

/** What a signal was aborted with tells a timeout from the will of the caller. */
function reasonOf(error: unknown): unknown {
  if (!isError(error) || error.name !== 'AbortError') return error
  return isError(error.cause) && error.cause.name === 'TimeoutError' ? error.cause : error
}

function headersOf(response: IncomingMessage): HttpResponse['headers'] {
  return response.headers
}
