/** Child processes, and the directories and ports that they need. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs'
import { access, constants } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { promisify } from 'node:util'

/** @typedef {{ uid: number, gid: number }} User */

/** The longest that a server may take to be ready, or to end: a slow machine, not a stuck one. */
const patience = 30_000

/** @type {Set<import('node:child_process').ChildProcess>} */
const running = new Set()
/** @type {Set<string>} */
const directories = new Set()

// The last resort, for a keeper that dies of an error of its own: nothing here may wait.
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
  for (const directory of directories) removeDirectory(directory)
})

/**
 * Starts a server that stays in the foreground, and resolves when it prints that it is ready.
 *
 * @param {string} file
 * @param {string[]} args
 * @param {object} options
 * @param {RegExp} options.ready what it prints on stdout or stderr when it is ready
 * @param {string} options.cwd
 * @param {NodeJS.ProcessEnv} [options.env]
 * @param {User | undefined} [options.user]
 * @param {NodeJS.Signals} [options.stopSignal] asks it to end at once but in order
 * @returns {Promise<() => Promise<void>>} stops it
 */
export async function launch(file, args, { ready, cwd, env = process.env, user, stopSignal = 'SIGTERM' }) {
  const child = spawn(file, args, {
    cwd,
    env: { ...env, HOME: cwd },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...user,
  })
  running.add(child)
  child.once('exit', () => running.delete(child))
  const exit = once(child, 'exit')
  let output = ''
  /** @type {NodeJS.Timeout | undefined} */
  let timer
  try {
    await new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(new Error('it was not ready in time')), patience)
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', (text) => {
          output = (output + text).slice(-4096)
          if (ready.test(output)) resolve(undefined)
        })
      }
      exit.then(() => reject(new Error(`it ended: ${output.trim()}`)), reject)
    })
  } catch (error) {
    child.kill('SIGKILL')
    await exit.catch(() => {})
    throw new Error(`${file}: ${/** @type {Error} */ (error).message}`, { cause: error })
  } finally {
    clearTimeout(timer)
  }
  return async () => {
    const insisting = setTimeout(() => child.kill('SIGKILL'), patience)
    child.kill(stopSignal)
    await exit
    clearTimeout(insisting)
  }
}

/** Bytes of output: node kills a program that prints more, and an apt-get must not die half way. */
const plenty = 2 ** 26

/**
 * @param {string} file
 * @param {string[]} args
 * @param {import('node:child_process').ExecFileOptions} [options]
 */
export function run(file, args, options) {
  return promisify(execFile)(file, args, { timeout: patience, maxBuffer: plenty, ...options })
}

/** @returns {Promise<number>} a port that is free now; another process may take it before you do */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address())
  server.close()
  await once(server, 'close')
  return port
}

/** Another process may take a free port before the server does, but hardly so often. */
const attempts = 3

/**
 * Runs `start` with a free port and an empty directory; what it gives is stopped before the directory goes.
 *
 * @param {string} name
 * @param {User | undefined} user the owner of the directory
 * @param {(port: number, directory: string) => Promise<{ url: string, stop: () => Promise<void> }>} start
 * @returns {Promise<{ url: string, stop: () => Promise<void> }>}
 */
export async function inDirectory(name, user, start, attempt = 1) {
  const directory = mkdtempSync(join(temporary(user), `throughline-${name}-`))
  directories.add(directory)
  try {
    if (user) chownSync(directory, user.uid, user.gid)
    const { url, stop } = await start(await freePort(), directory)
    return { url, stop: () => stop().finally(() => removeDirectory(directory)) }
  } catch (error) {
    removeDirectory(directory)
    if (attempt < attempts && /in use|eaddrinuse/i.test(String(error))) {
      return inDirectory(name, user, start, attempt + 1)
    }
    throw error
  }
}

/** @param {string} directory */
function removeDirectory(directory) {
  rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
  directories.delete(directory)
}

/**
 * Root's own TMPDIR may lie where no other user can go.
 *
 * @param {User | undefined} user
 */
function temporary(user) {
  return (user && [tmpdir(), '/tmp', '/var/tmp'].filter(existsSync).find(openToAll)) || tmpdir()
}

/**
 * @param {string} path
 * @returns {boolean}
 */
function openToAll(path) {
  const real = realpathSync(path)
  return (statSync(real).mode & 0o001) !== 0 && (dirname(real) === real || openToAll(dirname(real)))
}

/**
 * @param {string[]} names in the order of preference
 * @returns {User | undefined} whom to run as if we are root, for servers that refuse root
 */
export function unprivileged(...names) {
  if (process.getuid?.() !== 0) return undefined
  const users = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'))
  for (const name of names) {
    const user = users.find(([known]) => known === name)
    if (user) return { uid: Number(user[2]), gid: Number(user[3]) }
  }
  throw new Error(`we are root, and there is no user ${names.join(' or ')} to run it as`)
}

/**
 * @param {string} program
 * @returns {Promise<string | undefined>} where PATH has it
 */
export async function which(program) {
  const path = (process.env['PATH'] ?? '').split(delimiter).filter(Boolean)
  const names = process.platform === 'win32' ? [`${program}.exe`, `${program}.cmd`] : [program]
  const files = path.flatMap((directory) => names.map((name) => join(directory, name)))
  const found = await Promise.all(
    files.map((file) =>
      access(file, constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  )
  return files[found.indexOf(true)]
}
