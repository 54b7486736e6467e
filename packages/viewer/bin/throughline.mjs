#!/usr/bin/env node
// Not built, but as it is in git: npm links a command at install, where a checkout has no dist yet.
import { existsSync } from 'node:fs'

const command = new URL('../dist/command.js', import.meta.url)
if (existsSync(command)) {
  const { main } = await import(command.href)
  // Not process.exit(): a pipe may still hold what was printed.
  process.exitCode = await main(process.argv.slice(2), process)
} else {
  console.error('throughline: it is not built yet: run `npm run build` first')
  process.exitCode = 1
}
