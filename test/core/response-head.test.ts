import { traceRequest, type ReceivingOptions } from '@throughline/core'
import compression from 'compression'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { expect, onTestFinished, test } from 'vitest'
import { listening, raw } from '../contract/server.ts'
import { record } from '../recording.ts'
import { said } from './engine.ts'

type Options = ReceivingOptions<IncomingMessage, [IncomingMessage, ServerResponse]>

/** What it returns is what the app has seen. */
type Answer = (response: ServerResponse, request: IncomingMessage) => unknown

const OURS = /^server-timing: trace;desc=00-[0-9a-f]{32}-[0-9a-f]{16}-03\r\n/gim

interface Answered {
  /** As it came, but for the time. */
  readonly text: string
  /** How often ours is in it. */
  readonly timings: number
  readonly seen: unknown
}

/** One request to an app, traced by these options or not at all, whose connection then ends. */
async function answered(answer: Answer, options?: Options, method = 'GET'): Promise<Answered> {
  let seen: unknown
  const server = createServer((request, response) => {
    const run = () => (seen = answer(response, request))
    try {
      if (options === undefined) run()
      else traceRequest(request, response, run, options)
    } catch (error) {
      seen = error
      response.destroy()
    }
  })
  const serving = await listening(server)
  onTestFinished(() => serving.close())
  const text = await raw(serving, `${method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
  return {
    text: text.replace(OURS, '').replace(/^Date: .*GMT$/im, 'Date: now'),
    timings: text.match(OURS)?.length ?? 0,
    seen,
  }
}

/** What it throws, where it does. */
function thrown(run: () => unknown): unknown {
  try {
    run()
    return undefined
  } catch (error) {
    const { name, code, message } = error as NodeJS.ErrnoException
    return { name, code, message }
  }
}

/** Node's types know no list of pairs. */
function pairs(...all: [name: string, value: unknown][]): string[] {
  return all as never
}

class Own {
  readonly 'x-a' = '1'
  get inherited() {
    return 'no header'
  }
}

const answers: [title: string, answer: Answer][] = [
  ['no call at all', (response) => void response.end('ok')],
  ['a body that comes in parts', (response) => (response.write('a'), void response.end('b'))],
  ['headers that are flushed', (response) => (response.flushHeaders(), void response.end('ok'))],
  ['a status', (response) => void response.writeHead(201).end('ok')],
  ['a status and a reason', (response) => void response.writeHead(201, 'Fine').end('ok')],
  ['a status that has no body', (response) => void response.writeHead(304, { etag: '"a"' }).end()],
  [
    'a reason and headers',
    (response) => void response.writeHead(200, 'Fine', { 'X-A': '1', 'Content-Length': 2 }).end('ok'),
  ],
  ['headers in the third place', (response) => void response.writeHead(200, undefined, { 'X-A': '1' }).end()],
  ['empty headers', (response) => void response.writeHead(200, {}).end('ok')],
  ['an empty list', (response) => void response.writeHead(200, []).end('ok')],
  [
    'a list with names that come twice',
    (response) =>
      void response
        .writeHead(200, ['Set-Cookie', 'a=1', 'X-A', '1', 'set-cookie', 'b=2', 'X-A', '2'])
        .end('ok'),
  ],
  [
    'a list with a value that is no name',
    (response) => void response.writeHead(200, ['X-A', 'server-timing', 'X-B', '1']).end('ok'),
  ],
  [
    'a list of pairs',
    (response) =>
      void response.writeHead(200, pairs(['X-A', '1'], ['X-A', '2'], ['x-b', ['3', '4']])).end('ok'),
  ],
  ['one pair', (response) => void response.writeHead(200, 'Fine', pairs(['X-A', '1'])).end('ok')],
  [
    'an object with a name in two cases',
    (response) => void response.writeHead(200, { 'Set-Cookie': 'a=1', 'set-cookie': 'b=2' }).end('ok'),
  ],
  [
    'an object with lists',
    (response) => void response.writeHead(200, { 'Set-Cookie': ['a=1', 'b=2'], 'X-A': ['1', '2'] }).end('ok'),
  ],
  ['an object of a class', (response) => void response.writeHead(200, new Own() as never).end('ok')],
  [
    'a Map, of which Node reads nothing',
    (response) => void response.writeHead(200, new Map() as never).end(),
  ],
  [
    'a timing of its own in an object',
    (response) => void response.writeHead(200, { 'server-timing': 'db;dur=1', 'X-A': '1' }).end('ok'),
  ],
  [
    'timings of its own in an object, by two names',
    (response) =>
      void response.writeHead(200, { 'server-timing': 'a', 'Server-Timing': ['b', 'c'] }).end('ok'),
  ],
  [
    'timings of its own in a list',
    (response) =>
      void response.writeHead(200, ['Server-Timing', 'a', 'SERVER-TIMING', 'b', 'X-A', '1']).end('ok'),
  ],
  [
    'a timing of its own in pairs',
    (response) => void response.writeHead(200, pairs(['server-timing', 'a'], ['X-A', '1'])).end('ok'),
  ],
  ['headers that were set', (response) => void response.setHeader('X-A', ['1', '2']).end('ok')],
  [
    'headers that were set, and an object',
    (response) => void response.setHeader('X-A', '1').writeHead(200, { 'x-a': '2', 'X-B': '3' }).end('ok'),
  ],
  [
    'headers that were set, and a list',
    (response) => void response.setHeader('X-A', '1').writeHead(200, ['X-B', '3', 'X-C', '4']).end('ok'),
  ],
  [
    'headers that were set and taken back, and a list',
    (response) => {
      response.setHeader('X-A', '1').removeHeader('x-a')
      response.writeHead(200, ['X-B', '3', 'Server-Timing', 'a']).end('ok')
    },
  ],
  [
    'a timing that was set, and a status',
    (response) => void response.setHeader('server-timing', 'db;dur=1').writeHead(200).end('ok'),
  ],
  [
    'a timing that was set, and another one that is given in its place',
    (response) =>
      void response.setHeader('Server-Timing', 'a').writeHead(200, { 'server-timing': 'b' }).end('ok'),
  ],
  [
    'what the response is asked for, before and after its head',
    (response) => {
      const told = () => [
        response.getHeaderNames(),
        response.getHeader('x-a'),
        response.hasHeader('x-a'),
        response.headersSent,
        // `emit` is ours with and without options.
        Object.keys(response).filter((key) => key !== 'emit'),
        response.writeHead.name,
        response.writeHead.length,
      ]
      const before = told()
      const isItself = response.writeHead(200, { 'x-a': '1' }) === response
      const after = [
        told(),
        Object.hasOwn(response, 'writeHead'),
        Object.getOwnPropertySymbols(response).length,
      ]
      response.end('ok')
      return [before, isItself, after]
    },
  ],
  [
    'a second head',
    (response) => {
      response.writeHead(200, { 'x-a': '1' })
      const error = thrown(() => response.writeHead(500, ['x-b', '1']))
      response.end('ok')
      return error
    },
  ],
  [
    'a head after what Node refuses',
    (response) => {
      const errors = [
        () => response.writeHead(99),
        () => response.writeHead(200, 'No\r\n'),
        () => response.writeHead(200, ['x-a']),
        () => response.writeHead(200, { 'x a': '1' }),
        () => response.writeHead(200, { 'Server-Timing': undefined }),
        () => response.writeHead(200, pairs(['x-a', undefined])),
        () => response.writeHead(200, 'No\r\n', ['x-a', '1']),
        () => response.writeHead(200, ['Server-Timing', undefined as never]),
      ].map(thrown)
      response.writeHead(200, 'Fine', pairs(['X-A', '1'], ['X-A', '2'])).end('ok')
      return errors
    },
  ],
  [
    'a head after what Node refuses, with headers that were set',
    (response) => {
      response.setHeader('X-A', '1')
      const errors = [
        () => response.writeHead(99),
        () => response.writeHead(200, { 'Server-Timing': 'a', 'x b': '1' }),
        () => response.writeHead(200, { 'Server-Timing': undefined }),
        () => response.writeHead(200, pairs(['x-a', '1'])),
        () => response.writeHead(1000, { 'X-B': '2' }),
      ].map(thrown)
      response.end('ok')
      return errors
    },
  ],
  [
    'a head after all headers are taken back, as error handlers do',
    (response) => {
      response.setHeader('X-A', '1')
      const error = thrown(() => response.writeHead(99))
      for (const name of response.getHeaderNames()) response.removeHeader(name)
      response.writeHead(500, { 'X-B': '1' }).end('no')
      return error
    },
  ],
]

test.each(
  answers.flatMap(([title, answer]) => ['GET', 'HEAD'].map((method) => [title, method, answer] as const)),
)('the answer by %s is byte for byte what it is without us, to %s', async (_title, method, answer) => {
  record()
  const reports = said()
  const bare = await answered(answer, undefined, method)
  const captured = await answered(answer, { capture: { responseHeaders: ['x-a', 'x-none'] } }, method)
  const timed = await answered(answer, { serverTiming: true }, method)
  expect(captured).toEqual(bare)
  expect(timed).toEqual({ ...bare, timings: 1 })
  expect(reports.lines).toEqual([])
})

/** As middleware does that sets headers at the last moment: it stays in its place. */
function wrapHead(response: ServerResponse, set: (given: unknown[]) => void): void {
  const writeHead = response.writeHead as (...given: unknown[]) => ServerResponse
  response.writeHead = function (this: ServerResponse, ...given: unknown[]) {
    set(given)
    return Reflect.apply(writeHead, this, given)
  }
}

test.each<[string, (response: ServerResponse) => void]>([
  ['sets a header', (response) => wrapHead(response, () => response.setHeader('X-Late', '1'))],
  ['hands on what it is given', (response) => wrapHead(response, () => {})],
])('middleware that wraps the head and %s does so around tracing, and inside of it', async (_title, wrap) => {
  record()
  for (const answer of [
    (response: ServerResponse) => void response.end('ok'),
    (response: ServerResponse) => void response.writeHead(200, { 'X-A': '1', 'x-a': '2' }).end('ok'),
    (response: ServerResponse) => void response.setHeader('X-A', '1').writeHead(200, ['X-B', '1']).end('ok'),
  ]) {
    const wrapped: Answer = (response) => {
      wrap(response)
      answer(response)
      return [Object.hasOwn(response, 'writeHead'), thrown(() => response.writeHead(200))]
    }
    const bare = await answered(wrapped)
    expect(await answered(wrapped, { serverTiming: true })).toEqual({ ...bare, timings: 1 })

    const server = createServer((request, response) => {
      wrap(response)
      const own = response.writeHead
      traceRequest(request, response, () => answer(response), { serverTiming: true })
      if (response.writeHead !== own) response.destroy(new Error('the app’s own is gone'))
    })
    const serving = await listening(server)
    onTestFinished(() => serving.close())
    const text = await raw(serving, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    expect(text.match(OURS)).toHaveLength(1)
    expect(text.replace(OURS, '').replace(/^Date: .*GMT$/im, 'Date: now')).toBe(bare.text)
  }
})

test('an app that is mounted in another one writes the head as its own prototype does', async () => {
  record()
  const answer: Answer = (response) => {
    const prototype = Object.getPrototypeOf(response) as ServerResponse
    const own = Object.create(prototype) as object
    Object.setPrototypeOf(response, own)
    Object.assign(own, {
      writeHead(this: ServerResponse, status: number, ...rest: [never]) {
        return Reflect.apply(prototype.writeHead, this, [status + 1, ...rest])
      },
    })
    response.writeHead(200, ['X-A', '1', 'X-A', '2']).end('ok')
  }
  const bare = await answered(answer)
  expect(bare.text).toMatch(/^HTTP\/1.1 201 Created\r\nX-A: 1\r\nX-A: 2\r\n/)
  expect(await answered(answer, { serverTiming: true })).toEqual({ ...bare, timings: 1 })
})

test('a head that was written without the response’s own method has no timing, and is not written twice', async () => {
  record()
  const reports = said()
  const answer: Answer = (response) => {
    const { writeHead } = Object.getPrototypeOf(response) as ServerResponse
    writeHead.call(response.setHeader('X-A', '1'), 200)
    const error = thrown(() => response.writeHead(500))
    response.end('ok')
    return error
  }
  const bare = await answered(answer)
  expect(await answered(answer, { serverTiming: true })).toEqual(bare)
  expect(reports.lines).toEqual([])
})

test('compression changes the same headers of an answer', async () => {
  record()
  const compressed: Answer = (response, request) =>
    compression({ threshold: 0 })(request as never, response as never, () => {
      response.writeHead(200, { 'Content-Type': 'text/plain', 'X-A': '1' }).end('ok')
    })
  const bare = await answered(compressed)
  expect(bare.text).toContain('Vary: Accept-Encoding')
  expect(await answered(compressed, { serverTiming: true })).toEqual({ ...bare, timings: 1 })
})

test('what the app hands over is not written to', async () => {
  record()
  const [set, list, nested] = [['a'], ['Server-Timing', 'a'], pairs(['Server-Timing', 'a'])]
  const record_ = Object.freeze({ 'Server-Timing': 'a' })
  for (const answer of [
    (response: ServerResponse) => void response.setHeader('Server-Timing', set).end('ok'),
    (response: ServerResponse) => void response.writeHead(200, list).end('ok'),
    (response: ServerResponse) => void response.writeHead(200, nested).end('ok'),
    (response: ServerResponse) => void response.writeHead(200, record_).end('ok'),
  ])
    expect((await answered(answer, { serverTiming: true })).timings).toBe(1)
  expect([set, list, nested]).toEqual([['a'], ['Server-Timing', 'a'], [['Server-Timing', 'a']]])
})

test('a response whose headers cannot be asked for is answered all the same, without ours', async () => {
  record()
  const reports = said()
  const answer: Answer = (response) => {
    response.getHeaderNames = () => {
      throw new Error('a bug of the app’s')
    }
    response.writeHead(200, { 'X-A': '1', 'x-a': '2' }).end('ok')
  }
  const bare = await answered(answer)
  expect(await answered(answer, { serverTiming: true })).toEqual(bare)
  expect(reports.lines).toEqual(['throughline: a response could not be prepared'])
})

test.each<[string, Answer, Record<string, string[]>]>([
  [
    'a list',
    (response) => response.writeHead(200, ['X-Many', 'a', 'x-id', '1', 'x-many', 'b: c']).end(),
    { 'x-id': ['1'], 'x-many': ['a', 'b: c'] },
  ],
  [
    'pairs',
    (response) => response.writeHead(200, pairs(['X-Many', ['a', 'b']], ['X-Many', 'c'])).end(),
    { 'x-many': ['a', 'b', 'c'] },
  ],
  [
    'an object',
    (response) => response.writeHead(200, 'x-id: 2', { 'X-Many': 'a', 'x-many': ['b'] }).end(),
    { 'x-many': ['a', 'b'] },
  ],
  [
    'an object, beside what was set',
    (response) => response.setHeader('X-Many', ['a', 'b']).writeHead(200, { 'X-Id': 7 }).end(),
    { 'x-id': ['7'], 'x-many': ['a', 'b'] },
  ],
  [
    'a body that looks like one',
    (response) => response.writeHead(200, { 'X-Id': '1' }).end('\r\nx-many: a\r\n'),
    { 'x-id': ['1'] },
  ],
  [
    'nothing but what Node adds',
    (response) => response.end('ok'),
    { 'content-length': ['2'], connection: ['close'] },
  ],
])('headers are recorded as they are sent, given as %s', async (_title, answer, expected) => {
  const recording = record()
  const names = ['x-id', 'X-Many', 'x-none', ...Object.keys(expected)]
  await answered(answer, { capture: { responseHeaders: names } })
  const [span] = await recording.all(1)
  const headers = Object.entries(span?.attributes ?? {}).flatMap(([key, value]) => {
    const [, name] = /^http\.response\.header\.(.*)/.exec(key) ?? []
    return name === undefined ? [] : [[name, value]]
  })
  expect(Object.fromEntries(headers)).toEqual(expected)
})
