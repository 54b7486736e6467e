import { trace, type Attributes, type AttributeValue } from '@opentelemetry/api'
import { afterEach, expect, test } from 'vitest'
import { roomFor, type NamedWriter } from '../../packages/core/src/attribute.ts'
import { putNamed, Span } from '../../packages/core/src/span.ts'
import { engine, LIMITS, processor, said } from './engine.ts'
import { app } from './process.ts'

const OTHERS = trace.wrapSpanContext({ traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 })

const writeRoute: NamedWriter = (into, route) => {
  into['http.route'] = route
}

const writePeer: NamedWriter = (into, address, port) => {
  into['network.peer.address'] = address
  if (port !== undefined) into['network.peer.port'] = port
}

function spanWith(count: number, limits: Partial<typeof LIMITS> = {}): Span {
  const attributes = Object.fromEntries(
    Array.from({ length: count }, (_, index) => [`given.${index}`, index]),
  )
  const { tracer } = engine({ limits: { ...LIMITS, ...limits } })
  return tracer.startSpan('work', { attributes }) as Span
}

const { setAttribute } = Span.prototype

afterEach(() => {
  Span.prototype.setAttribute = setAttribute
})

test('what is put is what the span says', () => {
  const span = spanWith(1)
  expect(putNamed(span, writeRoute, '/users/:id')).toBe(true)
  expect(putNamed(span, writePeer, '::1', 80)).toBe(true)
  span.end()
  expect(span.attributes).toEqual({
    'given.0': 0,
    'http.route': '/users/:id',
    'network.peer.address': '::1',
    'network.peer.port': 80,
  })
})

test('nothing is put into a span of others, or one that has ended', () => {
  expect(putNamed(OTHERS, writeRoute, '/')).toBe(false)
  const span = spanWith(0)
  span.end()
  expect(putNamed(span, writeRoute, '/')).toBe(false)
  expect(span.attributes).toEqual({})
})

test.each([0, 1, 2, 3])('nor where the limit is near: %i beside two', (limit) => {
  const span = spanWith(2, { attributeCountLimit: limit })
  expect(putNamed(span, writeRoute, '/')).toBe(false)
})

test('nor where texts may have to be cut', () => {
  expect(putNamed(spanWith(0, { attributeValueLengthLimit: 8 }), writeRoute, '/')).toBe(false)
})

test('what was put counts towards the limit, and what was put twice only once', () => {
  const span = spanWith(0, { attributeCountLimit: 4 })
  expect(putNamed(span, writeRoute, '/')).toBe(true)
  expect(putNamed(span, writeRoute, '/again')).toBe(true)
  expect(putNamed(span, writePeer, '::1', 80)).toBe(false)
  span.setAttributes({ 'app.second': 2, 'app.third': 3, 'app.fourth': 4, 'app.fifth': 5 })
  expect(span.attributes).toEqual({
    'http.route': '/again',
    'app.second': 2,
    'app.third': 3,
    'app.fourth': 4,
  })
  expect(span.droppedAttributesCount).toBe(1)
})

test.each<[unknown, unknown]>([
  [null, undefined],
  [undefined, undefined],
  [200n, undefined],
  [{ path: '/x' }, 80],
  [['/a', '/b'], undefined],
  [Symbol('route'), undefined],
  ['::1', null],
  ['::1', 80n],
  ['::1', {}],
])('what is no text, number or boolean is not put: %o, %o', (first, second) => {
  const span = spanWith(0)
  expect(putNamed(span, writePeer, first as AttributeValue, second as AttributeValue)).toBe(false)
  expect(span.attributes).toEqual({})
})

