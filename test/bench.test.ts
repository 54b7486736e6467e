import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { samplesIn } from '../bench/perf.mjs'
import { ratioError } from '../bench/statistic.mjs'
import { judge } from '../bench/targets.mjs'
import { filesIn, importsOf, root } from './source.ts'

// The bench takes minutes, and an install of its own, so nothing here measures. What can be known without either is.

interface Manifest {
  workspaces?: string[]
  dependencies?: Record<string, string>
}

interface Lockfile {
  packages: Record<string, Manifest>
}

const read = (path: string) => readFileSync(join(root, path), 'utf8')
const json = <T>(path: string) => JSON.parse(read(path)) as T

/** What hangs has failed. */
const MOST_MS = 20_000

/** What Node 20 runs, and what newer ones do. */
const installs = ['bench', 'bench/newest']
const sources = filesIn('bench').filter((path) => /^(?!.*\/\.).*\.mjs$/.test(path))

describe('every file of the bench', () => {
  test.each(sources)('%s can be read by Node, and what it imports is there', (path) => {
    const { status, stderr } = spawnSync(process.execPath, ['--check', join(root, path)], {
      encoding: 'utf8',
    })
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })

    const imported = importsOf(path).map(({ from }) => from)
    const near = imported.filter((from) => from.startsWith('.'))
    expect(near.filter((from) => !existsSync(join(root, dirname(path), from)))).toEqual([])
    const installed = new Set(
      installs.flatMap((folder) => Object.keys(json<Manifest>(`${folder}/package.json`).dependencies ?? {})),
    )
    const strangers = imported.filter(
      (from) =>
        !/^\.|^node:|^@throughline\//.test(from) &&
        !installed.has(/^(@[^/]+\/)?[^/]+/.exec(from)?.[0] as string),
    )
    expect(strangers).toEqual([])
  })
})

