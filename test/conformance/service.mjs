// The service that the W3C's conformance tests talk to: it is sent a list of `{ url, arguments }`, and posts each of the
// `arguments` to its `url`. README.md says how to run them. Beside the lines of tracing it is an app like any other.
import { start } from '@throughline/core'
import { tracing as tracingExpress } from '@throughline/express'
import { tracing as tracingFastify } from '@throughline/fastify'
import { tracing as tracingKoa } from '@throughline/koa'
import { traceUndici } from '@throughline/undici'
import express from 'express'
import fastify from 'fastify'
import Koa from 'koa'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { pathToFileURL } from 'node:url'
import { request } from 'undici'

/** By their names: what answers requests at `/fetch` and `/undici`, which name what the calls are made with. */
const frameworks = {
  express() {
    const app = express()
    app.use(tracingExpress())
    app.post('/:sender', async (req, res) => {
      await call(req.params.sender, await text(req))
      res.send('done')
    })
    return app
  },
  koa() {
    const app = new Koa()
    app.use(tracingKoa())
    app.use(async (ctx) => {
      await call(ctx.path.slice(1), await text(ctx.req))
      ctx.body = 'done'
    })
    return app.callback()
  },
  async fastify() {
    const app = fastify()
    await app.register(tracingFastify)
    app.post('/:sender', async (req) => {
      await call(req.params.sender, JSON.stringify(req.body))
      return 'done'
    })
    await app.ready()
    return app.routing
  },
}

const senders = {
  async fetch(url, options) {
    await (await fetch(url, options)).text()
  },
  async undici(url, options) {
    await (await request(url, options)).body.text()
  },
}

async function call(sender, body) {
  for (const { url, arguments: given } of JSON.parse(body)) {
    await senders[sender](url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(given),
    })
  }
}

/** Serves one framework's app on a port of 127.0.0.1. */
export async function serve(framework, port = 0) {
  const server = createServer(await frameworks[framework]()).listen(port, '127.0.0.1')
  await once(server, 'listening')
  const stop = traceUndici()
  return {
    port: server.address().port,
    async close() {
      stop()
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  // Spans are made as ever, and go nowhere: what is looked at is on the wire between the services.
  start({ spanProcessors: [] })
  const [framework = 'express', port = '5000'] = process.argv.slice(2)
  const { port: at } = await serve(framework, Number(port))
  console.log(`${framework}: http://127.0.0.1:${at}/fetch and http://127.0.0.1:${at}/undici`)
}
