import { fork } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import protobuf from 'protobufjs'
import { expect, onTestFinished, test } from 'vitest'
import { encodeResponse } from '../otlp-definition.ts'

/** At least 100,000, for the queue to run over. */
const SPANS = Number(process.env['THROUGHLINE_SOAK_SPANS'] ?? 1_000_000)
const QUEUE = 16_384
const BATCH = 512

/** Some seconds, unless the machine is busy with other things. */
const SLOW = 120_000

const MB = 2 ** 20
/** What a full queue may weigh, and the batch that is under way: a KiB for each span, twice over. */
const MOST_GROWTH = 32 * MB
/** What may be left when the queue is empty again. */
const MOST_LEFT = 4 * MB
/** What Node keeps from the system when heap and buffers have been larger for a while. */
const MOST_RSS_GROWTH = 96 * MB
/** The loop's p99 delay may be so many times what it is with a collector in good health: only who blocks it is over. */
const MOST_DELAY_FACTOR = 50

/** Nothing but the ids: what else there is, is skipped. */
const IdsOfSpans = protobuf
  .parse(`syntax = "proto3";
message Request { repeated ResourceSpans resource_spans = 1; }
message ResourceSpans { repeated ScopeSpans scope_spans = 2; }
message ScopeSpans { repeated Span spans = 2; }
message Span { bytes span_id = 2; }`)
  .root.lookupType('Request')

type Ids = { resourceSpans: { scopeSpans: { spans: { spanId: Buffer }[] }[] }[] }

function idsIn(body: Buffer): bigint[] {
  const { resourceSpans } = IdsOfSpans.decode(body) as unknown as Ids
  return resourceSpans.flatMap(({ scopeSpans }) =>
    scopeSpans.flatMap(({ spans }) => spans.map(({ spanId }) => spanId.readBigUInt64BE())),
  )
}

interface Waiting {
  ids: bigint[]
  response: ServerResponse
}

/** A collector that answers at once, or when it is told to; and that goes away and comes back. */
async function moody() {
  const events = new EventEmitter()
  const taken: bigint[] = []
  const waiting: Waiting[] = []
  const state = { isSlow: false, rejected: 0, largest: 0, port: 0 }

  function answer({ ids, response }: Waiting, rejectedSpans: number): void {
    taken.push(...ids)
    state.rejected += rejectedSpans
    response.end(
      encodeResponse(rejectedSpans > 0 ? { partialSuccess: { rejectedSpans, errorMessage: 'no' } } : {}),
    )
  }

  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const ids = idsIn(Buffer.concat(chunks))
    state.largest = Math.max(state.largest, ids.length)
    if (!state.isSlow) {
      answer({ ids, response }, 0)
      return
    }
    waiting.push({ ids, response })
    events.emit('waiting')
  })
  server.keepAliveTimeout = 0

  async function open(): Promise<void> {
    server.listen(state.port, '127.0.0.1')
    await once(server, 'listening')
    state.port = (server.address() as AddressInfo).port
  }
  async function close(): Promise<void> {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  }
  await open()
  onTestFinished(() => void (server.listening && close()))

  return {
    taken,
    state,
    open,
    /** Answers what waits, and takes all but one of its spans. */
    relent: () => waiting.splice(0).forEach((each) => answer(each, 1)),
    /**
     * Goes away with a request that it never answers. It comes on the connection of the one before: when it is there, the
     * answer to that one has been read.
     */
    async vanish(): Promise<void> {
      if (waiting.length === 0) await once(events, 'waiting')
      waiting.length = 0
      await close()
    },
  }
}

interface Measure {
  heapUsed: number
  rss: number
  /** The most batches that were sent in one turn of the loop. */
  mostExportsInTurn: number
  /** p99 of the loop's delay in milliseconds. */
  delay: number
}

