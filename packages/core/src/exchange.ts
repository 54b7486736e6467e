import {
  SpanKind,
  SpanStatusCode,
  type Attributes,
  type Context,
  type Link,
  type Span,
} from '@opentelemetry/api'
import type { EventEmitter } from 'node:events'
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { setImmediate } from 'node:timers'
import type { NamedWriter } from './attribute.ts'
import { now, type Ticks } from './clock.ts'
import { root, runIn, type RpcMetadata, type Scoped } from './context.ts'
import { errorType, isError, messageOf, showable } from './exception.ts'
import { captureHeaders, serverAttributes, spanName, targetOf, wantsOldNames } from './http.ts'
import type { RequestMeasurement } from './metrics.ts'
import { answeredAttributes, sayUnfit } from './options.ts'
import { reportOnce } from './report.ts'
import * as semconv from './semconv.ts'
import { putNamed, type InstrumentationScope } from './span.ts'
import { DeferredOptions } from './tracer.ts'

/** What the seam must know of a framework. `Carried` is what the adapter passes in with each request and gets back. */
export interface Framework<Subject, Given extends unknown[], Carried = Subject> {
  readonly scope: InstrumentationScope
  /** Whether it has middleware, which can have spans of their own. */
  readonly hasMiddleware?: true
  /** The argument of `ignore` and `inbound`. */
  subject(carried: Carried): Subject
  /** The arguments of `attributes` and `spanName`. */
  given(carried: Carried, response: ServerResponse): Given
  /** The pattern that the router matched, mount points included; asked when the response has closed. */
  route?(carried: Carried): string | undefined
  /** The same, if known when the span starts: samplers then see it, and `route` is not called. */
  routeAtStart?(carried: Carried): string | undefined
  /** Called when a request has its span, if its route will be wanted. */
  following?(carried: Carried): void
  /**
   * The SERVER span that somebody else's plugin has made for the request without leaving a trace of it in the context. The
   * plugin ends it once there is an answer; without one, we do.
   */
  madeSpan?(carried: Carried): Span | undefined
  /** How many 'finish' listeners it has on each response before any middleware is called. */
  readonly finishListeners?: number
}

/** How many 'finish' listeners Node's server has on each response. */
export const NODES_FINISH_LISTENERS = 1

/** How a request came; it decides how a complete answer is recognised. */
type Transport = 'HTTP/1' | 'HTTP/2' | 'made up'

const OK = 200

/** The first status that is a failure of the server's (semantic conventions, HTTP server). */
const FIRST_FAILURE = 500

/** `error.type` of a request whose client went away before the answer was complete. */
const ABORTED = 'aborted'

/** What is known at set-up. */
export interface Seam<Given extends unknown[], Carried> {
  readonly framework: Framework<unknown, Given, Carried>
  readonly trustProxy: boolean
  /** 'finish' listeners of Node and the framework on a response that comes from a server. */
  readonly finishListeners: number
  readonly requestHeaders: readonly string[]
  readonly responseHeaders: readonly string[]
  readonly moreAttributes: ((...given: Given) => Attributes | undefined) | undefined
  readonly nameOf: ((...given: Given) => string | undefined) | undefined
}

const writeRoute: NamedWriter = (into, route, status) => {
  into['http.route'] = route
  if (status !== undefined) into['http.response.status_code'] = status
}

const writeStatus: NamedWriter = (into, status) => {
  into['http.response.status_code'] = status
}

/**
 * One request from its headers to its close: the options of its SERVER span, and what ends it. One object instead of several
 * closures saves 1 µs a request.
 */
export class Exchange<Given extends unknown[], Carried> extends DeferredOptions implements Scoped {
  readonly kind = SpanKind.SERVER
  readonly seam: Seam<Given, Carried>
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly carried: Carried
  readonly method: string
  /** Undefined where the app asked to ignore the request. */
  span: Span | undefined = undefined
  /** Set only if it was known at the start. */
  route: string | undefined = undefined
  /** Metadata of the official HTTP instrumentation, if that made the span and will end it. */
  theirs: RpcMetadata | undefined = undefined
  /** Undefined while the app has no MeterProvider. */
  measurement: RequestMeasurement | undefined = undefined
  /** Where listeners of the request and of the response run. */
  requestScope: Context = root
  responseScope: Context = root
  hasEnded = false
  isComplete = false
  /** The app has ended its answer; never set over HTTP/2. */
  isAnswered = false
  /** It did so after the connection was destroyed: Node discards the answer. */
  isForNobody = false
  /** When all of the answer was sent, if known before the response closes. */
  endTicks: Ticks | undefined = undefined
  /** The answer's status, if the response does not know it. */
  status: number | undefined = undefined
  error: unknown = undefined
  errorTicks = 0
  /** What is to be called before the span ends. */
  ending: (() => void) | undefined = undefined

