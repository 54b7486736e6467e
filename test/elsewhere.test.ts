import { tracing as expressTracing } from '@throughline/express'
import { tracing as fastifyTracing } from '@throughline/fastify'
import { tracing as koaTracing } from '@throughline/koa'
import type { FastifyInstance } from 'fastify'
import { createServer, type Server } from 'node:http'
import { afterEach, describe, expect, test } from 'vitest'
import { ask, listening, type Serving } from './contract/server.ts'
import { complaints } from './contract/server/watch.ts'
import { ok as expressOk, quiet, versions as expresses } from './express/app.ts'
import { ok as fastifyOk, versions as fastifies } from './fastify/app.ts'
import { applications as koas, ok as koaOk } from './koa/apps.ts'
import { record } from './recording.ts'

// An adapter in a framework that is not its own: what was imported by the wrong name.

const servings: Serving[] = []

afterEach(async () => {
  await Promise.all(servings.splice(0).map((serving) => serving.close()))
})

interface Host {
  readonly name: string
  readonly home: string
  /** What the message says was received. */
  readonly received: RegExp
  /** A server whose app answers `ok`, with this mounted in front. */
  serve(mounted: unknown): Server | Promise<Server>
}

async function ready(app: FastifyInstance): Promise<Server> {
  await app.get('/', fastifyOk).ready()
  return app.server
}

const hosts: Host[] = [
  ...expresses.map(([name, create]) => ({
    name,
    home: 'express',
    received: /received an Express request;/,
    serve: (mounted: unknown) =>
      createServer(
        quiet(create())
          .use(mounted as never)
          .get('/', expressOk),
      ),
  })),
  ...koas.map(([name, Application]) => ({
    name,
    home: 'koa',
    received: /received a Koa context;/,
    serve: (mounted: unknown) =>
      createServer(
        new Application()
          .use(mounted as never)
          .use(koaOk)
          .callback(),
      ),
  })),
  ...fastifies.flatMap(([name, create]) => [
    {
      name: `${name}, registered,`,
      home: 'fastify',
      received: /received a Fastify app;/,
      serve: (mounted: unknown) => {
        const app = create() as unknown as FastifyInstance
        return ready(app.register(mounted as never) as unknown as FastifyInstance)
      },
    },
    {
      name: `${name}, as a hook,`,
      home: 'fastify',
      received: /received a Fastify request;/,
      serve: (mounted: unknown) =>
        ready((create() as unknown as FastifyInstance).addHook('onRequest', mounted as never)),
    },
  ]),
]

const adapters = [
  ['express', 'Express', 'tracing()', () => expressTracing()],
  ['express', 'Express', 'tracing', () => expressTracing],
  ['koa', 'Koa', 'tracing()', () => koaTracing()],
  ['koa', 'Koa', 'tracing', () => koaTracing],
  ['fastify', 'Fastify', 'tracing', () => fastifyTracing],
] as const

describe.each(adapters)('@throughline/%s', (own, framework, written, make) => {
  const others = hosts.filter(({ home }) => home !== own)

  test.each(others)(
    `${written} in $name is told of once, and the app answers untraced`,
    async ({ home, received, serve }) => {
      const recording = record()
      const said = complaints()
      const serving = await listening(await serve(make()))
      servings.push(serving)
      for (const path of ['/', '/?again']) {
        expect(await ask(serving, path)).toMatchObject({ status: 200, body: 'ok' })
      }
      expect(said).toEqual([
        expect.stringContaining(
          `@throughline/${own}: nothing is traced: expected to be mounted in ${framework}, received `,
        ),
      ])
      expect(said[0]).toMatch(received)
      expect(said[0]).toContain(`; example: import { tracing } from '@throughline/${home}'`)
      expect(recording.spans).toEqual([])
    },
  )
})

test.each(adapters.filter(([own, , written]) => own !== 'fastify' && written === 'tracing()'))(
  '@throughline/%s as the listener of a plain server throws nothing, and says who would trace that',
  async (_own, _framework, _written, make) => {
    record()
    const said = complaints()
    const traced = make() as (...given: unknown[]) => unknown
    const serving = await listening(
      createServer((request, response) => {
        traced(request, response)
        response.end('ok')
      }),
    )
    servings.push(serving)
    expect((await ask(serving, '/')).body).toBe('ok')
    expect(said).toEqual([
      expect.stringMatching(
        /received a request of node:http and no next; example: import \{ traceRequest \} from '@throughline\/core'$/,
      ),
    ])
  },
)

test('the uncalled tracing of Express in what hands on as Express does is told to be called', async () => {
  record()
  const said = complaints()
  const uncalled = expressTracing as unknown as (...given: unknown[]) => unknown
  const serving = await listening(
    createServer((request, response) => void uncalled(request, response, () => response.end('ok'))),
  )
  servings.push(serving)
  expect((await ask(serving, '/')).body).toBe('ok')
  expect(said).toEqual([
    expect.stringMatching(
      /expected a call of tracing, received a request of node:http in the place of its options/,
    ),
  ])
})

test('what is made up for Express, with hardly anything of a request, is handed on as ever', () => {
  record()
  const said = complaints()
  let count = 0
  expressTracing()({ headers: {} } as never, {} as never, () => (count += 1))
  expect(count).toBe(1)
  expect(said).toEqual([])
})
