import dns from 'node:dns'
import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { connectionTo, type Answer, type Headers } from '../../packages/core/src/otlp/connection.ts'

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'

interface Peer {
  url: URL
  /** The text of each request, on its connection. */
  requests: { text: string; connection: number }[]
  sockets: Socket[]
}

/** A server that says what the test wants when a request has come as a whole. */
async function peer(says: (socket: Socket, number: number) => void, host = '127.0.0.1'): Promise<Peer> {
  const requests: Peer['requests'] = []
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    const connection = sockets.push(socket)
    let text = ''
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1')
      const [head = ''] = text.split('\r\n\r\n', 1)
      const [, length] = /content-length: (\d+)/i.exec(head) ?? []
      if (length === undefined || text.length < head.length + 4 + Number(length)) return
      requests.push({ text, connection })
      text = ''
      says(socket, requests.length)
    })
  })
  server.listen(0, host)
  await once(server, 'listening')
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  const name = host.includes(':') ? `[${host}]` : host
  return { url: new URL(`http://${name}:${port}/v1/traces?key=1`), requests, sockets }
}

function connected(url: URL, general: Headers = {}) {
  const connection = connectionTo(url, general)
  onTestFinished(() => connection.close())
  return {
    ...connection,
    async say(text: string, deadline = Infinity, late?: AbortSignal): Promise<Answer & { isHeld: boolean }> {
      const body = { bytes: Buffer.from(text), isHeld: false }
      const answer = await connection.post(body, deadline, late)
      return { ...answer, isHeld: body.isHeld }
    },
  }
}

test('nobody is at port 0, and it is no other name of port 80', async () => {
  const answer = await connected(new URL('http://127.0.0.1:0/v1/traces')).say('hello')
  expect(answer).toMatchObject({ cause: 'absent' })
  expect(String('failure' in answer && answer.failure)).not.toContain(':80')
})

describe('a request', () => {
  test('is one of HTTP/1.1, with its headers, to the path and the query', async () => {
    const { url, requests } = await peer((socket) => socket.write(OK))
    await connected(url, { 'X-Scope': 'a', Accept: '*/*' }).say('hello')
    expect(requests[0]?.text).toBe(
      `POST /v1/traces?key=1 HTTP/1.1\r\nHost: ${url.host}\r\nX-Scope: a\r\nAccept: */*\r\nContent-Length: 5\r\n\r\nhello`,
    )
  })

  test('says a header once, as it was said last, and never another length', async () => {
    const { url, requests } = await peer((socket) => socket.write(OK))
    const general = {
      host: 'else',
      'x-a': '1',
      'X-A': '2',
      'Transfer-Encoding': 'chunked',
      'content-length': 99,
    }
    await connected(url, general).say('hello')
    expect(requests[0]?.text.split('\r\n').slice(1, -2)).toEqual([
      'host: else',
      'X-A: 2',
      'Content-Length: 5',
    ])
  })

  test.each([
    ['m%65:100%pure;%41', 'me:100%pure;A'],
    ['me:%', 'me:%'],
    ['me:%ff', 'me:%ff'],
  ])('may have percent signs in its password that stand for themselves: %j', async (written, meant) => {
    const { url, requests } = await peer((socket) => socket.write(OK))
    const address = new URL(url.href.replace('//', `//${written}@`))
    expect(await connected(address).say('')).toMatchObject({ status: 200 })
    const [, said = ''] = /authorization: Basic (.*)\r/i.exec(requests[0]?.text ?? '') ?? []
    expect(Buffer.from(said, 'base64').toString()).toBe(meant)
  })

  test('brings the user and the password of its address, unless a header does', async () => {
    const { url, requests } = await peer((socket) => socket.write(OK))
    url.username = 'me@home'
    url.password = 'a:b/c'
    await connected(url).say('')
    await connected(url, { authorization: 'Bearer key' }).say('')
    const said = requests.map(({ text }) => /authorization: (.*)\r/i.exec(text)?.[1])
    expect(said).toEqual([`Basic ${Buffer.from('me@home:a:b/c').toString('base64')}`, 'Bearer key'])
  })

  test.each(['key:', ':key'])('brings a user or a password alone, as a key is written: %j', async (alone) => {
    const { url, requests } = await peer((socket) => socket.write(OK))
    await connected(new URL(url.href.replace('//', `//${alone}@`))).say('')
    expect(requests[0]?.text).toContain(`Authorization: Basic ${Buffer.from(alone).toString('base64')}\r\n`)
  })

  test('goes to an address of IPv6', async () => {
    const { url, requests } = await peer((socket) => socket.write(OK), '::1')
    expect(await connected(url).say('')).toMatchObject({ status: 200 })
    expect(requests[0]?.text).toContain(`Host: [::1]:${url.port}\r\n`)
  })

  test.each([{ 'x bad': 'name' }, { 'x-bad': 'line\r\nbreak' }, { 'x-bad': '\u{1f600}' }])(
    'with %j is not sent',
    async (general) => {
      const { url, sockets } = await peer((socket) => socket.write(OK))
      const connection = connectionTo(url, general)
      const posted = connection.post({ bytes: Buffer.alloc(0), isHeld: false }, Infinity)
      await expect(posted).rejects.toThrow(TypeError)
      expect(sockets).toEqual([])
    },
  )
})

