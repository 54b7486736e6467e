import { createServer, type IncomingMessage } from 'node:http'
import { setTimeout as wait } from 'node:timers/promises'
import { listening, port } from './listening.ts'

// Somebody else's service: it is slow, and it is not traced. It tells the demo what it was sent.
const server = createServer(async (request, response) => {
  const traceparents = request.headersDistinct['traceparent'] ?? []
  process.send?.({ traceparents })
  const { source } = (await bodyOf(request)) as { source: string }
  await wait(275)
  const isDeclined = source === 'tok_declined'
  response.writeHead(isDeclined ? 402 : 200, { 'content-type': 'application/json' })
  response.end(JSON.stringify(isDeclined ? { reason: 'card_declined' } : { paid: true }))
})

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  return JSON.parse(Buffer.concat(chunks).toString())
}

server.listen(port, '127.0.0.1', () => listening('stripe-api', server))
