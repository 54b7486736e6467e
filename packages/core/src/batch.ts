import { context } from '@opentelemetry/api'
import { root, suppressTracing } from './context.ts'
import { reportOnce, report } from './report.ts'
import { isSampled, type ReadableSpan, type SpanProcessor } from './span.ts'

/** What an exporter says of one batch: code 0 for success, 1 for failure. The official SDK's ExportResult. */
export interface ExportResult {
  code: 0 | 1
  error?: Error
}

/** Takes finished spans out of the process; the shape of the official SDK's SpanExporter. */
export interface SpanExporter {
  export(spans: ReadableSpan[], done: (result: ExportResult) => void): void
  shutdown(): Promise<void>
  forceFlush?(): Promise<void>
}

/** Milliseconds and counts, as the OTEL_BSP_* variables name them. */
export interface BatchOptions {
  scheduledDelayMillis: number
  exportTimeoutMillis: number
  maxQueueSize: number
  maxExportBatchSize: number
}

interface Waiter {
  until: number
  resolve: () => void
}

// What an exporter does is not traced, whoever wrote it, and holds on to nobody's request.
const quiet = suppressTracing(root)

// While spans are lost because the queue is full, the count is said this often.
const LOSS_REPORT_INTERVAL_MS = 60_000

/**
 * A bounded queue in front of an exporter. Batches leave one at a time: when one is full, when the delay has passed since
 * the first span came, or when somebody flushes. What finds the queue full is dropped, counted and said
 * (OpenTelemetry trace SDK, batching processor). The exporter runs where nothing is traced.
 */
export function batchProcessor(exporter: SpanExporter, options: BatchOptions): SpanProcessor {
  const { scheduledDelayMillis, exportTimeoutMillis, maxQueueSize } = options
  const batchSize = Math.min(options.maxExportBatchSize, maxQueueSize)

  let queue: ReadableSpan[] = []
  let timer: NodeJS.Timeout | undefined
  let isExporting = false
  let isStopped = false
  let accepted = 0
  let settled = 0
  let flushUntil = 0
  let waiters: Waiter[] = []
  let dropped = 0
  let lost = 0
  let isSilent = false
  let lossTimer: NodeJS.Timeout | undefined

  function onEnd(span: ReadableSpan): void {
    if (isStopped || !isSampled(span)) return
    if (queue.length >= maxQueueSize) {
      drop()
      return
    }
    accepted += 1
    queue.push(span)
    if (queue.length >= batchSize) exportNext()
    else schedule()
  }

  function schedule(): void {
    timer ??= context.with(quiet, setTimeout, undefined, due, scheduledDelayMillis).unref()
  }

  function due(): void {
    timer = undefined
    flushUntil = accepted
    exportNext()
  }

  // Full batches leave at once; a part of one leaves only when the delay or a flush asks for what it holds.
  function exportNext(): void {
    if (isExporting || queue.length === 0) return
    if (queue.length < batchSize && settled >= flushUntil) {
      schedule()
      return
    }
    clearTimeout(timer)
    timer = undefined
    isExporting = true
    const batch = queue.slice(0, batchSize)
    queue = queue.slice(batchSize)
    void exportWithin(batch).then(() => {
      isExporting = false
      settled += batch.length
      const done = waiters.filter((waiter) => waiter.until <= settled)
      waiters = waiters.filter((waiter) => waiter.until > settled)
      for (const waiter of done) waiter.resolve()
      exportNext()
    })
  }

  // Never rejects: an exporter that throws, fails or does not answer costs its batch and nothing else.
  async function exportWithin(batch: ReadableSpan[]): Promise<void> {
    let deadline: NodeJS.Timeout | undefined
    const result = await new Promise<ExportResult>((resolve) => {
      if (exportTimeoutMillis > 0) {
        const late = new Error(`no answer from the exporter within ${exportTimeoutMillis} ms`)
        deadline = setTimeout(resolve, exportTimeoutMillis, { code: 1, error: late }).unref()
      }
      // A burst is handed over in a turn of its own, not in the middle of the request that filled the batch.
      setImmediate(() => {
        context.with(quiet, handOver, undefined, batch).then(resolve, (error: unknown) => {
          resolve({ code: 1, error: error instanceof Error ? error : new Error(String(error)) })
        })
      })
    })
    clearTimeout(deadline)
    tally(result, batch.length)
  }

  async function handOver(batch: ReadableSpan[]): Promise<ExportResult> {
    for (const { resource } of batch) {
      if (resource.asyncAttributesPending === true) await resource.waitForAsyncAttributes?.()
    }
    return new Promise((resolve) => exporter.export(batch, resolve))
  }

  // A collector that is down is said when it goes and when it comes back, not once per batch.
  function tally({ code, error }: ExportResult, count: number): void {
    if (code !== 0) {
      if (lost === 0 && !isAnnounced(error)) {
        report('warn', `spans are being lost: ${error?.message ?? 'the exporter failed and did not say why'}`)
      }
      lost += count
      isSilent = isAnnounced(error)
    } else if (lost > 0) {
      report('info', `spans are exported again; ${lost} were lost`)
      lost = 0
    }
  }

  function drop(): void {
    dropped += 1
    reportOnce(
      'queue full',
      'warn',
      `the queue of ${maxQueueSize} spans is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)`,
    )
    lossTimer ??= setTimeout(sayLoss, LOSS_REPORT_INTERVAL_MS).unref()
  }

  function sayLoss(): void {
    clearTimeout(lossTimer)
    lossTimer = undefined
    if (dropped > 0) report('warn', `${dropped} spans were dropped because the queue was full`)
    dropped = 0
  }

  async function forceFlush(): Promise<void> {
    if (settled < accepted) {
      await new Promise<void>((resolve) => {
        flushUntil = accepted
        waiters.push({ until: accepted, resolve })
        exportNext()
      })
    }
    await context.with(quiet, async () => exporter.forceFlush?.())
  }

  let stopping: Promise<void> | undefined
  async function stop(): Promise<void> {
    const flushed = forceFlush()
    isStopped = true
    try {
      await flushed
    } finally {
      clearTimeout(timer)
      sayLoss()
      if (lost > 0 && !isSilent) report('warn', `${lost} spans were lost because they could not be exported`)
      await context.with(quiet, async () => exporter.shutdown())
    }
  }

  return {
    onStart() {},
    onEnd,
    forceFlush,
    shutdown: () => (stopping ??= stop()),
  }
}

/** An error that the exporter has said itself, to the end: nothing is added to it. */
export function announced(message: string, cause?: unknown): Error {
  return Object.assign(new Error(message, { cause }), { announced: true })
}

function isAnnounced(error: Error | undefined): boolean {
  return error !== undefined && 'announced' in error
}
