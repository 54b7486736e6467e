import { fileURLToPath } from 'node:url'
import { startChild } from './child.mjs'
import { prove } from './proof.mjs'
import { median, rotated } from './statistic.mjs'

/** Enough to keep the server busy all the time, few enough that it does not answer in large heaps. */
const CONNECTIONS = 16
/** At a fixed rate nobody is to wait for a connection. */
const RATE_CONNECTIONS = 256
const PROOF_REQUESTS = 20
/** By then pools have their connections, of which some contenders make spans, too. */
const FIRST_REQUESTS = 50
/** The share of what the bare app can do at most, at which latencies are taken. */
const RATE_SHARE = 1 / 3
/** A contender that would be busier than this at that rate gets its own third: a queue that grows has no p99. */
const BUSIEST = 0.6

/**
 * @typedef {object} EndToEndContender
 * @property {string} name
 * @property {string} contender the file in contender/
 * @property {object} [settings] for it
 * @property {Record<string, string>} [env]
 * @property {'01' | '00'} [flags] of the traceparent that its requests bring along; without, they bring none
 *
 * @typedef {object} EndToEndResult
 * @property {string} framework
 * @property {boolean} withClients
 * @property {string} name
 * @property {string} [version]
 * @property {string} [error]
 * @property {number[]} [rounds] microseconds per request in each round
 * @property {number} [cpu] their median
 * @property {number} [added] the same over the bare app's, the median of paired rounds
 * @property {number} [spansPerRequest]
 * @property {number} [lost] share of the spans that did not arrive
 * @property {number} [rate] requests per second at which the latencies were taken
 * @property {number} [p50] milliseconds
 * @property {number} [p99]
 * @property {number} [rss] bytes
 */

/**
 * One app, once for each contender: all up at the same time, and measured in turns.
 *
 * @param {object} options
 * @param {string} options.framework
 * @param {{ postgres: string, redis: string, http: string } | undefined} options.urls of what the app asks; none for an
 *   app that asks nobody
 * @param {EndToEndContender[]} options.contenders the first is the bare app
 * @param {string} options.install
 * @param {string} options.node
 * @param {number} options.rounds
 * @param {number} options.requests per round
 * @param {number} options.latencyRounds
 * @param {number} options.latencySeconds of each of them
 * @param {import('./sink.mjs').Sink} options.sink
 * @param {import('./child.mjs').Child} options.load
 * @returns {Promise<EndToEndResult[]>}
 */
export async function endToEnd(options) {
  const { framework, urls, contenders, install, node, rounds, requests, sink, load } = options
  const { latencyRounds, latencySeconds } = options
  const withClients = urls !== undefined
  const servers = contenders.map((contender) => ({
    ...contender,
    result: /** @type {EndToEndResult} */ ({ framework, withClients, name: contender.name }),
    cpu: [],
    throughput: [],
    latencies: [],
    requests: 0,
    sinkName: `${contender.name}, ${framework}${withClients ? ' + clients' : ''}`,
    child: undefined,
    port: 0,
  }))
  const alive = () => servers.filter(({ result }) => result.error === undefined)
  const attempt = async (server, step) => {
    try {
      await step(server)
    } catch (error) {
      server.result.error = error.message
      await server.child?.stop()
    }
  }

  try {
    for (const server of servers) await attempt(server, begin)
    // The first rounds compile the code, and are not counted.
    for (let round = -warmUpRounds(rounds); round < rounds; round++) {
      for (const server of rotated(alive(), round + rounds))
        await attempt(server, () => measure(server, round >= 0))
    }
    for (const server of alive()) await attempt(server, settle)
    const [bare] = servers
    if (latencyRounds > 0 && bare.result.error === undefined) {
      const perSecond = median(bare.throughput) * RATE_SHARE
      for (let round = 0; round < latencyRounds; round++) {
        for (const server of rotated(alive(), round)) await attempt(server, () => wait(server, perSecond))
      }
      for (const { result, latencies } of alive()) {
        result.p50 = median(latencies.map(({ p50 }) => p50))
        result.p99 = median(latencies.map(({ p99 }) => p99))
      }
    }
    for (const server of alive()) {
      server.result.rounds = server.cpu
      server.result.cpu = median(server.cpu)
      server.result.added = median(server.cpu.map((cpu, round) => cpu - bare.cpu[round]))
    }
  } finally {
    await Promise.all(servers.map(({ child }) => child?.stop()))
  }
  return servers.map(({ result }) => result)

  async function begin(server) {
    const endpoint = await sink.open(server.sinkName)
    server.child = await startChild(new URL('server.mjs', import.meta.url), {
      name: server.name,
      node,
      core: 'measured',
      settings: { ...server.settings, contender: server.contender, framework, install, endpoint, urls },
      env: { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_SERVICE_NAME: 'bench', ...server.env },
    })
    const { port, version } = await server.child.ask('describe')
    server.port = port
    server.result.version = version
    await send(server, FIRST_REQUESTS, CONNECTIONS)
    await server.child.ask('flush')
    await sink.capture(server.sinkName, true)
    const { spans: before } = await sink.counts(server.sinkName)
    await send(server, PROOF_REQUESTS, 4)
    await server.child.ask('flush')
    await sink.capture(server.sinkName, false)
    server.sinkBefore = await sink.counts(server.sinkName)
    server.result.spansPerRequest = prove({
      contender: server.contender,
      flags: server.flags,
      requests: PROOF_REQUESTS,
      withClients,
      captured: await sink.captured(server.sinkName),
      count: server.sinkBefore.spans - before,
    })
  }

  async function send(server, count, connections) {
    const { port, flags } = server
    return load.ask('amount', { port, count, connections, flags })
  }

  async function measure(server, isCounted) {
    await server.child.ask('begin')
    const { seconds } = await send(server, requests, CONNECTIONS)
    const microseconds = await server.child.ask('end')
    server.requests += requests
    if (!isCounted) return
    server.cpu.push(microseconds / requests)
    server.throughput.push(requests / seconds)
  }

  async function settle(server) {
    server.result.rss = await server.child.ask('rss')
    const { spans } = await sink.counts(server.sinkName)
    // A connection that was made in between had a span of its own.
    const expected = server.requests * Math.floor(server.result.spansPerRequest)
    const arrived = spans - server.sinkBefore.spans
    server.result.lost = server.flags === '01' && expected > 0 ? Math.max(0, 1 - arrived / expected) : 0
  }

  async function wait(server, wanted) {
    const { port, flags } = server
    // By CPU, which a busy machine does not change much.
    const isTooBusy = (wanted * median(server.cpu)) / 1e6 > BUSIEST
    const perSecond = isTooBusy ? median(server.throughput) * RATE_SHARE : wanted
    const latency = await load.ask('rate', {
      port,
      flags,
      perSecond,
      seconds: latencySeconds,
      connections: RATE_CONNECTIONS,
    })
    server.latencies.push(latency)
    server.result.rate = perSecond
  }
}

function warmUpRounds(rounds) {
  return Math.max(2, Math.ceil(rounds / 4))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { run } = await import('./main.mjs')
  await run(['--only', 'end-to-end', ...process.argv.slice(2)])
}
