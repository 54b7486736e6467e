import { versionOf } from '../version.mjs'

/** The official SDK with the official instrumentation of what the app uses, and the environment's settings. */
export function start({ require, install }) {
  const { trace } = require('@opentelemetry/api')
  const { NodeSDK } = require('@opentelemetry/sdk-node')
  const { ExpressInstrumentation } = require('@opentelemetry/instrumentation-express')
  const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http')
  const { IORedisInstrumentation } = require('@opentelemetry/instrumentation-ioredis')
  const { KoaInstrumentation } = require('@opentelemetry/instrumentation-koa')
  const { PgInstrumentation } = require('@opentelemetry/instrumentation-pg')
  const { UndiciInstrumentation } = require('@opentelemetry/instrumentation-undici')
  const { FastifyOtelInstrumentation } = require('@fastify/otel')
  const sdk = new NodeSDK({
    instrumentations: [
      new HttpInstrumentation(),
      new ExpressInstrumentation(),
      new KoaInstrumentation(),
      new FastifyOtelInstrumentation({ registerOnInitialization: true }),
      new PgInstrumentation(),
      new IORedisInstrumentation(),
      new UndiciInstrumentation(),
    ],
  })
  sdk.start()
  const version = versionOf(install, '@opentelemetry/sdk-node')
  return { version, flush: () => trace.getTracerProvider().getDelegate().forceFlush() }
}
