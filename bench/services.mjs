import { createRequire } from 'node:module'
import { join } from 'node:path'
import { startServices } from '../scripts/services.mjs'
import { startChild } from './child.mjs'

const PRODUCTS = 100

/**
 * What the app asks: PostgreSQL, Redis and a service over HTTP, with what it finds there.
 *
 * @param {{ install: string, node: string }} options
 * @returns {Promise<{ urls: { postgres: string, redis: string, http: string }, stop: () => Promise<void> }>}
 */
export async function startBackends({ install, node }) {
  const require = createRequire(join(install, 'package.json'))
  const { Client } = require('pg')
  const { Redis } = require('ioredis')
  const { urls, stop: stopServices } = await startServices(['postgres', 'redis'])
  try {
    const database = new Client({ connectionString: urls.postgres })
    await database.connect()
    await database.query('CREATE TABLE products (id integer PRIMARY KEY, name text, price integer)')
    await database.query(
      `INSERT INTO products SELECT number, 'product ' || number, number * 10 FROM generate_series(0, ${PRODUCTS - 1}) number`,
    )
    await database.end()
    const redis = new Redis(urls.redis)
    await redis.set('bench:stock', '12')
    await redis.quit()
    const upstream = await startChild(new URL('upstream-process.mjs', import.meta.url), {
      name: 'the upstream service',
      node,
      core: 'rest',
    })
    return {
      urls: { ...urls, http: await upstream.ask('url') },
      async stop() {
        await upstream.stop()
        await stopServices()
      },
    }
  } catch (error) {
    await stopServices()
    throw error
  }
}
