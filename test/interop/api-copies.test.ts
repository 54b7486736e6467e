import { describe, expect, test } from 'vitest'
import { run } from './child.ts'
import { API, installedElsewhere, type Api } from './copy.ts'

interface Told {
  results: unknown[]
  logged: string[]
  listeners: number[]
  theirs: string[]
}

/** What is said where the API refuses us, because the process's globals belong to another version of it. */
const REFUSED = new RegExp(`^throughline: .*@opentelemetry/api.*${API.installed.replaceAll('.', '[.]')}`)

test.each<[string, Api, string]>([
  ['an SDK of an older minor is in charge', API.nextMinor, 'sdk'],
  ['a logger was given to another patch', API.otherPatch, 'logger'],
  ['a logger was given to an older minor', API.nextMinor, 'logger'],
])('where the API refuses us, it is said once and the app goes on: %s', async (_title, api, first) => {
  const folder = installedElsewhere(['core'], api)
  const { results, logged, listeners, theirs, said } = await run<Told>('versions.mjs', {
    folder,
    first,
    start: true,
  })
  expect(results).toEqual([1, 2, 'function'])
  expect(theirs).toEqual(first === 'sdk' ? ['of the app'] : [])
  const lines = [...logged, ...said.split('\n')].filter((line) => line.startsWith('throughline'))
  expect(lines).toEqual([expect.stringMatching(REFUSED)])
  // An engine that got nothing to do waits for nothing.
  expect(listeners).toEqual([0, 0])
})

describe('a library with a copy of the API of its own', () => {
  test('has spans in our trace also by a tracer that it took before we started, life after life', async () => {
    const folder = installedElsewhere(['core'], 'own')
    const { said, lives } = await run<{ lives: string[][] }>('early-tracer.mjs', { folder })
    expect(said).toBe('')
    const both = ['of the library', 'of the app']
    expect(lives).toEqual([both, [], both, both])
  })

  test('that registers an SDK too late is told so once, and that is gone with us', async () => {
    const folder = installedElsewhere([], 'own')
    const { said, registered } = await run<{ registered: boolean[] }>('early-tracer.mjs', {
      folder,
      late: true,
    })
    expect(registered).toEqual([false, false, true])
    const lines = said.trim().split('\n')
    expect(lines).toHaveLength(1)
    expect(lines[0]).toMatch(/^throughline: BasicTracerProvider was registered after Throughline had started/)
  })
})
