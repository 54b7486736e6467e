import { alive, attempt } from './attempt.mjs'
import { profiler } from './perf.mjs'
import { startServer } from './start-server.mjs'
import { startSink } from './sink.mjs'
import { median, shuffled } from './statistic.mjs'

const CONNECTIONS = 64

/** What is a contender's own code, by where it is written. */
const OWN_CODE = {
  bare: /(?!)/,
  floor: /\/bench\/(floor|contender)\//,
  ours: /\/@throughline\/|\/@opentelemetry\/api\//,
  opentelemetry: /\/@opentelemetry\/|\/@fastify\/otel\/|-in-the-middle\//,
  'dd-trace': /\/dd-trace\/|\/@datadog\/|\/dc-polyfill\/|-in-the-middle\//,
  sentry: /\/@sentry\/|\/@opentelemetry\/|\/@fastify\/otel\/|-in-the-middle\//,
  elastic: /\/elastic-apm-/,
}
/** Node's `AsyncLocalStorage` is used for tracing alone here, and V8 inlines it into the code of one contender and not of another. */
const CONTEXT = /^node:(?:internal\/async_local_storage|async_hooks)\b/

/**
 * @typedef {object} ProfileResult
 * @property {string} framework
 * @property {boolean} withClients
 * @property {string} name
 * @property {string} [version]
 * @property {string} [error]
 * @property {number[]} [rounds] microseconds per request in code of its own, of each round
 * @property {number} [own] their median
 * @property {number} [all] the same of all code
 * @property {{ name: string, file: string, isOwn: boolean, microseconds: number }[]} [functions] per request, the dearest first;
 *   those of others tell what tracing makes them do
 */

/**
 * One app, once for each contender: the time spent in the contender's own code, and in what that calls that is not JavaScript. What
 * tracing makes others do is not in it; and nor is what the machine does, and others on it, so that a few rounds tell more than an hour
 * of comparing whole requests.
 *
 * @param {object} options
 * @param {string} options.framework
 * @param {{ postgres: string, redis: string, http: string } | undefined} options.urls of what the app asks; none for an
 *   app that asks nobody
 * @param {import('./start-server.mjs').Contender[]} options.contenders
 * @param {string} options.install
 * @param {string} options.node
 * @param {number} options.warmUpRounds before those that count: V8 compiles until then
 * @param {number} options.rounds
 * @param {number} options.requests per round
 * @param {import('./child.mjs').Child} options.load
 * @returns {Promise<ProfileResult[]>}
 */
export async function profile(options) {
  const { framework, urls, contenders, install, node, warmUpRounds, rounds, requests, load } = options
  const withClients = urls !== undefined
  const sink = await startSink(node)
  const { flags: profiled, folder, watch, remove } = profiler()
  const servers = contenders
    .filter(({ contender }) => OWN_CODE[contender] !== undefined)
    .map((contender) => ({
      contender,
      /** @type {ProfileResult} */
      result: { framework, withClients, name: contender.name },
      /** @type {{ begin: number, end: number }[]} */
      rounds: [],
      child: undefined,
      port: 0,
      watched: undefined,
    }))

  try {
    for (const server of servers) await attempt(server, begin)
    for (let round = 0; round < warmUpRounds; round++) {
      for (const server of shuffled(alive(servers))) await attempt(server, send)
    }
    for (const server of alive(servers)) await attempt(server, observe)
    for (let round = 0; round < rounds; round++) {
      for (const server of shuffled(alive(servers))) await attempt(server, measure)
    }
    for (const server of alive(servers)) await attempt(server, read)
    return servers.map(({ result }) => result)
  } finally {
    await Promise.all(servers.map(({ child }) => child?.stop()))
    await sink.stop()
    remove()
  }

  async function begin(server) {
    const { contender, result } = server
    const endpoint = await sink.open(contender.name)
    server.child = await startServer(contender, {
      framework,
      urls,
      install,
      endpoint,
      node,
      core: 'measured',
      flags: profiled,
      folder,
    })
    const { port, version } = await server.child.ask('describe')
    server.port = port
    result.version = version
  }

  /** A round of requests, and the export of what they have left. */
  async function send({ contender, child, port }) {
    const { flags } = contender
    await load.ask('amount', {
      port,
      count: requests,
      connections: CONNECTIONS,
      flags,
      isAwake: !withClients,
    })
    await child.ask('flush')
  }

  async function observe(server) {
    const { pid } = await server.child.ask('describe')
    server.watched = await watch(pid)
  }

  async function measure(server) {
    const begin = now()
    await send(server)
    server.rounds.push({ begin, end: now() })
  }

  async function read({ contender, result, rounds, watched }) {
    const ownCode = OWN_CODE[contender.contender]
    const own = rounds.map(() => 0)
    const all = rounds.map(() => 0)
    const functions = new Map()
    for await (const { seconds, microseconds, name, file } of watched.samples()) {
      const round = rounds.findIndex(({ begin, end }) => seconds >= begin && seconds <= end)
      if (round === -1) continue
      all[round] += microseconds
      const isOwn = ownCode.test(file) || (contender.contender !== 'bare' && CONTEXT.test(file))
      if (isOwn) own[round] += microseconds
      const key = `${file} ${name}`
      let known = functions.get(key)
      if (known === undefined) functions.set(key, (known = { name, file, isOwn, microseconds: 0 }))
      known.microseconds += microseconds / (requests * rounds.length)
    }
    const perRequest = (sums) => sums.map((sum) => sum / requests)
    result.rounds = perRequest(own)
    result.own = median(result.rounds)
    result.all = median(perRequest(all))
    result.functions = [...functions.values()].toSorted((a, b) => b.microseconds - a.microseconds)
  }
}

/** Seconds of the clock by which samples are told. */
function now() {
  return Number(process.hrtime.bigint()) / 1e9
}
