import type { Attributes, AttributeValue, TextMapPropagator } from '@opentelemetry/api'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import type { BatchOptions, SpanExporter } from './batch.ts'
import {
  isHeader,
  isHttpUrl,
  isPem,
  isWholeNumber,
  MOST_TIMER_MS,
  reader,
  type Environment,
  type Pem,
  type Reader,
} from './environment.ts'
import { randomIds, type IdGenerator } from './ids.ts'
import {
  BOOLEAN,
  choice,
  entries,
  expected,
  hasMethods,
  isRatio,
  isRecord,
  type Expectation,
  type Shape,
  showNoUrl,
  showType,
  validated,
} from './options.ts'
import type { Credentials } from './otlp/connection.ts'
import { TRACES_PATH, type OtlpOptions } from './otlp/send.ts'
import {
  b3MultiPropagator,
  b3Propagator,
  baggagePropagator,
  compositePropagator,
  traceContextPropagator,
  w3cPropagator,
} from './propagation.ts'
import { LOG_LEVELS, reportOnce } from './report.ts'
import { describeProcess, extended, type Resource } from './resource.ts'
import {
  alwaysOff,
  alwaysOn,
  guardedSampler,
  parentBased,
  probability,
  ruleBased,
  traceIdRatio,
  type Sampler,
  type SamplingRule,
} from './sampling.ts'
import * as semconv from './semconv.ts'
import type { SpanLimits, SpanProcessor } from './span.ts'

/** Any of these; the rest comes from the environment. */
type Some<T> = { [Key in keyof T]?: T[Key] | undefined }

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
  compression?: 'none' | 'gzip' | undefined
  /** Milliseconds for one batch, retries included; 0 for no limit. */
  timeoutMillis?: number | undefined
  /** For https, in PEM: who is trusted in place of the well-known authorities, and who we are. */
  tls?: Credentials | undefined
  /** Our queue, and when it is sent; ignored if `spanProcessors` are given. */
  batch?: Some<BatchOptions> | undefined
  /** How much a span may hold; more is dropped and counted. */
  spanLimits?: Some<SpanLimits> | undefined
  /** Takes the place of OTLP, behind our batch. */
  exporter?: SpanExporter | undefined
  /** Take the place of our whole pipeline. */
  spanProcessors?: readonly SpanProcessor[] | undefined
  sampler?: Sampler | undefined
  /**
   * The share of all new traces that is kept, 0 to 1, by consistent probability sampling; or rules, of which the first that
   * matches decides.
   */
  sampling?: number | readonly SamplingRule[] | undefined
  propagator?: TextMapPropagator | undefined
  idGenerator?: IdGenerator | undefined
  /** Whether SIGTERM and SIGINT flush before they end the process. */
  signals?: boolean | undefined
  /** Whether no spans are made; the context is still passed on. */
  disabled?: boolean | undefined
}

export interface Config {
  isDisabled: boolean
  resource: Resource
  otlp: OtlpOptions
  /** Each has a queue of its own; none of them: nothing is exported. */
  exporters: (SpanExporter | (typeof EXPORTERS)[number])[]
  spanProcessors: readonly SpanProcessor[] | undefined
  batch: BatchOptions
  limits: SpanLimits
  sampler: Sampler
  propagator: TextMapPropagator | undefined
  idGenerator: IdGenerator
  /** Whether new traces say that their ids are random. */
  flagsRandom: boolean
  signals: boolean
}

const EXPORTERS = ['otlp', 'console'] as const
/** Options that others offer and we do not: the message differs from that for a typing error. */
const UNSUPPORTED_EXPORTERS = ['otlp/stdout', 'logging', 'zipkin', 'jaeger', 'prometheus']

const SAMPLERS = [
  'always_on',
  'always_off',
  'traceidratio',
  'parentbased_always_on',
  'parentbased_always_off',
  'parentbased_traceidratio',
] as const
const UNSUPPORTED_SAMPLERS = ['jaeger_remote', 'parentbased_jaeger_remote', 'xray']

const PROPAGATORS = new Map([
  ['tracecontext', traceContextPropagator],
  ['baggage', baggagePropagator],
  ['b3', b3Propagator],
  ['b3multi', b3MultiPropagator],
])
const DEFAULT_PROPAGATORS = 'tracecontext,baggage'
const UNSUPPORTED_PROPAGATORS = ['jaeger', 'xray', 'ottrace']

