import { parseArgs } from 'node:util'
import { isVersion } from '../../scripts/node.mjs'
import { LIBRARIES, NODES, ROWS } from './table.mjs'

export const HELP = `The tests of each library on each version of it, and on each Node.

  npm run test:matrix -- [options]

  --library <name>  ${LIBRARIES.join(', ')}; may be given several times (default: all)
  --row <name>      one version of a library, as below; may be given several times (default: all)
  --node <version>  ${NODES.map(majorOf).join(', ')}, a full version, or "this"; may be given several times
                    (default: ${NODES.map(majorOf).join(', ')})
  --json <file>     how many tests passed, failed and were skipped, as JSON, too
  --help

The rows: ${ROWS.map(({ row }) => `"${row}"`).join(', ')}`

/** What the person typed cannot be done; the message says why. */
export class UsageError extends Error {}

/**
 * @typedef {object} Options
 * @property {import('./table.mjs').Row[]} rows
 * @property {string[]} nodes full versions
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
        library: { type: 'string', multiple: true },
        row: { type: 'string', multiple: true },
        node: { type: 'string', multiple: true },
        json: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    }))
  } catch (error) {
    throw new UsageError(/** @type {Error} */ (error).message)
  }
  if (values.help) return 'help'
  const { library: libraries = LIBRARIES, row: names, node = NODES, json } = values
  for (const library of libraries) oneOf('--library', library, LIBRARIES)
  for (const name of names ?? []) {
    oneOf(
      '--row',
      name,
      ROWS.map(({ row }) => row),
    )
  }
  const rows = ROWS.filter(
    ({ library, row }) => libraries.includes(library) && (names === undefined || names.includes(row)),
  )
  if (rows.length === 0) {
    throw new UsageError(
      `--library ${libraries.join(', ')} and --row ${names?.join(', ')} leave nothing to run`,
    )
  }
  const nodes = [...new Set(node.map(readNode))]
  if (!rows.some((row) => nodes.some((version) => runsOn(row, version)))) {
    const needed = rows.map(({ row, from }) => `${row} needs Node ${from}`).join(', ')
    throw new UsageError(`--node ${node.join(', ')} leaves nothing to run: ${needed}`)
  }
  return { rows, nodes, json }
}

/**
 * Whether this version of a library, or a gap, is for this Node.
 *
 * @param {{ from?: string }} row
 * @param {string} node a full version
 */
export function runsOn({ from }, node) {
  if (from === undefined) return true
  const [least, given] = [from, node].map((version) => version.split('.').map(Number))
  for (const [index, number] of least.entries()) {
    if (given[index] !== number) return given[index] > number
  }
  return true
}

/** @param {string} given */
function readNode(given) {
  if (given === 'this') return process.versions.node
  const version = NODES.find((node) => node === given || majorOf(node) === given)
  if (version !== undefined) return version
  if (isVersion(given) && given.split('.').length === 3) return given
  throw new UsageError(
    `--node expects ${NODES.map(majorOf).join(', ')}, a full version or "this", received "${given}"; ` +
      `example: --node ${majorOf(NODES[0])}`,
  )
}

/** @param {string} version */
function majorOf(version) {
  return version.split('.', 1)[0]
}

/**
 * @param {string} option
 * @param {string} given
 * @param {string[]} known
 */
function oneOf(option, given, known) {
  if (known.includes(given)) return
  throw new UsageError(
    `${option} expects one of ${known.join(', ')}, received "${given}"; example: ${option} "${known[0]}"`,
  )
}
