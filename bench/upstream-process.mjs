import { once } from 'node:events'
import { createServer } from 'node:http'
import { answer } from './child.mjs'

/** The service that the app asks over HTTP. It counts the requests that bring a trace along. */
let traced = 0

const server = createServer((request, response) => {
  if (request.headers.traceparent !== undefined) traced += 1
  const body = '{"currency":"EUR"}'
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': body.length })
  response.end(body)
})
server.keepAliveTimeout = 0
server.listen(0, '127.0.0.1')
await once(server, 'listening')

answer({
  url: () => `http://127.0.0.1:${server.address().port}`,
  traced: () => traced,
})
