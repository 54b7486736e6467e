// Says in one line what the reports of the test runs say: vitest's as JSON, and the counts of the interop scenarios.
import { existsSync, readFileSync } from 'node:fs'

const [vitest, next, status] = process.argv.slice(2)
const { numPassedTests, numFailedTests, numPendingTests, numTotalTests } = read(vitest)
if (numTotalTests === 0) throw new Error('the run executed no test')
// Where their install or their services fail, the scenarios have no test and no counts.
const counts =
  existsSync(next) && readFileSync(next, 'utf8') !== '' ? read(next) : { passed: 0, failed: 1, skipped: 0 }
if (counts.passed + counts.failed === 0) throw new Error('the interop run executed no test')

const passed = numPassedTests + counts.passed
const skipped = numPendingTests + counts.skipped
// A file that does not load, or an error outside of any test, fails the run and no test of its own.
const failed = Math.max(numFailedTests + counts.failed, status === '0' ? 0 : 1)
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)

function read(file) {
  return JSON.parse(readFileSync(file, 'utf8'))
}