const PROTOCOLS = ['http/protobuf', 'http/json'] as const
const UNSUPPORTED_PROTOCOLS = ['grpc']

/** All of them ask for exceptions as logs. */
const EXCEPTION_SIGNALS = ['logs', 'logs/dup']

const COMPRESSIONS = ['none', 'gzip'] as const

const DEFAULT_ENDPOINT = 'http://localhost:4318'

// The standard's 2,048 loses the burst of a busy second; a span is about 300 bytes.
const DEFAULT_QUEUE_SIZE = 16_384
const DEFAULT_BATCH_SIZE = 512

const SHAPE: Shape<StartOptions> = {
  serviceName: expected(
    'a non-empty string',
    "serviceName: 'orders'",
    (value) => typeof value === 'string' && value !== '',
  ),
  resource: expected(
    'an object of attributes or a Resource',
    "resource: { 'service.version': '1.4.0' }",
    isRecord,
  ),
  endpoint: expected('an http or https URL', "endpoint: 'http://localhost:4318'", isHttpUrl, showNoUrl),
  headers: entries('an object of header names and texts', "headers: { authorization: 'Bearer …' }", isHeader),
  protocol: choice('protocol', PROTOCOLS),
  compression: choice('compression', COMPRESSIONS),
  timeoutMillis: wholeNumber(0, 'timeoutMillis: 10_000'),
  tls: expected('an object of certificates', "tls: { ca: readFileSync('ca.pem') }", isRecord),
  batch: expected('an object of numbers', 'batch: { maxQueueSize: 65_536 }', isRecord),
  spanLimits: expected('an object of numbers', 'spanLimits: { attributeCountLimit: 64 }', isRecord),
  exporter: expected(
    'a SpanExporter, with export() and shutdown()',
    'exporter: new OTLPTraceExporter()',
    (value) => hasMethods(value, 'export', 'shutdown'),
  ),
  spanProcessors: expected(
    'an array of SpanProcessors, with onStart(), onEnd(), forceFlush() and shutdown()',
    'spanProcessors: [new BatchSpanProcessor(exporter)]',
    (value) =>
      Array.isArray(value) &&
      value.every((element) => hasMethods(element, 'onStart', 'onEnd', 'forceFlush', 'shutdown')),
  ),
  sampler: expected('a Sampler', 'sampler: new AlwaysOnSampler()', (value) =>
    hasMethods(value, 'shouldSample'),
  ),
  sampling: expected(
    'a number from 0 to 1 or a list of rules',
    'sampling: 0.1',
    (value) => isRatio(value) || Array.isArray(value),
  ),
  propagator: expected('a TextMapPropagator', 'propagator: b3Propagator', (value) =>
    hasMethods(value, 'inject', 'extract', 'fields'),
  ),
  idGenerator: expected('an IdGenerator', 'idGenerator: new RandomIdGenerator()', (value) =>
    hasMethods(value, 'generateTraceId', 'generateSpanId'),
  ),
  signals: expected('true or false', 'signals: false', (value) => typeof value === 'boolean'),
  disabled: BOOLEAN('disabled'),
}

const TLS_SHAPE: Shape<Credentials> = {
  ca: pem('ca', 'a certificate', parseCertificate),
  key: pem('key', 'a private key', createPrivateKey),
  cert: pem('cert', 'a certificate', parseCertificate),
}

const BATCH_SHAPE: Shape<Some<BatchOptions>> = {
  maxQueueSize: wholeNumber(1, 'batch: { maxQueueSize: 65_536 }'),
  maxExportBatchSize: wholeNumber(1, 'batch: { maxExportBatchSize: 512 }'),
  scheduledDelayMillis: wholeNumber(0, 'batch: { scheduledDelayMillis: 1000 }'),
  exportTimeoutMillis: wholeNumber(0, 'batch: { exportTimeoutMillis: 30_000 }'),
}

