// `npm run demo`: builds what the example needs, finds or starts its services, and runs the checkout.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startServices } from './services.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))

process.exitCode = await main(process.argv.slice(2))

async function main(argv) {
  const [oldest, received] = [oldestNode(), process.versions.node]
  if (received.localeCompare(oldest, 'en', { numeric: true }) < 0) {
    console.error(`The demo failed: expected Node ${oldest} or newer, received ${received}`)
    return 1
  }
  build()
  const { readOptions, USAGE } = await import('../examples/checkout/dist/options.js')
  const options = readOptions(argv)
  if (typeof options === 'string') {
    console.error(`${options}\n\n${USAGE}`)
    return 2
  }
  if (options.help) {
    console.log(USAGE)
    return 0
  }
  let services
  try {
    services = await startServices(['postgres', 'redis'])
    const { demo } = await import('../examples/checkout/dist/demo.js')
    const { postgres: databaseUrl, redis: redisUrl } = services.urls
    await demo(options, { databaseUrl, redisUrl })
    return 0
  } catch (error) {
    console.error(`The demo failed: ${error instanceof Error ? error.message : error}`)
    return 1
  } finally {
    await services?.stop()
  }
}

/** What package.json asks for. An older one fails at one place or another, and does not say why. */
function oldestNode() {
  return JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).engines.node.replace('>=', '')
}

function build() {
  const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin/tsc')
  const { status } = spawnSync(process.execPath, [tsc, '-b', join(root, 'examples/checkout')], {
    stdio: ['ignore', 2, 2],
  })
  if (status !== 0) process.exit(status ?? 1)
}
