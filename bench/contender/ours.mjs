import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

/** Throughline as published: one line for the app, one wrap per client, the environment's settings. */
export async function start({ folder, version, framework }) {
  const { resolve } = createRequire(join(folder, 'package.json'))
  const load = (name) => import(pathToFileURL(resolve(`@throughline/${name}`)).href)
  const { flush } = await load('core')
  const { tracing } = await load(framework)
  return {
    version,
    express: () => tracing(),
    koa: () => tracing(),
    fastify: (app) => app.register(tracing),
    async clients({ pool, redis }) {
      const { tracePg } = await load('pg')
      const { traceIORedis } = await load('ioredis')
      const { traceUndici } = await load('undici')
      tracePg(pool)
      traceIORedis(redis)
      traceUndici()
    },
    flush,
  }
}
