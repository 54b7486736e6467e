import * as fc from 'fast-check'
import { once } from 'node:events'
import * as http from 'node:http'
import { createServer, type AddressInfo } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test } from 'vitest'
import { NoHttpError, ResponseReader } from '../../packages/core/src/otlp/response.ts'

const MOST_BYTES = 64

interface Read {
  status: number
  body: string
  isComplete: boolean
  isLasting: boolean
  retryAfter?: string
  isTooLong?: true
}

function readerOf(pieces: readonly Buffer[]): ResponseReader {
  const reader = new ResponseReader(MOST_BYTES)
  for (const piece of pieces) if (!reader.isComplete) reader.read(piece)
  return reader
}

function readOf(pieces: readonly Buffer[]): Read {
  const { status, body, isComplete, isLasting, retryAfter, isTooLong } = readerOf(pieces)
  return {
    status,
    body: body.toString(),
    isComplete,
    isLasting,
    ...(retryAfter !== undefined && { retryAfter }),
    ...(isTooLong && { isTooLong }),
  }
}

const text = (...lines: string[]) => Buffer.from(lines.join('\r\n'), 'latin1')

const done = { isComplete: true, isLasting: true }
const last = { isComplete: true, isLasting: false }
const open = { isComplete: false, isLasting: false }

/** RFC 9112: the response, and what it says. */
const responses: [what: string, bytes: Buffer, read: Read][] = [
  [
    'with its length',
    text('HTTP/1.1 200 OK', 'Content-Length: 5', '', 'hello'),
    { status: 200, body: 'hello', ...done },
  ],
  ['without a reason', text('HTTP/1.1 200 ', 'content-length:0', '', ''), { status: 200, body: '', ...done }],
  [
    'without a reason and its space',
    text('HTTP/1.1 503', 'Content-Length: 0', '', ''),
    { status: 503, body: '', ...done },
  ],
  [
    'that is cut off',
    text('HTTP/1.1 200 OK', 'Content-Length: 5', '', 'hel'),
    { status: 200, body: 'hel', isComplete: false, isLasting: true },
  ],
  [
    'to be tried again',
    text('HTTP/1.1 503 Busy', 'Retry-After: 120', 'retry-after: 1', 'Content-Length: 0', '', ''),
    { status: 503, body: '', retryAfter: '120', ...done },
  ],
  [
    'that closes',
    text('HTTP/1.1 200 OK', 'Connection: foo, Close', 'Content-Length: 2', '', 'ok'),
    { status: 200, body: 'ok', ...last },
  ],
  [
    'of HTTP/1.0',
    text('HTTP/1.0 200 OK', 'Content-Length: 2', '', 'ok'),
    { status: 200, body: 'ok', ...last },
  ],
  [
    'of HTTP/1.0 that stays',
    text('HTTP/1.0 200 OK', 'Connection: keep-alive', 'Content-Length: 2', '', 'ok'),
    { status: 200, body: 'ok', ...done },
  ],
  [
    'that ends with the connection',
    text('HTTP/1.1 200 OK', '', 'hello'),
    { status: 200, body: 'hello', ...open },
  ],
  [
    'of another coding',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: gzip', '', 'hello'),
    { status: 200, body: 'hello', ...open },
  ],
  [
    'of another coding on top of chunks',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked, gzip', '', 'hello'),
    { status: 200, body: 'hello', ...open },
  ],
  [
    'without a body',
    text('HTTP/1.1 204 No Content', '', ''),
    { status: 204, body: '', isComplete: true, isLasting: true },
  ],
  [
    'without a body, of a length',
    text('HTTP/1.1 304 Not Modified', 'Content-Length: 12', '', ''),
    { status: 304, body: '', ...done },
  ],
  [
    'in chunks',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', '3', 'hel', '2', 'lo', '0', '', ''),
    { status: 200, body: 'hello', ...done },
  ],
  [
    'in chunks with all that may be there',
    text(
      'HTTP/1.1 200 OK',
      'transfer-encoding: x,',
      'Transfer-Encoding: CHUNKED',
      '',
      '0000000000a;a="b"',
      '0123456789',
      '0;last',
      'X-Sum: 1',
      'X-More: 2',
      '',
      '',
    ),
    { status: 200, body: '0123456789', ...done },
  ],
  [
    'in chunks and with a length',
    text('HTTP/1.1 200 OK', 'Content-Length: 9', 'Transfer-Encoding: chunked', '', '2', 'ok', '0', '', ''),
    { status: 200, body: 'ok', ...last },
  ],
  [
    'in chunks of a size that is none',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', '2', 'ok', 'x', 'no'),
    { status: 200, body: 'ok', ...last },
  ],
  [
    'in chunks that are longer than they say',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', '2', 'okay', '0', '', ''),
    { status: 200, body: 'ok', ...last },
  ],
  [
    'after others that say: wait',
    text(
      'HTTP/1.1 100 Continue',
      '',
      'HTTP/1.1 103 Early Hints',
      'Link: </a>',
      '',
      'HTTP/1.1 200 OK',
      'Content-Length: 2',
      '',
      'ok',
    ),
    { status: 200, body: 'ok', ...done },
  ],
  [
    'as long as it may be',
    text('HTTP/1.1 200 OK', 'Content-Length: 64', '', 'x'.repeat(64)),
    { status: 200, body: 'x'.repeat(64), ...done },
  ],
  [
    'longer than it may be',
    text('HTTP/1.1 200 OK', 'Content-Length: 65', '', 'x'.repeat(65)),
    { status: 200, body: '', isTooLong: true, ...last },
  ],
  [
    'longer than it may be, in chunks',
    text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', '40', 'x'.repeat(64), '1', 'x', '0', '', ''),
    { status: 200, body: 'x'.repeat(64), isTooLong: true, ...last },
  ],
]

