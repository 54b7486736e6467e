import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'

/** Says where the service listens, and ends it when the demo that started it is gone. */
export function listening(name: string, server: Server): void {
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}`
  if (process.send === undefined) {
    console.log(`${name} listens at ${url}`)
    return
  }
  process.send({ url })
  process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'))
}

/** Port 0 is any free one. */
export const port = Number(process.env['PORT'] ?? 0)
