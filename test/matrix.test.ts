import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readArguments, runsOn } from './matrix/arguments.mjs'
import { broken, judge } from './matrix/judge.mjs'
import { LIBRARIES, NODES, ROWS, type Gap } from './matrix/table.mjs'
import { root } from './source.ts'

// A row installs a library and takes ten seconds, so none is run here. What can be known without one is.

/** What hangs has failed. */
const MOST_MS = 20_000

describe('the command', () => {
  /** A copy as it is before anybody has installed anything. */
  let clone: string

  beforeAll(() => {
    clone = mkdtempSync(join(tmpdir(), 'throughline-matrix-'))
    mkdirSync(join(clone, 'test'))
    for (const path of ['test/matrix', 'scripts'])
      cpSync(join(root, path), join(clone, path), { recursive: true })
  })

  afterAll(() => rmSync(clone, { recursive: true }))

  function matrix(...args: string[]) {
    const main = join(clone, 'test/matrix/main.mjs')
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
      encoding: 'utf8',
      timeout: MOST_MS,
    })
    return { status, stdout, stderr }
  }

  test.each([
    { args: ['--fast'], told: "Unknown option '--fast'" },
    { args: ['express'], told: "Unexpected argument 'express'" },
    { args: ['--library', 'hapi'], told: '--library expects one of express, koa,' },
    { args: ['--row', 'express 3'], told: '--row expects one of express 4.18.0,' },
    { args: ['--node', 'latest'], told: '--node expects 20, 22, 24, 26, a full version or "this"' },
    { args: ['--library', 'koa', '--row', 'express 4.18.0'], told: 'leave nothing to run' },
    {
      args: ['--row', 'undici 8.13.1', '--node', '20'],
      told: '--node 20 leaves nothing to run: undici 8.13.1 needs Node 22.19.0',
    },
  ])('$args ends it with code 2 and the reason, and without an install', ({ args, told }) => {
    const { status, stdout, stderr } = matrix(...args)
    expect(stderr).toContain(told)
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).not.toContain('    at ')
    expect(existsSync(join(clone, 'matrix'))).toBe(false)
  })

  test('a row without a test fails, and the command with it', () => {
    const { status, stdout } = matrix('--row', 'express 4.18.0', '--node', 'this')
    expect(stdout).toContain("✗ express 4.18.0\n      no test of express imports 'express4'")
    expect(stdout).toMatch(/\n0 passed, 1 failed, 0 skipped\n$/)
    expect(status).toBe(1)
  })

  test('--help names every option and every row', () => {
    const { status, stdout } = matrix('--help')
    expect(status).toBe(0)
    const options = [...new Set(stdout.match(/^ {2}--[a-z]+/gm))].map((option) => option.trim())
    expect(options).toEqual(['--library', '--row', '--node', '--json', '--help'])
    expect(ROWS.filter(({ row }) => !stdout.includes(`"${row}"`))).toEqual([])
  })
})

describe('what is run', () => {
  const chosen = (...args: string[]) => {
    const options = readArguments(args)
    if (options === 'help') throw new Error('it helped')
    return { rows: options.rows.map(({ row }) => row), nodes: options.nodes, json: options.json }
  }

  test('is every row on every Node, if nothing is said', () => {
    expect(chosen()).toEqual({ rows: ROWS.map(({ row }) => row), nodes: NODES, json: undefined })
  })

  test('is what all filters let through', () => {
    expect(chosen('--library', 'koa', '--library', 'pg', '--row', 'pg 8.0.3', '--json', 'a.json')).toEqual({
      rows: ['pg 8.0.3'],
      nodes: NODES,
      json: 'a.json',
    })
  })

  test('is on the Node of a major, on a given one, on this one, and once on each', () => {
    expect(chosen('--node', '22', '--node', '20.19.0', '--node', NODES[1] as string).nodes).toEqual([
      NODES[1],
      '20.19.0',
    ])
    expect(chosen('--node', 'this').nodes).toEqual([process.versions.node])
  })

  test.each([
    ['22.19.0', '22.19.0', true],
    ['22.19.0', '22.9.5', false],
    ['22.19.0', '24.0.0', true],
    ['22.19.0', '20.20.2', false],
    [undefined, '20.20.2', true],
  ])('what is from Node %s on runs on %s: %s', (from, node, runs) => {
    expect(runsOn(from === undefined ? {} : { from }, node)).toBe(runs)
  })
})

describe('the table', () => {
  test('has exact versions only, so that a run can be repeated', () => {
    const exact = /^\d+\.\d+\.\d+$/
    const versions = ROWS.flatMap(({ version, beside = {}, overrides = {} }) => [
      version,
      ...Object.values({ ...beside, ...overrides }),
    ])
    expect([...versions, ...NODES].filter((version) => !exact.test(version))).toEqual([])
  })

  test('has a row only once, and all libraries that we trace', () => {
    expect(new Set(ROWS.map(({ row }) => row)).size).toBe(ROWS.length)
    expect([...LIBRARIES].sort()).toEqual(['express', 'fastify', 'http', 'ioredis', 'koa', 'pg', 'undici'])
  })
})

describe('a row', () => {
  const titles = /^Express 4\b/
  const gap: Gap = { titles: /^Express 4 cannot fly$/, reason: 'it has no wings' }
  const passing = { title: 'Express 4 walks', state: 'passed', message: '' } as const
  const failing = { title: 'Express 4 cannot fly', state: 'failed', message: 'it fell' } as const
  const skipping = { title: 'Express 4 swims', state: 'skipped', message: '' } as const
  const other = { title: 'Express 5 walks', state: 'skipped', message: '' } as const

  const verdict = (tests: Parameters<typeof judge>[0]['tests'], gaps: Gap[] = [], errors: string[] = []) =>
    judge({ tests, errors }, { titles, gaps })

  test('counts the tests of its name, and no others', () => {
    const counts = { passed: 1, failed: 1, skipped: 1, gaps: 0 }
    expect(verdict([passing, failing, skipping, other])).toEqual({
      ...counts,
      failures: [{ title: failing.title, message: 'it fell' }],
    })
  })

  test.each([
    ['no test at all', []],
    ['only tests of another name', [other]],
    ['only tests that were skipped', [skipping]],
  ])('fails with %s', (_, tests) => {
    const { failed, failures } = verdict(tests)
    expect(failed).toBe(1)
    expect(failures[0]?.message).toMatch(/^it executed no test/)
  })

  test('fails by what goes wrong outside of its tests', () => {
    expect(verdict([passing], [], ['unhandled'])).toMatchObject({
      passed: 1,
      failed: 1,
      failures: [{ title: 'outside of any test', message: 'unhandled' }],
    })
  })

  test('does not fail by a gap that is declared, which is counted', () => {
    expect(verdict([passing, failing], [gap])).toEqual({
      passed: 1,
      failed: 0,
      skipped: 0,
      gaps: 1,
      failures: [],
    })
  })

  test('fails by a declared gap that is none any more', () => {
    const closed = verdict([passing, { ...failing, state: 'passed' }], [gap])
    expect(closed).toMatchObject({ passed: 1, failed: 1, gaps: 0 })
    expect(closed.failures[0]?.message).toMatch(/^it passes/)
  })

  test('fails by a declared gap that is skipped, or that nothing has the title of', () => {
    expect(verdict([passing, { ...failing, state: 'skipped' }], [gap]).failed).toBe(1)
    expect(verdict([passing], [gap]).failed).toBe(1)
  })

  test('that could not be run has failed', () => {
    expect(broken('express 4.18.0', 'npm could not install it')).toMatchObject({ passed: 0, failed: 1 })
  })
})
