import { start, type StartOptions, type Tracing } from '@throughline/core'
import { diag } from '@opentelemetry/api'
import { afterEach } from 'vitest'

const running: Tracing[] = []

/** What start() gives for these options; stopped after the test, as is the logger of the app. */
export function started(options: StartOptions = {}): Tracing {
  const tracing = start({ signals: false, ...options })
  running.push(tracing)
  return tracing
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((tracing) => tracing.shutdown()))
  diag.disable()
})
