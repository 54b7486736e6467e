#!/usr/bin/env node
import { main } from './command.ts'

// Not process.exit(): a pipe may still hold what was printed.
process.exitCode = await main(process.argv.slice(2), process)
