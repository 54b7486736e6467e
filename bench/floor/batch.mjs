import { Agent, request } from 'node:http'

/** As the standard's defaults: so many spans, or what there is after so long. */
const BATCH_SPANS = 512
const DELAY_MS = 5000

/** Collects finished spans, and hands `send` a batch of them when it is full, late, or asked for. */
export class Batch {
  /** @type {import('./span.mjs').Span[]} */
  #spans = []
  #timer = undefined
  #send

  /** @param {(spans: import('./span.mjs').Span[]) => void} send */
  constructor(send) {
    this.#send = send
  }

  /** @param {import('./span.mjs').Span} span */
  add(span) {
    this.#spans.push(span)
    if (this.#spans.length >= BATCH_SPANS) this.flush()
    else this.#timer ??= setTimeout(() => this.flush(), DELAY_MS).unref()
  }

  flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#spans.length === 0) return
    const spans = this.#spans
    this.#spans = []
    this.#send(spans)
  }
}

/**
 * Posts bodies over connections that are kept alive.
 *
 * @param {string} endpoint
 */
export function poster(endpoint) {
  const agent = new Agent({ keepAlive: true })
  const url = new URL('/v1/traces', endpoint)
  /** @type {Set<Promise<void>>} */
  const pending = new Set()

  /** @param {Buffer} body */
  function post(body) {
    const headers = { 'content-type': 'application/x-protobuf', 'content-length': body.length }
    const done = new Promise((resolve) => {
      const posting = request(url, { method: 'POST', agent, headers }, (response) => {
        response.resume()
        response.on('end', resolve)
      })
      posting.on('error', (error) => {
        console.error('floor: a batch was lost:', error.message)
        resolve(undefined)
      })
      posting.end(body)
    })
    pending.add(done)
    void done.then(() => pending.delete(done))
  }

  return { post, settled: () => Promise.all(pending) }
}
