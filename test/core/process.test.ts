import { once } from 'node:events'
import { createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as later } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { app, type Running } from './process.ts'
import { deadPort, receiver } from './receiver.ts'

// Apps as processes of their own: what starts tracing in them, how they end, and what they do at signals.

const ONE_SPAN = `
  import { span } from '@throughline/core'
  span('work', () => {})`

const SERVER = `
  import { span } from '@throughline/core'
  const alive = setInterval(() => {}, 1000)
  span('work', () => {})
  console.log('ready')`

/** The same, with its span sent: what it does at a signal finds nothing in the queue. */
const SERVER_THAT_HAS_SENT = `
  import { flush, span } from '@throughline/core'
  const alive = setInterval(() => {}, 1000)
  span('work', () => {})
  await flush()
  console.log('ready')`

/** How this app, when it has said that it is ready, ends by SIGTERM. */
async function killed(code: string, environment: Record<string, string>): Running['ended'] {
  const process = app(code, environment)
  await process.printed('ready')
  process.kill('SIGTERM')
  return process.ended
}

/** Longer than a second signal counts as the first, handed on by who has started the app. */
const LATER_THAN_HANDED_ON = 500

const at = (url: string, more: Record<string, string> = {}) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: url,
  ...more,
})

test('nothing starts by an import: the first span does it', async () => {
  const { stdout, stderr } = await app(
    `
    import { receiver, span } from '@throughline/core'
    import { sender } from '@throughline/core/client'
    import { trace } from '@opentelemetry/api'
    const provider = () => trace.getTracerProvider().getDelegate().constructor.name
    const listening = () => process.listenerCount('SIGTERM') + process.listenerCount('beforeExit')
    receiver({ scope: { name: 'x' }, given: () => [] })
    sender({ scope: { name: 'x' }, text: String }, 'tracing()', {})
    console.log(provider(), listening())
    span('work', () => {})
    console.log(provider(), listening())
  `,
    { OTEL_TRACES_EXPORTER: 'none' },
  ).ended
  expect([stdout, stderr]).toEqual(['NoopTracerProvider 0\nTracerProvider 2', ''])
})

test('start() with options behind the first span says that this has started tracing already', async () => {
  const { stderr } = await app(
    `
    import { span, start } from '@throughline/core'
    span('work', () => {})
    start()
    start({ serviceName: 'orders' })
    start({ serviceName: 'orders' })`,
    { OTEL_TRACES_EXPORTER: 'none' },
  ).ended
  expect(stderr.trim().split('\n')).toEqual([
    expect.stringMatching(
      /^throughline: start\(\) was called .* unused: the first span has started it, so call start\(\) before/,
    ),
  ])
})

test('what ended last is sent before the process ends', async () => {
  const collector = await receiver()
  const { code, stderr } = await app(ONE_SPAN, at(collector.url)).ended
  expect([code, stderr]).toEqual([0, ''])
  expect(collector.spans().map(({ name }) => name)).toEqual(['work'])
})

test('at its natural end a process asks again where the collector wants that, as long as it has time', async () => {
  const collector = await receiver((response, _request, number) => {
    response.writeHead(number === 1 ? 429 : 200, { 'Retry-After': '1' }).end()
  })
  const { code, stderr } = await app(ONE_SPAN, at(collector.url)).ended
  expect([code, stderr]).toEqual([0, ''])
  expect(collector.requests).toHaveLength(2)
})

test.each([
  ['at its natural end', '', '3'],
  ['after shutdown()', 'void tracing.shutdown()', '7'],
])(
  'a process does not wait for a collector that wants to be asked later than there is time for: %s',
  async (_row, end, seconds) => {
    const collector = await receiver((response) => {
      response.writeHead(429, { 'Retry-After': seconds }).end()
    })
    const code = `
      import { start, span } from '@throughline/core'
      const tracing = start()
      span('work', () => {})
      ${end}`
    const { code: status, stderr } = await app(code, at(collector.url)).ended
    // Were it held up until our deadline, that would be said too.
    expect([status, stderr.trim().split('\n')]).toEqual([
      0,
      [
        expect.stringMatching(/^throughline: spans are being lost: .* answered 429$/),
        'throughline: 1 span was lost because it could not be exported',
      ],
    ])
    expect(collector.requests).toHaveLength(1)
  },
)

