import { floor } from '../floor/tracing.mjs'

/** @returns {import('../server.mjs').Tracing} */
export function start({ endpoint }) {
  const { express, koa, fastify, pg, redis, http, flush } = floor(endpoint)
  return {
    version: 'written here',
    express,
    koa,
    fastify: (app) => app.addHook('onRequest', fastify()),
    clients: ({ pool, redis: client }) => ({
      query: pg(pool.options, (text, values) => pool.query(text, values)),
      get: redis(client.options, (key) => client.get(key)),
      fetch: http((url, init) => fetch(url, init)),
    }),
    flush,
  }
}
