// `npm run demo`: builds what the example needs, finds or starts its services, and runs the checkout.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startServices } from './services.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin/tsc')

const build = spawnSync(process.execPath, [tsc, '-b', join(root, 'examples/checkout')], {
  stdio: ['ignore', 2, 2],
})
if (build.status !== 0) process.exit(build.status ?? 1)

const { demo } = await import('../examples/checkout/dist/demo.js')
const services = await startServices(['postgres', 'redis'])
try {
  const { postgres: databaseUrl, redis: redisUrl } = services.urls
  process.exitCode = await demo(process.argv.slice(2), { databaseUrl, redisUrl })
} catch (error) {
  console.error(`The demo failed: ${error instanceof Error ? error.message : error}`)
  process.exitCode = 1
} finally {
  await services.stop()
}
