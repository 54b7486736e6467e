import { trace, ROOT_CONTEXT, propagation, SamplingDecision } from '@opentelemetry/api'
import { describe, expect, test, vi } from 'vitest'
import { hasDestination, type StartOptions } from '../../packages/core/src/config.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { w3cPropagator } from '../../packages/core/src/propagation.ts'
import { said } from './engine.ts'
import { EVERY_VARIABLE, read } from './variables.ts'

const DEFAULT_SAMPLER = String(read().sampler)

describe('without any setting', () => {
  test("the standard's defaults hold, but for the queue", () => {
    const reports = said()
    const config = read()
    expect(config.otlp).toEqual({
      url: 'http://localhost:4318/v1/traces',
      headers: {},
      protocol: 'http/protobuf',
      compression: 'none',
      timeoutMillis: 10_000,
      isDefault: true,
    })
    expect(config.batch).toEqual({
      scheduledDelayMillis: 5000,
      exportTimeoutMillis: 30_000,
      maxQueueSize: 16_384,
      maxExportBatchSize: 512,
    })
    expect(config.limits).toEqual({
      attributeCountLimit: 128,
      attributeValueLengthLimit: Infinity,
      eventCountLimit: 128,
      linkCountLimit: 128,
      attributePerEventCountLimit: 128,
      attributePerLinkCountLimit: 128,
    })
    expect(config).toMatchObject({
      isDisabled: false,
      exporters: ['otlp'],
      signals: true,
      idGenerator: randomIds,
    })
    expect(DEFAULT_SAMPLER).toMatch(/^ParentBased\{root=AlwaysOnSampler,/)
    expect(config.propagator?.fields()).toEqual(['traceparent', 'tracestate', 'baggage'])
    expect(reports.lines).toEqual([])
  })
})

describe('a variable', () => {
  test('that is empty is as good as unset', () => {
    const reports = said()
    const {
      resource: _one,
      sampler: _two,
      propagator,
      ...config
    } = read(Object.fromEntries(EVERY_VARIABLE.map((name) => [name, ' '])))
    const { resource: _three, sampler, propagator: usual, ...expected } = read()
    expect(config).toEqual(expected)
    expect(String(sampler)).toBe(DEFAULT_SAMPLER)
    expect(propagator?.fields()).toEqual(usual?.fields())
    expect(hasDestination(Object.fromEntries(EVERY_VARIABLE.map((name) => [name, ' '])))).toBe(false)
    expect(reports.lines).toEqual([])
  })

  test.each([
    ['OTEL_SDK_DISABLED', 'yes', 'true or false'],
    ['OTEL_SDK_DISABLED', '1', 'true or false'],
    ['OTEL_SDK_DISABLED', 'constructor', 'true or false'],
    ['OTEL_TRACES_SAMPLER', 'sometimes', 'one of always_on'],
    ['OTEL_TRACES_SAMPLER', 'constructor', 'one of always_on'],
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'http/xml', 'one of http/protobuf, http/json'],
    ['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', 'http', 'one of http/protobuf, http/json'],
    ['OTEL_EXPORTER_OTLP_COMPRESSION', 'br', 'one of none, gzip'],
    ['OTEL_EXPORTER_OTLP_TRACES_COMPRESSION', 'deflate', 'one of none, gzip'],
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'http://', 'an http or https URL'],
    ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', 'ftp://c/v1/traces', 'an http or https URL'],
    ['OTEL_EXPORTER_OTLP_TIMEOUT', '10s', 'a whole number of at least 0'],
    ['OTEL_EXPORTER_OTLP_TRACES_TIMEOUT', '-1', 'a whole number of at least 0'],
    ['OTEL_BSP_MAX_QUEUE_SIZE', 'many', 'a whole number of at least 1'],
    ['OTEL_BSP_MAX_QUEUE_SIZE', '0', 'a whole number of at least 1'],
    ['OTEL_BSP_MAX_EXPORT_BATCH_SIZE', '0', 'a whole number of at least 1'],
    ['OTEL_BSP_SCHEDULE_DELAY', '-1', 'a whole number of at least 0'],
    ['OTEL_BSP_EXPORT_TIMEOUT', '1.5', 'a whole number of at least 0'],
    ['OTEL_ATTRIBUTE_COUNT_LIMIT', '-1', 'a whole number of at least 0'],
    ['OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT', 'Infinity', 'a whole number of at least 0'],
    ['OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT', 'x', 'a whole number of at least 0'],
    ['OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT', '9e99', 'a whole number of at least 0'],
    ['OTEL_SPAN_EVENT_COUNT_LIMIT', '1,000', 'a whole number of at least 0'],
    ['OTEL_SPAN_LINK_COUNT_LIMIT', 'NaN', 'a whole number of at least 0'],
    ['OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT', 'null', 'a whole number of at least 0'],
    ['OTEL_LINK_ATTRIBUTE_COUNT_LIMIT', '-0.5', 'a whole number of at least 0'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b,c', 'key=value,key2=value2'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b,c=%zz', 'key=value,key2=value2'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b,=c', 'key=value,key2=value2'],
    ['OTEL_LOG_LEVEL', 'loud', 'one of none, error, warn, info, debug, verbose, all'],
    ['OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN', 'events', 'one of logs, logs/dup'],
  ])('with a bad value is said once and ignored: %s=%s', (name, value, wanted) => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      const { batch, limits, isDisabled, exporters, otlp, resource, sampler } = read({ [name]: value })
      const usual = read()
      expect({ batch, limits, isDisabled, exporters, otlp }).toEqual({
        batch: usual.batch,
        limits: usual.limits,
        isDisabled: false,
        exporters: ['otlp'],
        otlp: usual.otlp,
      })
      expect(String(sampler)).toBe(DEFAULT_SAMPLER)
      expect(resource.attributes['a']).toBeUndefined()
    }
    expect(reports.lines).toHaveLength(1)
    expect(reports.lines[0]).toContain(`${name} is ignored: expected ${wanted}`)
    expect(reports.lines[0]).toContain(`received "${value}"`)
  })

  const ownName = (of: object): unknown => Object.getOwnPropertyDescriptor(of, '__proto__')?.value
  test.each<[string, string, (config: ReturnType<typeof read>) => unknown, unknown]>([
    ['OTEL_SDK_DISABLED', 'TRUE', ({ isDisabled }) => isDisabled, true],
    ['OTEL_SDK_DISABLED', 'False', ({ isDisabled }) => isDisabled, false],
    ['OTEL_SERVICE_NAME', 'a b%20', ({ resource }) => resource.attributes['service.name'], 'a b%20'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=x%2Cy%3D1', ({ resource }) => resource.attributes['a'], 'x,y=1'],
    ['OTEL_RESOURCE_ATTRIBUTES', '__proto__=x', ({ resource }) => ownName(resource.attributes), 'x'],
    ['OTEL_EXPORTER_OTLP_TIMEOUT', '7', ({ otlp }) => otlp.timeoutMillis, 7],
    ['OTEL_EXPORTER_OTLP_TRACES_TIMEOUT', '8', ({ otlp }) => otlp.timeoutMillis, 8],
    ['OTEL_EXPORTER_OTLP_COMPRESSION', 'GZIP', ({ otlp }) => otlp.compression, 'gzip'],
    ['OTEL_EXPORTER_OTLP_TRACES_COMPRESSION', 'gzip', ({ otlp }) => otlp.compression, 'gzip'],
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'HTTP/JSON', ({ otlp }) => otlp.protocol, 'http/json'],
    ['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', 'http/json', ({ otlp }) => otlp.protocol, 'http/json'],
    ['OTEL_EXPORTER_OTLP_HEADERS', 'a=b', ({ otlp }) => otlp.headers, { a: 'b' }],
    ['OTEL_EXPORTER_OTLP_TRACES_HEADERS', 'a=c', ({ otlp }) => otlp.headers, { a: 'c' }],
    ['OTEL_BSP_SCHEDULE_DELAY', '11', ({ batch }) => batch.scheduledDelayMillis, 11],
    ['OTEL_BSP_EXPORT_TIMEOUT', '12', ({ batch }) => batch.exportTimeoutMillis, 12],
    ['OTEL_BSP_MAX_QUEUE_SIZE', '2048', ({ batch }) => batch.maxQueueSize, 2048],
    ['OTEL_BSP_MAX_EXPORT_BATCH_SIZE', '13', ({ batch }) => batch.maxExportBatchSize, 13],
    ['OTEL_ATTRIBUTE_COUNT_LIMIT', '21', ({ limits }) => limits.attributeCountLimit, 21],
    ['OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT', '22', ({ limits }) => limits.attributeValueLengthLimit, 22],
    ['OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT', '0', ({ limits }) => limits.attributeCountLimit, 0],
    ['OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT', '24', ({ limits }) => limits.attributeValueLengthLimit, 24],
    ['OTEL_SPAN_EVENT_COUNT_LIMIT', '25', ({ limits }) => limits.eventCountLimit, 25],
    ['OTEL_SPAN_LINK_COUNT_LIMIT', '26', ({ limits }) => limits.linkCountLimit, 26],
    ['OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT', '27', ({ limits }) => limits.attributePerEventCountLimit, 27],
    ['OTEL_LINK_ATTRIBUTE_COUNT_LIMIT', '28', ({ limits }) => limits.attributePerLinkCountLimit, 28],
  ])('alone does what it says: %s=%s', (name, value, part, expected) => {
    const reports = said()
    expect(part(read({ [name]: ` ${value} ` }))).toEqual(expected)
    expect(reports.lines).toEqual([])
  })

  test('for a level of what is said is known in any case', () => {
    const reports = said()
    for (const level of ['none', 'error', 'WARN', 'info', 'Debug', 'verbose', 'all']) {
      read({ OTEL_LOG_LEVEL: level })
    }
    expect(reports.lines).toEqual([])
  })

  test('for what is said takes effect, blanks or not', () => {
    for (const [level, count] of [
      [' NONE ', 0],
      [' error ', 0],
      ['warn', 1],
    ] as const) {
      const reports = said()
      vi.stubEnv('OTEL_LOG_LEVEL', level)
      read({ OTEL_TRACES_SAMPLER: 'sometimes' })
      expect(reports.lines).toHaveLength(count)
    }
  })

  test.each(['logs', 'Logs/Dup'])('for exceptions as %s is said to be unsupported, once', (value) => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) read({ OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN: value })
    expect(reports.lines).toEqual([
      `throughline: OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN: ${value.toLowerCase()} is not supported; there are no logs here, and exceptions stay events of their spans`,
    ])
  })

  test('for a configuration file is said to count for nothing; the others still count', () => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      const environment = { OTEL_CONFIG_FILE: '/etc/otel.yaml', OTEL_BSP_MAX_QUEUE_SIZE: '7' }
      expect(read(environment).batch.maxQueueSize).toBe(7)
    }
    expect(reports.lines).toEqual([
      'throughline: OTEL_CONFIG_FILE is ignored: configuration files are not supported; the other OTEL_ variables count',
    ])
  })

  test('for a batch that is larger than the queue is cut to it, and that is said; the usual one is cut in silence', () => {
    const reports = said()
    const sizes = { OTEL_BSP_MAX_QUEUE_SIZE: '100', OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '200' }
    expect(read(sizes).batch).toMatchObject({ maxQueueSize: 100, maxExportBatchSize: 100 })
    expect(reports.lines).toEqual([
      'throughline: OTEL_BSP_MAX_EXPORT_BATCH_SIZE is 200, more than the queue holds: 100 is used',
    ])
    expect(read({ OTEL_BSP_MAX_QUEUE_SIZE: '100' }).batch.maxExportBatchSize).toBe(100)
    expect(reports.lines).toHaveLength(1)
  })

  test('that is longer than a timer can wait does not make it fire at once', () => {
    expect(read({ OTEL_BSP_SCHEDULE_DELAY: '99999999999' }).batch.scheduledDelayMillis).toBe(2 ** 31 - 1)
  })

  test('for limits: the one for spans wins over the general one', () => {
    expect(
      read({
        OTEL_ATTRIBUTE_COUNT_LIMIT: '1',
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '2',
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '3',
        OTEL_SPAN_EVENT_COUNT_LIMIT: '4',
        OTEL_SPAN_LINK_COUNT_LIMIT: '5',
        OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT: '6',
        OTEL_LINK_ATTRIBUTE_COUNT_LIMIT: '7',
      }).limits,
    ).toEqual({
      attributeCountLimit: 2,
      attributeValueLengthLimit: 3,
      eventCountLimit: 4,
      linkCountLimit: 5,
      attributePerEventCountLimit: 6,
      attributePerLinkCountLimit: 7,
    })
  })
})

