import { EventEmitter, once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { batchProcessor, type BatchOptions } from '../../packages/core/src/batch.ts'
import { otlpExporter, type OtlpOptions } from '../../packages/core/src/otlp/send.ts'
import { decodeRequest, encodeResponse } from '../otlp-definition.ts'
import { engine, said } from './engine.ts'
import { flushing, hurried } from './exporter.ts'

/** One request, as far as it has come. */
interface Incoming {
  socket: Socket
  /** The names of the spans in it, when the whole of it is there. */
  body: Promise<string[]>
  /** Sends this as it is; what answers in HTTP is up to the test. */
  answer(...parts: (string | Uint8Array)[]): void
}

interface Collector {
  url: string
  /** The names of all spans in requests that came in whole, in order, as often as they came. */
  arrived: string[]
  /** How many requests have begun. */
  begun: number
  /** All connections that were ever made, in order. */
  connections: Socket[]
  /** Resolves when so many requests have begun. */
  nth(number: number): Promise<void>
  close(): Promise<void>
}

type Behaviour = (incoming: Incoming, number: number) => unknown

/** A collector of sockets and bytes, since no HTTP server can be made to misbehave like this. */
async function collector(behave: Behaviour, port = 0): Promise<Collector> {
  const events = new EventEmitter()
  const result: Collector = {
    url: '',
    arrived: [],
    begun: 0,
    connections: [],
    async nth(number) {
      while (result.begun < number) await once(events, 'begun')
    },
    async close() {
      for (const socket of result.connections) socket.destroy()
      if (!server.listening) return
      server.close()
      await once(server, 'close')
    },
  }
  const server = createServer((socket) => {
    result.connections.push(socket)
    socket.on('error', () => {})
    const chunks: Buffer[] = []
    let length = 0
    let whole: ((body: Buffer) => void) | undefined
    // Where the head ends and where the body does.
    let head = 0
    let end = Infinity
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      length += chunk.length
      if (whole === undefined) {
        const text = Buffer.concat(chunks).toString('latin1')
        head = text.indexOf('\r\n\r\n') + 4
        if (head < 4) return
        end = head + Number(/content-length: (\d+)/i.exec(text)?.[1])
        const body = new Promise<Buffer>((resolve) => (whole = resolve)).then(namesIn)
        void body.then((names) => result.arrived.push(...names))
        result.begun += 1
        behave(
          { socket, body, answer: (...parts) => parts.forEach((part) => socket.write(part)) },
          result.begun,
        )
        events.emit('begun')
      }
      if (length < end || socket.destroyed) return
      const received = Buffer.concat(chunks.splice(0))
      whole?.(received.subarray(head, end))
      whole = undefined
      chunks.push(received.subarray(end))
      length -= end
    })
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => result.close())
  result.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/traces`
  return result
}

function namesIn(body: Buffer): string[] {
  const { resourceSpans = [] } = decodeRequest(body)
  return resourceSpans.flatMap(({ scopeSpans = [] }) =>
    scopeSpans.flatMap(({ spans = [] }) => spans.map(({ name }) => String(name))),
  )
}

/** Milliseconds: time enough for a request to get there, and not for an answer that never comes. */
const TIMEOUT = 700

const TOOK_IT = 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'

const http = (
  status: string,
  headers = '',
  body: string | Uint8Array = '',
): [string, string | Uint8Array] => [
  `HTTP/1.1 ${status}\r\n${headers}Content-Length: ${body.length}\r\n\r\n`,
  body,
]

/** The whole way of a span but for `start()`: engine, queue, batches, sockets. */
function pipeline(url: string, otlp: Partial<OtlpOptions> = {}, batch: Partial<BatchOptions> = {}) {
  const exporter = otlpExporter({
    url,
    headers: {},
    protocol: 'http/protobuf',
    compression: 'none',
    timeoutMillis: 10_000,
    isDefault: false,
    ...otlp,
  })
  const processor = batchProcessor(exporter, {
    // A delay that no test waits for.
    scheduledDelayMillis: 2 ** 30,
    exportTimeoutMillis: 30_000,
    maxQueueSize: 20,
    maxExportBatchSize: 5,
    ...batch,
  })
  const { tracer } = engine({ processors: [processor] })
  let made = 0
  const spans = (count: number, attributes = {}) => {
    const names = Array.from({ length: count }, () => `${(made += 1)}`)
    for (const name of names) tracer.startSpan(name, { attributes }).end()
    return names
  }
  return { exporter, processor, spans, hurry: () => hurried(exporter) }
}

const count = (lines: readonly string[], pattern: RegExp) =>
  lines.reduce((sum, line) => sum + Number(pattern.exec(line)?.[1] ?? 0), 0)

interface Fault {
  fault: string
  /** What the collector does with the first requests, as many as `faulty` says; with later ones it does as it should. */
  behave: (incoming: Incoming) => unknown
  /** 1 where nothing else is said. */
  faulty?: number
  /** How often the first batch is sent. */
  sent: number
  /** How many of its five spans are lost. */
  lost: number
  /** What is said of it, URL for the address. */
  says?: string[]
  otlp?: Partial<OtlpOptions>
}

const UNREAD =
  'what URL answered cannot be read: expected an ExportTraceServiceResponse as protobuf, received "'

const lostBecause = (reason: string) => [
  `spans are being lost: ${reason}`,
  'spans are exported again; 5 were lost',
]

const faults: Fault[] = [
  {
    fault: 'resets the connection in the middle of the request',
    behave: ({ socket }) => socket.resetAndDestroy(),
    sent: 2,
    lost: 0,
  },
  {
    fault: 'closes the connection before it answers',
    behave: async ({ socket, body }) => (await body) && socket.end(),
    sent: 2,
    lost: 0,
  },
  {
    fault: 'resets the connection before it answers, again and again',
    behave: async ({ socket, body }) => (await body) && socket.resetAndDestroy(),
    faulty: 6,
    sent: 6,
    lost: 5,
    says: lostBecause('URL could not be reached: '),
  },
  {
    fault: 'answers 503 with Retry-After, and then takes it',
    behave: ({ answer }) => answer(...http('503 Busy', 'Retry-After: 0\r\n')),
    sent: 2,
    lost: 0,
  },
  {
    fault: 'answers 503 with Retry-After for ever',
    behave: ({ answer }) => answer(...http('503 Busy', 'Retry-After: 0\r\n')),
    faulty: 6,
    sent: 6,
    lost: 5,
    says: lostBecause('URL answered 503'),
  },
  {
    fault: 'answers 503, never ends the body, and then takes it',
    behave: ({ answer }) => answer('HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nhalf'),
    sent: 2,
    lost: 0,
    otlp: { timeoutMillis: 60_000 },
  },
  {
    fault: 'wants the process to come again later than the batch may take',
    behave: ({ answer }) => answer(...http('429 Slow down', 'Retry-After: 60\r\n')),
    sent: 1,
    lost: 5,
    says: lostBecause('URL answered 429'),
  },
  {
    fault: 'answers 400',
    behave: ({ answer }) => answer(...http('400 Bad Request', '', 'no such thing')),
    sent: 1,
    lost: 5,
    says: lostBecause('URL answered 400'),
  },
  {
    fault: 'takes a part',
    behave: ({ answer }) => {
      const partialSuccess = { rejectedSpans: 2, errorMessage: 'too old' }
      answer(...http('200 OK', '', encodeResponse({ partialSuccess })))
    },
    sent: 1,
    lost: 0,
    says: ['URL rejected 2 spans: too old'],
  },
  {
    fault: 'answers 200 with garbage',
    behave: ({ answer }) => answer(...http('200 OK', '', '\xff<html>Welcome!')),
    sent: 1,
    lost: 0,
    says: [UNREAD],
  },
  {
    fault: 'never answers',
    behave: () => {},
    sent: 1,
    lost: 5,
    says: lostBecause('URL could not be reached: the export timed out'),
    otlp: { timeoutMillis: TIMEOUT },
  },
  {
    fault: 'answers half a header and hangs',
    behave: ({ answer }) => answer('HTTP/1.1 200 OK\r\nContent-Len'),
    sent: 1,
    lost: 5,
    says: lostBecause('URL could not be reached: the export timed out'),
    otlp: { timeoutMillis: TIMEOUT },
  },
  {
    fault: 'answers 200 and never ends the body: it is taken at its word',
    behave: ({ answer }) => answer('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'),
    sent: 1,
    lost: 0,
    says: [UNREAD],
    otlp: { timeoutMillis: TIMEOUT },
  },
  {
    fault: 'answers 200 and resets the connection in the middle of the body: it is taken at its word',
    behave: ({ socket }) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf', () => socket.resetAndDestroy())
    },
    sent: 1,
    lost: 0,
    says: [UNREAD],
  },
  {
    fault: 'answers 5 MB',
    behave: ({ answer }) => answer(...http('200 OK', '', Buffer.alloc(5 * 2 ** 20))),
    sent: 1,
    lost: 5,
    says: lostBecause('what URL answered is over 4194304 bytes'),
  },
  {
    fault: 'answers 5 MB in chunks that never end',
    behave: ({ socket }) => {
      const chunk = Buffer.concat([Buffer.from('10000\r\n'), Buffer.alloc(0x10000), Buffer.from('\r\n')])
      const pour = () => {
        while (!socket.destroyed && socket.write(chunk));
      }
      socket.on('drain', pour)
      socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
      pour()
    },
    sent: 1,
    lost: 5,
    says: lostBecause('what URL answered is over 4194304 bytes'),
  },
  {
    fault: 'speaks no HTTP',
    behave: ({ answer }) => answer('SSH-2.0-OpenSSH_9.9\r\n\r\n'),
    sent: 1,
    lost: 5,
    says: lostBecause('what URL answered could not be understood, for it is no valid HTTP: "SSH-2.0-'),
  },
  {
    fault: 'says two lengths of its answer',
    behave: ({ answer }) => answer('HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\nok'),
    sent: 1,
    lost: 5,
    says: lostBecause(
      'what URL answered could not be understood, for it is no valid HTTP: Content-Length: 0, 2',
    ),
  },
  {
    fault: 'says one length twice, and breaks a header over two lines',
    behave: ({ answer }) =>
      answer('HTTP/1.1 200 OK\r\nContent-Length: 0, 0\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n'),
    sent: 1,
    lost: 0,
  },
  {
    fault: 'says 100 Continue before it answers',
    behave: ({ answer }) => answer('HTTP/1.1 100 Continue\r\n\r\n', TOOK_IT),
    sent: 1,
    lost: 0,
  },
  {
    fault: 'answers in HTTP/1.0 and closes the connection',
    behave: ({ socket }) => socket.end('HTTP/1.0 200 OK\r\n\r\nthanks'),
    sent: 1,
    lost: 0,
    says: [UNREAD],
  },
  {
    fault: 'answers and closes the connection, without having said that it would',
    behave: ({ socket }) => {
      socket.write(TOOK_IT)
      socket.destroySoon()
    },
    sent: 1,
    lost: 0,
  },
  {
    fault: 'answers before it has read anything',
    behave: ({ socket }) => {
      socket.pause()
      socket.write(TOOK_IT, () => socket.resume())
    },
    sent: 1,
    lost: 0,
  },
]

const asItShould: Behaviour = async ({ body, answer }) => {
  await body
  answer(TOOK_IT)
}

describe('a collector that', () => {
  test.each(faults.map((row) => [row.fault, row.lost, row] as const))(
    '%s: %i spans are lost, and the next batch arrives',
    async (_fault, lost, row) => {
      const { behave, faulty = 1, sent, says = [], otlp } = row
      const reports = said()
      const seen = await collector((incoming, number) =>
        number <= faulty ? behave(incoming) : asItShould(incoming, number),
      )
      const { processor, spans, hurry } = pipeline(seen.url, otlp)
      hurry()
      spans(5)
      const told = await flushing(processor)
      // What a collector has taken but for a part was exported.
      if (told !== '') expect(told).toMatch(new RegExp(`^Error: ${lost} spans were lost: .`))
      expect(told === '' && lost === 5).toBe(false)
      expect(seen.begun).toBe(sent)
      const next = spans(5)
      expect(await flushing(processor)).toBe('')
      expect([seen.begun, seen.arrived.slice(-5)]).toEqual([sent + 1, next])
      await processor.shutdown()
      expect(reports.lines).toEqual(
        says.map((line) => expect.stringContaining(line.replace('URL', seen.url))),
      )
      expect(count(reports.lines, /(\d+) (?:spans? )?(?:was|were) lost/)).toBe(lost)
    },
  )

  test('is not there costs what is flushed meanwhile, and is found again when it comes back', async () => {
    const reports = said()
    const gone = await collector(asItShould)
    const { processor, spans, hurry } = pipeline(gone.url)
    hurry()
    const first = spans(5)
    await flushing(processor)
    await gone.close()
    spans(5)
    expect(await flushing(processor)).toMatch(/^Error: 5 spans were lost: .* ECONNREFUSED/)
    spans(7)
    expect(await flushing(processor)).toMatch(/^Error: 7 spans were lost: /)
    const back = await collector(asItShould, Number(new URL(gone.url).port))
    const last = spans(5)
    await flushing(processor)
    expect([gone.arrived, back.arrived]).toEqual([first, last])
    expect(reports.lines).toEqual([
      expect.stringMatching(
        /^throughline: spans are being lost: .* could not be reached: connect ECONNREFUSED/,
      ),
      'throughline: spans are exported again; 12 were lost',
    ])
  })

  test('refuses a part of a batch for what it holds costs that part, and is not told as one that was gone', async () => {
    const reports = said()
    const seen = await collector(async ({ body, answer }, number) => {
      const names = await body
      if (number > 3 || !names.includes('2')) answer(TOOK_IT)
      else answer(...http('413 Too Large'))
    })
    const { processor, spans } = pipeline(seen.url)
    // Each is a request of its own.
    spans(5, { text: 'x'.repeat(600 * 1024) })
    expect(await flushing(processor)).toBe(`Error: 1 span was lost: ${seen.url} answered 413`)
    expect([seen.begun, seen.arrived]).toEqual([5, ['1', '2', '3', '4', '5']])
    spans(5)
    expect(await flushing(processor)).toBe('')
    expect(reports.lines).toEqual([`throughline: spans are being lost: ${seen.url} answered 413`])
    await processor.shutdown()
    expect(reports.lines.slice(1)).toEqual(['throughline: 1 span was lost because it could not be exported'])
  })

  test('closes the idle connection between batches costs nothing, and no batch is sent twice', async () => {
    const reports = said()
    const seen = await collector(asItShould)
    const { processor, spans } = pipeline(seen.url)
    const names: string[] = []
    for (let number = 1; number <= 3; number += 1) {
      names.push(...spans(5))
      await flushing(processor)
      const socket = seen.connections.at(-1) as Socket
      socket.end()
      await once(socket, 'close')
    }
    expect([seen.arrived, seen.begun, seen.connections.length, reports.lines]).toEqual([names, 3, 3, []])
  })

  test('resets the idle connection at the very moment when it is used again costs nothing either', async () => {
    const reports = said()
    const seen = await collector((incoming, number) => {
      if (number === 2) incoming.socket.resetAndDestroy()
      else void asItShould(incoming, number)
    })
    const { exporter, processor, spans } = pipeline(seen.url)
    // Nothing is tried again, but this was no try.
    exporter.setPatience('once')
    const names = spans(5)
    await flushing(processor)
    names.push(...spans(5))
    await flushing(processor)
    expect([seen.arrived, seen.begun, seen.connections.length, reports.lines]).toEqual([names, 3, 2, []])
  })

  test('reads slowly holds up the queue and not the app: what does not fit is dropped, and all of it counted', async () => {
    const reports = said()
    let resume = () => {}
    const seen = await collector((incoming, number) => {
      if (number === 1) {
        incoming.socket.pause()
        resume = () => incoming.socket.resume()
      }
      void asItShould(incoming, number)
    })
    const { processor, spans } = pipeline(seen.url)
    // More than the system's buffers hold.
    const names = spans(1, { text: 'x'.repeat(16 * 2 ** 20) })
    const flushed = flushing(processor)
    await seen.nth(1)
    for (let round = 0; round < 10; round += 1) {
      names.push(...spans(5))
      await turn()
    }
    expect(seen.arrived).toEqual([])
    resume()
    await flushed
    await processor.shutdown()
    expect(seen.arrived).toEqual(names.slice(0, 21))
    expect(reports.lines).toEqual([
      'throughline: the queue of 20 spans is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)',
      'throughline: 30 spans were dropped because the queue was full',
    ])
  })

  test('never answers costs one batch per timeout, while the queue stays as it is', async () => {
    const reports = said()
    const seen = await collector(() => {})
    const { processor, spans } = pipeline(seen.url, { timeoutMillis: 50 })
    for (let round = 0; round < 20; round += 1) {
      spans(5)
      await turn()
    }
    await processor.shutdown()
    const lost = count(reports.lines, /(\d+) spans? (?:was|were) lost/)
    const dropped = count(reports.lines, /(\d+) spans? (?:was|were) dropped/)
    expect(lost + dropped).toBe(100)
    expect(reports.lines).toHaveLength(4)
  })

  test('takes many batches gets them over one connection, one after the other, each once', async () => {
    const seen = await collector(asItShould)
    const { processor, spans } = pipeline(seen.url, {}, { maxQueueSize: 1000 })
    const names = spans(500)
    await flushing(processor)
    expect([seen.arrived, seen.begun, seen.connections.length]).toEqual([names, 100, 1])
  })
})

describe('the time for an export', () => {
  test('is over also for a collector that is asked again and again, and nothing of the batch is sent behind its back', async () => {
    const reports = said()
    const seen = await collector(async ({ body, answer }, number) => {
      await body
      answer(...(number < 3 ? http('503 Busy', 'Retry-After: 3600\r\n') : [TOOK_IT]))
    })
    const { processor, spans } = pipeline(seen.url, { timeoutMillis: 0 }, { exportTimeoutMillis: TIMEOUT })
    spans(5)
    await flushing(processor)
    spans(5)
    await flushing(processor)
    const last = spans(5)
    await flushing(processor)
    expect([seen.begun, seen.arrived.slice(-5)]).toEqual([3, last])
    expect(reports.lines).toEqual([
      `throughline: spans are being lost: no answer from the exporter within ${TIMEOUT} ms`,
      'throughline: spans are exported again; 10 were lost',
    ])
  })
})
