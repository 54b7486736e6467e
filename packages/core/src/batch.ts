import { context, type Attributes } from '@opentelemetry/api'
import { AsyncResource } from 'node:async_hooks'
import { clearTimeout, setTimeout } from 'node:timers'
import { setImmediate as turn } from 'node:timers/promises'
import { DEPTH_LIMIT, VALUES_LIMIT } from './attribute.ts'
import { root, suppressTracing } from './context.ts'
import { MOST_TIMER_MS } from './environment.ts'
import { isPromise, messageOf } from './exception.ts'
import { report, reportOnce, shownName, spansOf, spansWere } from './report.ts'
import type { Resource } from './resource.ts'
import { ignoreStart, isOurs, isSampled, type ReadableSpan, type SpanProcessor } from './span.ts'

/** An exporter's result for one batch: code 0 for success, 1 for failure. The official SDK's ExportResult. */
export interface ExportResult {
  code: 0 | 1
  error?: Error
  /** How many spans of the batch were not sent; by default none on success, all on failure. */
  lost?: number
  /** Of a failure: what was lost was refused for what it holds, and the rest of the batch was taken. */
  isRefused?: boolean
}

/** Spans in the form in which they will leave the process. */
export interface Parcel {
  /** How many spans. */
  readonly count: number
}

/** Passed back and forth with a batch, beside its spans. */
export interface Handover {
  /** What the exporter has already packed of the batch; it goes before the spans. */
  readonly packed: readonly Parcel[]
  /** How many spans the other end has accepted. The exporter updates it as it goes, since its time may be over any moment. */
  delivered: number
}

/** Takes finished spans out of the process; the shape of the official SDK's SpanExporter. */
export interface SpanExporter {
  /**
   * `late` is aborted when the time for this batch is over: it then counts as lost and must not be sent any more. `handover` is
   * for an exporter of ours.
   */
  export(
    spans: ReadableSpan[],
    done: (result: ExportResult) => void,
    late?: AbortSignal,
    handover?: Handover,
  ): void
  shutdown(): Promise<void>
  forceFlush?(): Promise<void>
  readonly [ownExporter]?: Packing
}

/** Key for what only our exporters have: others may have methods of any name. */
export const ownExporter = Symbol('Throughline exporter')

/** Methods of an exporter that sends a heavy batch in parts by itself. */
export interface Packing {
  /** Packs spans before it is time to send them; those that it has no room for are added to `later`. Never throws. */
  pack?(spans: readonly ReadableSpan[], later: ReadableSpan[]): Parcel
}

/** A queue in front of an exporter. */
export interface BatchProcessor extends SpanProcessor {
  /** Gives up on all spans that have ended: what has not left by now is lost. Resolves soon, whatever the exporter does. */
  giveUp(): Promise<void>
  /** For a minute, what ends leaves as it ends: the process may be about to exit. */
  hasten(): void
  /** Reports how many were lost and dropped, without waiting for the minute to pass. */
  sayLosses(): void
  /** The process ends now: reports what has not left as lost. */
  abandon(): void
}

/** Milliseconds and counts, as the OTEL_BSP_* variables name them. */
export interface BatchOptions {
  scheduledDelayMillis: number
  exportTimeoutMillis: number
  maxQueueSize: number
  maxExportBatchSize: number
}

/** Spans that go together. */
interface Batch {
  /** What is packed already, and what is not. */
  readonly packed: Parcel[]
  spans: ReadableSpan[]
  /** Both together. */
  count: number
}

type Pack = NonNullable<Packing['pack']>

