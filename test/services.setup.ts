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

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { urls, stop } = await startServices(['postgres', 'redis'])
  project.provide('databaseUrl', urls.postgres)
  project.provide('redisUrl', urls.redis)
  return stop
}