test('at its natural end a process does not wait for an endpoint that is not there', async () => {
  const { code, stderr } = await app(ONE_SPAN, at(`http://127.0.0.1:${await deadPort()}`)).ended
  expect([code, stderr.trim().split('\n')]).toEqual([
    0,
    [
      expect.stringMatching(/^throughline: spans are being lost: .* ECONNREFUSED/),
      'throughline: 1 span was lost because it could not be exported',
    ],
  ])
})

test('a process that dies of a signal asks once, whatever the collector wants', async () => {
  const collector = await receiver((response) => response.writeHead(429, { 'Retry-After': '1' }).end())
  const process = app(SERVER, at(collector.url))
  await process.printed('ready')
  process.kill('SIGTERM')
  const { signal, stderr } = await process.ended
  expect([signal, stderr.trim().split('\n')]).toEqual([
    'SIGTERM',
    [
      expect.stringMatching(/^throughline: spans are being lost: .* answered 429$/),
      'throughline: 1 span was lost because it could not be exported',
    ],
  ])
  expect(collector.requests).toHaveLength(1)
})

test('an app that works in the thread pool or in a Worker is not about to end: a slow collector has its time', async () => {
  // Longer than the end of a process may be held up.
  const collector = await receiver((response) => setTimeout(() => response.end(), 2600))
  const works = [
    `const scrypt = promisify((await import('node:crypto')).scrypt)
    while (performance.now() < 4000) await scrypt('password', 'salt', 64, { N: 2 ** 15, maxmem: 2 ** 27 })`,
    `new Worker('while (performance.now() < 4000);', { eval: true })`,
  ]
  const environment = { ...at(collector.url), OTEL_BSP_SCHEDULE_DELAY: '1' }
  const preamble = `import { promisify } from 'node:util'
    import { Worker } from 'node:worker_threads'
    ${ONE_SPAN}`
  const all = await Promise.all(works.map((work) => app(`${preamble}\n${work}`, environment).ended))
  expect(all).toMatchObject(works.map(() => ({ code: 0, stderr: '' })))
  expect(collector.spans()).toHaveLength(2)
})

test('what process.exit() takes along is counted and said, and nothing is where a flush came first', async () => {
  const collector = await receiver()
  const exits = (before: string) =>
    app(
      `${ONE_SPAN}
      ${before}
      span('another', () => {})
      process.exit(4)`,
      at(collector.url),
    ).ended
  expect(await exits('')).toMatchObject({
    code: 4,
    stderr: expect.stringMatching(
      /^throughline: 2 spans had not been sent and acknowledged when the process ended.*flush\(\)/,
    ),
  })
  expect(await exits(`await (await import('@throughline/core')).flush()`)).toMatchObject({
    stderr: expect.stringMatching(/^throughline: 1 span had not been sent and acknowledged when/),
  })
  const flushed = await app(
    `${ONE_SPAN}
    await (await import('@throughline/core')).flush()
    process.exit(4)`,
    at(collector.url),
  ).ended
  expect(flushed).toMatchObject({ code: 4, stderr: '' })
})

test('what ended last is sent before the process ends, though a detector never answers', async () => {
  const collector = await receiver()
  const { code, stderr } = await app(
    `const { start } = await import('@throughline/core')
    start({ resource: {
      attributes: { team: 'orders' },
      asyncAttributesPending: true,
      waitForAsyncAttributes: () => new Promise(() => {}),
    } })
    ${ONE_SPAN}`,
    at(collector.url),
  ).ended
  expect([code, stderr.trim().split('\n')]).toEqual([
    0,
    [expect.stringContaining('the resource has not found out all of its attributes')],
  ])
  expect(collector.spans().map(({ name }) => name)).toEqual(['work'])
})

