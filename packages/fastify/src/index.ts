import { endRequest, receiver, recordError, type ReceivingOptions } from '@throughline/core'
import type { FastifyInstance, FastifyReply, FastifyRequest, RegisterOptions } from 'fastify'

/** What `app.register(tracing, …)` takes: `ignore` and `inbound` are asked with `(request)`, the others with `(request, reply)`. */
export type TracingOptions = ReceivingOptions<FastifyRequest, [FastifyRequest, FastifyReply]>

const scope = { name: '@throughline/fastify', version: '0.1.0' }

/**
 * A Fastify plugin that makes a SERVER span of every request. Register it first: a hook that answers before it leaves no
 * span behind. Fastify throws out of `ready()` and `listen()` what this throws.
 *
 * @example
 * app.register(tracing)
 * @throws TypeError for an option that is unknown or of the wrong shape.
 */
export async function tracing(fastify: FastifyInstance, options: TracingOptions): Promise<void> {
  // Fastify's own options for a plugin come along with ours.
  const given: TracingOptions & RegisterOptions = options
  const { prefix: _1, logLevel: _2, logSerializers: _3, ...own } = given
  const receive = receiver<FastifyRequest, [FastifyRequest, FastifyReply], FastifyReply>(
    {
      scope,
      subject: ({ request }) => request,
      given: (reply) => [reply.request, reply],
      route: ({ request }) => routeOf(request),
    },
    own,
  )

  fastify.addHook('onRequest', function onRequest(request, reply, done) {
    // What `app.inject` makes closes before it says that it is written: there, 'finish' is the end.
    if ('_lightMyRequest' in reply.raw) reply.raw.once('finish', () => endRequest(request.raw))
    receive(request.raw, reply.raw, reply, done)
  })
  fastify.addHook('onError', function onError(request, _reply, error, done) {
    recordError(request.raw, error)
    done()
  })
}

// What fastify-plugin would say: these hooks are for the scope that registers the plugin, not for one of its own.
Object.assign(tracing, {
  [Symbol.for('skip-override')]: true,
  [Symbol.for('fastify.display-name')]: scope.name,
  [Symbol.for('plugin-meta')]: { name: scope.name, fastify: '>=4 <6' },
})

// Before 4.10 `routeOptions` had no url, and `routerPath` was the way; after it, touching that one warns. The handler of
// 404s has neither.
function routeOf(request: FastifyRequest & { routerPath?: string }): string | undefined {
  return request.routeOptions.url ?? (request.is404 ? undefined : request.routerPath)
}
