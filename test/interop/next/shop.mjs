// The same app as modules, with our adapters alone.
import { createRequire } from 'node:module'
import { BatchSpanProcessor, InMemorySpanExporter } from '@opentelemetry/sdk-trace'
import { NodeSDK } from '@opentelemetry/sdk-node'

const { asked } = createRequire(import.meta.url)('../apps/app.cjs')
const exporter = new InMemorySpanExporter()

function register() {
  // Nothing leaves it by itself while this runs: only a flush does it.
  const spanProcessors = [new BatchSpanProcessor({ exporter, scheduledDelayMillis: 600_000 })]
  const sdk = new NodeSDK({ spanProcessors, autoDetectResources: false })
  sdk.start()
  return sdk
}

let sdk = asked.order === 'before' ? register() : undefined
const { flush, start } = await import('@throughline/core')
const adapters = {
  express: await import('@throughline/express'),
  pg: await import('@throughline/pg'),
  undici: await import('@throughline/undici'),
}
sdk ??= register()
if (asked.start) start({ endpoint: asked.start })

const { default: express } = await import('express')
const { Pool } = await import('pg')
const { serve } = createRequire(import.meta.url)('./serve.cjs')
await serve(express, Pool, adapters, exporter, { flush, shutdown: () => sdk.shutdown() })