test.each<[name: string, wrap: (span: Span) => Span]>([
  [
    'on the span',
    (span) => {
      span.setAttribute = () => span
      return span
    },
  ],
  ['on a view of it', (span) => Object.create(span, { setAttribute: { value: () => span } }) as Span],
  [
    'by a Proxy',
    (span) =>
      new Proxy(span, { get: (of, key) => (key === 'setAttribute' ? () => of : Reflect.get(of, key)) }),
  ],
  [
    'for all spans',
    (span) => {
      Span.prototype.setAttribute = function () {
        return this
      }
      return span
    },
  ],
])('who has put another setAttribute in its place is asked: %s', (_, wrap) => {
  const span = spanWith(0)
  expect(putNamed(wrap(span), writeRoute, '/secret')).toBe(false)
  expect(span.attributes).toEqual({})
})

test.each<[name: string, attributes: unknown]>([
  ['frozen', Object.freeze({})],
  ['null', null],
  [
    'of a kind that throws',
    new Proxy(
      {},
      {
        set() {
          throw new Error('of the app')
        },
      },
    ),
  ],
])('attributes that a processor has made %s cost no more than what was to be put', (_, attributes) => {
  const report = said()
  const { tracer } = engine({
    processors: [
      processor({
        onStart(span) {
          ;(span as Span).attributes = attributes as Attributes
        },
      }),
    ],
  })
  const span = tracer.startSpan('work') as Span
  expect(putNamed(span, writeRoute, '/')).toBe(true)
  expect(report.lines).toHaveLength(1)
  expect(report.lines[0]).toContain('attributes')
})

const LATER = { 'server.port': 1, 'http.route': '/', 'http.response.status_code': 200, 'db.namespace': 'app' }

const pathWithRoom = () =>
  roomFor(function (path: string) {
    this['url.path'] = path
  }, LATER)

test('attributes with room for more are a plain object of those that are there', () => {
  const Path = pathWithRoom()
  const attributes = new Path('/')
  expect(attributes).toStrictEqual({ 'url.path': '/' })
  expect(Object.getPrototypeOf(attributes)).toBe(Object.prototype)
  expect(Object.assign(attributes, LATER)).toStrictEqual({ 'url.path': '/', ...LATER })
})

test('and take no second object for those that come, though nothing came to the first ones', async () => {
  const { stdout } = await app(`
    import { text } from 'node:stream/consumers'
    import { getHeapSnapshot } from 'node:v8'
    import { roomFor } from './packages/core/dist/attribute.js'

    const later = ${JSON.stringify(LATER)}
    const Path = roomFor(function (path) {
      this['url.path'] = path
    }, later)
    for (let index = 0; index < 100; index++) new Path('/')

    class Literal {
      attributes = Object.assign({ 'url.path': '/' }, later)
    }
    class Roomy {
      attributes = Object.assign(new Path('/'), later)
    }
    globalThis.kept = [new Literal(), new Roomy()]

    const { snapshot, nodes, edges, strings } = JSON.parse(await text(getHeapSnapshot()))
    const { node_fields, edge_fields } = snapshot.meta
    const nameAt = node_fields.indexOf('name')
    const countAt = node_fields.indexOf('edge_count')
    // An object's edges follow those of the objects before it.
    const edgesOf = new Map()
    let from = 0
    for (let node = 0; node < nodes.length; node += node_fields.length) {
      const to = from + nodes[node + countAt] * edge_fields.length
      edgesOf.set(node, edges.slice(from, to))
      from = to
    }
    const along = (node, name) => {
      const own = edgesOf.get(node)
      for (let edge = 0; edge < own.length; edge += edge_fields.length)
        if (strings[own[edge + edge_fields.indexOf('name_or_index')]] === name)
          return own[edge + edge_fields.indexOf('to_node')]
    }
    for (const name of ['Literal', 'Roomy'])
      for (const node of edgesOf.keys()) {
        if (strings[nodes[node + nameAt]] !== name) continue
        const attributes = along(node, 'attributes')
        if (attributes !== undefined) console.log(name, along(attributes, 'properties') !== undefined)
      }
  `).ended
  // Where V8 keeps what has no room in the object itself.
  expect(stdout).toBe('Literal true\nRoomy false')
})
