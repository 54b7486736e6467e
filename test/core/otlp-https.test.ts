import { readFileSync } from 'node:fs'
import * as https from 'node:https'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { exporterTo, hurried, send } from './exporter.ts'
import { receiver } from './receiver.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

describe('over https', () => {
  test('to who speaks no TLS, one line says so at once, and what to write', async () => {
    const collector = await receiver((response) => response.end())
    const { error } = await send(exporterTo(collector.url.replace('http:', 'https:')))
    // It will speak none at the next try, either.
    expect(collector.connections).toBe(1)
    expect(error?.message).toMatch(
      /^https:\S+ could not be reached: what answers there speaks no TLS; for example http:\/\/ in the place of https:\/\/$/,
    )
  })

  const pem = (name: string) => readFileSync(new URL(`certificates/${name}.pem`, import.meta.url))

  async function secured(options: https.ServerOptions = {}) {
    const names: unknown[] = []
    const server = https.createServer(
      { key: pem('collector.key'), cert: pem('collector'), ...options },
      (request, response) => {
        const { socket } = request as unknown as { socket: TLSSocket }
        names.push(socket.getPeerCertificate().subject?.CN)
        request.resume().on('end', () => response.end())
      },
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => {
      server.closeAllConnections()
      server.close()
    })
    let connections = 0
    server.on('connection', () => (connections += 1))
    const { port } = server.address() as AddressInfo
    return { url: `https://127.0.0.1:${port}`, names, handshakes: () => connections }
  }

  test('a collector is trusted by the certificate that was named, and by none else', async () => {
    const { url, names, handshakes } = await secured()
    expect(await send(exporterTo(url, { tls: { ca: pem('authority') } }))).toEqual({ code: 0 })
    const { code, error } = await send(exporterTo(url))
    expect([code, error?.message]).toEqual([
      1,
      expect.stringMatching(/could not be reached: unable to (verify|get local issuer)/),
    ])
    // It is not tried again, either: a certificate stays what it is.
    expect([names.length, handshakes()]).toEqual([1, 2])
  })

  test('a collector is called by the name that the app has given, else by its own, and never by an address', async () => {
    const called: string[] = []
    const SNICallback: https.ServerOptions['SNICallback'] = (name, done) => {
      called.push(name)
      done(null)
    }
    const { url } = await secured({ SNICallback })
    const tls = { ca: pem('authority') }
    const local = url.replace('127.0.0.1', 'localhost')
    await send(exporterTo(url, { tls }))
    await send(exporterTo(local, { tls }))
    const named = await send(exporterTo(url, { tls, headers: { Host: 'collector.example:4318' } }))
    expect(called).toEqual(['localhost', 'collector.example'])
    // Its certificate is for another one.
    expect([named.code, named.error?.message]).toEqual([1, expect.stringContaining('could not be reached')])
  })

  test('a collector that closes is met again by what was agreed on before', async () => {
    const resumed: boolean[] = []
    const server = https.createServer(
      { key: pem('collector.key'), cert: pem('collector') },
      (request, response) => {
        resumed.push((request.socket as TLSSocket).isSessionReused())
        request.resume().on('end', () => response.writeHead(200, { Connection: 'close' }).end())
      },
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const exporter = exporterTo(`https://127.0.0.1:${port}`, { tls: { ca: pem('authority') } })
    for (let count = 0; count < 3; count += 1) expect(await send(exporter)).toEqual({ code: 0 })
    expect(resumed).toEqual([false, true, true])
  })

  test('a collector that asks who we are is told', async () => {
    const { url, names } = await secured({ ca: pem('authority'), requestCert: true })
    const tls = { ca: pem('authority'), key: pem('app.key'), cert: pem('app') }
    expect(await send(exporterTo(url, { tls }))).toEqual({ code: 0 })
    expect(names).toEqual(['app'])
  })

  test.each([
    ['TLSv1.2', 'handshake failure'],
    ['TLSv1.3', 'certificate required'],
  ] as const)('one that is not told says over %s that this is why, once', async (maxVersion, why) => {
    const { url, names, handshakes } = await secured({
      ca: pem('authority'),
      requestCert: true,
      rejectUnauthorized: true,
      maxVersion,
    })
    const { code, error } = await send(exporterTo(url, { tls: { ca: pem('authority') } }))
    expect([code, error?.message]).toEqual([1, expect.stringContaining(`alert ${why}`)])
    // Who we are is what it will be told at the next try, too.
    expect([names, handshakes()]).toEqual([[], 1])
  })

  test('one that has trouble of its own is asked again', async () => {
    let count = 0
    let again = () => {}
    const asked = new Promise<void>((resolve) => (again = resolve))
    // A fatal alert, internal_error (RFC 8446, 6.2), in a record of its own.
    const troubled = createServer((socket) => {
      count += 1
      if (count === 2) again()
      socket.on('error', () => {}).once('data', () => socket.end(Buffer.of(21, 3, 3, 0, 2, 2, 80)))
    })
    troubled.listen(0, '127.0.0.1')
    await once(troubled, 'listening')
    onTestFinished(() => void troubled.close())
    const { port } = troubled.address() as AddressInfo
    const exporter = hurried(exporterTo(`https://127.0.0.1:${port}`))
    await Promise.race([asked, send(exporter)])
    await exporter.shutdown()
    expect(count).toBeGreaterThanOrEqual(2)
  })
})
