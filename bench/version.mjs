import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * The version of a package that is installed in this folder. Not by `require`: not every package lets its package.json be
 * asked for.
 *
 * @param {string} folder
 * @param {string} name
 * @returns {string}
 */
export function versionOf(folder, name) {
  return JSON.parse(readFileSync(join(folder, 'node_modules', name, 'package.json'), 'utf8')).version
}