  private knownTransport: Transport | undefined = undefined
  /** The requests that wait for the end of the same connection, this one among them. */
  private waiting: Set<Ending> | undefined = undefined
  /** Of HTTP/2. */
  private session: Session | undefined = undefined
  /** Over HTTP/2: the client's body was read to its end before the stream closed. */
  private isRead = false

  constructor(
    seam: Seam<Given, Carried>,
    request: IncomingMessage,
    response: ServerResponse,
    carried: Carried,
    links?: Link[],
  ) {
    super(links)
    this.seam = seam
    this.request = request
    this.response = response
    this.carried = carried
    this.method = request.method ?? ''
    if (seam.requestHeaders.length > 0) this.mostAttributes += seam.requestHeaders.length
  }

  override build(): Attributes {
    const { request, route, seam } = this
    const attributes = serverAttributes(request, targetOf(request), seam.trustProxy, seam.requestHeaders)
    if (route !== undefined) attributes[semconv.HTTP_ROUTE] = route
    // Set here, right after the attributes have read the same properties (V8 still has them cached).
    this.knownTransport = transportOf(request)
    return attributes
  }

  override name(): string {
    return spanName(this.method, this.route)
  }

  get transport(): Transport {
    return (this.knownTransport ??= transportOf(this.request))
  }

  rescope(emitter: EventEmitter, scope: Context): void {
    if (emitter === this.request) this.requestScope = scope
    else this.responseScope = scope
  }

  /** Before the request's 'close' listeners: the body has been read, or the connection is gone. */
  requestClosed(): void {
    if (this.hasEnded) return
    try {
      const { request, response } = this
      if (this.transport === 'HTTP/1') this.waitForTurn()
      // A response to HEAD closes only if the app has ended it.
      else if (this.transport === 'HTTP/2' && request.method === 'HEAD' && !response.writableEnded) this.end()
    } catch (error) {
      // What is made up may be anything.
      reportOnce('request closed', 'error', 'the close of a request could not be heard', error)
    }
  }

  /** A response queued behind another on its connection is not told when the connection ends. */
  private waitForTurn(): void {
    const { request, response } = this
    // On Node 20 one that is destroyed and ended then has finished, too, with nothing sent.
    if (response.socket !== null || (response.writableFinished && !response.destroyed)) return
    if (request.socket.destroyed) this.end()
    else this.waiting ??= waitingOn(request.socket).add(this)
  }

  /** The app has ended its answer; the rest of it goes to the connection. */
  answered(): void {
    this.isAnswered = true
    this.isForNobody = this.response.socket?.destroyed === true
  }

  /** The connection has all of the answer; for a made-up response nothing more will follow. */
  handedOver(): void {
    if (this.hasEnded) return
    const { transport } = this
    // An HTTP/2 response emits 'finish' when it closes, whatever the cause.
    if (transport === 'HTTP/2') return
    const isMadeUp = transport === 'made up'
    this.isComplete = isMadeUp || (this.isAnswered && !this.isForNobody)
    if (isMadeUp) this.end()
  }

  /** Watches for the end of a request whose response closes silently or too late. */
  hear(): void {
    const { request, response, transport } = this
    if (transport === 'HTTP/2') this.hearStream()
    if (transport !== 'HTTP/1') return
    // Not by `response.socket`: at the end of a prototype chain that Express has changed, reading it costs 0.4 µs on Node 20.
    const { _httpMessage: ahead } = request.socket as Connection
    const isBehind = ahead !== undefined && ahead !== null && ahead !== (response as EventEmitter)
    if (isBehind) this.sendInOwnContext()
    // Middleware in front may hold requests back and release them with the body read, already answered, or after the client has
    // left.
    if (request.socket.destroyed) this.endSoon()
    else if (request.destroyed && response.closed) this.endSoon()
    // If a request behind it takes the connection away from Node's server, by CONNECT or Upgrade, it hears of no close at all.
    else if (request.destroyed || isBehind) this.waitForTurn()
  }

