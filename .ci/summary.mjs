// Says in one line what the reports of the test runs say: vitest's as JSON, and the counts of the other runs.
import { existsSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'

const [status, vitest, ...others] = process.argv.slice(2)
const { numPassedTests, numFailedTests, numPendingTests, numTotalTests } = read(vitest)
if (numTotalTests === 0) throw new Error('the run executed no test')

const total = { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests }
for (const file of others) {
  // Where their install or their services fail, they have no test and no counts.
  const isTold = existsSync(file) && readFileSync(file, 'utf8') !== ''
  const counts = isTold ? read(file) : { passed: 0, failed: 1, skipped: 0 }
  if (counts.passed + counts.failed === 0) throw new Error(`the run of ${basename(file)} executed no test`)
  for (const key of Object.keys(total)) total[key] += counts[key]
}

const { passed, skipped } = total
// A file that does not load, or an error outside of any test, fails the run and no test of its own.
const failed = Math.max(total.failed, status === '0' ? 0 : 1)
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)

function read(file) {
  return JSON.parse(readFileSync(file, 'utf8'))
}
