/**
 * The real servers that tests and examples need: PostgreSQL and Redis.
 *
 * As a module: `const { urls, stop } = await startServices(['postgres', 'redis'])`.
 * As a command: `node scripts/services.mjs [postgres] [redis]` prints the URLs as environment lines and keeps
 * the services up until Ctrl-C; without names, both.
 *
 * A keeper process does the work (services/keeper.mjs). It lives as long as its channel to us is open, so
 * whatever we die of, SIGKILL included, what it started is stopped and what it created is removed; and our own
 * process needs no signal or exit handlers for that.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** @typedef {'postgres' | 'redis'} ServiceName */
/** @typedef {'url' | 'running' | 'installed' | 'npm' | 'compose' | 'apt'} Way */

/** @type {ServiceName[]} */
const everyService = ['postgres', 'redis']

const keeper = fileURLToPath(new URL('services/keeper.mjs', import.meta.url))

/**
 * Finds or starts the named services and gives the URL of a database of our own in each.
 *
 * @template {ServiceName} Name
 * @param {readonly Name[]} names
 * @param {object} [options]
 * @param {(line: string) => void} [options.log] told what is started or installed; a service that runs already is not worth a line
 * @param {NodeJS.ProcessEnv} [options.env] where `DATABASE_URL`, `PATH` and the like are read
 * @param {Partial<Record<ServiceName, number>>} [options.ports] the local ports to ask first; the standard ones if not given
 * @param {Way[]} [options.ways] the ways to try; all if not given, always in the order of the type
 * @returns {Promise<{ urls: Record<Name, string>, stop: () => Promise<void> }>}
 *   rejects with one Error that names every missing service and the command that gets it
 */
export async function startServices(
  names,
  { log = console.error, env = process.env, ports = {}, ways } = {},
) {
  const unknown = names.filter((name) => !everyService.includes(name))
  if (unknown.length > 0) {
    throw new TypeError(
      `startServices expects names out of ${everyService.join(', ')}; received ${unknown.join(', ')}. ` +
        `Example: startServices(['postgres'])`,
    )
  }
  const child = spawn(process.execPath, [keeper, JSON.stringify({ names, ports, ways })], {
    // A process group of its own: Ctrl-C in the terminal is for us, and the keeper stops the services in order.
    detached: true,
    windowsHide: true,
    // A loader or a debugger of ours is not meant for the keeper.
    env: { ...env, NODE_OPTIONS: '' },
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const exit = once(child, 'exit')
  const urls = await new Promise((resolve, reject) => {
    child.on('message', (/** @type {{ log?: string, urls?: object, error?: string }} */ message) => {
      if (message.log !== undefined) log(message.log)
      if (message.urls !== undefined) resolve(message.urls)
      if (message.error !== undefined) reject(new Error(message.error))
    })
    exit.then(
      ([code]) => reject(new Error(`The keeper of the services ended (${code}) before it was ready.`)),
      reject,
    )
  }).catch(async (error) => {
    await exit.catch(() => {})
    throw error
  })
  child.unref()
  child.channel?.unref()
  return {
    urls,
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.ref()
      if (child.connected) child.disconnect()
      await exit
    },
  }
}

/** @type {Record<ServiceName, string>} */
const variables = { postgres: 'DATABASE_URL', redis: 'REDIS_URL' }

const entry = process.argv[1] ?? ''

if (existsSync(entry) && realpathSync(entry) === fileURLToPath(import.meta.url)) {
  const named = /** @type {ServiceName[]} */ (process.argv.slice(2))
  try {
    const { urls, stop } = await startServices(named.length > 0 ? named : everyService)
    const told = Promise.race(['SIGINT', 'SIGTERM', 'SIGHUP'].map((signal) => once(process, signal)))
    // Signal handlers alone do not keep a process alive.
    const alive = setInterval(() => {}, 2 ** 31 - 1)
    for (const [name, url] of Object.entries(urls)) {
      console.log(`${variables[/** @type {ServiceName} */ (name)]}=${url}`)
    }
    await told
    clearInterval(alive)
    await stop()
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  }
}
