// Calls of one client, traced, and how much of what our code has made for them outlives them: tells its parent.
import { createServer } from 'node:http'
import { once } from 'node:events'
import { Session } from 'node:inspector/promises'
import { setTimeout as sleep } from 'node:timers/promises'

const { client, urls, calls: CALLS } = JSON.parse(process.argv[2])

/** More than the pool below has connections, so that most queries wait. */
const AT_ONCE = 32
const CONNECTIONS = 4
const WARM_UP_CALLS = 600

const clients = {
  async ioredis() {
    const redis = await tracedRedis()
    return () => redis.get('throughline:claim')
  },

  async 'ioredis with attributes'() {
    const redis = await tracedRedis({}, { attributes: (_command, reply) => ({ reply }) })
    return () => redis.get('throughline:claim')
  },

  async 'a script of ioredis'() {
    const redis = await tracedRedis()
    redis.defineCommand('one', { numberOfKeys: 0, lua: 'return 1' })
    return () => redis.one()
  },

  async 'ioredis with pipelines of its own'() {
    const redis = await tracedRedis({ enableAutoPipelining: true })
    return () => redis.get('throughline:claim')
  },

  async 'a pipeline of ioredis'() {
    const redis = await tracedRedis()
    return () => redis.pipeline().get('throughline:claim').get('throughline:claim').exec()
  },

  async 'a Cluster of ioredis'() {
    const { Cluster } = await import('ioredis')
    const { traceIORedis } = await import('@throughline/ioredis')
    const cluster = traceIORedis(new Cluster(urls.cluster))
    return () => cluster.get('throughline:claim')
  },

  async pg() {
    const { default: pg } = await import('pg')
    const { tracePg } = await import('@throughline/pg')
    const pool = tracePg(new pg.Pool({ connectionString: urls.postgres, max: CONNECTIONS }))
    return () => pool.query('SELECT $1::int AS one', [1])
  },

  async fetch() {
    const { traceUndici } = await import('@throughline/undici')
    traceUndici()
    const url = `http://127.0.0.1:${await listening()}/`
    return async () => (await fetch(url)).json()
  },

  async 'node:http'() {
    const { traceHttp } = await import('@throughline/http')
    traceHttp()
    const { Agent, get } = await import('node:http')
    const agent = new Agent({ keepAlive: true })
    const port = await listening()
    return async () => {
      const [response] = await once(get({ port, agent }), 'response')
      response.resume()
      await once(response, 'end')
    }
  },

  async 'an Agent of undici'() {
    const { traceUndici } = await import('@throughline/undici')
    const { Agent, request } = await import('undici')
    const dispatcher = traceUndici(new Agent())
    const url = `http://127.0.0.1:${await listening()}/`
    return async () => (await request(url, { dispatcher })).body.json()
  },

  /** What is to be seen, if it is there. */
  async control() {
    const { held } = await import('./held.mjs')
    return () => new Promise((resolve) => setImmediate(resolve, held(resolve)))
  },
}

async function tracedRedis(settings = {}, options = {}) {
  const { Redis } = await import('ioredis')
  const { traceIORedis } = await import('@throughline/ioredis')
  return traceIORedis(new Redis(urls.redis, settings), options)
}

/** The port of a server that is asked. */
async function listening() {
  const server = createServer((_request, response) => response.end('{}')).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return server.address().port
}

const { start } = await import('@throughline/core')
let ended = 0
start({
  signals: false,
  // Nothing waits for a batch: it would be held, as it should be.
  spanProcessors: [
    {
      onStart() {},
      onEnd() {
        ended += 1
      },
      forceFlush: async () => {},
      shutdown: async () => {},
    },
  ],
})

const call = await clients[client]()

async function callAll(calls) {
  let left = calls
  const worker = async () => {
    while (left > 0) {
      left -= 1
      await call()
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
}

/** What is young after two collections of the young space is held by something that is not young. */
function collectYoung() {
  for (let times = 0; times < 2; times += 1) globalThis.gc({ type: 'minor' })
}

await callAll(WARM_UP_CALLS)
await sleep(10)
for (let times = 0; times < 3; times += 1) globalThis.gc()
// What is in use by now, the tables of Maps and Sets for one, gets old, as in a process that has run for a while.
const busy = callAll(WARM_UP_CALLS)
for (let times = 0; times < 20; times += 1) {
  collectYoung()
  await sleep(1)
}
await busy
ended = 0

const session = new Session()
session.connect()
await session.post('HeapProfiler.startSampling', {
  samplingInterval: 256,
  includeObjectsCollectedByMajorGC: true,
  includeObjectsCollectedByMinorGC: false,
})
await callAll(CALLS)
await sleep(10)
collectYoung()
const { profile } = await session.post('HeapProfiler.stopSampling')

let bytes = 0
function add({ callFrame, selfSize, children }) {
  if (/packages\/[a-z]+\/dist\/|\/held\.mjs$/.test(callFrame.url)) bytes += selfSize
  children.forEach(add)
}
add(profile.head)
process.send({ bytes: bytes / CALLS, spans: ended })
process.disconnect()
process.exit()
