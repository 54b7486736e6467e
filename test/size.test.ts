import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { importsOf, root } from './source.ts'

// What an app loads for one of our packages, counted in a process of plain Node that imports the built one.

/** Each file costs a resolution, a read and a parse at the start; the peers load hundreds, or two thousand. */
const MOST_FILES = 40
/** What sends has more to know of its library: forms of a call, pools, what its errors may say, who else is at work. */
const MOST_FILES_OF_SENDING = 48
/** Nothing generated and nothing vendored is that large. */
const MOST_BYTES_OF_A_FILE = 200_000
/**
 * Each file as it is published, comments included, and compressed by itself, for there is no bundler here: what a bundle
 * has is less than half of it. Some hundredths more than is needed, so that a dependency or a table that slips in is seen,
 * and an edit is not.
 */
const MOST_GZIP_BYTES = 147_000
/** The same with a room of its own: what clients of databases have in common, or those of HTTP. */
const MOST_GZIP_BYTES_WITH_ROOM = 165_000
/** All packages in one app: core is there once. */
const MOST_GZIP_BYTES_OF_ALL = 238_000

/** What hangs has failed. */
const MOST_MS = 20_000

const receiving = ['express', 'koa', 'fastify']
const sending = ['undici', 'http', 'pg', 'ioredis']
const packages = ['core', ...receiving, ...sending]

/** Tells each module that is loaded on a channel of its own, from the thread that loads them. */
const HOOKS = `import { writeSync } from 'node:fs'
export async function load(url, context, next) {
  writeSync(3, url + '\\n')
  return next(url, context)
}`

const REGISTER = `import { register } from 'node:module'
register('data:text/javascript,' + ${JSON.stringify(encodeURIComponent(HOOKS))})`

const IMPORT = `
import { createHook } from 'node:async_hooks'
const made = []
// Files are read and promises made by whoever loads a module.
createHook({ init: (_id, type) => /^(Timeout|Immediate|[A-Z]+WRAP)$/.test(type) && made.push(type) }).enable()
const state = () => ({
  // By marks of ours the copies of a package find one another; what newer Nodes load with node:http leaves marks too.
  globals: Reflect.ownKeys(globalThis).map(String).filter((key) => !/^Symbol\\((throughline|undici)\\./.test(key)),
  listeners: process.eventNames().map((name) => [String(name), process.listenerCount(name)]),
  made: [...made],
})
const before = state()
for (const name of process.argv.slice(1)) await import(name)
console.log(JSON.stringify({ before, after: state() }))
process.exit()`

interface Loaded {
  /** Files that are not the API's, from the root of the repository. */
  files: string[]
  builtins: string[]
  /** What the process was before the import, and is after it. */
  before: object
  after: object
}

const known = new Map<string, Loaded>()

function loaded(...names: string[]): Loaded {
  const key = names.join()
  let found = known.get(key)
  if (found === undefined) known.set(key, (found = load(names)))
  return found
}

function load(names: string[]): Loaded {
  const { status, stderr, output } = spawnSync(
    process.execPath,
    [
      '--import',
      `data:text/javascript,${encodeURIComponent(REGISTER)}`,
      '--input-type=module',
      '-e',
      IMPORT,
      ...names.map((name) => `@throughline/${name}`),
    ],
    {
      cwd: root,
      encoding: 'utf8',
      timeout: MOST_MS,
      env: { PATH: process.env['PATH'] ?? '' },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    },
  )
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  const urls = (output[3] as string).trim().split('\n')
  const files = urls.filter((url) => url.startsWith('file:')).map((url) => relative(root, fileURLToPath(url)))
  return {
    files: files.filter((file) => !file.includes('node_modules/@opentelemetry/api/')),
    builtins: urls.filter((url) => url.startsWith('node:')),
    ...(JSON.parse(output[1] as string) as { before: object; after: object }),
  }
}

