import { metrics, type Attributes } from '@opentelemetry/api'
import {
  AggregationTemporality,
  DataPointType,
  MeterProvider,
  MetricReader,
  type Histogram,
  type MetricData,
} from '@opentelemetry/sdk-metrics'
import { expect, onTestFinished } from 'vitest'

/** One series of a metric: for a histogram the sum and the count of what was recorded, for a counter its value. */
export interface Point {
  readonly attributes: Attributes
  readonly value: number
  readonly count: number
}

export interface Measuring {
  /** All that is known of a metric now. */
  metric(name: string): Promise<MetricData | undefined>
  /** The series of a metric now. */
  points(name: string): Promise<Point[]>
  /** The series of a histogram as soon as it has this many values; fails when it has more. */
  all(name: string, count: number): Promise<Point[]>
  /** The names of the scopes that have metrics. */
  scopes(): Promise<string[]>
  /** As an app does that registers no other one. */
  unregister(): void
}

class Reader extends MetricReader {
  protected async onForceFlush(): Promise<void> {}
  protected async onShutdown(): Promise<void> {}
}

/** Registers a MeterProvider of the official SDK, until the end of the test. */
export function measure(): Measuring {
  const reader = new Reader({
    aggregationTemporalitySelector: () => AggregationTemporality.CUMULATIVE,
  })
  const provider = new MeterProvider({ readers: [reader] })
  expect(metrics.setGlobalMeterProvider(provider)).toBe(true)
  const unregister = () => {
    if (metrics.getMeterProvider() === provider) metrics.disable()
  }
  onTestFinished(async () => {
    unregister()
    await provider.shutdown()
  })

  async function scoped() {
    const { resourceMetrics, errors } = await reader.collect()
    expect(errors).toEqual([])
    return resourceMetrics.scopeMetrics
  }

  async function metric(name: string): Promise<MetricData | undefined> {
    const all = (await scoped()).flatMap((scope) => scope.metrics)
    return all.find(({ descriptor }) => descriptor.name === name)
  }

  async function points(name: string): Promise<Point[]> {
    const found = await metric(name)
    if (found === undefined) return []
    if (found.dataPointType === DataPointType.HISTOGRAM) {
      return found.dataPoints.map(({ attributes, value }) => {
        const { sum = NaN, count }: Histogram = value
        return { attributes, value: sum, count }
      })
    }
    if (found.dataPointType !== DataPointType.SUM) throw new Error(`${name} is neither a histogram nor a sum`)
    return found.dataPoints.map(({ attributes, value }) => ({ attributes, value, count: 1 }))
  }

  return {
    metric,
    points,
    async all(name, count) {
      for (;;) {
        const found = await points(name)
        const seen = found.reduce((sum, point) => sum + point.count, 0)
        expect(seen).toBeLessThanOrEqual(count)
        if (seen === count) return found
        await new Promise((resolve) => setImmediate(resolve))
      }
    },
    scopes: async () => (await scoped()).map(({ scope }) => scope.name),
    unregister,
  }
}
