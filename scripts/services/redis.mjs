import { randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { inDirectory, launch, which } from './child.mjs'

export const title = 'Redis'
export const variable = 'REDIS_URL'
export const standardPort = 6379
export const packages = { 'apt-get': 'redis-server', dnf: 'redis', brew: 'redis' }

/** A server that is there answers within this many ms. */
const patience = 2000

/** A server has this many databases unless it is told otherwise. */
const databases = 16

/** Whoever holds this key in a database has it until it is removed. */
const claim = 'throughline:claim'

// From the last one down: people put their things into the first. The server may have fewer databases.
const claimEmptyDatabase = `
  for index = tonumber(ARGV[2]) - 1, 0, -1 do
    local selected = redis.pcall('SELECT', index)
    if not selected.err and redis.call('DBSIZE') == 0 then
      redis.call('SET', KEYS[1], ARGV[1])
      return index
    end
  end
  return -1`

// The tests may have removed our claim; another run's claim is not ours to remove.
const emptyIfOurs = `
  local holder = redis.call('GET', KEYS[1])
  if holder and holder ~= ARGV[1] then return 0 end
  redis.call('FLUSHDB')
  return 1`

/** @param {number} port */
export function privateUrl(port) {
  return `redis://127.0.0.1:${port}`
}

/** @param {number} port */
export function candidates(port) {
  return [privateUrl(port)]
}

/**
 * A URL that names a database is used as it is, and what is in there stays. Without a name, we take a database
 * that is empty now, and empty it afterwards.
 *
 * @param {string} url
 */
export async function take(url) {
  const own = new URL(url)
  if (own.pathname.length > 1 || own.searchParams.has('db')) {
    await connected(url, (client) => client.ping())
    return { url, stop: async () => {} }
  }
  const holder = randomUUID()
  const index = await connected(url, (client) => client.eval(claimEmptyDatabase, 1, claim, holder, databases))
  if (index === -1) throw new Error(`none of its databases is empty, and what is in them is not ours`)
  own.pathname = `/${index}`
  return {
    url: own.href,
    stop: async () => {
      await connected(own.href, (client) => client.eval(emptyIfOurs, 1, claim, holder))
    },
  }
}

/**
 * @template Result
 * @param {string} url
 * @param {(client: Redis) => Promise<Result>} use
 */
async function connected(url, use) {
  const client = new Redis(url, {
    lazyConnect: true,
    connectTimeout: patience,
    commandTimeout: patience,
    enableReadyCheck: false,
    retryStrategy: () => null,
  })
  /** @type {Error | undefined} */
  let failure
  client.on('error', (error) => (failure ??= error))
  try {
    await client.connect()
    return await use(client)
  } catch (error) {
    // ioredis rejects with 'Connection is closed.' and tells the cause by an event.
    throw failure ?? error
  } finally {
    client.disconnect()
  }
}

export async function startInstalled() {
  const server = (await which('redis-server')) ?? (await which('valkey-server'))
  if (!server) return undefined
  return inDirectory('redis', undefined, async (port, directory) => {
    const args = [
      '--bind',
      '127.0.0.1',
      '--port',
      `${port}`,
      '--save',
      '',
      '--appendonly',
      'no',
      '--dir',
      directory,
    ]
    return {
      url: privateUrl(port),
      stop: await launch(server, args, { ready: /ready to accept connections/i, cwd: directory }),
    }
  })
}
