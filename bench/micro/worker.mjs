import { answer, settings } from '../child.mjs'

/**
 * @typedef {object} Contender
 * @property {string} version
 * @property {() => Promise<{ spans: number, bytes: number }>} exported flushes, and tells what has been encoded so far
 * @property {Record<string, (count: number) => void | Promise<void>>} operations
 * @property {(kept: unknown[]) => void} keep fills the list with finished spans
 * @property {(count: number) => Promise<void>} burst makes so many spans in one tick, and sends them
 *
 * @typedef {(settings: any) => Promise<Contender>} Load
 */

const given = settings()
const kept = { spans: [], count: 0 }
const { load } = await import(`./${given.contender}.mjs`)
/** @type {Contender} */
const contender = await load({ ...given, kept })
const { operations } = contender

answer({
  version: () => contender.version,

  /** CPU nanoseconds for one of each, all threads of the process counted. */
  async time({ operation, count }) {
    globalThis.gc()
    const before = process.cpuUsage()
    await operations[operation](count)
    const { user, system } = process.cpuUsage(before)
    return ((user + system) * 1000) / count
  },

  exported: () => contender.exported(),

  /** Bytes that a finished span allocates, and that it holds on to. The young generation is large: nothing is collected. */
  heap({ count }) {
    const spans = Array.from({ length: count }, () => null)
    contender.keep(spans)
    spans.fill(null)
    globalThis.gc()
    const before = process.memoryUsage().heapUsed
    contender.keep(spans)
    const made = process.memoryUsage().heapUsed
    globalThis.gc()
    const after = process.memoryUsage().heapUsed
    return { allocated: (made - before) / count, retained: (after - before) / count }
  },

  burst: ({ count }) => contender.burst(count),
})