function gzipBytes(files: readonly string[]): number {
  return files.reduce((sum, file) => sum + gzipSync(readFileSync(file), { level: 9 }).length, 0)
}

const isOfSql = (file: string) => /^packages\/core\/dist\/sql(\.js$|\/)/.test(file)
const isOfDatabase = (file: string) => file === 'packages/core/dist/database.js'
const isOfHttpClient = (file: string) => /^packages\/core\/dist\/http-client(\.js$|\/)/.test(file)

// To import one of Node's HTTP modules calls its getters, and these load undici, HTTP/2 and TLS: 12 MB that an app of CommonJS
// does without.
test.each(['core', ...receiving])(
  'an import of @throughline/%s makes Node load none of its HTTP clients',
  (name) => {
    const heavy = new Set(['node:http', 'node:https', 'node:http2', 'node:tls'])
    expect(loaded(name).builtins.filter((builtin) => heavy.has(builtin))).toEqual([])
  },
)

describe.each(packages)('an import of @throughline/%s', (name) => {
  test('loads itself, core and the API, and nothing else', () => {
    const { files } = loaded(name)
    expect(files).toContain(`packages/${name}/dist/index.js`)
    expect(files).toContain('packages/core/dist/index.js')
    const others = files.filter((file) => !/^packages\/([^/]+)\/dist\/.+\.js$/.test(file))
    expect(others).toEqual([])
    const rooms = new Set(files.map((file) => file.split('/')[1]))
    expect([...rooms].sort()).toEqual([...new Set(['core', name])].sort())
  })

  test('loads nothing later either: what it names is Node, the API, core and itself', () => {
    const named = loaded(name).files.flatMap((file) => importsOf(file).map(({ from }) => from))
    const others = named.filter(
      (from) =>
        !/^\.|^node:|^@opentelemetry\/api$|^@throughline\/core(\/client|\/database|\/sql|\/http-client)?$/.test(
          from,
        ),
    )
    expect(others).toEqual([])
  })

  const most = sending.includes(name) ? MOST_FILES_OF_SENDING : MOST_FILES

  test(`is at most ${most} files, none of them large`, () => {
    const files = loaded(name).files.filter(
      (file) => !isOfSql(file) && !isOfDatabase(file) && !isOfHttpClient(file),
    )
    expect(files.length).toBeLessThanOrEqual(most)
    expect(files.filter((file) => readFileSync(file).length > MOST_BYTES_OF_A_FILE)).toEqual([])
  })

  test('is small', () => {
    expect(gzipBytes(loaded(name).files)).toBeLessThanOrEqual(
      loaded(name).files.some((file) => isOfDatabase(file) || isOfHttpClient(file))
        ? MOST_GZIP_BYTES_WITH_ROOM
        : MOST_GZIP_BYTES,
    )
  })

  test('starts nothing: no timer, no socket, no listener of the process, no global', () => {
    const { before, after } = loaded(name)
    expect(after).toEqual(before)
  })
})

test('what reads SQL is loaded by those that send it, and by nobody else', () => {
  expect(packages.filter((name) => loaded(name).files.some(isOfSql))).toEqual(['pg'])
})

test('what clients of databases have in common is loaded by those, and by nobody else', () => {
  const openers = packages.filter((name) => loaded(name).files.some(isOfDatabase))
  expect(openers).toContain('pg')
  expect(openers.filter((name) => name !== 'pg' && name !== 'ioredis')).toEqual([])
})

test('what knows clients of HTTP is loaded by those, and by nobody else', () => {
  expect(packages.filter((name) => loaded(name).files.some(isOfHttpClient))).toEqual(
    packages.filter((name) => name === 'undici' || name === 'http'),
  )
})

test('all packages together are small', () => {
  const { files } = loaded(...packages)
  expect(gzipBytes(files)).toBeLessThanOrEqual(MOST_GZIP_BYTES_OF_ALL)
})
