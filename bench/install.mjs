import { spawnSync } from 'node:child_process'
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchNode, isVersion } from '../scripts/node.mjs'
import { UsageError } from './arguments.mjs'

const HERE = fileURLToPath(new URL('.', import.meta.url)).replace(/\/$/, '')

/** The first Node that the newest OpenTelemetry runs on. */
const NEWEST_FROM = [22, 15]

/**
 * The executable that servers run on, and the folder whose packages they use.
 *
 * @param {string | undefined} wanted a version or a path; this process's own Node if not given
 * @returns {{ node: string, version: string, install: string }}
 * @throws UsageError
 */
export function findInstall(wanted) {
  const node = wanted === undefined ? process.execPath : isVersion(wanted) ? fetched(wanted) : wanted
  const { status, stdout } = spawnSync(node, ['--version'], { encoding: 'utf8' })
  if (status !== 0) {
    throw new UsageError(
      `--node expects a version or the path of an executable, received "${wanted}"; example: --node 24`,
    )
  }
  const version = stdout.trim()
  const [major = 0, minor = 0] = version.slice(1).split('.').map(Number)
  const isNewest = major > NEWEST_FROM[0] || (major === NEWEST_FROM[0] && minor >= NEWEST_FROM[1])
  const install = isNewest ? join(HERE, 'newest') : HERE
  if (
    !isInstalled(install) &&
    !npm(['ci', '--prefix', install, '--ignore-scripts', '--no-audit', '--no-fund'], node)
  ) {
    throw new UsageError(`npm could not install what bench/ needs in ${install}`)
  }
  return { node, version, install }
}

/** npm leaves behind what it installed: older than the lockfile, or missing, is not what the lockfile says. */
function isInstalled(install) {
  const installed = join(install, 'node_modules/.package-lock.json')
  return (
    existsSync(installed) &&
    statSync(installed).mtimeMs >= statSync(join(install, 'package-lock.json')).mtimeMs
  )
}

function fetched(version) {
  try {
    return fetchNode(version)
  } catch (error) {
    throw new UsageError(`--node ${version}: ${error.message}`)
  }
}

/** What npm is run with decides which of the packages' versions it warns about. */
function npm(args, node) {
  const path = node === undefined ? process.env.PATH : `${join(node, '..')}:${process.env.PATH}`
  process.stderr.write(`  npm ${args.join(' ')}\n`)
  const { status } = spawnSync('npm', args, { stdio: ['ignore', 2, 2], env: { ...process.env, PATH: path } })
  return status === 0
}
