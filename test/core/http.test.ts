import { SpanKind } from '@opentelemetry/api'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import type * as Http from '../../packages/core/src/http.ts'
import { app } from './process.ts'

let http: typeof Http

// The list of known methods is read from the environment once in a process's life: each test has a life of its own.
beforeEach(async () => {
  http = await import('../../packages/core/src/http.ts')
})

afterEach(() => {
  vi.resetModules()
})

interface Incoming {
  method?: string
  url?: string
  originalUrl?: string
  httpVersion?: string
  headers?: IncomingHttpHeaders
  socket?: object
}

function requestOf({
  method = 'GET',
  url = '/',
  headers = {},
  socket = {},
  ...rest
}: Incoming): IncomingMessage {
  return { method, url, httpVersion: '1.1', headers, socket, ...rest } as unknown as IncomingMessage
}

function attributesOf(
  incoming: Incoming,
  trustProxy = false,
  capture: string[] = [],
): Record<string, unknown> {
  const request = requestOf(incoming)
  return http.serverAttributes(request, http.targetOf(request), trustProxy, capture)
}

test('the name of a span whose route is made of data is not kept', async () => {
  const { stdout } = await app(`
    import { spanName } from './packages/core/dist/http.js'
    import { setFlagsFromString } from 'node:v8'
    import { runInNewContext } from 'node:vm'
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc')
    const before = process.memoryUsage().heapUsed
    for (let count = 0; count < 100_000; count++) spanName('GET', '/orders/' + String(count).padEnd(200, '-'))
    collect()
    console.log((process.memoryUsage().heapUsed - before) / 1_000_000)
  `).ended
  expect(Number(stdout)).toBeLessThan(10)
})

describe('the method', () => {
  test.each(['CONNECT', 'DELETE', 'GET', 'HEAD', 'OPTIONS', 'PATCH', 'POST', 'PUT', 'QUERY', 'TRACE'])(
    '%s is known',
    (method) => {
      expect(http.methodAttribute(method)).toBe(method)
      expect(http.spanName(method)).toBe(method)
      expect(http.spanName(method, '/users/:id')).toBe(`${method} /users/:id`)
      expect(attributesOf({ method })).not.toHaveProperty('http.request.method_original')
    },
  )

  test.each(['PROPFIND', 'get', 'Get', ''])('%j is another one, and is kept as it came', (method) => {
    expect(attributesOf({ method })).toMatchObject({
      'http.request.method': '_OTHER',
      'http.request.method_original': method,
    })
    expect(http.spanName(method)).toBe('HTTP')
    expect(http.spanName(method, '/users/:id')).toBe('HTTP /users/:id')
  })

  test.each(['GET,PROPFIND', ' GET , PROPFIND '])(
    'OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS=%j is the whole list',
    (list) => {
      vi.stubEnv('OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS', list)
      expect(http.methodAttribute('PROPFIND')).toBe('PROPFIND')
      expect(http.methodAttribute('GET')).toBe('GET')
      expect(http.methodAttribute('POST')).toBe('_OTHER')
      expect(http.spanName('POST')).toBe('HTTP')
    },
  )

  test('an empty list is none', () => {
    vi.stubEnv('OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS', ' ')
    expect(http.methodAttribute('POST')).toBe('POST')
  })
})

describe('the host', () => {
  test.each<[string, string, number | undefined]>([
    ['example.com', 'example.com', undefined],
    ['example.com:8443', 'example.com', 8443],
    ['example.com:', 'example.com', undefined],
    ['10.0.0.1:80', '10.0.0.1', 80],
    ['[::1]:3000', '::1', 3000],
    ['[2001:db8::7]', '2001:db8::7', undefined],
    ['::1', '::1', undefined],
    ['2001:db8::7', '2001:db8::7', undefined],
    ['[::1', '[::1', undefined],
    ['example.com:http', 'example.com:http', undefined],
    ['example.com:65535', 'example.com', 65_535],
    ['example.com:65536', 'example.com:65536', undefined],
    // Credentials stay here.
    ['user:pass@example.com:8443', 'example.com', 8443],
    ['user:p@ss@[::1]', '::1', undefined],
  ])('%s', (host, address, port) => {
    const attributes = attributesOf({ headers: { host } })
    expect(attributes['server.address']).toBe(address)
    expect(attributes['server.port']).toBe(port)
  })

  test.each<[string, IncomingHttpHeaders]>([
    ['there is none', {}],
    ['it is empty', { host: '' }],
    ['it has credentials alone', { host: 'user:pass@' }],
    ['it has a port alone', { host: ':8443' }],
    ['it has brackets alone', { host: '[]' }],
  ])('where %s, there is no server.address', (_title, headers) => {
    const attributes = attributesOf({ headers })
    expect(attributes).not.toHaveProperty('server.address')
    expect(attributes).not.toHaveProperty('server.port')
  })

  test('of HTTP/2 is the authority', () => {
    const headers = { ':authority': 'example.com:8443' } as IncomingHttpHeaders
    expect(attributesOf({ headers, httpVersion: '2.0' })).toMatchObject({
      'server.address': 'example.com',
      'server.port': 8443,
      'network.protocol.version': '2',
    })
  })
})

