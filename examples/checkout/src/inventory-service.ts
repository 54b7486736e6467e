import Router from '@koa/router'
import { traceIORedis } from '@throughline/ioredis'
import { tracing } from '@throughline/koa'
import { Redis } from 'ioredis'
import Koa from 'koa'
import { setTimeout as wait } from 'node:timers/promises'
import { listening, port } from './listening.ts'

const redis = traceIORedis(new Redis(process.env['REDIS_URL'] ?? 'redis://127.0.0.1:6379'))

const router = new Router()
router.get('/stock', async (ctx) => {
  const wanted = Object.entries(ctx.query)
  const stock = await redis.hmget('checkout:stock', ...wanted.map(([sku]) => sku))
  // The shelves are far away.
  await wait(40)
  const missing = wanted
    .filter(([, quantity], index) => Number(stock[index] ?? 0) < Number(quantity))
    .map(([sku]) => sku)
  ctx.status = missing.length === 0 ? 200 : 409
  ctx.body = { missing }
})

const app = new Koa()
app.use(tracing())
app.use(router.routes())
app.use(router.allowedMethods())

const server = app.listen(port, '127.0.0.1', () => listening('inventory-service', server))
