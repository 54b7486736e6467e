import { resourceFromAttributes } from '@opentelemetry/resources'
import * as fc from 'fast-check'
import { EventEmitter, once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import {
  batchProcessor,
  ownExporter,
  type BatchOptions,
  type ExportResult,
  type Handover,
  type Parcel,
  type SpanExporter,
} from '../../packages/core/src/batch.ts'
import { AsyncContextManager, isSuppressed } from '../../packages/core/src/context.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { context } from '@opentelemetry/api'
import { decodeRequest } from '../otlp-definition.ts'
import { engine, finished, said } from './engine.ts'
import { exporterTo } from './exporter.ts'
import { receiver } from './receiver.ts'

const OPTIONS: BatchOptions = {
  scheduledDelayMillis: 2 ** 30,
  exportTimeoutMillis: 30_000,
  maxQueueSize: 10_000,
  maxExportBatchSize: 512,
}

const OK: ExportResult = { code: 0 }

interface Names extends Parcel {
  readonly names: string[]
}

interface Export {
  /** In the order in which they would be sent. */
  names: string[]
  /** How many of them were packed when the batch was handed over. */
  packed: number
  done: (result: ExportResult) => void
}

/** An exporter that packs at most so many spans at once, and answers when the test says so. */
class Packer extends EventEmitter implements SpanExporter {
  readonly [ownExporter] = {
    pack: (spans: readonly ReadableSpan[], later: ReadableSpan[]): Names => this.pack(spans, later),
  }
  readonly parcels: string[][] = []
  readonly exports: Export[] = []
  isQuiet: boolean | undefined
  readonly #most: number

  constructor(most = Infinity) {
    super()
    this.#most = most
  }

  pack(spans: readonly ReadableSpan[], later: ReadableSpan[]): Names {
    this.isQuiet = isSuppressed(context.active())
    later.push(...spans.slice(this.#most))
    const names = spans.slice(0, this.#most).map(({ name }) => name)
    this.parcels.push(names)
    this.emit('pack')
    return { count: names.length, names }
  }

  export(spans: ReadableSpan[], done: Export['done'], _late?: AbortSignal, handover?: Handover): void {
    const before = ((handover?.packed ?? []) as readonly Names[]).flatMap(({ names }) => names)
    this.exports.push({
      names: [...before, ...spans.map(({ name }) => name)],
      packed: before.length,
      done,
    })
    this.emit('export')
  }

  /** The export with this number, now or later. */
  async nth(number: number): Promise<Export> {
    while (this.exports.length < number) await once(this, 'export')
    return this.exports[number - 1] as Export
  }

  shutdown = async (): Promise<void> => {}
}

function setUp(exporter: Packer, options: Partial<BatchOptions> = {}) {
  const processor = batchProcessor(exporter, { ...OPTIONS, ...options })
  const { tracer } = engine({ processors: [processor] })
  let made = 0
  const spans = (count: number) => {
    for (let index = 0; index < count; index += 1) tracer.startSpan(`${(made += 1)}`).end()
  }
  return { exporter, processor, spans }
}

function numbers(from: number, to: number): string[] {
  return Array.from({ length: to - from + 1 }, (_, index) => `${from + index}`)
}

describe('an exporter that can pack', () => {
  test('gets spans long before there is a batch of them, and not in the middle of the request that ended them', async () => {
    const { exporter, spans } = setUp(new Packer())
    spans(63)
    await turn()
    await turn()
    expect(exporter.parcels).toEqual([])
    spans(2)
    expect(exporter.parcels).toEqual([])
    await once(exporter, 'pack')
    expect(exporter.parcels).toEqual([numbers(1, 65)])
    expect(exporter.exports).toEqual([])
  })

  test('gets a batch with what is packed of it in front', async () => {
    const { exporter, spans } = setUp(new Packer(), { maxExportBatchSize: 100 })
    spans(70)
    await once(exporter, 'pack')
    spans(29)
    await turn()
    expect(exporter.exports).toEqual([])
    spans(1)
    expect(await exporter.nth(1)).toMatchObject({ names: numbers(1, 100), packed: 70 })
  })

  test('goes on packing while the collector takes its time', async () => {
    const { exporter, spans } = setUp(new Packer(), { maxExportBatchSize: 64 })
    for (let batch = 0; batch < 3; batch += 1) {
      spans(64)
      await turn()
      await turn()
    }
    expect(exporter.exports).toHaveLength(1)
    expect(exporter.parcels).toContainEqual(numbers(129, 192))
    exporter.exports[0]?.done(OK)
    ;(await exporter.nth(2)).done(OK)
    expect(await exporter.nth(3)).toMatchObject({ names: numbers(129, 192), packed: 64 })
  })

  test('is asked again for what it had no room for, one turn later', async () => {
    const { exporter, spans } = setUp(new Packer(40))
    spans(200)
    await once(exporter, 'pack')
    expect(exporter.parcels).toHaveLength(1)
    await turn()
    await turn()
    await turn()
    await turn()
    expect(exporter.parcels).toEqual([numbers(1, 40), numbers(41, 80), numbers(81, 120), numbers(121, 160)])
  })

  test('is not asked any more for what it has been handed', async () => {
    const { exporter, spans } = setUp(new Packer(1))
    spans(512)
    expect(await exporter.nth(1)).toMatchObject({ names: numbers(1, 512), packed: 1 })
    for (let turns = 0; turns < 3; turns += 1) await turn()
    expect(exporter.parcels).toEqual([['1']])
  })

  test('is asked for a batch of any size, and handed all of it', async () => {
    const exporter = new Packer()
    exporter.pack = (given, later) => {
      for (const span of given.slice(64)) later.push(span)
      return { count: 64, names: given.slice(0, 64).map(({ name }) => name) }
    }
    const most = 300_000
    const processor = batchProcessor(exporter, { ...OPTIONS, maxQueueSize: most, maxExportBatchSize: most })
    const span = finished()
    for (let count = 0; count < most; count += 1) processor.onEnd(span)
    const { names, packed } = await exporter.nth(1)
    expect(packed).toBeGreaterThanOrEqual(64)
    expect(names).toHaveLength(most)
  })

  test('packs where nothing is traced', async () => {
    context.setGlobalContextManager(new AsyncContextManager())
    const { exporter, spans } = setUp(new Packer())
    spans(64)
    await once(exporter, 'pack')
    context.disable()
    expect(exporter.isQuiet).toBe(true)
  })

  test('is one of ours: what others call `pack` is their own, and they get all spans', async () => {
    const got: string[] = []
    const exporter = {
      cutsItself: true,
      packs: 0,
      pack() {
        this.packs += 1
      },
      export(spans: ReadableSpan[], done: Export['done']) {
        got.push(...spans.map(({ name }) => name))
        done(OK)
      },
      shutdown: async () => {},
    }
    const processor = batchProcessor(exporter, OPTIONS)
    const { tracer } = engine({ processors: [processor] })
    for (const name of numbers(1, 100)) tracer.startSpan(name).end()
    // By then ours would have packed.
    await turn()
    await turn()
    await processor.forceFlush()
    expect([got, exporter.packs]).toEqual([numbers(1, 100), 0])
  })

  test('is not asked while a detector of the resource is at work', async () => {
    const exporter = new Packer()
    const processor = batchProcessor(exporter, { ...OPTIONS, maxExportBatchSize: 100 })
    let answer = (_zone: string) => {}
    const resource = resourceFromAttributes({ zone: new Promise<string>((resolve) => (answer = resolve)) })
    const { tracer } = engine({ processors: [processor], resource })
    for (let index = 0; index < 100; index += 1) tracer.startSpan('work').end()
    await turn()
    await turn()
    await turn()
    expect([exporter.parcels, exporter.exports]).toEqual([[], []])
    answer('eu-1')
    expect(await exporter.nth(1)).toMatchObject({ packed: 0, names: { length: 100 } })
  })

  test('packs nothing while one of several resources is not known', async () => {
    const exporter = new Packer()
    const processor = batchProcessor(exporter, OPTIONS)
    const pending = { attributes: {}, asyncAttributesPending: true, waitForAsyncAttributes: async () => {} }
    const known = engine({ processors: [processor] })
    const unknown = engine({ processors: [processor], resource: pending })
    for (const { tracer } of [known, unknown, known])
      for (let index = 0; index < 32; index += 1) tracer.startSpan('work').end()
    for (let turns = 0; turns < 3; turns += 1) await turn()
    expect(exporter.parcels).toEqual([])
  })

  test('goes on packing where another’s processor has handed on a span that cannot be read', async () => {
    const exporter = new Packer()
    const processor = batchProcessor(exporter, OPTIONS)
    const { tracer } = engine({ processors: [processor] })
    processor.onEnd({ name: 'foreign', spanContext: () => ({ traceFlags: 1 }) } as unknown as ReadableSpan)
    for (let index = 1; index < 512; index += 1) tracer.startSpan('work').end()
    for (let index = 0; index < 64; index += 1) tracer.startSpan('work').end()
    await once(exporter, 'pack')
    expect(exporter.parcels).toEqual([Array.from({ length: 64 }, () => 'work')])
  })

  test('counts no span among those packed that has ended while they were', async () => {
    const packer = new Packer(60)
    const { exporter, processor, spans } = setUp(packer)
    const { pack } = packer
    packer.pack = (given, later) => {
      packer.pack = pack
      spans(3)
      return pack.call(packer, given, later)
    }
    spans(64)
    await once(exporter, 'pack')
    const flushed = processor.forceFlush()
    const exported = await exporter.nth(1)
    expect(exported).toMatchObject({ names: numbers(1, 67), packed: 60 })
    exported.done(OK)
    await flushed
  })

  test('has each span once, whatever comes in whatever order', async () => {
    const step = fc.oneof(
      fc.record({ make: fc.integer({ min: 1, max: 150 }) }),
      fc.constant('answer' as const),
      fc.constant('flush' as const),
      fc.constant('turn' as const),
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 30 }),
        fc.integer({ min: 1, max: 80 }),
        async (steps, most) => {
          const { exporter, processor, spans } = setUp(new Packer(most), { maxExportBatchSize: 100 })
          let made = 0
          let answered = 0
          const answer = () => {
            if (answered < exporter.exports.length) exporter.exports[answered++]?.done(OK)
          }
          for (const each of steps) {
            if (each === 'turn') await turn()
            else if (each === 'answer') answer()
            else if (each === 'flush') void processor.forceFlush().catch(() => {})
            else {
              spans(each.make)
              made += each.make
            }
          }
          const end = { isReached: false }
          void processor.shutdown().then(() => (end.isReached = true))
          while (!end.isReached) {
            await turn()
            answer()
          }
          expect(exporter.exports.flatMap(({ names }) => names)).toEqual(numbers(1, made))
          expect(Math.max(0, ...exporter.exports.map(({ names }) => names.length))).toBeLessThanOrEqual(100)
        },
      ),
      { numRuns: 150 },
    )
  })
})

describe('what was packed for OTLP', () => {
  async function collected(options: Partial<BatchOptions> = {}) {
    const collector = await receiver()
    const exporter = exporterTo(collector.url)
    const processor = batchProcessor(exporter, { ...OPTIONS, ...options })
    const { provider } = engine({ processors: [processor] })
    const bodies = () => collector.requests.map(({ body }) => decodeRequest(body))
    return { processor, provider, bodies }
  }

  test('is one request of one resource, with each scope once, and every span as it was made', async () => {
    const { processor, provider, bodies } = await collected()
    const scopes = ['a', 'b'].map((name) => provider.getTracer(name))
    for (let index = 0; index < 300; index += 1) {
      const attributes = { 'span.number': index, 'span.text': 'the same in all' }
      scopes[index % 2]?.startSpan(`span ${index}`, { attributes }).end()
      // As requests come: packing has the time that it needs.
      if (index % 30 === 0) await turn()
    }
    await processor.forceFlush()

    const [body, ...others] = bodies()
    expect(others).toEqual([])
    expect(body?.resourceSpans).toHaveLength(1)
    const scopeSpans = body?.resourceSpans?.[0]?.scopeSpans ?? []
    expect(scopeSpans.map(({ scope }) => scope?.name)).toEqual(['a', 'b'])
    const told = scopeSpans
      .flatMap(({ spans = [] }) => spans)
      .map(({ name, attributes }) => ({ name, attributes }))
    expect(told).toHaveLength(300)
    expect(told).toEqual(
      [0, 1].flatMap((first) =>
        Array.from({ length: 150 }, (_, index) => ({
          name: `span ${2 * index + first}`,
          attributes: [
            { key: 'span.number', value: { intValue: expect.anything() } },
            { key: 'span.text', value: { stringValue: 'the same in all' } },
          ],
        })),
      ),
    )
  })

  test.each<[string, PropertyDescriptor]>([
    ['none', { value: undefined }],
    ['one that throws when it is read', { get: () => JSON.parse('no resource') as never }],
  ])('loses of a batch the span alone whose resource is %s', async (_, resource) => {
    const reports = said()
    const { processor, provider, bodies } = await collected()
    const tracer = provider.getTracer('a')
    for (let index = 0; index < 70; index += 1) tracer.startSpan(`span ${index}`).end()
    await turn()
    await turn()
    processor.onEnd(Object.create(finished(), { resource }) as ReadableSpan)
    tracer.startSpan('the last').end()
    await processor.shutdown()
    const spans = bodies().flatMap(({ resourceSpans = [] }) =>
      resourceSpans.flatMap(({ scopeSpans = [] }) => scopeSpans.flatMap((scope) => scope.spans ?? [])),
    )
    expect(spans).toHaveLength(71)
    expect(reports.lines).toEqual([
      expect.stringMatching(/could not be encoded and (?:is|are) left out/),
      expect.stringContaining('1 span was lost'),
    ])
  })

  test('is counted as lost where it could not be encoded', async () => {
    const reports = said()
    const { processor, provider, bodies } = await collected()
    const tracer = provider.getTracer('a')
    for (let index = 0; index < 100; index += 1) {
      const span = tracer.startSpan(`span ${index}`)
      if (index % 50 === 0) {
        Object.defineProperty(span, 'name', {
          get() {
            throw new Error('no')
          },
        })
      }
      span.end()
      await turn()
    }
    await processor.shutdown()
    const spans = bodies().flatMap(({ resourceSpans = [] }) =>
      resourceSpans.flatMap(({ scopeSpans = [] }) => scopeSpans.flatMap((scope) => scope.spans ?? [])),
    )
    expect(spans).toHaveLength(98)
    expect(reports.lines).toEqual([
      expect.stringContaining('a span could not be encoded'),
      expect.stringContaining('2 spans were lost'),
    ])
  })
})
