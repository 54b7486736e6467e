/** The newest of each line that Throughline is tried on. */
export const NODES = ['20.20.2', '22.23.3', '24.21.0', '26.12.1']

/**
 * A name that tests import, and the versions that take the place of what the root installs under it.
 *
 * @typedef {object} Line
 * @property {string} library its tests are those in `test/` that have its name, or are in a folder that has
 * @property {string} name what those import
 * @property {RegExp} titles which of those are about this name, by their full titles
 * @property {boolean} [services] whether they need PostgreSQL and Redis
 * @property {boolean} [comesWithNode] whether there is nothing to install: then its version is the first Node that has it
 * @property {Version[]} versions from the lowest that is supported to the newest
 */

/**
 * @typedef {object} Version
 * @property {string} version
 * @property {Record<string, string>} [beside] packages that tests import and that go with this version
 * @property {Record<string, string>} [overrides] what the library itself would take a newer version of
 * @property {string} [from] the first Node that it runs on
 * @property {Gap[]} [gaps]
 */

/**
 * Tests that cannot pass on a version. They are run: one that passes, or a gap that no test has the title of, fails the row.
 *
 * @typedef {object} Gap
 * @property {RegExp} titles in full
 * @property {string} reason
 * @property {string} [from] the first Node that it is on
 */

/** @type {Gap[]} */
const OLD_KOA_2 = [
  {
    titles: /^Koa 2: the conventions an answer below 500 leaves the status unset: 499$/,
    reason: 'Koa 2.0 knows no status 499',
  },
  {
    titles: /^Koa 2: .* around a compressed stream: the span ends with its last byte$/,
    reason: 'koa-compress 5 does not compress with Koa 2.0 there, without tracing either',
    from: '24.0.0',
  },
  {
    titles: /^Koa 2 an error is still printed by Koa where the app has no listener/,
    reason: 'Koa before 2.13 prints an error by three calls',
  },
  {
    titles: /^Koa 2 .* app\.currentContext is the context of the request$/,
    reason: 'Koa before 2.14 has no app.currentContext',
  },
]

/** @type {Gap} */
const OLD_KOA_3 = {
  titles: /^app\.currentContext is the request’s, in a storage that the app gave to Koa 3$/,
  reason: 'Koa 3.0 takes no storage of the app’s',
}

/** @type {Gap} */
const OLD_KOA_ROUTER = {
  titles: /^Koa [23] with @koa\/router a route that the router takes for its few parameters is the route$/,
  reason: '@koa/router 15.0 does not know exclusive: it takes the last route that matches',
}

/** @type {Gap[]} */
const OLD_FASTIFY_4 = [
  {
    titles: /^Fastify 4: an error in a request that the client leaves: the hook for it runs/,
    reason: 'Fastify before 4.23 has no hook onRequestAbort',
  },
  {
    titles: /^Fastify 4: the route is that of the rewritten URL, and the path is that of the request line$/,
    reason: 'Fastify 4.0 does not keep the URL that rewriteUrl has replaced',
  },
]

/** @type {Gap[]} */
const OLD_FASTIFY_5 = [
  {
    titles: /^a handler that takes too long for Fastify 5’s handlerTimeout /,
    reason: 'Fastify 5.0 has no handlerTimeout, and throws where it cannot answer any more',
  },
  {
    titles: /^Fastify 5: the route is not there for a parameter that is too long/,
    reason: 'Fastify 5.0 answers 404 to one, by the handler of 404s',
  },
]

/** @type {Gap[]} */
const OLD_UNDICI_6 = [
  {
    titles:
      /^undici 6 (with .* each (hop of a redirect that an interceptor follows|try of a RetryAgent|try of an interceptor) is |with .* (a redirect|another try)( of a RetryAgent)? is below its own caller |a RetryAgent goes on )/,
    reason: 'undici 6.0 has no RetryAgent, nor interceptors that redirect or try again',
  },
  {
    titles: /^undici 6, all of it: the headers of a request given as (a Map|Headers) stay/,
    reason: 'undici 6.0 takes no Headers and no Map',
  },
  {
    titles: /^undici 6, all of it: an abort by a time limit is an error: before the headers$/,
    reason: 'undici 6.0 does not say why a request was aborted',
  },
  {
    titles:
      /^fetch of undici 6, through an agent: the span of a request ends unset when the caller gives the body up$/,
    reason: 'undici 6.0 reads on when the body of a fetch is cancelled',
  },
]

/** @type {Gap[]} */
const OLD_UNDICI_7 = [
  {
    titles: /^undici 7 .* a request over HTTP\/2 says so$/,
    reason: 'undici 7.0 does not publish what it sends over HTTP/2',
  },
  {
    titles:
      /^(a proxy that the environment names tells of no span of its own|what a proxy is asked by a whole URL is one span )/,
    reason: 'undici before 7.10 asks every proxy for a tunnel',
  },
]

