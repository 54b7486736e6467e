/** A reporter for `node:test`: how many tests passed and failed, as one line of JSON. */
export default async function* counts(events) {
  const count = { passed: 0, failed: 0, skipped: 0 }
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue
    if (data.nesting > 0 || data.details.type === 'suite') continue
    const isSkipped = data.skip !== undefined || data.todo !== undefined
    count[isSkipped ? 'skipped' : type === 'test:pass' ? 'passed' : 'failed'] += 1
  }
  yield `${JSON.stringify(count)}\n`
}
