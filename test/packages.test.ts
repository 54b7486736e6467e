import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, test } from 'vitest'
import { filesIn, importsOf, root } from './source.ts'

interface Manifest {
  name: string
  version: string
  dependencies?: Record<string, string>
  peerDependencies?: Record<string, string>
  devDependencies?: Record<string, string>
  exports?: Record<string, unknown>
  bin?: Record<string, string>
  [field: string]: unknown
}

const read = (path: string) => readFileSync(join(root, path), 'utf8')
const manifestOf = (folder: string) => JSON.parse(read(`${folder}/package.json`)) as Manifest
const load = (path: string) =>
  import(pathToFileURL(join(root, path)).href) as Promise<Record<string, unknown>>

const packages = readdirSync(join(root, 'packages'), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name)

/** Those that trace a library. */
const adapters = packages.filter((name) => !['core', 'viewer'].includes(name))

/** Those whose library comes with Node. */
const ofNode = new Set(['http'])

const references = (JSON.parse(read('tsconfig.json')) as { references: { path: string }[] }).references.map(
  ({ path }) => path,
)

describe.each(packages)('@throughline/%s', (name) => {
  const folder = `packages/${name}`
  const manifest = manifestOf(folder)

  test('has all that a package has, and nothing more', () => {
    const made = /^(dist|node_modules|LICENSE|CHANGELOG\.md|\.turbo)$/
    expect(readdirSync(join(root, folder)).filter((each) => !made.test(each))).toEqual([
      'README.md',
      ...(manifest.bin ? ['bin'] : []),
      'package.json',
      'src',
      'tsconfig.json',
    ])
    expect(existsSync(join(root, folder, 'src/index.ts'))).toBe(true)
  })

  test('says of itself what all packages say', () => {
    expect(manifest).toMatchObject({
      name: `@throughline/${name}`,
      version: expect.stringMatching(/^\d+\.\d+\.\d+/),
      description: expect.stringMatching(/^[A-Z].{20,}[^.]$/),
      keywords: expect.arrayContaining(['distributed-tracing', 'opentelemetry', 'traceparent', 'tracing']),
      license: 'Apache-2.0',
      repository: {
        type: 'git',
        url: 'git+https://github.com/throughline/throughline.git',
        directory: folder,
      },
      files: [...(manifest.bin ? ['bin'] : []), 'dist', 'src', '!dist/.tsbuildinfo'],
      type: 'module',
      exports: { './package.json': './package.json' },
      publishConfig: { access: 'public' },
      engines: { node: '>=20.19' },
    })
    for (const field of ['private', 'scripts', 'devDependencies', 'optionalDependencies']) {
      expect(manifest).not.toHaveProperty(field)
    }
  })

  /** What is behind an entry: the room of that name, or the door in front of it. */
  function fileOf(entry: string): string {
    return existsSync(join(root, folder, `src/door/${entry}.ts`)) ? `door/${entry}` : entry
  }

  test('gives every entry as source, types and code, in this order', () => {
    for (const [entry, targets] of Object.entries(manifest.exports ?? {})) {
      if (entry === './package.json') continue
      const file = entry === '.' ? 'index' : fileOf(entry.slice(2))
      expect(Object.entries(targets as object)).toEqual([
        ['@throughline/source', `./src/${file}.ts`],
        ['types', `./dist/${file}.d.ts`],
        ['default', `./dist/${file}.js`],
      ])
    }
  })

  // TypeScript's `"module": "commonjs"` looks for these, up to version 5, and not at `exports`.
  test('tells every entry to compilers that do not read exports', () => {
    const doors = Object.keys(manifest.exports ?? {})
      .filter((entry) => entry !== '.' && entry !== './package.json')
      .map((entry) => entry.slice(2))
    expect(manifest).toMatchObject({ main: './dist/index.js', types: './dist/index.d.ts' })
    expect(manifest['typesVersions']).toEqual(
      doors.length === 0
        ? undefined
        : { '*': Object.fromEntries(doors.map((door) => [door, [`./dist/${fileOf(door)}.d.ts`]])) },
    )
  })

  test('is built with all others, after those that it needs', () => {
    const { references: own = [] } = JSON.parse(read(`${folder}/tsconfig.json`)) as {
      references?: { path: string }[]
    }
    const needed = Object.keys(manifest.dependencies ?? {}).filter((each) => each.startsWith('@throughline/'))
    expect(references).toContain(folder)
    expect(own.map(({ path }) => path)).toEqual(needed.map((each) => each.replace('@throughline', '..')))
  })

  test('is tested, and named in the table of packages', () => {
    expect(existsSync(join(root, `test/${name}.test.ts`)) || existsSync(join(root, `test/${name}`))).toBe(
      true,
    )
    expect(read('README.md')).toContain(`| [\`@throughline/${name}\`](${folder}) |`)
  })
})

const API = '@opentelemetry/api'

