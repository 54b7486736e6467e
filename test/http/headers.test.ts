import { context, propagation } from '@opentelemetry/api'
import { span, type ReadableSpan } from '@throughline/core'
import { once } from 'node:events'
import * as http from 'node:http'
import * as net from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { said } from '../core/engine.ts'
import { record } from '../recording.ts'
import { sentAs, traceparents } from '../contract/http-client.ts'
import { answerTo, isPublished, served, traced } from './served.ts'

const OLD = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'

/** The ways in which an app gives a request its headers, `Traceparent` among them. */
const forms: Record<string, (url: string) => http.ClientRequest> = {
  'as an object': (url) => http.request(url, { headers: { Traceparent: OLD, 'x-own': '1' } }).end(),
  'as an object, to get': (url) => http.get(url, { headers: { Traceparent: OLD, 'x-own': '1' } }),
  'as a frozen object without a prototype': (url) =>
    http.get(url, {
      headers: Object.freeze({ __proto__: null, Traceparent: OLD, 'x-own': '1' }) as never,
    }),
  'as a flat list': (url) =>
    http.request(url, { headers: ['Host', 'app.example', 'Traceparent', OLD, 'x-own', '1'] }).end(),
  'as a flat list, to get': (url) =>
    http.get(url, { headers: ['Host', 'app.example', 'Traceparent', OLD, 'x-own', '1'] }),
  'as a list of pairs': (url) =>
    http.get(url, {
      headers: [
        ['Traceparent', OLD],
        ['x-own', '1'],
      ] as never,
    }),
  'as an object in two spellings': (url) =>
    http.get(url, { headers: { Traceparent: OLD, traceparent: OLD, 'x-own': '1' } }),
  'as a list in two spellings': (url) =>
    http.get(url, { headers: ['Traceparent', OLD, 'x-own', '1', 'traceparent', OLD] }),
  'by setHeader': (url) => {
    const request = http.request(url)
    request.setHeader('Traceparent', OLD)
    request.setHeader('x-own', '1')
    return request.end()
  },
  'by setHeader, and sent before there is a body': (url) => {
    const request = http.request(url, { method: 'POST' })
    request.setHeader('Traceparent', OLD).setHeader('x-own', '1').flushHeaders()
    return request.end('body')
  },
  'by setHeader, and sent with a body': (url) => {
    const request = http.request(url, { method: 'POST' }).setHeader('x-own', '1')
    request.setHeader('Traceparent', [OLD, OLD])
    request.write(Buffer.from('bo'))
    return request.end('dy')
  },
  'of a request that expects to be asked for its body': (url) => {
    const headers = { expect: '100-continue', Traceparent: OLD, 'x-own': '1' }
    const request = http.request(url, { method: 'POST', headers })
    return request.on('continue', () => request.end('body'))
  },
  'as a list, of a request that expects to be asked for its body': (url) => {
    const headers = ['Expect', '100-continue', 'Traceparent', OLD, 'x-own', '1']
    const request = http.request(url, { method: 'POST', headers })
    return request.on('continue', () => request.end('body'))
  },
}

function sentFor(call: ReadableSpan | undefined): string {
  const { traceId, spanId } = call?.spanContext() ?? {}
  return `00-${traceId}-${spanId}-03`
}

/** What arrived, without what says which trace it is of. */
function others({ rawHeaders }: http.IncomingMessage): string[] {
  return rawHeaders.filter((_, index) => rawHeaders[index - (index % 2)]?.toLowerCase() !== 'traceparent')
}

const echo: http.RequestListener = (request, response) => {
  request.pipe(response)
}

describe.each(Object.entries(forms))('headers given %s', (_form, make) => {
  test('arrive with one traceparent, of the span of the request, and all others as before', async () => {
    const recording = record()
    const { url, requests } = await served(echo)
    const bare = await answerTo(make(url))
    traced()
    expect(await answerTo(make(url))).toBe(bare)
    const [call] = await recording.all(1)
    expect(traceparents(requests[1])).toEqual([sentFor(call)])
    expect(others(requests[1] as http.IncomingMessage)).toEqual(others(requests[0] as http.IncomingMessage))
  })

  test('are sent as they are where those of the app are to be kept', async () => {
    const recording = record()
    const { url, requests } = await served(echo)
    const bare = await answerTo(make(url))
    traced({ headers: 'keep' })
    expect(await answerTo(make(url))).toBe(bare)
    await recording.all(1)
    expect(requests[1]?.rawHeaders).toEqual(requests[0]?.rawHeaders)
  })
})

/** What a request says of its headers. */
function told(request: http.ClientRequest): unknown[] {
  return [
    { ...request.getHeaders() },
    request.getHeaderNames(),
    request.getRawHeaderNames(),
    request.headersSent,
  ]
}

test.each(Object.entries(forms))(
  'what an app has set is found by it as it was, before and after it was sent: headers given %s',
  async (_form, make) => {
    record()
    const { url } = await served(echo)
    const bare = make(url)
    const bareAtFirst = told(bare)
    await answerTo(bare)
    traced()
    const request = make(url)
    expect(told(request)).toEqual(bareAtFirst)
    await answerTo(request)
    expect(told(request)).toEqual(told(bare))
  },
)

