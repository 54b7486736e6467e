import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request, type IncomingMessage } from 'node:http'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'

// What tracing costs a request is measured by the bench. Here is what of it can be counted, and so cannot creep in: the
// same app with tracing and without, as processes of plain Node that are asked the same over one connection.

interface Shape {
  listeners: string[]
  keys: string[]
  /** The objects whose properties V8 keeps in a dictionary. */
  slow: string[]
}

interface Phase {
  /** How many resources of each type of `node:async_hooks` were made. */
  made: Record<string, number>
  /** The headers and the properties of the socket that somebody asked for. */
  reads: string[]
  shapes: { handled: Shape; closed: Shape }
  /** Those of the process, before and after. */
  listeners: [string[], string[]]
  /** How many times `AsyncLocalStorage` was made, since the start of the process. */
  storages: number
  /** How many times something was run in one. */
  runs: number
}

interface Collected {
  /** The requests and responses of the last phase, and how many of them are still there. */
  watched: number
  held: number
  /** Spans that had left before a flush, and after it. */
  sentBefore: number
  sent: number
}

interface Observed {
  phases: Record<Asked, Phase>
  collected: Collected
}

const REQUESTS = 20
const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736'

/** What a request says of its trace. The sampler of the traced app chooses no new one. */
const ASKED = {
  'that another service has left out': { traceparent: `00-${TRACE_ID}-00f067aa0ba902b7-00` },
  'that our sampler leaves out': {},
  'that is sampled': { traceparent: `00-${TRACE_ID}-00f067aa0ba902b7-01` },
} as const

type Asked = keyof typeof ASKED

const asked = Object.keys(ASKED) as Asked[]
const unsampled: Asked[] = ['that another service has left out', 'that our sampler leaves out']

interface Cost {
  framework: string
  /** Promises for each request. */
  promises: number
  /** The same where the request is recorded, if that has others. */
  promisesOfRecorded?: number
  /** How many times something is run in the storage: the app, and what the app hears outside of what it was called from. */
  runs: number
  /** Headers that are looked at beside those of the context. */
  reads?: string[]
  /** Properties that the objects of a request have more than without tracing. */
  keys: string[]
  /** Which of those objects V8 keeps in a dictionary because of us. */
  slow?: string[]
}

/** Each tells its listeners their context, and the request's keeps the exchange: V8 makes a hidden class for each of these. */
const OWN_EMIT = ['request: emit', 'response: emit']

/** V8 before 13 (Node 20, 22) takes back the property that an object got last; later ones make a dictionary of what loses any. */
const TAKES_BACK = Number.parseInt(process.versions.v8, 10) < 13

const costs: Cost[] = [
  // What routes WebSockets in Express makes requests of them.
  { framework: 'express', promises: 0, runs: 1, reads: ['upgrade'], keys: OWN_EMIT },
  // It answers when it has left us, so that the app hears the close of its response there.
  { framework: 'koa', promises: 0, runs: 2, keys: OWN_EMIT },
  // Where it is not the app's outermost middleware, it waits for the error to record.
  {
    framework: 'koa in koa-mount',
    promises: 0,
    promisesOfRecorded: 1,
    runs: 2,
    keys: OWN_EMIT,
    // It has the URL that was asked for while its span begins.
    slow: TAKES_BACK ? [] : ['request'],
  },
  { framework: 'fastify', promises: 0, runs: 1, keys: OWN_EMIT },
  { framework: 'node:http', promises: 0, runs: 1, keys: OWN_EMIT },
  { framework: 'node:http with an async handler', promises: 1, runs: 1, keys: OWN_EMIT },
]

async function observe(framework: string, isTraced: boolean): Promise<Observed> {
  const app = fileURLToPath(new URL('hot-path/app.mjs', import.meta.url))
  const child = fork(app, [JSON.stringify({ framework, isTraced })], {
    execArgv: ['--expose-gc'],
    // No batch leaves by itself while this runs.
    env: { PATH: process.env['PATH'] ?? '', OTEL_BSP_SCHEDULE_DELAY: '600000' },
  })
  try {
    const port = await told<number>(child)
    // The first ones find caches empty, and the timer of the batch not yet set.
    for (const phase of asked) await visit(port, phase, 1)
    const phases: Partial<Record<Asked, Phase>> = {}
    for (const phase of asked) {
      await tell(child, 'begin', REQUESTS)
      await visit(port, phase, REQUESTS)
      phases[phase] = await tell<Phase>(child, 'end')
    }
    return { phases: phases as Record<Asked, Phase>, collected: await tell<Collected>(child, 'collect') }
  } finally {
    child.kill('SIGKILL')
  }
}

async function told<T>(child: ChildProcess): Promise<T> {
  const [event] = await Promise.race([
    once(child, 'message') as Promise<[{ answer: T }]>,
    once(child, 'exit').then(([code]) => [`the app ended with ${code}`] as const),
  ])
  if (typeof event === 'string') throw new Error(event)
  return event.answer
}

function tell<T>(child: ChildProcess, ...command: unknown[]): Promise<T> {
  const answer = told<T>(child)
  child.send(command)
  return answer
}

/** Requests, one after the other, over a connection of their own. */
async function visit(port: number, phase: Asked, times: number): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const headers = { 'user-agent': 'visitor', ...ASKED[phase] }
  for (let made = 0; made < times; made += 1) {
    const sent = request({ host: '127.0.0.1', port, agent, path: '/users/7?full=1', headers }).end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    response.resume()
    await once(response, 'end')
    expect(response.statusCode).toBe(200)
  }
  agent.destroy()
}

