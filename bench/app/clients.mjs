const SELECT_PRODUCT = 'SELECT id, name, price FROM products WHERE id = $1'

/**
 * What a request asks others for: a row of PostgreSQL, a key of Redis, an answer over HTTP; one after the other.
 *
 * @param {object} options
 * @param {NodeRequire} options.require
 * @param {import('../server.mjs').Tracing} options.tracing
 * @param {{ postgres: string, redis: string, http: string }} options.urls
 */
export async function clients({ require, tracing, urls }) {
  const { Pool } = require('pg')
  const { Redis } = require('ioredis')
  const pool = new Pool({ connectionString: urls.postgres })
  const redis = new Redis(urls.redis)
  const wrapped = (await tracing.clients?.({ pool, redis })) ?? {}
  const query = wrapped.query ?? ((text, values) => pool.query(text, values))
  const get = wrapped.get ?? ((key) => redis.get(key))
  const request = wrapped.fetch ?? ((url) => fetch(url))

  return async function answerOf(id) {
    const { rows } = await query(SELECT_PRODUCT, [Number(id) % 100])
    const stock = await get('bench:stock')
    const response = await request(`${urls.http}/price`)
    const { currency } = await response.json()
    return { id, product: rows[0].name, stock, currency }
  }
}