/** The same, of what Node's own client refuses, as it may. */
const forgiven: typeof responses = [
  [
    'with a header on several lines',
    text('HTTP/1.1 503 Busy', 'X: a', '\tb', ' ', 'Retry-After:', '  1', 'Content-Length: 2', '', 'ok'),
    { status: 503, body: 'ok', retryAfter: '1', ...done },
  ],
  [
    'with its length twice',
    text('HTTP/1.1 200 OK', 'Content-Length: 2', 'X: a', 'content-length:2 ', '', 'ok'),
    { status: 200, body: 'ok', ...done },
  ],
  [
    'with its length twice on one line',
    text('HTTP/1.1 200 OK', 'Content-Length: 2, 2', '', 'ok'),
    { status: 200, body: 'ok', ...done },
  ],
  [
    'with its length three times, folded',
    text('HTTP/1.1 200 OK', 'Content-Length:', ' 2 ,', '\t2', 'Content-Length: 2', '', 'ok'),
    { status: 200, body: 'ok', ...done },
  ],
]

describe('a response', () => {
  test.each([...responses, ...forgiven])('%s', (_what, bytes, read) => {
    expect(readOf([bytes])).toEqual(read)
  })

  test.each([...responses, ...forgiven])('%s, byte by byte', (_what, bytes, read) => {
    expect(readOf(Array.from(bytes, (byte) => Buffer.from([byte])))).toEqual(read)
  })

  test('without an end to its length is read up to what it may be', () => {
    const { isTooLong, isComplete } = readOf([
      text('HTTP/1.1 200 OK', '', 'x'.repeat(MOST_BYTES)),
      Buffer.from('x'),
    ])
    expect({ isTooLong, isComplete }).toEqual({ isTooLong: true, isComplete: true })
  })

  test('may come after an empty line', () => {
    const bytes = text('', '', 'HTTP/1.1 200 OK', 'Content-Length: 2', '', 'ok')
    expect(readOf([bytes])).toEqual({ status: 200, body: 'ok', ...done })
    expect(readOf(Array.from(bytes, (byte) => Buffer.from([byte])))).toEqual({
      status: 200,
      body: 'ok',
      ...done,
    })
  })

  test('may have blanks around what a header says, and many of them', () => {
    const blanks = ' \t'.repeat(1200)
    const bytes = text('HTTP/1.1 200 OK', `X: y${blanks}z`, `Content-Length:${blanks}2${blanks}`, '', 'ok')
    expect(() => readOf([bytes])).not.toThrow()
  })

  test('with more behind it is the last one on its connection', () => {
    expect(readOf([text('HTTP/1.1 200 OK', 'Content-Length: 2', '', 'okHTTP/1.1 200 OK')])).toEqual({
      status: 200,
      body: 'ok',
      ...last,
    })
  })

  test('whose chunks have no end of their line is given up', () => {
    const head = text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', '')
    expect(readOf([head, Buffer.from(`1;${'x'.repeat(17_000)}`)])).toEqual({ status: 200, body: '', ...last })
  })

  test.each([
    ['another greeting', Buffer.from('SSH-2.0-OpenSSH_9.9\r\n')],
    ['another greeting, in part', Buffer.from('HTTQ')],
    ['HTTP/2', Buffer.from('HTTP/2 200\r\n\r\n')],
    ['no status', text('HTTP/1.1 OK', '', '')],
    ['a status of another kind', text('HTTP/1.1 600 Odd', '', '')],
    ['another protocol', text('HTTP/1.1 101 Switching Protocols', '', '')],
    ['a header without a name', text('HTTP/1.1 200 OK', ': x', '', '')],
    ['a header with a space before its colon', text('HTTP/1.1 200 OK', 'Content-Length : 0', '', '')],
    [
      'a header on two lines, without its name',
      text('HTTP/1.1 200 OK', ' X: a', 'Content-Length: 0', '', ''),
    ],
    ['two lengths', text('HTTP/1.1 200 OK', 'Content-Length: 1', 'Content-Length: 2', '', '')],
    ['two lengths on one line', text('HTTP/1.1 200 OK', 'Content-Length: 1, 2', '', '')],
    ['two lengths on a folded line', text('HTTP/1.1 200 OK', 'Content-Length: 1,', '\t2', '', '')],
    [
      'one length twice, and another',
      text('HTTP/1.1 200 OK', 'Content-Length: 2, 2', 'Content-Length: 3', '', 'ok'),
    ],
    ['a length and none', text('HTTP/1.1 200 OK', 'Content-Length: 2,', '', 'ok')],
    ['a length in two parts', text('HTTP/1.1 200 OK', 'Content-Length: 2', ' 0', '', 'ok')],
    ['a length below zero', text('HTTP/1.1 200 OK', 'Content-Length: -1', '', '')],
    ['a length in another notation', text('HTTP/1.1 200 OK', 'Content-Length: 0x10', '', '')],
    ['a value with a control character', text('HTTP/1.1 200 OK', 'X: a\u0001', '', '')],
    ['lines that end otherwise', Buffer.from('HTTP/1.1 200 OK\nContent-Length: 2\n\nok')],
    ['one line that ends otherwise', Buffer.from('HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok')],
    // What looks for the end of the blanks in more than one way takes minutes.
    ['a value of blanks that is broken', text('HTTP/1.1 200 OK', `X:${' '.repeat(15_000)}\rx`, '', '')],
    ['headers without an end', Buffer.from(`HTTP/1.1 200 OK\r\nX: ${'x'.repeat(17_000)}`)],
  ])('is none: %s', (_what, bytes) => {
    expect(() => readerOf([bytes])).toThrow(NoHttpError)
  })

  test.each([
    ['as Node greets', Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])],
    ['as gRPC greets in Go', Buffer.from([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0])],
    ['with an end of HTTP’s headers in it', Buffer.from([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 13, 10, 13, 10])],
  ])('is none where HTTP/2 greets, and says which port to take: %s', (_who, bytes) => {
    expect(() => readerOf([bytes])).toThrow(
      'could not be understood, for it is HTTP/2, which gRPC speaks: OTLP over HTTP is as a rule at port 4318',
    )
  })

  test.each([
    ['of another kind', Buffer.from([0, 0, 0, 6, 0, 0, 0, 0, 0])],
    ['of a stream', Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 1])],
    ['in part', Buffer.from([0, 0, 0, 4, 0, 0, 0, 0])],
  ])('is none where a frame is another than that of HTTP/2’s greeting, and shows it: %s', (_which, bytes) => {
    expect(() => readerOf([bytes])).toThrow(`it is no valid HTTP: "\0\0\0`)
  })

  test('in chunks of one byte takes no more memory than it has bytes, but for a little', () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const held = () => {
      collect()
      const { heapUsed, arrayBuffers } = process.memoryUsage()
      return heapUsed + arrayBuffers
    }
    const reader = new ResponseReader(4 * 2 ** 20)
    const before = held()
    reader.read(text('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked', '', ''))
    for (let count = 0; count < 100; count += 1) reader.read(Buffer.from('1\r\nx\r\n'.repeat(2000)))
    const grown = held() - before
    expect(reader.body).toHaveLength(200_000)
    // A buffer for each of them are 20 MB.
    expect(grown).toBeLessThan(5e6)
  })

  test('is the same however it is cut', () => {
    const numbered = [...responses, ...forgiven].map(([, bytes]) => bytes)
    fc.assert(
      fc.property(fc.constantFrom(...numbered), fc.array(fc.nat(200), { maxLength: 8 }), (bytes, places) => {
        const cuts = [
          0,
          ...places.filter((place) => place < bytes.length).toSorted((a, b) => a - b),
          bytes.length,
        ]
        const pieces = cuts.slice(1).map((end, index) => bytes.subarray(cuts[index], end))
        expect(readOf(pieces)).toEqual(readOf([bytes]))
      }),
    )
  })

  test('of any bytes is read or none, and never anything else', () => {
    const head = fc.constantFrom(
      '',
      'HTTP/1.1 200 OK\r\n',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n',
    )
    fc.assert(
      fc.property(head, fc.uint8Array({ maxLength: 100 }), (start, rest) => {
        try {
          readerOf([Buffer.from(start), Buffer.from(rest)])
        } catch (error) {
          expect(error).toBeInstanceOf(NoHttpError)
        }
      }),
    )
  })
})

describe('beside Node’s own client', () => {
  const readable = responses.filter(([, , { isComplete, isLasting }]) => isComplete && isLasting)

  test.each(readable)('a response %s says the same', async (_what, bytes, read) => {
    const server = createServer((socket) => socket.once('data', () => socket.end(bytes)))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const [response] = (await once(
      http.request({ port, method: 'POST', agent: false }).end(),
      'response',
    )) as [http.IncomingMessage]
    const chunks: Buffer[] = []
    for await (const chunk of response) chunks.push(chunk as Buffer)
    expect({ status: response.statusCode, body: String(Buffer.concat(chunks)) }).toEqual({
      status: read.status,
      body: read.body,
    })
  })
})
