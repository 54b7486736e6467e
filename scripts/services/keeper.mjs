/**
 * The process that owns the services: it starts them, tells its parent the URLs, and when the channel to the
 * parent closes (stop() was called, or the parent is dead) it stops and removes all that is ours.
 *
 * Each service is tried by the ways below, in their order, until one serves.
 */
import * as apt from './apt.mjs'
import { which } from './child.mjs'
import * as compose from './compose.mjs'

/**
 * What every service's module exports.
 *
 * @typedef {object} Service
 * @property {string} title
 * @property {string} variable the environment variable with an explicit URL
 * @property {number} standardPort
 * @property {Record<string, string>} packages its package, by package manager
 * @property {(port: number) => string} privateUrl the URL of a private server on that port
 * @property {(port: number) => string[]} candidates URLs that may let us in on a local port
 * @property {(url: string) => Promise<Serving>} take checks that the server answers and lets us in, and claims a place of our own
 * @property {() => Promise<Started | undefined>} startInstalled a private server from what is on the machine
 * @property {() => Promise<Started | undefined>} [startFromNpm] a private server from an npm package
 *
 * @typedef {{ url: string, stop: () => Promise<void> }} Started
 * @typedef {Started} Serving
 */

/** @type {{ names: string[], ports: Record<string, number>, ways?: string[] }} */
const { names, ports, ways: allowed } = JSON.parse(process.argv[2] ?? '{}')

/**
 * Only what is asked for: each loads a client library.
 *
 * @type {Record<string, Service>}
 */
const services = Object.fromEntries(
  await Promise.all(names.map(async (name) => [name, await import(`./${name}.mjs`)])),
)

/** @param {string} line */
const log = (line) => process.connected && process.send?.({ log: line })

/** Set, and not serving us, is the user's mistake: no other way is tried. */
class ExplicitUrlError extends Error {}

/**
 * A way gives undefined where it does not apply, and throws where it should have worked and did not.
 *
 * @type {Record<string, (name: string, service: Service) => Promise<Serving | undefined>>}
 */
const ways = {
  async url(_name, { variable, take }) {
    const url = process.env[variable]
    if (!url) return undefined
    try {
      return await take(url)
    } catch (error) {
      throw new ExplicitUrlError(
        `${variable} is set to ${withoutPassword(url)}, which does not serve: ${reason(error)}. ` +
          `Start that server, correct ${variable}, or unset it.`,
      )
    }
  },

  async running(name, { standardPort, candidates, take }) {
    const refusals = new Set()
    for (const url of candidates(ports[name] ?? standardPort)) {
      try {
        // oxlint-disable-next-line no-await-in-loop -- the next login only if this one is refused
        return await take(url)
      } catch (error) {
        refusals.add(reason(error))
      }
    }
    throw new Error([...refusals].join('; '))
  },

  async installed(_name, service) {
    return own(service, await service.startInstalled())
  },

  async npm(_name, service) {
    return own(service, await service.startFromNpm?.())
  },

  async compose(name, service) {
    if (!(await compose.available())) return undefined
    log(`services: starting ${service.title} with docker compose`)
    return own(service, await compose.start(name, service.privateUrl))
  },

  async apt(_name, service) {
    if (!apt.available()) return undefined
    const name = /** @type {string} */ (service.packages['apt-get'])
    log(`services: installing ${name} with apt-get (THROUGHLINE_INSTALL_SERVICES=0 forbids it)`)
    await apt.install(name)
    const started = await service.startInstalled()
    if (!started) throw new Error(`${name} is installed, but PATH has no server out of it`)
    return own(service, started)
  },
}

/**
 * A private server is taken like any other, and stopped after what we took of it.
 *
 * @param {Service} service
 * @param {Started | undefined} started
 */
async function own(service, started) {
  if (!started) return undefined
  try {
    const taken = await service.take(started.url)
    log(`services: started ${service.title} on port ${new URL(started.url).port} for this run`)
    return { url: taken.url, stop: () => taken.stop().finally(started.stop) }
  } catch (error) {
    await started.stop()
    throw error
  }
}

/** @param {string} name */
async function start(name) {
  const service = /** @type {Service} */ (services[name])
  /** @type {string[]} */
  const tried = []
  for (const [way, attempt] of Object.entries(ways)) {
    if (allowed && !allowed.includes(way)) continue
    try {
      // oxlint-disable-next-line no-await-in-loop -- the next way only if this one does not serve
      const serving = await attempt(name, service)
      if (serving) return { name, serving }
    } catch (error) {
      if (error instanceof ExplicitUrlError) return { name, error }
      tried.push(`  ${name}, ${way}: ${reason(error)}`)
    }
  }
  return { name, tried }
}

/**
 * @param {unknown} error
 * @returns {string}
 */
function reason(error) {
  if (error instanceof AggregateError) return error.errors.map(reason).join('; ')
  return (error instanceof Error ? error.message || error.name : String(error)).replace(/\.+$/, '')
}

/** @param {string} url */
function withoutPassword(url) {
  return url.replace(/(\/\/[^/@]*:)[^/@]*@/, '$1***@')
}

const listed = new Intl.ListFormat('en', { type: 'conjunction' })

/** @param {Awaited<ReturnType<typeof start>>[]} outcomes */
async function complaint(outcomes) {
  const lines = outcomes.flatMap(({ error }) => error?.message ?? [])
  const missing = outcomes
    .filter(({ tried }) => tried)
    .map(({ name }) => /** @type {Service} */ (services[name]))
  if (missing.length > 0) {
    const titles = listed.format(missing.map(({ title }) => title))
    const variables = listed.format(missing.map(({ variable }) => variable))
    lines.push(
      `${titles} ${missing.length > 1 ? 'are' : 'is'} needed and nothing here serves. Get it with:`,
      `  ${await remedy(missing)}`,
      `or name a server of yours in ${variables}. What was tried:`,
      ...outcomes.flatMap(({ tried }) => tried ?? []),
    )
  }
  return lines.join('\n')
}

/**
 * @param {Service[]} missing
 * @returns {Promise<string>} the one command that gets them all here
 */
async function remedy(missing) {
  const managers = { brew: 'brew install', 'apt-get': 'sudo apt-get install', dnf: 'sudo dnf install' }
  const found = await Promise.all(Object.keys(managers).map(which))
  const [manager, command] = Object.entries(managers).find((_, index) => found[index]) ?? []
  if (manager) return `${command} ${missing.map(({ packages }) => packages[manager]).join(' ')}`
  return 'docker compose up -d'
}

const results = Promise.all(names.map(start))

/** @type {Promise<never> | undefined} */
let stopping

function stop() {
  return (stopping ??= stopAll())
}

/** @returns {Promise<never>} */
async function stopAll() {
  const serving = (await results).flatMap((result) => result.serving ?? [])
  const stopped = await Promise.allSettled(serving.map((one) => one.stop()))
  for (const one of stopped) if (one.status === 'rejected') console.error(`services: ${reason(one.reason)}`)
  process.exit()
}

process.once('disconnect', stop)
// The parent may have died while our modules were loading.
if (!process.connected) await stop()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, stop)

const settled = await results
if (process.connected) {
  const error = await complaint(settled)
  if (error) {
    process.send?.({ error }, () => process.disconnect())
  } else {
    process.send?.({ urls: Object.fromEntries(settled.map(({ name, serving }) => [name, serving?.url])) })
  }
}
