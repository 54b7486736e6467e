import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { Redis } from 'ioredis'
import { Client } from 'pg'

export interface Backends {
  databaseUrl: string
  redisUrl: string
}

export interface Running {
  url: string
  process: ChildProcess
  /** What the service told besides, oldest first. */
  told: Record<string, unknown>[]
  /** Whether it said that spans could not be exported. */
  losesSpans: boolean
}

export type Started = Record<(typeof START_ORDER)[number], Running>

// Each service is told where those before it listen.
export const START_ORDER = [
  'stripe-api',
  'payment-service',
  'inventory-service',
  'order-service',
  'api-gateway',
] as const

/** How long a span waits for others before it is sent. */
export const EXPORT_DELAY_MS = 100

/** The table and the shelves that the services find. */
export async function stockUp(databaseUrl: string, redisUrl: string, quantity: number): Promise<void> {
  const database = new Client({ connectionString: databaseUrl })
  await database.connect()
  await database.query(
    'CREATE TABLE IF NOT EXISTS orders (id uuid PRIMARY KEY, user_id text, amount integer)',
  )
  await database.end()

  const redis = new Redis(redisUrl)
  await redis.hset('checkout:stock', { mug: quantity, shirt: 20 })
  redis.disconnect()
}

export async function startAll({
  databaseUrl,
  redisUrl,
  endpoint,
}: Backends & { endpoint: string }): Promise<Started> {
  // The demo's own settings, whatever the terminal has for other apps.
  const inherited = Object.entries(process.env).filter(
    ([name]) => !name.startsWith('OTEL_') && name !== 'PORT',
  )
  const env: NodeJS.ProcessEnv = {
    ...Object.fromEntries(inherited),
    DATABASE_URL: databaseUrl,
    REDIS_URL: redisUrl,
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    OTEL_BSP_SCHEDULE_DELAY: String(EXPORT_DELAY_MS),
  }
  const started: Record<string, Running> = {}
  try {
    for (const name of START_ORDER) {
      started[name] = await startOne(name, { ...env, OTEL_SERVICE_NAME: name })
      env[`${name.replace('-', '_').toUpperCase()}_URL`] = started[name].url
    }
    return started as Started
  } catch (error) {
    await Promise.all(Object.values(started).map(stop))
    throw error
  }
}

async function startOne(name: string, env: NodeJS.ProcessEnv): Promise<Running> {
  // Its output goes to stderr: on stdout there is the trace, and nothing else.
  const child = fork(new URL(`${name}.js`, import.meta.url), {
    env,
    stdio: ['ignore', 2, 'pipe', 'ipc'],
    execArgv: [],
  })
  const running: Running = { url: '', process: child, told: [], losesSpans: false }
  createInterface({ input: child.stderr as Readable }).on('line', (line) => {
    console.error(line)
    if (line.startsWith('throughline: spans are being lost')) running.losesSpans = true
  })
  child.on('message', (message: Record<string, unknown>) => running.told.push(message))
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`${name} ended (${code}) before it was ready`)
  })
  await Promise.race([once(child, 'message'), ended])
  running.url = String(running.told[0]?.['url'])
  return running
}

/** It is over when everything is read that the service has said. */
export async function stop({ process: child }: Running): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'close')
  child.kill('SIGTERM')
  await ended
}
