import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { hasDestination, type StartOptions } from '../../packages/core/src/config.ts'
import { said } from './engine.ts'
import { read, type Environment } from './variables.ts'

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
