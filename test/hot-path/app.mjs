// An app of one framework, traced or not, which tells its parent what each request of a phase did to the process.
import asyncHooks, { AsyncLocalStorage, createHook } from 'node:async_hooks'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { syncBuiltinESMExports } from 'node:module'
import { Socket } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'

const { framework, isTraced } = JSON.parse(process.argv[2])

/** How often garbage is collected before what is still there counts as held. */
const COLLECTIONS = 20

// ---- What is counted in the process ----

const made = {}
createHook({ init: (_id, type) => (made[type] = (made[type] ?? 0) + 1) }).enable()

let storages = 0
let runs = 0
class CountedStorage extends AsyncLocalStorage {
  constructor(...given) {
    super(...given)
    storages += 1
  }

  run(...given) {
    runs += 1
    return super.run(...given)
  }
}
Object.defineProperty(asyncHooks, 'AsyncLocalStorage', { value: CountedStorage })
syncBuiltinESMExports()

// ---- What is seen of a request ----

setFlagsFromString('--allow-natives-syntax')
/** Whether V8 finds the object's properties by their place, not in a dictionary, and can put what they do into its caller. */
const isFast = new Function('object', 'return %HasFastProperties(object)')

/** What is asked of a request's connection to describe who sent it. */
const OF_THE_PEER = ['remoteAddress', 'remotePort', 'remoteFamily', 'localAddress', 'localPort', 'encrypted']

let reads = new Set()
let shapes = {}
let refs = []
/** How many requests of the phase are still to come, and what is to be done then. */
let seen = 0
let completed = () => {}

const watchedSockets = new WeakSet()

function watchSocket(socket) {
  if (watchedSockets.has(socket)) return
  watchedSockets.add(socket)
  for (const name of OF_THE_PEER) {
    const get = () => {
      reads.add(`socket.${name}`)
      return Reflect.get(Socket.prototype, name, socket)
    }
    Object.defineProperty(socket, name, { get, configurable: true })
  }
}

function watchHeaders(headers) {
  const read = (name) => {
    if (typeof name === 'string') reads.add(name)
  }
  return new Proxy(headers, {
    get(target, name) {
      read(name)
      return target[name]
    },
    has(target, name) {
      read(name)
      return name in target
    },
    getOwnPropertyDescriptor(target, name) {
      read(name)
      return Reflect.getOwnPropertyDescriptor(target, name)
    },
    ownKeys(target) {
      read('all names')
      return Reflect.ownKeys(target)
    },
  })
}

/** Before anybody else sees the request. */
function arrived(request, response) {
  refs.push(new WeakRef(request), new WeakRef(response))
  watchSocket(request.socket)
  request.headers = watchHeaders(request.headers)
  response.once('close', () => {
    shapes.closed ??= shapeOf(request, response)
    // What anybody still does in this turn counts too.
    setImmediate(() => {
      seen -= 1
      if (seen === 0) completed()
    })
  })
}

/** In the app's handler; `own` is what the framework made for the request. */
function handled(request, response, own = {}) {
  shapes.handled ??= shapeOf(request, response, own)
}

function shapeOf(request, response, own = {}) {
  const { socket, rawHeaders } = request
  const emitters = { request, response, socket, server }
  const objects = {
    request,
    response,
    socket,
    rawHeaders,
    ...prototypesOf('request', request),
    ...prototypesOf('response', response),
  }
  const keys = Object.entries(objects).flatMap(([of, object]) =>
    Reflect.ownKeys(object).map((key) => `${of}: ${String(key)}`),
  )
  for (const [of, object] of Object.entries(own))
    Object.assign(objects, { [of]: object }, prototypesOf(of, object))
  // The socket has got accessors here.
  const slow = Object.keys(objects).filter((of) => of !== 'socket' && !isFast(objects[of]))
  return { listeners: listenersOf(emitters), keys: keys.sort(), slow }
}

function listenersOf(emitters) {
  const listeners = Object.entries(emitters).flatMap(([of, emitter]) =>
    emitter.eventNames().map((name) => `${of}: ${emitter.listenerCount(name)} of ${String(name)}`),
  )
  return listeners.sort()
}

