// `npm run pack:check`: what npm would publish, as those who install it get it. Run it after `npm run build`.
import { execFile } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { build as rolldown } from 'rolldown'
import webpack from 'webpack'
import { publint } from 'publint'
import { formatMessage } from 'publint/utils'

/** @typedef {{ name: string, version: string, filename: string, files: { path: string, mode: number }[] }} Packed */
/** @typedef {{ name: string, exports: Record<string, string | Record<string, string>>, bin?: Record<string, string>, [field: string]: unknown }} Manifest */

const run = promisify(execFile)
const root = fileURLToPath(new URL('..', import.meta.url))
const attw = join(root, 'node_modules/@arethetypeswrong/cli/dist/index.js')
/** A bundle that does not end has made no span. */
const MOST_OF_A_BUNDLE_MS = 30_000
// A shell finds npm by its name; Windows finds it with a shell only.
const npmOptions = { shell: process.platform === 'win32', maxBuffer: 2 ** 26 }

/**
 * Apps that start nothing by themselves: their first span does, wherever a bundler leaves out what seems to be of no use. Each
 * ends well where there is one.
 */
const STARTING = {
  'span()': `
import { span } from '@throughline/core'
span('work', (made) => process.exit(made.isRecording() ? 0 : 3))`,
  'sender()': `
import { Call, sender } from '@throughline/core/client'
class Work extends Call { name() { return 'work' } build() { return {} } subject() { return [] } outcome() { return [] } }
const send = sender({ scope: { name: 'mine', version: '1' }, text: () => '' }, 'traceMine()', {})
const call = new Work(send.caller())
send.begin(call)
process.exit(call.span.isRecording() ? 0 : 3)`,
  'a client': `
import { traceUndici } from '@throughline/undici'
import { createServer } from 'node:http'
traceUndici({ requireParent: false })
const server = createServer((request) => process.exit('traceparent' in request.headers ? 0 : 3))
server.listen(0, () => fetch('http://localhost:' + server.address().port))`,
}

/** @type {Record<string, (entry: string, outfile: string) => Promise<unknown>>} */
const BUNDLERS = {
  esbuild: (entry, outfile) =>
    build({ entryPoints: [entry], bundle: true, platform: 'node', logLevel: 'silent', outfile }),
  rolldown: (entry, outfile) =>
    rolldown({
      input: entry,
      platform: 'node',
      logLevel: 'silent',
      output: { file: outfile, format: 'cjs', codeSplitting: false },
    }),
  webpack: (entry, outfile) =>
    new Promise((resolve, reject) => {
      const output = { path: dirname(outfile), filename: basename(outfile) }
      webpack({ mode: 'production', target: 'node', entry, output }, (error, stats) => {
        if (error || stats?.hasErrors()) reject(error ?? new Error(stats?.toString('errors-only')))
        else resolve(undefined)
      })
    }),
}

const folders = readdirSync(join(root, 'packages'))
  .map((name) => `packages/${name}`)
  .filter((folder) => existsSync(join(root, folder, 'package.json')))

const unbuilt = folders.filter((folder) => !existsSync(join(root, folder, 'dist/index.js')))
if (unbuilt.length > 0) {
  console.error(`Not built yet: ${unbuilt.join(', ')}. Run \`npm run build\` first.`)
  process.exit(1)
}

// Outside of the repository, where nothing is found by chance.
const temporary = await mkdtemp(join(tmpdir(), 'throughline-pack-'))
try {
  const packed = await pack()
  const [problems, installed] = await Promise.all([
    Promise.all(packed.map((each, index) => problemsOf(folders[index], each))),
    install(packed),
  ])
  for (const [index, { name, version, files }] of packed.entries()) {
    const wrong = problems[index]
    console.log(`${wrong.length === 0 ? 'ok' : 'WRONG'}  ${name}@${version}, ${files.length} files`)
    for (const problem of wrong) console.log(`       ${problem.replaceAll('\n', '\n       ')}`)
  }
  console.log(
    installed.length === 0
      ? 'ok  installed elsewhere: import, require, bundled (and starting by itself, by esbuild, rolldown and webpack), npx throughline'
      : 'WRONG  installed elsewhere',
  )
  for (const problem of installed) console.log(`       ${problem.replaceAll('\n', '\n       ')}`)
  if (problems.flat().length + installed.length > 0) process.exitCode = 1
} finally {
  await rm(temporary, { recursive: true, force: true })
}

