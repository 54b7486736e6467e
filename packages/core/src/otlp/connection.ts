import { connect, isIP, type Socket } from 'node:net'
import { clearImmediate, clearTimeout, setImmediate, setTimeout } from 'node:timers'
import type * as Tls from 'node:tls'
import { isHeader, MOST_TIMER_MS } from '../environment.ts'
import { ResponseReader, type NoHttpError } from './response.ts'

/**
 * Why there was no answer: no connection could be made; it broke; it was idle and had been closed; Node's `--permission` forbids
 * it; its certificate is not trusted, it does not take ours, or it speaks no TLS; or the answer was not valid HTTP. A retry would
 * not help with the last three.
 */
type Cause = 'absent' | 'dropped' | 'stale' | 'denied' | 'untrusted' | 'unread'

export type Answer =
  | {
      status: number
      retryAfter: string | undefined
      contentType: string | undefined
      encodings: readonly string[]
      body: Buffer
    }
  | { failure: Error; cause: Cause }

/** The body of a request. */
export interface Body {
  readonly bytes: Uint8Array
  /** Whether a connection may still read it: one that gave up, or was answered before it had sent all. */
  isHeld: boolean
}

/** In PEM: who is trusted in place of the well-known authorities, and who we are. */
export interface Credentials {
  readonly ca?: string | Buffer | undefined
  readonly key?: string | Buffer | undefined
  readonly cert?: string | Buffer | undefined
}

/** Posts to one URL, over one connection that is kept while it lasts. */
export interface Connection {
  /**
   * @param deadline by `performance.now()`; Infinity for none
   * @returns rejects with a TypeError for a header that cannot be sent
   */
  post(body: Body, deadline: number, late?: AbortSignal): Promise<Answer>
  /** Ends what is on its way. */
  close(): void
}

export type Headers = Readonly<Record<string, string | number>>

/** OTLP/HTTP, retryable responses. */
export const RETRYABLE = new Set([429, 502, 503, 504])
/** OTLP/HTTP: of a larger response nothing is read. */
const MOST_RESPONSE_BYTES = 4 * 2 ** 20
/** How long a connection may be silent before the system asks whether anybody is there. */
const PROBE_MS = 1000

const GIVEN_UP = 'the export was given up'

/** A socket, and the request on it. */
interface Line {
  readonly socket: Socket
  /** Whether it has brought an answer before. */
  isUsed: boolean
  /** Receives incoming data; undefined while there is no request. */
  heard: ((chunk: Buffer) => void) | undefined
  /** Called at the end of the connection. */
  broke: ((error: Error | undefined) => void) | undefined
}

/**
 * Speaks HTTP/1.1 by itself. Node's client shares its code with Node's server, and where both are at work V8 can compile it for
 * neither alone: for a busy server that is 0.5 to 1 µs a request more, and the post itself takes 150 µs longer.
 */
