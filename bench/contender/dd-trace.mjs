import { promisify } from 'node:util'
import { versionOf } from '../version.mjs'

/** Datadog's tracer with an agent that is the sink. What is beside tracing (telemetry, remote configuration) is off. */
export function start({ require, install, endpoint }) {
  process.env.DD_INSTRUMENTATION_TELEMETRY_ENABLED = 'false'
  process.env.DD_REMOTE_CONFIGURATION_ENABLED = 'false'
  const tracer = require('dd-trace').init({ url: endpoint, service: 'bench', startupLogs: false })
  const version = versionOf(install, 'dd-trace')
  // There is no public way to flush. Its exporter has one for the end of the process.
  const writer = tracer._tracer._exporter._writer
  return { version, flush: promisify((done) => writer.flush(() => done())) }
}
