import { trace, ROOT_CONTEXT, propagation, SamplingDecision } from '@opentelemetry/api'
import { X509Certificate } from 'node:crypto'
import { EventEmitter } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { hasDestination, readConfig, type StartOptions } from '../../packages/core/src/config.ts'
import { randomIds } from '../../packages/core/src/ids.ts'
import { b3Propagator, w3cPropagator } from '../../packages/core/src/propagation.ts'
import { processor, said } from './engine.ts'

type Environment = Record<string, string>

const read = (environment: Environment = {}, options: StartOptions = {}) => readConfig(options, environment)
const EVERY_VARIABLE = [
  'OTEL_SDK_DISABLED',
  'OTEL_SERVICE_NAME',
  'OTEL_RESOURCE_ATTRIBUTES',
  'OTEL_PROPAGATORS',
  'OTEL_TRACES_SAMPLER',
  'OTEL_TRACES_SAMPLER_ARG',
  'OTEL_TRACES_EXPORTER',
  'OTEL_CONFIG_FILE',
  'OTEL_LOG_LEVEL',
  'OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN',
  ...['SCHEDULE_DELAY', 'EXPORT_TIMEOUT', 'MAX_QUEUE_SIZE', 'MAX_EXPORT_BATCH_SIZE'].map(
    (name) => `OTEL_BSP_${name}`,
  ),
  ...['', 'SPAN_'].flatMap((prefix) => [
    `OTEL_${prefix}ATTRIBUTE_COUNT_LIMIT`,
    `OTEL_${prefix}ATTRIBUTE_VALUE_LENGTH_LIMIT`,
  ]),
  'OTEL_SPAN_EVENT_COUNT_LIMIT',
  'OTEL_SPAN_LINK_COUNT_LIMIT',
  'OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT',
  'OTEL_LINK_ATTRIBUTE_COUNT_LIMIT',
  ...['', 'TRACES_'].flatMap((prefix) =>
    [
      'ENDPOINT',
      'HEADERS',
      'TIMEOUT',
      'COMPRESSION',
      'PROTOCOL',
      'CERTIFICATE',
      'CLIENT_KEY',
      'CLIENT_CERTIFICATE',
      'INSECURE',
    ].map((name) => `OTEL_EXPORTER_OTLP_${prefix}${name}`),
  ),
]
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

  test.each([
    ['user:s3cret@collector:4318', 'REDACTED@collector:4318'],
    ['collector:4318?api-key=s3cret', 'collector:4318?REDACTED'],
    ['collector:4318#s3cret?b', 'collector:4318?REDACTED'],
    ['ftp://h/?token=s3cret', 'ftp://h/?REDACTED'],
    ['http://user:s3c/ret@h:4318', 'REDACTED@h:4318'],
    ['http://user:s3cret@h:port/a?key=s3cret', 'REDACTED@h:port/a?REDACTED'],
    ['user:s3c?ret@h:4318', 'REDACTED'],
    ['collector:4318?api-key=s3c@ret', 'REDACTED'],
  ])('an endpoint that is none is shown without what may be a secret in it: %s', (endpoint, shown) => {
    const reports = said()
    read({ OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: endpoint })
    expect(reports.lines).toHaveLength(2)
    for (const line of reports.lines) expect(line.split(', received ')[1]).toBe(`"${shown}"`)
    expect(() => read({}, { endpoint })).toThrow(`, received "${shown}"; example: `)
  })

  test.each([
    ['authorization=Bearer s3cret', 'a string'],
    [53_237, 'a number'],
    [['Bearer s3cret'], 'an array'],
    [{ 'x-team': 'shop', authorization: 's3\ncret' }, 'an object with "authorization": a string'],
    [{ authorization: undefined }, 'an object with "authorization": undefined'],
    [{ authorization: null }, 'an object with "authorization": null'],
  ])(
    'headers that are none are shown by their type, and the first of them by its name: %j',
    (headers, shown) => {
      expect(() => read({}, { headers } as unknown as StartOptions)).toThrow(`, received ${shown}; example: `)
    },
  )

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

  test('OTEL_TRACES_EXPORTER names other exporters, or several, and code another still', () => {
    const reports = said()
    const exporter = { export() {}, shutdown: async () => {} }
    const exporters = (names: string) => read({ OTEL_TRACES_EXPORTER: names }).exporters
    expect(exporters('none')).toEqual([])
    expect(exporters('Console')).toEqual(['console'])
    expect(exporters('otlp')).toEqual(['otlp'])
    expect(exporters(' OTLP , console,otlp,')).toEqual(['otlp', 'console'])
    expect(read({ OTEL_TRACES_EXPORTER: 'none' }, { exporter }).exporters).toEqual([exporter])
    expect(reports.lines).toEqual([])
  })

  test.each([
    ['zipkin', ['otlp'], 'zipkin is not supported'],
    ['jaeger,console', ['console'], 'jaeger is not supported'],
    ['otlp/stdout', ['otlp'], 'otlp/stdout is not supported'],
    ['Prometheus,otlp', ['otlp'], 'prometheus is not supported'],
    ['logging', ['otlp'], 'logging is not supported'],
    ['otpl', ['otlp'], 'expected none, otlp, console, received "otpl"'],
    ['constructor', ['otlp'], 'expected none, otlp, console, received "constructor"'],
    ['otlp,none', [], 'none among others is none'],
  ])('of those in OTEL_TRACES_EXPORTER, what cannot be had is said once: %s', (names, expected, message) => {
    const reports = said()
    for (let count = 0; count < 2; count += 1) {
      expect(read({ OTEL_TRACES_EXPORTER: names }).exporters).toEqual(expected)
    }
    expect(reports.lines).toEqual([expect.stringContaining(`OTEL_TRACES_EXPORTER: ${message}`)])
  })

  test.each(['OTEL_EXPORTER_OTLP_PROTOCOL', 'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL'])(
    'gRPC is known, not to be had, and said once, with the usual port of what is used instead: %s',
    (name) => {
      const reports = said()
      for (let count = 0; count < 2; count += 1) {
        expect(read({ [name]: 'gRPC' }).otlp.protocol).toBe('http/protobuf')
      }
      expect(reports.lines).toEqual([
        `throughline: ${name}: grpc is not supported; OTLP goes over HTTP, as a rule to port 4318`,
      ])
    },
  )

  test('OTEL_EXPORTER_OTLP_INSECURE is about gRPC alone: it changes nothing, and nothing is said', () => {
    const reports = said()
    for (const name of ['OTEL_EXPORTER_OTLP_INSECURE', 'OTEL_EXPORTER_OTLP_TRACES_INSECURE']) {
      for (const value of ['true', 'maybe']) expect(read({ [name]: value }).otlp).toEqual(read().otlp)
    }
    expect(reports.lines).toEqual([])
  })
})

