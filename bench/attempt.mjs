/**
 * One of several servers that are measured beside each other.
 *
 * @typedef {object} Measured
 * @property {{ error?: string }} result
 * @property {import('./child.mjs').Child} [child] once it has been started
 */

/**
 * Those that have not failed.
 *
 * @template {Measured} Server
 * @param {readonly Server[]} servers
 */
export function alive(servers) {
  return servers.filter(({ result }) => result.error === undefined)
}

/**
 * A step of one of them. Where it fails that one is out, its result says why, and the others go on.
 *
 * @template {Measured} Server
 * @param {Server} server
 * @param {(server: Server) => Promise<void>} step
 */
export async function attempt(server, step) {
  try {
    await step(server)
  } catch (error) {
    server.result.error = error.message
    await server.child?.stop()
  }
}
