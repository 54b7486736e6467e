import { trace, ROOT_CONTEXT, propagation } from '@opentelemetry/api'
import { describe, expect, test } from 'vitest'
import { hasDestination, readConfig, type StartOptions } from '../../packages/core/src/config.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { said } from './engine.ts'

type Environment = Record<string, string>

const read = (environment: Environment = {}, options: StartOptions = {}) => readConfig(options, environment)
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
      exporter: 'otlp',
      signals: true,
      idGenerator: randomIds,
    })
    expect(DEFAULT_SAMPLER).toMatch(/^ParentBased\{root=AlwaysOnSampler,/)
    expect(config.propagator?.fields()).toEqual(['traceparent', 'tracestate', 'baggage'])
    expect(reports.lines).toEqual([])
  })
})

describe('where traces go', () => {
  const rows: [string, Environment, StartOptions, string][] = [
    ['a base', { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318' }, {}, 'http://c:4318/v1/traces'],
    ['a base with a slash', { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318/' }, {}, 'http://c:4318/v1/traces'],
    ['a base with a path', { OTEL_EXPORTER_OTLP_ENDPOINT: 'https://c/otlp' }, {}, 'https://c/otlp/v1/traces'],
    ['slashes', { OTEL_EXPORTER_OTLP_ENDPOINT: 'https://c/otlp//' }, {}, 'https://c/otlp/v1/traces'],
    ['a query', { OTEL_EXPORTER_OTLP_ENDPOINT: 'https://c/o?k=v' }, {}, 'https://c/o/v1/traces?k=v'],
    ['as it is', { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://c:1/x' }, {}, 'http://c:1/x'],
    ['no path', { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://c:1' }, {}, 'http://c:1/'],
    [
      'the specific one wins',
      { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://t/x', OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c' },
      {},
      'http://t/x',
    ],
    [
      'code',
      { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c' },
      { endpoint: 'http://k/p/' },
      'http://k/p/v1/traces',
    ],
    [
      'code over the specific one',
      { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://t/x' },
      { endpoint: 'http://k' },
      'http://k/v1/traces',
    ],
  ]
  test.each(rows)('%s', (_row, environment, options, url) => {
    expect(read(environment, options).otlp).toMatchObject({ url, isDefault: false })
  })

  test('an address that is none is ignored, and that is said once', () => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      expect(read({ OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4318' }).otlp.isDefault).toBe(true)
    }
    expect(reports.lines).toEqual([
      'throughline: OTEL_EXPORTER_OTLP_ENDPOINT is ignored: expected an http or https URL, received "collector:4318"',
    ])
  })

  test('is known to be said or not', () => {
    expect(hasDestination({})).toBe(false)
    expect(hasDestination({ OTEL_EXPORTER_OTLP_ENDPOINT: '' })).toBe(false)
    expect(hasDestination({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c' })).toBe(true)
    expect(hasDestination({ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://c' })).toBe(true)
    expect(hasDestination({ OTEL_TRACES_EXPORTER: 'console' })).toBe(true)
  })

  test('headers are percent-decoded, those for traces win, and those in code win over both', () => {
    const environment = {
      OTEL_EXPORTER_OTLP_HEADERS: 'authorization=Bearer%20a%3D%3D, x-team = one ,',
      OTEL_EXPORTER_OTLP_TRACES_HEADERS: 'x-team=two=2',
    }
    expect(read(environment).otlp.headers).toEqual({ authorization: 'Bearer a==', 'x-team': 'two=2' })
    expect(read(environment, { headers: { a: 'b' } }).otlp.headers).toEqual({ a: 'b' })
  })

  test('headers that cannot be sent are ignored, and what is said of them holds no secret', () => {
    for (const value of ['authorization', 'authorization=%zz-secret', 'bad name=secret', 'a=secret%0Ab']) {
      const reports = said()
      expect(read({ OTEL_EXPORTER_OTLP_HEADERS: value }).otlp.headers).toEqual({})
      expect(reports.lines).toHaveLength(1)
      expect(reports.lines[0]).toMatch(/^throughline: OTEL_EXPORTER_OTLP_HEADERS is ignored/)
      expect(reports.lines[0]).not.toMatch(/secret|authorization/)
    }
  })

  test('protocol, compression and timeout: the one for traces wins, case does not matter', () => {
    expect(
      read({
        OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf',
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'HTTP/JSON',
        OTEL_EXPORTER_OTLP_COMPRESSION: 'none',
        OTEL_EXPORTER_OTLP_TRACES_COMPRESSION: 'GZip',
        OTEL_EXPORTER_OTLP_TIMEOUT: '1',
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: '0',
      }).otlp,
    ).toMatchObject({ protocol: 'http/json', compression: 'gzip', timeoutMillis: 0 })
    expect(read({ OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' }).otlp.protocol).toBe('http/json')
    expect(
      read({ OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' }, { protocol: 'http/protobuf' }).otlp.protocol,
    ).toBe('http/protobuf')
  })

  test('OTEL_TRACES_EXPORTER names another exporter, and code another still', () => {
    const exporter = { export() {}, shutdown: async () => {} }
    expect(read({ OTEL_TRACES_EXPORTER: 'none' }).exporter).toBe('none')
    expect(read({ OTEL_TRACES_EXPORTER: 'Console' }).exporter).toBe('console')
    expect(read({ OTEL_TRACES_EXPORTER: 'none' }, { exporter }).exporter).toBe(exporter)
  })
})

describe('a variable', () => {
  test('that is empty is as good as unset', () => {
    const reports = said()
    const names = [
      'OTEL_SDK_DISABLED',
      'OTEL_PROPAGATORS',
      'OTEL_TRACES_SAMPLER',
      'OTEL_TRACES_SAMPLER_ARG',
      'OTEL_TRACES_EXPORTER',
      'OTEL_BSP_MAX_QUEUE_SIZE',
      'OTEL_EXPORTER_OTLP_ENDPOINT',
      'OTEL_EXPORTER_OTLP_HEADERS',
      'OTEL_EXPORTER_OTLP_TIMEOUT',
      'OTEL_SPAN_EVENT_COUNT_LIMIT',
      'OTEL_RESOURCE_ATTRIBUTES',
    ]
    const {
      resource: _one,
      sampler: _two,
      propagator,
      ...config
    } = read(Object.fromEntries(names.map((name) => [name, ' '])))
    const { resource: _three, sampler: _four, propagator: usual, ...expected } = read()
    expect(config).toEqual(expected)
    expect(propagator?.fields()).toEqual(usual?.fields())
    expect(reports.lines).toEqual([])
  })

  test.each([
    ['OTEL_SDK_DISABLED', 'yes', 'true or false'],
    ['OTEL_SDK_DISABLED', 'constructor', 'true or false'],
    ['OTEL_TRACES_SAMPLER', 'sometimes', 'one of always_on'],
    ['OTEL_TRACES_EXPORTER', 'zipkin', 'one of otlp, console, none'],
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'grpc', 'one of http/protobuf, http/json'],
    ['OTEL_BSP_MAX_QUEUE_SIZE', 'many', 'a whole number of at least 1'],
    ['OTEL_BSP_MAX_QUEUE_SIZE', '0', 'a whole number of at least 1'],
    ['OTEL_BSP_SCHEDULE_DELAY', '-1', 'a whole number of at least 0'],
    ['OTEL_BSP_EXPORT_TIMEOUT', '1.5', 'a whole number of at least 0'],
    ['OTEL_SPAN_LINK_COUNT_LIMIT', 'NaN', 'a whole number of at least 0'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b,c', 'key=value,key2=value2'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b,c=%zz', 'key=value,key2=value2'],
  ])('with a bad value is said once and ignored: %s=%s', (name, value, wanted) => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      const { batch, limits, isDisabled, exporter, otlp, resource, sampler } = read({ [name]: value })
      const usual = read()
      expect({ batch, limits, isDisabled, exporter, otlp }).toEqual({
        batch: usual.batch,
        limits: usual.limits,
        isDisabled: false,
        exporter: 'otlp',
        otlp: usual.otlp,
      })
      expect(String(sampler)).toBe(DEFAULT_SAMPLER)
      expect(resource.attributes['a']).toBeUndefined()
    }
    expect(reports.lines).toHaveLength(1)
    expect(reports.lines[0]).toContain(`${name} is ignored: expected ${wanted}`)
    expect(reports.lines[0]).toContain(`received "${value}"`)
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

  test('by code wins', () => {
    const environment = { OTEL_TRACES_SAMPLER: 'always_off' }
    expect(String(read(environment, { sampling: 0.1 }).sampler)).toMatch(/root=TraceIdRatioBased\{0.1\}/)
    const sampler = { shouldSample: () => ({ decision: 0 }), toString: () => 'Mine' }
    expect(read(environment, { sampler }).sampler).toBe(sampler)
  })
})

describe('propagation', () => {
  const fields = (names: string) => read({ OTEL_PROPAGATORS: names }).propagator?.fields()

  test('is what the environment lists, each once, in any case; or nothing at all', () => {
    expect(fields('baggage')).toEqual(['baggage'])
    expect(fields('TraceContext, baggage,tracecontext,')).toEqual(['traceparent', 'tracestate', 'baggage'])
    expect(fields('none')).toBeUndefined()
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

describe('an option', () => {
  test('that is unknown is a TypeError that names it and those that there are', () => {
    expect(() => read({}, { endpiont: 'http://c' } as StartOptions)).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(/^start\(\): expected .*endpoint.*received .*"endpiont"/),
      }),
    )
    expect(() => read({}, { toString: 1 } as unknown as StartOptions)).toThrow(TypeError)
  })

  test.each<[string, unknown]>([
    ['serviceName', ''],
    ['resource', 'orders'],
    ['endpoint', 'localhost:4318'],
    ['headers', { a: 1 }],
    ['headers', { 'bad name': 'b' }],
    ['headers', { a: 'line\nbreak' }],
    ['protocol', 'grpc'],
    ['exporter', {}],
    ['spanProcessors', {}],
    ['spanProcessors', [{}]],
    ['sampler', 'always_on'],
    ['sampling', 1.5],
    ['sampling', Number.NaN],
    ['propagator', null],
    ['idGenerator', { generateTraceId() {} }],
    ['signals', 'no'],
  ])(
    'of the wrong shape is a TypeError with what was expected, received, and an example: %s',
    (key, value) => {
      expect(() => read({}, { [key]: value })).toThrow(
        expect.objectContaining({
          name: 'TypeError',
          message: expect.stringMatching(
            new RegExp(`^start\\(\\): expected ${key} to be .*, received .*; example: \\{ ${key}: .* \\}$`),
          ),
        }),
      )
    },
  )

  test('that is undefined is as good as not given; no object at all is a TypeError', () => {
    expect(read({}, { endpoint: undefined } as unknown as StartOptions).otlp.isDefault).toBe(true)
    for (const value of [null, 'x', []]) expect(() => readConfig(value as never)).toThrow(TypeError)
  })
})
