import { parseArgs } from 'node:util'

/** What goes wrong on purpose. */
export type Failure = 'payment' | 'stock' | 'inventory'

export interface DemoOptions {
  fail: Failure | undefined
  serve: boolean
  json: boolean
  otlp: string | undefined
  help: boolean
}

export const USAGE = `npm run demo -- [options]
  --fail payment|stock|inventory  decline the payment, run out of stock, stop the inventory service
  --serve                         keep the services up, and show the trace of every checkout
  --otlp URL                      send the trace to this OTLP/HTTP endpoint, not to the built-in viewer
  --json                          print the trace as one line of OTLP/JSON (with npm run -s)
  --help                          this text`

/** The options, or what is wrong with them. */
export function readOptions(argv: readonly string[]): DemoOptions | string {
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        fail: { type: 'string' },
        serve: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        otlp: { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    })
    const { fail, otlp, serve, json, help } = values
    if (fail !== undefined && !isFailure(fail)) {
      return `--fail: expected payment, stock or inventory, received "${fail}"; example: --fail payment`
    }
    if (otlp !== undefined && !/^https?:\/\//.test(otlp)) {
      return `--otlp: expected an http or https URL, received "${otlp}"; example: --otlp http://localhost:4318`
    }
    if (otlp !== undefined && json)
      return '--otlp sends the trace away, so --json has nothing to print: give one of the two'
    return { fail, otlp, serve, json, help }
  } catch (error) {
    return (error as Error).message
  }
}

function isFailure(name: string): name is Failure {
  return ['payment', 'stock', 'inventory'].includes(name)
}