export function connectionTo(url: URL, headers: Headers, credentials?: Credentials): Connection {
  const isSecure = url.protocol === 'https:'
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  const name = serverNameIn(headers) ?? host
  const port = url.port === '' ? (isSecure ? 443 : 80) : Number(url.port)
  const where = { host, port, noDelay: true }
  const lines = new Set<Line>()
  // Without TLS this saves 6 MB of memory.
  let tls: typeof Tls | undefined
  let idle: Line | undefined
  // The session that spares the next connection most of its handshake.
  let session: Buffer | undefined
  // The head of all requests, without its end: building it for each would cost 15 µs.
  let head: string | undefined

  function open(): Line {
    const socket =
      tls !== undefined
        ? tls.connect({
            ...credentials,
            ...where,
            ALPNProtocols: ['http/1.1'],
            ...(isIP(name) === 0 && { servername: name }),
            ...(session && { session }),
          })
        : connect(where)
    socket.setKeepAlive(true, PROBE_MS)
    // No process lives for its spans' sake. A second address of the host is tried with a handle that knows nothing of that.
    socket.unref()
    socket.once('connect', () => socket.unref())
    socket.on('session', (latest) => (session = latest))
    const line: Line = { socket, isUsed: false, heard: undefined, broke: undefined }
    lines.add(line)
    let failure: Error | undefined
    socket.on('data', (chunk) => {
      // A server that sends data unasked is out of step.
      if (line.heard === undefined) socket.destroy()
      else line.heard(chunk)
    })
    // TLS reports why it refused before the connection ends.
    socket.on('end', () => line.broke?.(failure))
    socket.on('error', (error) => {
      failure = error
      session = undefined
    })
    socket.on('close', () => {
      lines.delete(line)
      if (idle === line) idle = undefined
      line.broke?.(failure)
    })
    return line
  }

  async function post(body: Body, deadline: number, late?: AbortSignal): Promise<Answer> {
    head ??= headOf(url, headers)
    // Some collectors refuse chunked bodies.
    const wholeHead = `${head}Content-Length: ${body.bytes.length}\r\n\r\n`
    if (isSecure) tls ??= await import('node:tls')
    return new Promise((resolve) => {
      if (late?.aborted === true) {
        resolve({ failure: new Error(GIVEN_UP), cause: 'dropped' })
        return
      }
      const line = idle ?? open()
      idle = undefined
      const { socket, isUsed } = line
      const reader = new ResponseReader(MOST_RESPONSE_BYTES)
      let isSent = false
      let isSettled = false

      function settle(answer: Answer): void {
        isSettled = true
        line.heard = undefined
        line.broke = undefined
        late?.removeEventListener('abort', abort)
        if (!isSent) body.isHeld = true
        resolve(answer)
      }

      function stopTimer(): void {
        clearTimeout(timer)
        clearImmediate(lastLook)
      }

      /** Keeps the connection for the next request, or closes it. */
      function release(): void {
        stopTimer()
        if (socket.destroyed || !reader.isComplete || !reader.isLasting || idle !== undefined)
          socket.destroy()
        else {
          line.isUsed = true
          idle = line
        }
      }

      function answered(): void {
        const { status, retryAfter, contentType, encodings, isTooLong } = reader
        if (isTooLong) fail(new Error(`is over ${MOST_RESPONSE_BYTES} bytes`), 'unread')
        else settle({ status, retryAfter, contentType, encodings, body: reader.body })
      }

      function fail(failure: Error, cause: Cause): void {
        stopTimer()
        socket.destroy()
        // The status is the answer. A body cut short after it is no reason to send again.
        if (reader.status > 0 && !reader.isTooLong) answered()
        else settle({ failure, cause })
      }

      function sent(error?: Error | null): void {
        isSent = !error
        // It was answered before.
        if (isSettled) release()
      }

      const heard: Line['heard'] = (chunk) => {
        try {
          reader.read(chunk)
        } catch (error) {
          fail(error as NoHttpError, 'unread')
          return
        }
        // Of a response that asks for a retry the head is all that is needed, and may be all that ever comes.
        if (!reader.isComplete && !RETRYABLE.has(reader.status)) return
        answered()
        // What is not sent yet must still arrive.
        if (isSent) release()
      }
      const broke: Line['broke'] = (error) => {
        const failure = error ?? new Error('the connection was closed before an answer came')
        fail(failure, causeOf(failure, socket, isUsed && reader.isEmpty))
      }
      line.heard = heard
      line.broke = broke
      const timedOut = () =>
        isSettled ? socket.destroy() : fail(new Error('the export timed out'), 'dropped')
      const abort = () => fail(new Error(GIVEN_UP), 'dropped')
      late?.addEventListener('abort', abort)
      let timer: NodeJS.Timeout | undefined
      let lastLook: NodeJS.Immediate | undefined
      if (deadline !== Infinity) {
        const left = Math.min(Math.max(1, deadline - performance.now()), MOST_TIMER_MS)
        // Where the app has held up the loop for so long, the answer is there, and is read between timers and immediates.
        timer = setTimeout(() => (lastLook = setImmediate(timedOut)), left).unref()
      }

      // In one piece where it fits.
      socket.cork()
      socket.write(wholeHead, 'latin1')
      socket.write(body.bytes, sent)
      socket.uncork()
    })
  }

  function close(): void {
    for (const { socket } of lines) socket.destroy()
  }

  return { post, close }
}