test.each(Object.entries(forms))(
  'what an app has put into Object.prototype is no header: headers given %s',
  async (_form, make) => {
    const reports = said()
    const recording = record()
    const { url, requests } = await served(echo)
    const bare = await answerTo(make(url))
    traced()
    const extend = Object.assign(() => {}, { toString: () => 'a\nfunction' })
    Object.assign(Object.prototype, { extend })
    onTestFinished(() => void Reflect.deleteProperty(Object.prototype, 'extend'))
    const baggage = propagation.createBaggage({ tenant: { value: 'acme' } })
    const scope = propagation.setBaggage(context.active(), baggage)
    expect(await answerTo(context.with(scope, () => make(url)))).toBe(bare)
    const [call] = await recording.all(1)
    expect(traceparents(requests[1])).toEqual([sentFor(call)])
    expect(others(requests[1] as http.IncomingMessage)).toEqual([
      ...others(requests[0] as http.IncomingMessage),
      'baggage',
      'tenant=acme',
    ])
    expect(reports.lines).toEqual([])
  },
)

test('what an app hands over is not written to', async () => {
  record()
  const { url } = await served()
  traced()
  const headers = { 'X-Own': '1' }
  const request = http.request(url, { headers })
  expect(request.getRawHeaderNames()).toEqual(['X-Own', 'Host'])
  expect(request.headersSent).toBe(false)
  await answerTo(request.end())
  expect(headers).toEqual({ 'X-Own': '1' })
})

test('a request that is told late to expect 100-continue has one traceparent too', async () => {
  const recording = record()
  const { url, requests } = await served(echo)
  traced()
  const request = http.request(url, { method: 'POST' })
  const [socket] = (await once(request, 'socket')) as [net.Socket]
  await once(socket, 'connect')
  request.setHeader('Expect', '100-continue').setHeader('Traceparent', OLD)
  request.on('continue', () => request.end('body'))
  request.flushHeaders()
  expect(await answerTo(request)).toBe('body')
  const [call] = await recording.all(1)
  expect(traceparents(requests[0])).toEqual([sentFor(call)])
})

test.each([
  ['an object', { tracestate: 'old=1', baggage: 'old=2' }],
  ['a list', ['tracestate', 'old=1', 'baggage', 'old=2']],
])('the tracestate of another trace gives way with it, and baggage with ours: %s', async (_form, headers) => {
  record()
  const { url, requests } = await served()
  traced()
  await answerTo(http.get(url, { headers }))
  const baggage = propagation.createBaggage({ user: { value: 'u1' } })
  await context.with(propagation.setBaggage(context.active(), baggage), () =>
    answerTo(http.get(url, { headers })),
  )
  expect(requests.map((each) => [sentAs(each, 'tracestate'), sentAs(each, 'baggage')])).toEqual([
    [[], ['old=2']],
    [[], ['user=u1']],
  ])
})

test('a header that is set when the request has been made is recorded, as it is sent', async () => {
  const recording = record()
  const { url } = await served()
  traced({ capture: { requestHeaders: ['X-Tenant'] } })
  const request = http.request(url, { headers: { 'x-tenant': 'first', cookie: 'secret' } })
  request.setHeader('x-tenant', 'acme')
  await answerTo(request.end())
  await answerTo(http.get(url, { headers: ['X-Tenant', 'listed', 'cookie', 'secret'] }))
  const spans = await recording.all(2)
  expect(spans.map((each) => each.attributes['http.request.header.x-tenant'])).toEqual([['acme'], ['listed']])
  expect(JSON.stringify(spans.map((each) => each.attributes))).not.toContain('secret')
})

test.each([
  ['an object', { a: '1' }],
  ['a list', ['a', '1']],
])(
  "what cannot be sent of a propagator of the app's costs that header, not the request: %s",
  async (_form, headers) => {
    const recording = record({
      propagator: {
        inject: (_from: unknown, carrier: object) => void Object.assign(carrier, { 'x-trace': 'a\r\nb: c' }),
        extract: <C>(into: C) => into,
        fields: () => [],
      },
    })
    const { url, requests } = await served()
    traced()
    expect(await answerTo(http.get(url, { headers }))).toBe('hello')
    await recording.all(1)
    expect(requests[0]?.headers).toMatchObject({ a: '1' })
    expect(requests[0]?.headers).not.toHaveProperty('b')
    expect(requests[0]?.headers).not.toHaveProperty('x-trace')
  },
)

test('an ignored request, and one that nobody traces, carry the trace of their caller', async () => {
  const recording = record()
  const { url, requests } = await served()
  traced({ ignore: /ignored/ })
  await span('caller', async () => {
    await answerTo(http.get(`${url}/ignored`))
    await answerTo(http.get(`${url}/ignored`, { headers: ['a', '1'] }))
  })
  const [caller] = await recording.all(1)
  expect(requests.map((each) => traceparents(each))).toEqual([[sentFor(caller)], [sentFor(caller)]])
})

