import type { Span } from '@throughline/viewer'

export const traceId = '4bf92f3577b34da6a3ce929d0e0e4736'

/** 2023-11-14T22:13:20Z: where the sample traces begin. */
const origin = 1_700_000_000_000_000_000n

export function at(ms: number): bigint {
  return origin + BigInt(Math.round(ms * 1e6))
}

/** A span of `service`, from and to in milliseconds; what is not given is as an exporter leaves it. */
export function span(
  id: number,
  service: string,
  name: string,
  [from, to]: [from: number, to: number],
  more: Partial<Span> & { parent?: number } = {},
): Span {
  const { parent, ...given } = more
  return {
    traceId,
    spanId: hex(id),
    parentSpanId: parent === undefined ? undefined : hex(parent),
    name,
    kind: 'internal',
    startTimeUnixNano: at(from),
    endTimeUnixNano: at(to),
    attributes: {},
    events: [],
    links: [],
    status: { code: 'unset', message: '' },
    traceState: '',
    flags: 0x101,
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
    serviceName: service,
    resource: { attributes: { 'service.name': service }, droppedAttributesCount: 0, schemaUrl: '' },
    scope: { name: 'sample', version: '1.0.0', attributes: {}, droppedAttributesCount: 0, schemaUrl: '' },
    ...given,
  }
}

export function hex(id: number): string {
  return id.toString(16).padStart(16, '0')
}

export function link(spanId: string, trace: string = traceId): Span['links'][number] {
  return { traceId: trace, spanId, traceState: '', attributes: {}, droppedAttributesCount: 0, flags: 0 }
}

/** A shop: five services, one slow payment provider that does not trace. */
export function checkout(): Span[] {
  return [
    span(1, 'api-gateway', 'POST /checkout', [0, 310], { kind: 'server' }),
    span(2, 'api-gateway', 'POST', [8, 307], { parent: 1, kind: 'client' }),
    span(3, 'order-service', 'POST /orders', [12, 305], { parent: 2, kind: 'server' }),
    span(4, 'order-service', 'GET', [14, 62], { parent: 3, kind: 'client' }),
    span(5, 'inventory-svc', 'GET /stock/:sku', [15, 60], { parent: 4, kind: 'server' }),
    span(6, 'inventory-svc', 'HGET', [20, 24], {
      parent: 5,
      kind: 'client',
      attributes: { 'db.system.name': 'redis', 'server.address': 'localhost' },
    }),
    span(7, 'order-service', 'POST', [14, 301], { parent: 3, kind: 'client' }),
    span(8, 'payment-svc', 'POST /charge', [15, 300], { parent: 7, kind: 'server' }),
    span(9, 'payment-svc', 'POST', [20, 295], {
      parent: 8,
      kind: 'client',
      attributes: {
        'service.peer.name': 'stripe-api',
        'server.address': 'api.stripe.test',
        'server.port': 443,
      },
    }),
    span(10, 'order-service', 'INSERT orders', [301, 305], {
      parent: 3,
      kind: 'client',
      attributes: { 'db.system.name': 'postgresql', 'server.address': 'localhost' },
    }),
  ]
}

/** The same shop when the card is refused: the error starts at the provider and travels up. */
export function declined(): Span[] {
  const failed = new Map<number, Partial<Span>>([
    [1, { attributes: { 'http.response.status_code': 502 } }],
    [8, { status: { code: 'error', message: 'payment failed' } }],
    [
      9,
      {
        events: [
          {
            timeUnixNano: at(294),
            name: 'exception',
            attributes: { 'exception.type': 'CardError', 'exception.message': 'card_declined' },
            droppedAttributesCount: 0,
          },
        ],
      },
    ],
  ])
  return checkout()
    .filter((sent) => sent.spanId !== hex(10))
    .map((sent) => {
      const failure = failed.get(Number.parseInt(sent.spanId, 16))
      return failure
        ? {
            ...sent,
            status: { code: 'error' as const, message: '' },
            ...failure,
            attributes: { ...sent.attributes, ...failure.attributes },
          }
        : sent
    })
}
