import { isTraced, override, untrace } from '@throughline/core'
import { describe, expect, test } from 'vitest'

class Client {
  query(text: string, _values?: unknown[]): string {
    return `answer to ${text}`
  }
}

type Query = Client['query']

/** Has the calls of `query` told to `told`. */
function watch(client: Client, told: unknown[], as = 'called'): void {
  override(client, 'query', (original) => {
    return function query(this: Client, ...args) {
      told.push(as)
      return Reflect.apply(original, this, args)
    }
  })
}

describe('a method that is overridden', () => {
  test('is that of this object alone, with its name and the number of its parameters', () => {
    const [client, other] = [new Client(), new Client()]
    const told: unknown[] = []
    watch(client, told)
    expect(client.query('one')).toBe('answer to one')
    expect(other.query('two')).toBe('answer to two')
    expect(told).toEqual(['called'])
    expect([client, other].map(isTraced)).toEqual([true, false])
    expect([client.query.name, client.query.length]).toEqual(['query', 2])
  })

  test.each([
    ['inherited', new Client()],
    ['its own', Object.assign(new Client(), { query: () => 'own' })],
    [
      'its own and hidden',
      Object.defineProperty(new Client(), 'query', { value: () => 'own', configurable: true }),
    ],
  ])('is enumerated as before, and is what it was when it is untraced: %s', (_title, client) => {
    const before = Object.getOwnPropertyDescriptor(client, 'query')
    const keys = Object.keys(client)
    watch(client, [])
    expect(Object.keys(client)).toEqual(keys)
    untrace(client)
    expect(Object.getOwnPropertyDescriptor(client, 'query')).toEqual(before)
    expect(Reflect.ownKeys(client)).toEqual(before === undefined ? [] : ['query'])
    expect(isTraced(client)).toBe(false)
  })

  test('twice is undone from the last one on', () => {
    const client = new Client()
    const told: unknown[] = []
    watch(client, told, 'inner')
    watch(client, told, 'outer')
    client.query('one')
    expect(told).toEqual(['outer', 'inner'])
    untrace(client)
    expect(Reflect.ownKeys(client)).toEqual([])
    client.query('two')
    expect(told).toHaveLength(2)
  })

  test('and wrapped by somebody since only passes calls on, and can be overridden again', () => {
    const client = new Client()
    const told: unknown[] = []
    watch(client, told)
    const ours = client.query
    const theirs: Query = (text) => `${ours.call(client, text)}, wrapped`
    client.query = theirs
    untrace(client)
    expect(client.query).toBe(theirs)
    expect(client.query('one')).toBe('answer to one, wrapped')
    expect([told, isTraced(client)]).toEqual([[], false])
    watch(client, told, 'again')
    expect(client.query('two')).toBe('answer to two, wrapped')
    expect(told).toEqual(['again'])
    untrace(client)
    expect(client.query).toBe(theirs)
  })
})
