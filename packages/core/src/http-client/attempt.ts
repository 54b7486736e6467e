import { SpanKind, type Attributes, type AttributeValue, type Context } from '@opentelemetry/api'
import { roomFor, type NamedAttributes, type NamedWriter } from '../attribute.ts'
import { Call, type Sender } from '../client.ts'
import type { Ticks } from '../clock.ts'
import { errorType, isError, messageOf } from '../exception.ts'
import { captureHeaders, headerIn, methodAttribute, spanName, wantsOldNames, withOldNames } from '../http.ts'
import * as semconv from '../semconv.ts'
import { clockOf } from '../span.ts'
import { NO_CHANGES } from './headers.ts'
import { serverOf, shownUrlOf, urlOf, type HttpRequest } from './origin.ts'
import { answeredWith, failedBefore, FIRST_TO_REPEAT, resendsOf } from './resends.ts'
import type { Answered, Unread } from './unread.ts'

/** The response: its status, and its headers with names in lower case. */
export interface HttpResponse {
  readonly statusCode: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}

export type Subject = [url: string, method: string]
export type Outcome = [request: HttpRequest, response: HttpResponse | undefined]

/** What the requests of one client have in common. */
export interface Settings {
  readonly send: Sender<Subject, Outcome>
  readonly unread: Unread
  readonly responseHeaders: readonly string[]
  /** In place of the list of the conventions. */
  readonly redactedKeys: ReadonlySet<string> | undefined
  /** `url.template` of a request. */
  readonly templateOf: ((url: string, method: string) => string | undefined) | undefined
  readonly marksFirstByte: boolean
  /** For a client that does not report the body itself: calls `came` with each part of it. */
  readonly watchBody: WatchBody | undefined
}

export type WatchBody = (request: HttpRequest, came: () => void) => void

/** Statuses from here on are errors of the client's or of the server's. */
const FIRST_ERROR = 400
/** The event for the beginning of the response; it has only its time. */
const FIRST_BYTE = 'http.response.first_byte'

/** What nearly every request has, its keys written out: see NamedAttributes. */
const ClientAttributes = roomFor(
  function (method: string, url: string, address: string, port: number | undefined) {
    this['http.request.method'] = method
    this['url.full'] = url
    this['server.address'] = address
    this['server.port'] = port
  },
  {
    'network.peer.address': '',
    'network.peer.port': 80,
    'http.response.status_code': 200,
    'network.protocol.version': '',
  },
)

const writePeer: NamedWriter = (into, address, port) => {
  into['network.peer.address'] = address
  if (port !== undefined) into['network.peer.port'] = port
}

const writeStatus: NamedWriter = (into, statusCode, version) => {
  into['http.response.status_code'] = statusCode
  if (version !== undefined) into['network.protocol.version'] = version
}

/** One request on its way: a CLIENT span (semantic conventions, HTTP client), each attempt at it for itself. */
export class HttpAttempt extends Call<Subject, Outcome> implements Answered {
  readonly isTraced = true
  headers = NO_CHANGES
  heardAt = 0
  isWatched = false
  previous: Answered | undefined = undefined
  next: Answered | undefined = undefined
  readonly #settings: Settings
  #request: HttpRequest
  /** Its URL, once somebody has asked for it. */
  #url: string | undefined = undefined
  /** How many attempts there were before this one; known only if it is recorded. */
  #resendCount = 0
  /** Called once, and only if needed. */
  #template: string | null | undefined = null
  #status = 0
  #version: string | undefined = undefined
  #response: HttpResponse | undefined = undefined

  constructor(settings: Settings, caller: Context, request: HttpRequest) {
    super(caller)
    this.#settings = settings
    this.#request = request
  }

