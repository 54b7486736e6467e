import { tracing } from '@throughline/express'
import { traceUndici } from '@throughline/undici'
import express from 'express'
import { setTimeout as wait } from 'node:timers/promises'
import { listening, port } from './listening.ts'
import { peerName, post, upstream } from './upstream.ts'

traceUndici({ attributes: peerName })

const app = express()
// With Server-Timing the one who asks learns the trace's id.
app.use(tracing({ serverTiming: true }))
app.use(express.json())

app.post('/checkout', async (request, response) => {
  // Who is it, and may they?
  await wait(8)
  const order = await post(`${upstream['order-service']}/orders`, request.body)
  const answer: unknown = await order.json()
  // What the page shows next.
  await wait(4)
  response.status(order.status).json(answer)
})

const server = app.listen(port, '127.0.0.1', () => listening('api-gateway', server))
