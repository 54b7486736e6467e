/** @type {import('../server.mjs').App} */
export function listen({ require, tracing, answerOf }) {
  const Koa = require('koa')
  const Router = require('@koa/router')
  const app = new Koa()
  const middleware = tracing.koa?.()
  if (middleware !== undefined) app.use(middleware)
  const router = new Router()
  router.get('/users/:id', async (ctx) => {
    ctx.body = await answerOf(ctx.params.id)
  })
  app.use(router.routes())
  return app.listen(0, '127.0.0.1')
}
