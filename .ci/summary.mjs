// Says in one line what the test run's own JSON report says.
import { readFileSync } from 'node:fs'

const { numPassedTests, numFailedTests, numPendingTests, numTotalTests, success } = JSON.parse(
  readFileSync(process.argv[2], 'utf8'),
)
if (numTotalTests === 0) throw new Error('the run executed no test')
// A file that does not load, or an error outside of any test, fails no test of its own.
const failed = success ? numFailedTests : Math.max(1, numFailedTests)
const skipped = numPendingTests > 0 ? `, ${numPendingTests} skipped` : ''
console.log(`${numPassedTests} passed, ${failed} failed${skipped}`)
