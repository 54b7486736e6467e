import { SpanStatusCode } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { ok, type App, type Contract, type Handler, type Options } from './app.ts'
import type { Asking } from './client.ts'
import { viaProxy } from './trust.ts'

interface Asked extends Asking {
  readonly app: App | Handler
  readonly path?: string
  readonly options?: Options
}

interface Expected {
  /** What the span is named by beside its route. */
  readonly method?: string
  /** Where there is a router. */
  readonly route?: string
  /** Failed, with the description that there is, if any. */
  readonly error?: { readonly message?: string; readonly exceptions: number }
  /** Undefined for those that are not there. */
  readonly attributes?: Readonly<Record<string, unknown>>
}

const users: App = {
  routes: { 'GET /users/:id': ok },
  mounted: { prefix: '/api', routes: { 'GET /users/:id': ok } },
}

function answering(status: number): Handler {
  return ({ answer }) => answer(status)
}

function to(host: string): Asked {
  return { app: ok, headers: { host } }
}

/** The conventions' rules for what a request is named, how it went, and what is kept back. */
const rules: [rule: string, asked: Asked, expected: Expected][] = [
  [
    'a request that a route takes is named by its method and its route, and is no error',
    { app: users, path: '/users/7' },
    { route: '/users/:id' },
  ],
  [
    'a route has the prefix of the router that it is in, and names its parameters only',
    { app: users, path: '/api/users/7?x=/users/8' },
    { route: '/api/users/:id' },
  ],
  ...['/nothing', '/api', '/api/nothing', '/api/users/7/more'].map((path): [string, Asked, Expected] => [
    `a request that no route takes is named by its method alone, and its 404 is no error: ${path}`,
    { app: users, path },
    { attributes: { 'http.response.status_code': 404 } },
  ]),
  ...[200, 204, 301, 304, 400, 404, 499].map((status): [string, Asked, Expected] => [
    `an answer below 500 leaves the status unset: ${status}`,
    { app: answering(status) },
    { route: '/', attributes: { 'http.response.status_code': status } },
  ]),
  ...[500, 503].map((status): [string, Asked, Expected] => [
    `an answer from 500 on is an error of that type, without a description or an exception: ${status}`,
    { app: answering(status) },
    {
      route: '/',
      error: { exceptions: 0 },
      attributes: { 'http.response.status_code': status, 'error.type': String(status) },
    },
  ]),
  [
    'an exception that the framework answers 500 for is an error by its class, recorded once, and the route stays',
    {
      app: { routes: { 'GET /users/:id': () => Promise.reject(new TypeError('no such thing')) } },
      path: '/users/7',
    },
    {
      route: '/users/:id',
      error: { message: 'no such thing', exceptions: 1 },
      attributes: { 'http.response.status_code': 500, 'error.type': 'TypeError' },
    },
  ],
  [
    'a method that is not in the list is _OTHER, called HTTP, and kept as it came',
    { app: {}, method: 'PROPFIND' },
    {
      method: 'HTTP',
      attributes: { 'http.request.method': '_OTHER', 'http.request.method_original': 'PROPFIND' },
    },
  ],
  [
    'a method that is in the list is not kept twice',
    { app: ok, method: 'POST' },
    {
      method: 'POST',
      route: '/',
      attributes: { 'http.request.method': 'POST', 'http.request.method_original': undefined },
    },
  ],
  [
    'the signature in a query is not recorded',
    { app: ok, path: '/?sig=abc&b=1' },
    { route: '/', attributes: { 'url.path': '/', 'url.query': 'sig=REDACTED&b=1' } },
  ],
  [
    'the names of signatures are told by case',
    { app: ok, path: '/?Sig=abc&b=1' },
    { route: '/', attributes: { 'url.query': 'Sig=abc&b=1' } },
  ],
  [
    'a request without a query has none',
    { app: ok, path: '/' },
    { route: '/', attributes: { 'url.path': '/', 'url.query': undefined } },
  ],
  [
    'the host that was asked for is the server, with its port',
    to('example.com:8443'),
    { route: '/', attributes: { 'server.address': 'example.com', 'server.port': 8443 } },
  ],
  [
    'a host without a port has none',
    to('example.com'),
    { route: '/', attributes: { 'server.address': 'example.com', 'server.port': undefined } },
  ],
  [
    'an address of IPv6 is without its brackets',
    to('[::1]:3000'),
    { route: '/', attributes: { 'server.address': '::1', 'server.port': 3000 } },
  ],
  [
    'behind a proxy that is trusted, the server, the scheme and the client are those that it tells',
    { app: ok, headers: viaProxy, options: { trustProxy: true } },
    {
      route: '/',
      attributes: {
        'server.address': 'a.com',
        'server.port': undefined,
        'url.scheme': 'https',
        'client.address': '203.0.113.9',
        'network.peer.address': '127.0.0.1',
      },
    },
  ],
]

/** What a request is named, and how its end is told. */
export function namesRequests({ name, gaps, spanOf }: Contract): void {
  describe(`${name}: the conventions`, () => {
    test.each(rules)('%s', async (_rule, { app, path, options, ...asking }, expected) => {
      const span = await spanOf(app, path, asking, options)
      const { method = 'GET', error, attributes } = expected
      const route = gaps.router ? undefined : expected.route
      expect(span.name).toBe(route === undefined ? method : `${method} ${route}`)
      expect(span.status).toEqual(
        error === undefined
          ? { code: SpanStatusCode.UNSET }
          : { code: SpanStatusCode.ERROR, ...(error.message && { message: error.message }) },
      )
      expect(span.events.map((event) => event.name)).toEqual(Array(error?.exceptions ?? 0).fill('exception'))
      const wanted = { 'http.route': route, 'error.type': undefined, ...attributes }
      const seen = Object.keys(wanted).map((key) => [key, span.attributes[key]])
      expect(Object.fromEntries(seen)).toEqual(wanted)
    })
  })
}
