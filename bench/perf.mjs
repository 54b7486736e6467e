import { execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { UsageError } from './arguments.mjs'

const run = promisify(execFile)

/** Samples a second of CPU time. */
const FREQUENCY = 4000
/** How V8 names the code of a JavaScript function: its tier, its name (of two words for a getter), and where it is written. */
const JAVASCRIPT = /^\s*[0-9a-f]+ JS:[*^~+]?'?(.*?) ?((?:file:|node:|\/).*?):\d+:\d+/

/**
 * Where a sample was taken.
 *
 * @typedef {object} Sample
 * @property {number} seconds of the monotonic clock, which `process.hrtime` reads, too
 * @property {number} microseconds of CPU that it stands for
 * @property {string} name of the nearest JavaScript function on the stack; empty where there is none
 * @property {string} file in which it is written
 */

/**
 * Tells in which JavaScript function a Node process spends its time.
 *
 * @typedef {object} Profiler
 * @property {string[]} flags of the node that is watched
 * @property {string} folder in which it is to run: V8 writes there which code it has made
 * @property {(pid: number) => Promise<{ samples: () => AsyncGenerator<Sample> }>} watch from now on; `samples` ends it
 * @property {() => void} remove
 */

/** @throws UsageError where perf is not installed, or may not look */
export function needPerf() {
  if (spawnSync('perf', ['record', '-e', 'cpu-clock', '-o', '/dev/null', 'true']).status === 0) return
  throw new UsageError(
    '--only profile needs perf on the PATH, and the right to use it; example: apt-get install linux-perf',
  )
}

/** @returns {Profiler} */
export function profiler() {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-perf-'))
  const remove = () => rmSync(folder, { recursive: true, force: true })
  // Also where somebody interrupts the bench.
  process.once('exit', remove)
  return {
    // The code that V8 makes comes and goes, and another is where one was: this tells when each was where.
    flags: ['--perf-prof', '--interpreted-frames-native-stack'],
    folder,
    async watch(pid) {
      const recorded = join(folder, `${pid}.data`)
      const words = ['record', '-q', '-e', 'cpu-clock', '-F', FREQUENCY, '-g', '-k', 'mono', '-o', recorded]
      // Begun when it is told to, it says when it has.
      const control = ['-D', '-1', '--control', 'fd:3,4']
      const recorder = spawn('perf', [...words, ...control, '-p', pid].map(String), {
        stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
      })
      const ended = once(recorder, 'exit')
      const [, , , orders, answers] = recorder.stdio
      // Who has ended already takes no orders, and is told of below.
      for (const pipe of [orders, answers]) pipe.on('error', () => {})
      orders.write('enable\n')
      const enabled = once(answers, 'data').then(
        () => [],
        () => ended,
      )
      const [end] = await Promise.race([enabled, ended])
      if (end !== undefined) throw new Error(`perf ended (${end})`)
      return {
        async *samples() {
          recorder.kill('SIGINT')
          await ended
          const injected = join(folder, `${pid}.injected`)
          await run('perf', ['inject', '-j', '-i', recorded, '-o', injected], { cwd: folder })
          yield* read(injected, folder)
        },
      }
    },
    remove,
  }
}

/** @param {string} recorded @param {string} folder @returns {AsyncGenerator<Sample>} */
async function* read(recorded, folder) {
  const words = ['script', '-i', recorded, '-F', 'time,period,ip,sym']
  const script = spawn('perf', words, { cwd: folder, stdio: ['ignore', 'pipe', 'ignore'] })
  const ended = once(script, 'exit')
  let count = 0
  for await (const sample of samplesIn(createInterface({ input: script.stdout }))) {
    count += 1
    yield sample
  }
  const [code, signal] = await ended
  if (code !== 0) throw new Error(`perf script ended (${signal ?? code})`)
  if (count === 0) throw new Error('perf has seen nothing')
}

/**
 * What perf prints: for each sample its time and for how many nanoseconds it stands, then its frames, the innermost first.
 *
 * @param {AsyncIterable<string> | Iterable<string>} lines
 * @returns {AsyncGenerator<Sample>}
 */
export async function* samplesIn(lines) {
  /** @type {Sample | undefined} */
  let sample
  for await (const line of lines) {
    const [, seconds, period] = /^\s*(\d+\.\d+):\s+(\d+)/.exec(line) ?? []
    if (period !== undefined) {
      if (sample !== undefined) yield sample
      sample = { seconds: Number(seconds), microseconds: Number(period) / 1000, name: '', file: '' }
    } else if (sample !== undefined && sample.file === '') {
      const [, name, file] = JAVASCRIPT.exec(line) ?? []
      if (file !== undefined) Object.assign(sample, { name, file })
    }
  }
  if (sample !== undefined) yield sample
}