/** @returns {Promise<Packed[]>} in the order of the folders */
async function pack() {
  const workspaces = folders.flatMap((folder) => ['-w', folder])
  const options = ['--json', '--ignore-scripts', '--pack-destination', temporary]
  const { stdout } = await run('npm', ['pack', ...options, ...workspaces], { ...npmOptions, cwd: root })
  /** @type {Packed[]} */
  const packed = JSON.parse(stdout)
  return folders.map((folder) => {
    const { name } = manifestOf(folder)
    const found = packed.find((each) => each.name === name)
    if (found === undefined)
      throw new Error(`npm did not pack ${name} of ${folder}: is it in "workspaces" of package.json?`)
    return found
  })
}

/**
 * @param {string} folder
 * @returns {Manifest}
 */
function manifestOf(folder) {
  return JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'))
}

/**
 * @param {string} folder
 * @param {Packed} packed
 * @returns {Promise<string[]>} what is wrong, and what to do about it
 */
async function problemsOf(folder, packed) {
  const tarball = join(temporary, packed.filename)
  const found = await Promise.all([contents(folder, packed), lint(folder, tarball), types(tarball)])
  return found.flat()
}

/**
 * @param {string} folder
 * @param {Packed} packed
 */
async function contents(folder, { files }) {
  const manifest = manifestOf(folder)
  const paths = files.map(({ path }) => path)
  const isThere = new Set(paths)
  const targets = Object.values(manifest.exports).flatMap((target) =>
    typeof target === 'string' ? [target] : Object.values(target),
  )
  const commands = Object.values(manifest.bin ?? {}).map((path) => path.replace('./', ''))
  const wanted = [
    'package.json',
    'README.md',
    'LICENSE',
    ...targets.map((path) => path.replace('./', '')),
    ...commands,
  ]
  const sources = paths.filter((path) => path.startsWith('src/') && path.endsWith('.ts'))
  const built = sources.flatMap((path) =>
    ['.js', '.js.map', '.d.ts', '.d.ts.map'].map((end) => path.replace('src', 'dist').replace(/\.ts$/, end)),
  )

  const problems = [
    ...[...new Set([...wanted, ...built])]
      .filter((path) => !isThere.has(path))
      .map(
        (path) =>
          `${path} is missing: run \`npm run build\`, and see "files" and "exports" of its package.json`,
      ),
    ...paths
      .filter((path) => /\.tsbuildinfo$|(^|\/)(tests?|__tests__)\/|\.(test|spec)\./.test(path))
      .map((path) => `${path} is not for users: leave it out in "files" of its package.json`),
    ...paths
      .filter((path) => /^dist\/.*\.(js|ts|map)$/.test(path) && !built.includes(path))
      .map((path) => `${path} has no source any more: remove ${folder}/dist and run \`npm run build\``),
  ]
  for (const command of commands.filter((path) => isThere.has(path))) {
    const code = await readFile(join(root, folder, command), 'utf8')
    if (!code.startsWith('#!/usr/bin/env node\n'))
      problems.push(`${command} is a command: its source must begin with #!/usr/bin/env node`)
  }
  return problems
}

/**
 * @param {string} folder
 * @param {string} tarball
 */
async function lint(folder, tarball) {
  const { buffer } = new Uint8Array(await readFile(tarball))
  const { messages } = await publint({ pack: { tarball: buffer }, strict: true })
  return messages.map((message) => `publint: ${formatMessage(message, manifestOf(folder), { color: false })}`)
}

/** @param {string} tarball */
async function types(tarball) {
  // That CommonJS gets ES modules is meant so: every Node that is supported can require them.
  const rules = ['--ignore-rules', 'cjs-resolves-to-esm']
  const options = [...rules, '--format', 'ascii', '--no-color', '--no-emoji']
  try {
    await run(process.execPath, [attw, tarball, ...options], { maxBuffer: 2 ** 26 })
    return []
  } catch (error) {
    const { stdout, stderr } = /** @type {{ stdout: string, stderr: string }} */ (error)
    return [`attw: ${`${stdout}${stderr}`.trim() || String(error)}`]
  }
}

/**
 * An app with all of the packages, and of their peers the API alone.
 *
 * @param {Packed[]} packed
 * @returns {Promise<string[]>}
 */
