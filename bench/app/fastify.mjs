/** @type {import('../server.mjs').App} */
export async function listen({ require, tracing, answerOf }) {
  const { fastify } = require('fastify')
  const app = fastify()
  await tracing.fastify?.(app)
  app.get('/users/:id', (request) => answerOf(request.params.id))
  await app.listen({ port: 0, host: '127.0.0.1' })
  return app.server
}
