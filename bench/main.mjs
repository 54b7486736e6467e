import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { HELP, readArguments, UsageError } from './arguments.mjs'
import { needCallgrind } from './callgrind.mjs'
import { startChild } from './child.mjs'
import { contenders, microContenders } from './contenders.mjs'
import { cores } from './cores.mjs'
import { endToEnd } from './end-to-end.mjs'
import { findInstall } from './install.mjs'
import { instructions, PATIENCE } from './instructions.mjs'
import { micro } from './micro.mjs'
import { needPerf } from './perf.mjs'
import { profile } from './profile.mjs'
import { report } from './report.mjs'
import { startSink } from './sink.mjs'
import { startBackends } from './services.mjs'
import { stage } from './staging.mjs'

/**
 * How many requests come before those that count: after 25,000 to 30,000 V8 has compiled nearly all that it will, with
 * clients as well as without; after 20,000 that still takes 3 µs of each.
 */
const WARM_UP_REQUESTS = 32_000
/** What there is time for in two minutes: some of the compiling is counted then, which after 20,000 takes 3 µs of each. */
const SHORT_WARM_UP_REQUESTS = 24_000
/**
 * For each framework: the quick run is to take two minutes, on a slow machine with one process of each and half of
 * the rounds.
 */
const QUICK_SECONDS = 22

/** @param {string[]} args */
export async function run(args) {
  try {
    const options = readArguments(args)
    if (options === 'help') console.log(HELP)
    else await bench(options)
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    console.error(`${error.message}\n--help lists the options`)
    process.exitCode = 2
  }
}

/** @param {import('./arguments.mjs').Options} options */
async function bench(options) {
  const { quick } = options
  if (options.instructions) needCallgrind()
  if (options.profile) needPerf()
  const { node, version, install } = findInstall(options.node)
  const root = process.env.THROUGHLINE_BENCH_ROOT ?? fileURLToPath(new URL('..', import.meta.url))
  const roots = [{ name: 'ours', root }, ...options.ours]
  const staged = []
  process.once('exit', () => {
    for (const { remove } of staged) remove()
  })
  for (const { name, root } of roots) staged.push({ name, ...stage({ root, install, name }) })
  // The processes of the bench end with this one.
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))
  const ours = staged.map(({ name, folder, version }) => ({ name, folder, version }))
  const wanted = selection(options, ours)
  const progress = (line) => process.stderr.write(`  ${line}\n`)

  const load = await startChild(new URL('load-process.mjs', import.meta.url), {
    name: 'the load generator',
    node,
    core: 'rest',
    patience: options.instructions ? PATIENCE : 1,
  })
  const results = {
    node: version,
    cores: cores().described,
    micro: [],
    endToEnd: [],
    profile: [],
    instructions: [],
    failures: [],
  }
  let backends
  try {
    if (options.micro) {
      progress('micro benches')
      const sink = await startSink(node)
      try {
        results.micro = await micro({
          contenders: microContenders(ours, install).filter(({ name }) => wanted(name)),
          node,
          rounds: options.rounds ?? (quick ? 3 : 9),
          sink,
        })
      } finally {
        await sink.stop()
      }
      results.modules = await loadedModules(staged[0].folder, node)
    }
    const runsApps = options.endToEnd || options.profile || options.instructions
    for (const withClients of runsApps ? options.clients : []) {
      if (withClients) {
        progress('PostgreSQL, Redis and a service over HTTP')
        try {
          backends = await startBackends({ install, node })
        } catch (error) {
          results.failures.push(`with pg + redis + http: ${error.message}`)
          break
        }
      }
      for (const framework of options.frameworks) {
        progress(`${framework}${withClients ? ' + pg + redis + http' : ''}`)
        const measured = {
          framework,
          urls: backends?.urls,
          contenders: contenders(ours).filter(({ name, isQuick }) => wanted(name) && (isQuick || !quick)),
          install,
          node,
          load,
        }
        if (options.instructions) {
          const counted = await instructions({
            ...measured,
            warmUp: withClients ? 64_000 : 32_000,
            rounds: options.rounds ?? 5,
            requests: 3000,
          })
          results.instructions.push(...counted)
          continue
        }
        const requests = withClients ? 1500 : quick ? 2000 : 4000
        const isShort = quick && options.processes === undefined && !options.profile
        const warmUpRounds = Math.ceil((isShort ? SHORT_WARM_UP_REQUESTS : WARM_UP_REQUESTS) / requests)
        if (options.profile) {
          const rows = await profile({
            ...measured,
            warmUpRounds,
            // What is looked for is a small share of the samples.
            rounds: options.rounds ?? (quick ? 12 : 30),
            requests,
          })
          results.profile.push(...rows)
          continue
        }
        const rows = await endToEnd({
          ...measured,
          processes: options.processes ?? (quick ? 3 : 5),
          mostSeconds: isShort ? QUICK_SECONDS : undefined,
          warmUpRounds,
          // With clients one is far from the next, and what warms up takes the most of the time.
          rounds: options.rounds ?? (quick ? 10 : withClients ? 16 : 8),
          leastRounds: options.rounds ?? (quick ? 5 : undefined),
          requests,
          // Many and short: a stall of the machine then spoils few. With clients a third of what can be done is few requests.
          latencyRounds: options.latency ? (quick ? 7 : withClients ? 15 : 45) : 0,
          latencySeconds: withClients ? 0.3 : 0.1,
        })
        results.endToEnd.push(...rows)
      }
    }
  } finally {
    await backends?.stop()
    await load.stop()
  }
  console.log(report(results))
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(results, undefined, 2)}\n`)
}

/**
 * Which contenders take part, by their names.
 *
 * @throws UsageError if a beginning is nobody's
 */
function selection({ only }, ours) {
  if (only === undefined) return () => true
  const begins = (name, begin) => name.toLowerCase().startsWith(begin.toLowerCase())
  const names = contenders(ours).map(({ name }) => name)
  for (const begin of only) {
    if (names.some((name) => begins(name, begin))) continue
    throw new UsageError(
      `--contender expects the beginning of one of ${names.join('; ')}; received "${begin}"`,
    )
  }
  return (name) => ['bare', 'floor', ...only].some((begin) => begins(name, begin))
}

async function loadedModules(folder, node) {
  const child = await startChild(new URL('modules-process.mjs', import.meta.url), {
    name: 'the import',
    node,
    core: 'rest',
    settings: { folder, name: '@throughline/express' },
  })
  const loaded = await child.ask('loaded')
  await child.stop()
  return loaded
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await run(process.argv.slice(2))
