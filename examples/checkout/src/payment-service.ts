import { tracing } from '@throughline/express'
import { traceUndici } from '@throughline/undici'
import express from 'express'
import { listening, port } from './listening.ts'
import { peerName, post, upstream } from './upstream.ts'

traceUndici({ attributes: peerName })

const app = express()
app.use(tracing())
app.use(express.json())

app.post('/charges', async (request, response) => {
  const { card, amount } = request.body as { card: string; amount: number }
  const charge = await post(`${upstream['stripe-api']}/v1/charges`, { source: card, amount })
  const answer: unknown = await charge.json()
  response.status(charge.status).json(answer)
})

const server = app.listen(port, '127.0.0.1', () => listening('payment-service', server))