const observed = new Map<string, Promise<{ bare: Observed; traced: Observed }>>()

/** Both apps, asked once for all tests. */
function both(framework: string): Promise<{ bare: Observed; traced: Observed }> {
  let found = observed.get(framework)
  if (found === undefined) {
    found = Promise.all([observe(framework, false), observe(framework, true)]).then(([bare, traced]) => ({
      bare,
      traced,
    }))
    observed.set(framework, found)
  }
  return found
}

/** What is in the first list and not in the second. */
function beyond(all: readonly string[], some: readonly string[]): string[] {
  return all.filter((each) => !some.includes(each))
}

/** How many of each type the traced app makes more for a request. What comes once in a phase, or by chance, is none. */
function madeMore(
  { bare, traced }: { bare: Observed; traced: Observed },
  phase: Asked,
): Record<string, number> {
  const [without, with_] = [bare.phases[phase].made, traced.phases[phase].made]
  const types = new Set([...Object.keys(without), ...Object.keys(with_)])
  const more = Array.from(
    types,
    (type) => [type, Math.round(((with_[type] ?? 0) - (without[type] ?? 0)) / REQUESTS)] as const,
  )
  return Object.fromEntries(more.filter(([, count]) => count !== 0))
}

describe.each(costs)(
  'a request to $framework',
  ({ framework, promises, promisesOfRecorded = promises, runs, reads = [], keys, slow = [] }) => {
    test.each(unsampled)('%s is asked for its context, and for nothing to describe it by', async (phase) => {
      const { bare, traced } = await both(framework)
      const context = ['baggage', 'traceparent', 'tracestate'].filter(
        // There is no tracestate without a traceparent (Trace Context, 3.3).
        (name) => name !== 'tracestate' || 'traceparent' in ASKED[phase],
      )
      expect(beyond(traced.phases[phase].reads, bare.phases[phase].reads)).toEqual([...context, ...reads])
    })

    test('that is sampled is asked for what its span says', async () => {
      const { bare, traced } = await both(framework)
      const phase = 'that is sampled'
      expect(beyond(traced.phases[phase].reads, bare.phases[phase].reads)).toEqual(
        expect.arrayContaining(['host', 'socket.remoteAddress', 'traceparent', 'user-agent']),
      )
    })

    test.each(asked)(
      '%s finds no listener of ours on it, its answer, its connection or the server',
      async (phase) => {
        const { bare, traced } = await both(framework)
        const listeners = ({ phases }: Observed) => {
          const { handled, closed } = phases[phase].shapes
          return { handled: handled.listeners, closed: closed.listeners }
        }
        expect(listeners(traced)).toEqual(listeners(bare))
        const [before, after] = traced.phases[phase].listeners
        expect(after).toEqual(before)
      },
    )

    const counted = asked.map(
      (phase) => [phase, phase === 'that is sampled' ? promisesOfRecorded : promises] as const,
    )

    test.each(counted)('%s costs %i promises, and no timer, no handle and no tick', async (phase, count) => {
      const apps = await both(framework)
      // The app itself has one for each request: they are counted.
      expect(apps.traced.phases[phase].made['Immediate']).toBeGreaterThanOrEqual(REQUESTS)
      expect(madeMore(apps, phase)).toEqual(count === 0 ? {} : { PROMISE: count })
    })

    test.each(asked)('%s has these properties more, and no others', async (phase) => {
      const { bare, traced } = await both(framework)
      // Node keeps the address of the other side when it has been asked for it.
      const expected = phase === 'that is sampled' ? [...keys, 'socket: _peername'] : keys
      for (const moment of ['handled', 'closed'] as const) {
        const untracedKeys = bare.phases[phase].shapes[moment].keys
        const tracedKeys = traced.phases[phase].shapes[moment].keys
        expect({
          moment,
          more: beyond(tracedKeys, untracedKeys),
          less: beyond(untracedKeys, tracedKeys),
        }).toEqual({
          moment,
          more: expected,
          less: [],
        })
      }
    })

    const searched = slow.length === 0 ? 'no object' : 'one object alone'
    test.each(asked)(`%s meets ${searched} that V8 has to search because of us`, async (phase) => {
      const { bare, traced } = await both(framework)
      for (const moment of ['handled', 'closed'] as const) {
        const [found, foundWithout] = [traced, bare].map(({ phases }) => phases[phase].shapes[moment].slow)
        expect(beyond(found ?? [], foundWithout ?? [])).toEqual(slow)
      }
    })

    test('runs in one AsyncLocalStorage, the same for all', async () => {
      const { bare, traced } = await both(framework)
      const more = asked.map((phase) => traced.phases[phase].storages - bare.phases[phase].storages)
      expect(more).toEqual([1, 1, 1])
    })

    // Where nobody but Node and the framework listens, nothing is run.
    test.each(asked)(`%s is run in it ${runs} times`, async (phase) => {
      const { bare, traced } = await both(framework)
      expect((traced.phases[phase].runs - bare.phases[phase].runs) / REQUESTS).toBe(runs)
    })

    test('is not held by its span, which waits for its batch when it has ended', async () => {
      const { bare, traced } = await both(framework)
      // A request and a response each; and a span each, beside that of the first request of all.
      const watched = 2 * REQUESTS
      expect(bare.collected).toEqual({ watched, held: 0, sentBefore: 0, sent: 0 })
      expect(traced.collected).toEqual({ watched, held: 0, sentBefore: 0, sent: 1 + REQUESTS })
    })
  },
)