describe('the path', () => {
  test.each([
    ['/', '/', undefined],
    ['/a/b', '/a/b', undefined],
    ['/a?', '/a', undefined],
    ['/a?b=1', '/a', 'b=1'],
    ['/a?b=/c?d', '/a', 'b=/c?d'],
    ['/a?to=http://b/c', '/a', 'to=http://b/c'],
    ['//a/b', '//a/b', undefined],
    ['*', '*', undefined],
    ['http://example.com/a?b=1', '/a', 'b=1'],
    ['http://example.com', '/', undefined],
    ['http://user:secret@example.com?b=1', '/', 'b=1'],
    ['/a?b=1#c?d', '/a', 'b=1'],
    ['/a?#b', '/a', undefined],
    ['/a#b?c', '/a', undefined],
    ['', '/', undefined],
  ])('of %j is %j, and the query is %j', (url, path, query) => {
    const attributes = attributesOf({ url })
    expect(attributes['url.path']).toBe(path)
    expect(attributes['url.query']).toBe(query)
    expect(http.pathOf(url)).toBe(path)
  })

  test('is the one that came, where the framework has rewritten it', () => {
    expect(attributesOf({ url: '/7?b=1', originalUrl: '/users/7?b=1' })).toMatchObject({
      'url.path': '/users/7',
      'url.query': 'b=1',
    })
  })

  test.each([
    ['sig=x&b=1', 'sig=REDACTED&b=1'],
    ['Sig=x', 'Sig=x'],
  ])('has a query %s that is exported as %s', (query, exported) => {
    expect(attributesOf({ url: `/a?${query}` })['url.query']).toBe(exported)
  })
})

describe('the scheme', () => {
  test.each([
    [{ encrypted: true }, 'https'],
    [{}, 'http'],
  ])('on a socket that is %j is %s', (socket, scheme) => {
    expect(attributesOf({ socket })['url.scheme']).toBe(scheme)
  })
})

describe('the peer', () => {
  test('is the socket’s, and the client too', () => {
    expect(attributesOf({ socket: { remoteAddress: '10.0.0.7', remotePort: 4711 } })).toMatchObject({
      'client.address': '10.0.0.7',
      'network.peer.address': '10.0.0.7',
      'network.peer.port': 4711,
    })
  })

  test('of a socket that has gone is nobody', () => {
    const keys = Object.keys(attributesOf({}))
    expect(keys.filter((key) => key.startsWith('client.') || key.startsWith('network.peer'))).toEqual([])
  })
})