const LIMITS_SHAPE: Shape<Some<SpanLimits>> = {
  attributeCountLimit: wholeNumber(0, 'spanLimits: { attributeCountLimit: 64 }'),
  attributeValueLengthLimit: expected(
    'a whole number of at least 0, or Infinity',
    'spanLimits: { attributeValueLengthLimit: 4096 }',
    (value) => value === Infinity || isWholeNumber(value, 0),
  ),
  eventCountLimit: wholeNumber(0, 'spanLimits: { eventCountLimit: 64 }'),
  linkCountLimit: wholeNumber(0, 'spanLimits: { linkCountLimit: 64 }'),
  attributePerEventCountLimit: wholeNumber(0, 'spanLimits: { attributePerEventCountLimit: 64 }'),
  attributePerLinkCountLimit: wholeNumber(0, 'spanLimits: { attributePerLinkCountLimit: 64 }'),
}

/** Options and environment as one; throws a TypeError for an option that is unknown or of the wrong shape. */
export function readConfig(given: StartOptions, environment: Environment = process.env): Config {
  const options = validated('start()', SHAPE, given)
  refuseBoth(options, 'sampler', 'sampling', 'sampling: 0.1')
  refuseBoth(options, 'exporter', 'spanProcessors', 'exporter: new OTLPTraceExporter()')
  const env = reader(environment)
  if (env.text('OTEL_CONFIG_FILE') !== undefined) {
    reportOnce(
      'env:OTEL_CONFIG_FILE',
      'warn',
      'OTEL_CONFIG_FILE is ignored: configuration files are not supported; the other OTEL_ variables count',
    )
  }
  // Used in report.ts; read here so that a bad value is reported.
  env.choice('OTEL_LOG_LEVEL', LOG_LEVELS)
  env.choice(
    'OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN',
    EXCEPTION_SIGNALS,
    EXCEPTION_SIGNALS,
    'there are no logs here, and exceptions stay events of their spans',
  )
  return {
    isDisabled: options.disabled ?? env.flag('OTEL_SDK_DISABLED'),
    resource: readResource(options, env),
    otlp: readOtlp(options, env),
    exporters: options.exporter === undefined ? readExporters(env) : [options.exporter],
    spanProcessors: options.spanProcessors,
    batch: readBatch(options, env),
    limits: readLimits(options, env),
    sampler: readSampler(options, env),
    propagator: options.propagator ?? readPropagator(env),
    idGenerator: options.idGenerator ?? randomIds,
    // An app's own generator does not say whether its ids are random. And its propagator may take the flag for another one, as
    // `misreadsFlags` says.
    flagsRandom: (options.idGenerator ?? randomIds) === randomIds && options.propagator === undefined,
    signals: options.signals ?? true,
  }
}

