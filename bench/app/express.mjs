/** @type {import('../server.mjs').App} */
export function listen({ require, tracing, answerOf }) {
  const express = require('express')
  const app = express()
  const middleware = tracing.express?.()
  if (middleware !== undefined) app.use(middleware)
  app.get('/users/:id', async (request, response) => {
    response.json(await answerOf(request.params.id))
  })
  return app.listen(0, '127.0.0.1')
}
