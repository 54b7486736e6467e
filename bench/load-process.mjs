import { once } from 'node:events'
import { connect } from 'node:net'
import { answer } from './child.mjs'
import { quantile } from './statistic.mjs'

/**
 * The load generator: HTTP/1.1 over sockets that are kept alive, a request at a time on each. It is written here because
 * it must cost less than what it measures: the usual ones spend more CPU on a request than Fastify does, and then it is
 * their speed that is measured.
 */

const HEAD_END = Buffer.from('\r\n\r\n')

let traceNumber = 0

answer({
  /** So many requests, as fast as they are answered. */
  async amount({ port, count, connections, flags, isAwake }) {
    const clients = await connectAll(port, Math.min(connections, count), flags)
    let left = count
    // Who sleeps has to be woken, and the kernel charges that to the server whose answer does it: several microseconds on a
    // virtual machine, paid only by a server that is slower than we are.
    const keepAwake = () => {
      if (left > 0) setImmediate(keepAwake)
    }
    if (isAwake) keepAwake()
    const began = performance.now()
    await Promise.all(
      clients.map(async (client) => {
        while (left > 0) {
          left -= 1
          await client.get()
        }
      }),
    )
    const seconds = (performance.now() - began) / 1000
    for (const client of clients) client.close()
    return { seconds }
  },

  /** So many requests per second for so long, whether or not the ones before have been answered; milliseconds. */
  async rate({ port, perSecond, seconds, connections, flags }) {
    const idle = await connectAll(port, connections, flags)
    const latencies = []
    const pending = new Set()
    const total = Math.round(perSecond * seconds)
    const began = performance.now()
    let late = 0
    for (let sent = 0; sent < total;) {
      const now = performance.now()
      // Evenly spaced: a timer's grain of a millisecond would send them in bursts, that wait for each other.
      if (now < began + (sent * 1000) / perSecond) {
        await new Promise((resolve) => setImmediate(resolve))
        continue
      }
      sent += 1
      const client = idle.pop()
      if (client === undefined) {
        // Everybody waits: what cannot be sent counts as the longest wait there is.
        late += 1
        continue
      }
      const got = client.get().then(() => {
        latencies.push(performance.now() - now)
        idle.push(client)
        pending.delete(got)
      })
      pending.add(got)
    }
    await Promise.all(pending)
    for (const client of idle) client.close()
    for (let index = 0; index < late; index++) latencies.push(Infinity)
    return { p50: quantile(latencies, 0.5), p99: quantile(latencies, 0.99), count: latencies.length, late }
  },
})

async function connectAll(port, count, flags) {
  return Promise.all(Array.from({ length: count }, () => client(port, flags)))
}

/** One connection. `flags` are those of the traceparent; without, there is none. */
async function client(port, flags) {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  let waiting
  let received

  socket.on('data', (chunk) => {
    received = received === undefined ? chunk : Buffer.concat([received, chunk])
    const headEnd = received.indexOf(HEAD_END)
    if (headEnd === -1) return
    const head = received.latin1Slice(0, headEnd)
    const [, status] = /^HTTP\/1\.1 (\d{3})/.exec(head) ?? []
    const [, length] = /\r\ncontent-length: (\d+)/i.exec(head) ?? []
    if (status !== '200' || length === undefined) {
      fail(
        new Error(`expected 200 with a Content-Length, received:\n${received.latin1Slice().slice(0, 500)}`),
      )
    } else if (received.length >= headEnd + HEAD_END.length + Number(length)) {
      received = undefined
      const { resolve } = waiting
      waiting = undefined
      resolve()
    }
  })
  socket.on('error', fail)
  socket.on('close', () => fail(new Error('the server closed the connection')))

  function fail(error) {
    waiting?.reject(error)
    waiting = undefined
  }

  return {
    get: () =>
      new Promise((resolve, reject) => {
        waiting = { resolve, reject }
        socket.write(requestText(port, flags), 'latin1')
      }),
    close: () => socket.destroy(),
  }
}

/** Every request has a path and a trace of its own: nothing that is remembered of the last one helps with the next. */
function requestText(port, flags) {
  traceNumber = (traceNumber + 1) % 0x7fffffff
  const head = `GET /users/${1000 + (traceNumber % 9000)} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUser-Agent: throughline-bench/1.0\r\nAccept: application/json\r\n`
  if (flags === undefined) return `${head}\r\n`
  return `${head}traceparent: 00-${TRACE_DIGITS}${hex(traceNumber)}-${SPAN_DIGITS}${hex(traceNumber)}-${flags}\r\n\r\n`
}

const TRACE_DIGITS = 'c0ffee00c0ffee00c0ffee00'
const SPAN_DIGITS = 'feedbee0'

function hex(number) {
  return number.toString(16).padStart(8, '0')
}