describe('behind a proxy that is trusted', () => {
  const socket = { remoteAddress: '10.0.0.7' }
  const KEYS = ['server.address', 'server.port', 'url.scheme', 'client.address'] as const

  test.each<[string, IncomingHttpHeaders, (string | number | undefined)[]]>([
    ['says nothing', {}, ['inside', 80, 'http', '10.0.0.7']],
    ['names the host', { 'x-forwarded-host': 'a.com' }, ['a.com', undefined, 'http', '10.0.0.7']],
    ['names host and port', { 'x-forwarded-host': 'a.com:8443' }, ['a.com', 8443, 'http', '10.0.0.7']],
    ['names the scheme', { 'x-forwarded-proto': 'https' }, ['inside', 80, 'https', '10.0.0.7']],
    ['names the client', { 'x-forwarded-for': '203.0.113.9' }, ['inside', 80, 'http', '203.0.113.9']],
    [
      'has others before it',
      {
        'x-forwarded-for': ' 203.0.113.9 , 10.0.0.9',
        'x-forwarded-host': 'a.com, b.com',
        'x-forwarded-proto': 'https,http',
      },
      ['a.com', undefined, 'https', '203.0.113.9'],
    ],
    [
      'adds the client’s port',
      { 'x-forwarded-for': '203.0.113.9:51000' },
      ['inside', 80, 'http', '203.0.113.9'],
    ],
    ['has a client of IPv6', { 'x-forwarded-for': '2001:db8::7' }, ['inside', 80, 'http', '2001:db8::7']],
    [
      'adds the port of one',
      { 'x-forwarded-for': '[2001:db8::7]:51000' },
      ['inside', 80, 'http', '2001:db8::7'],
    ],
    [
      'sends empty headers',
      { 'x-forwarded-for': '', 'x-forwarded-host': ' ', 'x-forwarded-proto': '' },
      ['inside', 80, 'http', '10.0.0.7'],
    ],
    [
      'speaks the standard',
      { forwarded: 'for=203.0.113.9;host=a.com;proto=https' },
      ['a.com', undefined, 'https', '203.0.113.9'],
    ],
    [
      'speaks the standard with quotes, capitals, blanks and others behind it',
      { forwarded: 'For="[2001:db8::7]:4711"; Proto=https; HOST="a.com:8443", for=10.0.0.9;host=b.com' },
      ['a.com', 8443, 'https', '2001:db8::7'],
    ],
    [
      'says half of it in the standard way',
      { forwarded: 'for=203.0.113.9', 'x-forwarded-for': '203.0.113.1', 'x-forwarded-proto': 'https' },
      ['inside', 80, 'https', '203.0.113.9'],
    ],
    [
      'keeps the client to itself, in the standard way',
      { forwarded: 'for=unknown;proto=HTTPS' },
      ['inside', 80, 'https', '10.0.0.7'],
    ],
    [
      'has a name of its own for the client',
      { forwarded: 'for="_gazonk"', 'x-forwarded-for': 'unknown, 10.0.0.9' },
      ['inside', 80, 'http', '10.0.0.7'],
    ],
    [
      'hides the client’s port',
      { forwarded: 'for="[2001:db8::7]:_a.b-c"' },
      ['inside', 80, 'http', '2001:db8::7'],
    ],
    [
      'hides the client, and not its port',
      { forwarded: 'for="unknown:80"' },
      ['inside', 80, 'http', '10.0.0.7'],
    ],
    [
      'begins with an empty element of a list',
      { forwarded: ' ,, for=203.0.113.9;proto=https', 'x-forwarded-host': ', a.com' },
      ['a.com', undefined, 'https', '203.0.113.9'],
    ],
    [
      'says it in the value of another parameter',
      { forwarded: 'by="a, b;for=1.1.1.1";ext="\\";host=b.com";for=203.0.113.9;for=1.1.1.2' },
      ['inside', 80, 'http', '203.0.113.9'],
    ],
    [
      'escapes what it quotes',
      { forwarded: 'host="a\\.com:8443";proto="h\\ttps"' },
      ['a.com', 8443, 'https', '10.0.0.7'],
    ],
    [
      'says more than the standard knows',
      { forwarded: '; by ;; secret=;For = 203.0.113.9 ;proto=' },
      ['inside', 80, 'http', '203.0.113.9'],
    ],
    [
      'says it of another parameter',
      { forwarded: 'xfor=1;xhost=b;by=2' },
      ['inside', 80, 'http', '10.0.0.7'],
    ],
  ])('that %s', (_title, headers, wanted) => {
    const attributes = attributesOf({ socket, headers: { host: 'inside:80', ...headers } }, true)
    expect(KEYS.map((key) => attributes[key])).toEqual(wanted)
    expect(attributes['network.peer.address']).toBe('10.0.0.7')
  })

  test('and nobody is believed who is not', () => {
    const headers = {
      host: 'inside:80',
      forwarded: 'for=1.1.1.1;host=a.com;proto=https',
      'x-forwarded-for': '1.1.1.1',
    }
    const attributes = attributesOf({ socket, headers }, false)
    expect(KEYS.map((key) => attributes[key])).toEqual(['inside', 80, 'http', '10.0.0.7'])
  })
})

