import { writeFileSync } from 'node:fs'

/** Tells what judge() needs to know, as JSON: the tests, and what went wrong outside of any. */
export default class Report {
  /** @param {{ report: string }} options the file */
  constructor({ report }) {
    this.file = report
  }

  /**
   * @param {readonly import('vitest/node').TestModule[]} modules
   * @param {readonly import('vitest').SerializedError[]} unhandled
   */
  onTestRunEnd(modules, unhandled) {
    const tests = modules.flatMap(({ children }) =>
      Array.from(children.allTests(), (test) => {
        const { state, errors = [] } = test.result()
        return { title: test.fullName.replaceAll(' > ', ' '), state, message: errors.map(told).join('\n') }
      }),
    )
    const suites = modules.flatMap((module) => [module, ...module.children.allSuites()])
    const errors = [...suites.flatMap((suite) => suite.errors()), ...unhandled].map(told)
    writeFileSync(this.file, JSON.stringify({ tests, errors }))
  }
}

/** @param {{ message: string, diff?: string, stacks?: { file: string, line: number }[] }} error */
function told({ message, diff, stacks: [place] = [] }) {
  const said = place === undefined ? message : `${message} (${place.file}:${place.line})`
  return diff === undefined ? said : `${said}\n${diff}`
}
