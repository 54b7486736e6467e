// Libraries that make spans by the API alone, on our engine: Prisma's instrumentation, driven as Prisma's client drives
// it, and a small queue whose messages carry the trace.
const { EventEmitter } = require('node:events')
const { context, propagation, SpanKind, SpanStatusCode, trace } = require('@opentelemetry/api')
const { registerInstrumentations } = require('@opentelemetry/instrumentation')
const { PrismaInstrumentation } = require('@prisma/instrumentation')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base')
const { plain, tell } = require('./app.cjs')

// Made before there is an engine, as libraries do.
const tracer = trace.getTracer('queue', '2.1.0')
registerInstrumentations({ instrumentations: [new PrismaInstrumentation()] })
const prisma = globalThis.PRISMA_INSTRUMENTATION.helper

const { span, start } = require('@throughline/core')
const exporter = new InMemorySpanExporter()
const tracing = start({ spanProcessors: [new SimpleSpanProcessor(exporter)], signals: false })

const queue = new EventEmitter()
const told = {}

function publish(body) {
  return tracer.startActiveSpan('publish orders', { kind: SpanKind.PRODUCER }, (publishing) => {
    const headers = {}
    propagation.inject(context.active(), headers)
    publishing.end()
    return { body, headers }
  })
}

/** Messages come from elsewhere: what is current here says nothing of them. */
function consume({ body, headers }) {
  const sender = propagation.extract(context.active(), headers)
  const links = [{ context: trace.getSpanContext(sender) }]
  const options = { kind: SpanKind.CONSUMER, links, root: true }
  tracer.startActiveSpan('process orders', options, (processing) => {
    told.baggage = propagation.getBaggage(sender)?.getEntry('tenant')?.value
    try {
      queue.emit('message', body)
    } catch (error) {
      processing.recordException(error)
      processing.setStatus({ code: SpanStatusCode.ERROR, message: error.message })
    } finally {
      processing.end()
    }
  })
}

async function order() {
  await prisma.runInChildSpan({ name: 'operation', attributes: { model: 'Order' } }, async () => {
    prisma.runInChildSpan('serialize', () => {})
    await new Promise((resolve) => setImmediate(resolve))
    told.prismaTraceparent = prisma.getTraceParent()
    const [seconds] = [Math.floor(Date.now() / 1000)]
    prisma.dispatchEngineSpans(
      [
        {
          id: '1',
          parentId: null,
          name: 'prisma:engine:query',
          kind: 'internal',
          startTime: [seconds, 1],
          endTime: [seconds, 9],
        },
        {
          id: '2',
          parentId: '1',
          name: 'prisma:engine:db_query',
          kind: 'client',
          startTime: [seconds, 2],
          endTime: [seconds, 5],
          attributes: { 'db.system.name': 'postgresql', 'db.query.text': 'SELECT 1' },
          links: ['1'],
        },
      ],
      [{ spanId: '2', level: 'error', timestamp: [seconds, 4], attributes: { message: 'slow' } }],
      () => {},
    )
    const failed = prisma.runInChildSpan('connect', () => Promise.reject(new Error('refused')))
    told.refused = await failed.catch(({ message }) => message)
  })
}

async function main() {
  let message
  const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
  await context.with(propagation.setBaggage(context.active(), baggage), () =>
    span('checkout', async () => {
      queue.on(
        'message',
        context.bind(context.active(), (body) => {
          // The listener is the subscriber's, and runs where that subscribed.
          span(`heard ${body}`, () => {})
          throw new RangeError('cannot')
        }),
      )
      await order()
      message = publish('mug')
    }),
  )
  consume(message)
  const times = exporter.getFinishedSpans().filter(({ name }) => name === 'prisma:engine:db_query')
  told.nanoseconds = times.map(({ startTime, endTime, duration }) => [startTime[1], endTime[1], duration])
  const spans = exporter.getFinishedSpans().map(plain)
  await tracing.shutdown()
  tell({ ...told, headers: message.headers, spans })
}

void main()
