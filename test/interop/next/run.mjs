/**
 * The interop scenarios on the 3.x line of OpenTelemetry, which needs Node 22.15 and version 1.10 of the API, and so an
 * install of its own. `node test/interop/next/run.mjs` installs what is missing, puts our built packages beside it as an
 * app would have them, and runs the apps of this folder, each as a process of its own. Needs `npm run build` before.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, readFileSync, rmSync } from 'node:fs'
import { arch, platform } from 'node:process'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { collect, receive } from '@throughline/viewer'
import { startServices } from '../../../scripts/services.mjs'

const path = (name) => fileURLToPath(new URL(name, import.meta.url))

/** What OpenTelemetry 3.x runs on. */
const [LEAST_MAJOR, LEAST_MINOR] = [22, 15]

/** An app of this folder is done in some seconds; a busy machine may take many times that. */
const MOST_OF_AN_APP_MS = 60_000
/** What is installed are 150 MB, most of them a Node. */
const MOST_OF_AN_INSTALL_MS = 300_000

install()
const node = nodeForIt()
const { urls, stop } = await startServices(['postgres'])
after(stop)

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'
const headers = { traceparent: `00-${TRACE_ID}-00f067aa0ba902b7-01` }
const database = new URL(urls.postgres).pathname.slice(1)
const LEFT_IN_CHARGE =
  'throughline: an OpenTelemetry SDK is registered and stays in charge; start() did nothing\n'

test('the official instrumentation works on our engine as on its own', async () => {
  const official = ['http', 'express', 'pg', 'undici']
  const [ours, theirs] = await Promise.all(
    ['ours', 'sdk'].map((engine) => run('shop.cjs', { engine, official, headers })),
  )
  const expected = `
SERVER GET /users/:id by official http
  INTERNAL router - /:id by official express
  INTERNAL request handler by official express
    CLIENT pg-pool.connect by official pg
    CLIENT pg.query:SELECT ${database} by official pg
    CLIENT GET by official undici`.trim()
  assert.equal(tree(ours.spans), expected)
  assert.equal(tree(theirs.spans), expected)
  assert.equal(ours.said, '')
  assert.deepEqual(ours.traceparents, [[`00-${TRACE_ID}-${only(ours.spans, 'official undici').spanId}-01`]])
})

test('official exporters, processors, samplers, propagators, resources and ids are taken by start()', async (t) => {
  for (const pipeline of ['ours', 'proto', 'json', 'batch']) {
    const { collector, receiver } = await receiving(t)
    const told = await run('parts.mjs', { pipeline, collector: receiver.url })
    const spans = collector.traces().flatMap((trace) => trace.spans)
    assert.equal(told.said, '', pipeline)
    assert.deepEqual(
      spans.map(({ name }) => name).sort(),
      ['apart', 'attached', 'inner', 'job', 'outer'],
      pipeline,
    )
    const named = (...names) => names.map((name) => spans.find((span) => span.name === name))
    const [inner, outer] = named('inner', 'outer')
    assert.equal(inner.parentSpanId, outer.spanId)
    const [job, attached, apart] = named('job', 'attached', 'apart')
    assert.deepEqual([attached.parentSpanId, apart.parentSpanId], [job.spanId, undefined])
    const order = { id: 7, lines: [{ sku: 'A-7' }, null, ['x', 1, true]] }
    assert.deepEqual(outer.attributes, { 'order.id': 7, order })
    assert.deepEqual(
      inner.events.map(({ name }) => name),
      ['paid'],
    )
    assert.equal(outer.serviceName, 'orders')
    assert.deepEqual([told.traceId, told.b3], [outer.traceId, `${outer.traceId}-${inner.spanId}-1`])
    assert.equal(told.region, 'eu-west-1')
    assert.equal(told.traceparent, undefined)
  }
})

