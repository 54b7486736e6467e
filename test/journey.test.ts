import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { collect, receive, type Span } from '@throughline/viewer'
import { describe, expect, inject, test, type TestContext } from 'vitest'
import { readOptions, USAGE } from '../examples/checkout/src/options.ts'
import type * as Fleet from '../examples/checkout/src/fleet.ts'
import { spansFromJson } from '../packages/viewer/src/request.ts'

type OnTestFinished = TestContext['onTestFinished']

const file = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url))

/** ms that six processes may take to come and go on a machine that is busy with other tests too. */
const SLOW = 60_000

const hasCurl = spawnSync('curl', ['--version']).status === 0

/** A terminal's environment: nothing of the test runner's, and settings that are meant for other apps. */
const terminal: NodeJS.ProcessEnv = {
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^(VITEST|NODE_ENV|NODE_OPTIONS|FORCE_COLOR)/.test(name)),
  ),
  OTEL_SDK_DISABLED: 'true',
  OTEL_SERVICE_NAME: 'other',
  PORT: '1',
  NO_COLOR: '1',
}

function runDemo(onTestFinished: OnTestFinished, ...args: string[]) {
  const child = spawn(process.execPath, [file('scripts/demo.mjs'), ...args], {
    // A process group of its own, so that it can be asked who of it is left.
    detached: true,
    env: { ...terminal, DATABASE_URL: inject('databaseUrl'), REDIS_URL: inject('redisUrl') },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void signalGroup(child, 'SIGKILL'))
  const said = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => (said.stdout += String(chunk)))
  child.stderr.on('data', (chunk: Buffer) => (said.stderr += String(chunk)))
  const exit = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  // The services write to the demo's stderr: it is closed when none of them is there any more.
  const closed = once(child, 'close')

  async function until(where: 'stdout' | 'stderr', isReached: () => boolean): Promise<void> {
    while (!isReached()) {
      await Promise.race([once(child[where], 'data'), closed.then(() => expect.fail(said.stderr))])
    }
  }

  /** What the pattern found, as soon as it has been said. */
  async function says(where: 'stdout' | 'stderr', pattern: RegExp): Promise<string> {
    await until(where, () => pattern.test(said[where]))
    return pattern.exec(said[where])?.[1] ?? ''
  }

  async function ended() {
    const [code, signal] = await exit
    // Whoever is there at this moment was left behind; they would keep stderr open for ever.
    const leavesSomeone = signalGroup(child, 'SIGKILL')
    await closed
    return { code, signal, leavesSomeone, ...said }
  }

  return { child, said, says, until, ended, closed }
}

/** Whether there was a process to get the signal. */
function signalGroup({ pid }: ChildProcess, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(-(pid as number), signal)
  } catch {
    return false
  }
}

const done = { code: 0, signal: null, leavesSomeone: false }

/** The spans of the one line that is on stdout. */
async function traced(onTestFinished: OnTestFinished, ...args: string[]): Promise<Span[]> {
  const { stdout, ...end } = await runDemo(onTestFinished, '--json', ...args).ended()
  expect(end).toMatchObject(done)
  expect(stdout).toMatch(/^\{"resourceSpans":\[.*\]\}\n$/)
  return tracesIn(stdout)[0] as Span[]
}

function tracesIn(stdout: string): Span[][] {
  const lines = stdout.split('\n').slice(0, -1)
  return lines.map((line) => spansFromJson(Buffer.from(line)))
}

/** The trace as it is read: children below their parent, in the order of the alphabet, ✗ for status Error. */
function tree(spans: readonly Span[]): string {
  expect(new Set(spans.map(({ traceId }) => traceId)).size, 'traces').toBe(1)
  const ids = new Set(spans.map(({ spanId }) => spanId))
  expect(ids.size, 'ids').toBe(spans.length)
  const roots = spans.filter(({ parentSpanId }) => !ids.has(parentSpanId as string))
  return lines(roots, '').join('\n')

  function lines(siblings: readonly Span[], indent: string): string[] {
    return siblings
      .map((each) => {
        const { spanId, name, kind, attributes, serviceName, status } = each
        const peer = attributes['service.peer.name']
        const line = `${serviceName}: ${kind} ${name}${peer ? ` to ${String(peer)}` : ''}`
        const children = spans.filter(({ parentSpanId }) => parentSpanId === spanId)
        return [
          indent + line + (status.code === 'error' ? ' ✗' : ''),
          ...lines(children, `${indent}  `),
        ].join('\n')
      })
      .sort()
  }
}

