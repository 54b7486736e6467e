import { parseArgs } from 'node:util'

export const FRAMEWORKS = ['express', 'koa', 'fastify']
/** Those after the first two need tools of the machine's, and time: they are to be asked for. */
const PARTS = ['micro', 'end-to-end', 'profile', 'instructions']

export const HELP = `What tracing costs, side by side in one run.

  node main.mjs [options]

  --quick               bare, floor, ours and OpenTelemetry only, without clients; about two minutes
  --framework <name>    ${FRAMEWORKS.join(', ')}; may be given several times (default: all)
  --contender <name>    only those whose name begins so, beside bare and floor; may be given several times
  --only <part>         ${PARTS.join(', ')} (default: the first two)
  --clients, --no-clients
                        only with pg + redis + http, or only without (default: both)
  --processes <n>       end to end: of each contender, one after the other
  --rounds <n>          measured rounds of each process
  --no-latency          end to end: CPU and memory only
  --node <which>        a version (24, 24.21.0), fetched from npm, or the path of an executable (default: this one)
  --ours <name>=<path>  another checkout of Throughline, built, as one more contender; may be given several times
  --json <file>         the results as JSON, too
  --help`

/** What the person typed cannot be done; the message says why. */
export class UsageError extends Error {}

/**
 * @typedef {object} Options
 * @property {boolean} quick
 * @property {string[]} frameworks
 * @property {string[] | undefined} only beginnings of contenders' names
 * @property {boolean} micro
 * @property {boolean} endToEnd
 * @property {boolean} profile
 * @property {boolean} instructions
 * @property {boolean[]} clients the variants: without, with
 * @property {boolean} latency
 * @property {number | undefined} processes
 * @property {number | undefined} rounds
 * @property {string | undefined} node
 * @property {{ name: string, root: string }[]} ours
 * @property {string | undefined} json
 *
 * @param {string[]} args
 * @returns {Options | 'help'}
 * @throws UsageError
 */
export function readArguments(args) {
  let values
  try {
    ;({ values } = parseArgs({
      args,
      strict: true,
      allowPositionals: false,
      options: {
        quick: { type: 'boolean', default: false },
        framework: { type: 'string', multiple: true },
        contender: { type: 'string', multiple: true },
        only: { type: 'string' },
        clients: { type: 'boolean', default: false },
        'no-clients': { type: 'boolean', default: false },
        'no-latency': { type: 'boolean', default: false },
        processes: { type: 'string' },
        rounds: { type: 'string' },
        node: { type: 'string' },
        ours: { type: 'string', multiple: true, default: [] },
        json: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    }))
  } catch (error) {
    throw new UsageError(/** @type {Error} */ (error).message)
  }
  if (values.help) return 'help'
  const { quick, framework: frameworks = FRAMEWORKS, only } = values
  for (const framework of frameworks) oneOf('--framework', framework, FRAMEWORKS)
  if (only !== undefined) oneOf('--only', only, PARTS)
  if (values.clients && values['no-clients']) {
    throw new UsageError('--clients and --no-clients leave nothing to measure; give one of them')
  }
  const ours = values.ours.map(readRoot)
  for (const [index, { name }] of ours.entries()) {
    const isTaken = name === 'ours' || ours.findIndex((other) => other.name === name) < index
    if (isTaken)
      throw new UsageError(`--ours: the name "${name}" is taken; example: --ours before=../other-checkout`)
  }
  const both = quick || only === 'instructions' ? [false] : [false, true]
  return {
    quick,
    frameworks,
    only: values.contender,
    micro: only === undefined || only === 'micro',
    endToEnd: only === undefined || only === 'end-to-end',
    profile: only === 'profile',
    instructions: only === 'instructions',
    clients: values.clients ? [true] : values['no-clients'] ? [false] : both,
    latency: !values['no-latency'],
    processes: readCount('--processes', values.processes),
    rounds: readCount('--rounds', values.rounds),
    node: values.node,
    ours,
    json: values.json,
  }
}

function readCount(option, given) {
  if (given === undefined) return undefined
  if (/^[1-9]\d{0,3}$/.test(given)) return Number(given)
  throw new UsageError(
    `${option} expects a whole number from 1 on, received "${given}"; example: ${option} 9`,
  )
}

function oneOf(option, given, known) {
  if (known.includes(given)) return
  throw new UsageError(
    `${option} expects one of ${known.join(', ')}, received "${given}"; example: ${option} ${known[0]}`,
  )
}

function readRoot(given) {
  const [, name, root] = /^([\w.-]+)=(.+)$/.exec(given) ?? []
  if (root === undefined) {
    throw new UsageError(
      `--ours expects name=path, received "${given}"; example: --ours before=../other-checkout`,
    )
  }
  return { name, root }
}
