import { context, createContextKey, ROOT_CONTEXT } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { traceIORedis } from '@throughline/ioredis'
import { Redis as Redis6 } from 'ioredis'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { clientsOf, namesOf, versions } from './redis.ts'

describe.each(versions)('%s: what sets up a connection has no spans', (version, Redis) => {
  const { key, open } = clientsOf(version, Redis)

  // The first one of the process is different: ioredis 5 reads its own version only then.
  test('where that is lost before it is ready', async () => {
    const recording = record()
    const redis = traceIORedis(open({ retryStrategy: () => null }))
    const readyCheck = vi.spyOn(redis, '_readyCheck' as 'info')
    redis.once('connect', () => redis.stream.destroy())
    await once(redis, 'end')
    await expect(redis.get(key)).rejects.toThrow('Connection is closed.')
    // ioredis 5 asks whether the server is ready all the same.
    if (version === 'ioredis 5') await vi.waitFor(() => expect(readyCheck).toHaveBeenCalled())
    await span('later', () => {})
    expect(namesOf(await recording.all(2))).toEqual(['GET', 'later'])
  })

  test('where the app has it connect while it does', async () => {
    const recording = record()
    await span('caller', async () => {
      const redis = traceIORedis(open({ connectionName: 'a-name' }))
      await expect(redis.connect()).rejects.toThrow('already connecting')
      await once(redis, 'ready')
    })
    expect(namesOf(await recording.all(1))).toEqual(['caller'])
  })

  // As an APM does that has spans of connecting: the app's own code never sees the context in which it then goes on.
  test('where somebody else has it connect in a context of its own', async () => {
    const { connect } = Redis.prototype
    const another = ROOT_CONTEXT.setValue(createContextKey('another'), true)
    const connecting = vi.spyOn(Redis.prototype, 'connect').mockImplementation(function (
      this: never,
      ...args
    ) {
      return context.with(another, connect, this, ...args)
    })
    const recording = record()
    await span('caller', async () => {
      const redis = traceIORedis(open({ connectionName: 'a-name', db: 1 }))
      await once(redis, 'ready')
      redis.disconnect(true)
      await once(redis, 'ready')
      await redis.ping()
    })
    expect(connecting).toHaveBeenCalledTimes(2)
    connecting.mockRestore()
    expect(namesOf(await recording.all(2))).toEqual(['PING', 'caller'])
  })

  test('nor has the one after the one that was lost', async () => {
    const recording = record()
    const redis = traceIORedis(open({ retryStrategy: () => 1 }))
    const readyCheck = vi.spyOn(redis, '_readyCheck' as 'info')
    redis.once('connect', () => redis.disconnect(true))
    await once(redis, 'ready')
    await redis.ping()
    expect(readyCheck).toHaveBeenCalled()
    expect(namesOf(await recording.all(1))).toEqual(['PING'])
  })
})

describe('what ioredis 6 prepares for HIMPORT has no spans', () => {
  test('when it connects, nor where the server has forgotten it', async () => {
    const recording = record()
    const server = await startImporting()
    const fieldsets = [
      { name: 'text', fields: ['a'] },
      { name: Buffer.from('bytes'), fields: ['b'] },
    ]
    const redis = traceIORedis(
      new Redis6({ port: server.port, protocol: 2, himportFieldsets: fieldsets, retryStrategy: () => null }),
    )
    onTestFinished(() => redis.disconnect())
    await once(redis, 'ready')
    for (const { name } of fieldsets) {
      server.prepared.clear()
      await span('caller', () => redis.himport('SET', 'key', name, 1))
    }
    await span('caller', () => redis.himport('PREPARE', 'another', 'c'))
    expect(server.preparations).toEqual(['text', 'bytes', 'text', 'bytes', 'another'])
    const each = ['HIMPORT', 'caller']
    expect(namesOf(await recording.all(6))).toEqual([...each, ...each, ...each])
  })
})

/** Stands for Redis 8.10, which knows HIMPORT, to a client with RESP2. */
async function startImporting(): Promise<{ port: number; prepared: Set<string>; preparations: string[] }> {
  const prepared = new Set<string>()
  const preparations: string[] = []
  const answers = (name: string, subcommand: string, first: string, second: string): string => {
    if (name === 'info') return '$9\r\nloading:0\r\n'
    if (subcommand === 'PREPARE') {
      prepared.add(first)
      preparations.push(first)
    }
    return subcommand === 'SET' && !prepared.has(second) ? '-ERR no such fieldset\r\n' : '+OK\r\n'
  }
  const server = createServer((socket) => {
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      for (const command of chunk.split(/^\*\d+\r\n/m).slice(1)) {
        const [name = '', subcommand = '', first = '', second = ''] = command
          .split('\r\n')
          .filter((line) => !line.startsWith('$'))
        socket.write(answers(name.toLowerCase(), subcommand, first, second))
      }
    })
    onTestFinished(() => void socket.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return { port: (server.address() as AddressInfo).port, prepared, preparations }
}
