/** Spans between two turns of the event loop: a batch. */
export const BATCH_SPANS = 512

/** Paths of requests, of which no two in a batch are the same. */
export const PATHS = Array.from({ length: 1024 }, (_, index) => `/users/${1000 + index}`)

/** A text header for each, all different. */
export const TRACEPARENTS = Array.from({ length: 64 }, (_, index) => {
  const digits = (index + 1).toString(16).padStart(2, '0')
  return `00-${digits.repeat(16)}-${digits.repeat(8)}-01`
})

/** The span's five attributes, a fresh object each time, as an app would write it. @param {number} index */
export function attributesOf(index) {
  return {
    'http.request.method': 'GET',
    'url.path': PATHS[index & 1023],
    'http.route': '/users/:id',
    'http.response.status_code': 200,
    'server.address': 'localhost',
  }
}

export const turn = () => new Promise((resolve) => setImmediate(resolve))

/**
 * Calls `make(index)` so many times, a batch per turn of the event loop.
 *
 * @param {number} count
 * @param {(index: number) => void} make
 */
export async function inBatches(count, make) {
  for (let index = 0; index < count;) {
    const end = Math.min(index + BATCH_SPANS, count)
    for (; index < end; index++) make(index)
    await turn()
  }
}