test('a request that is too late to be changed is refused in the words of Node', async () => {
  record()
  const { url } = await served()
  traced()
  const request = http.request(url)
  request.flushHeaders()
  expect(() => request.setHeader('traceparent', OLD)).toThrow(
    expect.objectContaining({ code: 'ERR_HTTP_HEADERS_SENT' }),
  )
  await answerTo(request.end())
})

test.runIf(isPublished())(
  'a request that is made by its class has a span and a traceparent too',
  async () => {
    const recording = record()
    const { url, requests } = await served()
    traced()
    const request = new http.ClientRequest(new URL(url))
    await answerTo(request.end())
    const [call] = await recording.all(1)
    expect(traceparents(requests[0])).toEqual([sentFor(call)])
  },
)

test('what waits for a connection goes along with the trace of who made it', async () => {
  const recording = record()
  const { url, requests } = await served()
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  traced()
  const callers = Array.from({ length: 50 }, (_, index) => `caller ${index}`)
  await Promise.all(callers.map((name) => span(name, () => answerTo(http.get(url, { agent })))))
  agent.destroy()

  const spans = await recording.all(100)
  const calls = spans.filter(({ name }) => name === 'GET')
  expect(requests.flatMap(traceparents).sort()).toEqual(calls.map(sentFor).sort())
  for (const name of callers) {
    const caller = spans.find((each) => each.name === name)?.spanContext()
    const own = calls.filter((each) => each.parentSpanContext?.spanId === caller?.spanId)
    expect(own.map((each) => each.spanContext().traceId)).toEqual([caller?.traceId])
  }
})

test('an agent may make a request of its own while it is given one, and each goes where it goes', async () => {
  const recording = record()
  const [own, other] = [await served(), await served()]
  const agent = new http.Agent()
  const { createConnection } = agent as unknown as { createConnection: (...args: unknown[]) => unknown }
  const asked: Promise<unknown>[] = []
  Object.assign(agent, {
    createConnection(this: unknown, ...args: unknown[]) {
      asked.push(answerTo(http.get(other.url)))
      return createConnection.apply(this, args)
    },
  })
  traced()
  // What the Host header says is of no help.
  await answerTo(http.get(own.url, { agent, headers: { host: 'shop.example' } }))
  await Promise.all(asked)
  const spans = await recording.all(2)
  for (const { port, requests } of [own, other]) {
    const call = spans.find((each) => each.attributes['server.port'] === port)
    expect(requests.flatMap(traceparents)).toEqual([sentFor(call)])
  }
})

/** What an agent may do with a request that it sends by a proxy, as `http-proxy-agent` does: its head is written anew. */
type Rewritten = http.ClientRequest & {
  _header: string | null
  _implicitHeader(): void
  outputData: { data: string }[]
}

class ProxyAgent extends http.Agent {
  addRequest(request: Rewritten, { host, port }: { host: string; port: number }): void {
    setImmediate(() => {
      request.path = `http://app.example${request.path}`
      request._header = null
      request.setHeader('Proxy-Connection', 'close')
      request._implicitHeader()
      const [first] = request.outputData
      if (first !== undefined)
        first.data = request._header + first.data.slice(first.data.indexOf('\r\n\r\n') + 4)
      request.onSocket(net.connect(port, host))
    })
  }
}

test.each([
  ['that has ended', {}],
  ['with a trace of its own', { traceparent: OLD }],
])('a request %s has one traceparent also where its agent writes its head anew', async (_title, headers) => {
  const recording = record()
  const { url, requests } = await served()
  traced()
  await answerTo(http.get(`${url}/a`, { agent: new ProxyAgent(), headers }))
  const [call] = await recording.all(1)
  expect(requests[0]?.url).toBe('http://app.example/a')
  expect(requests.flatMap(traceparents)).toEqual([sentFor(call)])
})

test('what waits to be sent is as long as it is', async () => {
  record()
  const { url } = await served(echo)
  traced()
  for (const headers of [{ expect: '100-continue' }, ['Expect', '100-continue']]) {
    const request = http.request(url, { method: 'POST', headers })
    expect(request.writableLength).toBe((request as unknown as { _header: string })._header.length)
    request.on('continue', () => request.end('body'))
    await answerTo(request)
  }
})

test.each<[string, http.OutgoingHttpHeaders | readonly string[]]>([
  ['an object', { 'x-a': ['1', '2'] }],
  ['a list', ['x-a', '1', 'X-A', '2']],
])(
  'a header of a request that is sent twice is recorded as two values: given by %s',
  async (_title, headers) => {
    const recording = record()
    traced({ capture: { requestHeaders: ['x-a'] } })
    const { url } = await served()
    await answerTo(http.get(url, { headers }))
    await answerTo(http.request(url, { headers }).end())
    const spans = await recording.all(2)
    const recorded = spans.map(({ attributes }) => attributes['http.request.header.x-a'])
    expect(recorded).toEqual([
      ['1', '2'],
      ['1', '2'],
    ])
  },
)
