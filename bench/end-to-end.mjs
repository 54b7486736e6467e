import { fileURLToPath } from 'node:url'
import { alive, attempt } from './attempt.mjs'
import { prove } from './proof.mjs'
import { startServer } from './start-server.mjs'
import { startSink } from './sink.mjs'
import { median, shuffled } from './statistic.mjs'

/** Enough to keep the server busy all the time, few enough that it does not answer in large heaps. */
const CONNECTIONS = 64
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
 * @typedef {object} EndToEndResult
 * @property {string} framework
 * @property {boolean} withClients
 * @property {string} name
 * @property {string} [version]
 * @property {string} [error]
 * @property {number[][]} rounds microseconds per request, of each process in each of its rounds
 * @property {number} [cpu] the median of the processes' medians
 * @property {number} [added] the same over the bare app's, of paired rounds
 * @property {number} [spansPerRequest]
 * @property {number} [lost] share of the spans that did not arrive
 * @property {number} [rate] requests per second at which the latencies were taken
 * @property {number} [p50] milliseconds
 * @property {number} [p99]
 * @property {number[]} [p99s] of each round, in which all others have theirs
 * @property {number} [rss] bytes
 */

/**
 * One app, once for each contender: all up at the same time, and measured in turns; then the same with new processes. What
 * V8 makes of one and the same code differs from process to process by more than what is to be told apart.
 *
 * @param {object} options
 * @param {string} options.framework
 * @param {{ postgres: string, redis: string, http: string } | undefined} options.urls of what the app asks; none for an
 *   app that asks nobody
 * @param {import('./start-server.mjs').Contender[]} options.contenders the first is the bare app
 * @param {string} options.install
 * @param {string} options.node
 * @param {number} options.processes of each contender, one after the other
 * @param {number} [options.mostSeconds] no further processes are begun that may not end in this time; those that are far off have
 *   one alone then, since their rounds are the longest
 * @param {number} options.warmUpRounds before them: V8 compiles until then
 * @param {number} options.rounds of each process
 * @param {number} [options.leastRounds] how many there are where `mostSeconds` have passed, and of those that are far off
 * @param {number} options.requests per round
 * @param {number} options.latencyRounds of the first process
 * @param {number} options.latencySeconds of each of them
 * @param {import('./child.mjs').Child} options.load
 * @returns {Promise<EndToEndResult[]>}
 */
export async function endToEnd(options) {
  const { framework, urls, contenders, processes, mostSeconds = Infinity } = options
  const rows = contenders.map((contender) => ({
    contender,
    /** @type {EndToEndResult} */
    result: { framework, withClients: urls !== undefined, name: contender.name, rounds: [] },
    cpu: [],
    added: [],
    rss: [],
    lost: [],
  }))
  const ends = performance.now() + mostSeconds * 1000
  const isLate = () => performance.now() > ends
  const isShort = mostSeconds < Infinity
  for (let process = 1; process <= processes; process++) {
    const isFirst = process === 1
    const left = alive(rows).filter(({ contender }) => isFirst || !(isShort && contender.isFarOff))
    const begins = performance.now()
    if (left.length > 0) await generation(left, { ...options, isFirst, isLate })
    // The next one may take as long as this one did.
    if (2 * performance.now() - begins > ends) break
  }
  for (const { result, cpu, added, rss, lost } of rows) {
    if (result.error !== undefined) continue
    result.cpu = median(cpu)
    result.added = median(added)
    result.rss = median(rss)
    result.lost = Math.max(...lost)
  }
  return rows.map(({ result }) => result)
}

/** A process for each contender, from its start to its end. */
async function generation(rows, options) {
  const { framework, urls, install, node, warmUpRounds, rounds, requests, load } = options
  const { leastRounds = rounds, isLate } = options
  const { isFirst, latencyRounds, latencySeconds } = options
  const withClients = urls !== undefined
  const sink = await startSink(node)
  const servers = rows.map((row) => ({
    ...row.contender,
    row,
    result: row.result,
    cpu: [],
    throughput: [],
    latencies: [],
    requests: 0,
    child: undefined,
    port: 0,
  }))

  try {
    for (const server of servers) await attempt(server, begin)
    // In those before the first V8 compiles the code: they do not count.
    for (let round = -warmUpRounds; round < rounds; round++) {
      if (round >= leastRounds && isLate()) break
      const taking = alive(servers).filter(({ isFarOff }) => !isFarOff || round < leastRounds)
      for (const server of shuffled(taking)) await attempt(server, () => measure(server, round >= 0))
    }
    for (const server of alive(servers)) await attempt(server, settle)
    const bare = alive(servers).find(({ name }) => name === 'bare')
    if (isFirst && latencyRounds > 0 && bare !== undefined) {
      // The load generator shares the core with it, and its clock readings must not wait.
      await sink.stepBack()
      const perSecond = median(bare.throughput) * RATE_SHARE
      for (let round = 0; round < latencyRounds; round++) {
        for (const server of shuffled(alive(servers))) await attempt(server, () => wait(server, perSecond))
      }
      for (const { result, latencies } of alive(servers)) {
        result.p50 = median(latencies.map(({ p50 }) => p50))
        result.p99s = latencies.map(({ p99 }) => p99)
        result.p99 = median(result.p99s)
      }
    }
    for (const { row, result, cpu } of alive(servers)) {
      result.rounds.push(cpu)
      row.cpu.push(median(cpu))
      if (bare !== undefined) row.added.push(median(cpu.map((one, round) => one - bare.cpu[round])))
    }
  } finally {
    await Promise.all(servers.map(({ child }) => child?.stop()))
    await sink.stop()
  }

  async function begin(server) {
    const endpoint = await sink.open(server.name)
    server.child = await startServer(server, { framework, urls, install, node, endpoint, core: 'measured' })
    const { port, version } = await server.child.ask('describe')
    server.port = port
    server.result.version = version
    await send(server, FIRST_REQUESTS, CONNECTIONS)
    await server.child.ask('flush')
    await sink.capture(server.name, true)
    const { spans: before } = await sink.counts(server.name)
    await send(server, PROOF_REQUESTS, 4)
    await server.child.ask('flush')
    await sink.capture(server.name, false)
    server.sinkBefore = await sink.counts(server.name)
    server.result.spansPerRequest = prove({
      contender: server.contender,
      flags: server.flags,
      requests: PROOF_REQUESTS,
      withClients,
      captured: await sink.captured(server.name),
      count: server.sinkBefore.spans - before,
    })
  }

  async function send(server, count, connections) {
    const { port, flags } = server
    // What the app asks others for takes turns with the load generator on its core.
    return load.ask('amount', { port, count, connections, flags, isAwake: !withClients })
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
    const { row, flags } = server
    row.rss.push(await server.child.ask('rss'))
    const { spans } = await sink.counts(server.name)
    // A connection that was made in between had a span of its own.
    const expected = server.requests * Math.floor(server.result.spansPerRequest)
    const arrived = spans - server.sinkBefore.spans
    row.lost.push(flags === '01' && expected > 0 ? Math.max(0, 1 - arrived / expected) : 0)
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

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { run } = await import('./main.mjs')
  await run(['--only', 'end-to-end', ...process.argv.slice(2)])
}