/** @type {Line[]} */
export const LINES = [
  {
    library: 'express',
    name: 'express4',
    titles: /^Express 4\b/,
    versions: [{ version: '4.18.0' }, { version: '4.22.3' }],
  },
  {
    library: 'express',
    name: 'express',
    titles: /^(?!Express 4\b)/,
    versions: [
      { version: '5.0.0', overrides: { router: '2.0.0' }, beside: { 'express-ws': '5.0.2', ws: '8.23.0' } },
      { version: '5.1.0', overrides: { router: '2.2.0' }, beside: { 'express-ws': '5.0.2', ws: '8.23.0' } },
      { version: '5.3.0', overrides: { router: '2.3.0' }, beside: { 'express-ws': '5.0.2', ws: '8.23.0' } },
    ],
  },
  {
    library: 'koa',
    name: 'koa2',
    titles: /^Koa 2\b/,
    versions: [
      // 2.0.0 does not answer the second of two pipelined requests, with any Node that we support.
      {
        version: '2.0.1',
        beside: { '@koa/router': '15.0.0', 'koa-router': '13.0.1' },
        gaps: [...OLD_KOA_2, OLD_KOA_ROUTER],
      },
      { version: '2.16.4', beside: { '@koa/router': '15.7.0', 'koa-router': '14.0.0' } },
    ],
  },
  {
    library: 'koa',
    name: 'koa',
    titles: /^(?!Koa 2\b)/,
    versions: [
      {
        version: '3.0.0',
        beside: { '@koa/router': '15.0.0', 'koa-router': '13.0.1' },
        gaps: [OLD_KOA_ROUTER, OLD_KOA_3],
      },
      { version: '3.3.0', beside: { '@koa/router': '15.7.0', 'koa-router': '14.0.0' } },
    ],
  },
  {
    library: 'fastify',
    name: 'fastify4',
    titles: /^Fastify 4\b/,
    // Up to 4.0.2 an async handler that sends a stream ends in an unhandled rejection when the client leaves, with Fastify alone.
    versions: [{ version: '4.0.3', gaps: OLD_FASTIFY_4 }, { version: '4.29.1' }],
  },
  {
    library: 'fastify',
    name: 'fastify',
    titles: /^(?!Fastify 4\b)/,
    versions: [{ version: '5.0.0', gaps: OLD_FASTIFY_5 }, { version: '5.12.8' }],
  },
  {
    library: 'undici',
    name: 'undici6',
    titles: /\bundici 6\b/,
    versions: [{ version: '6.0.0', gaps: OLD_UNDICI_6 }, { version: '6.29.1' }],
  },
  {
    library: 'undici',
    name: 'undici',
    titles: /^(?!.*\bundici 6\b)/,
    versions: [
      { version: '7.0.0', gaps: OLD_UNDICI_7 },
      { version: '7.30.2' },
      { version: '8.13.1', from: '22.19.0' },
    ],
  },
  {
    library: 'http',
    name: 'node:http',
    titles: /^/,
    comesWithNode: true,
    versions: [{ version: '20.19.0' }],
  },
  {
    library: 'pg',
    name: 'pg',
    titles: /^/,
    services: true,
    versions: [
      // Older ones do not connect, with any Node that we support.
      {
        version: '8.0.3',
        gaps: [
          {
            titles: /^the span of a query says why a name with several addresses cannot be connected to$/,
            reason: 'pg before 8.9 takes no function that makes the socket',
          },
          {
            titles: /^a Pool runs what submits itself as one span/,
            reason: 'pg 8.0 never calls back the Pool whose query submits itself',
          },
          {
            titles: /^in pipeline mode a cursor is refused/,
            reason: 'pg 8.0 knows no pipeline mode',
          },
          {
            titles:
              /^a client that could not connect (?:.* never answers what it is asked|takes what it is asked also)/,
            reason: 'pg 8.0 does not keep that a connection has ended',
          },
          {
            titles: /^a client that could not connect answers a query with a timeout of its own/,
            reason: 'pg 8.0 takes the timeout of the client only',
          },
          {
            titles: /^Prisma’s adapter on a traced Pool/,
            reason: 'the adapter knows the pools of its own pg, which is a newer one',
          },
        ],
      },
      { version: '8.23.1', beside: { '@prisma/adapter-pg': '7.10.1' } },
    ],
  },
  {
    library: 'ioredis',
    name: 'ioredis5',
    titles: /^ioredis 5\b/,
    services: true,
    versions: [
      {
        version: '5.0.0',
        gaps: [
          {
            titles:
              /^ioredis 5 .* leaves none open either where the app leaves before the next one is ready$/,
            reason: 'ioredis 5.0 keeps nothing of what was under way once the next connection fails too',
          },
          {
            titles: /^ioredis 5 .* leaves none open either of what was sent before it was ready$/,
            reason: 'ioredis 5.0 sends that again, and it is answered',
          },
        ],
      },
      { version: '5.11.1' },
    ],
  },
  {
    library: 'ioredis',
    name: 'ioredis',
    titles: /^(?!ioredis 5\b)/,
    services: true,
    versions: [{ version: '6.0.0' }],
  },
]

export const LIBRARIES = [...new Set(LINES.map(({ library }) => library))]

/**
 * @typedef {Omit<Line, 'versions'> & Version & { row: string }} Row
 * @type {Row[]}
 */
export const ROWS = LINES.flatMap(({ versions, ...line }) =>
  versions.map((version) => ({
    ...line,
    ...version,
    row: line.comesWithNode ? line.library : `${line.library} ${version.version}`,
  })),
)