test('what ends while the last spans are being sent is sent too', async () => {
  const collector = await receiver()
  const { code } = await app(
    `${ONE_SPAN}
    process.once('beforeExit', () => setImmediate(() => span('later', () => {})))`,
    at(collector.url),
  ).ended
  expect(code).toBe(0)
  expect(collector.spans().map(({ name }) => name)).toEqual(['work', 'later'])
})

test.each([
  ['at once', `process.once('beforeExit', () => span('bye', () => {}))`],
  [
    'after a promise',
    `process.once('beforeExit', () => span('bye', async () => { await null; await null }))`,
  ],
  ['after a tick', `process.once('beforeExit', () => span('bye', () => new Promise(process.nextTick)))`],
  [
    'after a turn of the loop',
    `process.once('beforeExit', () => span('bye', () => new Promise((resolve) => setImmediate(resolve))))`,
  ],
])('the one span that a listener of beforeExit ends %s is sent', async (_row, listens) => {
  const collector = await receiver()
  const { code, stderr } = await app(
    `
    import { span, start } from '@throughline/core'
    start()
    ${listens}`,
    at(collector.url),
  ).ended
  expect([code, stderr]).toEqual([0, ''])
  expect(collector.spans().map(({ name }) => name)).toEqual(['bye'])
})

test.each([
  ['and nothing before', ''],
  ['and others before', `span('work', () => {})`],
  ['also one in front of ours', `process.prependListener('beforeExit', () => span('bye', () => {}))`],
])('an app that makes a span at each beforeExit has it once more, %s', async (_row, before) => {
  const collector = await receiver()
  const { code, stdout, stderr } = await app(
    `
    import { span, start } from '@throughline/core'
    start()
    ${before}
    process.on('beforeExit', () => span('bye', () => console.log('bye')))`,
    at(collector.url),
  ).ended
  expect([code, stdout]).toEqual([0, 'bye\nbye'])
  expect(stderr).toMatch(/^throughline: \d+ spans? had not been sent and acknowledged when the process ended/)
  expect(collector.spans().map(({ name }) => name)).toContain('bye')
})

test('a listener in front of ours that shuts tracing down leaves none of our listeners behind', async () => {
  const collector = await receiver()
  const { stdout, stderr } = await app(
    `
    import { span, start } from '@throughline/core'
    const tracing = start()
    process.prependOnceListener('beforeExit', () => {
      span('bye', () => {})
      void tracing.shutdown().then(() => console.log(process.listenerCount('beforeExit')))
    })`,
    at(collector.url),
  ).ended
  expect([stdout, stderr]).toEqual(['0', ''])
  expect(collector.spans().map(({ name }) => name)).toEqual(['bye'])
})

test('what an app does between one beforeExit and the next is sent, as often as it likes', async () => {
  const collector = await receiver()
  const { code, stderr } = await app(
    `
    import { span, start } from '@throughline/core'
    start()
    let rounds = 0
    process.on('beforeExit', () => {
      if ((rounds += 1) <= 5) setTimeout(() => span('round ' + rounds, () => {}), 1)
    })`,
    at(collector.url),
  ).ended
  expect([code, stderr]).toEqual([0, ''])
  expect(collector.spans()).toHaveLength(5)
})

test('an app without spans has its beforeExit once', async () => {
  const { stdout, stderr } = await app(
    `
    import { start } from '@throughline/core'
    start()
    process.on('beforeExit', () => console.log('bye'))`,
  ).ended
  expect([stdout, stderr]).toEqual(['bye', ''])
})

