import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { UsageError } from './arguments.mjs'

const run = promisify(execFile)

/**
 * Counts the instructions of processes in user space, of which `pid` is one that was started by these words.
 *
 * @typedef {object} Callgrind
 * @property {string[]} under the words of the command that runs a process
 * @property {(pid: number) => Promise<void>} begin counts from now on
 * @property {(pid: number) => Promise<number>} end gives how many there were since
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
      const [, total] = /^(?:totals|summary): (\d+)/m.exec(readFileSync(join(folder, file), 'utf8')) ?? []
      rmSync(join(folder, file))
      return Number(total)
    },
    remove,
  }
}
