import { posix } from 'node:path'
import { describe, expect, test } from 'vitest'
import { filesIn, importsOf } from './source.ts'

const SOURCES = 'packages/core/src'

const rooms = filesIn(SOURCES).map((path) => path.slice(SOURCES.length + 1))

/** The files of core that each file imports, types included. */
const graph = new Map(
  rooms
    .map((room) => [room, importsOf(`${SOURCES}/${room}`)] as const)
    .map(([room, imports]) => [
      room,
      imports
        .filter(({ from }) => from.startsWith('.'))
        .map(({ from }) => posix.join(posix.dirname(room), from)),
    ]),
)

/** Everything that is loaded when this file is. */
function reach(room: string, seen = new Set<string>()): Set<string> {
  for (const next of graph.get(room) ?? []) {
    if (seen.has(next)) continue
    seen.add(next)
    reach(next, seen)
  }
  return seen
}

describe('in core', () => {
  test('every import is of a file that is there', () => {
    expect(rooms.length).toBeGreaterThan(20)
    expect([...graph.values()].flat().filter((room) => !rooms.includes(room))).toEqual([])
  })

  test('no arrow runs back: no file reaches itself', () => {
    const circular = rooms.filter((room) => reach(room).has(room))
    expect(circular).toEqual([])
  })

  test.each(['index.ts', 'start.ts'])('%s is for those outside', (room) => {
    const importers = rooms.filter((each) => graph.get(each)?.includes(room))
    expect(importers).toEqual(
      room === 'index.ts' ? [] : ['door/client.ts', 'door/http-client.ts', 'index.ts'],
    )
  })

  // So an app with an OpenTelemetry SDK of its own runs our seams on that one.
  test.each(['server.ts', 'client.ts', 'current.ts', 'propagation.ts', 'context.ts', 'span.ts', 'tracer.ts'])(
    '%s does not know who exports, nor how that is configured',
    (room) => {
      const exporting = [...reach(room)].filter((each) =>
        /^(start|config|environment|batch)\.ts$|^otlp\//.test(each),
      )
      expect(exporting).toEqual([])
    },
  )

  test('what receives and what sends do not know each other', () => {
    expect(reach('server.ts')).not.toContain('client.ts')
    expect(reach('client.ts')).not.toContain('server.ts')
  })

  test('SQL is a room with a door of its own, which web apps do not open', () => {
    const sql = rooms.filter((room) => room === 'sql.ts' || room.startsWith('sql/'))
    expect(sql.length).toBeGreaterThan(1)
    expect(sql.flatMap((room) => [...reach(room)]).filter((room) => !sql.includes(room))).toEqual([])
    expect([...reach('index.ts')].filter((room) => sql.includes(room))).toEqual([])
    for (const room of sql) {
      expect(importsOf(`${SOURCES}/${room}`).filter(({ from }) => !from.startsWith('.'))).toEqual([])
    }
  })

  test('so is what sends', () => {
    expect(rooms).toContain('client.ts')
    expect([...reach('index.ts')]).not.toContain('client.ts')
  })

  test('so are clients of HTTP', () => {
    const client = rooms.filter((room) => room === 'http-client.ts' || room.startsWith('http-client/'))
    expect(client.length).toBeGreaterThan(1)
    expect([...reach('index.ts')].filter((room) => client.includes(room))).toEqual([])
    expect(reach('http-client.ts')).not.toContain('server.ts')
  })

  test('so is what clients of databases have in common', () => {
    expect(rooms).toContain('database.ts')
    expect([...reach('index.ts')]).not.toContain('database.ts')
    expect(reach('database.ts')).not.toContain('server.ts')
  })

  test.each(rooms)('%s is made of the API and of Node alone', (room) => {
    const others = importsOf(`${SOURCES}/${room}`)
      .map(({ from }) => from)
      .filter((from) => !/^\.|^node:|^@opentelemetry\/api$/.test(from))
    expect(others).toEqual([])
  })
})
