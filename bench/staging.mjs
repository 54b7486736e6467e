import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { UsageError } from './arguments.mjs'
import { versionOf } from './version.mjs'

/** What a package of ours is when it is published, its sources apart. */
const PUBLISHED = ['package.json', 'dist']

/**
 * Copies the built packages of a checkout to where they find the API of this install and nothing of the checkout's: what
 * is measured is what npm would publish, and a build in the meantime changes nothing.
 *
 * @param {object} options
 * @param {string} options.root the folder that holds `packages/`
 * @param {string} options.install the folder that holds the `node_modules` to run with
 * @param {string} options.name
 * @returns {{ folder: string, version: string, remove: () => void }} `folder` resolves `@throughline/*`
 * @throws UsageError if there is nothing to measure
 */
export function stage({ root, install, name }) {
  const packages = join(resolve(root), 'packages')
  if (!existsSync(packages)) throw new UsageError(`${name}: there is no folder packages/ in ${root}`)
  const run = join(install, '.staged', String(process.pid))
  const folder = join(run, name)
  for (const directory of readdirSync(packages)) {
    const source = join(packages, directory)
    if (!existsSync(join(source, 'package.json'))) continue
    const manifest = JSON.parse(readFileSync(join(source, 'package.json'), 'utf8'))
    if (!existsSync(join(source, 'dist'))) {
      throw new UsageError(`${name}: ${manifest.name} has not been built in ${root}; run: npm run build`)
    }
    const target = join(folder, 'node_modules', manifest.name)
    mkdirSync(target, { recursive: true })
    for (const part of PUBLISHED) cpSync(join(source, part), join(target, part), { recursive: true })
  }
  return {
    folder,
    version: versionOf(folder, '@throughline/core'),
    remove: () => rmSync(run, { recursive: true, force: true }),
  }
}