test('the process ends where the app has replaced Promise by one whose callbacks keep it alive', async () => {
  const collector = await receiver()
  const { code, stdout, stderr } = await app(
    `
    // As bluebird does, by setImmediate.
    globalThis.Promise = class extends Promise {
      then(...given) {
        setImmediate(() => {})
        return super.then(...given)
      }
    }
    const { span } = await import('@throughline/core')
    span('work', () => {})
    let rounds = 0
    process.on('beforeExit', () => {
      if ((rounds += 1) === 100) process.exit(1)
    })
    process.on('exit', () => console.log(rounds))`,
    at(collector.url),
  ).ended
  expect([code, stdout, stderr]).toEqual([0, '2', ''])
  expect(collector.spans().map(({ name }) => name)).toEqual(['work'])
})

test('what looks for resources that keep a process alive finds none of ours', async () => {
  const collector = await receiver()
  const { stdout, stderr } = await app(
    `
    import { createHook } from 'node:async_hooks'
    const open = new Map()
    createHook({ init: (id, type) => open.set(id, type), destroy: (id) => open.delete(id) }).enable()
    const { flush, span } = await import('@throughline/core')
    span('work', () => {})
    await flush()
    process.on('exit', () => console.log([...open.values()].includes('Throughline')))`,
    at(collector.url),
  ).ended
  expect([stdout, stderr]).toEqual(['false', ''])
  expect(collector.spans()).toHaveLength(1)
})

test.each([{ NODE_ENV: 'test' }, { VITEST: 'true' }, { JEST_WORKER_ID: '1' }])(
  'a test run reaches a collector only where one was named: %o',
  async (environment) => {
    const silent = await app(ONE_SPAN, environment).ended
    expect(silent).toMatchObject({ code: 0, stdout: '', stderr: '' })
    const collector = await receiver()
    await app(ONE_SPAN, at(collector.url, environment)).ended
    expect(collector.spans()).toHaveLength(1)
  },
)

test('where nobody listens at the default address, one warning says what to run, and the app is as ever', async () => {
  // Not the default address itself: a collector may well run on the machine of whoever runs this.
  const port = await deadPort()
  const code = (traced: string) => `
    import net from 'node:net'
    const { connect } = net.Socket.prototype
    net.Socket.prototype.connect = function (given, ...rest) {
      if (given[0].port === 4318) given[0] = { ...given[0], port: ${port} }
      return connect.call(this, given, ...rest)
    }
    ${traced}
    process.exitCode = 3
    console.log('done')`
  const many = `
    const { span } = await import('@throughline/core')
    for (let count = 0; count < 2000; count += 1) span('work', () => {})`
  const { code: status, stdout, stderr } = await app(code(many)).ended
  expect([status, stdout]).toEqual([3, 'done'])
  // Were it held up until our deadline, that would be said too.
  const lines = stderr.trim().split('\n')
  expect(lines).toHaveLength(1)
  expect(lines[0]).toContain('http://localhost:4318/v1/traces')
  expect(lines[0]).toContain('npx @throughline/viewer')
})

test('an idle connection to a collector, or one that waits for an answer, keeps no process alive', async () => {
  const collector = await receiver()
  const flushing = `
    import { span, flush } from '@throughline/core'
    span('work', () => {})
    await flush()`
  expect(await app(flushing, at(collector.url)).ended).toMatchObject({ code: 0, stderr: '' })
  const hung = await receiver(() => {})
  const { code, stderr } = await app(ONE_SPAN, at(hung.url)).ended
  // Were it to wait for the timeout of the request, that would be said too.
  expect([code, stderr.trim().split('\n')]).toEqual([
    0,
    [
      'throughline: the spans could not all be sent within 2000 ms',
      'throughline: 1 span was lost because it could not be exported',
    ],
  ])
})