describe('certificates', () => {
  const folder = mkdtempSync(join(tmpdir(), 'throughline-certificates-'))
  afterAll(() => rmSync(folder, { recursive: true }))
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(join(folder, name), content)
    return join(folder, name)
  }
  const given = (name: string) => fileURLToPath(new URL(`certificates/${name}.pem`, import.meta.url))
  const [ca, cert, key] = [given('authority'), given('app'), given('app.key')]
  const [CA_PEM, CLIENT_PEM, KEY_PEM] = [readFileSync(ca), readFileSync(cert), readFileSync(key)]
  const junk = file('junk.pem', 'no certificate')
  const broken = file('broken.pem', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n')
  const binary = file('binary.pem', new X509Certificate(CA_PEM).raw)
  const tlsOf = (environment: Environment) => read(environment).otlp.tls

  test('are read from the files that are named; those for traces win', () => {
    const reports = said()
    expect(tlsOf({ OTEL_EXPORTER_OTLP_CERTIFICATE: ca })).toEqual({ ca: CA_PEM })
    expect(
      tlsOf({ OTEL_EXPORTER_OTLP_CERTIFICATE: ca, OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: cert }),
    ).toEqual({ ca: CLIENT_PEM })
    expect(
      tlsOf({
        OTEL_EXPORTER_OTLP_CERTIFICATE: ca,
        OTEL_EXPORTER_OTLP_CLIENT_KEY: key,
        OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE: cert,
      }),
    ).toEqual({ ca: CA_PEM, key: KEY_PEM, cert: CLIENT_PEM })
    expect(
      tlsOf({ OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: cert, OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY: key }),
    ).toEqual({ key: KEY_PEM, cert: CLIENT_PEM })
    expect(tlsOf({ OTEL_EXPORTER_OTLP_CERTIFICATE: ' ' })).toBeUndefined()
    expect(reports.lines).toEqual([])
  })

  test.each([
    ['there is none', join(folder, 'missing.pem')],
    ['it is a folder', folder],
    ['it is no certificate', junk],
    ['it is a broken one', broken],
    ['it is a key', key],
    ['it is not as PEM', binary],
  ])('are ignored where a file cannot be used, which is said once: %s', (_row, path) => {
    for (const name of ['OTEL_EXPORTER_OTLP_CERTIFICATE', 'OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE']) {
      const reports = said()
      for (let count = 0; count < 2; count += 1) expect(tlsOf({ [name]: path })).toBeUndefined()
      expect(reports.lines).toEqual([
        `throughline: ${name} is ignored: expected a file with a certificate as PEM, received ${JSON.stringify(path)}`,
      ])
      expect(tlsOf({ OTEL_EXPORTER_OTLP_CERTIFICATE: ca, [name]: path })?.ca).toEqual(
        name.includes('TRACES') ? CA_PEM : undefined,
      )
    }
  })

  test.each<[string, Environment]>([
    ['a key alone', { OTEL_EXPORTER_OTLP_CLIENT_KEY: key }],
    ['a certificate alone', { OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: cert }],
    ['the key of another', { OTEL_EXPORTER_OTLP_CLIENT_KEY: key, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: ca }],
  ])("of the client are a pair or nothing, which is said; the server's stays: %s", (_row, environment) => {
    const reports = said()
    expect(tlsOf(environment)).toBeUndefined()
    expect(tlsOf({ ...environment, OTEL_EXPORTER_OTLP_CERTIFICATE: ca })).toEqual({ ca: CA_PEM })
    expect(reports.lines).toEqual([expect.stringMatching(/CLIENT_KEY and .*CLIENT_CERTIFICATE are ignored/)])
  })

  test('given in code are those that were given, as text or bytes, and win over the files', () => {
    const environment = { OTEL_EXPORTER_OTLP_CERTIFICATE: ca }
    for (const pem of [CA_PEM, CA_PEM.toString()]) {
      expect(read({ OTEL_EXPORTER_OTLP_CERTIFICATE: cert }, { tls: { ca: pem } }).otlp.tls).toEqual({
        ca: pem,
      })
    }
    const pair = { key: KEY_PEM, cert: CLIENT_PEM.toString() }
    // What they do not say, the files say.
    expect(read(environment, { tls: pair }).otlp.tls).toEqual({ ca: CA_PEM, ...pair })
    expect(read(environment, { tls: { ca: undefined } }).otlp.tls).toEqual({ ca: CA_PEM })
    const named = { OTEL_EXPORTER_OTLP_CLIENT_KEY: key, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: cert }
    expect(read(named, { tls: { ca: CA_PEM } }).otlp.tls).toEqual({
      ca: CA_PEM,
      key: KEY_PEM,
      cert: CLIENT_PEM,
    })
    expect(read({}, { tls: {} }).otlp.tls).toBeUndefined()
    for (const tls of [{ key: KEY_PEM }, { cert: CLIENT_PEM }, { key: KEY_PEM, cert: CA_PEM }]) {
      expect(() => read(environment, { tls })).toThrow(
        /^start\(\): tls: expected key and cert .* of one pair, received/,
      )
    }
  })

  test('whose key cannot be read are said to be so without a word of it', () => {
    const reports = said()
    const secret = file('secret.key', '-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----')
    const environment = { OTEL_EXPORTER_OTLP_CLIENT_KEY: secret, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: cert }
    expect(tlsOf(environment)).toBeUndefined()
    expect(reports.lines[0]).toContain(
      'OTEL_EXPORTER_OTLP_CLIENT_KEY is ignored: expected a file with a private key',
    )
    expect(reports.lines.join()).not.toContain('c2VjcmV0')
  })

  test.each([
    ['as PEM', KEY_PEM.toString()],
    [
      'as PEM in one line',
      KEY_PEM.toString()
        .trim()
        .replaceAll('\n', String.raw`\n`),
    ],
    ['packed', KEY_PEM.toString('base64')],
    ['without its frame', KEY_PEM.toString().replaceAll(/-.*-|\s/g, '')],
  ])('that stand in a variable in place of their file are not shown: a key %s', (_row, key) => {
    const reports = said()
    expect(tlsOf({ OTEL_EXPORTER_OTLP_CLIENT_KEY: key })).toBeUndefined()
    expect(reports.lines).toEqual([
      'throughline: OTEL_EXPORTER_OTLP_CLIENT_KEY is ignored: expected a file with a private key as PEM, received something else',
    ])
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

describe('an option', () => {
  const deciding = { shouldSample: () => ({ decision: SamplingDecision.RECORD }), toString: () => 'Mine' }
  const exporting = { export() {}, shutdown: async () => {} }
  const PROCESSOR_METHODS = ['forceFlush', 'onEnd', 'onStart', 'shutdown']

  test('that is unknown is a TypeError that names it and those that there are', () => {
    expect(() => read({}, { endpiont: 'http://c' } as StartOptions)).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(/^start\(\): expected .*endpoint.*received .*"endpiont"/),
      }),
    )
    expect(() => read({}, { toString: 1 } as unknown as StartOptions)).toThrow(TypeError)
  })

  test('is one of an object of any class, and none of a Map', () => {
    class Delays {
      scheduledDelayMillis = 20
    }
    expect(read({}, { batch: new Delays() }).batch.scheduledDelayMillis).toBe(20)
    expect(() => read({}, new Map([['endpoint', 'http://c']]) as StartOptions)).toThrow(
      /^start\(\): expected an object of options, received an object of Map; example: /,
    )
  })

  test('is as right or wrong by the getter of a class', () => {
    class Right {
      get serviceName() {
        return 'orders'
      }
    }
    class Wrong {
      get endpoint() {
        return 'collector:4318'
      }
    }
    expect(read({}, new Right()).resource.attributes['service.name']).toBe('orders')
    expect(() => read({}, new Wrong())).toThrow(
      /^start\(\): expected endpoint to be an http or https URL, received "collector:4318"; example: /,
    )
  })

  test('that is unknown in an object of a class of options is named', () => {
    class Settings {
      serviceName = 'orders'
      endpiont = 'http://c'
    }
    expect(() => read({}, new Settings())).toThrow(/, received an unknown one, "endpiont"; example: /)
  })

  test('is none of an object that is something else', () => {
    expect(() => read({}, new EventEmitter() as StartOptions)).toThrow(
      /^start\(\): expected an object of options, received an object of EventEmitter; example: /,
    )
  })

  test.each([
    ['RegExp', /health/],
    ['Date', new Date(0)],
    ['Promise', Promise.resolve({ serviceName: 'orders' })],
    ['Error', new Error('no settings')],
  ])('is none of a %s, which has no options in it', (name, given) => {
    const received = new RegExp(`, received an object of ${name}; example: `)
    expect(() => read({}, given as StartOptions)).toThrow(received)
    expect(() => read({}, { batch: given as object })).toThrow(received)
    expect(() => read({}, { resource: given as never })).toThrow(received)
  })

  test('of a function or a class whose name is a symbol is shown', () => {
    const named = <T extends object>(value: T) =>
      Object.defineProperty(value, 'name', { value: Symbol('own') })
    const own = { constructor: named(() => {}) }
    expect(() => read({}, { serviceName: named(() => {}) as never })).toThrow(
      /received a function \(Symbol\(own\)\);/,
    )
    expect(() => read({}, { serviceName: own as never })).toThrow(/received an object of Symbol\(own\);/)
  })

  test('for a share that is none has a share for an example', () => {
    expect(() => read({}, { sampling: 10 })).toThrow(/, received 10; example: \{ sampling: 0\.1 \}$/)
  })

  test('that is no propagator is told of one that we have', () => {
    const given = { propagator: 'b3' } as unknown as StartOptions
    expect(() => read({}, given)).toThrow(/; example: \{ propagator: b3Propagator \}$/)
    expect(read({}, { propagator: b3Propagator }).propagator).toBe(b3Propagator)
  })

  test.each<[string, unknown]>([
    ['serviceName', ''],
    ['resource', 'orders'],
    ['endpoint', 'localhost:4318'],
    ['headers', { a: 1 }],
    ['headers', { 'bad name': 'b' }],
    ['headers', { a: 'line\nbreak' }],
    ['headers', new Headers({ authorization: 'Bearer key' })],
    ['headers', new Map([['authorization', 'Bearer key']])],
    ['resource', new Map([['team', 'shop']])],
    ['tls', new Map()],
    ['batch', new Map([['maxQueueSize', 5]])],
    ['spanLimits', new Map()],
    ['protocol', 'grpc'],
    ['compression', 'br'],
    ['timeoutMillis', -1],
    ['timeoutMillis', '10'],
    ['tls', 'ca.pem'],
    ['batch', 512],
    ['spanLimits', [128]],
    ['exporter', {}],
    ['spanProcessors', {}],
    ['exporter', { export() {} }],
    ['exporter', { shutdown: async () => {} }],
    ['exporter', { ...exporting, shutdown: true }],
    ['spanProcessors', [{}]],
    ...PROCESSOR_METHODS.map((method): [string, unknown] => [
      'spanProcessors',
      [processor({}), { ...processor({}), [method]: undefined }],
    ]),
    ['sampler', 'always_on'],
    ['sampling', 1.5],
    ['sampling', Number.NaN],
    ['propagator', { inject() {}, fields: () => [] }],
    ['propagator', null],
    ['idGenerator', { generateTraceId() {} }],
    ['signals', 'no'],
    ['disabled', 'true'],
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

  test('that is an exporter or a processor of one’s own has what is always called, and no more', () => {
    expect(read({}, { exporter: exporting }).exporters).toEqual([exporting])
    const own = processor({})
    expect(Object.keys(own).toSorted()).toEqual(PROCESSOR_METHODS)
    const given = { spanProcessors: [own] } as const
    expect(read({}, given).spanProcessors).toEqual([own])
    expect(() => read({}, { exporter: { export() {} } as never })).toThrow('with export() and shutdown()')
    expect(() => read({}, { spanProcessors: [{ onEnd() {} }] as never })).toThrow(
      'with onStart(), onEnd(), forceFlush() and shutdown()',
    )
  })

  test.each<[string, string, unknown]>([
    ['tls', 'ca', 'ca.pem'],
    ['tls', 'ca', true],
    ['tls', 'key', '-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----'],
    ['tls', 'cert', Buffer.from('c2VjcmV0')],
    ['batch', 'maxQueueSize', 0],
    ['batch', 'maxExportBatchSize', 1.5],
    ['batch', 'scheduledDelayMillis', '1s'],
    ['batch', 'exportTimeoutMillis', Infinity],
    ['spanLimits', 'attributeCountLimit', -1],
    ['spanLimits', 'attributeValueLengthLimit', Number.NaN],
    ['spanLimits', 'eventCountLimit', null],
    ['spanLimits', 'linkCountLimit', '1'],
    ['spanLimits', 'attributePerEventCountLimit', {}],
    ['spanLimits', 'attributePerLinkCountLimit', 2 ** 60],
  ])('with a part of the wrong shape is one too, without a secret: %s.%s', (key, part, value) => {
    expect(() => read({}, { [key]: { [part]: value } })).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(
          new RegExp(
            `^start\\(\\): ${key}: expected ${part} to be .*, received (?!.*c2VjcmV0).*; example: \\{ ${key}: \\{ ${part}: .* \\} \\}$`,
          ),
        ),
      }),
    )
    expect(() => read({}, { [key]: { [`${part}s`]: value } })).toThrow(/received an unknown one/)
  })

  test('says all that a variable says, and wins over it', () => {
    const reports = said()
    const options = {
      compression: 'gzip',
      timeoutMillis: 1,
      batch: { maxQueueSize: 2, maxExportBatchSize: 1, scheduledDelayMillis: 3, exportTimeoutMillis: 4 },
      spanLimits: {
        attributeCountLimit: 5,
        attributeValueLengthLimit: 6,
        eventCountLimit: 7,
        linkCountLimit: 8,
        attributePerEventCountLimit: 9,
        attributePerLinkCountLimit: 0,
      },
    } satisfies StartOptions
    const other = Object.fromEntries(
      EVERY_VARIABLE.filter((name) => /LIMIT$|_BSP_|TIMEOUT$/.test(name)).map((name) => [name, '77']),
    )
    for (const environment of [{}, { ...other, OTEL_EXPORTER_OTLP_COMPRESSION: 'none' }]) {
      const { otlp, batch, limits } = read(environment, options)
      expect(otlp).toMatchObject({ compression: 'gzip', timeoutMillis: 1 })
      expect([batch, limits]).toEqual([options.batch, options.spanLimits])
    }
    expect(reports.lines).toEqual([])
  })

  test('says whether there are spans, and wins over the variable', () => {
    const isDisabled = (environment: Environment, disabled?: boolean) =>
      read(environment, { disabled }).isDisabled
    expect([isDisabled({}), isDisabled({}, true), isDisabled({}, false)]).toEqual([false, true, false])
    const off = { OTEL_SDK_DISABLED: 'true' }
    expect([isDisabled(off), isDisabled(off, true), isDisabled(off, false)]).toEqual([true, true, false])
  })

  test('leaves what it does not say to the variables', () => {
    const { batch, limits, otlp } = read(
      {
        OTEL_BSP_SCHEDULE_DELAY: '1',
        OTEL_SPAN_LINK_COUNT_LIMIT: '2',
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '3',
      },
      {
        batch: { maxQueueSize: 100, exportTimeoutMillis: 2 ** 40 },
        spanLimits: { attributeValueLengthLimit: Infinity, eventCountLimit: undefined },
        timeoutMillis: 2 ** 40,
      },
    )
    expect(batch).toEqual({
      maxQueueSize: 100,
      maxExportBatchSize: 100,
      scheduledDelayMillis: 1,
      exportTimeoutMillis: 2 ** 31 - 1,
    })
    expect(limits).toMatchObject({
      linkCountLimit: 2,
      attributeValueLengthLimit: Infinity,
      eventCountLimit: 128,
    })
    expect(otlp.timeoutMillis).toBe(2 ** 31 - 1)
  })

  test('of batches that the queue cannot hold is a TypeError where both are given, else it is said once', () => {
    expect(() => read({}, { batch: { maxQueueSize: 10, maxExportBatchSize: 20 } })).toThrow(
      /^start\(\): batch: expected maxExportBatchSize .* 10, received 20; example: \{ batch: /,
    )
    expect(read({}, { batch: { maxQueueSize: 10, maxExportBatchSize: 10 } }).batch.maxExportBatchSize).toBe(
      10,
    )
    const reports = said()
    const { batch } = read({ OTEL_BSP_MAX_QUEUE_SIZE: '10' }, { batch: { maxExportBatchSize: 20 } })
    expect(batch.maxExportBatchSize).toBe(10)
    expect(reports.lines).toEqual([
      'throughline: maxExportBatchSize is 20, more than the queue holds: 10 is used',
    ])
  })

  test.each<[StartOptions, string]>([
    [{ sampler: deciding, sampling: 0.1 }, 'sampler or sampling'],
    [{ exporter: exporting, spanProcessors: [] }, 'exporter or spanProcessors'],
  ])('that says what another says already is a TypeError that names both: %o', (options, both) => {
    expect(() => read({}, options)).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(
          new RegExp(`^start\\(\\): expected ${both}, received both; example: \\{ .* \\}$`),
        ),
      }),
    )
    const first = Object.fromEntries(
      Object.entries(options).map(([key, value], at) => [key, at === 0 ? value : undefined]),
    )
    expect(() => read({}, first)).not.toThrow()
  })

  test('that is undefined is as good as not given; no object at all is a TypeError', () => {
    expect(read({}, { endpoint: undefined } as unknown as StartOptions).otlp.isDefault).toBe(true)
    for (const value of [null, 'x', []]) expect(() => readConfig(value as never)).toThrow(TypeError)
  })
})
