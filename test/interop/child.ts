import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { SpanKind, SpanStatusCode, type Attributes } from '@opentelemetry/api'
import { expect, inject, onTestFinished } from 'vitest'

/** A span as an app of these tests prints it. */
export interface PlainSpan {
  traceId: string
  spanId: string
  traceFlags: number
  parentSpanId?: string | undefined
  name: string
  kind: SpanKind
  scope: string
  status: { code: SpanStatusCode; message?: string }
  attributes: Attributes
  events: { name: string; attributes?: Attributes }[]
  links: string[]
  resource: Attributes
}

/**
 * Runs an app of `apps/` as a process of its own, of plain Node and the built packages, and returns what it tells: its
 * last line, as JSON. `said` is everything else that it printed, on stderr.
 */
export async function run<Told>(
  app: string,
  asked: object = {},
  environment: Record<string, string> = {},
): Promise<Told & { said: string }> {
  const file = fileURLToPath(new URL(`apps/${app}`, import.meta.url))
  const child = spawn(process.execPath, [file, JSON.stringify(asked)], {
    env: {
      PATH: process.env['PATH'] ?? '',
      // Node 20 says of every `require` of a module that this is new.
      NODE_OPTIONS: '--disable-warning=ExperimentalWarning',
      // The NodeSDK has exporters for these too, and waits for them at its end.
      OTEL_METRICS_EXPORTER: 'none',
      OTEL_LOGS_EXPORTER: 'none',
      DATABASE_URL: inject('databaseUrl'),
      REDIS_URL: inject('redisUrl'),
      ...environment,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  let stdout = ''
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => (stdout += String(chunk)))
  child.stderr.on('data', (chunk: Buffer) => (said += String(chunk)))
  const [code] = (await once(child, 'close')) as [number | null]
  expect(code, `${said}`).toBe(0)
  const told = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Told
  return { ...told, said }
}

/**
 * The traces as they are read: a line for each span, children below their parent in order of their start, ✗ for status
 * Error. A span whose parent is elsewhere stands at the margin, and so does what has none.
 */
export function tree(spans: readonly PlainSpan[]): string {
  const ids = new Set(spans.map(({ spanId }) => spanId))
  expect(ids.size, 'ids').toBe(spans.length)
  for (const { parentSpanId, traceId } of spans) {
    const parent = spans.find(({ spanId }) => spanId === parentSpanId)
    if (parent !== undefined) expect(traceId, 'a child is in the trace of its parent').toBe(parent.traceId)
  }
  const roots = spans.filter(({ parentSpanId }) => !ids.has(parentSpanId as string))
  return lines(roots, '').join('\n')

  function lines(siblings: readonly PlainSpan[], indent: string): string[] {
    return siblings.flatMap(({ spanId, kind, name, scope, status }) => {
      const mark = status.code === SpanStatusCode.ERROR ? ' ✗' : ''
      const children = spans.filter(({ parentSpanId }) => parentSpanId === spanId)
      return [
        `${indent}${SpanKind[kind]} ${name} by ${scope.replace('@opentelemetry/instrumentation-', 'official ')}${mark}`,
        ...lines(children, `${indent}  `),
      ]
    })
  }
}

/** The one span by this name (or by this kind), and nothing more. */
export function only(
  spans: readonly PlainSpan[],
  of: { [Key in keyof PlainSpan]?: PlainSpan[Key] | undefined },
): PlainSpan {
  const found = spans.filter((span) =>
    Object.entries(of).every(([key, value]) => span[key as keyof PlainSpan] === value),
  )
  expect(found, `${JSON.stringify(of)}`).toHaveLength(1)
  return found[0] as PlainSpan
}