/** All that it inherits from, from the nearest on. */
function prototypesOf(name, object) {
  const prototypes = {}
  for (let at = Object.getPrototypeOf(object); at !== null; at = Object.getPrototypeOf(at)) {
    prototypes[`prototype ${Object.keys(prototypes).length + 1} of ${name}`] = at
  }
  return prototypes
}

// ---- The apps ----

const apps = {
  async express() {
    const { default: express } = await import('express')
    const app = express()
    if (isTraced) app.use((await import('@throughline/express')).tracing())
    app.get('/users/:id', (request, response) => {
      handled(request, response)
      response.json({ id: request.params.id })
    })
    return createServer(app)
  },

  koa: async () => createServer((await koa()).callback()),

  async 'koa in koa-mount'() {
    const { default: Koa } = await import('koa')
    const { default: mount } = await import('koa-mount')
    return createServer(new Koa().use(mount('/users', await koa())).callback())
  },

  async fastify() {
    const { default: fastify } = await import('fastify')
    const app = fastify()
    if (isTraced) app.register((await import('@throughline/fastify')).tracing)
    app.get('/users/:id', (request, reply) => {
      handled(request.raw, reply.raw, { request, reply })
      reply.send({ id: request.params.id })
    })
    await app.ready()
    return app.server
  },

  async 'node:http'() {
    return plain((request, response) => {
      handled(request, response)
      response.end('{"id":7}')
    })
  },

  async 'node:http with an async handler'() {
    return plain(async (request, response) => {
      handled(request, response)
      response.end('{"id":7}')
    })
  },
}

async function koa() {
  const { default: Koa } = await import('koa')
  const app = new Koa()
  if (isTraced) app.use((await import('@throughline/koa')).tracing())
  app.use((ctx) => {
    handled(ctx.req, ctx.res, { context: ctx })
    ctx.body = { id: 7 }
  })
  return app
}

async function plain(handler) {
  if (!isTraced) return createServer(handler)
  const { traceRequest } = await import('@throughline/core')
  return createServer((request, response) =>
    traceRequest(request, response, () => handler(request, response)),
  )
}

// ---- What the parent asks for ----

const spans = []
let flush = async () => {}
if (isTraced) {
  const core = await import('@throughline/core')
  flush = core.flush
  // What brings no decision along is not chosen; what brings one is treated by that.
  core.start({
    sampling: 0,
    signals: false,
    exporter: {
      export(batch, done) {
        spans.push(...batch)
        done({ code: 0 })
      },
      shutdown: async () => {},
    },
  })
}
const server = await apps[framework]()
server.prependListener('request', arrived)
server.listen(0, '127.0.0.1')
await once(server, 'listening')

let before
let listeners
let phase

const commands = {
  /** From here on, so many requests are the phase. Answers when there is nobody connected from before it. */
  async begin(count) {
    await nobodyConnected()
    reads = new Set()
    shapes = {}
    refs = []
    seen = count
    phase = new Promise((resolve) => (completed = resolve))
    listeners = listenersOf({ process })
    before = { ...made }
    runs = 0
  },

  async end() {
    await phase
    const counts = Object.entries(made).map(([type, count]) => [type, count - (before[type] ?? 0)])
    return {
      made: Object.fromEntries(counts),
      reads: [...reads].sort(),
      shapes,
      listeners: [listeners, listenersOf({ process })],
      storages,
      runs,
    }
  },

  /** How many requests and responses of the phase are still held by somebody; and what is sent only now. */
  async collect() {
    await nobodyConnected()
    let held = refs.length
    for (let times = 0; times < COLLECTIONS && held > 0; times += 1) {
      globalThis.gc()
      await turn()
      held = refs.filter((ref) => ref.deref() !== undefined).length
    }
    const sentBefore = spans.length
    await flush()
    return { watched: refs.length, held, sentBefore, sent: spans.length }
  },
}

async function nobodyConnected() {
  const connections = () => new Promise((resolve) => server.getConnections((_error, count) => resolve(count)))
  while ((await connections()) > 0) await turn()
}

process.on('message', async ([command, ...given]) =>
  process.send({ answer: await commands[command](...given) }),
)
process.once('disconnect', () => process.exit())
process.send({ answer: server.address().port })
