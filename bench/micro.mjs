import { fileURLToPath } from 'node:url'
import { startChild } from './child.mjs'
import { median, shuffled } from './statistic.mjs'

/** Operations per round: each takes the slowest contender some tenths of a second, the clock's grain being a microsecond. */
const COUNTS = {
  span: 51_200,
  'span, set': 51_200,
  encode: 51_200,
  inject: 400_000,
  extract: 200_000,
  with: 400_000,
  active: 2_000_000,
}
/** Rounds that are not counted: by then the code is compiled. */
const WARM_UP_ROUNDS = 3
const HEAP_SPANS = 20_000
const HEAP_ROUNDS = 5
const BURST_SPANS = 10_000
/** MiB: no span of a heap round is collected before it was counted. */
const YOUNG_GENERATION_MIB = 256

/**
 * @typedef {object} MicroResult
 * @property {string} name
 * @property {string} [version]
 * @property {string} [error]
 * @property {Record<string, number>} nanoseconds CPU for each operation
 * @property {{ allocated: number, retained: number }} [heap] bytes per finished span
 * @property {number} [burst] spans of a burst of 10,000 that arrived
 */

/**
 * Span lifecycle, encoding, propagation and context, for each contender in a process of its own.
 *
 * @param {object} options
 * @param {{ name: string, contender: string, settings: object }[]} options.contenders
 * @param {string} options.node
 * @param {number} options.rounds
 * @param {import('./sink.mjs').Sink} [options.sink] where bursts go; without one there are none
 * @param {(line: string) => void} [options.log]
 * @returns {Promise<MicroResult[]>}
 */
export async function micro({ contenders, node, rounds, sink, log = () => {} }) {
  /** @type {MicroResult[]} */
  const results = contenders.map(({ name }) => ({ name, nanoseconds: {} }))

  await withWorkers('time', async (workers) => {
    for (const [index, worker] of workers.entries()) {
      if (worker !== undefined) results[index].version = await worker.ask('version')
    }
    const alive = [...workers.entries()].filter(([, worker]) => worker !== undefined)
    for (const [operation, count] of Object.entries(COUNTS)) {
      log(operation)
      const times = new Map(alive.map(([index]) => [index, []]))
      for (let round = 0; round < WARM_UP_ROUNDS + rounds; round++) {
        for (const [index, worker] of shuffled(alive)) {
          const nanoseconds = await worker.ask('time', { operation, count })
          if (round >= WARM_UP_ROUNDS) times.get(index).push(nanoseconds)
        }
      }
      for (const [index] of alive) results[index].nanoseconds[operation] = median(times.get(index))
    }
    // Whoever lost spans has not done the work.
    const made = (COUNTS.span + COUNTS['span, set']) * (WARM_UP_ROUNDS + rounds)
    for (const [index, worker] of alive) {
      const { spans } = await worker.ask('exported')
      if (spans < made) results[index].error = `${made - spans} of ${made} spans were not exported`
    }
  })

  log('heap')
  await withWorkers('heap', async (workers) => {
    for (const [index, worker] of workers.entries()) {
      if (worker === undefined) continue
      const heaps = []
      for (let round = 0; round < HEAP_ROUNDS; round++)
        heaps.push(await worker.ask('heap', { count: HEAP_SPANS }))
      results[index].heap = {
        allocated: median(heaps.map(({ allocated }) => allocated)),
        retained: median(heaps.map(({ retained }) => retained)),
      }
    }
  })

  if (sink !== undefined) {
    log('burst')
    await withWorkers('burst', async (workers, names) => {
      for (const [index, worker] of workers.entries()) {
        if (worker === undefined) continue
        const before = await sink.counts(names[index])
        await worker.ask('burst', { count: BURST_SPANS })
        const after = await sink.counts(names[index])
        results[index].burst = after.spans - before.spans
      }
    })
  }
  return results

  async function withWorkers(purpose, use) {
    const names = contenders.map(({ name }) => `${name}, ${purpose}`)
    const workers = await Promise.all(
      contenders.map(async ({ contender, settings }, index) => {
        if (results[index].error !== undefined) return undefined
        try {
          const endpoint = purpose === 'burst' ? await sink.open(names[index]) : undefined
          return await startChild(new URL('micro/worker.mjs', import.meta.url), {
            name: names[index],
            node,
            core: 'measured',
            settings: { ...settings, contender, purpose, endpoint },
            env: endpoint === undefined ? {} : { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint },
            flags: [
              '--expose-gc',
              ...(purpose === 'heap'
                ? [
                    `--min-semi-space-size=${YOUNG_GENERATION_MIB}`,
                    `--max-semi-space-size=${YOUNG_GENERATION_MIB}`,
                  ]
                : []),
            ],
          })
        } catch (error) {
          results[index].error = error.message
          return undefined
        }
      }),
    )
    try {
      await use(workers, names)
    } finally {
      await Promise.all(workers.map((worker) => worker?.stop()))
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { run } = await import('./main.mjs')
  await run(['--only', 'micro', ...process.argv.slice(2)])
}