function find(spans: readonly Span[], service: string, text: string): Span {
  const found = spans.filter((span) => span.serviceName === service && tree([span]).includes(text))
  expect(found, `${service} ${text}`).toHaveLength(1)
  return found[0] as Span
}

/** As it is in the description of the example; a failed span would be marked. */
const whole = `
api-gateway: server POST /checkout
  api-gateway: client POST to order-service
    order-service: server POST /orders
      order-service: internal checkout.process
        order-service: client GET to inventory-service
          inventory-service: server GET /stock
            inventory-service: client HMGET
        order-service: client INSERT orders
        order-service: client POST to payment-service
          payment-service: server POST /charges
            payment-service: client POST to stripe-api`.trim()

/** Within one process, whose clock is one: no child begins before its parent, and none ends after it. */
function expectNesting(spans: readonly Span[]): void {
  for (const child of spans) {
    const parent = spans.find(
      ({ spanId, serviceName }) => spanId === child.parentSpanId && serviceName === child.serviceName,
    )
    expect(child.endTimeUnixNano).toBeGreaterThanOrEqual(child.startTimeUnixNano)
    if (parent === undefined) continue
    expect(child.startTimeUnixNano).toBeGreaterThanOrEqual(parent.startTimeUnixNano)
    expect(child.endTimeUnixNano).toBeLessThanOrEqual(parent.endTimeUnixNano)
  }
}

/** What the customer's card, the shelves and the order's row hold; the id of the user is an attribute on purpose, once. */
function expectNoSecrets(spans: readonly Span[]): void {
  const process = find(spans, 'order-service', 'checkout.process')
  const { 'user.id': _1, 'order.id': orderId, ...attributes } = process.attributes
  // Not times and ids, in whose digits anything can stand.
  const told = spans.map((span) => ({
    name: span.name,
    attributes: span === process ? attributes : span.attributes,
    events: events(span),
    links: span.links.map((link) => link.attributes),
    status: span.status,
    resource: span.resource,
  }))
  const text = JSON.stringify(told, (_key, value: unknown) =>
    typeof value === 'bigint' ? String(value) : value,
  )
  for (const secret of ['user-7', 'tok_', String(orderId), new URL(inject('databaseUrl')).password]) {
    if (secret !== '') expect(text).not.toContain(secret)
  }
  // The amount as a number or a word of its own, and not as a part of a port or of a name made of random digits.
  expect(text).not.toMatch(/(?<![0-9a-f])4300(?![0-9a-f])/)
}

const events = ({ events }: Span) => events.map(({ name, attributes }) => [name, attributes])

// The shelves are shared: this one empties them, so it runs by itself; and what makes the table, runs alone too.
test(
  'out of stock: the check and the order have failed, no order is written, and the payment has not',
  { timeout: SLOW },
  async ({ onTestFinished }) => {
    const spans = await traced(onTestFinished, '--fail', 'stock')
    expect(tree(spans)).toBe(
      `
api-gateway: server POST /checkout
  api-gateway: client POST to order-service ✗
    order-service: server POST /orders
      order-service: internal checkout.process ✗
        order-service: client GET to inventory-service ✗
          inventory-service: server GET /stock
            inventory-service: client HMGET
        order-service: client POST to payment-service
          payment-service: server POST /charges
            payment-service: client POST to stripe-api`.trim(),
    )
    const process = find(spans, 'order-service', 'checkout.process')
    expect(process.status).toEqual({ code: 'error', message: 'out of stock: mug' })
    expect(process.attributes).not.toHaveProperty('payment.failure_reason')
    expect(events(process)).toEqual([
      ['inventory_check_start', {}],
      ['inventory_check_complete', { 'inventory.missing_count': 1 }],
    ])
    expectNesting(spans)
    expectNoSecrets(spans)
  },
)

