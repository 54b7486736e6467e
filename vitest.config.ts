import { defineConfig } from 'vitest/config'

// Packages export their sources under this condition, so that tests need no build and see every edit.
const conditions = ['@throughline/source', 'node', 'development|production']

export default defineConfig({
  resolve: { conditions },
  ssr: { resolve: { conditions, externalConditions: ['@throughline/source', 'node'] } },
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/build.setup.ts', 'test/services.setup.ts'],
    testTimeout: 20_000,
    hookTimeout: 60_000,
    restoreMocks: true,
    unstubEnvs: true,
  },
})
