import { tracing, type TracingOptions } from '@throughline/express'
import type { ErrorRequestHandler, Express, NextFunction, Request, RequestHandler, Response } from 'express'
import { fileURLToPath } from 'node:url'
import { describe, expect, expectTypeOf, test } from 'vitest'
import { ask } from '../contract/server.ts'
import { complaints } from '../contract/server/watch.ts'
import { record } from '../recording.ts'
import { fail, ok, pass, quiet, serve, spanOf, stackOf, traced, versions, type Create } from './app.ts'

/** What layers inherit, before anything was traced. */
const untouched = new Map(versions.map(([, create]) => [create, layersOf(create)]))

describe.each(versions)('%s', (_name, create) => {
  test('tracing that is mounted without a call is told of once, and the app answers untraced', async () => {
    const recording = record()
    const said = complaints()
    const application = quiet(create())
    application.use(tracing)
    application.use('/a', tracing)
    application.use(create.Router().get('/a/:id', tracing, ok))
    const serving = await serve(application)
    for (const path of ['/a/1', '/a/2']) {
      expect(await ask(serving, path)).toMatchObject({ status: 200, body: 'ok' })
    }
    expect((await ask(serving, '/b')).status).toBe(404)
    expect(said).toEqual([
      expect.stringMatching(
        /app\.use\(tracing\): expected a call of tracing, received an Express request .*; example: app\.use\(tracing\(\)\)$/,
      ),
    ])
    expect(recording.spans).toEqual([])
  })

  test('one tracing with options may be mounted in many places, and meet a request again', async () => {
    const said = complaints()
    const once = tracing({ spanName: () => 'mine' })
    const application = quiet(create()).use(once).use('/a', once)
    application.use('/a', quiet(create()).use(once).get('/b', once, ok) as never)
    expect((await spanOf(application, '/a/b')).name).toBe('mine')
    expect(said).toEqual([])
  })

  describe('Express does as ever', () => {
    test('this, arguments and names of layers are what they were', async () => {
      const seen: unknown[] = []
      const application = app()
      application.use(function named(request, response, next) {
        seen.push(arguments.length, request.app === application, response.app === application)
        next()
      })
      application.get('/x', ok)
      await spanOf(application, '/x')
      expect(seen).toEqual([3, true, true])
      expect(tracing().name).toBe('tracing')
      expect(tracing()).toHaveLength(3)
    })

    test('req.route, req.baseUrl, req.params and req.path are what they were', async () => {
      const see: RequestHandler = ({ route, baseUrl, params, path, url, originalUrl }, response) =>
        void response.json({ route: route.path, baseUrl, params, path, url, originalUrl })
      const make = (application: Express) =>
        application.use('/orgs/:org', create.Router({ mergeParams: true }).get('/users/:id', see))
      record()
      const [traced, bare] = [await serve(make(app())), await serve(make(quiet(create())))]
      for (let i = 0; i < 2; i += 1) {
        expect((await ask(traced, '/orgs/7/users/8?x=1')).body).toBe(
          (await ask(bare, '/orgs/7/users/8?x=1')).body,
        )
      }
    })

    test.each<[string, TracingOptions, string]>([
      ['of a request that is sampled', {}, '01'],
      ['of one that is not', {}, '00'],
      ['of one whose layers have spans', { middlewareSpans: true }, '01'],
    ])(
      'req.next is what a layer is given to hand on by, or not, as ever: %s',
      async (_title, options, flags) => {
        const look: RequestHandler = (request, response, next) => {
          response.locals['seen'] = [...((response.locals['seen'] as unknown[]) ?? []), request.next === next]
          next()
        }
        const mine: NextFunction = () => {}
        const told: ErrorRequestHandler = (_error, request, response, next) => {
          response.json([
            ...(response.locals['seen'] as unknown[]),
            request.next === next,
            request.next === mine,
          ])
        }
        const make = (application: Express) =>
          application
            .use(look)
            .use('/mine', (request, _response, next) => {
              request.next = mine
              next()
            })
            .use('/:in', create.Router().use(look).get('/other', ok), look)
            .get('/:in/x', look, (_request, _response, next) => next(new Error('no')))
            .use(((error, _request, _response, next) => next(error)) as ErrorRequestHandler)
            .use(told)
        record()
        const [bare, serving] = [
          await serve(make(quiet(create()))),
          await serve(make(traced(create, options))),
        ]
        const asked = { headers: { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-${flags}` } }
        // Layers are watched from the first request on whose route is wanted.
        await ask(serving, '/before')
        for (const path of ['/api/x', '/mine/x', '/api/x'])
          expect((await ask(serving, path, asked)).body).toBe((await ask(bare, path, asked)).body)
        expect((await ask(bare, '/api/x')).body).toBe('[true,true,true,false,true,false]')
      },
    )

    test('what lists the routes of an app finds what it found', async () => {
      const make = (application: Express) => {
        const router = create.Router({ mergeParams: true })
        router.route('/users/:id').get(ok).post(pass, ok)
        return application.use('/orgs/:org', router).use(create.json()).get(['/a', '/b'], ok)
      }
      record()
      const application = make(traced(create, { middlewareSpans: true }))
      const before = listed(stackOf(application))
      const serving = await serve(application)
      await ask(serving, '/orgs/1/users/2')
      await ask(serving, '/a')
      expect(listed(stackOf(application))).toEqual(before)
      const untracedList = listed(stackOf(make(quiet(create()))))
      expect(before.filter(({ name }) => name !== 'tracing')).toEqual(untracedList)
    })

    test('what an app adds to its requests and responses is there, and its settings are its own', async () => {
      record()
      const answers = await Promise.all(
        [traced(create), quiet(create())].map(async (application) => {
          Object.assign(application.request, { greeting: () => 'hello' })
          Object.assign(application.response, {
            shout(this: Response, text: string) {
              this.send(text.toUpperCase())
            },
          })
          application
            .set('trust proxy', true)
            .set('view engine', 'tpl')
            .set('views', import.meta.dirname)
          application.engine('tpl', (path, options, done) =>
            done(null, `${typeof path} ${String((options as { a: string }).a)}`),
          )
          application.get('/x', (request, response) => {
            const { ip, protocol, hostname, app } = request as typeof request & { greeting(): string }
            const said = [
              (request as unknown as { greeting(): string }).greeting(),
              ip,
              protocol,
              hostname,
              app === application,
            ]
            ;(response as unknown as { shout(text: string): void }).shout(JSON.stringify(said))
          })
          const view = fileURLToPath(import.meta.url)
          application.get('/view', (_request, response) => response.render(view, { a: 'b' }))
          application.engine('ts', (_path, options, done) =>
            done(null, String((options as { a?: string }).a)),
          )
          const serving = await serve(application)
          const headers = {
            'x-forwarded-for': '203.0.113.9',
            'x-forwarded-proto': 'https',
            'x-forwarded-host': 'a.com',
          }
          const [one, two] = [await ask(serving, '/x', { headers }), await ask(serving, '/view')]
          return [one.status, one.body, two.status, two.body]
        }),
      )
      expect(answers[0]).toEqual(answers[1])
      expect(answers[0]).toEqual([200, '["HELLO","203.0.113.9","HTTPS","A.COM",TRUE]', 200, 'b'])
    })

    test('methods that middleware puts on the request or the response stay, and are called', async () => {
      const application = traced(create, { middlewareSpans: true })
      application.use((request, response, next) => {
        const { end } = response
        Object.assign(request, { logIn: () => 'ann' })
        response.end = function patched(this: typeof response, ...args: unknown[]) {
          if (!response.headersSent)
            response.setHeader('x-user', (request as unknown as { logIn(): string }).logIn())
          return Reflect.apply(end, this, args) as typeof response
        } as typeof response.end
        next()
      })
      record()
      const { headers } = await ask(await serve(application.get('/x', ok)), '/x')
      expect(headers['x-user']).toBe('ann')
    })

    test('the stack of an error begins in the app', async () => {
      const stacks: unknown[] = []
      const application = app().get('/x', fail)
      application.use(((error: Error, _request, response, _next) => {
        stacks.push(error.stack?.split('\n')[1])
        response.send('ok')
      }) as ErrorRequestHandler)
      await spanOf(application, '/x')
      expect(stacks).toEqual([expect.stringContaining('test/express/app.ts')])
    })

    test('its middleware, request and response have the types of Express', () => {
      expectTypeOf(tracing()).toEqualTypeOf<RequestHandler>()
      const router = create.Router()
      router.use(tracing())
      router.use('/x', tracing(), ok)
      router.get('/:id', tracing(), (request) => expectTypeOf(request).toExtend<Request>())
      expect(stackOf(create().use(tracing()))).not.toHaveLength(0)
    })

    test('OPTIONS are answered with the methods that there are', async () => {
      record()
      const { headers, body } = await ask(await serve(app().get('/x', ok).post('/x', ok)), '/x', {
        method: 'OPTIONS',
      })
      expect(headers.allow?.split(/, ?/).toSorted()).toEqual(['GET', 'HEAD', 'POST'])
      expect(body.split(/, ?/).toSorted()).toEqual(['GET', 'HEAD', 'POST'])
    })

    test('its prototypes are left alone', async () => {
      await spanOf(app().use('/api', create.Router().get('/x', ok)), '/api/x')
      expect(layersOf(create)).toEqual(untouched.get(create))
    })
  })

  function app(): Express {
    return traced(create)
  }
})

function layersOf(create: Create): Record<string, PropertyDescriptor> {
  const own = create().use(ok) as unknown as Record<'_router' | 'router', { stack: object[] }>
  const [layer] = (own._router ?? own.router).stack
  return Object.getOwnPropertyDescriptors(Object.getPrototypeOf(layer))
}

interface Listed {
  name: unknown
  keys: string[]
  length: number
  own: object
  route: unknown
  inner: Listed[]
}

/** All that can be read of layers, and of what they mount, without calling them. */
function listed(stack: readonly object[]): Listed[] {
  return stack.map((each) => {
    const layer = each as Record<string, unknown> & { handle: { length: number; stack?: object[] } }
    const route = layer['route'] as { path: unknown; methods: object; stack: object[] } | undefined
    const { name } = layer
    return {
      name,
      keys: Object.keys(layer),
      length: layer.handle.length,
      own: JSON.parse(JSON.stringify({ ...layer, params: 0, path: 0, keys: 0 })) as object,
      route: route && [route.path, { ...route.methods }],
      inner: listed(route?.stack ?? layer.handle.stack ?? []),
    }
  })
}