async function install(packed) {
  const app = join(temporary, 'app')
  await mkdir(app)
  const { devDependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
  const ours = packed.map(({ name, filename }) => [name, `file:${join(temporary, filename)}`])
  const dependencies = {
    ...Object.fromEntries(ours),
    '@opentelemetry/api': devDependencies['@opentelemetry/api'],
  }
  const manifest = { name: 'app', version: '1.0.0', private: true, dependencies }
  await writeFile(join(app, 'package.json'), JSON.stringify(manifest))
  const options = ['--legacy-peer-deps', '--prefer-offline', '--ignore-scripts', '--no-audit', '--no-fund']
  try {
    await run('npm', ['install', ...options], { ...npmOptions, cwd: app })
  } catch (error) {
    return [`the packages cannot be installed; is the registry reachable?\n${said(error)}`]
  }
  const starting = Object.entries(STARTING).flatMap(([what, code]) =>
    Object.entries(BUNDLERS).map(([bundler, bundle]) => bundledBy(app, bundler, bundle, what, code)),
  )
  const uses = packed.flatMap(({ name }) => [
    fails(
      app,
      `import('${name}')`,
      `import('${name}').then((m) => process.exit(Object.keys(m).length > 0 ? 0 : 3))`,
    ),
    fails(app, `require('${name}')`, `process.exit(Object.keys(require('${name}')).length > 0 ? 0 : 3)`),
    bundled(app, name, 'esm', 'mjs'),
    bundled(app, name, 'cjs', 'cjs'),
  ])
  return (await Promise.all([...uses, ...starting, command(app, packed)])).flat()
}

/**
 * @param {string} app
 * @param {string} what
 * @param {string} code
 */
async function fails(app, what, code) {
  try {
    await run(process.execPath, ['-e', code], { cwd: app, env: { ...process.env, NODE_OPTIONS: '' } })
    return []
  } catch (error) {
    return [
      `${what} fails: what it needs must be in "dependencies", and dist must be built of today's src\n${said(error)}`,
    ]
  }
}

/**
 * @param {string} app
 * @param {string} bundler
 * @param {(entry: string, outfile: string) => Promise<unknown>} bundle
 * @param {string} what
 * @param {string} code
 */
async function bundledBy(app, bundler, bundle, what, code) {
  const name = `${bundler}-${what.replace(/\W/g, '')}`
  const [entry, outfile] = [join(app, `${name}.mjs`), join(app, 'bundles', `${name}.cjs`)]
  try {
    await writeFile(entry, code)
    await bundle(entry, outfile)
    const env = { ...process.env, NODE_OPTIONS: '', OTEL_TRACES_EXPORTER: 'none' }
    await run(process.execPath, [outfile], { env, timeout: MOST_OF_A_BUNDLE_MS })
    return []
  } catch (error) {
    return [
      `bundled by ${bundler}, ${what} makes no span: what must be kept is in "sideEffects" of its package.json\n${said(error)}`,
    ]
  }
}

/**
 * In one file, where there are no files beside it, and in CommonJS no `import.meta` either.
 *
 * @param {string} app
 * @param {string} name
 * @param {'esm' | 'cjs'} format
 * @param {string} ending of the file
 */
async function bundled(app, name, format, ending) {
  const outfile = join(app, 'bundles', `${name.split('/')[1]}.${ending}`)
  const what = `a bundle of ${name} as ${format}`
  try {
    await build({
      stdin: {
        contents: `import * as all from '${name}'\nprocess.exit(Object.keys(all).length > 0 ? 0 : 3)`,
        resolveDir: app,
      },
      bundle: true,
      platform: 'node',
      minify: true,
      logLevel: 'silent',
      format,
      outfile,
    })
    await run(process.execPath, [outfile], { env: { ...process.env, NODE_OPTIONS: '' } })
    return []
  } catch (error) {
    return [`${what} fails: it may ask for nothing by where its file is\n${said(error)}`]
  }
}

/**
 * @param {string} app
 * @param {Packed[]} packed
 */
async function command(app, packed) {
  const version = packed.find(({ name }) => name === '@throughline/viewer')?.version
  // The first is how its texts say that it is run: npx takes the one command that the package has.
  for (const name of ['@throughline/viewer', 'throughline']) {
    try {
      const { stdout } = await run('npx', ['--no-install', name, '--version'], { ...npmOptions, cwd: app })
      if (stdout.trim() === version) continue
      return [`npx ${name} --version printed ${JSON.stringify(stdout.trim())}, expected ${version}`]
    } catch (error) {
      return [`npx ${name} --version fails: see "bin" of @throughline/viewer\n${said(error)}`]
    }
  }
  return []
}

/** @param {unknown} error */
function said(error) {
  const { stderr, message } = /** @type {Error & { stderr?: string }} */ (error)
  const lines = (stderr?.trim() || message).split('\n').filter((line) => !/^\s*(at |npm warn|$)/.test(line))
  return lines.slice(0, 8).join('\n')
}
