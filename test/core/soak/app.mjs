// An app that does nothing but make spans, as many as its parent asks for, and tells what that does to it.
import { flush, start } from '@throughline/core'
import { trace } from '@opentelemetry/api'
import { Socket } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/** As a busy server makes them: some in each turn of the loop, so that there are turns in between. */
const SPANS_PER_TURN = 100
/** Less than the queue holds, so that an app that flushes this often loses nothing. */
const SPANS_PER_FLUSH = 8000
const SPANS_PER_PROGRESS = 5000

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc')

const tracing = start()
const tracer = trace.getTracer('soak')

let exportsInTurn = 0
let mostExportsInTurn = 0
const { write } = Socket.prototype
Socket.prototype.write = function (chunk, ...given) {
  if (typeof chunk === 'string' && chunk.startsWith('POST ')) {
    exportsInTurn += 1
    mostExportsInTurn = Math.max(mostExportsInTurn, exportsInTurn)
  }
  return write.call(this, chunk, ...given)
}

/** Calls this in every turn of the loop until it is told to stop. */
function everyTurn(work) {
  let immediate
  const next = () => {
    work()
    immediate = setImmediate(next)
  }
  next()
  return () => clearImmediate(immediate)
}

async function make(count, isFlushing) {
  mostExportsInTurn = 0
  const stop = everyTurn(() => (exportsInTurn = 0))
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  for (let made = 1; made <= count; made += 1) {
    const attributes = {
      'http.request.method': 'GET',
      'url.path': `/orders/${made}`,
      'http.response.status_code': 200,
    }
    tracer.startSpan('GET /orders/:id', { attributes }).end()
    if (made % SPANS_PER_TURN === 0) await turn()
    if (made % SPANS_PER_PROGRESS === 0) process.send({ progress: made })
    if (isFlushing && made % SPANS_PER_FLUSH === 0) await flush()
  }
  if (isFlushing) await flush()
  delay.disable()
  stop()
  collectGarbage()
  const { heapUsed, rss } = process.memoryUsage()
  process.send({ done: { heapUsed, rss, mostExportsInTurn, delay: delay.percentile(99) / 1e6 } })
}

process.on('message', async ({ count, isFlushing, isLast }) => {
  if (isLast !== true) return make(count, isFlushing)
  await tracing.shutdown()
  process.disconnect()
})
process.send({ ready: true })
