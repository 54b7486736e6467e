import type { Attributes, AttributeValue, TextMapPropagator } from '@opentelemetry/api'
import { validateHeaderName, validateHeaderValue } from 'node:http'
import type { BatchOptions, SpanExporter } from './batch.ts'
import { randomIds, type IdGenerator } from './ids.ts'
import { choice, expected, show, type Shape, validated } from './options.ts'
import type { OtlpOptions } from './otlp/send.ts'
import { baggagePropagator, compositePropagator, traceContextPropagator } from './propagation.ts'
import { reportOnce } from './report.ts'
import { describeProcess, extended, type Resource } from './resource.ts'
import { ruleBased, type SamplingRule } from './rules.ts'
import { alwaysOff, alwaysOn, parentBased, traceIdRatio, type Sampler } from './sampling.ts'
import * as semconv from './semconv.ts'
import type { SpanLimits, SpanProcessor } from './span.ts'

/** The options of `start()`. Each wins over the environment's variable of the same meaning. */
export interface StartOptions {
  /** `service.name`. */
  serviceName?: string | undefined
  /** Attributes, or a Resource that has them, to add to what is detected. */
  resource?: Record<string, AttributeValue> | Resource | undefined
  /** The base URL of an OTLP/HTTP receiver; `/v1/traces` is added to it. */
  endpoint?: string | undefined
  headers?: Record<string, string> | undefined
  protocol?: 'http/protobuf' | 'http/json' | undefined
  /** Takes the place of OTLP, behind our batch. */
  exporter?: SpanExporter | undefined
  /** Take the place of our whole pipeline. */
  spanProcessors?: SpanProcessor[] | undefined
  sampler?: Sampler | undefined
  /** The share of all new traces that is kept, 0 to 1; or rules, of which the first that matches decides. */
  sampling?: number | readonly SamplingRule[] | undefined
  propagator?: TextMapPropagator | undefined
  idGenerator?: IdGenerator | undefined
  /** Whether SIGTERM and SIGINT flush before they end the process. */
  signals?: boolean | undefined
}

export interface Config {
  isDisabled: boolean
  resource: Resource
  otlp: OtlpOptions
  exporter: SpanExporter | (typeof EXPORTERS)[number]
  spanProcessors: SpanProcessor[] | undefined
  batch: BatchOptions
  limits: SpanLimits
  sampler: Sampler
  propagator: TextMapPropagator | undefined
  idGenerator: IdGenerator
  signals: boolean
}

type Environment = Record<string, string | undefined>

const EXPORTERS = ['otlp', 'console', 'none'] as const

const DEFAULT_ENDPOINT = 'http://localhost:4318'
const TRACES_PATH = 'v1/traces'

/** The longest time that a timer of Node can wait; a longer one would fire at once. */
const MOST_TIMER_MS = 2 ** 31 - 1

// The standard's 2,048 loses the burst of a busy second; a span is about 300 bytes.
const DEFAULT_QUEUE_SIZE = 16_384

const SHAPE: Shape<StartOptions> = {
  serviceName: expected('a non-empty string', "serviceName: 'orders'", (value) => isText(value)),
  resource: expected(
    'an object of attributes or a Resource',
    "resource: { 'service.version': '1.4.0' }",
    isObject,
  ),
  endpoint: expected('an http or https URL', "endpoint: 'http://localhost:4318'", isHttpUrl),
  headers: expected(
    'an object of header names and texts',
    "headers: { authorization: 'Bearer …' }",
    isHeaders,
  ),
  protocol: choice('protocol', ['http/protobuf', 'http/json']),
  exporter: expected('a SpanExporter', 'exporter: new OTLPTraceExporter()', (value) => has(value, 'export')),
  spanProcessors: expected(
    'an array of SpanProcessors',
    'spanProcessors: [new BatchSpanProcessor(exporter)]',
    (value) => Array.isArray(value) && value.every((element) => has(element, 'onEnd')),
  ),
  sampler: expected('a Sampler', 'sampler: new AlwaysOnSampler()', (value) => has(value, 'shouldSample')),
  sampling: expected(
    'a number from 0 to 1 or a list of rules',
    "sampling: [{ match: { path: '/health' }, rate: 0 }]",
    (value) => isRatio(value) || Array.isArray(value),
  ),
  propagator: expected('a TextMapPropagator', 'propagator: new B3Propagator()', (value) =>
    has(value, 'inject'),
  ),
  idGenerator: expected(
    'an IdGenerator',
    'idGenerator: new RandomIdGenerator()',
    (value) => has(value, 'generateTraceId') && has(value, 'generateSpanId'),
  ),
  signals: expected('true or false', 'signals: false', (value) => typeof value === 'boolean'),
}

