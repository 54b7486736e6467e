import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

/** What stands between a client and its server, and breaks. */
export interface Proxy {
  readonly port: number
  /** Resolves when the client has sent this. */
  sent(text: string): Promise<void>
  /** Whether what the server answers is kept back: the client waits for it. */
  isSilent: boolean
  /** Resets all connections, as a crash of a machine does. */
  reset(): void
  stop(): Promise<void>
}

export async function startProxy(target: { port: number; host: string }): Promise<Proxy> {
  const sockets = new Set<Socket>()
  const waiting: { text: string; done: () => void }[] = []
  const server = createServer((near) => {
    const far = connect(target)
    for (const socket of [near, far]) {
      sockets.add(socket)
      socket.on('error', () => {}).once('close', () => sockets.delete(socket))
    }
    near.on('data', (chunk) => {
      far.write(chunk)
      for (const one of waiting) if (chunk.includes(one.text)) one.done()
    })
    far.on('data', (chunk) => proxy.isSilent || near.write(chunk))
    near.once('close', () => far.destroy())
    far.once('close', () => near.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const proxy: Proxy = {
    port: (server.address() as AddressInfo).port,
    isSilent: false,
    sent: (text) => new Promise((done) => void waiting.push({ text, done })),
    reset() {
      for (const socket of sockets) socket.resetAndDestroy()
    },
    async stop() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
  return proxy
}