describe('sampling', () => {
  test.each([
    ['always_on', '', 'AlwaysOnSampler'],
    ['ALWAYS_OFF', '', 'AlwaysOffSampler'],
    ['traceidratio', '0.25', 'TraceIdRatioBased{0.25}'],
    ['traceidratio', '', 'TraceIdRatioBased{1}'],
    ['traceidratio', '7', 'TraceIdRatioBased{1}'],
    ['parentbased_always_on', '', 'ParentBased{root=AlwaysOnSampler'],
    ['parentbased_always_off', '', 'ParentBased{root=AlwaysOffSampler'],
    ['parentbased_traceidratio', '0.5', 'ParentBased{root=TraceIdRatioBased{0.5}'],
  ])('by the environment: %s %s', (name, ratio, expected) => {
    said()
    const { sampler } = read({ OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: ratio })
    expect(String(sampler).startsWith(expected)).toBe(true)
  })

  test.each(['', 'no', '-0.1', '1.5', '0x0', 'Infinity'])(
    'by a ratio that is none is of all: "%s"',
    (ratio) => {
      const reports = said()
      const environment = { OTEL_TRACES_SAMPLER: 'traceidratio', OTEL_TRACES_SAMPLER_ARG: ratio }
      expect(String(read(environment).sampler)).toBe('TraceIdRatioBased{1}')
      expect(reports.lines).toEqual(
        ratio === ''
          ? []
          : [
              `throughline: OTEL_TRACES_SAMPLER_ARG is ignored: expected a number from 0 to 1, received "${ratio}"`,
            ],
      )
    },
  )

  test.each(['jaeger_remote', 'parentbased_jaeger_remote', 'XRay'])(
    'by what is known but not to be had is as by default, and that is said once: %s',
    (name) => {
      const reports = said()
      for (let count = 0; count < 2; count += 1) {
        expect(String(read({ OTEL_TRACES_SAMPLER: name }).sampler)).toBe(DEFAULT_SAMPLER)
      }
      expect(reports.lines).toEqual([
        `throughline: OTEL_TRACES_SAMPLER: ${name.toLowerCase()} is not supported; it is ignored`,
      ])
    },
  )

  test('by a ratio without the name of a sampler is as by default, and that is said once', () => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      expect(String(read({ OTEL_TRACES_SAMPLER_ARG: '0.1' }).sampler)).toBe(DEFAULT_SAMPLER)
    }
    expect(reports.lines).toEqual([
      'throughline: OTEL_TRACES_SAMPLER_ARG is ignored: expected OTEL_TRACES_SAMPLER beside it; example: OTEL_TRACES_SAMPLER=parentbased_traceidratio',
    ])
  })

  test('by code asks for no name of a sampler', () => {
    const reports = said()
    read({ OTEL_TRACES_SAMPLER_ARG: '0.1' }, { sampling: 0.5 })
    expect(reports.lines).toEqual([])
  })

  test('by code wins', () => {
    const environment = { OTEL_TRACES_SAMPLER: 'always_off' }
    const { sampler: byShare } = read(environment, { sampling: 0.1 })
    expect(String(byShare)).toMatch(/^ParentBased\{root=ProbabilitySampler\{0.1\},/)
    const { sampler: byRules } = read(environment, { sampling: [{ match: {}, rate: 0.1 }] })
    expect(String(byRules)).toMatch(/^ParentBased\{root=RuleBased\{0.1\},/)
    const own = { shouldSample: () => ({ decision: SamplingDecision.RECORD }), toString: () => 'Mine' }
    const { sampler } = read(environment, { sampler: own })
    expect(String(sampler)).toBe('Mine')
    expect(sampler.shouldSample(ROOT_CONTEXT, 'a'.repeat(32), 'work', 0, {}, []).decision).toBe(
      SamplingDecision.RECORD,
    )
  })

  test("by a share of ids that are of the app's making is said to presume that they are random", () => {
    const presumed = (options: StartOptions) => {
      const reports = said()
      read({}, { idGenerator: { ...randomIds }, ...options })
      return reports.lines.map((line) => line.includes('presumed to be random'))
    }
    expect(presumed({ sampling: 0.1 })).toEqual([true])
    expect(presumed({ sampling: [{ match: {}, rate: 0.1 }] })).toEqual([true])
    expect(presumed({ sampling: 1 })).toEqual([])
    expect(presumed({ sampling: [{ match: {}, rate: 0 }] })).toEqual([])
    expect(presumed({})).toEqual([])
  })
})

