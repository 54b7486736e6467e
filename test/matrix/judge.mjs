/**
 * @typedef {object} Report what a run of tests tells, by reporter.mjs
 * @property {{ title: string, state: 'passed' | 'failed' | 'skipped' | 'pending', message: string }[]} tests
 * @property {string[]} errors outside of any test
 *
 * @typedef {object} Verdict
 * @property {number} passed
 * @property {number} failed the entries of `failures`
 * @property {number} skipped
 * @property {number} gaps tests that failed as the table says they do
 * @property {{ title: string, message: string }[]} failures
 */

/**
 * What a run says of its row. Tests whose title is not the row's were not meant to run.
 *
 * @param {Report} report
 * @param {{ titles: RegExp, gaps?: import('./table.mjs').Gap[] }} row
 * @returns {Verdict}
 */
export function judge(report, { titles, gaps = [] }) {
  const tests = report.tests.filter(({ title }) => titles.test(title))
  const inState = (/** @type {string} */ state) => tests.filter((test) => test.state === state)
  const ran = [...inState('passed'), ...inState('failed')]
  const isIn = (/** @type {{ title: string }} */ { title }) => gaps.some((gap) => gap.titles.test(title))
  const declared = inState('failed').filter(isIn)
  const surprising = inState('failed').filter((test) => !isIn(test))
  const failures = [
    ...surprising.map(({ title, message }) => ({ title, message })),
    ...inState('passed')
      .filter(isIn)
      .map(({ title }) => ({ title, message: 'it passes: the table need not call it a gap' })),
    ...gaps
      .filter((gap) => !ran.some(({ title }) => gap.titles.test(title)))
      .map(({ titles }) => ({ title: `the gap ${titles}`, message: 'no test of such a title was executed' })),
    ...report.errors.map((message) => ({ title: 'outside of any test', message })),
  ]
  const passed = inState('passed').filter((test) => !isIn(test)).length
  if (ran.length === 0) {
    failures.push({ title: 'the run', message: `it executed no test with a title like ${titles}` })
  }
  return {
    passed,
    failed: failures.length,
    skipped: tests.length - ran.length,
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