/** The app as a process of its own: plain Node, the built package. */
function soaked(port: number, onProgress: () => void) {
  const child = fork(fileURLToPath(new URL('soak/app.mjs', import.meta.url)), {
    // In MB. Left to itself, the young generation grows with every burst, and says nothing of what is kept.
    execArgv: ['--max-semi-space-size=4'],
    env: {
      PATH: process.env['PATH'],
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
      OTEL_BSP_MAX_QUEUE_SIZE: String(QUEUE),
    },
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const exit = once(child, 'exit')
  let stderr = ''
  child.stderr?.on('data', (chunk: Buffer) => (stderr += String(chunk)))
  child.on('message', (message: object) => 'progress' in message && onProgress())

  /** What the app says under this name next. */
  function told<T>(name: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const listener = (message: object) => {
        if (!(name in message)) return
        child.off('message', listener)
        resolve((message as Record<string, T>)[name] as T)
      }
      child.on('message', listener)
      void exit.then(() => reject(new Error(`the app is gone: ${stderr}`)))
    })
  }
  return {
    ready: told('ready'),
    makes(count: number, isFlushing: boolean): Promise<Measure> {
      child.send({ count, isFlushing })
      return told('done')
    },
    async end() {
      child.send({ isLast: true })
      const [code] = await exit
      return { code: code as number | null, lines: stderr.trim().split('\n') }
    },
  }
}

test(
  `${SPANS.toLocaleString('en')} spans for a collector that is slow, then gone, then back: memory and latency stay as they were, and each span is accounted for`,
  { timeout: SLOW },
  async () => {
    const collector = await moody()
    const app = soaked(collector.state.port, collector.relent)
    await app.ready
    const tenth = Math.floor(SPANS / 10)

    const warm = await app.makes(tenth, true)
    expect(collector.taken).toHaveLength(tenth)

    collector.state.isSlow = true
    const slow = await app.makes(3 * tenth, false)
    await collector.vanish()

    const unheard = await app.makes(tenth, false)
    // Who flushes is told at once that nobody is there.
    const refused = await app.makes(2 * tenth, true)
    collector.state.isSlow = false
    await collector.open()

    const before = collector.taken.length
    const rest = SPANS - 7 * tenth
    const back = await app.makes(rest, true)
    expect(collector.taken.length - before).toBe(rest)

    const { code, lines } = await app.end()
    expect(code).toBe(0)

    const said = (pattern: RegExp) =>
      lines.reduce((sum, line) => sum + Number(pattern.exec(line)?.[1] ?? 0), 0)
    const dropped = said(/ (\d+) spans? (?:was|were) dropped/)
    const lost = said(/ (\d+) (?:was|were) lost/)
    const rejected = said(/ rejected (\d+) spans?/)
    const { taken, state } = collector
    expect(taken.length + dropped + lost).toBe(SPANS)
    expect(rejected).toBe(state.rejected)
    expect(Math.min(dropped, rejected)).toBeGreaterThan(0)
    expect(lost).toBeGreaterThanOrEqual(2 * tenth)
    // One span or many, and wherever it is sent: that is the same thing.
    const kindOf = (line: string) =>
      line
        .replaceAll(/http\S+/g, 'URL')
        .replaceAll(/\d+/g, 'N')
        .replace(/N spans?/, 'N spans')
        .replace(/ was (?=lost|dropped)/, ' were ')
    // Each thing when it begins and when it ends, whatever the number of batches. A full queue and the collector's first
    // refusal may come in either order, and the minute may come in between.
    const kinds = [...new Set(lines.map((line) => kindOf(line)))]
    const full =
      'throughline: the queue of N spans is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)'
    const counted = 'throughline: N spans were dropped because the queue was full'
    const refusing =
      'throughline: spans are being lost: URL could not be reached: connect ECONNREFUSED N.N.N.N:N'
    const again = 'throughline: spans are exported again; N were lost'
    expect(kinds.toSorted()).toEqual(
      ['throughline: URL rejected N spans: no', full, counted, refusing, again].sort(),
    )
    expect(kinds.indexOf(full)).toBeLessThan(kinds.indexOf(counted))
    expect(kinds.indexOf(refusing)).toBeLessThan(kinds.indexOf(again))
    expect(lines.length).toBeLessThan(12)

    const ids = BigUint64Array.from(taken).sort()
    expect(ids.findIndex((id, index) => index > 0 && id === ids[index - 1])).toBe(-1)

    expect(state.largest).toBe(BATCH)
    for (const phase of [slow, unheard, refused, back]) {
      const isQueueEmpty = phase === refused || phase === back
      expect(phase.heapUsed - warm.heapUsed).toBeLessThan(isQueueEmpty ? MOST_LEFT : MOST_GROWTH)
      expect(phase.rss - warm.rss).toBeLessThan(MOST_RSS_GROWTH)
      expect(phase.delay).toBeLessThan(MOST_DELAY_FACTOR * warm.delay)
    }
    expect([warm, slow, refused, back].map((phase) => phase.mostExportsInTurn)).toEqual([1, 1, 1, 1])
  },
)
