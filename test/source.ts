import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

/** All files below a folder of the repository, as paths from the root, in the order of the alphabet. */
export function filesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length).replaceAll('\\', '/'))
    .filter((path) => !/(^|\/)(dist|node_modules)\//.test(path))
    .sort()
}

export interface Import {
  from: string
  /** Whether nothing of it is left at run time. */
  isType: boolean
}

/** What a file imports and exports from elsewhere, in all forms that ECMAScript and CommonJS have. */
export function importsOf(path: string): Import[] {
  const code = readFileSync(join(root, path), 'utf8').replaceAll(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '')
  const statements = code.matchAll(
    /^(?:import|export)\s+(?:(type)\s+)?(?:[\w*{][^'";]*?\sfrom\s*)?['"]([^'"]+)['"]/gm,
  )
  const calls = code.matchAll(/\b(?:import|require)\(\s*['"]([^'"]+)['"]/g)
  return [
    ...Array.from(statements, ([, type, from]) => ({ from: from as string, isType: type === 'type' })),
    ...Array.from(calls, ([, from]) => ({ from: from as string, isType: false })),
  ]
}
