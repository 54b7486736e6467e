import type { ReadableSpan, ReceivingOptions } from '@throughline/core'
import { once } from 'node:events'
import type { IncomingHttpHeaders, IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http'
import type { AddressInfo, Server } from 'node:net'
import type { Readable } from 'node:stream'
import type { Asking } from './client.ts'

/** One request in the hands of an app that does not know which framework it runs on. */
export interface Exchange {
  /** What the router found in the path. */
  readonly params: Readonly<Record<string, string | undefined>>
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** Answers in the framework's own way. */
  answer(status: number, body?: string): void
  /** Answers 200 with a body that comes bit by bit, in the framework's own way. */
  stream(body: Readable): void
}

/** It may answer at once or later, throw, reject, or never answer: then it returns a promise that never settles. */
export type Handler = (exchange: Exchange) => unknown

/** By method and pattern: `'GET /users/:id'`. */
export type Routes = Readonly<Record<string, Handler>>

/** An app in terms that every framework has. What no route takes is a 404. */
export interface App {
  readonly routes?: Routes
  /** Routes of a router of their own, mounted at a prefix. */
  readonly mounted?: { readonly prefix: string; readonly routes: Routes }
  /** Answers when a handler fails. Without it the framework does, by the error's `statusCode`, or else 500. */
  readonly onError?: (error: unknown, exchange: Exchange) => void
}

/** What all frameworks' request objects have. */
export interface Subject {
  readonly url?: string | undefined
  readonly headers: IncomingHttpHeaders
}

/** The options that every adapter takes; what their functions are given is the framework's. */
export type Options = ReceivingOptions<Subject, [subject: Subject, ...rest: unknown[]]>

export interface Serving {
  readonly port: number
  close(): Promise<void>
}

/** What one adapter cannot do. The contract then holds it to the opposite. */
export interface Gaps {
  /** There is no router, so there is never a route. */
  readonly router?: true
  /** There is no middleware, so there is no option for its spans. */
  readonly middleware?: true
  /**
   * The framework has no place of its own for error handlers: the app catches below us, and what it catches there nobody
   * else sees.
   */
  readonly errorHandlers?: true
  /** Options are checked when they are first used, which is in the first request; it answers 500 with the message. */
  readonly earlyChecks?: true
  /** The router has not run yet when the span starts: its name and attributes then know no route. */
  readonly routeAtStart?: true
}

export interface Adapter {
  /**
   * Serves the app on 127.0.0.1, with the adapter mounted so many times: 0 is the app as it is without us. All mounts but the
   * first are given the later options.
   */
  serve(app: App, options: Options, mounts: number, later: Options): Promise<Serving>
  readonly gaps?: Gaps
}

export const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
export const PARENT_ID = '00f067aa0ba902b7'
export const TRACEPARENT = `00-${TRACE_ID}-${PARENT_ID}-01`

/** The handlers that a test needs beside its own. */
export const ok: Handler = ({ answer }) => answer(200, 'ok')
export const never: Handler = () => new Promise(() => {})

/** The server that a request came to: of adapters the contract knows the port alone. */
export function serverOf({ socket }: IncomingMessage): HttpServer {
  return (socket as unknown as { server: HttpServer }).server
}

/** Serves on a free port of this machine; to be used by those who describe an adapter. */
export async function listening(server: Server & { closeAllConnections(): void }): Promise<Serving> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

/** What a part of the contract is written with. */
export interface Contract {
  /** The framework's. */
  readonly name: string
  readonly gaps: Gaps
  /** Serves an app, or one handler for GET and POST of the root, until the end of the test. */
  served(app: App | Handler, options?: Options, mounts?: number, later?: Options): Promise<Serving>
  /** The one span of one request. */
  spanOf(app: App | Handler, path?: string, asking?: Asking, options?: Options): Promise<ReadableSpan>
}