test.each([
  ['at its natural end', '', 2000],
  ['after shutdown()', 'await tracing.shutdown()', 5000],
  [
    'after a signal of which the app makes its own end',
    `process.once('SIGTERM', () => clearInterval(alive))`,
    2000,
  ],
])('a collector that reads nothing keeps no process alive: %s', async (_row, end, within) => {
  const collector = createTcpServer({ pauseOnConnect: true }).listen(0, '127.0.0.1')
  await once(collector, 'listening')
  const sockets: Socket[] = []
  collector.on('connection', (socket) => sockets.push(socket.on('error', () => {})))
  onTestFinished(() => {
    collector.close()
    for (const socket of sockets) socket.destroy()
  })
  const { port } = collector.address() as AddressInfo
  // Each span is more than what the system's buffers hold, and a batch of its own that has all the time of the world.
  const process = app(
    `
    import { start, span } from '@throughline/core'
    const tracing = start()
    const alive = ${end.includes('alive') ? 'setInterval(() => {}, 1000)' : 'undefined'}
    for (let i = 0; i < 3; i++) span('large', { text: 'x'.repeat(2 ** 24) }, () => {})
    ${end}
    console.log('ready')`,
    at(`http://127.0.0.1:${port}`, {
      OTEL_EXPORTER_OTLP_TIMEOUT: '0',
      OTEL_BSP_EXPORT_TIMEOUT: '0',
      OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '1',
    }),
  )
  await once(collector, 'connection')
  await process.printed('ready')
  if (end.includes('SIGTERM')) process.kill('SIGTERM')
  const { code, stderr } = await process.ended
  expect([code, stderr.trim().split('\n')]).toEqual([
    0,
    [
      `throughline: the spans could not all be sent within ${within} ms`,
      'throughline: 3 spans were lost because they could not be exported',
    ],
  ])
})

test.each(['SIGTERM', 'SIGINT'] as const)(
  '%s sends the spans, and the process dies of it',
  async (signal) => {
    const collector = await receiver()
    const process = app(SERVER, at(collector.url))
    await process.printed('ready')
    process.kill(signal)
    expect(await process.ended).toMatchObject({ code: null, signal, stderr: '' })
    expect(collector.spans()).toHaveLength(1)
  },
)

test('a signal ends the process in time also where the collector never answers; a second one at once, which says what it takes along', async () => {
  const collector = await receiver(() => {})
  const patient = app(SERVER, at(collector.url))
  const impatient = app(SERVER, at(collector.url))
  await Promise.all([patient.printed('ready'), impatient.printed('ready')])
  patient.kill('SIGTERM')
  impatient.kill('SIGTERM')
  await collector.nth(2)
  // Later than the first would be handed on.
  await later(LATER_THAN_HANDED_ON)
  impatient.kill('SIGTERM')
  expect(await impatient.ended).toMatchObject({
    signal: 'SIGTERM',
    stderr: expect.stringMatching(
      /^throughline: 1 span had not been sent and acknowledged when the process ended.*\n$/,
    ),
  })
  const { signal, stderr } = await patient.ended
  expect(signal).toBe('SIGTERM')
  expect(stderr).toContain('could not all be sent within 2000 ms')
})

test('a signal that comes twice, as a terminal’s does under who hands it on, is one', async () => {
  const collector = await receiver((response) => later(LATER_THAN_HANDED_ON).then(() => response.end()))
  const process = app(SERVER, at(collector.url))
  await process.printed('ready')
  // The system would make one of two that are the same.
  process.kill('SIGINT')
  process.kill('SIGTERM')
  expect(await process.ended).toMatchObject({
    signal: expect.stringMatching(/^SIG(INT|TERM)$/),
    stderr: '',
  })
  expect(collector.spans()).toHaveLength(1)
})

test.each([
  ['dropped', '', 'throughline: 3 spans were dropped because the queue was full'],
  ['refused', '400', 'throughline: 2 spans were lost because they could not be exported'],
  ['rejected', '200', '/v1/traces rejected 1 span'],
])('the end says how many spans were %s', async (_row, status, line) => {
  const REJECTS_ONE = Buffer.from([0x0a, 0x02, 0x08, 0x01])
  const collector = await receiver((response) => {
    response.statusCode = Number(status || 200)
    response.end(status === '200' ? REJECTS_ONE : '')
  })
  const environment = at(collector.url, {
    OTEL_BSP_MAX_QUEUE_SIZE: '2',
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '1',
  })
  const five = `
    import { span } from '@throughline/core'
    for (let i = 0; i < ${status === '' ? 5 : 2}; i++) span('work', () => {})
    console.log('ready')`
  const signalled = app(`${five}\nsetInterval(() => {}, 1000)`, environment)
  await signalled.printed('ready')
  signalled.kill('SIGTERM')
  for (const { stderr } of [await app(five, environment).ended, await signalled.ended]) {
    const lines = stderr.trim().split('\n')
    expect(lines).toHaveLength(2)
    expect(lines.at(-1)).toContain(line)
  }
})

