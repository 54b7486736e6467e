/**
 * @typedef {object} Report what a run of tests tells, by reporter.mjs
 * @property {{ title: string, state: 'passed' | 'failed' | 'skipped' | 'pending', message: string }[]} tests
 * @property {string[]} errors outside of any test
 *
 * @typedef {object} Verdict
 * @property {number} passed
 * @property {number} failed at least one for each entry of `failures`
 * @property {number} skipped
 * @property {number} gaps tests that failed as the table says they do
 * @property {{ title: string, message: string }[]} failures
 */

/**
 * What a run says of its row. Tests whose title is not the row's were not meant to run.
 *
 * @param {Report | undefined} report
 * @param {{ titles: RegExp, gaps?: import('./table.mjs').Gap[] }} row
 * @returns {Verdict}
 */
export function judge(report, { titles, gaps = [] }) {
  if (report === undefined) return broken('the run', 'it ended without a report')
  const tests = report.tests.filter(({ title }) => titles.test(title))
  const inState = (/** @type {string} */ state) => tests.filter((test) => test.state === state)
  const isGap = (/** @type {{ title: string }} */ { title }) => gaps.some((gap) => gap.titles.test(title))
  const [declared, surprising] = [true, false].map((is) => inState('failed').filter((test) => isGap(test) === is))
  const failures = [
    ...surprising.map(({ title, message }) => ({ title, message })),
    ...report.errors.map((message) => ({ title: 'outside of any test', message })),
    ...gaps
      .filter((gap) => !declared.some(({ title }) => gap.titles.test(title)))
      .map(({ titles }) => ({ title: `the gap ${titles}`, message: 'no test fails as the table says' })),
  ]
  const passed = inState('passed').length
  if (passed + surprising.length + declared.length === 0) {
    failures.push({ title: 'the run', message: `it executed no test with a title like ${titles}` })
  }
  return {
    passed,
    failed: failures.length,
    skipped: tests.length - passed - surprising.length - declared.length,
    gaps: declared.length,
    failures,
  }
}

/**
 * The verdict on a row that could not be run.
 *
 * @param {string} title
 * @param {string} message
 * @returns {Verdict}
 */
export function broken(title, message) {
  return { passed: 0, failed: 1, skipped: 0, gaps: 0, failures: [{ title, message }] }
}