  /**
   * What a response has written while it waits behind another one on its connection is sent when that one has ended. Node does so
   * in the context of the other, and calls back there: `write`, and from version 24 on `end`, which is no listener any more.
   */
  private sendInOwnContext(): void {
    const { response } = this
    const { assignSocket } = response
    const value = (socket: Socket): void =>
      runIn(this.responseScope, () => Reflect.apply(assignSocket, response, [socket]))
    Object.defineProperty(response, 'assignSocket', { value, writable: true, configurable: true })
  }

  private hearStream(): void {
    const stream = this.streamOf()
    if (stream === undefined) return
    this.session = stream.session
    this.isRead = stream.readableEnded
    if (stream.closed) this.endSoon()
    // All of the app's answer is sent. The stream closes when the client has sent its whole body or cancels, maybe much later.
    stream.once('finish', () => {
      if (!isUnharmed(stream) || isFile(stream)) return
      this.isComplete = true
      this.endTicks = now()
    })
    // Node before 24 never closes one that the client resets for no error while it takes no more of the answer.
    stream
      .once('aborted', () => this.endSoon())
      .once('end', () => {
        if (stream.closed) this.endSoon()
        else this.isRead = true
      })
  }

  /** After every remaining listener has heard of it. */
  private endSoon(): void {
    setImmediate(() => this.end())
  }

  /** Ends the span, once. Called while the app's own events are emitted: it must not throw. */
  end(): void {
    if (this.hasEnded) return
    this.hasEnded = true
    this.waiting?.delete(this)
    const { span, theirs, seam, measurement } = this
    const isRecorded = span?.isRecording() === true
    try {
      if (theirs !== undefined) this.tellTheirs(theirs)
      try {
        this.ending?.()
        if (isRecorded) this.describe(span)
      } finally {
        if (isRecorded && theirs === undefined) span.end(this.endTicks)
        if (measurement !== undefined) this.measure(measurement, isRecorded ? span : undefined)
      }
    } catch (error) {
      reportOnce(
        `conclude:${seam.framework.scope.name}`,
        'error',
        'the end of a request could not be recorded',
        error,
      )
    }
  }

  private measure(measurement: RequestMeasurement, ended: Span | undefined): void {
    const isComplete = this.isAllOut()
    const status = this.statusSent(isComplete)
    const errorType = this.failureType(isComplete, status)
    const route = this.route ?? this.matchedRoute()
    measurement.end({ status, errorType, route }, ended, this.responseScope, this.endTicks)
  }

  // `writableFinished` is also true of an answer that was thrown away.
  private isAllOut(): boolean {
    if (this.isComplete) return true
    const { response } = this
    if (this.transport === 'HTTP/2') return this.isSent()
    if (this.transport === 'made up') return response.writableEnded
    if (this.isForNobody) return false
    if (response.writableFinished && response.writableEnded) return response.headersSent
    // The answer to HEAD is complete with its headers.
    return this.method === 'HEAD' && this.hasBegun()
  }

  /** Whether the head of an incomplete answer was sent: once written it may wait, and has no socket until its turn. */
  private hasBegun(): boolean {
    const { response } = this
    if (this.transport !== 'HTTP/1') return response.headersSent
    return hasSentHead(response) && response.socket !== null
  }

  /** Over HTTP/2, if the answer's end was not observed. */
  private isSent(): boolean {
    const { response } = this
    // The stream of a HEAD request finishes before there is an answer, which is complete with its headers.
    if (this.method === 'HEAD') return response.headersSent
    const stream = this.streamOf()
    if (stream === undefined) return false
    // If the app answers through the stream and the client's body was read, Node closes it before it has finished: a client
    // that reset it without an error then looks like one that received everything.
    const isByStream = stream.writableEnded && !response.writableEnded
    const isOver = stream.writableFinished || (isByStream && this.isRead)
    return isOver && isUnharmed(stream) && this.session?.destroyed === false
  }

  /** Over HTTP/1, `stream` would be the app's own property. */
  private streamOf(): Stream | undefined {
    if (this.transport !== 'HTTP/2') return undefined
    return (this.response as ServerResponse & { readonly stream?: Stream }).stream
  }

  /** Undefined if none was sent. */
  private statusSent(isComplete: boolean): number | undefined {
    if (!isComplete && !this.hasBegun()) return undefined
    if (this.status !== undefined) return this.status
    // An app may answer through the stream.
    const stream = this.streamOf()
    if (stream !== undefined) return sentStatus(this.response, stream) ?? this.response.statusCode
    return this.hasSentOk() ? OK : (sentStatus(this.response, undefined) ?? this.response.statusCode)
  }

