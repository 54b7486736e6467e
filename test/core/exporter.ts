import { onTestFinished } from 'vitest'
import type { ExportResult } from '../../packages/core/src/batch.ts'
import { otlpExporter, type OtlpExporter, type OtlpOptions } from '../../packages/core/src/otlp/send.ts'
import type { SpanProcessor } from '../../packages/core/src/span.ts'
import { finished } from './engine.ts'
import type { Answer } from './receiver.ts'

/** An exporter to this collector, as by default but for the options. */
export function exporterTo(url: string, options: Partial<OtlpOptions> = {}): OtlpExporter {
  return otlpExporter({
    url: `${url}/v1/traces`,
    headers: {},
    protocol: 'http/protobuf',
    compression: 'none',
    timeoutMillis: 10_000,
    isDefault: false,
    ...options,
  })
}

/** Its own pauses between two tries are cut short from here on, as by one flush after the other. */
export function hurried(exporter: OtlpExporter): OtlpExporter {
  const timer = setInterval(() => {
    exporter.setPatience('patient')
    exporter.setPatience('brief')
  }, 5)
  onTestFinished(() => clearInterval(timer))
  return exporter
}

/** Flushes, and answers what is said of what was lost: nothing where all has been exported. */
export function flushing(processor: Pick<SpanProcessor, 'forceFlush'>): Promise<string> {
  return processor.forceFlush().then(
    () => '',
    (error: unknown) => String(error),
  )
}

/** Exports spans of these names. */
export function send(exporter: OtlpExporter, ...names: string[]): Promise<ExportResult> {
  const spans = (names.length === 0 ? ['work'] : names).map((name) => finished(name))
  return new Promise((resolve) => exporter.export(spans, resolve))
}

/** Answers with these statuses in turn, the last one for ever. */
export function statuses(...codes: number[]): Answer {
  return (response, _request, number) => {
    response.writeHead(codes[Math.min(number, codes.length) - 1] as number).end()
  }
}
