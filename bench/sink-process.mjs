import { once } from 'node:events'
import { createServer } from 'node:http'
import { setPriority } from 'node:os'
import { gunzipSync, inflateSync } from 'node:zlib'
import { answer } from './child.mjs'
import { countMsgpackSpans } from './msgpack.mjs'
import { countSpans } from './otlp.mjs'

const DATADOG_TRACES = /^\/v0\.\d\/traces$/

const receivers = new Map()

answer({
  async open({ name }) {
    const receiver = { requests: 0, bytes: 0, spans: 0, problem: undefined, isKeeping: false, kept: [] }
    receivers.set(name, receiver)
    const server = createServer((request, response) => receive(receiver, request, response))
    server.keepAliveTimeout = 0
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return `http://127.0.0.1:${server.address().port}`
  },
  stepBack: () => setPriority(19),
  counts({ name }) {
    const { requests, bytes, spans, problem } = receivers.get(name)
    if (problem !== undefined) throw new Error(`a body could not be read: ${problem}`)
    return { requests, bytes, spans }
  },
  capture({ name, isOn }) {
    const receiver = receivers.get(name)
    receiver.isKeeping = isOn
    if (isOn) receiver.kept = []
  },
  captured: ({ name }) =>
    receivers.get(name).kept.map(({ path, body }) => ({ path, body: body.toString('base64') })),
})

function receive(receiver, request, response) {
  const chunks = []
  request.on('data', (chunk) => chunks.push(chunk))
  request.on('end', () => {
    const [path] = request.url.split('?', 1)
    const body = unzipped(Buffer.concat(chunks), request.headers['content-encoding'])
    receiver.requests += 1
    receiver.bytes += body.length
    try {
      receiver.spans += spansIn(path, body)
    } catch (error) {
      receiver.problem = `${path}: ${error.message}`
    }
    if (receiver.isKeeping) receiver.kept.push({ path, body })
    const { type, text } = answerTo(path)
    response.writeHead(path === '/intake/v2/events' ? 202 : 200, {
      'content-type': type,
      'content-length': Buffer.byteLength(text),
    })
    response.end(text)
  })
}

/** What each backend would call a span; a transaction is one, too. */
function spansIn(path, body) {
  if (path === '/v1/traces') return countSpans(body)
  if (DATADOG_TRACES.test(path)) return countMsgpackSpans(body)
  if (path === '/intake/v2/events')
    return occurrences(body, '\n{"transaction":') + occurrences(body, '\n{"span":')
  // A parent's id has another name.
  if (path.endsWith('/envelope/')) return occurrences(body, '"span_id":"')
  return 0
}

function occurrences(body, text) {
  let count = 0
  for (let at = body.indexOf(text); at !== -1; at = body.indexOf(text, at + text.length)) count += 1
  return count
}

function unzipped(body, encoding) {
  if (body.length === 0) return body
  if (encoding === 'gzip') return gunzipSync(body)
  if (encoding === 'deflate') return inflateSync(body)
  return body
}

/** What the agents and backends of the contenders say when all is well. */
function answerTo(path) {
  if (path === '/v1/traces') return { type: 'application/x-protobuf', text: '' }
  // dd-trace asks what the agent can do, and takes its sampling rates from the answer to its traces.
  if (path === '/info') return json({ version: '7.60.0', endpoints: ['/v0.4/traces', '/v0.5/traces'] })
  if (DATADOG_TRACES.test(path)) return json({ rate_by_service: { 'service:,env:': 1 } })
  // Elastic asks the version of its server.
  if (path === '/') return json({ version: '8.15.0', build_date: '', build_sha: '', publish_ready: true })
  return json({})
}

function json(value) {
  return { type: 'application/json', text: JSON.stringify(value) }
}