  /**
   * Whether the head that was sent can only be that of a 200: Node sets both as it writes the head, and apps and frameworks set
   * the status of an error alone, however late. Reading the head costs 0.3 µs, since V8 first makes one text of its pieces.
   */
  private hasSentOk(): boolean {
    if (this.transport === 'HTTP/2') return false
    const { statusCode, statusMessage } = this.response
    return statusCode === OK && statusMessage === 'OK'
  }

  /** What went wrong: the framework's error, or else the one that the response was destroyed with. */
  private failure(): unknown {
    if (this.error !== undefined) return this.error
    const { errored } = this.streamOf() ?? this.response
    return errored === null || isHangUp(errored) ? undefined : errored
  }

  /** Undefined unless it is a failure. */
  private failureType(isComplete: boolean, status: number | undefined): string | undefined {
    if (!isComplete) return errorType(this.failure()) ?? ABORTED
    return status === undefined || status < FIRST_FAILURE
      ? undefined
      : (errorType(this.error) ?? String(status))
  }

  /** The pattern that the router has matched so far. */
  private matchedRoute(): string | undefined {
    try {
      return this.seam.framework.route?.(this.carried)
    } catch (error) {
      reportOnce('route', 'error', 'the route of a request could not be found out', error)
      return undefined
    }
  }

  private tellTheirs(theirs: RpcMetadata): void {
    const route = this.route ?? this.matchedRoute()
    if (route !== undefined) theirs.route = route
  }

  private describe(span: Span): void {
    const { seam } = this
    const route = this.route === undefined ? this.matchedRoute() : undefined
    const isComplete = this.isAllOut()
    const status = this.statusSent(isComplete)
    // The official instrumentation records the status of its own span, under the names it was asked for.
    this.describeAnswer(span, route, this.theirs === undefined ? status : undefined)
    if (this.theirs === undefined && !isComplete) span.setAttribute(semconv.INCOMPLETE, true)
    if (seam.responseHeaders.length > 0) this.describeHeaders(span)
    if (!isComplete || (status !== undefined && status >= FIRST_FAILURE)) {
      const failure = this.failureType(isComplete, status)
      if (failure !== undefined) this.fail(span, failure)
    }
    if (seam.moreAttributes !== undefined || seam.nameOf !== undefined) this.ask(span)
  }

  private describeAnswer(span: Span, route: string | undefined, status: number | undefined): void {
    if (route !== undefined) {
      span.updateName(spanName(this.method, route))
      if (!putNamed(span, writeRoute, route, status)) {
        span.setAttribute(semconv.HTTP_ROUTE, route)
        if (status !== undefined) span.setAttribute(semconv.HTTP_RESPONSE_STATUS_CODE, status)
      }
    } else if (status !== undefined && !putNamed(span, writeStatus, status))
      span.setAttribute(semconv.HTTP_RESPONSE_STATUS_CODE, status)
    if (status !== undefined && wantsOldNames('http')) span.setAttribute(semconv.OLD_HTTP_STATUS_CODE, status)
  }

  private describeHeaders(span: Span): void {
    const { seam, response } = this
    const stream = this.streamOf()
    const headers: Attributes = {}
    captureHeaders(headers, semconv.HTTP_RESPONSE_HEADER, seam.responseHeaders, (name) =>
      sentHeader(response, stream, name),
    )
    span.setAttributes(headers)
  }

  private fail(span: Span, type: string): void {
    const error = this.failure()
    const errorTicks = this.error === undefined ? (this.endTicks ?? now()) : this.errorTicks
    const message = error === undefined ? undefined : messageOf(error)
    if (isError(error)) span.recordException(showable(error), errorTicks)
    else if (message !== undefined) span.recordException(message, errorTicks)
    span.setAttribute(semconv.ERROR_TYPE, type)
    span.setStatus(
      message === undefined ? { code: SpanStatusCode.ERROR } : { code: SpanStatusCode.ERROR, message },
    )
  }

  /** Asks the app's functions. */
  private ask(span: Span): void {
    const { seam, carried, response } = this
    const given = seam.framework.given(carried, response)
    const more = answeredAttributes(seam.moreAttributes?.(...given))
    if (more !== undefined) span.setAttributes(more)
    const name = seam.nameOf?.(...given)
    if (typeof name === 'string' && name !== '') span.updateName(name)
    else sayUnfit('spanName', name, 'a text that is not empty', "spanName: () => 'GET /orders'")
  }
}

export type AnyExchange = Exchange<unknown[], unknown>

// ---- The connection ----

/** A connection keeps the response that is being sent. */
export type Connection = Socket & { readonly _httpMessage?: EventEmitter | null }

