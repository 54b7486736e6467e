// What the apps of these tests have in common. They are processes of their own, for globals and require hooks belong to
// a whole process: each does its work, prints one line of JSON, and ends.
const { once } = require('node:events')
const { createServer, connect } = require('node:net')

/** What the test has asked for, as the app's only argument. */
exports.asked = JSON.parse(process.argv[2] ?? '{}')

/** Prints what the test is to know. */
exports.tell = function tell(told) {
  process.stdout.write(`${JSON.stringify(told)}\n`)
}

/** A span as plain data, from any engine's ReadableSpan. */
exports.plain = function plain(span) {
  const { traceId, spanId, traceFlags, isRemote } = span.spanContext()
  const { name, kind, status, attributes, events, links, parentSpanContext, instrumentationScope } = span
  return {
    traceId,
    spanId,
    traceFlags,
    isRemote,
    parentSpanId: parentSpanContext?.spanId,
    name,
    kind,
    scope: instrumentationScope.name,
    status,
    attributes,
    events: events.map(({ name, attributes }) => ({ name, attributes })),
    links: links.map(({ context }) => context.spanId),
    resource: span.resource.attributes,
  }
}

/** Answers every request with 200 after it has come in whole, and keeps the bytes of its head. */
exports.wire = async function wire() {
  const heads = []
  const server = createServer((socket) => {
    let head = ''
    socket.setEncoding('latin1').on('data', (text) => {
      head += text
      if (!head.includes('\r\n\r\n')) return
      heads.push(head)
      head = ''
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok')
      socket.end()
    })
    socket.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    heads,
    close: () => server.close(),
  }
}

/** All values of a header in the head of a request as it came over the wire. */
exports.headers = function headers(head, name) {
  return head
    .split('\r\n')
    .filter((line) => line.toLowerCase().startsWith(`${name}:`))
    .map((line) => line.slice(name.length + 1).trim())
}

/** Asks a server by a socket, so that no client library which somebody traces is involved; answers the status line. */
exports.visit = async function visit(server, path, headers = {}) {
  const { port } = server.address()
  const socket = connect(port, '127.0.0.1')
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n${lines.join('')}\r\n`)
  let answer = ''
  for await (const text of socket.setEncoding('latin1')) answer += text
  return answer.split('\r\n', 1)[0]
}
