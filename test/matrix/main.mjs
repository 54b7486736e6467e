import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchNode } from '../../scripts/node.mjs'
import { HELP, readArguments, runsOn, UsageError } from './arguments.mjs'
import { filesOf, installRow, root } from './install.mjs'
import { broken, judge } from './judge.mjs'

/** A row is done in ten seconds; a busy machine may take many times that. */
const MOST_OF_A_ROW_MS = 300_000

/** @param {string[]} args */
function main(args) {
  let options
  try {
    options = readArguments(args)
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    console.error(`${error.message}\n--help lists the options`)
    process.exitCode = 2
    return
  }
  if (options === 'help') {
    console.log(HELP)
    return
  }
  const total = run(options)
  const { passed, failed, skipped, gaps } = total
  console.log(`\n${counted({ passed, failed, skipped, gaps })}`)
  if (options.json !== undefined)
    writeFileSync(options.json, `${JSON.stringify({ passed, failed, skipped })}\n`)
  if (failed > 0) process.exitCode = 1
}

/**
 * Runs row after row, and says a line of each.
 *
 * @param {import('./arguments.mjs').Options} options
 */
function run({ rows, nodes }) {
  const total = { passed: 0, failed: 0, skipped: 0, gaps: 0 }
  const width = Math.max(...rows.map((row) => named(row).length))
  for (const version of nodes) {
    for (const row of rows) {
      const begin = `Node ${version.padEnd(8)}  ${named(row).padEnd(width)}  `
      if (!runsOn(row, version)) {
        console.log(`${begin}not run: needs Node ${row.from}`)
        continue
      }
      const verdict = verdictOn(row, version)
      console.log(begin + counted(verdict))
      for (const { title, message } of verdict.failures) {
        console.log(`  ✗ ${title}\n      ${message.replaceAll('\n', '\n      ')}`)
      }
      for (const key of Object.keys(total)) total[key] += verdict[key]
    }
  }
  return total
}

/**
 * @param {import('./table.mjs').Row} row
 * @param {string} version of Node
 */
function verdictOn(row, version) {
  const files = filesOf(row.library)
  // Where nobody imports the name any more, something else would be tested than the row says.
  if (!files.some((file) => readFileSync(join(root, file), 'utf8').includes(`'${row.name}'`))) {
    return broken(row.row, `no test of ${row.library} imports '${row.name}'`)
  }
  let [folder, node] = ['', process.execPath]
  try {
    folder = installRow(row)
    if (version !== process.versions.node) node = fetchNode(version)
  } catch (error) {
    return broken(row.row, error.message)
  }
  const report = join(folder, 'report.json')
  rmSync(report, { force: true })
  const tests = files.filter((file) => file.endsWith('.test.ts'))
  const asked = { folder, files: tests, titles: row.titles.source, services: row.services ?? false, report }
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  const { error, stdout, stderr } = spawnSync(
    node,
    [vitest, 'run', '--config', join(root, 'test/matrix/vitest-config.ts')],
    {
      cwd: root,
      env: { ...process.env, NO_COLOR: '1', MATRIX_RUN: JSON.stringify(asked) },
      encoding: 'utf8',
      timeout: MOST_OF_A_ROW_MS,
      maxBuffer: Infinity,
    },
  )
  if (error !== undefined) return broken(row.row, error.message)
  if (!existsSync(report)) return broken(row.row, `the run ended without a report:\n${stdout}${stderr}`)
  return judge(JSON.parse(readFileSync(report, 'utf8')), {
    ...row,
    gaps: row.gaps?.filter((gap) => runsOn(gap, version)),
  })
}

/** @param {import('./table.mjs').Row} row */
function named({ row, overrides, beside }) {
  const others = Object.entries({ ...overrides, ...beside }).map(([name, version]) => `${name} ${version}`)
  return [row, ...others].join(', ')
}

/** @param {{ passed: number, failed: number, skipped: number, gaps: number }} counts */
function counted({ passed, failed, skipped, gaps }) {
  const declared = gaps > 0 ? `, ${gaps} ${gaps === 1 ? 'gap' : 'gaps'} declared` : ''
  return `${passed} passed, ${failed} failed, ${skipped} skipped${declared}`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main(process.argv.slice(2))
