import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { onTestFinished } from 'vitest'
import { root } from '../source.ts'

/** Which `@opentelemetry/api` a copy sees: the app's, one of its own, or one of its own that says another version. */
export type Api = 'shared' | 'own' | `${number}.${number}.${number}`

const api = join(root, 'node_modules/@opentelemetry/api')
const { version: installed } = JSON.parse(readFileSync(join(api, 'package.json'), 'utf8')) as {
  version: string
}
const [major, minor] = installed.split('.').map(Number) as [number, number]
/** Versions of the API: the one that is installed, another patch of it, and the minor after it. */
export const API = {
  installed,
  otherPatch: `${major}.${minor}.99`,
  nextMinor: `${major}.${minor + 1}.0`,
} as const

/**
 * Installs these packages once more, elsewhere, as npm would: what is published of them, and their peers beside them.
 * Answers the folder. It is removed after the test.
 */
export function installedElsewhere(packages: readonly string[], given: Api): string {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-copy-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const modules = join(folder, 'node_modules')
  for (const name of packages) {
    const from = join(root, 'packages', name)
    const to = join(modules, '@throughline', name)
    cpSync(join(from, 'dist'), join(to, 'dist'), { recursive: true })
    cpSync(join(from, 'package.json'), join(to, 'package.json'))
  }
  const apiHere = join(modules, '@opentelemetry', 'api')
  mkdirSync(dirname(apiHere), { recursive: true })
  if (given === 'shared') symlinkSync(api, apiHere, 'junction')
  else cpSync(api, apiHere, { recursive: true })
  if (given !== 'shared' && given !== 'own') {
    let changed = 0
    // Its build writes the version into more than one file.
    for (const name of readdirSync(apiHere, { recursive: true, encoding: 'utf8' })) {
      if (!/\.[cm]?js$/.test(name)) continue
      const file = join(apiHere, name)
      const code = readFileSync(file, 'utf8')
      if (!code.includes(installed)) continue
      writeFileSync(file, code.replaceAll(installed, given))
      changed += 1
    }
    if (changed === 0) throw new Error(`no file of the API says its version, ${installed}`)
  }
  return folder
}
