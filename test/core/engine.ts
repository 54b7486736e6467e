import type { Attributes, SpanKind } from '@opentelemetry/api'
import type { Tracer } from '../../packages/core/src/tracer.ts'
import { DeferredOptions, TracerProvider, type ProviderConfig } from '../../packages/core/src/tracer.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { forgetReports } from '../../packages/core/src/report.ts'
import { alwaysOn } from '../../packages/core/src/sampling.ts'
import type { ReadableSpan, Span, SpanLimits, SpanProcessor } from '../../packages/core/src/span.ts'
import { vi } from 'vitest'

export const LIMITS: SpanLimits = {
  attributeCountLimit: 128,
  attributeValueLengthLimit: Infinity,
  eventCountLimit: 128,
  linkCountLimit: 128,
  attributePerEventCountLimit: 128,
  attributePerLinkCountLimit: 128,
}

/** Options as the seams hand them over, with attributes by a function. */
export class LazyOptions extends DeferredOptions {
  readonly kind: SpanKind
  override readonly build: () => Attributes

  constructor(kind: SpanKind, build: () => Attributes) {
    super()
    this.kind = kind
    this.build = build
  }

  override name(): string {
    return 'work'
  }
}

export interface TestEngine {
  provider: TracerProvider
  tracer: Tracer
  /** Every span that has ended, in order. */
  ended: ReadableSpan[]
}

/** Our engine with a processor that keeps what ends, registered nowhere. */
export function engine(given: Partial<ProviderConfig> = {}): TestEngine {
  const ended: ReadableSpan[] = []
  const processors = given.processors ?? [processor({ onEnd: (span) => ended.push(span) })]
  const provider = new TracerProvider({
    resource: { attributes: { 'service.name': 'test' } },
    limits: LIMITS,
    sampler: alwaysOn,
    idGenerator: randomIds,
    flagsRandom: given.idGenerator === undefined,
    ...given,
    processors,
  })
  return { provider, tracer: provider.getTracer('scope', '1.2.3'), ended }
}

export function processor(steps: {
  [Step in keyof SpanProcessor]?: (...given: Parameters<NonNullable<SpanProcessor[Step]>>) => unknown
}): SpanProcessor {
  return {
    onStart: () => {},
    onEnd: () => {},
    forceFlush: async () => {},
    shutdown: async () => {},
    ...steps,
  } as SpanProcessor
}

/** A span that has ended, as processors get it. */
export function finished(name = 'work', of: Pick<TestEngine, 'tracer'> = engine()): Span {
  const span = of.tracer.startSpan(name) as Span
  span.end()
  return span
}

/** What is said on stderr from here to the end of the test; what was said before may be said again. */
export function said(): { readonly lines: string[] } {
  forgetReports()
  const spy = vi.spyOn(console, 'error').mockImplementation(() => {})
  spy.mockClear()
  return {
    get lines() {
      return spy.mock.calls.map(([line]) => String(line))
    },
  }
}
