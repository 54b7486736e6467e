import { AsyncLocalStorage } from 'node:async_hooks'
import { Batch, poster } from '../floor/batch.mjs'
import { encoder } from '../floor/encode.mjs'
import { newTraceId } from '../floor/ids.mjs'
import { SERVER, Span } from '../floor/span.mjs'
import { formatTraceparent, parseTraceparent } from '../floor/trace-context.mjs'
import { attributesOf, inBatches, PATHS, TRACEPARENTS } from './sample.mjs'

/** @type {import('./worker.mjs').Load} */
export async function load({ endpoint }) {
  const encode = encoder({ 'service.name': 'bench' }, 'bench')
  let encoded = 0
  let bytes = 0
  const batch = new Batch((spans) => {
    encoded += spans.length
    bytes += encode(spans).length
  })
  const newSpan = (attributes) => new Span('GET /users/:id', SERVER, newTraceId(), '', 1, attributes)
  const finished = Array.from({ length: 512 }, (_, index) => newSpan(attributesOf(index)).finish())
  const storage = new AsyncLocalStorage()
  const current = finished[0]

  return {
    version: 'written here',
    async exported() {
      batch.flush()
      return { spans: encoded, bytes }
    },
    operations: {
      span: (count) => inBatches(count, (index) => batch.add(newSpan(attributesOf(index)).finish())),
      'span, set': (count) =>
        inBatches(count, (index) => {
          const span = newSpan({})
          const { attributes } = span
          attributes['http.request.method'] = 'GET'
          attributes['url.path'] = PATHS[index & 1023]
          attributes['http.route'] = '/users/:id'
          attributes['http.response.status_code'] = 200
          attributes['server.address'] = 'localhost'
          batch.add(span.finish())
        }),
      encode(count) {
        for (let done = 0; done < count; done += finished.length) bytes += encode(finished).length
      },
      inject(count) {
        for (let index = 0; index < count; index++) {
          const carrier = {}
          carrier.traceparent = formatTraceparent(finished[index & 511])
          bytes += carrier.traceparent.length
        }
      },
      extract(count) {
        for (let index = 0; index < count; index++) {
          const carrier = { host: 'localhost', traceparent: TRACEPARENTS[index & 63] }
          bytes += parseTraceparent(carrier.traceparent).flags
        }
      },
      with(count) {
        const run = () => 1
        for (let index = 0; index < count; index++) bytes += storage.run(current, run)
      },
      active(count) {
        storage.run(current, () => {
          for (let index = 0; index < count; index++) bytes += storage.getStore() === current ? 1 : 0
        })
      },
    },
    /** Makes spans that end in `kept`. */
    keep(kept) {
      for (let index = 0; index < kept.length; index++) kept[index] = newSpan(attributesOf(index)).finish()
    },
    async burst(count) {
      const { post, settled } = poster(endpoint)
      const sending = new Batch((spans) => post(encode(spans)))
      for (let index = 0; index < count; index++) sending.add(newSpan(attributesOf(index)).finish())
      sending.flush()
      await settled()
    },
  }
}
