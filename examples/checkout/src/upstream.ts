import type { HttpRequest } from '@throughline/undici'

/** The services that this one calls, by their names, from the environment: ORDER_SERVICE_URL and so on. */
export const upstream = {
  'order-service': process.env['ORDER_SERVICE_URL'] ?? 'http://127.0.0.1:3001',
  'inventory-service': process.env['INVENTORY_SERVICE_URL'] ?? 'http://127.0.0.1:3002',
  'payment-service': process.env['PAYMENT_SERVICE_URL'] ?? 'http://127.0.0.1:3003',
  'stripe-api': process.env['STRIPE_API_URL'] ?? 'http://127.0.0.1:3004',
}

/** Names the callee on the client's span. A callee that is not traced has no other way to be called by its name. */
export function peerName({ origin }: HttpRequest): Record<string, string> {
  const name = Object.entries(upstream).find(([, url]) => url === String(origin))?.[0]
  return name === undefined ? {} : { 'service.peer.name': name }
}

export function post(url: string, body: object): Promise<Response> {
  return fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
}
