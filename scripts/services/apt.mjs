import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { run } from './child.mjs'

/** ms for one apt-get: a slow mirror, not a stuck one. */
const patience = 600_000

/** Debian asks this program whether a package may start its server; 101 is no. */
const policy = '/usr/sbin/policy-rc.d'

/** Only where nobody is surprised by it: as root, on Debian or what is made of it, and not forbidden. */
export function available() {
  if (process.env['THROUGHLINE_INSTALL_SERVICES'] === '0' || process.getuid?.() !== 0) return false
  try {
    return /^ID(_LIKE)?=.*\b(debian|ubuntu)\b/m.test(readFileSync('/etc/os-release', 'utf8'))
  } catch {
    return false
  }
}

/** @type {Promise<unknown>} */
let previous = Promise.resolve()

/**
 * Installs a package without starting what is in it. One at a time: dpkg has a lock.
 *
 * @param {string} name
 */
export function install(name) {
  const turn = previous.then(() => installNow(name))
  previous = turn.catch(() => {})
  return turn
}

/** @param {string} name */
async function installNow(name) {
  const forbidden = forbidStarting()
  try {
    await updated()
    await apt('install', '--yes', '--no-install-recommends', name)
  } finally {
    if (forbidden) rmSync(policy)
  }
}

/** @returns {boolean} whether the policy is ours, to be removed afterwards */
function forbidStarting() {
  try {
    writeFileSync(policy, '#!/bin/sh\nexit 101\n', { flag: 'wx', mode: 0o755 })
    return true
  } catch {
    return false
  }
}

/** @type {Promise<unknown> | undefined} */
let update

function updated() {
  return (update ??= apt('update'))
}

/** @param {string[]} args */
function apt(...args) {
  return run('apt-get', ['--quiet', '--option', 'DPkg::Lock::Timeout=120', ...args], {
    timeout: patience,
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  })
}
