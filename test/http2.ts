import { once } from 'node:events'
import { connect, type ClientHttp2Session, type Http2Server } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { onTestFinished } from 'vitest'

/** A client of this server, which listens on a port of its own from here to the end of the test. */
export async function http2ClientOf(
  server: Http2Server,
): Promise<{ client: ClientHttp2Session; port: number }> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const client = connect(`http://127.0.0.1:${port}`)
  onTestFinished(() => {
    client.destroy()
    server.close()
  })
  return { client, port }
}
