import { decodeSpans } from './otlp.mjs'

/** Those whose spans are decoded and looked at; of the others they are counted. */
const OTLP = new Set(['floor', 'ours', 'opentelemetry'])

const SERVER = 2
const CLIENT = 3
/** The floor has exactly so many, as performance is promised against. */
const SERVER_ATTRIBUTES = 12

/**
 * Looks at what a contender exported of a few requests, so that nobody is measured doing nothing.
 *
 * @param {object} options
 * @param {string} options.contender
 * @param {string | undefined} options.flags of the traceparents that were sent
 * @param {number} options.requests
 * @param {boolean} options.withClients
 * @param {{ path: string, body: Buffer }[]} options.captured
 * @param {number} options.count of the spans that arrived, in whichever format
 * @returns {number} spans per request
 * @throws Error that says what is missing
 */
export function prove({ contender, flags, requests, withClients, captured, count }) {
  if (!OTLP.has(contender)) {
    const least = contender === 'bare' ? 0 : requests * (withClients ? 4 : 1)
    if (count < least) throw new Error(`expected ${least} spans or more, received ${count}`)
    return count / requests
  }
  const spans = captured.flatMap(({ path, body }) => (path === '/v1/traces' ? decodeSpans(body) : []))
  if (flags !== '01') {
    if (flags === '00' && spans.length > 0) throw new Error(`${spans.length} spans of unsampled requests`)
    return spans.length / requests
  }
  const servers = spans.filter(({ kind }) => kind === SERVER)
  expect('SERVER spans', servers.length, requests)
  for (const { name, traceId, parentSpanId, attributes, start, end } of servers) {
    expect('the trace', traceId.slice(0, 24), 'c0ffee00c0ffee00c0ffee00')
    expect('the parent', parentSpanId.slice(0, 8), 'feedbee0')
    expect('the name', name, 'GET /users/:id')
    expect('http.route', attributes.get('http.route'), '/users/:id')
    if (contender === 'floor') expect('attributes', attributes.size, SERVER_ATTRIBUTES)
    const status = attributes.get('http.response.status_code') ?? attributes.get('http.status_code')
    expect('the status', status, 200)
    const age = Number(BigInt(Date.now()) * 1_000_000n - start) / 1e9
    if (end < start || age < -1 || age > 60) throw new Error(`a span that began ${age} s ago`)
  }
  if (withClients) {
    const inside = new Set(spans.map(({ spanId }) => spanId))
    const clients = spans.filter(({ kind, parentSpanId }) => kind === CLIENT && inside.has(parentSpanId))
    if (clients.length < 3 * requests) {
      throw new Error(`expected 3 CLIENT spans for each of ${requests} requests, received ${clients.length}`)
    }
  }
  return spans.length / requests
}

function expect(what, received, expected) {
  if (received !== expected) throw new Error(`expected ${what} to be ${expected}, received ${received}`)
}