/**
 * A request without a connection is synthetic: from a serverless adapter or a test. Its response may close before it is
 * written, or never close. Node's servers mark every connection, including one handed to them.
 */
function transportOf(request: Partial<IncomingMessage>): Transport {
  const { socket, httpVersion = '' } = request
  // Nearly all are 1.1, and parsing the number takes 0.1 µs.
  if (httpVersion !== '1.1' && Number.parseFloat(httpVersion) >= 2 && 'stream' in request) return 'HTTP/2'
  const server = (socket as { server?: object | null } | undefined)?.server
  // An unconnected socket has null.
  return server === undefined || server === null ? 'made up' : 'HTTP/1'
}

interface Ending {
  end(): void
}

const waitingBySocket = new WeakMap<Socket, Set<Ending>>()

/**
 * The requests that end with this connection unless they end before. One listener for all: a client may send any number of
 * requests before it reads an answer.
 */
function waitingOn(socket: Socket): Set<Ending> {
  const known = waitingBySocket.get(socket)
  if (known !== undefined) return known
  const all = new Set<Ending>()
  waitingBySocket.set(socket, all)
  // After the requests' own listeners.
  const endAll = () => {
    for (const each of all) each.end()
  }
  socket.once('close', () => void setImmediate(endAll))
  return all
}

// ---- What was sent ----

const HANG_UPS =
  /^(?:ERR_STREAM_PREMATURE_CLOSE|ERR_STREAM_WRITE_AFTER_END|ERR_HTTP2_(?:STREAM|SESSION)_\w+|ECONNRESET|EPIPE)$/

/**
 * Whether the error says only that the client has left or the stream was reset: no failure of the app's. Made-up responses have
 * no `errored`.
 */
function isHangUp(error: NodeJS.ErrnoException | undefined): boolean {
  return error === undefined || HANG_UPS.test(error.code ?? '')
}

/** The stream that an HTTP/2 response is sent through. */
interface Stream extends Pick<EventEmitter, 'once'> {
  readonly session: Session | undefined
  readonly closed: boolean
  readonly aborted: boolean
  readonly rstCode: number
  readonly readableEnded: boolean
  readonly writableEnded: boolean
  readonly writableFinished: boolean
  readonly errored: NodeJS.ErrnoException | null
  readonly sentHeaders?: OutgoingHttpHeaders & { readonly ':status'?: number }
}

interface Session {
  readonly destroyed: boolean
}

function isUnharmed({ aborted, rstCode }: Stream): boolean {
  return !aborted && rstCode === 0
}

/** A stream that sends a file finishes as it begins: Node ends it at once, with its final step removed. */
function isFile(stream: Stream): boolean {
  return (stream as Stream & { readonly _final?: unknown })._final === null
}

/** After `writeHead`, the head waits for the first piece of the body, or the end. */
function hasSentHead(response: ServerResponse): boolean {
  return (response as ServerResponse & { readonly _headerSent?: unknown })._headerSent === true
}

/** The status as sent to the client; undefined if unknown. */
function sentStatus(response: ServerResponse, stream: Stream | undefined): number | undefined {
  if (stream !== undefined) return stream.sentHeaders?.[':status']
  const [, digits] = /^HTTP\/1\.\d (\d{3})/.exec(headOf(response)) ?? []
  return digits === undefined ? undefined : Number(digits)
}

/** The text that Node made of status and headers over HTTP/1; empty if there is none. */
function headOf(response: ServerResponse): string {
  const { _header: head } = response as ServerResponse & { readonly _header?: unknown }
  return typeof head === 'string' ? head : ''
}

/**
 * The header as sent, or else as set. If a response had no headers set, those given to `writeHead` exist only in the text,
 * where a repeated name has as many lines.
 *
 * @param name in lower case
 */
function sentHeader(
  response: Partial<ServerResponse>,
  stream: Stream | undefined,
  name: string,
): OutgoingHttpHeaders[string] {
  const sent = stream?.sentHeaders
  if (sent !== undefined) {
    // An app that answers through the stream may use any case.
    const given = Object.keys(sent).find((each) => each.toLowerCase() === name)
    return given === undefined ? undefined : sent[given]
  }
  return response.getHeader?.(name) ?? inHead(headOf(response as ServerResponse), name)
}

function inHead(head: string, name: string): string[] | undefined {
  const values = head
    .split('\r\n')
    .filter((line) => line.slice(0, line.indexOf(':')).toLowerCase() === name)
    .map((line) => line.slice(name.length + 1).trim())
  return values.length === 0 ? undefined : values
}
