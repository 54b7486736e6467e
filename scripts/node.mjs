import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { arch, platform } from 'node:process'
import { fileURLToPath } from 'node:url'

/** Whether this is a version, or the beginning of one: 24, 24.21, 24.21.0. */
export function isVersion(text) {
  return /^\d+(\.\d+){0,2}$/.test(text)
}

/**
 * The executable of another Node, from the npm package of this platform, the one that the package `node` would fetch by a
 * script. It is fetched once, to `.node/` of this checkout.
 *
 * @param {string} version of a beginning, the newest; as it was when it was fetched
 * @returns {string}
 * @throws Error if npm has none
 */
export function fetchNode(version) {
  const folder = fileURLToPath(new URL(`../.node/${version}`, import.meta.url))
  const name = `${platform === 'darwin' && arch === 'arm64' ? 'node-bin' : 'node'}-${platform === 'win32' ? 'win' : platform}-${arch}`
  const executable = join(folder, 'node_modules', name, 'bin', platform === 'win32' ? 'node.exe' : 'node')
  if (!existsSync(executable)) {
    mkdirSync(folder, { recursive: true })
    if (!npmInstall(folder, '--no-save', `${name}@${version}`)) {
      rmSync(folder, { recursive: true })
      throw new Error(`npm has no ${name} of version ${version} for us`)
    }
  }
  return executable
}

/**
 * Installs in a folder of its own what its manifest or the arguments say. What npm says goes to stderr.
 *
 * @param {string} folder
 * @param {...string} args more options, and packages
 * @returns {boolean} whether it could
 */
export function npmInstall(folder, ...args) {
  const all = ['install', '--prefix', folder, '--no-audit', '--no-fund', '--ignore-scripts', ...args]
  process.stderr.write(`  npm ${all.join(' ')}\n`)
  return spawnSync('npm', all, { stdio: ['ignore', 2, 2], shell: platform === 'win32' }).status === 0
}
