import type { RequestHandler } from 'express'
import { channel } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createServer as createTcpServer, type AddressInfo } from 'node:net'
import { setImmediate } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { ask, listening, type Serving } from '../contract/server.ts'
import { record } from '../recording.ts'
import { ok, quiet, serve, versions } from './app.ts'
import { tracing } from '@throughline/express'

/** Where a property that is added to an Express request makes a hidden class, requests are prepared as they arrive. */
const MAKES_CLASSES = Number.parseInt(process.versions.v8, 10) < 13
const starts = channel('http.server.request.start')

/** A request to somebody else's server, and what is left for later then. */
async function askAnother(): Promise<void> {
  const other = await listening(createServer((_request, response) => response.end('ok')))
  await ask(other, '/')
  await other.close()
  await setImmediate()
}

describe.runIf(MAKES_CLASSES).each(versions)('%s', (_name, create) => {
  const app = () => quiet(create()).use(tracing()).get('/', ok)

  test('nothing of ours listens for requests any more when the last server that was traced is closed', async () => {
    record()
    const [one, other] = [await serve(app()), await serve(app())]
    await asked(one, other, one)
    await askAnother()
    expect(starts.hasSubscribers).toBe(true)
    await other.close()
    await askAnother()
    // The older one is still there.
    await asked(one)
    expect(starts.hasSubscribers).toBe(true)
    await one.close()
    await askAnother()
    expect(starts.hasSubscribers).toBe(false)
  })

  test('a server that is closed and listens again is traced and prepared as ever', async () => {
    const recording = record()
    const server = createServer(app())
    for (const _ of [1, 2]) {
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      const { port } = server.address() as AddressInfo
      const text = async () => (await fetch(`http://127.0.0.1:${port}`)).text()
      expect([await text(), await text()]).toEqual(['ok', 'ok'])
      expect(starts.hasSubscribers).toBe(true)
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
      await askAnother()
      expect(starts.hasSubscribers).toBe(false)
    }
    expect((await recording.all(4)).map(({ name }) => name)).toEqual(Array.from({ length: 4 }, () => 'GET /'))
  })

  test('a server that never listens, as one behind a server that passes its connections on, is prepared as any', async () => {
    record()
    const prepared: boolean[] = []
    const seen: RequestHandler = (request, _response, next) => {
      prepared.push(Object.hasOwn(request, 'emit'))
      next()
    }
    const inner = createServer(quiet(create()).use(seen, tracing()).get('/', ok))
    const outer = createTcpServer((socket) => void inner.emit('connection', socket)).listen(0, '127.0.0.1')
    await once(outer, 'listening')
    const { port } = outer.address() as AddressInfo
    for (const _ of [1, 2, 3]) {
      await asked({ port, close: async () => {} })
      await askAnother()
    }
    expect(prepared).toEqual([false, true, true])
    inner.closeAllConnections()
    outer.close()
    await once(outer, 'close')
  })
})

async function asked(...servings: Serving[]): Promise<void> {
  for (const serving of servings) expect((await ask(serving, '/')).body).toBe('ok')
}
