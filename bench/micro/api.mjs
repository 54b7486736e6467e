import { attributesOf, inBatches, PATHS, TRACEPARENTS } from './sample.mjs'

/**
 * The operations of an engine that is used through the OpenTelemetry API: ours and the official one run the same code.
 *
 * @param {typeof import('@opentelemetry/api')} api with the engine registered
 * @param {object} engine
 * @param {() => void} engine.encodeBatch encodes 512 finished spans
 */
export function apiOperations(api, { encodeBatch }) {
  const { context, propagation, ROOT_CONTEXT, SpanKind, trace } = api
  const tracer = trace.getTracer('bench', '1.0.0')
  const kind = SpanKind.SERVER
  let seen = 0

  const contexts = Array.from({ length: 64 }, () => {
    const span = tracer.startSpan('current')
    return trace.setSpan(ROOT_CONTEXT, span)
  })

  function startSpan(index) {
    return tracer.startSpan('GET /users/:id', { kind, attributes: attributesOf(index) })
  }

  return {
    startSpan,
    operations: {
      span: (count) => inBatches(count, (index) => startSpan(index).end()),
      'span, set': (count) =>
        inBatches(count, (index) => {
          const span = tracer.startSpan('GET /users/:id', { kind })
          span.setAttribute('http.request.method', 'GET')
          span.setAttribute('url.path', PATHS[index & 1023])
          span.setAttribute('http.route', '/users/:id')
          span.setAttribute('http.response.status_code', 200)
          span.setAttribute('server.address', 'localhost')
          span.end()
        }),
      encode(count) {
        for (let done = 0; done < count; done += 512) encodeBatch()
      },
      inject(count) {
        for (let index = 0; index < count; index++) {
          const carrier = {}
          propagation.inject(contexts[index & 63], carrier)
          seen += carrier.traceparent.length
        }
      },
      extract(count) {
        for (let index = 0; index < count; index++) {
          const carrier = { host: 'localhost', traceparent: TRACEPARENTS[index & 63] }
          const extracted = propagation.extract(ROOT_CONTEXT, carrier)
          seen += trace.getSpanContext(extracted).traceFlags
        }
      },
      with(count) {
        const run = () => 1
        for (let index = 0; index < count; index++) seen += context.with(contexts[0], run)
      },
      active(count) {
        context.with(contexts[0], () => {
          for (let index = 0; index < count; index++) seen += context.active() === contexts[0] ? 1 : 0
        })
      },
    },
  }
}