  override name(): string {
    return spanName(this.#request.method, this.#templated())
  }

  override subject(): Subject {
    return [this.#urlOf(), this.#request.method]
  }

  #urlOf(): string {
    return (this.#url ??= urlOf(this.#request))
  }

  #shownUrl(): string {
    return shownUrlOf(this.#request, this.#urlOf(), this.#settings.redactedKeys)
  }

  override outcome(): Outcome {
    return [this.#request, this.#response]
  }

  override dimensions(): Attributes {
    const { address, port } = serverOf(this.#request)
    const counted: Attributes = { [semconv.HTTP_REQUEST_METHOD]: methodAttribute(this.#request.method) }
    if (address !== undefined) counted[semconv.SERVER_ADDRESS] = address
    if (port !== undefined) counted[semconv.SERVER_PORT] = port
    if (this.#status > 0) counted[semconv.HTTP_RESPONSE_STATUS_CODE] = this.#status
    if (this.#version !== undefined) counted[semconv.NETWORK_PROTOCOL_VERSION] = this.#version
    const template = this.#templated()
    if (template !== undefined) counted[semconv.URL_TEMPLATE] = template
    return counted
  }

  override build(): Attributes {
    const request = this.#request
    const { method } = request
    const known = methodAttribute(method)
    const url = this.#shownUrl()
    const { address, port } = serverOf(request)
    const attributes: Attributes =
      address === undefined
        ? ({ 'http.request.method': known, 'url.full': url } satisfies NamedAttributes)
        : new ClientAttributes(known, url, address, port)
    if (known !== method) attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
    const template = this.#templated()
    if (template !== undefined) attributes[semconv.URL_TEMPLATE] = template
    this.#resendCount = resendsOf(this.caller, method, this.#urlOf())
    if (this.#resendCount > 0) attributes[semconv.HTTP_REQUEST_RESEND_COUNT] = this.#resendCount
    return wantsOldNames('http') ? withOldNames(attributes, SpanKind.CLIENT) : attributes
  }

  #templated(): string | undefined {
    const { templateOf } = this.#settings
    if (templateOf === undefined) return undefined
    if (this.#template !== null) return this.#template
    const template = templateOf(this.#urlOf(), this.#request.method)
    return (this.#template = typeof template === 'string' ? template : undefined)
  }

  /** Sets the server, which was not known when the request began. */
  leadsTo(origin: string | URL): void {
    const { method, path } = this.#request
    this.#request = { method, path, origin }
    this.#url = undefined
    if (!this.span.isRecording()) return
    const attributes: Attributes = {
      [semconv.URL_FULL]: this.#shownUrl(),
    }
    const { address, port } = serverOf(this.#request)
    if (address !== undefined) attributes[semconv.SERVER_ADDRESS] = address
    if (port !== undefined) attributes[semconv.SERVER_PORT] = port
    this.#tellAll(attributes)
  }

  /**
   * Sets the peer of the connection: an address and a port, or the path of a socket, if it is known. `version` is that of HTTP,
   * if the connection knows it: 1.1 or 2.
   */
  connected(address: string | undefined, port: number | undefined, version?: string): void {
    if (version !== undefined) this.#version = version
    if (address === undefined || !this.span.isRecording()) return
    if (!wantsOldNames('http') && this.putNamed(writePeer, address, port)) return
    this.#tell(semconv.NETWORK_PEER_ADDRESS, address)
    if (port !== undefined) this.#tell(semconv.NETWORK_PEER_PORT, port)
  }

  /**
   * The response's headers have come; they are read only if needed. `version` is that of HTTP, if `connected` did not get it:
   * 1.0, 1.1 or 2.
   */
  answered<From>(
    statusCode: number,
    version: string | undefined,
    from: From,
    read: (from: From) => HttpResponse['headers'],
  ): void {
    const { send, unread, responseHeaders, marksFirstByte } = this.#settings
    this.#status = statusCode
    this.#version = version ?? this.#version
    if (!this.isOpen) return
    if (this.span.isRecording()) {
      this.#tellStatus(statusCode, this.#version)
      if (responseHeaders.length > 0) {
        const headers = read(from)
        const attributes: Attributes = {}
        captureHeaders(attributes, semconv.HTTP_RESPONSE_HEADER, responseHeaders, (name) =>
          headerIn(headers, name),
        )
        this.span.setAttributes(attributes)
      }
      if (marksFirstByte) this.span.addEvent(FIRST_BYTE)
      if (statusCode >= FIRST_TO_REPEAT) {
        const location = (): unknown => read(from)['location']
        const [url, method] = this.subject()
        answeredWith(statusCode, location, this.caller, method, url, this.#resendCount)
      }
    }
    if (send.asksOutcome) {
      this.#response = {
        statusCode,
        get headers() {
          return read(from)
        },
      }
    }
    unread.remove(this)
    unread.add(this)
  }

  #tellStatus(statusCode: number, version: string | undefined): void {
    if (!wantsOldNames('http') && this.putNamed(writeStatus, statusCode, version)) return
    this.#tell(semconv.HTTP_RESPONSE_STATUS_CODE, statusCode)
    if (version !== undefined) this.#tell(semconv.NETWORK_PROTOCOL_VERSION, version)
  }

  #tell(name: string, value: AttributeValue): void {
    if (wantsOldNames('http')) this.#tellAll({ [name]: value })
    else this.span.setAttribute(name, value)
  }

  #tellAll(attributes: Attributes): void {
    this.span.setAttributes(wantsOldNames('http') ? withOldNames(attributes, SpanKind.CLIENT) : attributes)
  }

  /** The last byte has come. */
  completed(): void {
    this.#settings.unread.remove(this)
    this.#conclude()
  }

  /** Something of the body has come. */
  dataCame(): void {
    if (this.isWatched) this.heardAt = this.now()
  }

  now(): Ticks {
    return clockOf(this.span).now()
  }

  watchBody(): void {
    this.#settings.watchBody?.(this.#request, () => this.dataCame())
  }

  abandoned(): void {
    this.#conclude(this.heardAt)
  }

  /** The caller has aborted it, which is not an error (semantic conventions, HTTP client spans). */
  aborted(): void {
    this.#settings.unread.remove(this)
    this.#conclude()
  }

  /** It has failed: a timeout, a refused or broken connection; or an abort, if the error says so. */
  failed(error: unknown): void {
    if (isAbort(error)) {
      this.aborted()
      return
    }
    // An error status stays the reason: clients that retry abort the rest of such an answer.
    if (this.#status >= FIRST_ERROR) {
      this.completed()
      return
    }
    const { send, unread } = this.#settings
    unread.remove(this)
    if (this.span.isRecording()) {
      const [url, method] = this.subject()
      failedBefore(this.caller, method, url, this.#resendCount)
    }
    send.fail(this, failureType(error), messageOf(error), true)
  }

  #conclude(endTicks?: number): void {
    const { send } = this.#settings
    if (this.#status < FIRST_ERROR) send.succeed(this, endTicks)
    else send.fail(this, String(this.#status), undefined, true, endTicks)
  }
}

/** Errors of an abort by the caller; the second is axios'. */
const ABORTS = new Set(['AbortError', 'CanceledError'])

// Clients and the system report errors; any other reason was given by the caller.
function isAbort(error: unknown): boolean {
  return !isError(error) || ABORTS.has(error.name)
}

function failureType(error: unknown): string | undefined {
  const { code } = error as { code?: unknown }
  return typeof code === 'string' ? code : errorType(error)
}
