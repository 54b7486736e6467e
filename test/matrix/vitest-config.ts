import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import base from '../../vitest.config.ts'

/** What main.mjs asks of a run. */
interface Asked {
  /** The row's copy of the tests. */
  folder: string
  files: string[]
  titles: string
  services: boolean
  /** Where the reporter writes. */
  report: string
}

const { folder, files, titles, services, report } = JSON.parse(process.env['MATRIX_RUN'] as string) as Asked
const path = (name: string) => fileURLToPath(new URL(name, import.meta.url))

export default defineConfig({
  ...base,
  root: folder,
  test: {
    ...base.test,
    include: files,
    testNamePattern: new RegExp(titles),
    globalSetup: [path('../build.setup.ts'), ...(services ? [path('../services.setup.ts')] : [])],
    reporters: ['dot', [path('reporter.mjs'), { report }]],
  },
})
