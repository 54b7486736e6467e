import { versionOf } from '../version.mjs'

/** Elastic's agent with the sink as its server. What would ask elsewhere (cloud metadata, central settings) is off. */
export function start({ require, install, endpoint }) {
  const agent = require('elastic-apm-node').start({
    serverUrl: endpoint,
    serviceName: 'bench',
    logLevel: 'off',
    centralConfig: false,
    cloudProvider: 'none',
  })
  const version = versionOf(install, 'elastic-apm-node')
  return { version, flush: () => agent.flush() }
}
