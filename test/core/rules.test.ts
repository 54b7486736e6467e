import { context, propagation, SpanKind, trace, type Attributes } from '@opentelemetry/api'
import { start, traceRequest, type RuleMatch, type SamplingRule } from '@throughline/core'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { expect, test } from 'vitest'
import { ignoresAttributes, ruleBased } from '../../packages/core/src/sampling.ts'
import { said } from './engine.ts'
import { record } from '../recording.ts'

const rules: SamplingRule[] = [
  { match: { path: ['/health', /^\/assets\//] }, rate: 0 },
  { match: { kind: 'server', method: 'POST' }, rate: 1 },
  { match: { kind: 'server', attributes: { 'server.address': '127.0.0.1' } }, rate: 0 },
  { match: { name: /^nightly/ }, rate: 0 },
]

async function requests(...wanted: [method: string, path: string][]): Promise<void> {
  const server = createServer((request, response) => traceRequest(request, response, () => response.end()))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  for (const [method, path] of wanted)
    await (await fetch(`http://127.0.0.1:${port}${path}`, { method })).text()
  server.closeAllConnections()
  server.close()
  await once(server, 'close')
}

test('the first rule that matches a request decides about its trace', async () => {
  const recording = record({ sampling: rules })
  await requests(['POST', '/health'], ['GET', '/assets/a.css'], ['GET', '/orders'], ['POST', '/orders'])
  const [kept] = await recording.all(1)
  expect(kept?.attributes).toMatchObject({ 'http.request.method': 'POST', 'url.path': '/orders' })
})

test('where no rule matches, the trace is kept', async () => {
  const recording = record({ sampling: rules })
  const tracer = trace.getTracer('test')
  tracer.startSpan('nightly clean-up').end()
  tracer.startSpan('hourly clean-up').end()
  expect((await recording.all(1))[0]?.name).toBe('hourly clean-up')
})

test('a rule is not asked about a trace that somebody else has started', async () => {
  const recording = record({ sampling: [{ match: {}, rate: 0 }] })
  const carrier = { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' }
  trace.getTracer('test').startSpan('continued', {}, propagation.extract(context.active(), carrier)).end()
  await recording.all(1)
})

test('a rule that throws does not match, which is said once by its name, and the request goes on', async () => {
  const reports = said()
  const broken = () => {
    throw new Error('of the app')
  }
  const recording = record({ sampling: [{ match: { path: broken }, rate: 0 }] })
  await requests(['GET', '/'], ['GET', '/'])
  await recording.all(2)
  expect(reports.lines).toEqual([expect.stringContaining('given as path threw')])
})

test('a rule matches by kind, by a function, a RegExp with state of its own, and by any attribute as text', async () => {
  const recording = record({
    sampling: [
      { match: { kind: 'client', name: (name) => name.startsWith('GET') }, rate: 0 },
      { match: { kind: 'internal', name: /sync/g }, rate: 0 },
      {
        match: { attributes: { 'app.tier': ['free', /^trial/], 'app.shard': '7', 'app.beta': 'true' } },
        rate: 0,
      },
      { match: { attributes: { 'app.plan': (plan) => plan === 'gold' } }, rate: 1 },
      { match: {}, rate: 0 },
    ],
  })
  const tracer = trace.getTracer('test')
  const started = (name: string, kind: SpanKind, attributes: Attributes) =>
    tracer.startSpan(name, { kind, attributes: { 'app.plan': 'gold', ...attributes } }).end()
  for (const round of [1, 2]) {
    started('GET /', SpanKind.CLIENT, {})
    started('sync', SpanKind.INTERNAL, {})
    started(`POST ${round}`, SpanKind.CLIENT, {})
    started(`tier ${round}`, SpanKind.SERVER, { 'app.tier': 'trial-2', 'app.shard': 7, 'app.beta': true })
    started(`shard ${round}`, SpanKind.SERVER, { 'app.tier': 'trial-2', 'app.shard': 70, 'app.beta': true })
    started(`plan ${round}`, SpanKind.SERVER, { 'app.plan': 'iron' })
  }
  const kept = await recording.all(4)
  expect(kept.map(({ name }) => name)).toEqual(['POST 1', 'shard 1', 'POST 2', 'shard 2'])
})

test('a rule reads a list as its text, also where an item is not there', async () => {
  const recording = record({ sampling: [{ match: { attributes: { 'app.tiers': 'free,,trial' } }, rate: 0 }] })
  const tracer = trace.getTracer('test')
  for (const tiers of [['free', null, 'trial'], ['free', undefined, 'trial'], ['free']])
    tracer.startSpan(String(tiers), { attributes: { 'app.tiers': tiers } }).end()
  expect((await recording.all(1)).map(({ name }) => name)).toEqual(['free'])
})

test('the rate of a rule is told to whoever counts the spans, also where no rule matched', async () => {
  const recording = record({
    sampling: [
      { match: { name: 'tenth' }, rate: 0.1 },
      { match: { name: 'all' }, rate: 1 },
      { match: { name: 'none' }, rate: 0 },
    ],
  })
  const tracer = trace.getTracer('test')
  for (let count = 0; count < 500; count += 1) tracer.startSpan('tenth').end()
  tracer.startSpan('none').end()
  tracer.startSpan('all').end()
  tracer.startSpan('other').end()
  const told = new Set(
    recording.spans.map((span) => `${span.name} ${span.spanContext().traceState?.serialize()}`),
  )
  // That not one of 500 is kept happens once in 10^22 runs.
  expect([...told]).toEqual(['tenth ot=th:e666', 'all ot=th:0', 'other ot=th:0'])
})

test('rules that ask for the name or the kind alone have no attributes built for what they drop', () => {
  const asked = (match: RuleMatch) => ignoresAttributes(ruleBased([{ match, rate: 0 }]))
  expect([asked({}), asked({ name: 'x' }), asked({ kind: 'server' })]).toEqual([true, true, true])
  const others: RuleMatch[] = [{ path: '/' }, { method: 'GET' }, { attributes: { a: 'b' } }]
  expect(others.map(asked)).toEqual([false, false, false])
})

test('what a span does not record matches no rule, whatever it would be as text', async () => {
  const reports = said()
  const noAttributes = { none: null, fn: () => 'text' }
  const noText = {
    nothing: {},
    bare: Object.create(null),
    bytes: Buffer.from('text'),
    list: [Object.create(null)],
  }
  const sampling = ['none', 'fn', ...Object.keys(noText), 'constructor', 'toString'].map((name) => ({
    match: { attributes: { [name]: /./ } },
    rate: 0,
  }))
  const recording = record({ sampling })
  trace
    .getTracer('test')
    .startSpan('kept', { attributes: { ...noAttributes, ...noText } as unknown as Attributes })
    .end()
  const [kept] = await recording.all(1)
  expect(kept?.spanContext().traceState?.serialize()).toBe('ot=th:0')
  expect(reports.lines.filter((line) => !line.includes('an attribute was not recorded'))).toEqual([])
})

test('a RegExp that is frozen is asked as any other', async () => {
  const frozen = [/sync/g, /sync/y].map((test) => Object.freeze(test))
  const recording = record({ sampling: [{ match: { name: frozen }, rate: 0 }] })
  const tracer = trace.getTracer('test')
  for (const name of ['sync', 'sync', 'other', 'async']) tracer.startSpan(name).end()
  expect((await recording.all(1)).map(({ name }) => name)).toEqual(['other'])
})

test('attributes that throw when they are read cost themselves, and not the span', async () => {
  const recording = record({ sampling: [{ match: { path: '/health' }, rate: 0 }] })
  const attributes = {
    a: 1,
    get broken(): number {
      throw new Error('of the app')
    },
  }
  trace.getTracer('test').startSpan('kept', { attributes }).end()
  expect((await recording.all(1))[0]?.attributes).toEqual({ a: 1 })
})

test('a rule for the route is a TypeError that says why there is none, and what to match instead', () => {
  const sampling = [{ match: { route: '/users/:id' }, rate: 1 }] as unknown as SamplingRule[]
  expect(() => start({ sampling })).toThrow(TypeError)
  expect(() => start({ sampling })).toThrow(
    /^start\(\): expected .*path.*received route, which is not known when a span starts.*path instead; example: \{ match: \{ path: /,
  )
})

test.each([
  [{ match: { path: 7 }, rate: 1 }, /expected path to be a function, a string.*received 7/],
  [{ match: { kind: 'SERVER' }, rate: 1 }, /expected kind to be one of internal, server/],
  [{ match: null, rate: 1 }, /expected match to be a plain object/],
  [{ match: /health/, rate: 0 }, /expected match to be a plain object, received an object of RegExp/],
  [{ match: new Map(), rate: 0 }, /expected match to be a plain object, received an object of Map/],
  [{ match: [], rate: 0 }, /expected match to be a plain object, received an array/],
  [
    { match: { kind: 'server', path: undefined }, rate: 0 },
    /each value in match of sampling.*received path: undefined/,
  ],
  [{ match: { attributes: /free/ }, rate: 1 }, /expected attributes to be an object/],
  [{ match: { attributes: ['app.tier'] }, rate: 1 }, /expected attributes to be an object/],
  [
    { match: { attributes: { a: undefined, b: 'x' } }, rate: 0 },
    /each value in attributes.*received a: undefined/,
  ],
  [undefined, /expected an object of options, received undefined/],
  [{ match: { attributes: 'app.tier' }, rate: 1 }, /expected attributes to be an object/],
  [{ match: { attributes: { 'app.shard': 7 } }, rate: 1 }, /expected attributes to be an object/],
  [{ match: { host: 'a' }, rate: 1 }, /unknown one, "host"/],
  [{ match: {}, rate: 1, name: 'x' }, /unknown one, "name"/],
  ['0.1', /expected an object of options/],
  [{ match: {}, rate: 2 }, /expected rate to be a number from 0 to 1, received 2/],
  [{ rate: 1 }, /to have match and rate, received one without match; example/],
  [{}, /received one without match and rate; example/],
  [{ match: {}, rate: undefined }, /received one without rate; example/],
])('a rule of the wrong shape is a TypeError: %j', (rule, message) => {
  expect(() => start({ sampling: [rule as SamplingRule] })).toThrow(TypeError)
  expect(() => start({ sampling: [rule as SamplingRule] })).toThrow(message)
})

test('a hole in the list of rules is a rule of the wrong shape', () => {
  const sampling: SamplingRule[] = []
  sampling.length = 1
  expect(() => start({ sampling })).toThrow(/expected an object of options, received undefined/)
})
