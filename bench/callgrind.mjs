import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { UsageError } from './arguments.mjs'

const run = promisify(execFile)

/** A core's first caches, of code and of data, as servers have them now: bytes, ways, bytes of a line. */
const CACHES = ['--I1=32768,8,64', '--D1=32768,8,64']
/** What is read or written and is not in the core's first cache: code, data to read, data to write. */
const MISSES = ['I1mr', 'D1mr', 'D1mw']

/**
 * @typedef {object} Counts
 * @property {number} instructions
 * @property {number} misses how often code or data was not in the core's first cache
 */

/**
 * Counts what processes do in user space, of which `pid` is one that was started by these words.
 *
 * @typedef {object} Callgrind
 * @property {string[]} under the words of the command that runs a process
 * @property {(pid: number) => Promise<void>} begin counts from now on
 * @property {(pid: number) => Promise<Counts>} end gives how many there were since
 * @property {() => void} remove
 */

/** @throws UsageError where valgrind is not installed */
export function needCallgrind() {
  if (['valgrind', 'callgrind_control'].every((command) => spawnSync(command, ['--version']).status === 0))
    return
  throw new UsageError('--only instructions needs valgrind on the PATH; example: apt-get install valgrind')
}

/** @returns {Callgrind} */
export function callgrind() {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-callgrind-'))
  const remove = () => rmSync(folder, { recursive: true, force: true })
  // Also where somebody interrupts the bench.
  process.once('exit', remove)
  const tell = (pid, ...words) => run('callgrind_control', [...words, String(pid)])
  return {
    under: [
      'valgrind',
      '--quiet',
      '--tool=callgrind',
      '--cache-sim=yes',
      ...CACHES,
      // V8 writes code all the time.
      '--smc-check=all-non-file',
      // Until it is told to count it runs several times as fast.
      '--instr-atstart=no',
      `--callgrind-out-file=${join(folder, '%p')}`,
    ],
    async begin(pid) {
      await tell(pid, '-i', 'on')
      await tell(pid, '-z')
    },
    async end(pid) {
      await tell(pid, '-d')
      const file = readdirSync(folder).find((name) => name.startsWith(`${pid}.`))
      const text = readFileSync(join(folder, file), 'utf8')
      rmSync(join(folder, file))
      return countsIn(text)
    },
    remove,
  }
}

/** @param {string} text what callgrind has written @returns {Counts} */
function countsIn(text) {
  const events = /^events: (.*)$/m.exec(text)?.[1].split(' ')
  const totals = /^(?:totals|summary): (.*)$/m.exec(text)?.[1].split(' ').map(Number)
  if (events === undefined || totals === undefined) throw new Error('callgrind has written no totals')
  // Zeros at the end are left out.
  const count = (event) => totals[events.indexOf(event)] ?? 0
  return { instructions: count('Ir'), misses: MISSES.reduce((sum, event) => sum + count(event), 0) }
}
