import { startChild } from './child.mjs'

/**
 * The process that stands for every backend: it takes what the contenders export, and counts.
 *
 * @typedef {object} Sink
 * @property {(name: string) => Promise<string>} open a receiver of that name; gives its base URL
 * @property {(name: string) => Promise<{ requests: number, bytes: number, spans: number }>} counts
 * @property {(name: string, isOn: boolean) => Promise<void>} capture whether bodies are kept
 * @property {(name: string) => Promise<{ path: string, body: Buffer }[]>} captured what was kept, unzipped
 * @property {() => Promise<void>} stepBack from now on whoever shares the core comes first; for good
 * @property {() => Promise<void>} stop
 */

/**
 * @param {string} node
 * @returns {Promise<Sink>}
 */
export async function startSink(node) {
  const child = await startChild(new URL('sink-process.mjs', import.meta.url), {
    name: 'the sink',
    node,
    core: 'rest',
  })
  return {
    open: (name) => child.ask('open', { name }),
    counts: (name) => child.ask('counts', { name }),
    capture: (name, isOn) => child.ask('capture', { name, isOn }),
    async captured(name) {
      const kept = await child.ask('captured', { name })
      return kept.map(({ path, body }) => ({ path, body: Buffer.from(body, 'base64') }))
    },
    stepBack: () => child.ask('stepBack'),
    stop: child.stop,
  }
}