for (const order of ['before', 'after']) {
  test(`our adapters on the NodeSDK, registered ${order} we are imported`, async (t) => {
    const { collector, receiver } = await receiving(t)
    const asked = { engine: 'sdk', order, ours: ['express', 'pg', 'undici'], start: receiver.url, headers }
    for (const app of ['shop.cjs', 'shop.mjs']) {
      const told = await run(app, asked)
      assert.equal(
        tree(told.spans),
        `
SERVER GET /users/:id by @throughline/express
  CLIENT SELECT by @throughline/pg
  CLIENT GET by @throughline/undici`.trim(),
        app,
      )
      assert.equal(told.said, LEFT_IN_CHARGE)
      const { traceId, spanId } = only(told.spans, '@throughline/undici')
      assert.deepEqual([traceId, told.traceparents], [TRACE_ID, [[`00-${TRACE_ID}-${spanId}-01`]]])
      assert.equal(told.spans[0].resource['telemetry.sdk.name'], 'opentelemetry')
    }
    assert.deepEqual(collector.traces(), [])
  })
}

for (const engine of ['ours', 'sdk']) {
  test(`both at once make one SERVER span, one CLIENT span a query, and one traceparent: ${engine}`, async () => {
    const ours = ['express', 'pg', 'undici']
    const told = await run('shop.cjs', { engine, official: ['http', 'pg'], ours, headers })
    assert.equal(
      tree(told.spans),
      `
SERVER GET /users/:id by official http
  CLIENT pg-pool.connect by official pg
  CLIENT pg.query:SELECT ${database} by official pg
  CLIENT GET by @throughline/undici`.trim(),
    )
    assert.equal(told.said, 'throughline: another instrumentation traces pg already, so tracePg does not\n')
    const { spanId } = only(told.spans, '@throughline/undici')
    assert.deepEqual(told.traceparents, [[`00-${TRACE_ID}-${spanId}-01`]])

    const broken = await run('shop.cjs', { engine, official: ['http'], ours, path: '/broken' })
    assert.equal(tree(broken.spans), 'SERVER GET /broken by official http ✗')
    // The type of the error is theirs to say, and they say the status.
    const [{ attributes, events, status }] = broken.spans
    assert.deepEqual([attributes['http.route'], attributes['error.type'], status.code], ['/broken', '500', 2])
    assert.deepEqual(
      events.map(({ name, attributes }) => [name, attributes['exception.type']]),
      [['exception', 'RangeError']],
    )
  })
}

test('two copies of our core, by import and by require, are one engine and one trace', async () => {
  const told = await run('copies.mjs', {})
  assert.equal(
    tree(told.spans),
    `
INTERNAL of the app by @throughline/core
  INTERNAL of the library by @throughline/core
    INTERNAL by the API by app`.trim(),
  )
  assert.deepEqual([told.areTwo, told.unflushed, told.said], [true, 0, LEFT_IN_CHARGE])
})

test('an official SDK that registers too late is told so once', async () => {
  for (const app of ['late.mjs', 'late.cjs']) {
    const { spans, theirs, said } = await run(app, {})
    assert.match(
      said,
      /^throughline: TracerProvider was registered after Throughline had started.*start\(\)\n$/,
      app,
    )
    assert.deepEqual([spans, theirs], [['first', 'second'], []])
  }
})

test('a core whose API is older than that of the SDK in charge uses that SDK', async () => {
  const told = await run('minors.cjs', { newer: 'app' })
  assert.equal(
    tree(told.theirs),
    'INTERNAL of the app by app\n  INTERNAL of the library by @throughline/core',
  )
  assert.deepEqual([told.results, told.said], [[1, 2], ''])
})

test('a core whose API is newer than that of the SDK in charge says so once, and the app goes on', async () => {
  const told = await run('minors.cjs', { newer: 'library' })
  assert.deepEqual([told.results, tree(told.theirs)], [[1, 2], 'INTERNAL of the app by app'])
  assert.match(told.said, /^throughline: .*@opentelemetry\/api.*1\.9\.\d+.*\n$/)
})

