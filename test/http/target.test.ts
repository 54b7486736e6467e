import { once } from 'node:events'
import * as http from 'node:http'
import * as https from 'node:https'
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { describe, expect, onTestFinished, test } from 'vitest'
import { record } from '../recording.ts'
import { traceparents } from '../contract/http-client.ts'
import { answerTo, authority, close, served, traced } from './served.ts'

describe('the span of a request says where it goes', () => {
  test.each([
    ['a URL', (port: number) => http.get(`http://localhost:${port}/a?b=c#d`), 'localhost', '/a?b=c'],
    ['options', (port: number) => http.get({ port, path: '/a' }), 'localhost', '/a'],
    ['options beside a URL', (port: number) => http.get('http://127.0.0.1:1/a', { port }), '127.0.0.1', '/a'],
    [
      "somebody else's Host header",
      (port: number) => http.get({ host: '127.0.0.1', port, headers: { host: 'shop.example' } }),
      '127.0.0.1',
      '/',
    ],
    [
      "somebody else's Host header, in a list",
      (port: number) => http.get({ host: '127.0.0.1', port, headers: ['Host', 'shop.example:81'] }),
      '127.0.0.1',
      '/',
    ],
    ['no Host header', (port: number) => http.get({ port, setHost: false }), 'localhost', '/'],
    [
      'a connection of its own',
      (port: number) =>
        http.get({ host: 'localhost', port, createConnection: () => connect(port, '127.0.0.1') }),
      'localhost',
      '/',
    ],
    ['an agent of its own', (port: number) => http.get({ port, agent: false }), 'localhost', '/'],
    [
      'a path that is none',
      (port: number) => http.request({ port, method: 'OPTIONS', path: '*' }).end(),
      'localhost',
      '/*',
    ],
  ])('with %s', async (_form, make, address, path) => {
    const recording = record()
    const { port } = await served()
    traced()
    await answerTo(make(port))
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'url.full': `http://${address}:${port}${path}`,
      'server.address': address,
      'server.port': port,
      'network.peer.address': '127.0.0.1',
      'network.peer.port': port,
    })
  })

  test.each([
    ['a URL', (port: number) => http.get(`http://u:s3cret@127.0.0.1:${port}/a?sig=s3cret&b=1`)],
    [
      'a URL object',
      (port: number) => http.get(new URL(`http://u:s3cret@127.0.0.1:${port}/a?sig=s3cret&b=1`)),
    ],
    [
      'an option',
      (port: number) => http.get({ auth: 'u:s3cret', host: '127.0.0.1', port, path: '/a?sig=s3cret&b=1' }),
    ],
  ])('with credentials in %s it says that there were some', async (_form, make) => {
    const recording = record()
    const { port, requests } = await served()
    const asked: string[] = []
    traced({ ignore: (url) => asked.push(url) === 0 })
    await answerTo(make(port))
    // Those are for the proxy.
    await answerTo(http.get({ auth: 'u:s3cret', host: '127.0.0.1', port, path: 'http://shop.example/b' }))
    // No agent of Node's is told of this one.
    const createConnection = () => connect(port, '127.0.0.1')
    await answerTo(http.get({ host: '127.0.0.1', port, path: '/c', createConnection }))
    const [call, proxied, other] = await recording.all(3)
    expect(other?.attributes['url.full']).toMatch(/^http:\/\/127\.0\.0\.1/)
    expect(call?.attributes).toMatchObject({
      'url.full': `http://REDACTED:REDACTED@127.0.0.1:${port}/a?sig=REDACTED&b=1`,
      'server.address': '127.0.0.1',
      'server.port': port,
    })
    expect(proxied?.attributes['url.full']).toBe('http://shop.example/b')
    expect(asked[0]).toBe(`http://127.0.0.1:${port}/a?sig=s3cret&b=1`)
    const sent = requests.map(({ headers }) => headers.authorization)
    expect(sent).toEqual([`Basic ${btoa('u:s3cret')}`, `Basic ${btoa('u:s3cret')}`, undefined])
  })

  test('over IPv6, in brackets in the URL and without them elsewhere', async () => {
    const recording = record()
    const server = http.createServer((_request, response) => response.end('hello'))
    await once(server.listen(0, '::1'), 'listening')
    onTestFinished(async () => void (await close(server)))
    const { port } = server.address() as AddressInfo
    traced()
    await answerTo(http.get(`http://[::1]:${port}/a`))
    await answerTo(http.get({ host: '::1', port, path: '/a' }))
    const createConnection = () => connect(port, '::1')
    await answerTo(http.get({ host: '[::1]', port, path: '/a', createConnection }))
    const spans = await recording.all(3)
    for (const { attributes } of spans) {
      expect(attributes).toMatchObject({
        'url.full': `http://[::1]:${port}/a`,
        'server.address': '::1',
        'server.port': port,
        'network.peer.address': '::1',
      })
    }
  })

  test('over IPv6 by way of an interface that is named', async () => {
    const recording = record()
    const { port } = await served()
    traced()
    const createConnection = () => connect(port, '127.0.0.1')
    await answerTo(http.get({ host: 'fe80::1%eth0', port, path: '/a', createConnection }))
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'url.full': `http://[fe80::1%eth0]:${port}/a`,
      'server.address': 'fe80::1%eth0',
      'server.port': port,
    })
  })

  test.each([
    ['http', 80],
    ['https', 443],
  ] as const)('with the port of %s where it is none other', async (scheme, port) => {
    const recording = record()
    traced()
    const client = scheme === 'http' ? http : https
    // Nobody is asked: the connection fails before there is one.
    const lookup = (_name: string, _options: unknown, done: (error: Error) => void) =>
      done(Object.assign(new Error('nobody'), { code: 'ENOTFOUND', syscall: 'getaddrinfo' }))
    const request = client.get(`${scheme}://api.example/a`, { lookup: lookup as never })
    await expect(once(request, 'response')).rejects.toThrow('nobody')
    const [call] = await recording.all(1)
    expect(call?.attributes).toEqual({
      'http.request.method': 'GET',
      'url.full': `${scheme}://api.example/a`,
      'server.address': 'api.example',
      'server.port': port,
      'error.type': 'ENOTFOUND',
    })
  })

  test('with the path of a socket as its peer', async () => {
    const recording = record()
    const socketPath = join(tmpdir(), `throughline-${process.pid}.sock`)
    const server = http.createServer((_request, response) => response.end('hello'))
    await once(server.listen(socketPath), 'listening')
    onTestFinished(async () => void (await close(server)))
    traced()
    await answerTo(http.get({ socketPath, path: '/containers/json' }))
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'url.full': 'http://localhost/containers/json',
      'server.address': 'localhost',
      'network.peer.address': socketPath,
    })
    expect(call?.attributes).not.toHaveProperty('network.peer.port')
  })

  test('which is not the proxy that is asked with the whole URL', async () => {
    const recording = record()
    const { port, requests } = await served()
    traced()
    await answerTo(http.get({ port, path: 'http://u:p@api.example:8080/a?sig=1' }))
    const [call] = await recording.all(1)
    expect(call?.attributes).toMatchObject({
      'url.full': 'http://REDACTED:REDACTED@api.example:8080/a?sig=REDACTED',
      'server.address': 'api.example',
      'server.port': 8080,
      'network.peer.port': port,
    })
    expect(requests[0]?.url).toBe('http://u:p@api.example:8080/a?sig=1')
  })

  test('a method of no standard is recorded as it was sent', async () => {
    const recording = record()
    const { url } = await served()
    traced()
    await answerTo(http.request(url, { method: 'propfind' }).end())
    const [call] = await recording.all(1)
    expect(call).toMatchObject({
      name: 'HTTP',
      attributes: { 'http.request.method': '_OTHER', 'http.request.method_original': 'PROPFIND' },
    })
  })
})