describe('headers', () => {
  test('are recorded by name only, each as a list', () => {
    const headers = { 'x-id': 'a', 'set-cookie': ['b', 'c'], authorization: 'secret', 'user-agent': 'curl/8' }
    const attributes = attributesOf({ headers }, false, ['x-id', 'set-cookie', 'x-missing'])
    expect(attributes).toMatchObject({
      'http.request.header.x-id': ['a'],
      'http.request.header.set-cookie': ['b', 'c'],
      'user_agent.original': 'curl/8',
    })
    expect(Object.keys(attributes).filter((key) => key.includes('.header.'))).toHaveLength(2)
  })

  test.each(['constructor', '__proto__', 'tostring', 'valueof'])('that are not there have no %s', (name) => {
    expect(attributesOf({}, false, [name, 'toString'])).toEqual(attributesOf({}))
  })
})

describe('the old names', () => {
  const VARIABLE = 'OTEL_SEMCONV_STABILITY_OPT_IN'
  const incoming = {
    method: 'PROPFIND',
    url: '/a?b=1&sig=secret',
    headers: { host: 'a.com:8443', 'user-agent': 'curl/8' },
    socket: { remoteAddress: '10.0.0.7', remotePort: 4711 },
  }
  const OLD = {
    'http.method': 'PROPFIND',
    'http.target': '/a?b=1&sig=REDACTED',
    'http.scheme': 'http',
    'http.flavor': '1.1',
    'http.user_agent': 'curl/8',
    'http.client_ip': '10.0.0.7',
    'http.host': 'a.com:8443',
    'net.host.name': 'a.com',
    'net.host.port': 8443,
    'net.sock.peer.addr': '10.0.0.7',
    'net.sock.peer.port': 4711,
    'net.protocol.version': '1.1',
  }

  test.each(['http/dup', 'HTTP/DUP', ' database , http/dup', 'http,http/dup', 'gen_ai_latest,http/dup'])(
    'stand beside the new ones with %j',
    (list) => {
      const stable = attributesOf(incoming)
      expect(stable).not.toHaveProperty('http.method')
      vi.resetModules()
      return import('../../packages/core/src/http.ts').then((again) => {
        vi.stubEnv(VARIABLE, list)
        http = again
        expect(attributesOf(incoming)).toEqual({ ...stable, ...OLD })
      })
    },
  )

  test.each(['', ' ', 'http', 'database', 'database/dup', 'http/dupe', 'messaging,code/dup', ','])(
    'are not there with %j, and nothing is said of it',
    (list) => {
      vi.stubEnv(VARIABLE, list)
      const reports = vi.spyOn(console, 'error')
      expect(Object.keys(attributesOf(incoming)).filter((name) => name in OLD)).toEqual([])
      expect(reports).not.toHaveBeenCalled()
    },
  )

  test('are told for each area by itself', async () => {
    vi.stubEnv(VARIABLE, 'http,database/dup')
    const { wantsOldNames } = await import('../../packages/core/src/http.ts')
    expect([wantsOldNames('http'), wantsOldNames('database')]).toEqual([false, true])
  })

  test('have the version of HTTP/2 in two forms, and hosts of IPv6 in brackets', () => {
    vi.stubEnv(VARIABLE, 'http/dup')
    expect(attributesOf({ httpVersion: '2.0', headers: { host: '[::1]:3000' } })).toMatchObject({
      'http.flavor': '2.0',
      'net.protocol.version': '2',
      'http.host': '[::1]:3000',
      'net.host.name': '::1',
    })
  })

  test('are there for what a request has, and for nothing else', () => {
    vi.stubEnv(VARIABLE, 'http/dup')
    const old = Object.keys(attributesOf({})).filter((name) => name in OLD)
    expect(old.sort()).toEqual([
      'http.flavor',
      'http.method',
      'http.scheme',
      'http.target',
      'net.protocol.version',
    ])
  })

  test('of a call name the other side as the peer', () => {
    const attributes = {
      'http.request.method': 'GET',
      'url.full': 'https://a.com/b?c=1',
      'server.address': 'a.com',
      'server.port': 443,
      'network.peer.address': '10.0.0.7',
      'http.response.status_code': 404,
    }
    expect(http.withOldNames(attributes, SpanKind.CLIENT)).toEqual({
      ...attributes,
      'http.method': 'GET',
      'http.url': 'https://a.com/b?c=1',
      'http.host': 'a.com:443',
      'net.peer.name': 'a.com',
      'net.peer.port': 443,
      'net.sock.peer.addr': '10.0.0.7',
      'http.status_code': 404,
    })
    expect(attributes).not.toHaveProperty('http.method')
  })
})
