import { once } from 'node:events'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { clients } from './app/clients.mjs'
import { answer, settings } from './child.mjs'
import { versionOf } from './version.mjs'

/**
 * What a contender gives the app to be traced with; what it patches by itself it leaves out.
 *
 * @typedef {object} Tracing
 * @property {string} version
 * @property {() => unknown} [express] the middleware
 * @property {() => unknown} [koa] the middleware
 * @property {(app: any) => unknown} [fastify]
 * @property {(given: { pool: any, redis: any }) => { query?: Function, get?: Function, fetch?: Function } | void} [clients]
 * @property {() => Promise<unknown>} flush resolves when all that has ended has been exported
 *
 * @typedef {(given: { require: NodeRequire, tracing: Tracing, answerOf: (id: string) => Promise<object> }) =>
 *   import('node:http').Server | Promise<import('node:http').Server>} App
 */

const given = settings()
const require = createRequire(join(given.install, 'package.json'))

// The contender first: most must be there before what they patch is loaded.
const { start } = await import(`./contender/${given.contender}.mjs`)
/** @type {Tracing} */
const tracing = await start({ ...given, require })
const answerOf =
  given.urls === undefined
    ? async (id) => ({ id, name: 'Ada', roles: ['admin', 'user'] })
    : await clients({ require, tracing, urls: given.urls })
const { listen } = await import(`./app/${given.framework}.mjs`)
const server = await listen({ require, tracing, answerOf })
if (!server.listening) await once(server, 'listening')
// A pause that is longer than that would end connections on which a request has come in meanwhile.
server.keepAliveTimeout *= given.patience ?? 1

let before

answer({
  describe: () => ({
    pid: process.pid,
    port: server.address().port,
    version: tracing.version ?? versionOf(given.install, given.framework),
  }),
  begin() {
    before = process.cpuUsage()
  },
  /** CPU microseconds of all threads since `begin`, the export of what has ended by now included. */
  async end() {
    await tracing.flush()
    const { user, system } = process.cpuUsage(before)
    return user + system
  },
  flush: () => tracing.flush(),
  rss: () => process.memoryUsage().rss,
})