function causeOf(error: NodeJS.ErrnoException, socket: Socket, isUnanswered: boolean): Cause {
  const { code, syscall } = error
  if (code === 'ERR_ACCESS_DENIED') return 'denied'
  // A host with several addresses fails with one error that holds theirs, and says no more itself.
  if (error instanceof AggregateError || syscall === 'connect' || syscall === 'getaddrinfo') return 'absent'
  // An untrusted certificate will still be untrusted at the next try, and a port of http one of http.
  if ((socket as Partial<Tls.TLSSocket>).authorizationError || isNoTls(error) || REFUSAL.test(error.message))
    return 'untrusted'
  return isUnanswered ? 'stale' : 'dropped'
}

/** What the other end does not take, it says by an alert; one of trouble of its own is 80 (RFC 8446, 6.2). */
const REFUSAL = /SSL alert number (?!80\b)/

/** OpenSSL's code for an answer that is not TLS; its text is "wrong version number", after a path in its source. */
const NO_TLS = 'ERR_SSL_WRONG_VERSION_NUMBER'

export function isNoTls({ code, message }: NodeJS.ErrnoException): boolean {
  return code === NO_TLS || message.includes(':wrong version number:')
}

/** A server reached by an address or a tunnel is checked under the name that the app has given. */
function serverNameIn(headers: Headers): string | undefined {
  const [, given] = Object.entries(headers).findLast(([name]) => name.toLowerCase() === 'host') ?? []
  if (given === undefined) return undefined
  return String(given)
    .replace(/:\d+$/, '')
    .replace(/^\[(.*)\]$/, '$1')
}

/** Of headers with the same name, in whichever case, the last one counts; how long the body is, is said behind them. */
function headOf(url: URL, headers: Headers): string {
  const fields = new Map<string, string>([['host', `Host: ${url.host}`]])
  if (url.username !== '' || url.password !== '')
    fields.set('authorization', `Authorization: Basic ${basic(url)}`)
  for (const [name, value] of Object.entries(headers)) {
    if (!isHeader(name, String(value))) throw new TypeError(`the header "${name}" cannot be sent`)
    fields.set(name.toLowerCase(), `${name}: ${value}`)
  }
  fields.delete('transfer-encoding')
  fields.delete('content-length')
  return `POST ${url.pathname}${url.search} HTTP/1.1\r\n${[...fields.values()].join('\r\n')}\r\n`
}

function basic({ username, password }: URL): string {
  return Buffer.from(`${decoded(username)}:${decoded(password)}`).toString('base64')
}

/** In characters. What is shorter is no key, and may be a word that a collector has for something else. */
const SHORTEST_SECRET = 8

/** What a request has in its headers and its URL that may be a secret, the longest first: a collector may repeat it. */
export function secretsOf(url: URL, headers: Headers): string[] {
  return [...Object.values(headers), basic(url), decoded(url.password), ...url.searchParams.values()]
    .map(String)
    .flatMap((value) => [value, ...value.split(' ')])
    .filter(({ length }) => length >= SHORTEST_SECRET)
    .toSorted((one, other) => other.length - one.length)
}

/** URLs take a percent sign that stands for itself as it is; bytes that are no UTF-8 stay as they were written. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text.replace(/%(?![\da-f]{2})/gi, '%25'))
  } catch {
    return text
  }
}