describe('propagation', () => {
  const fields = (names: string) => read({ OTEL_PROPAGATORS: names }).propagator?.fields()

  test('is what the environment lists, each once, in any case; or nothing at all', () => {
    expect(fields('baggage')).toEqual(['baggage'])
    expect(fields('TraceContext, baggage,tracecontext,')).toEqual(['traceparent', 'tracestate', 'baggage'])
    // Known by which it is, and then not asked at all.
    for (const usual of ['', 'tracecontext,baggage'])
      expect(read({ OTEL_PROPAGATORS: usual }).propagator).toBe(w3cPropagator)
    expect(fields('none')).toBeUndefined()
    expect(fields('b3')).toEqual(['b3'])
    expect(fields('B3Multi')).toEqual(['x-b3-traceid', 'x-b3-spanid', 'x-b3-sampled', 'x-b3-flags'])
    expect(fields('b3,tracecontext')).toEqual(['b3', 'traceparent', 'tracestate'])
    expect(fields('tracecontext b3')).toEqual(['traceparent', 'tracestate', 'b3'])
  })

  test('is none at all where the list says so, also among others, which is said', () => {
    const reports = said()
    expect(fields('none,tracecontext')).toBeUndefined()
    expect(reports.lines).toEqual([
      'throughline: OTEL_PROPAGATORS: none among others is none; they are ignored',
    ])
  })

  test.each(['jaeger', 'XRay', 'ottrace'])('by %s is not to be had, and that is said once', (name) => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) expect(fields(`${name},b3`)).toEqual(['b3'])
    expect(fields(name)).toEqual(['traceparent', 'tracestate', 'baggage'])
    expect(reports.lines).toEqual([
      `throughline: OTEL_PROPAGATORS: ${name.toLowerCase()} is not supported; it is ignored`,
    ])
  })

  test('by a name that is not known is ignored, and that is said', () => {
    const reports = said()
    expect(fields('carrier-pigeon,baggage')).toEqual(['baggage'])
    expect(fields('constructor')).toEqual(['traceparent', 'tracestate', 'baggage'])
    expect(reports.lines).toHaveLength(2)
  })

  test("the app's own propagator wins", () => {
    const own = { inject() {}, extract: () => ROOT_CONTEXT, fields: () => ['x-own'] }
    expect(read({ OTEL_PROPAGATORS: 'none' }, { propagator: own }).propagator).toBe(own)
    expect(trace.getSpan(ROOT_CONTEXT) ?? propagation.getBaggage(ROOT_CONTEXT)).toBeUndefined()
  })
})