/** Somebody who flushes. */
interface Waiter {
  /** The count of spans taken from the queue at which all that is waited for has left. */
  readonly until: number
  /** How many of those were lost; at most, if a batch was lost together with later spans. */
  lost: number
  cause: unknown
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

/**
 * For an exporter that is not ours a batch is cut where its spans weigh more than this: about what is encoded in a
 * millisecond, which nobody's request feels, and twice what 512 ordinary spans weigh. A span that weighs more goes alone.
 */
const BATCH_WEIGHT = 512 * 1024

/**
 * Spans are packed in groups of 64 where the exporter can: the garbage collector does not scan bytes. With 512 waiting spans V8
 * grew its young space to its maximum, 40 MB.
 */
const SPANS_PACKED_AT_ONCE = 64

/** Who flushes waits no longer than this many exports may take: the one that is under way, and one more. */
const EXPORTS_PER_FLUSH = 2

/** How long an app may take to finish its work after a signal: the longest that process managers commonly wait. */
const DRAIN_MS = 60_000

/** While spans are being lost, their number is reported at most this often. */
const LOSS_PERIOD_MS = 60_000

const GIVEN_UP: ExportResult = { code: 1, error: new Error('the time to send the spans is over') }

const quiet = suppressTracing(root)
const outside = new AsyncResource('Throughline')
// `jest --detectOpenHandles` takes each that is not for what keeps the process alive.
outside.emitDestroy()

/** Runs an exporter's work untraced, and outside of any request: it must not keep a request's context alive. */
function untraced<Result>(work: () => Result): Result {
  return outside.runInAsyncScope(() => context.with(quiet, work))
}

/**
 * A bounded queue in front of an exporter. Batches leave one at a time, each in a turn of the loop of its own: when one is
 * full, when the delay has passed since the first span came, or when somebody flushes. A span that finds the queue full is
 * dropped (OpenTelemetry trace SDK, batching processor).
 *
 * Each queued span is exported or lost, never both: a batch is handed over once, and counts as lost if the exporter does not
 * answer in time. Dropped and lost spans are counted and reported: when it begins, then once a minute, and the rest at the end.
 */
export function batchProcessor(exporter: SpanExporter, options: BatchOptions): BatchProcessor {
  const { scheduledDelayMillis, exportTimeoutMillis, maxQueueSize } = options
  const own = exporter[ownExporter]
  const pack = own?.pack?.bind(own)
  const batchSize = Math.min(options.maxExportBatchSize, maxQueueSize)

  // The queue in pieces, so that taking one costs the same however many are behind it: those that are due, oldest
  // first, and the one that is being filled.
  const due: Batch[] = []
  let filling = emptyBatch()
  let queued = 0
  // How many spans have ever left the queue, and for how many the outcome is known.
  let taken = 0
  let settled = 0
  let flushUntil = 0
  // Up to this count of spans taken from the queue, nobody waits any more.
  let givenUp = 0
  const underWay = new Set<AbortController>()
  let waiters: Waiter[] = []
  // Runs while something is being filled.
  let timer: NodeJS.Timeout | undefined
  let isHastened = false
  let draining: NodeJS.Timeout | undefined
  let isExporting = false
  // Of the batch that is with the exporter.
  let handover: Handover | undefined
  let stopping: Promise<void> | undefined

  // Once per span: this is what the app pays while it serves.
  function onEnd(span: ReadableSpan): void {
    if (!isSampled(span)) return
    if (stopping !== undefined || queued >= maxQueueSize) {
      refuse(span)
      return
    }
    queued += 1
    filling.count += 1
    const { spans } = filling
    // By index: `push` onto an array V8 has seen empty is a call, 0.1 µs.
    spans[spans.length] = span
    if (spans.length === SPANS_PACKED_AT_ONCE && pack !== undefined) packSoon(filling)
    if (filling.count >= batchSize) {
      due.push(takeFilling())
      exportWhatIsDue()
    } else if (timer === undefined) {
      schedule()
    }
  }

  function refuse(span: ReadableSpan): void {
    if (stopping === undefined) drop()
    else {
      const name = shownName(span.name)
      reportOnce('ended late', 'warn', `a span ended after shutdown() and is not exported: "${name}"`)
    }
  }

  const toPack: Batch[] = []
  let isPacking = false

  function packSoon(batch: Batch): void {
    if (toPack.at(-1) !== batch) toPack.push(batch)
    if (isPacking) return
    isPacking = true
    void untraced(packBatches)
  }

  // Like exporting: not in the middle of a request, and not two batches in a row.
  async function packBatches(): Promise<void> {
    for (;;) {
      await turn()
      const batch = toPack[0]
      if (batch === undefined) break
      if (!canPack(batch)) {
        toPack.shift()
        continue
      }
      const { spans } = batch
      batch.spans = []
      const later: ReadableSpan[] = []
      batch.packed.push((pack as Pack)(spans, later))
      // Before those that have ended meanwhile.
      if (later.length > 0) batch.spans = later.concat(batch.spans)
      if (batch.spans.length < SPANS_PACKED_AT_ONCE) toPack.shift()
    }
    isPacking = false
  }

  function schedule(): void {
    if (isHastened) flushQueue()
    else timer = untraced(() => setTimeout(flushQueue, scheduledDelayMillis).unref())
  }

  function hasten(): void {
    isHastened = true
    clearTimeout(draining)
    draining = untraced(() => setTimeout(() => (isHastened = false), DRAIN_MS).unref())
  }

  function flushQueue(): void {
    flushUntil = taken + queued
    exportWhatIsDue()
  }

  // Full batches leave at once; a part of one leaves only when the delay or a flush asks for what it holds.
  function isSomethingDue(): boolean {
    return due.length > 0 || (filling.count > 0 && taken < flushUntil)
  }

  function exportWhatIsDue(): void {
    if (isExporting || !isSomethingDue()) return
    isExporting = true
    void untraced(exportBatches)
  }

  // Never rejects: nothing that an exporter does ends the exporting.
  async function exportBatches(): Promise<void> {
    while (isSomethingDue()) {
      // Not in the middle of the request that filled the batch, and not two batches in a row. An app that exits when its
      // last connection is closed exits before the next turn.
      if (!isHastened) await turn()
      const batch = take()
      const result = taken <= givenUp ? GIVEN_UP : await resultOf(batch)
      tally(result, batch.count, taken <= givenUp)
      const lostNow = lostOf(result, batch)
      if (lostNow > 0) {
        for (const waiter of waiters) {
          waiter.lost += Math.min(lostNow, waiter.until - settled)
          waiter.cause ??= result?.error
        }
      }
      settled += batch.count
      const done = waiters.filter((waiter) => waiter.until <= settled)
      waiters = waiters.filter((waiter) => waiter.until > settled)
      for (const waiter of done) tell(waiter)
    }
    isExporting = false
  }

  function takeFilling(): Batch {
    clearTimeout(timer)
    timer = undefined
    const batch = filling
    filling = emptyBatch()
    return batch
  }

  function take(): Batch {
    const batch = due.shift() ?? takeFilling()
    const place = toPack.indexOf(batch)
    if (place !== -1) toPack.splice(place, 1)
    if (own === undefined) {
      const rest = batch.spans.splice(countOfLight(batch.spans, BATCH_WEIGHT))
      batch.count -= rest.length
      if (rest.length > 0) due.unshift({ packed: [], spans: rest, count: rest.length })
    }
    queued -= batch.count
    taken += batch.count
    return batch
  }

  async function resultOf({ spans, packed, count }: Batch): Promise<ExportResult> {
    const parts = (handover = { packed, delivered: 0 })
    try {
      return await inTime((late) => handOver(spans, parts, late))
    } catch (reason) {
      const error = reason instanceof Error ? reason : new Error(messageOf(reason))
      return { code: 1, error, lost: count - parts.delivered }
    } finally {
      handover = undefined
    }
  }

  async function handOver(spans: ReadableSpan[], parts: Handover, late: AbortSignal): Promise<ExportResult> {
    try {
      for (const resource of resourcesOf(spans)) {
        // The rest of a resource is worth sending even if its detector fails.
        if (resource.asyncAttributesPending === true)
          await resource.waitForAsyncAttributes?.().catch(() => {})
      }
    } catch {
      // A foreign processor has passed on an unreadable span: the encoder leaves it out and reports it.
    }
    late.throwIfAborted()
    return new Promise((resolve, reject) => {
      const result: unknown = exporter.export(spans, resolve, late, parts)
      // Foreign exporters may have an async `export`.
      if (isPromise(result)) result.catch(reject)
    })
  }

  /** Rejects when the exporter takes too long; its later answer is ignored. */
  async function inTime<T>(work: (late: AbortSignal) => Promise<T>): Promise<T> {
    const overtime = new AbortController()
    const { signal } = overtime
    underWay.add(overtime)
    let deadline: NodeJS.Timeout | undefined
    const overdue = new Promise<never>((_resolve, reject) => {
      // Added before the exporter's own listener, so that the exporter's answer does not come first.
      signal.addEventListener('abort', () => reject(signal.reason as Error))
      if (exportTimeoutMillis === 0) return
      deadline = setTimeout(() => {
        overtime.abort(new Error(`no answer from the exporter within ${exportTimeoutMillis} ms`))
      }, exportTimeoutMillis).unref()
    })
    try {
      return await Promise.race([work(signal), overdue])
    } finally {
      underWay.delete(overtime)
      clearTimeout(deadline)
    }
  }

  let lost = 0
  let isLossSaid = false
  let isLeftToExporter = false
  const failures = lossPeriod(() => {
    if (!isLossSaid) sayLost()
  })

  // A collector that is down is said when it goes and when it comes back, not once per batch; one that comes and goes,
  // once per period.
  function tally(result: ExportResult | undefined, count: number, isGivenUp: boolean): void {
    if (result?.code === 0 || result?.isRefused === true) {
      if (lost > 0 && (isLossSaid || isLeftToExporter)) {
        report('info', `spans are exported again; ${lost} ${lost === 1 ? 'was' : 'were'} lost`)
        lost = 0
      }
      isLossSaid = false
      if (result.lost) {
        // Why, the exporter has said, or it is said here; how many, the period says.
        lost += result.lost
        isLeftToExporter = false
        if (failures.open() && result.code !== 0) sayBeginning(result)
      }
      return
    }
    lost += result?.lost ?? count
    if (isGivenUp) {
      // Whoever gave up has reported why.
      isLeftToExporter = false
      return
    }
    isLeftToExporter = isAnnounced(result?.error)
    if (isLossSaid || isLeftToExporter || !failures.open()) return
    isLossSaid = true
    sayBeginning(result)
  }

  function sayBeginning(result: ExportResult | undefined): void {
    report('warn', `spans are being lost: ${reasonOf(result?.error)}`)
  }

  function sayLost(): void {
    if (lost === 0 || isLeftToExporter) return
    report('warn', `${spansWere(lost)} lost because ${lost === 1 ? 'it' : 'they'} could not be exported`)
    lost = 0
  }

  let dropped = 0
  const drops = lossPeriod(() => {
    if (dropped > 0) report('warn', `${spansWere(dropped)} dropped because the queue was full`)
    dropped = 0
  })

  function drop(): void {
    dropped += 1
    if (!drops.open()) return
    reportOnce(
      'queue full',
      'warn',
      `the queue of ${spansOf(maxQueueSize)} is full; spans are being dropped (OTEL_BSP_MAX_QUEUE_SIZE sets its size)`,
    )
  }

  /**
   * Rejects if any span that has ended so far was lost (trace SDK, ForceFlush), which is also reported; and when it takes too
   * long, since a full queue has dozens of batches, of which each may wait for its timeout.
   */
  async function emptied(): Promise<void> {
    const until = taken + queued
    if (settled >= until) return
    let deadline: NodeJS.Timeout | undefined
    await new Promise<void>((resolve, reject) => {
      waiters.push({ until, lost: 0, cause: undefined, resolve, reject })
      flushQueue()
      if (exportTimeoutMillis === 0) return
      const most = Math.min(EXPORTS_PER_FLUSH * exportTimeoutMillis, MOST_TIMER_MS)
      const late = () => reject(announced(`the spans could not all be exported within ${most} ms`))
      deadline = setTimeout(late, most).unref()
    }).finally(() => clearTimeout(deadline))
  }

  function tell({ lost, cause, resolve, reject }: Waiter): void {
    if (lost === 0) resolve()
    else reject(announced(`${spansWere(lost)} lost: ${reasonOf(cause)}`, cause))
  }

  /** Like `emptied`, but never rejects: the loss is reported anyway. */
  async function emptiedOrLost(): Promise<void> {
    await emptied().catch(() => {})
  }

  async function giveUp(): Promise<void> {
    givenUp = taken + queued
    for (const overtime of underWay) overtime.abort(GIVEN_UP.error)
    await emptiedOrLost()
  }

  async function flush(empty: () => Promise<void>): Promise<void> {
    const flushExporter = async () => untraced(() => inTime(async () => exporter.forceFlush?.()))
    try {
      await empty()
    } catch (error) {
      await flushExporter().catch(() => {})
      throw error
    }
    await flushExporter()
  }

  function sayLosses(): void {
    drops.close()
    sayLost()
    failures.close()
  }

  function abandon(): void {
    sayLosses()
    const unsent = taken + queued - settled - (handover?.delivered ?? 0)
    if (unsent === 0 || isLeftToExporter) return
    report(
      'warn',
      `${spansOf(unsent)} had not been sent and acknowledged when the process ended (await flush() before process.exit())`,
    )
  }

  async function stop(): Promise<void> {
    try {
      await flush(async () => {
        await emptiedOrLost()
        if (settled < taken + queued) await giveUp()
      })
    } finally {
      sayLosses()
      await untraced(() => inTime(async () => exporter.shutdown()))
    }
  }

  return {
    onStart: ignoreStart,
    onEnd,
    forceFlush: () => stopping ?? flush(emptied),
    shutdown: () => (stopping ??= stop()),
    giveUp,
    hasten,
    sayLosses,
    abandon,
  }
}

function emptyBatch(): Batch {
  return { packed: [], spans: [], count: 0 }
}

/** Whether a batch's spans can be packed: not while a detector still works on their resource, nor if it is unreadable. */
function canPack({ spans }: Batch): boolean {
  try {
    return (
      spans.length > 0 &&
      resourcesOf(spans).every(({ asyncAttributesPending }) => asyncAttributesPending !== true)
    )
  } catch {
    return false
  }
}

/** Once for all spans in a row that have it: nearly always it is one for all. */
function resourcesOf(spans: readonly ReadableSpan[]): Resource[] {
  const resources: Resource[] = []
  let last: Resource | undefined
  for (const { resource } of spans) {
    if (resources.length === 0 || resource !== last) resources.push(resource)
    last = resource
  }
  return resources
}

interface LossPeriod {
  /** Whether a period begins now; false while one lasts. */
  open(): boolean
  /** Ends the period that lasts, if one does. */
  close(): void
}

/** Spaces out the reports of a loss: at the end of each period, `say` may report what has accumulated. */
export function lossPeriod(say: () => void): LossPeriod {
  let timer: NodeJS.Timeout | undefined
  function close(): void {
    if (timer === undefined) return
    clearTimeout(timer)
    timer = undefined
    say()
  }
  return {
    close,
    open() {
      if (timer !== undefined) return false
      timer = untraced(() => setTimeout(close, LOSS_PERIOD_MS).unref())
      return true
    },
  }
}

function lostOf(result: ExportResult | undefined, { count }: Batch): number {
  return result?.lost ?? (result?.code === 0 ? 0 : count)
}

function reasonOf(error: unknown): string {
  return error ? messageOf(error) : 'the exporter failed and did not say why'
}

/** An error that the exporter has reported in full: nothing is added to it. */
export function announced(message: string, cause?: unknown): Error {
  return Object.assign(new Error(message, { cause }), { announced: true })
}

export function isAnnounced(error: unknown): boolean {
  return error instanceof Error && 'announced' in error
}

/** How many of the spans together weigh no more than this; at least one. */
export function countOfLight(spans: readonly ReadableSpan[], most: number): number {
  let weight = 0
  let count = 0
  for (const span of spans) {
    weight += weightOf(span)
    if (weight > most) break
    count += 1
  }
  return Math.max(1, count)
}

// Roughly the bytes of an encoded span, of an attribute beside its key and text, and of an event or link.
const SPAN_WEIGHT = 100
const ATTRIBUTE_WEIGHT = 8
const DETAIL_WEIGHT = 50

function weightOf(span: ReadableSpan): number {
  try {
    let weight = SPAN_WEIGHT + span.name.length + weightOfAttributes(span.attributes)
    // Reading the others would create them: 0.1 µs a span, and as much again when it is encoded.
    if (isOurs(span) && span.isPlain) return weight
    const { events, links, status } = span
    weight += status.message?.length ?? 0
    for (const { name, attributes } of events)
      weight += DETAIL_WEIGHT + name.length + weightOfAttributes(attributes)
    for (const link of links) weight += DETAIL_WEIGHT + weightOfAttributes(link.attributes)
    return weight
  } catch {
    // A foreign span whose attributes cannot be read: the exporter must handle it.
    return SPAN_WEIGHT
  }
}

function weightOfAttributes(attributes: Attributes | undefined): number {
  let weight = 0
  for (const key in attributes) {
    const value: unknown = attributes[key]
    weight += key.length + ATTRIBUTE_WEIGHT
    if (typeof value === 'string') weight += value.length
    else if (typeof value === 'object' && value !== null)
      weight += weightOfObject(value, 1, { values: VALUES_LIMIT })
  }
  return weight
}

/** Arrays, bytes, and the maps that spans of other libraries may have: as much of them as is exported. */
function weightOfObject(value: object, depth: number, left: { values: number }): number {
  if (ArrayBuffer.isView(value)) return value.byteLength
  if (depth > DEPTH_LIMIT) return 0
  let weight = 0
  for (const [key, item] of Array.isArray(value) ? value.entries() : Object.entries(value)) {
    if (left.values-- <= 0) break
    weight += ATTRIBUTE_WEIGHT
    if (typeof key === 'string') weight += key.length
    if (typeof item === 'string') weight += item.length
    else if (typeof item === 'object' && item !== null)
      weight += weightOfObject(item as object, depth + 1, left)
  }
  return weight
}
