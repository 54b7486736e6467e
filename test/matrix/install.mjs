import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { npmInstall } from '../../scripts/node.mjs'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** What tests import by a path, besides each other, and what their tsconfig.json does. */
const NEAR = ['packages', 'scripts']
const BASE = 'tsconfig.base.json'

/**
 * A folder below the root that has the row's packages, and a copy of the tests. What a file there imports it finds as Node
 * finds everything: first in the row's packages, and if it is not there in the root's, so nothing of the tests has to know of
 * the matrix. No part of its path begins with a dot, which what serves files takes for hidden. Our packages are the root's, for
 * whom only the tests resolve a library.
 *
 * @param {import('./table.mjs').Row} row
 * @returns {string}
 * @throws Error if npm cannot install it
 */
export function installRow(row) {
  const folder = join(root, 'matrix', row.row.replaceAll(' ', '-'))
  mkdirSync(folder, { recursive: true })
  if (!row.comesWithNode) installIn(folder, row)
  copyTests(folder)
  return folder
}

/**
 * @param {string} folder
 * @param {import('./table.mjs').Row} row
 */
function installIn(folder, { row, library, name, version, beside, overrides }) {
  const manifest = `${JSON.stringify(
    {
      private: true,
      dependencies: { [name]: name === library ? version : `npm:${library}@${version}`, ...beside },
      overrides,
    },
    undefined,
    2,
  )}\n`
  const file = join(folder, 'package.json')
  const installed = join(folder, 'node_modules')
  const isInstalled =
    existsSync(join(installed, '.package-lock.json')) && readFileSync(file, 'utf8') === manifest
  if (!isInstalled) {
    rmSync(folder, { recursive: true })
    mkdirSync(folder)
    writeFileSync(file, manifest)
    if (!npmInstall(folder, '--save-exact', '--loglevel=error')) {
      rmSync(installed, { recursive: true, force: true })
      throw new Error(`npm could not install ${row}`)
    }
  }
  const found = JSON.parse(readFileSync(join(installed, name, 'package.json'), 'utf8')).version
  if (found !== version) throw new Error(`${folder} has ${library} ${found} and not ${version}`)
}

/** @param {string} folder */
function copyTests(folder) {
  const copy = join(folder, 'test')
  rmSync(copy, { recursive: true, force: true })
  cpSync(join(root, 'test'), copy, {
    recursive: true,
    filter: (path) => !/[\\/]node_modules$/.test(path),
  })
  cpSync(join(root, BASE), join(folder, BASE))
  for (const name of NEAR) {
    if (!existsSync(join(folder, name))) symlinkSync(join(root, name), join(folder, name), 'junction')
  }
}

/**
 * What is in `test/` for a library alone: `<library>.test.ts`, `<library>-*.test.ts`, and a folder of its name.
 *
 * @param {string} library
 * @returns {string[]} paths from the root
 */
export function filesOf(library) {
  return readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .map((path) => path.replaceAll('\\', '/'))
    .filter(
      (path) => path.endsWith('.ts') && path.startsWith(library) && /^[-./]/.test(path.slice(library.length)),
    )
    .map((path) => `test/${path}`)
    .sort()
}