/** A proxy that opens tunnels, and the CONNECT requests that it got. */
async function proxy(): Promise<{ port: number; asked: http.IncomingMessage[] }> {
  const asked: http.IncomingMessage[] = []
  const open: Socket[] = []
  const server = http.createServer()
  server.on('connect', (request, client: Socket) => {
    asked.push(request)
    const [host, port] = (request.url as string).split(':')
    const upstream = connect(Number(port), host, () => {
      client.write('HTTP/1.1 200 Connection Established\r\n\r\n')
      upstream.pipe(client).pipe(upstream)
    })
    open.push(
      client,
      upstream.on('error', () => client.destroy()),
    )
    client.on('error', () => upstream.destroy())
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  onTestFinished(async () => {
    for (const socket of open) socket.destroy()
    await close(server)
  })
  return { port: (server.address() as AddressInfo).port, asked }
}

/** An agent that asks a proxy for a tunnel by a request of its own, as proxy agents do. */
class TunnelAgent extends https.Agent {
  readonly #port: number

  constructor(port: number) {
    super({ ca: authority })
    this.#port = port
  }

  override createConnection(
    options: { port: number },
    done: (error: unknown, socket?: unknown) => void,
  ): undefined {
    const path = `127.0.0.1:${options.port}`
    const request = http.request({ port: this.#port, method: 'CONNECT', path, agent: false })
    request.on('connect', (_response, socket) =>
      done(undefined, connectTls({ socket, ca: authority, host: '127.0.0.1' })),
    )
    request.on('error', done)
    request.end()
    return undefined
  }
}

test('what goes through the tunnel of a proxy agent is one span, and the proxy is told of no trace', async () => {
  const recording = record()
  const { url, port, requests } = await served(undefined, 'https')
  const through = await proxy()
  traced()
  const agent = new TunnelAgent(through.port)
  expect(await answerTo(https.get(`${url}/a`, { agent }))).toBe('hello')
  const [call] = await recording.all(1)
  expect(call?.attributes).toMatchObject({ 'url.full': `${url}/a`, 'server.port': port })
  expect(through.asked.map((each) => each.rawHeaders.map((text) => text.toLowerCase()))).toEqual([
    expect.not.arrayContaining(['traceparent']),
  ])
  expect(traceparents(requests[0])).toHaveLength(1)
})

test('a tunnel that an app opens itself is no span either, and works as before', async () => {
  const recording = record()
  const { port } = await served()
  const through = await proxy()
  traced()
  const request = http.request({ port: through.port, method: 'CONNECT', path: `127.0.0.1:${port}` }).end()
  const [response, socket] = (await once(request, 'connect')) as [http.IncomingMessage, Socket]
  expect(response.statusCode).toBe(200)
  // What is asked through it is a request as any other.
  await answerTo(http.get({ host: 'api.example', path: '/a', createConnection: () => socket }))
  const [call] = await recording.all(1)
  expect(call?.attributes).toMatchObject({
    'server.address': 'api.example',
    'http.response.status_code': 200,
  })
})

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)

test.runIf(major > 24 || (major === 24 && minor >= 5))(
  'what the environment sends through a proxy goes to the server that it is for',
  async () => {
    const recording = record()
    const { port, requests } = await served()
    const proxyEnv = { HTTP_PROXY: `http://127.0.0.1:${port}` }
    const agent = new http.Agent({ proxyEnv } as http.AgentOptions)
    traced()
    await answerTo(http.get('http://api.example:8080/a', { agent }))
    await answerTo(http.get('http://api.example:8080/a', { agent, headers: ['Host', 'api.example:8080'] }))
    await answerTo(http.get('http://u:s3cret@api.example:8080/a', { agent }))
    const spans = await recording.all(3)
    expect(spans.pop()?.attributes['url.full']).toBe('http://REDACTED:REDACTED@api.example:8080/a')
    for (const { attributes } of spans) {
      expect(attributes).toMatchObject({
        'url.full': 'http://api.example:8080/a',
        'server.address': 'api.example',
        'server.port': 8080,
        'network.peer.port': port,
      })
    }
    expect(requests.map(({ url }) => url)).toEqual([1, 2, 3].map(() => 'http://api.example:8080/a'))
    expect(requests.map((each) => traceparents(each).length)).toEqual([1, 1, 1])
    expect(requests[2]?.headers.authorization).toBe(`Basic ${btoa('u:s3cret')}`)
  },
)

test('a server that speaks no HTTP is an error with the code of the parser', async () => {
  const recording = record()
  const server = createTcpServer((socket) => socket.end('220 mail.example ESMTP\r\n'))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  onTestFinished(() => void server.close())
  traced()
  const request = http.get({ port: (server.address() as AddressInfo).port })
  await expect(once(request, 'response')).rejects.toThrow('Parse Error')
  const [call] = await recording.all(1)
  expect(call?.attributes['error.type']).toBe('HPE_INVALID_CONSTANT')
})

test('a certificate that nobody vouches for is an error with its code', async () => {
  const recording = record()
  const { url, requests } = await served(undefined, 'https')
  traced()
  await expect(once(https.get(url), 'response')).rejects.toThrow('unable to verify')
  const [call] = await recording.all(1)
  expect(call?.attributes['error.type']).toBe('UNABLE_TO_VERIFY_LEAF_SIGNATURE')
  expect(requests).toEqual([])
})