test('a signal during shutdown() waits for what is being sent', async () => {
  const collector = await receiver()
  const process = app(
    `
    import { span, start } from '@throughline/core'
    const tracing = start()
    setInterval(() => {}, 1000)
    for (let i = 0; i < 2; i++) span('work', () => {})
    void tracing.shutdown()
    process.kill(process.pid, 'SIGTERM')`,
    at(collector.url, { OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '1' }),
  )
  // Without a wait for us the process is gone before it has sent anything.
  expect(await process.ended).toMatchObject({ code: null, signal: 'SIGTERM' })
  expect(collector.spans()).toHaveLength(2)
})

test('a signal that the app emits itself, without its name, is the app’s own', async () => {
  const collector = await receiver()
  const process = app(
    `
    import { span } from '@throughline/core'
    span('work', () => {})
    process.on('SIGINT', () => console.log('heard'))
    process.emit('SIGINT')`,
    at(collector.url),
  )
  expect(await process.ended).toMatchObject({ code: 0, signal: null, stdout: 'heard', stderr: '' })
  expect(collector.spans()).toHaveLength(1)
})

test.each([
  ['at its own end', 'end', { code: 0, signal: null }, ['of the worker']],
  ['by a flush that the main thread asks for', 'flush', { code: 6, signal: null }, ['of the worker']],
  ['not at a signal of which it is not told', 'ready', { code: null, signal: 'SIGTERM' }, []],
])('a worker thread sends its spans %s', async (_row, asked, end, sent) => {
  const collector = await receiver()
  const process = app(
    `
    import { start } from '@throughline/core'
    import { once } from 'node:events'
    import { Worker } from 'node:worker_threads'
    start()
    const worker = new Worker(\`
      const { flush, span } = require('@throughline/core')
      const { parentPort } = require('node:worker_threads')
      span('of the worker', () => {})
      parentPort.on('message', async (asked) => {
        if (asked === 'end') parentPort.close()
        if (asked === 'flush') await flush()
        parentPort.postMessage('done')
      })\`, { eval: true, execArgv: [] })
    if ('${asked}' === 'flush') process.once('SIGTERM', async () => {
      worker.postMessage('flush')
      await once(worker, 'message')
      process.exit(6)
    })
    if ('${asked}' !== 'flush') worker.postMessage('${asked}')
    if ('${asked}' === 'ready') await once(worker, 'message')
    console.log('ready')`,
    at(collector.url),
  )
  await process.printed('ready')
  if (asked !== 'end') process.kill('SIGTERM')
  expect(await process.ended).toMatchObject({ ...end, stderr: '' })
  expect(collector.spans().map(({ name }) => name)).toEqual(sent)
})

test('signals: false leaves signals to the system', async () => {
  const collector = await receiver()
  const process = app(
    `
    import { start, span } from '@throughline/core'
    start({ signals: false })
    setInterval(() => {}, 1000)
    span('work', () => {})
    console.log('ready', process.listenerCount('SIGTERM'))`,
    at(collector.url),
  )
  await process.printed('ready 0')
  process.kill('SIGTERM')
  expect(await process.ended).toMatchObject({ signal: 'SIGTERM' })
  expect(collector.requests).toHaveLength(0)
})