describe('the command', () => {
  /** A copy as it is before anybody has installed anything. */
  let clone: string

  beforeAll(() => {
    clone = mkdtempSync(join(tmpdir(), 'throughline-bench-'))
    for (const path of sources) cpSync(join(root, path), join(clone, path))
    cpSync(join(root, 'scripts'), join(clone, 'scripts'), { recursive: true })
  })

  afterAll(() => rmSync(clone, { recursive: true }))

  function bench(args: string[], env = process.env) {
    const main = join(clone, 'bench/main.mjs')
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
      encoding: 'utf8',
      timeout: MOST_MS,
      env,
    })
    return { status, stdout, stderr }
  }

  test.each([
    { args: ['--fast'], told: "Unknown option '--fast'" },
    { args: ['express'], told: "Unexpected argument 'express'" },
    {
      args: ['--framework', 'hapi'],
      told: '--framework expects one of express, koa, fastify, received "hapi"',
    },
    { args: ['--rounds', 'many'], told: '--rounds expects a whole number from 1 on, received "many"' },
    { args: ['--clients', '--no-clients'], told: '--clients and --no-clients leave nothing to measure' },
    {
      args: ['--node', join(tmpdir(), 'nowhere')],
      told: '--node expects a version or the path of an executable',
    },
    {
      args: ['--only', 'all'],
      told: '--only expects one of micro, end-to-end, profile, instructions, received "all"',
    },
    {
      args: ['--only', 'profile'],
      env: { PATH: tmpdir() },
      told: '--only profile needs perf on the PATH',
    },
    {
      args: ['--only', 'instructions'],
      env: { PATH: tmpdir() },
      told: '--only instructions needs valgrind on the PATH',
    },
  ])('$args ends it with code 2 and the reason, and without an install', ({ args, env, told }) => {
    const { status, stdout, stderr } = bench(args, env)
    expect(stderr).toContain(told)
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).not.toContain('    at ')
    expect(existsSync(join(clone, 'bench/node_modules'))).toBe(false)
  })

  test('--help names the options that the README does, and no others', () => {
    const { status, stdout } = bench(['--help'])
    expect(status).toBe(0)
    const optionsIn = (text: string) => new Set(text.match(/--[a-z][\w-]*/g))
    const table = read('bench/README.md').match(/^\| `--.*$/gm) as string[]
    const documented = optionsIn(table.join('\n'))
    expect([...optionsIn(stdout)].filter((option) => option !== '--help').sort()).toEqual(
      [...documented].sort(),
    )
  })
})

describe('its verdict', () => {
  const row = (name: string, added: number) => ({ framework: 'koa', withClients: false, name, added })
  const others = [row('OpenTelemetry', 100), row('ours, unsampled', 2)]

  // Against the floor, against OpenTelemetry, and of an unsampled request against the floor.
  test.each([
    ['within the limits', 12, 10, [true, true, true]],
    ['above them', 13, 10, [false, false, true]],
    ['of a floor that cost less than nothing', 12, -6, [undefined, true, undefined]],
    ['of one that cost nothing', 12, 0, [undefined, true, undefined]],
    ['of packages that cost less than nothing', -1, 10, [undefined, undefined, true]],
    ['of these, where OpenTelemetry is out of reach', -1, 11, [undefined, undefined, true]],
  ])('%s is met, or not met, or cannot be told', (_case, ours, floor, expected) => {
    const instructions = [row('bare', 0), row('floor', floor), row('ours', ours), ...others]
    const verdicts = judge({ node: 'v24.0.0', micro: [], endToEnd: [], instructions })
    const told = verdicts.map(({ isMet, note }) => (note?.startsWith('cannot be told') ? undefined : isMet))
    expect(told).toEqual(expected)
    for (const { isMet, note } of verdicts) if (note !== undefined) expect(isMet).toBe(false)
  })
})

describe('the error of a ratio', () => {
  const bares = [
    [100, 110, 90, 100],
    [105, 95, 100, 100],
  ]
  const plus = (added: number, noise: number[] = [0]) =>
    bares.map((process) =>
      process.map((bare, round) => bare + added + (noise[round % noise.length] as number)),
    )

  test('is none where all rounds say the same, and grows with what they differ by', () => {
    expect(ratioError(1.2, plus(12), plus(10), bares)).toBeCloseTo(0, 10)
    const small = ratioError(1.2, plus(12, [1, -1]), plus(10), bares) as number
    const large = ratioError(1.2, plus(12, [3, -3]), plus(10), bares) as number
    expect(small).toBeGreaterThan(0)
    expect(large).toBeCloseTo(3 * small, 10)
  })

  test('is a half with four times as many rounds', () => {
    const four = (all: number[][]) => all.map((process) => [...process, ...process, ...process, ...process])
    const noisy = plus(12, [1, -1])
    const once = ratioError(1.2, noisy, plus(10), bares) as number
    expect(ratioError(1.2, four(noisy), four(plus(10)), four(bares))).toBeCloseTo(once / 2, 10)
  })

  test('is what processes differ by, where their rounds say that they should not', () => {
    const flat = [100, 100, 100, 100]
    const three = [flat, flat, flat]
    const added = (by: number[]) => by.map((each) => flat.map((bare) => bare + each))
    expect(ratioError(1.2, added([12, 12, 12]), added([10, 10, 10]), three)).toBeCloseTo(0, 10)
    // 9, 12 and 15 are 3 from each other: twice 3 / √3, of the 10 that the other has added.
    expect(ratioError(1.2, added([9, 12, 15]), added([10, 10, 10]), three)).toBeCloseTo(0.3464, 4)
  })

  test('is what a target is told with, and where it reaches that, that it could not be told', () => {
    const row = (name: string, added: number, rounds: number[][]) => ({
      framework: 'koa',
      withClients: false,
      name,
      added,
      rss: 0,
      rounds,
    })
    const told = (noise: number[]) => {
      const endToEnd = [row('bare', 0, bares), row('floor', 10, plus(10)), row('ours', 12, plus(12, noise))]
      const [verdict] = judge({ node: 'v24.0.0', micro: [], endToEnd, instructions: [] })
      return verdict
    }
    expect(told([0])).toMatchObject({ measured: '1.20× ± 0.00', isMet: true })
    expect(told([0])).not.toHaveProperty('note')
    expect(told([4, -4])).toMatchObject({ isMet: true, note: 'but this run could not tell' })
  })

  test('is that of the p99, too, whose rounds are those of the bare app', () => {
    const row = (name: string, p99: number, p99s: number[]) => ({
      framework: 'koa',
      withClients: false,
      name,
      rate: 1000,
      p99,
      p99s,
    })
    const told = (p99: number, p99s: number[]) => {
      const endToEnd = [row('bare', 1, [1, 1, 1, 1, 25]), row('ours', p99, p99s)]
      return judge({ node: 'v24.0.0', micro: [], endToEnd, instructions: [] }).find(({ what }) =>
        what.includes('p99'),
      )
    }
    expect(told(1.1, [1.1, 1.1, 1.1, 1.1, Infinity])).toMatchObject({ measured: '1.10× ± 0.00', isMet: true })
    expect(told(1.1, [1.1, 1.1, 1.1, 1.1, 1.1])).not.toHaveProperty('note')
    expect(told(1.3, [1, 1.1, 1.3, 1.5, 1.6])).toMatchObject({
      isMet: false,
      note: 'but this run could not tell',
    })
    expect(told(1.3, [])).toMatchObject({ measured: '1.30×', isMet: false })
  })

  test('is not known of counts, nor of too few rounds', () => {
    expect(ratioError(1.2, [12, 13] as never, [10, 11] as never, [0, 0] as never)).toBeUndefined()
    expect(ratioError(1.2, [[12]], [[10]], [[0]])).toBeUndefined()
    expect(ratioError(1.2, undefined, undefined, undefined)).toBeUndefined()
  })
})

describe('a sample of the profile', () => {
  const kernel = 'ffffffff81c0 do_syscall_64'
  const builtIn = '5614ca Builtins_ArrayPrototypePush'
  const js = (tier: string, name: string, file: string) => `7f61d5 JS:${tier}${name} ${file}:12:3`
  const printed = (...frames: string[]) => [
    '  320.600367:     250000 ',
    ...frames.map((each) => `\t${each}`),
    '',
  ]

  test.each([
    [
      'the innermost JavaScript',
      [js('*', 'end', 'file:///a/span.js'), js('~', 'add', '/b.js')],
      'end',
      'file:///a/span.js',
    ],
    ['what called the kernel', [kernel, builtIn, js('^', 'post', 'node:net'), kernel], 'post', 'node:net'],
    ['optimised in its context', [js("*'", 'end', '/a.js')], 'end', '/a.js'],
    ['without a name', [js('+', '', '/a.js')], '', '/a.js'],
    ['a getter', [js('*', 'get slow', 'file:///a.js')], 'get slow', 'file:///a.js'],
    ['a path with a blank', [js('^', 'end', '/a b/c.cjs')], 'end', '/a b/c.cjs'],
    ['a path with a blank, without a name', [js('^', '', '/a b/c.cjs')], '', '/a b/c.cjs'],
    [
      "one of Node's",
      [js('*', 'nextTick', 'node:internal/process/task_queues')],
      'nextTick',
      'node:internal/process/task_queues',
    ],
    ['none at all', [kernel, builtIn], '', ''],
  ])('is told of %s', async (_case, frames, name, file) => {
    const samples: unknown[] = []
    for await (const sample of samplesIn([...printed(...frames), ...printed(kernel)])) samples.push(sample)
    expect(samples).toEqual([
      { seconds: 320.600367, microseconds: 250, name, file },
      { seconds: 320.600367, microseconds: 250, name: '', file: '' },
    ])
  })
})

describe('its install', () => {
  test('is none of the workspaces: who works here does not install the peers', () => {
    const { workspaces } = json<Manifest>('package.json')
    expect(workspaces).toEqual(['packages/*', 'examples/*'])
    const { packages } = json<Lockfile>('package-lock.json')
    expect(
      Object.keys(packages).filter((path) => /^bench|dd-trace|@sentry\/|elastic-apm/.test(path)),
    ).toEqual([])
  })

  test.each(installs)('%s is what its lockfile says', (folder) => {
    const { dependencies } = json<Manifest>(`${folder}/package.json`)
    expect(json<Lockfile>(`${folder}/package-lock.json`).packages['']?.dependencies).toEqual(dependencies)
  })

  test.each(installs)('%s is of exact versions, which make a run one that can be repeated', (folder) => {
    const versions = Object.values(json<Manifest>(`${folder}/package.json`).dependencies ?? {})
    expect(versions.length).toBeGreaterThan(0)
    expect(versions.filter((version) => !/^(npm:.+@)?\d[^ ]*$/.test(version))).toEqual([])
  })
})