describe('the connection', () => {
  /** The connections of three requests, each of which is answered so. */
  async function used(answer: (socket: Socket) => void): Promise<number[]> {
    const { url, requests } = await peer(answer)
    const { say } = connected(url)
    for (let number = 0; number < 3; number += 1)
      expect(await say('hello')).toMatchObject({ status: 200, isHeld: false })
    return requests.map(({ connection }) => connection)
  }

  test.each([
    ['with a length', OK],
    ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'],
    ['of HTTP/1.0 that stays', 'HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n'],
  ])('is used again after an answer %s', async (_what, answer) => {
    expect(await used((socket) => socket.write(answer))).toEqual([1, 1, 1])
  })

  test.each([
    ['that says so', 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'],
    ['of HTTP/1.0', 'HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n'],
    ['with more behind it', `${OK}HTTP/1.1 500 Not asked\r\n\r\n`],
    ['with broken chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n'],
  ])('is not used again after an answer %s', async (_what, answer) => {
    expect(await used((socket) => socket.write(answer))).toEqual([1, 2, 3])
  })

  test('that ends is the end of an answer without a length', async () => {
    const { url } = await peer((socket) =>
      socket.end('HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Type: text/plain\r\n\r\nlater'),
    )
    const body = Buffer.from('later')
    expect(await connected(url).say('')).toEqual({
      status: 503,
      retryAfter: '3',
      contentType: 'text/plain',
      encodings: [],
      body,
      isHeld: false,
    })
  })

  test('that says something unasked is not used again', async () => {
    const { url, requests, sockets } = await peer((socket) => socket.write(OK))
    const { say } = connected(url)
    await say('one')
    const [first] = sockets as [Socket]
    first.write('HTTP/1.1 408 Request Timeout\r\n\r\n')
    await once(first, 'close')
    expect(await say('two')).toMatchObject({ status: 200 })
    expect(requests.map(({ connection }) => connection)).toEqual([1, 2])
  })

  test('is one of several where several requests are on their way, and one is kept', async () => {
    const waiting: Socket[] = []
    const { url, requests } = await peer((socket, number) => {
      if (number > 2) socket.write(OK)
      else if (waiting.push(socket) === 2) for (const each of waiting) each.write(OK)
    })
    const { say } = connected(url)
    await Promise.all([say('one'), say('two')])
    await say('three')
    expect(
      requests
        .map(({ connection }) => connection)
        .slice(0, 2)
        .toSorted(),
    ).toEqual([1, 2])
    expect(new Set(requests.map(({ connection }) => connection)).size).toBe(2)
  })

  test('is stale where it was used before, and ends without a word', async () => {
    const { url } = await peer((socket, number) => (number === 2 ? socket.end() : socket.write(OK)))
    const { say } = connected(url)
    await say('one')
    expect(await say('two')).toMatchObject({ cause: 'stale' })
    expect(await say('three')).toMatchObject({ status: 200 })
  })

  test('is dropped where it ends without a word the first time, or in the middle of one', async () => {
    const first = await peer((socket) => socket.end())
    expect(await connected(first.url).say('')).toMatchObject({ cause: 'dropped' })
    const second = await peer((socket, number) =>
      number === 2 ? socket.end('HTTP/1.1 20') : socket.write(OK),
    )
    const { say } = connected(second.url)
    await say('one')
    expect(await say('two')).toMatchObject({ cause: 'dropped' })
  })

  test('that ends in the middle of a body has said its status', async () => {
    const { url } = await peer((socket) => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'))
    expect(await connected(url).say('')).toMatchObject({ status: 200, body: Buffer.from('half') })
  })

  test.each([429, 502, 503, 504])(
    'is closed where %i is answered and more is to come: the head is all that is needed',
    async (status) => {
      const says = (body: string) =>
        `HTTP/1.1 ${status} Busy\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\n${body}`
      const { url, requests, sockets } = await peer((socket, number) => {
        socket.write(says(number === 1 ? 'half' : 'the whole'))
      })
      const { say } = connected(url)
      expect(await say('one')).toMatchObject({ status, retryAfter: '3', isHeld: false })
      const [first] = sockets as [Socket]
      if (!first.destroyed) await once(first, 'close')
      expect(await say('two')).toMatchObject({ status, body: Buffer.from('the whole') })
      expect(await say('three')).toMatchObject({ status })
      expect(requests.map(({ connection }) => connection)).toEqual([1, 2, 2])
    },
  )

  test('whose answer comes before all is sent is closed, and holds what was to be sent', async () => {
    const server = createServer((socket) => {
      onTestFinished(() => void socket.destroy())
      socket.on('error', () => {})
      // It reads no further.
      socket.once('data', () => socket.pause().write('HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n'))
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const { say } = connected(new URL(`http://127.0.0.1:${port}/`))
    expect(await say('x'.repeat(32 * 2 ** 20))).toMatchObject({ status: 413, isHeld: true })
  })

  test('that the server ends without an answer is dropped, though it takes no more of what is to be sent', async () => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      onTestFinished(() => void socket.destroy())
      socket.on('error', () => {})
      socket.once('data', () => socket.pause().end())
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const { say } = connected(new URL(`http://127.0.0.1:${port}/`))
    expect(await say('x'.repeat(32 * 2 ** 20))).toMatchObject({ cause: 'dropped', isHeld: true })
  })

  test('whose answer comes before all is sent takes the next request only when that is sent', async () => {
    const sockets: Socket[] = []
    const bytesOf: number[] = []
    const server = createServer((socket) => {
      const index = sockets.push(socket) - 1
      bytesOf.push(0)
      socket.on('error', () => {})
      socket.once('data', () => {
        socket.write(OK)
        // The first one reads on when the test wants it to.
        if (index === 0) socket.pause()
      })
      socket.on('data', (chunk) => (bytesOf[index] = (bytesOf[index] as number) + chunk.length))
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    const { port } = server.address() as AddressInfo
    const { say } = connected(new URL(`http://127.0.0.1:${port}/`))
    const size = 32 * 2 ** 20
    expect(await say('x'.repeat(size))).toMatchObject({ status: 200, isHeld: true })
    expect(await say('meanwhile')).toMatchObject({ status: 200, isHeld: false })
    expect(sockets).toHaveLength(2)

    const [first, second] = sockets as [Socket, Socket]
    first.resume()
    // One of the two is kept, and the other one is closed when it has brought all.
    await once(first, 'close')
    expect(bytesOf[0]).toBeGreaterThan(size)
    expect(second.destroyed).toBe(false)
  })

  test('that has brought an answer in time has it read, though the app held up the loop until the time was over', async () => {
    const deadline = performance.now() + 500
    const { url, requests } = await peer((socket) => {
      socket.write(OK)
      while (performance.now() < deadline + 10) {
        // The app is at work.
      }
    })
    const { say } = connected(url)
    expect(await say('one', deadline)).toMatchObject({ status: 200 })
    expect(await say('two')).toMatchObject({ status: 200 })
    expect(requests.map(({ connection }) => connection)).toEqual([1, 1])
  })

  test('stays when those who waited give up after its answer', async () => {
    const late = new AbortController()
    const { url, requests } = await peer((socket) => socket.write(OK))
    const { say } = connected(url)
    await say('one', Infinity, late.signal)
    late.abort()
    await say('two')
    expect(requests.map(({ connection }) => connection)).toEqual([1, 1])
  })

  test('is given up at once where nobody waits any more, and not made where nobody did', async () => {
    const late = new AbortController()
    const { url, requests, sockets } = await peer(() => late.abort())
    const { say } = connected(url)
    expect(await say('one', Infinity, late.signal)).toMatchObject({ cause: 'dropped' })
    expect(await say('two', Infinity, late.signal)).toMatchObject({ cause: 'dropped', isHeld: false })
    expect([requests.length, sockets.length]).toEqual([1, 1])
  })

  test('to the second address of a host, of which the first refuses, keeps no process alive', async () => {
    const { url } = await peer((socket) => {
      socket.unref()
      socket.write(OK)
    })
    const lookup = vi.spyOn(dns, 'lookup')
    onTestFinished(() => lookup.mockRestore())
    lookup.mockImplementation(((_host: string, _options: unknown, done: (...given: unknown[]) => void) => {
      done(null, [
        { address: '::1', family: 6 },
        { address: '127.0.0.1', family: 4 },
      ])
    }) as never)
    url.hostname = 'two.example'
    const holding = () => process.getActiveResourcesInfo().filter((type) => type === 'TCPSocketWrap').length
    expect(await connected(url).say('')).toMatchObject({ status: 200 })
    // Those of other tests are on their way out.
    await vi.waitFor(() => expect(holding()).toBe(0))
  })

  test('that is closed ends what is on its way', async () => {
    const { url } = await peer(() => connection.close())
    const connection = connected(url)
    expect(await connection.say('one')).toMatchObject({ cause: 'dropped' })
  })
})