/** Rejects two options that say the same: it is unknown which one is meant. */
function refuseBoth(
  options: StartOptions,
  one: keyof StartOptions,
  other: keyof StartOptions,
  example: string,
): void {
  if (options[one] === undefined || options[other] === undefined) return
  throw new TypeError(`start(): expected ${one} or ${other}, received both; example: { ${example} }`)
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

function readOtlp(options: StartOptions, env: Reader): OtlpOptions {
  const { endpoint, headers, protocol, compression, timeoutMillis } = options
  const exact = endpoint === undefined ? env.url('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT') : undefined
  const base = endpoint ?? env.url('OTEL_EXPORTER_OTLP_ENDPOINT')
  const protocolOf = (name: string) =>
    env.choice(name, PROTOCOLS, UNSUPPORTED_PROTOCOLS, 'OTLP goes over HTTP, as a rule to port 4318')
  const tls = readTls(options, env)
  return {
    url: exact ?? joined(base ?? DEFAULT_ENDPOINT),
    headers: headers ?? {
      ...env.headers('OTEL_EXPORTER_OTLP_HEADERS'),
      ...env.headers('OTEL_EXPORTER_OTLP_TRACES_HEADERS'),
    },
    protocol:
      protocol ??
      protocolOf('OTEL_EXPORTER_OTLP_TRACES_PROTOCOL') ??
      protocolOf('OTEL_EXPORTER_OTLP_PROTOCOL') ??
      'http/protobuf',
    compression:
      compression ??
      env.choice('OTEL_EXPORTER_OTLP_TRACES_COMPRESSION', COMPRESSIONS) ??
      env.choice('OTEL_EXPORTER_OTLP_COMPRESSION', COMPRESSIONS) ??
      'none',
    timeoutMillis: Math.min(
      timeoutMillis ??
        env.count('OTEL_EXPORTER_OTLP_TRACES_TIMEOUT') ??
        env.count('OTEL_EXPORTER_OTLP_TIMEOUT') ??
        10_000,
      MOST_TIMER_MS,
    ),
    isDefault: exact === undefined && base === undefined,
    ...(tls !== undefined && { tls }),
  }
}

/** A key and its certificate are both there, or neither. */
function checkedTls(given: Credentials): Credentials {
  const { key, cert } = validated('start(): tls', TLS_SHAPE, given)
  if ((key !== undefined || cert !== undefined) && !isPair(key, cert)) {
    throw new TypeError(
      "start(): tls: expected key and cert to be of one pair, received others; example: { tls: { key: readFileSync('client.key'), cert: readFileSync('client.pem') } }",
    )
  }
  return given
}

/**
 * The certificates that are given, or else named, as PEM. `OTEL_EXPORTER_OTLP_INSECURE` is not asked: it is about gRPC
 * endpoints without a scheme, and here the URL says which it is (OTLP exporter, configuration options).
 */
function readTls({ tls = {} }: StartOptions, env: Reader): OtlpOptions['tls'] {
  const given = checkedTls(tls)
  const ca = given.ca ?? env.pem('CERTIFICATE', 'a certificate', parseCertificate)
  const server = ca === undefined ? undefined : { ca }
  if (given.key !== undefined) return { ...server, key: given.key, cert: given.cert }
  const key = env.pem('CLIENT_KEY', 'a private key', createPrivateKey)
  const cert = env.pem('CLIENT_CERTIFICATE', 'a certificate', parseCertificate)
  if (key === undefined && cert === undefined) return server
  if (isPair(key, cert)) return { ...server, key, cert }
  reportOnce(
    'client certificate',
    'warn',
    'OTEL_EXPORTER_OTLP_CLIENT_KEY and OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE are ignored: expected both, of one pair',
  )
  return server
}

function parseCertificate(pem: Pem): X509Certificate {
  return new X509Certificate(pem)
}

function isPair(key: Pem | undefined, certificate: Pem | undefined): boolean {
  if (key === undefined || certificate === undefined) return false
  try {
    return new X509Certificate(certificate).checkPrivateKey(createPrivateKey(key))
  } catch {
    return false
  }
}

/** The base with `/v1/traces` below it, and one slash between them (OTLP exporter, endpoint URLs for OTLP/HTTP). */
function joined(base: string): string {
  const url = new URL(base)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}${TRACES_PATH}`
  return url.href
}

/** `none`, even beside others, means nothing; unavailable names are ignored, and an empty list counts as unset. */
function readExporters(env: Reader): Config['exporters'] {
  const names = env.list('OTEL_TRACES_EXPORTER', ['none', ...EXPORTERS], UNSUPPORTED_EXPORTERS)
  if (names.includes('none')) return []
  const exporters = EXPORTERS.filter((name) => names.includes(name))
  return exporters.length === 0 ? ['otlp'] : exporters
}

function readBatch({ batch = {} }: StartOptions, env: Reader): BatchOptions {
  const given = validated('start(): batch', BATCH_SHAPE, batch)
  const maxQueueSize = given.maxQueueSize ?? env.count('OTEL_BSP_MAX_QUEUE_SIZE', 1) ?? DEFAULT_QUEUE_SIZE
  if ((given.maxExportBatchSize ?? 0) > (given.maxQueueSize ?? Infinity)) {
    throw new TypeError(
      `start(): batch: expected maxExportBatchSize to be no more than the queue holds, ${given.maxQueueSize}, received ${given.maxExportBatchSize}; example: { batch: { maxQueueSize: 65_536, maxExportBatchSize: 512 } }`,
    )
  }
  const batchSize = given.maxExportBatchSize ?? env.count('OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 1)
  if (batchSize !== undefined && batchSize > maxQueueSize) {
    const name =
      given.maxExportBatchSize === undefined ? 'OTEL_BSP_MAX_EXPORT_BATCH_SIZE' : 'maxExportBatchSize'
    reportOnce(
      `batch:${name}`,
      'warn',
      `${name} is ${batchSize}, more than the queue holds: ${maxQueueSize} is used`,
    )
  }
  const delay = given.scheduledDelayMillis ?? env.count('OTEL_BSP_SCHEDULE_DELAY') ?? 5000
  const timeout = given.exportTimeoutMillis ?? env.count('OTEL_BSP_EXPORT_TIMEOUT') ?? 30_000
  return {
    scheduledDelayMillis: Math.min(delay, MOST_TIMER_MS),
    exportTimeoutMillis: Math.min(timeout, MOST_TIMER_MS),
    maxQueueSize,
    maxExportBatchSize: Math.min(batchSize ?? DEFAULT_BATCH_SIZE, maxQueueSize),
  }
}

function readLimits({ spanLimits = {} }: StartOptions, env: Reader): SpanLimits {
  const given = validated('start(): spanLimits', LIMITS_SHAPE, spanLimits)
  return {
    attributeCountLimit:
      given.attributeCountLimit ??
      env.count('OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT') ??
      env.count('OTEL_ATTRIBUTE_COUNT_LIMIT') ??
      128,
    attributeValueLengthLimit:
      given.attributeValueLengthLimit ??
      env.count('OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT') ??
      env.count('OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT') ??
      Infinity,
    eventCountLimit: given.eventCountLimit ?? env.count('OTEL_SPAN_EVENT_COUNT_LIMIT') ?? 128,
    linkCountLimit: given.linkCountLimit ?? env.count('OTEL_SPAN_LINK_COUNT_LIMIT') ?? 128,
    attributePerEventCountLimit:
      given.attributePerEventCountLimit ?? env.count('OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT') ?? 128,
    attributePerLinkCountLimit:
      given.attributePerLinkCountLimit ?? env.count('OTEL_LINK_ATTRIBUTE_COUNT_LIMIT') ?? 128,
  }
}

function readSampler({ sampler, sampling, idGenerator }: StartOptions, env: Reader): Sampler {
  if (sampler !== undefined) return guardedSampler(sampler)
  if (sampling !== undefined) {
    const root = typeof sampling === 'number' ? probability(sampling) : ruleBased(sampling)
    const shares = typeof sampling === 'number' ? [sampling] : sampling.map(({ rate }) => rate)
    if (idGenerator !== undefined && shares.some((share) => share > 0 && share < 1)) {
      reportOnce(
        'ids presumed random',
        'warn',
        'the ids of the idGenerator are presumed to be random, to sample by: if the last 14 digits of a trace id are not, another share is kept than the one that was asked for',
      )
    }
    return parentBased(root)
  }
  if (env.text('OTEL_TRACES_SAMPLER') === undefined && env.text('OTEL_TRACES_SAMPLER_ARG') !== undefined) {
    reportOnce(
      'env:OTEL_TRACES_SAMPLER_ARG',
      'warn',
      'OTEL_TRACES_SAMPLER_ARG is ignored: expected OTEL_TRACES_SAMPLER beside it; example: OTEL_TRACES_SAMPLER=parentbased_traceidratio',
    )
  }
  const name = env.choice('OTEL_TRACES_SAMPLER', SAMPLERS, UNSUPPORTED_SAMPLERS) ?? 'parentbased_always_on'
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

/** In the order of the list. Undefined when the environment asks for no propagation at all. */
function readPropagator(env: Reader): TextMapPropagator | undefined {
  const names = env.list('OTEL_PROPAGATORS', ['none', ...PROPAGATORS.keys()], UNSUPPORTED_PROPAGATORS)
  if (names.includes('none')) return undefined
  const propagators = names.flatMap((name) => PROPAGATORS.get(name) ?? [])
  const isDefault = propagators.length === 0 || names.join(',') === DEFAULT_PROPAGATORS
  return isDefault ? w3cPropagator : compositePropagator(propagators)
}

function isResource(value: object): value is Resource {
  return 'attributes' in value && isRecord(value.attributes)
}

function wholeNumber(least: number, example: string): Expectation {
  return expected(`a whole number of at least ${least}`, example, (value) => isWholeNumber(value, least))
}

/** Expects text or bytes that `parse` accepts. A wrong value may be a secret, and is not shown. */
function pem(name: keyof Credentials, wanted: string, parse: (pem: Pem) => unknown): Expectation {
  const accepts = (value: unknown) =>
    (typeof value === 'string' || Buffer.isBuffer(value)) && isPem(value, parse)
  return expected(`${wanted} as PEM`, `tls: { ${name}: readFileSync('${name}.pem') }`, accepts, showType)
}