test.each([
  ['on, before us', `process.on('SIGTERM', drain)`, ''],
  ['on, after us', '', `process.on('SIGTERM', drain)`],
  ['once, before us', `process.once('SIGTERM', drain)`, ''],
  ['once, after us', '', `process.once('SIGTERM', drain)`],
])('an app with a listener of its own ends when and how it wants: %s', async (_row, before, after) => {
  const collector = await receiver()
  const ended = await killed(
    `
    import { span } from '@throughline/core'
    const alive = setInterval(() => {}, 1000)
    function drain() {
      console.log('draining')
      // Longer than any flush of ours takes, and then by itself.
      setTimeout(() => {
        span('while draining', () => {})
        clearInterval(alive)
        process.exitCode = 5
        console.log('drained')
      }, 300)
    }
    ${before}
    span('before', () => {})
    ${after}
    console.log('ready')`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: 5, signal: null, stdout: 'ready\ndraining\ndrained' })
  expect(collector.spans().map(({ name }) => name)).toEqual(['before', 'while draining'])
})

// As `server.close(() => process.exit())` does, and most libraries for a graceful end.
test('what ends last in a drain has left, also where the app exits in the same turn', async () => {
  const collector = await receiver()
  const ended = await killed(
    `${SERVER_THAT_HAS_SENT}
    process.on('SIGTERM', () => setImmediate(() => {
      span('while draining', () => {})
      process.exit(0)
    }))`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: 0, signal: null })
  await collector.nth(2)
  expect(collector.spans().map(({ name }) => name)).toEqual(['work', 'while draining'])
})

test('an app that dies of the signal by itself after its drain does so, and loses nothing', async () => {
  const collector = await receiver()
  const ended = await killed(
    `${SERVER}
    process.once('SIGTERM', () => setTimeout(() => {
      span('while draining', () => {})
      process.kill(process.pid, 'SIGTERM')
    }, 100))`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: null, signal: 'SIGTERM' })
  expect(collector.spans().map(({ name }) => name)).toEqual(['work', 'while draining'])
})

// As @godaddy/terminus does.
test('and also where all has been sent and nothing keeps the process alive any more', async () => {
  const collector = await receiver()
  const ended = await killed(
    `${SERVER_THAT_HAS_SENT}
    process.once('SIGTERM', () => setTimeout(() => {
      clearInterval(alive)
      process.kill(process.pid, 'SIGTERM')
    }, 100))`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: null, signal: 'SIGTERM' })
  expect(collector.spans().map(({ name }) => name)).toEqual(['work'])
})

test('and also where it does its last work at the end of the loop', async () => {
  const collector = await receiver()
  const ended = await killed(
    `import { access } from 'node:fs/promises'
    ${SERVER_THAT_HAS_SENT}
    process.once('SIGTERM', () => clearInterval(alive))
    process.once('beforeExit', async () => {
      await access('.')
      process.kill(process.pid, 'SIGTERM')
    })`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: null, signal: 'SIGTERM' })
})

test('a library that ends the process only if nobody else listens is not kept from it by us', async () => {
  const collector = await receiver()
  const ended = await killed(
    `${SERVER}
    process.on('SIGTERM', function polite() {
      if (process.listeners('SIGTERM').length > 1) return
      process.off('SIGTERM', polite)
      process.kill(process.pid, 'SIGTERM')
    })`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: null, signal: 'SIGTERM' })
})

test('and where it is one that says how many of the listeners are its own, the spans are sent before', async () => {
  const collector = await receiver()
  const ended = await killed(
    `${SERVER}
    // As the signal-exit package does.
    const emitter = (globalThis[Symbol.for('signal-exit emitter')] = { count: 1 })
    process.on('SIGTERM', function polite() {
      if (process.listeners('SIGTERM').length !== emitter.count) return
      process.off('SIGTERM', polite)
      process.kill(process.pid, 'SIGTERM')
    })`,
    at(collector.url),
  )
  expect(ended).toMatchObject({ code: null, signal: 'SIGTERM' })
  expect(collector.spans()).toHaveLength(1)
})