test('the demo says first of all that Node is too old for it', () => {
  const old = `Object.defineProperty(process, 'versions', { value: { node: '18.20.8' } })`
  const args = ['--import', `data:text/javascript,${encodeURIComponent(old)}`, file('scripts/demo.mjs')]
  expect(spawnSync(process.execPath, args, { env: terminal, encoding: 'utf8' })).toMatchObject({
    status: 1,
    stdout: '',
    stderr: 'The demo failed: expected Node 20.19 or newer, received 18.20.8\n',
  })
})

describe.concurrent('a checkout through five processes', { timeout: SLOW }, () => {
  test('is one trace: every service, the right parents, and nothing more', async ({ onTestFinished }) => {
    const spans = await traced(onTestFinished)
    expect(tree(spans)).toBe(whole)
    expect(find(spans, 'api-gateway', 'server').parentSpanId).toBeUndefined()

    const process = find(spans, 'order-service', 'checkout.process')
    expect(process.attributes).toEqual({
      'order.id': expect.stringMatching(/^[0-9a-f-]{36}$/),
      'user.id': 'user-7',
      'cart.item_count': 2,
    })
    expect(events(process)).toEqual([
      ['inventory_check_start', {}],
      ['inventory_check_complete', { 'inventory.missing_count': 0 }],
    ])

    const inventory = find(spans, 'order-service', 'to inventory-service')
    const payment = find(spans, 'order-service', 'to payment-service')
    const insert = find(spans, 'order-service', 'INSERT orders')
    expect(inventory.startTimeUnixNano, 'they overlap').toBeLessThan(payment.endTimeUnixNano)
    expect(payment.startTimeUnixNano, 'they overlap').toBeLessThan(inventory.endTimeUnixNano)
    for (const { endTimeUnixNano } of [inventory, payment]) {
      expect(insert.startTimeUnixNano).toBeGreaterThanOrEqual(endTimeUnixNano)
    }
    expectNesting(spans)

    expect(insert.attributes).toMatchObject({
      'db.query.text': 'INSERT INTO orders (id, user_id, amount) VALUES ($1, $2, $3)',
      'db.system.name': 'postgresql',
    })
    expect(find(spans, 'inventory-service', 'HMGET').attributes).toMatchObject({
      'db.query.text': 'HMGET checkout:stock mug shirt',
      'db.system.name': 'redis',
    })
    expectNoSecrets(spans)
  })

  test('with a card that is declined fails at the provider and says why', async ({ onTestFinished }) => {
    const spans = await traced(onTestFinished, '--fail', 'payment')
    expect(tree(spans)).toBe(
      `
api-gateway: server POST /checkout
  api-gateway: client POST to order-service ✗
    order-service: server POST /orders
      order-service: internal checkout.process ✗
        order-service: client GET to inventory-service
          inventory-service: server GET /stock
            inventory-service: client HMGET
        order-service: client POST to payment-service ✗
          payment-service: server POST /charges
            payment-service: client POST to stripe-api ✗`.trim(),
    )
    const process = find(spans, 'order-service', 'checkout.process')
    expect(process.status).toEqual({ code: 'error', message: 'payment declined: card_declined' })
    expect(process.attributes).toMatchObject({ 'payment.failure_reason': 'card_declined' })
    expect(find(spans, 'payment-service', 'to stripe-api').attributes).toMatchObject({
      'http.response.status_code': 402,
      'error.type': '402',
    })
    expectNesting(spans)
    expectNoSecrets(spans)
  })

  test('without the inventory service fails where the call was refused, and all the way up', async ({
    onTestFinished,
  }) => {
    const spans = await traced(onTestFinished, '--fail', 'inventory')
    // The answer does not wait for the payment: it may end after the root.
    expect(tree(spans)).toBe(
      `
api-gateway: server POST /checkout ✗
  api-gateway: client POST to order-service ✗
    order-service: server POST /orders ✗
      order-service: internal checkout.process ✗
        order-service: client GET to inventory-service ✗
        order-service: client POST to payment-service
          payment-service: server POST /charges
            payment-service: client POST to stripe-api`.trim(),
    )
    expect(find(spans, 'order-service', 'to inventory-service').attributes).toMatchObject({
      // Who comes early enough still finds a connection, which breaks.
      'error.type': expect.stringMatching(/^ECONN|^UND_ERR_SOCKET$/),
    })
    expect(events(find(spans, 'order-service', 'checkout.process'))).toEqual([['inventory_check_start', {}]])
    expectNoSecrets(spans)
  })

  test('is drawn with every service, and the culprit is named', async ({ onTestFinished }) => {
    const { stdout, ...end } = await runDemo(onTestFinished, '--fail', 'payment').ended()
    expect(end).toMatchObject(done)
    for (const service of ['api-gateway', 'order-service', 'inventory-service', 'payment-service']) {
      expect(stdout).toContain(`[${service}] `)
    }
    expect(stdout).toContain('→ POST payment-service')
    expect(stdout).toContain('redis: HMGET')
    expect(stdout).toMatch(/✗ checkout\.process .*\n +✗ payment declined: card_declined\n/)
    expect(stdout).toMatch(/✗ \[stripe-api\] POST .*\n +✗ HTTP 402\n/)
    expect(stdout).toMatch(/^origin of 4 errors: \[stripe-api\] POST: HTTP 402$/m)
  })

  test('goes where --otlp says, and is there when the command ends', async ({ onTestFinished }) => {
    const collector = collect()
    const receiver = await receive({ port: 0, onSpans: collector.add })
    onTestFinished(() => receiver.close())
    const { stdout, ...end } = await runDemo(onTestFinished, '--otlp', receiver.url).ended()
    const traces = collector.traces()
    collector.close()
    expect(end).toMatchObject(done)
    expect(stdout).toBe('')
    expect(traces.map(({ spans }) => tree(spans))).toEqual([whole])
    expect(end.stderr).toContain(`The trace ${traces[0]?.traceId} goes to ${receiver.url}.\n`)
  })

  test('is a failure where --otlp leads to somebody who refuses it', async ({ onTestFinished }) => {
    const refusing = createServer((_request, response) => response.writeHead(400).end()).listen(
      0,
      '127.0.0.1',
    )
    onTestFinished(() => void refusing.close())
    await once(refusing, 'listening')
    const url = `http://127.0.0.1:${(refusing.address() as AddressInfo).port}`
    const { stderr, ...end } = await runDemo(onTestFinished, '--otlp', url).ended()
    expect(end).toMatchObject({ ...done, code: 1, stdout: '' })
    expect(stderr).toMatch(/^throughline: spans are being lost: .*400/m)
    expect(stderr).toMatch(/^throughline: \d spans were lost/m)
    expect(stderr).toMatch(/^The trace [0-9a-f]{32} goes to /m)
    expect(
      stderr.endsWith(`The demo failed: ${url} did not get all spans of the trace, as said above\n`),
    ).toBe(true)
  })

  test.skipIf(!hasCurl)(
    '--serve: the printed curl line works as often as one likes, and Ctrl-C ends everything',
    async ({ onTestFinished }) => {
      const demo = runDemo(onTestFinished, '--serve', '--json')
      const line = await demo.says('stderr', /^ +(curl .*)$/m)
      const shell = promisify(execFile)
      for (const _ of [1, 2]) {
        const { stdout } = await shell('sh', ['-c', line])
        expect(stdout).toMatch(/^HTTP\/1\.1 201 Created\r\n/)
        expect(stdout).toMatch(/\r\n\r\n\{"id":"[0-9a-f-]{36}","amount":4300\}$/)
      }
      // A trace of which spans come late is shown again.
      const size = whole.split('\n').length
      const latest = () => [
        ...new Map(tracesIn(demo.said.stdout).map((spans) => [spans[0]?.traceId, spans])).values(),
      ]
      await demo.until('stdout', () => latest().filter((spans) => spans.length >= size).length === 2)
      // As a terminal does it: to all processes of the group.
      signalGroup(demo.child, 'SIGINT')
      expect(await demo.ended()).toMatchObject(done)
      expect(latest().map(tree)).toEqual([whole, whole])
    },
  )

  test('leaves no service behind when the command is killed', async ({ onTestFinished }) => {
    const demo = runDemo(onTestFinished, '--serve')
    await demo.says('stderr', /The checkout is up/)
    demo.child.kill('SIGKILL')
    expect(await demo.closed).toEqual([null, 'SIGKILL'])
  })

  test("continues the caller's trace, and tells somebody else's service by exactly one traceparent", async ({
    onTestFinished,
  }) => {
    const { startAll, stockUp, stop } = (await import(
      file('examples/checkout/dist/fleet.js')
    )) as typeof Fleet
    const collector = collect()
    const receiver = await receive({ port: 0, onSpans: collector.add })
    onTestFinished(() => receiver.close())
    await stockUp(inject('databaseUrl'), inject('redisUrl'), 20)
    const fleet = await startAll({
      databaseUrl: inject('databaseUrl'),
      redisUrl: inject('redisUrl'),
      endpoint: receiver.url,
    })
    onTestFinished(async () => void (await Promise.all(Object.values(fleet).map(stop))))

    const unsampled = await checkOut('00-11111111111111111111111111111111-1111111111111111-00')
    const sampled = await checkOut('00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')
    // Whoever is told to end sends what it holds first.
    await Promise.all(Object.values(fleet).map(stop))
    const traces = collector.traces()
    collector.close()

    expect(unsampled).toEqual([expect.stringMatching(/^00-1{32}-[0-9a-f]{16}-00$/)])
    expect(unsampled[0]).not.toContain('-1111111111111111-')
    expect(traces.map(({ spans }) => tree(spans))).toEqual([whole])
    const { spans } = traces[0] as (typeof traces)[0]
    expect(find(spans, 'api-gateway', 'server').parentSpanId).toBe('00f067aa0ba902b7')
    const { spanId } = find(spans, 'payment-service', 'client')
    expect(sampled).toEqual([`00-4bf92f3577b34da6a3ce929d0e0e4736-${spanId}-01`])

    /** What stripe-api was sent under the name of traceparent. */
    async function checkOut(traceparent: string): Promise<unknown[]> {
      const told = fleet['stripe-api'].told.length
      const response = await fetch(`${fleet['api-gateway'].url}/checkout`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', traceparent },
        body: JSON.stringify({
          userId: 'user-7',
          card: 'tok_visa',
          items: [{ sku: 'mug', quantity: 1, price: 900 }],
        }),
      })
      expect(await response.json()).toMatchObject({ amount: 900 })
      const messages = fleet['stripe-api'].told.slice(told)
      expect(messages).toHaveLength(1)
      return messages[0]?.['traceparents'] as unknown[]
    }
  })

  test('is not started by a word that the command does not know', async ({ onTestFinished }) => {
    const { stdout, stderr, ...end } = await runDemo(onTestFinished, '--fail', 'nothing').ended()
    expect(end).toEqual({ ...done, code: 2 })
    expect(stdout).toBe('')
    expect(stderr).toContain(
      '--fail: expected payment, stock or inventory, received "nothing"; example: --fail payment\n',
    )
    expect(stderr).toContain(`\n${USAGE}\n`)
  })
})

test.each([
  [['--otlp', 'jaeger'], '--otlp: expected an http or https URL, received "jaeger"; example: --otlp http://'],
  [['--otlp', 'http://localhost:4318', '--json'], '--otlp sends the trace away'],
  [['payment'], "Unexpected argument 'payment'"],
  [['--slow'], "Unknown option '--slow'"],
])('what is wrong with %s is said', (args, message) => {
  expect(readOptions(args)).toContain(message)
})

test('the usage names every option', () => {
  expect(USAGE.match(/--\w+/g)).toEqual(['--fail', '--serve', '--otlp', '--json', '--help'])
  for (const option of ['--fail=stock', '--serve', '--otlp=http://localhost:4318', '--json', '--help']) {
    expect(readOptions([option])).toBeTypeOf('object')
  }
})
