import { spawnSync } from 'node:child_process'
import type { TestProject } from 'vitest/node'
import { startServices } from '../scripts/services.mjs'

declare module 'vitest' {
  interface ProvidedContext {
    /** A PostgreSQL database made for this run, empty, dropped afterwards. */
    databaseUrl: string
    /** A Redis database for this run, empty but for the key `throughline:claim`, emptied afterwards. */
    redisUrl: string
  }
}

// What tests run as processes of their own is compiled first; everything else they take from the sources.
function build(): void {
  const tsc = ['node_modules/typescript/bin/tsc', '-b', 'examples/checkout']
  const { status, stdout } = spawnSync(process.execPath, tsc, {
    cwd: new URL('..', import.meta.url),
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`the packages do not compile:\n${stdout}`)
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  build()
  const { urls, stop } = await startServices(['postgres', 'redis'])
  project.provide('databaseUrl', urls.postgres)
  project.provide('redisUrl', urls.redis)
  return stop
}
