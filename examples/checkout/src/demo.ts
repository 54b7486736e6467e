import { collect, receive, terminal, toOtlpJson, waterfall, type Span, type Trace } from '@throughline/viewer'
import { once } from 'node:events'
import {
  EXPORT_DELAY_MS,
  START_ORDER,
  startAll,
  stockUp,
  stop,
  type Backends,
  type Started,
} from './fleet.ts'
import type { DemoOptions, Failure } from './options.ts'

const UNSAMPLED = '00-11111111111111111111111111111111-1111111111111111-00'

// Long enough for the slowest machine; the trace is complete in less than a second.
const TRACE_DEADLINE_MS = 30_000

/** Runs the checkout as the command line asks. */
export async function demo(options: DemoOptions, { databaseUrl, redisUrl }: Backends): Promise<void> {
  const { json } = options
  await stockUp(databaseUrl, redisUrl, options.fail === 'stock' ? 0 : 20)

  const collector = collect(options.serve ? { quiet: 10 * EXPORT_DELAY_MS, onTrace: print } : {})
  const receiver = options.otlp === undefined ? await receive({ port: 0, onSpans: collector.add }) : undefined
  const endpoint = options.otlp ?? (receiver?.url as string)
  let services: Partial<Started> = {}
  try {
    const started = await startAll({ databaseUrl, redisUrl, endpoint })
    services = started
    const gateway = started['api-gateway'].url
    // The first request of a process loads code and connects. It is not what the picture is about, so it is not sampled.
    await checkOut(gateway, options.fail, { traceparent: UNSAMPLED })
    if (options.fail === 'inventory') await stop(started['inventory-service'])
    if (options.serve) {
      await serve(gateway, options)
      return
    }

    const { traceId, status, answer } = await checkOut(gateway, options.fail)
    console.error(`POST ${gateway}/checkout answered ${status} ${answer}`)
    if (options.otlp !== undefined) {
      console.error(`The trace ${traceId} goes to ${options.otlp}.`)
      // Whoever is told to end sends what it holds first.
      await Promise.all(Object.values(services).map(stop))
      if (Object.values(services).some(({ losesSpans }) => losesSpans))
        throw new Error(`${options.otlp} did not get all spans of the trace, as said above`)
      return
    }
    const isComplete = (trace: Trace) => trace.traceId === traceId && isWhole(trace.spans, options.fail)
    print(await collector.when(isComplete, { signal: AbortSignal.timeout(TRACE_DEADLINE_MS) }))
  } finally {
    await Promise.all(Object.values(services).map(stop))
    await receiver?.close()
    // With --serve there may be checkouts that have not been shown yet.
    collector.flush()
    collector.close()
  }

  function print({ spans }: Trace): void {
    if (!spans.some(({ serviceName }) => serviceName === 'api-gateway')) return
    if (json) {
      process.stdout.write(`${toOtlpJson(spans)}\n`)
      return
    }
    process.stdout.write(`\n${waterfall(spans, terminal(process.stdout, process.env))}\n\n`)
  }
}

interface Answer {
  traceId: string
  status: number
  answer: string
}

function cart(fail: Failure | undefined): object {
  return {
    userId: 'user-7',
    card: fail === 'payment' ? 'tok_declined' : 'tok_visa',
    items: [
      { sku: 'mug', quantity: 2, price: 900 },
      { sku: 'shirt', quantity: 1, price: 2500 },
    ],
  }
}

async function checkOut(gateway: string, fail: Failure | undefined, headers: object = {}): Promise<Answer> {
  const response = await fetch(`${gateway}/checkout`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(cart(fail)),
  })
  const timing = response.headers.get('server-timing') ?? ''
  const traceId = /desc=00-([0-9a-f]{32})-/.exec(timing)?.[1]
  if (traceId === undefined)
    throw new Error(`the gateway did not tell the trace's id; it answered ${response.status}`)
  return { traceId, status: response.status, answer: await response.text() }
}

/** Whether every span is there that this checkout makes: the root, all parents, each service, and the order's INSERT. */
function isWhole(spans: readonly Span[], fail: Failure | undefined): boolean {
  const ids = new Set(spans.map(({ spanId }) => spanId))
  const served = new Set(spans.filter(({ kind }) => kind === 'server').map(({ serviceName }) => serviceName))
  const expected = START_ORDER.filter(
    (name) => name !== 'stripe-api' && !(fail === 'inventory' && name === 'inventory-service'),
  )
  return (
    expected.every((name) => served.has(name)) &&
    spans.every(({ parentSpanId }) => parentSpanId === undefined || ids.has(parentSpanId)) &&
    spans.some(({ parentSpanId }) => parentSpanId === undefined) &&
    (fail !== undefined || spans.some(({ name }) => name.startsWith('INSERT')))
  )
}

/** Stays until it is told to end. */
async function serve(gateway: string, { fail, otlp }: DemoOptions): Promise<void> {
  console.error(`The checkout is up. Try it:

  curl -i ${gateway}/checkout -H 'content-type: application/json' -d '${JSON.stringify(cart(fail))}'

${otlp === undefined ? 'Each trace is shown here.' : `The traces go to ${otlp}.`} Ctrl-C ends it.`)
  await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')])
}
