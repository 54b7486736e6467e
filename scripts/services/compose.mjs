import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { freePort, run, which } from './child.mjs'

const file = fileURLToPath(new URL('../../compose.yaml', import.meta.url))

/** ms for an engine to say that it is there. */
const patience = 5000

/** ms for a server to be ready; its image may have to be fetched first. */
const patienceWithFetch = 600_000

/** The docker client alone is no use: an engine must answer, and the compose plugin be there. */
export async function available() {
  const docker = await which('docker')
  if (!docker) return false
  try {
    await run(docker, ['info'], { timeout: patience })
    await run(docker, ['compose', 'version'], { timeout: patience })
    return true
  } catch {
    return false
  }
}

/**
 * Starts one service of compose.yaml in a project of our own, beside any that the user may have up.
 *
 * @param {string} name
 * @param {(port: number) => string} privateUrl
 */
export async function start(name, privateUrl) {
  const port = await freePort()
  const project = `throughline-${name}-${randomBytes(4).toString('hex')}`
  /** @param {string[]} args */
  const compose = (...args) =>
    run('docker', ['compose', '--project-name', project, '--file', file, ...args], {
      timeout: patienceWithFetch,
      env: { ...process.env, [`${name.toUpperCase()}_PORT`]: `${port}` },
    })
  const stop = async () => {
    await compose('down', '--volumes', '--timeout', '5')
  }
  try {
    await compose('up', '--detach', '--wait', name)
  } catch (error) {
    await stop()
    throw error
  }
  return { url: privateUrl(port), stop }
}
