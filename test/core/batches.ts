import { EventEmitter, once } from 'node:events'
import {
  batchProcessor,
  type BatchOptions,
  type ExportResult,
  type Handover,
  type SpanExporter,
} from '../../packages/core/src/batch.ts'
import type { Sampler } from '../../packages/core/src/sampling.ts'
import type { ReadableSpan } from '../../packages/core/src/span.ts'
import { engine } from './engine.ts'

const OPTIONS: BatchOptions = {
  scheduledDelayMillis: 5000,
  exportTimeoutMillis: 30_000,
  maxQueueSize: 100,
  maxExportBatchSize: 10,
}

/** A delay that no test waits for. */
export const NEVER = { scheduledDelayMillis: 2 ** 30 }

export const OK: ExportResult = { code: 0 }

/** A batch at the exporter. */
export interface Export {
  spans: ReadableSpan[]
  done: (result: ExportResult) => void
  late?: AbortSignal | undefined
  handover?: Handover | undefined
}

/** An exporter that answers when the test says so. */
export class Slow extends EventEmitter implements SpanExporter {
  readonly exports: Export[] = []
  underWay = 0
  mostAtOnce = 0
  flushes = 0
  stops = 0

  export(spans: ReadableSpan[], done: Export['done'], late?: AbortSignal, handover?: Handover): void {
    this.underWay += 1
    this.mostAtOnce = Math.max(this.mostAtOnce, this.underWay)
    let isOpen = true
    const end = () => {
      if (isOpen) this.underWay -= 1
      isOpen = false
    }
    late?.addEventListener('abort', end)
    const answer = (result: ExportResult) => {
      end()
      done(result)
    }
    this.exports.push({ spans, done: answer, late, handover })
    this.emit('export')
  }

  /** The export with this number, now or later. */
  async nth(number: number): Promise<Export> {
    while (this.exports.length < number) await once(this, 'export')
    return this.exports[number - 1] as Export
  }

  forceFlush = async (): Promise<void> => void (this.flushes += 1)
  shutdown = async (): Promise<void> => void (this.stops += 1)
}

/** An exporter that answers at once. */
export function quick(
  result: ExportResult = { code: 0 },
): SpanExporter & { sizes: number[]; names: string[] } {
  const sizes: number[] = []
  const names: string[] = []
  return {
    sizes,
    names,
    export(spans, done) {
      sizes.push(spans.length)
      names.push(...spans.map(({ name }) => name))
      done(result)
    },
    shutdown: async () => {},
  }
}

/** A queue in front of this exporter, and what makes spans for it: their names are their numbers. */
export function setUp<E extends SpanExporter>(
  exporter: E,
  options: Partial<BatchOptions> = {},
  sampler?: Sampler,
) {
  const processor = batchProcessor(exporter, { ...OPTIONS, ...options })
  const { tracer } = engine({ processors: [processor], ...(sampler && { sampler }) })
  let made = 0
  const spans = (count: number) => {
    for (let index = 0; index < count; index += 1) tracer.startSpan(`${(made += 1)}`).end()
  }
  return { exporter, processor, spans, tracer }
}
