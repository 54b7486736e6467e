import { availableParallelism } from 'node:os'
import { callgrind } from './callgrind.mjs'
import { startSink } from './sink.mjs'
import { startServer } from './start-server.mjs'

const CONNECTIONS = 8
/** Between two of these parts of the warm-up everything is exported, as it is between two rounds. */
const WARM_UP_PARTS = 8
/** Under valgrind all takes fifty times as long. */
export const PATIENCE = 50
/** No export is given up for that, and none is made because time has passed: a batch goes when it is full, as at full speed. */
const NO_HASTE = { OTEL_EXPORTER_OTLP_TIMEOUT: '600000', OTEL_BSP_SCHEDULE_DELAY: '600000' }

/**
 * @typedef {object} InstructionsResult
 * @property {string} framework
 * @property {boolean} withClients
 * @property {string} name
 * @property {string} [version]
 * @property {string} [error]
 * @property {number[]} [rounds] instructions per request, of each round
 * @property {number} [count] the fewest: in some rounds V8 compiles once more
 * @property {number} [added] over the bare app's
 * @property {number} [misses] of the first cache for each request, the fewest
 * @property {number} [addedMisses]
 * @property {number} [spansPerRequest] that arrived
 */

/**
 * One app, once for each contender: instructions in user space for each request, and how often one waits for code or data that is
 * not in the core's first cache, export included. Another load on the machine changes little about them. They say nothing of
 * the kernel.
 *
 * @param {object} options
 * @param {string} options.framework
 * @param {{ postgres: string, redis: string, http: string } | undefined} options.urls of what the app asks; none for an
 *   app that asks nobody
 * @param {import('./start-server.mjs').Contender[]} options.contenders the first is the bare app
 * @param {string} options.install
 * @param {string} options.node
 * @param {number} options.warmUp how many requests come first: V8 compiles until then
 * @param {number} options.rounds
 * @param {number} options.requests per round
 * @param {import('./child.mjs').Child} options.load
 * @returns {Promise<InstructionsResult[]>}
 */
export async function instructions(options) {
  const { framework, urls, contenders, install, node, warmUp, rounds, requests, load } = options
  const counter = callgrind()
  const sink = await startSink(node)
  try {
    const results = []
    const waiting = [...contenders.entries()]
    const works = Array.from({ length: availableParallelism() }, async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        const [index, contender] = next
        results[index] = await resultOf(contender)
      }
    })
    await Promise.all(works)
    const [bare] = results
    for (const result of results) {
      result.added = result.count - bare.count
      result.addedMisses = result.misses - bare.misses
    }
    return results
  } finally {
    await sink.stop()
    counter.remove()
  }

  async function resultOf(contender) {
    const result = { framework, withClients: urls !== undefined, name: contender.name }
    try {
      return { ...result, ...(await count(contender)) }
    } catch (error) {
      return { ...result, error: error.message }
    }
  }

  async function count(contender) {
    const { name, flags } = contender
    const endpoint = await sink.open(name)
    const server = await startServer(contender, {
      framework,
      urls,
      install,
      endpoint,
      node,
      env: NO_HASTE,
      core: 'any',
      // Compilers and the garbage collector have threads of their own, that are at work by chance.
      flags: ['--single-threaded'],
      under: counter.under,
      patience: PATIENCE,
    })
    try {
      const { pid, port, version } = await server.ask('describe')
      const send = async (count) => {
        await load.ask('amount', { port, count, connections: CONNECTIONS, flags, isAwake: false })
        await server.ask('flush')
      }
      for (let part = 0; part < WARM_UP_PARTS; part++) await send(Math.ceil(warmUp / WARM_UP_PARTS))
      const { spans: before } = await sink.counts(name)
      const counts = []
      for (let round = 0; round < rounds; round++) {
        await counter.begin(pid)
        await send(requests)
        counts.push(await counter.end(pid))
      }
      const { spans } = await sink.counts(name)
      const spansPerRequest = (spans - before) / (rounds * requests)
      const perRequest = counts.map(({ instructions }) => instructions / requests)
      const misses = Math.min(...counts.map((each) => each.misses / requests))
      return { version, rounds: perRequest, count: Math.min(...perRequest), misses, spansPerRequest }
    } finally {
      await server.stop()
    }
  }
}
