import {
  handOn,
  middlewareSpans,
  receiver,
  recordError,
  reportOnce,
  show,
  type ApiSpan,
  type Framework,
  type ReceivingOptions,
} from '@throughline/core'
import type { FastifyInstance, FastifyReply, FastifyRequest, RegisterOptions } from 'fastify'
import { joinHooks } from './hook.ts'
import { layersOf } from './layers.ts'
import { routeReader } from './route.ts'
import { endsAtHandshake, isUpgrade } from './websocket.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** `false`: requests of this route have no span, as if they were among those to `ignore`. */
    tracing?: boolean
  }
}

/** What `app.register(tracing, …)` takes: `ignore` and `inbound` are asked with `(request)`, the others with `(request, reply)`. */
export type TracingOptions = ReceivingOptions<FastifyRequest, [FastifyRequest, FastifyReply]>

const scope = { name: '@throughline/fastify', version: '0.1.0' }

/**
 * A Fastify plugin that makes a SERVER span of every request. Register it first: a hook that answers before it leaves no
 * span behind. Fastify throws out of `ready()` and `listen()` what this rejects with.
 *
 * @example
 * app.register(tracing)
 * @returns a promise, which rejects with a TypeError for an option that is unknown or of the wrong shape.
 * @throws TypeError where it is called in the place of being registered.
 */
export function tracing(fastify: FastifyInstance, options: TracingOptions): Promise<void>
export function tracing(
  fastify: FastifyInstance,
  options: TracingOptions,
  ...elsewhere: unknown[]
): Promise<void> {
  const given: unknown = fastify
  const done: unknown = options
  if (typeof fastify?.addHook === 'function') {
    if (typeof done !== 'function') return plugIn(fastify, options)
    // By `app.addHook('onClose', tracing)` Fastify calls it with the app, too, and waits until this is called.
    done()
    return unregistered('onClose', 'an app that closes')
  }
  // By `app.addHook('onRequest', tracing)` Fastify calls it with each request.
  if (typeof given === 'object' && given !== null && 'raw' in given)
    return unregistered('onRequest', 'a request')
  // By `app.use(tracing)` Express calls it with request, response and next, Koa with ctx and next.
  if (typeof done === 'function' || typeof elsewhere.at(-1) === 'function')
    return handOn(scope, 'Fastify', [fastify, options, ...elsewhere]) as Promise<void>
  const example = given === undefined ? 'app.register(tracing)' : 'app.register(tracing, { ignore: … })'
  throw new TypeError(
    `${scope.name}: tracing(): expected to be called by Fastify, with the app, received ${show(given)}; example: ${example}`,
  )
}

async function unregistered(hook: string, received: string): Promise<void> {
  const message = `${scope.name}: nothing is traced by app.addHook('${hook}', tracing): expected tracing to be registered, received ${received}; example: app.register(tracing)`
  reportOnce('fastify hook', 'error', message)
}

async function plugIn(fastify: FastifyInstance, options: TracingOptions): Promise<void> {
  // Fastify's own options for a plugin come along with ours.
  const all: TracingOptions & RegisterOptions = options
  const { prefix: _1, logLevel: _2, logSerializers: _3, ...own } = all
  const routeOf = routeReader()
  const urlOf = ({ request }: FastifyReply) => routeOf(request).config?.url
  const framework: Framework<FastifyRequest, [FastifyRequest, FastifyReply], FastifyReply> = {
    scope,
    hasMiddleware: true,
    subject: ({ request }) => request,
    given: (reply) => [reply.request, reply],
    route: urlOf,
    routeAtStart: urlOf,
    ...(fastify.hasRequestDecorator('opentelemetry') && { madeSpan: spanOfOfficial }),
  }
  // Spans of hooks and handlers are there if any registration asks for them.
  const { middlewareSpans: _4, ...given } = own
  const receive = receiver(framework, own, 'tracing()', given)
  const passOn = receiver(framework, { ...own, ignore: () => true }, 'tracing()', given)
  const begin = middlewareSpans(scope, own.middlewareSpans)
  const trace = begin && layersOf(begin, scope.name)

  // Often it is the same route again: its hooks need not be looked up.
  let latest: unknown

  function onRequest(request: FastifyRequest, reply: FastifyReply, done: () => void): void {
    const route = routeOf(request)
    try {
      trace?.(route)
      if (route !== latest) joinHooks(route, scope.name)
      latest = route
    } catch (error) {
      reportOnce('fastify route', 'warn', 'the hooks of a route could not be followed', error)
    }
    const run = isUpgrade(request)
      ? () => {
          endsAtHandshake(request)
          done()
        }
      : done
    if (route.config?.tracing === false) passOn(request.raw, reply.raw, reply, run)
    else receive(request.raw, reply.raw, reply, run)
  }

  // The name identifies it among other hooks, and in stack traces.
  Object.defineProperty(onRequest, 'name', { value: scope.name })
  fastify.addHook('onRequest', onRequest)
  fastify.addHook('onError', function onError(request, _reply, error, done) {
    recordError(request.raw, error)
    done()
  })
}

/** The span that @fastify/otel, whose hook runs first, has made; an app may have something else by that name. */
function spanOfOfficial({ request }: FastifyReply): ApiSpan | undefined {
  try {
    const { span } = (request as unknown as { opentelemetry(): { span?: ApiSpan | null } }).opentelemetry()
    return typeof span?.isRecording === 'function' ? span : undefined
  } catch {
    return undefined
  }
}

// What fastify-plugin would say: these hooks are for the scope that registers the plugin, not for one of its own.
Object.assign(tracing, {
  [Symbol.for('skip-override')]: true,
  [Symbol.for('fastify.display-name')]: scope.name,
  [Symbol.for('plugin-meta')]: { name: scope.name, fastify: '>=4 <6' },
})
