import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'

const SLOTS = 16384

/** Servers of Redis that a test file starts for itself. */
export interface Servers {
  readonly ports: readonly number[]
  /** A client of one of them. */
  admin(port: number): Redis
  /** Ends one of them at once, as a crash does. */
  kill(port: number): Promise<void>
  /** Starts it again on its port, empty. */
  revive(port: number): void
  stop(): Promise<void>
}

const running = new Set<ChildProcess>()
// A run that is cut off leaves none behind.
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

/** A cluster of so many masters, each with an equal share of the slots, that has agreed on them. */
export async function startCluster(count: number): Promise<Servers> {
  const servers = await start(await freePorts(count), (port) => [
    '--port',
    String(port),
    '--cluster-enabled',
    'yes',
    '--cluster-node-timeout',
    '2000',
  ])
  try {
    const admins = servers.ports.map((port) => servers.admin(port))
    for (const [index, admin] of admins.entries()) {
      const first = Math.ceil((index * SLOTS) / count)
      const last = Math.ceil(((index + 1) * SLOTS) / count) - 1
      await admin.call('CLUSTER', 'SET-CONFIG-EPOCH', index + 1)
      await admin.call('CLUSTER', 'ADDSLOTSRANGE', first, last)
      await admin.call('CLUSTER', 'MEET', '127.0.0.1', servers.ports[0] as number)
    }
    await Promise.all(admins.map((admin) => agreement(admin, count)))
    return servers
  } catch (error) {
    await servers.stop()
    throw error
  }
}

/** One that may be killed. */
export async function startServer(): Promise<Servers> {
  return start(await freePorts(1), (port) => ['--port', String(port)])
}

/** A master, and a sentinel that calls it `main`: the ports are in this order. */
export async function startSentinel(): Promise<Servers> {
  const [master, sentinel] = (await freePorts(2)) as [number, number]
  return start([master, sentinel], (port, folder) => {
    if (port === master) return ['--port', String(port)]
    const file = join(folder, 'sentinel.conf')
    writeFileSync(file, `port ${port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 ${master} 1\n`)
    return [file, '--sentinel']
  })
}

/** A master, its replica, and a sentinel that calls them `main` and puts the one in place of the other: in this order. */
export async function startReplicated(): Promise<Servers> {
  const [master, replica, sentinel] = (await freePorts(3)) as [number, number, number]
  const servers = await start([master, replica, sentinel], (port, folder) => {
    if (port === master) return ['--port', String(port), '--repl-diskless-sync-delay', '0']
    if (port === replica) return ['--port', String(port), '--replicaof', '127.0.0.1', String(master)]
    const file = join(folder, 'sentinel.conf')
    const lines = [
      `port ${port}`,
      'bind 127.0.0.1',
      `sentinel monitor main 127.0.0.1 ${master} 1`,
      'sentinel down-after-milliseconds main 1000',
      'sentinel failover-timeout main 1000',
      `sentinel known-replica main 127.0.0.1 ${replica}`,
    ]
    writeFileSync(file, `${lines.join('\n')}\n`)
    return [file, '--sentinel']
  })
  const [copy, watch] = [servers.admin(replica), servers.admin(sentinel)]
  await until(async () => (await copy.info('replication')).includes('master_link_status:up'))
  await until(async () => {
    const [known] = (await watch.call('SENTINEL', 'REPLICAS', 'main')) as string[][]
    const told = Object.fromEntries(
      (known ?? []).flatMap((word, index, all) => (index % 2 === 0 ? [[word, all[index + 1]]] : [])),
    ) as Record<string, string>
    return told['flags'] === 'slave' && told['role-reported'] === 'slave' && told['runid'] !== ''
  })
  return servers
}

async function start(
  ports: readonly number[],
  options: (port: number, folder: string) => string[],
): Promise<Servers> {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-redis-'))
  const admins: Redis[] = []
  const children = new Map(ports.map((port) => [port, launch(port)]))

  function launch(port: number): ChildProcess {
    const own = join(folder, String(port))
    const common = ['--dir', folder, '--save', '', '--bind', '127.0.0.1']
    const child = spawn(
      'redis-server',
      [...options(port, folder), ...common, '--cluster-config-file', `${own}.conf`],
      { stdio: 'ignore' },
    )
    running.add(child)
    child.once('exit', () => running.delete(child))
    return child
  }

  async function kill(port: number): Promise<void> {
    const child = children.get(port)
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  function admin(port: number): Redis {
    const client = new Redis({ port, host: '127.0.0.1', retryStrategy: () => 20, maxRetriesPerRequest: null })
    client.on('error', () => {})
    admins.push(client)
    return client
  }

  async function stop(): Promise<void> {
    for (const client of admins) client.disconnect()
    await Promise.all(ports.map(kill))
    rmSync(folder, { recursive: true, force: true })
  }

  // Each answers, or one has given up.
  const gone = [...children.values()].map(async (child) => {
    await once(child, 'exit')
    throw new Error('redis-server did not start')
  })
  for (const failure of gone) failure.catch(() => {})
  try {
    await Promise.race([Promise.all(ports.map((port) => admin(port).ping())), ...gone])
  } catch (error) {
    await stop()
    throw error
  }
  const revive = (port: number) => void children.set(port, launch(port))
  return { ports, admin, kill, revive, stop }
}

/** Resolves when a node knows of all the others, and that every slot is served. */
async function agreement(admin: Redis, count: number): Promise<void> {
  await until(async () => {
    const info = String(await admin.call('CLUSTER', 'INFO'))
    return info.includes('cluster_state:ok') && info.includes(`cluster_size:${count}\r`)
  })
}

/** Resolves as soon as it is so. */
export async function until(isSo: () => Promise<boolean>): Promise<void> {
  while (!(await isSo())) await new Promise((resolve) => setTimeout(resolve, 20))
}

/** A port of a node is below 55536: its bus has the one that is 10000 above. */
async function freePorts(count: number): Promise<number[]> {
  const found: number[] = []
  while (found.length < count) {
    const candidate = 20_000 + Math.floor(Math.random() * 20_000)
    if (!found.includes(candidate) && (await isFree(candidate)) && (await isFree(candidate + 10_000)))
      found.push(candidate)
  }
  return found
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  try {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    return (server.address() as AddressInfo).port === port
  } catch {
    return false
  } finally {
    server.close()
  }
}