/** Options and environment as one; throws a TypeError for an option that is unknown or of the wrong shape. */
export function readConfig(given: StartOptions, environment: Environment = process.env): Config {
  const options = validated('start()', SHAPE, given)
  const env = reader(environment)
  return {
    isDisabled: env.flag('OTEL_SDK_DISABLED'),
    resource: readResource(options, env),
    otlp: readOtlp(options, env),
    exporter: options.exporter ?? env.choice('OTEL_TRACES_EXPORTER', EXPORTERS) ?? 'otlp',
    spanProcessors: options.spanProcessors,
    batch: {
      scheduledDelayMillis: env.milliseconds('OTEL_BSP_SCHEDULE_DELAY') ?? 5000,
      exportTimeoutMillis: env.milliseconds('OTEL_BSP_EXPORT_TIMEOUT') ?? 30_000,
      maxQueueSize: env.count('OTEL_BSP_MAX_QUEUE_SIZE', 1) ?? DEFAULT_QUEUE_SIZE,
      maxExportBatchSize: env.count('OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 1) ?? 512,
    },
    limits: readLimits(env),
    sampler: readSampler(options, env),
    propagator: options.propagator ?? readPropagator(env),
    idGenerator: options.idGenerator ?? randomIds,
    signals: options.signals ?? true,
  }
}

/** Whether somebody said where traces should go, in the environment. */
export function hasDestination(environment: Environment = process.env): boolean {
  const { text } = reader(environment)
  const names = ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', 'OTEL_EXPORTER_OTLP_ENDPOINT', 'OTEL_TRACES_EXPORTER']
  return names.some((name) => text(name) !== undefined)
}

function readResource({ serviceName, resource }: StartOptions, env: Reader): Resource {
  const fromEnvironment: Attributes = env.pairs('OTEL_RESOURCE_ATTRIBUTES') ?? {}
  const nameFromEnvironment = env.text('OTEL_SERVICE_NAME')
  if (nameFromEnvironment !== undefined) fromEnvironment[semconv.SERVICE_NAME] = nameFromEnvironment
  const name: Attributes = serviceName === undefined ? {} : { [semconv.SERVICE_NAME]: serviceName }
  return resource !== undefined && isResource(resource)
    ? extended(resource, fromEnvironment, name)
    : describeProcess({ ...resource, ...name }, fromEnvironment)
}

function readOtlp({ endpoint, headers, protocol }: StartOptions, env: Reader): OtlpOptions {
  const exact = endpoint === undefined ? env.url('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT') : undefined
  const base = endpoint ?? env.url('OTEL_EXPORTER_OTLP_ENDPOINT')
  const protocols = ['http/protobuf', 'http/json'] as const
  const compressions = ['none', 'gzip'] as const
  return {
    url: exact ?? joined(base ?? DEFAULT_ENDPOINT),
    headers: headers ?? {
      ...env.headers('OTEL_EXPORTER_OTLP_HEADERS'),
      ...env.headers('OTEL_EXPORTER_OTLP_TRACES_HEADERS'),
    },
    protocol:
      protocol ??
      env.choice('OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', protocols) ??
      env.choice('OTEL_EXPORTER_OTLP_PROTOCOL', protocols) ??
      'http/protobuf',
    compression:
      env.choice('OTEL_EXPORTER_OTLP_TRACES_COMPRESSION', compressions) ??
      env.choice('OTEL_EXPORTER_OTLP_COMPRESSION', compressions) ??
      'none',
    timeoutMillis:
      env.milliseconds('OTEL_EXPORTER_OTLP_TRACES_TIMEOUT') ??
      env.milliseconds('OTEL_EXPORTER_OTLP_TIMEOUT') ??
      10_000,
    isDefault: exact === undefined && base === undefined,
  }
}

/** The base with `/v1/traces` below it, and one slash between them (OTLP exporter, endpoint URLs for OTLP/HTTP). */
function joined(base: string): string {
  const url = new URL(base)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/${TRACES_PATH}`
  return url.href
}

function readLimits(env: Reader): SpanLimits {
  return {
    attributeCountLimit:
      env.count('OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT') ?? env.count('OTEL_ATTRIBUTE_COUNT_LIMIT') ?? 128,
    attributeValueLengthLimit:
      env.count('OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT') ??
      env.count('OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT') ??
      Infinity,
    eventCountLimit: env.count('OTEL_SPAN_EVENT_COUNT_LIMIT') ?? 128,
    linkCountLimit: env.count('OTEL_SPAN_LINK_COUNT_LIMIT') ?? 128,
    attributePerEventCountLimit: env.count('OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT') ?? 128,
    attributePerLinkCountLimit: env.count('OTEL_LINK_ATTRIBUTE_COUNT_LIMIT') ?? 128,
  }
}

function readSampler({ sampler, sampling }: StartOptions, env: Reader): Sampler {
  if (sampler !== undefined) return sampler
  if (typeof sampling === 'number') return parentBased(traceIdRatio(sampling))
  if (sampling !== undefined) return parentBased(ruleBased(sampling))
  const names = [
    'always_on',
    'always_off',
    'traceidratio',
    'parentbased_always_on',
    'parentbased_always_off',
    'parentbased_traceidratio',
  ] as const
  const name = env.choice('OTEL_TRACES_SAMPLER', names) ?? 'parentbased_always_on'
  const ratio = () => traceIdRatio(env.ratio('OTEL_TRACES_SAMPLER_ARG') ?? 1)
  switch (name) {
    case 'always_on':
      return alwaysOn
    case 'always_off':
      return alwaysOff
    case 'traceidratio':
      return ratio()
    case 'parentbased_always_on':
      return parentBased(alwaysOn)
    case 'parentbased_always_off':
      return parentBased(alwaysOff)
    case 'parentbased_traceidratio':
      return parentBased(ratio())
  }
}

/** Undefined when the environment asks for no propagation at all. */
function readPropagator(env: Reader): TextMapPropagator | undefined {
  const known = new Map([
    ['tracecontext', traceContextPropagator],
    ['baggage', baggagePropagator],
  ])
  const names = new Set(
    env
      .text('OTEL_PROPAGATORS')
      ?.toLowerCase()
      .split(/[\s,]+/),
  )
  if (names.has('none')) return undefined
  names.delete('')
  const propagators = [...names].flatMap((name) => {
    const propagator = known.get(name)
    if (propagator === undefined) {
      reportOnce(`propagator:${name}`, 'warn', `OTEL_PROPAGATORS: "${name}" is not known and is ignored`)
    }
    return propagator ?? []
  })
  // What is ignored is as good as unset.
  return compositePropagator(propagators.length === 0 ? [...known.values()] : propagators)
}

type Reader = ReturnType<typeof reader>

/**
 * Reads variables as the OpenTelemetry specification says: empty is unset, a bad value is warned about once and taken as
 * unset, names of choices are read in any case.
 */
function reader(environment: Environment) {
  function text(name: string): string | undefined {
    const value = environment[name]?.trim()
    return value === '' ? undefined : value
  }

  function checked<T>(
    name: string,
    wanted: string,
    read: (value: string) => T | undefined,
    isSecret = false,
  ): T | undefined {
    const value = text(name)
    if (value === undefined) return undefined
    const result = read(value)
    if (result === undefined) {
      const received = isSecret ? 'something else' : show(value)
      reportOnce(`env:${name}`, 'warn', `${name} is ignored: expected ${wanted}, received ${received}`)
    }
    return result
  }

  function count(name: string, least = 0): number | undefined {
    return checked(name, `a whole number of at least ${least}`, (value) => {
      const number = Number(value)
      return Number.isSafeInteger(number) && number >= least ? number : undefined
    })
  }

  return {
    text,
    flag(name: string): boolean {
      const read = (value: string) => {
        const lower = value.toLowerCase()
        return lower === 'true' || lower === 'false' ? lower === 'true' : undefined
      }
      return checked(name, 'true or false', read) ?? false
    },
    count,
    milliseconds(name: string): number | undefined {
      const value = count(name)
      return value === undefined ? undefined : Math.min(value, MOST_TIMER_MS)
    },
    ratio(name: string): number | undefined {
      return checked(name, 'a number from 0 to 1', (value) =>
        isRatio(Number(value)) ? Number(value) : undefined,
      )
    },
    url(name: string): string | undefined {
      return checked(name, 'an http or https URL', (value) =>
        isHttpUrl(value) ? new URL(value).href : undefined,
      )
    },
    choice<T extends string>(name: string, choices: readonly T[]): T | undefined {
      return checked(name, `one of ${choices.join(', ')}`, (value) =>
        choices.find((candidate) => candidate === value.toLowerCase()),
      )
    },
    /** `k=v,k2=v2`, percent-encoded; one that cannot be decoded discards them all. */
    pairs(name: string): Record<string, string> | undefined {
      return checked(name, 'key=value,key2=value2', readPairs)
    },
    /** The same, of names and values that a request can have. They hold keys, so a bad one is not shown. */
    headers(name: string): Record<string, string> | undefined {
      const read = (value: string) => {
        const pairs = readPairs(value)
        return isHeaders(pairs) ? pairs : undefined
      }
      return checked(name, 'name=value,name2=value2', read, true)
    },
  }
}

function readPairs(value: string): Record<string, string> | undefined {
  const pairs: Record<string, string> = {}
  for (const member of value.split(',')) {
    if (member.trim() === '') continue
    const at = member.indexOf('=')
    const key = member.slice(0, Math.max(at, 0)).trim()
    if (key === '') return undefined
    try {
      pairs[decodeURIComponent(key)] = decodeURIComponent(member.slice(at + 1).trim())
    } catch {
      return undefined
    }
  }
  return pairs
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isResource(value: object): value is Resource {
  return 'attributes' in value && isObject(value.attributes)
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== ''
}

function isRatio(value: unknown): boolean {
  return typeof value === 'number' && value >= 0 && value <= 1
}

function isHttpUrl(value: unknown): boolean {
  return typeof value === 'string' && /^https?:\/\//i.test(value) && URL.canParse(value)
}

function isHeaders(value: unknown): boolean {
  if (!isObject(value)) return false
  try {
    for (const [name, text] of Object.entries(value)) {
      validateHeaderName(name)
      validateHeaderValue(name, text)
      if (typeof text !== 'string') return false
    }
    return true
  } catch {
    return false
  }
}

function has(value: unknown, method: string): boolean {
  return isObject(value) && typeof (value as Record<string, unknown>)[method] === 'function'
}