describe.each(adapters)('what traces %s', (name) => {
  const folder = `packages/${name}`
  const manifest = manifestOf(folder)
  const { [API]: api, ...libraries } = manifest.peerDependencies ?? {}
  const library = Object.keys(libraries)

  test('depends on core, and leaves the library to the app', () => {
    expect(manifest.dependencies).toEqual({ '@throughline/core': expect.stringMatching(/^\^\d/) })
    expect(library).toEqual(ofNode.has(name) ? [] : [name])
    // What core asks for of who depends on it: where nobody passes that on, strict package managers give it none.
    expect(api).toBe(manifestOf('packages/core').peerDependencies?.[API])
    expect(manifest).toMatchObject({ sideEffects: false })
  })

  test.each(filesIn(`${folder}/src`))('%s imports core, Node, and of the library its types only', (path) => {
    const others = importsOf(path).filter(
      ({ from, isType }) =>
        !/^\.\/|^node:|^@throughline\/core(\/client|\/database|\/sql|\/http-client)?$/.test(from) &&
        !(isType && library.includes(from)),
    )
    expect(others).toEqual([])
  })

  test('exports one value, named by what it does', async () => {
    expect(Object.keys(await load(`${folder}/src/index.ts`))).toEqual([
      expect.stringMatching(/^(tracing|trace[A-Z]\w+)$/),
    ])
  })

  test('marks its spans with its own name and version', () => {
    const scopes = filesIn(`${folder}/src`).flatMap((path) =>
      Array.from(
        read(path).matchAll(/\bscope\b[^=]*= \{ name: '(.*?)', version: '(.*?)' \}/gi),
        ([, scope, version]) => [scope, version],
      ),
    )
    expect(scopes).toEqual([[manifest.name, manifest.version]])
  })
})

test('core depends on the API alone, and that is one with the app', () => {
  const { dependencies, peerDependencies } = manifestOf('packages/core')
  expect(dependencies).toBeUndefined()
  expect(peerDependencies).toEqual({ '@opentelemetry/api': '^1.9.0' })
})

test('core marks what it makes with its own version', async () => {
  expect((await load('packages/core/src/resource.ts'))['VERSION']).toBe(manifestOf('packages/core').version)
})

test('the viewer shows the traces of any SDK: it needs nothing of ours', () => {
  const { dependencies = {} } = manifestOf('packages/viewer')
  const imported = filesIn('packages/viewer/src')
    .flatMap(importsOf)
    .map(({ from }) => from)
    .filter((from) => !/^\.|^node:/.test(from))
  const names = new Set(imported.map((from) => /^(@[^/]+\/)?[^/]+/.exec(from)?.[0]))
  expect([...names].sort()).toEqual(Object.keys(dependencies))
  expect(Object.keys(dependencies).filter((each) => /throughline|opentelemetry/.test(each))).toEqual([])
})

describe('the command of the viewer', () => {
  const { bin = {}, version } = manifestOf('packages/viewer')
  const command = join(root, 'packages/viewer', bin['throughline'] ?? '')
  const run = (path: string) => spawnSync(process.execPath, [path, '--version'], { encoding: 'utf8' })

  // npm links a command where its file is there at the time of the install, and a checkout is not built then.
  test.skipIf(!existsSync(join(root, '.git')))('is in git, so that npx finds it in a checkout', () => {
    expect(bin).toEqual({ throughline: './bin/throughline.mjs' })
    const { stdout } = spawnSync('git', ['ls-files', '--stage', command], { cwd: root, encoding: 'utf8' })
    expect(stdout).toMatch(/^100755 /)
    expect(readFileSync(command, 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/)
  })

  test('runs what is built', () => {
    expect(run(command)).toMatchObject({ status: 0, stdout: `${version}\n`, stderr: '' })
  })

  test('says what to do where nothing is built', ({ onTestFinished }) => {
    const folder = mkdtempSync(join(tmpdir(), 'throughline-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    cpSync(join(command, '..'), join(folder, 'bin'), { recursive: true })
    expect(run(join(folder, 'bin/throughline.mjs'))).toMatchObject({
      status: 1,
      stdout: '',
      stderr: 'throughline: it is not built yet: run `npm run build` first\n',
    })
  })
})

test('the examples are built with the packages', () => {
  const examples = readdirSync(join(root, 'examples')).map((name) => `examples/${name}`)
  expect(references).toEqual(expect.arrayContaining(examples))
})

test('the tools and libraries of the house are of exact versions', () => {
  const { devDependencies = {} } = manifestOf('.')
  expect(
    Object.entries(devDependencies).filter(([, version]) => !/^(npm:.+@)?\d[^ ]*$/.test(version)),
  ).toEqual([])
})

describe('every source', () => {
  const sources = ['packages', 'examples', 'scripts', 'test', 'bench', '.ci']
    .flatMap(filesIn)
    .filter((path) => /\.[mc]?[jt]s$/.test(path))

  test('is named in kebab-case', () => {
    const others = sources.filter(
      (path) => !/\/[a-z0-9]+(-[a-z0-9]+)*(\.(test|setup|d))?\.(ts|mjs|mts|cjs)$/.test(path),
    )
    expect(others).toEqual([])
  })

  test('is named by what it is about', () => {
    const drawers = /\/(utils?|helpers?|types?|constants?|common|enums?|shared|misc)(\.|\/)/
    expect(sources.filter((path) => drawers.test(path))).toEqual([])
  })

  test('exports by names', () => {
    const code = sources.filter((path) => /^(packages|examples)\//.test(path))
    expect(code.filter((path) => /^export default\b|\bas default\b/m.test(read(path)))).toEqual([])
  })
})
