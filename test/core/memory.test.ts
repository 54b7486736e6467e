import { once } from 'node:events'
import { createServer, Socket, type AddressInfo } from 'node:net'
import { expect, onTestFinished, test, vi } from 'vitest'
import { ownExporter, type ExportResult, type Packing } from '../../packages/core/src/batch.ts'
import { borrow, giveBack } from '../../packages/core/src/otlp/memory.ts'
import type { OtlpExporter } from '../../packages/core/src/otlp/send.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { finished } from './engine.ts'
import { exporterTo } from './exporter.ts'
import { receiver } from './receiver.ts'

const KIB = 1024

test('memory that was given back is lent again, to whoever wants about as much', () => {
  const first = borrow(20 * KIB)
  const second = borrow(20 * KIB)
  expect(second.buffer).not.toBe(first.buffer)
  giveBack(first)
  const third = borrow(30 * KIB)
  expect(third.buffer).toBe(first.buffer)
  expect(third).toHaveLength(30 * KIB)
  giveBack(second)
  expect(borrow(40 * KIB).buffer).not.toBe(second.buffer)
})

test('memory that is given back twice is not lent to two', () => {
  const twice = borrow(100 * KIB)
  giveBack(twice)
  giveBack(twice)
  expect(borrow(100 * KIB).buffer).not.toBe(borrow(100 * KIB).buffer)
})

test('memory of others is never lent', () => {
  const theirs = Buffer.alloc(64 * KIB)
  giveBack(theirs)
  const lent = Array.from({ length: 20 }, () => borrow(64 * KIB).buffer)
  expect(lent).not.toContain(theirs.buffer)
})

test('after a rush no more than a mebibyte is kept', () => {
  const rush = Array.from({ length: 40 }, () => borrow(64 * KIB))
  const buffers = new Set(rush.map(({ buffer }) => buffer))
  for (const bytes of rush) giveBack(bytes)
  const again = Array.from({ length: 40 }, () => borrow(64 * KIB))
  const kept = again.filter(({ buffer }) => buffers.has(buffer))
  expect(kept.length).toBeGreaterThan(0)
  expect(kept.length).toBeLessThanOrEqual(16)
})

test.each([0, 1, 4 * KIB, 4 * KIB + 1, KIB * KIB, KIB * KIB + 1])('%i bytes can be borrowed', (size) => {
  expect(borrow(size)).toHaveLength(size)
})

const BATCH = 512

function batchNamed(name: string) {
  return Array.from({ length: BATCH }, () => finished(name))
}

function send(exporter: OtlpExporter, name: string): Promise<ExportResult> {
  return new Promise((resolve) => exporter.export(batchNamed(name), resolve))
}

type Chunks = { chunk: Uint8Array }[]
type Write = (chunks: Chunks, done?: (error?: Error) => void) => void

/** Hands what sockets are to write together to `watch`; returns what undoes that. */
function watchWrites(watch: (chunks: Chunks, write: Write) => void): () => void {
  const prototype = Socket.prototype as unknown as {
    _writev: (this: Socket, chunks: Chunks, done: (error?: Error) => void) => void
  }
  const original = prototype._writev
  prototype._writev = function (given, written) {
    watch(given, (chunks, done = written) => original.call(this, chunks, done))
  }
  return () => {
    prototype._writev = original
  }
}

test('batches that follow one another are sent from the same memory, whatever they are', async () => {
  const { url, spans } = await receiver()
  const exporter = exporterTo(url)
  const used = new Set<ArrayBufferLike>()
  onTestFinished(
    watchWrites((chunks, write) => {
      for (const { chunk } of chunks) if (chunk.length > 16 * KIB) used.add(chunk.buffer)
      write(chunks)
    }),
  )
  const names = ['one', 'three', 'six', 'seven', 'a name that is longer', 'ten']
  for (const name of names) await send(exporter, name)
  // Where what is packed takes about as much as the whole, the two change places.
  expect(used.size).toBeLessThanOrEqual(3)
  expect(new Set(spans().map(({ name }) => name))).toEqual(new Set(names))
})

test.each(['at once', 'in parcels'])('what was packed %s is given back when it is sent', async (how) => {
  const { url, spans } = await receiver()
  const exporter = exporterTo(url)
  const { pack } = exporter[ownExporter] as Required<Packing>
  async function sendBatch(): Promise<void> {
    const batch = batchNamed('work')
    const parcels = how === 'in parcels' ? Array.from({ length: 8 }, () => pack(batch.splice(-64), [])) : []
    await new Promise<ExportResult>((resolve) =>
      exporter.export(batch, resolve, undefined, { packed: parcels, delivered: 0 }),
    )
  }
  await sendBatch()
  const allocated = vi.spyOn(Buffer, 'allocUnsafeSlow')
  onTestFinished(() => allocated.mockRestore())
  for (let times = 0; times < 5; times += 1) await sendBatch()
  expect(allocated).not.toHaveBeenCalled()
  expect(spans()).toHaveLength(6 * BATCH)
})

/**
 * A line that takes no large writes before it is told to, as one does whose send buffer is full: of what is written
 * together, the head goes, and the body waits.
 */
function slowLine(): { clear(): void } {
  const waiting: (() => void)[] = []
  onTestFinished(
    watchWrites((chunks, write) => {
      const large = chunks.findIndex(({ chunk }) => chunk.length > 16 * KIB)
      if (large <= 0) {
        write(chunks)
        return
      }
      write(chunks.slice(0, large), () => {})
      waiting.push(() => write(chunks.slice(large)))
    }),
  )
  return { clear: () => waiting.splice(0).forEach((go) => go()) }
}

test('a body that is still on its way when the answer comes arrives as it was', async () => {
  const received: Buffer[] = []
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      received.push(chunk)
      // At once, and again for whatever comes: some collectors answer by the head.
      if (received.length === 1) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  const line = slowLine()
  const exporter = exporterTo(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  onTestFinished(() => exporter.shutdown())

  expect(await send(exporter, 'first')).toEqual({ code: 0 })
  // Is encoded now, and waits for the connection.
  void send(exporter, 'other')
  line.clear()
  const whole = () => Buffer.concat(received)
  const head = () => whole().indexOf('\r\n\r\n') + 4
  const length = () => Number(/content-length: (\d+)/i.exec(whole().toString('latin1'))?.[1])
  await vi.waitUntil(() => head() > 3 && whole().length >= head() + length())
  const { resourceSpans = [] } = decodeRequest(whole().subarray(head(), head() + length()))
  const names = resourceSpans.flatMap(({ scopeSpans = [] }) =>
    scopeSpans.flatMap(({ spans = [] }) => spans.map(({ name }) => name)),
  )
  expect(names).toEqual(Array.from({ length: BATCH }, () => 'first'))
})