/** Installs by the lockfile, unless that has been done; then our packages, of which there is no other version to test. */
function install() {
  const installed = path('node_modules/.package-lock.json')
  const isDone = existsSync(installed) && lockOf(installed) === lockOf(path('package-lock.json'))
  if (!isDone) {
    console.error('installing OpenTelemetry 3.x and a Node for it')
    const { status, error } = spawnSync('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'], {
      cwd: path('.'),
      stdio: ['ignore', 'inherit', 'inherit'],
      timeout: MOST_OF_AN_INSTALL_MS,
      shell: platform === 'win32',
    })
    assert.equal(status, 0, `npm ci failed${error === undefined ? '' : `: ${error.message}`}`)
  }
  for (const name of ['core', 'express', 'pg', 'undici']) {
    const from = path(`../../../packages/${name}`)
    const to = path(`node_modules/@throughline/${name}`)
    assert.ok(existsSync(`${from}/dist/index.js`), `${name} is not built; run: npm run build`)
    rmSync(to, { recursive: true, force: true })
    for (const part of ['dist', 'package.json'])
      cpSync(`${from}/${part}`, `${to}/${part}`, { recursive: true })
  }
}

/** The versions that a lockfile names. npm writes a shorter one into node_modules, without what is not for this machine. */
function lockOf(file) {
  const { packages } = JSON.parse(readFileSync(file, 'utf8'))
  return Object.entries(packages)
    .filter(([name, { optional }]) => name !== '' && optional !== true)
    .map(([name, { version }]) => `${name}@${version}`)
    .join()
}

/** This very Node where it is new enough, else the one of the install. */
function nodeForIt() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > LEAST_MAJOR || (major === LEAST_MAJOR && minor >= LEAST_MINOR)) return process.execPath
  const name = `node-${platform === 'win32' ? 'win' : platform}-${arch}`
  const file = path(`node_modules/${name}/bin/node${platform === 'win32' ? '.exe' : ''}`)
  assert.ok(
    existsSync(file),
    `expected Node ${LEAST_MAJOR}.${LEAST_MINOR} or newer, received ${process.version}, and npm has none for ${platform} ${arch}; run this with a newer one`,
  )
  return file
}

/** A real receiver, until the test ends, however it does. */
async function receiving(t) {
  const collector = collect()
  const receiver = await receive({ port: 0, onSpans: collector.add })
  t.after(async () => {
    collector.close()
    await receiver.close()
  })
  return { collector, receiver }
}

/** Runs an app of this folder; what it tells is its last line. */
async function run(app, asked) {
  const child = spawn(node, [path(app), JSON.stringify(asked)], {
    env: {
      PATH: process.env.PATH,
      DATABASE_URL: urls.postgres,
      // Of a `require` of a module they say, up to Node 22, that this is new.
      NODE_OPTIONS: '--disable-warning=ExperimentalWarning',
      OTEL_METRICS_EXPORTER: 'none',
      OTEL_LOGS_EXPORTER: 'none',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: MOST_OF_AN_APP_MS,
    killSignal: 'SIGKILL',
  })
  let [stdout, said] = ['', '']
  child.stdout.on('data', (chunk) => (stdout += chunk))
  child.stderr.on('data', (chunk) => (said += chunk))
  const [code, signal] = await once(child, 'close')
  assert.equal(signal, null, `${app} did not end within ${MOST_OF_AN_APP_MS / 1000} s; it said: ${said}`)
  assert.equal(code, 0, said)
  return { ...JSON.parse(stdout.trim().split('\n').at(-1)), said }
}

/** The traces as they are read: children below their parent, ✗ for status Error. */
function tree(spans) {
  const kinds = ['INTERNAL', 'SERVER', 'CLIENT']
  const ids = new Set(spans.map(({ spanId }) => spanId))
  assert.equal(ids.size, spans.length)
  return lines(
    spans.filter(({ parentSpanId }) => !ids.has(parentSpanId)),
    '',
  ).join('\n')

  function lines(siblings, indent) {
    return siblings.flatMap(({ spanId, kind, name, scope, status }) => [
      `${indent}${kinds[kind]} ${name} by ${short(scope)}${status.code === 2 ? ' ✗' : ''}`,
      ...lines(
        spans.filter(({ parentSpanId }) => parentSpanId === spanId),
        `${indent}  `,
      ),
    ])
  }
}

function short(scope) {
  return scope.replace('@opentelemetry/instrumentation-', 'official ')
}

function only(spans, scope) {
  const found = spans.filter((span) => short(span.scope) === scope)
  assert.equal(found.length, 1, scope)
  return found[0]
}
