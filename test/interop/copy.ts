import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { onTestFinished } from 'vitest'
import { root } from '../source.ts'

/** Which `@opentelemetry/api` a copy sees: the app's, one of its own, or one of its own that says another version. */
export type Api = 'shared' | 'own' | `${number}.${number}.${number}`

const api = join(root, 'node_modules/@opentelemetry/api')

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
    const file = join(apiHere, 'build/src/version.js')
    const { version } = JSON.parse(readFileSync(join(api, 'package.json'), 'utf8')) as { version: string }
    writeFileSync(file, readFileSync(file, 'utf8').replace(version, given))
  }
  return folder
}
