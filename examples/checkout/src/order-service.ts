import { SpanStatusCode, type Span } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { tracing } from '@throughline/fastify'
import { tracePg } from '@throughline/pg'
import { traceUndici } from '@throughline/undici'
import fastify from 'fastify'
import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { listening, port } from './listening.ts'
import { peerName, post, upstream } from './upstream.ts'

interface Order {
  userId: string
  card: string
  items: { sku: string; quantity: number; price: number }[]
}

interface Outcome {
  status: number
  body: object
}

traceUndici({ attributes: peerName })
const pool = tracePg(new Pool({ connectionString: process.env['DATABASE_URL'] }))

const app = fastify()
app.register(tracing)

app.post<{ Body: Order }>('/orders', async (request, reply) => {
  const id = randomUUID()
  const { userId, items } = request.body
  const context = { 'order.id': id, 'user.id': userId, 'cart.item_count': items.length }
  const { status, body } = await span('checkout.process', context, (s) => checkOut(id, request.body, s))
  return reply.status(status).send(body)
})

async function checkOut(id: string, order: Order, s: Span): Promise<Outcome> {
  const amount = order.items.reduce((sum, { price, quantity }) => sum + price * quantity, 0)
  try {
    // Stock and payment do not wait for each other.
    const [missing, declined] = await Promise.all([missingItems(order, s), charge(order, amount)])
    if (missing.length > 0) return failed(s, 409, `out of stock: ${missing.join(', ')}`)
    if (declined !== undefined) {
      s.setAttribute('payment.failure_reason', declined)
      return failed(s, 402, `payment declined: ${declined}`)
    }
  } catch (error) {
    return failed(s, 503, `a service is missing: ${(error as Error).message}`)
  }
  await pool.query('INSERT INTO orders (id, user_id, amount) VALUES ($1, $2, $3)', [id, order.userId, amount])
  return { status: 201, body: { id, amount } }
}

function failed(s: Span, status: number, message: string): Outcome {
  s.setStatus({ code: SpanStatusCode.ERROR, message })
  return { status, body: { error: message } }
}

async function missingItems({ items }: Order, s: Span): Promise<string[]> {
  s.addEvent('inventory_check_start')
  const query = new URLSearchParams(
    Object.fromEntries(items.map(({ sku, quantity }) => [sku, String(quantity)])),
  )
  const response = await fetch(`${upstream['inventory-service']}/stock?${query}`)
  const { missing } = (await response.json()) as { missing: string[] }
  s.addEvent('inventory_check_complete', { 'inventory.missing_count': missing.length })
  return missing
}

/** The reason why the payment was declined; undefined when it was not. */
async function charge({ card }: Order, amount: number): Promise<string | undefined> {
  const response = await post(`${upstream['payment-service']}/charges`, { card, amount })
  const { reason } = (await response.json()) as { reason?: string }
  return reason
}

await app.listen({ port, host: '127.0.0.1' })
listening('order-service', app.server)
