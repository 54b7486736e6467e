import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cores } from './cores.mjs'

/** How long a process may take to load its code before it is said to have failed: times its patience, as the next one. */
const START_DEADLINE_MS = 30_000
/** How long an answer may take. The slowest contender's rounds take some seconds. */
const ANSWER_DEADLINE_MS = 120_000

/**
 * A process of the bench that is asked by messages, and answers.
 *
 * @typedef {object} Child
 * @property {(question: string, given?: unknown) => Promise<any>} ask rejects if the answer is an error, or if the process ends
 * @property {() => Promise<void>} stop
 */

/**
 * Starts a script of the bench in a process of its own.
 *
 * @param {URL} script calls `answer()`
 * @param {object} options
 * @param {string} options.name for messages
 * @param {string} options.node the executable
 * @param {'measured' | 'rest' | 'any'} options.core where it runs: alone with what is measured, with all others, or wherever
 *   there is room
 * @param {unknown} [options.settings] what the script gets from `settings()`
 * @param {Record<string, string>} [options.env]
 * @param {string[]} [options.flags] of node
 * @param {string[]} [options.under] the words of a command that runs it
 * @param {string} [options.folder] in which it runs
 * @param {number} [options.patience] how many times the usual it may take to answer
 * @returns {Promise<Child>} when the script has called `answer()`
 */
export async function startChild(
  script,
  { name, node, core, settings, env = {}, flags = [], under = [], folder, patience = 1 },
) {
  const command = [...under, node, ...flags, script.pathname]
  const [file, ...args] = [...(core === 'any' ? [] : cores().pin(core)), ...command]
  const { PATH, HOME, LANG, TMPDIR } = process.env
  const child = spawn(file, args, {
    // Nothing of this terminal's environment decides what is measured.
    env: {
      ...Object.fromEntries(Object.entries({ PATH, HOME, LANG, TMPDIR }).filter(([, value]) => value)),
      NODE_ENV: 'production',
      BENCH_SETTINGS: JSON.stringify(settings ?? {}),
      ...env,
    },
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    // JSON has no Infinity.
    serialization: 'advanced',
  })
  let said = ''
  const hear = (chunk) => {
    said = (said + chunk).slice(-4000)
  }
  child.stdout.on('data', hear)
  child.stderr.on('data', hear)

  const waiting = new Map()
  let nextId = 0
  let over
  child.on('message', ({ id, result, error }) => {
    const waiter = waiting.get(id)
    waiting.delete(id)
    if (error === undefined) waiter?.resolve(result)
    else waiter?.reject(new Error(`${name}: ${error}`))
  })
  const ended = once(child, 'exit').then(
    ([code, signal]) => {
      over = new Error(
        `${name} ended (${signal ?? code})${said === '' ? '' : `, and had said:\n${said.trim()}`}`,
      )
      for (const waiter of waiting.values()) waiter.reject(over)
      waiting.clear()
    },
    (error) => {
      over = error
      for (const waiter of waiting.values()) waiter.reject(over)
    },
  )

  function ask(question, given, deadline = ANSWER_DEADLINE_MS * patience) {
    if (over !== undefined) return Promise.reject(over)
    const id = nextId++
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => {
        waiting.delete(id)
        reject(
          new Error(
            `${name} did not answer "${question}" within ${deadline / 1000} s${said && `; it said:\n${said.trim()}`}`,
          ),
        )
      }, deadline)
      const settled = (settle) => (value) => {
        clearTimeout(late)
        settle(value)
      }
      waiting.set(id, { resolve: settled(resolve), reject: settled(reject) })
      if (id > 0) child.send({ id, question, given })
    })
  }

  async function stop() {
    if (over === undefined) child.kill('SIGKILL')
    await ended
  }

  try {
    // The first answer is unasked: the script is ready.
    await ask('be ready', undefined, START_DEADLINE_MS * patience)
  } catch (error) {
    await stop()
    throw error
  }
  return { ask, stop }
}

/** What the script was started with. */
export function settings() {
  return JSON.parse(process.env.BENCH_SETTINGS ?? '{}')
}

/**
 * Answers questions until the process that started this one is gone.
 *
 * @param {Record<string, (given: any) => unknown>} answers
 */
export function answer(answers) {
  process.on('disconnect', () => process.exit())
  process.on('message', async ({ id, question, given }) => {
    try {
      process.send({ id, result: await answers[question](given) })
    } catch (error) {
      process.send({ id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) })
    }
  })
  process.send({ id: 0 })
}
