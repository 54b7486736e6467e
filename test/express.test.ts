import { context, createContextKey, ROOT_CONTEXT, trace } from '@opentelemetry/api'
import { RPCType, setRPCMetadata, type RPCMetadata } from '@opentelemetry/core'
import { tracing } from '@throughline/express'
import express, { type Express, type Request, type RequestHandler, type Response } from 'express'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { afterEach, describe, expect, test } from 'vitest'
import { expressAdapter } from './contract/express.ts'
import { ask, listening, serverContract, type Asking, type Serving } from './contract/server.ts'
import { record } from './recording.ts'

const express4 = createRequire(import.meta.url)('express4') as typeof express

/** What layers inherit, before anything was traced. */
const untouched = new Map([express, express4].map((create) => [create, layersOf(create)]))

serverContract('Express 5', expressAdapter(express))
serverContract('Express 4', expressAdapter(express4))

describe.each([
  ['Express 5', express],
  ['Express 4', express4],
])('%s', (name, create) => {
  const isFour = name === 'Express 4'

  describe('the route', () => {
    test('has the patterns of all the mount paths above it, and no values', async () => {
      const users = create.Router({ mergeParams: true }).get('/users/:id', ok)
      const orgs = create.Router().use('/orgs/:org', users)
      await expectRoute(
        app().use('/api/:version', orgs),
        '/api/v1/orgs/7/users/8',
        '/api/:version/orgs/:org/users/:id',
      )
    })

    test('is found out past a middleware that has a stack of something else', async () => {
      const odd = Object.assign(((_request, _response, next) => next()) as RequestHandler, {
        stack: 'pancakes',
      })
      await expectRoute(app().use('/users', odd).get('/users/:id', ok), '/users/7', '/users/:id')
    })

    test('is the same for the second request', async () => {
      const users = create.Router().get('/users/:id', ok)
      const application = app().use('/orgs/:org', users)
      expect(await routes(application, '/orgs/7/users/8', '/orgs/users/users/users')).toEqual([
        '/orgs/:org/users/:id',
        '/orgs/:org/users/:id',
      ])
    })

    test('of several paths is the one that matched', async () => {
      const application = app().get(['/a/:x', '/b/:y'], ok)
      expect(await routes(application, '/a/1', '/b/1')).toEqual(['/a/:x', '/b/:y'])
    })

    test('below several mount paths has the one that matched', async () => {
      const application = app().use(['/a/:x', '/b'], create.Router().get(['/c/:z', '/d'], ok))
      expect(await routes(application, '/a/1/c/2', '/b/d')).toEqual(['/a/:x/c/:z', '/b/d'])
    })

    test('that is a RegExp is shown as it was written', async () => {
      await expectRoute(app().get(/^\/v(\d+)\/status$/, ok), '/v2/status', String(/^\/v(\d+)\/status$/))
    })

    test('that is a RegExp has its mount path before it', async () => {
      const application = app().use('/api/:version', create.Router().get(/^\/(\d+)$/, ok))
      await expectRoute(application, '/api/v1/7', `/api/:version${/^\/(\d+)$/}`)
    })

    test('is shown as it was written: several parameters in a segment, and wildcards', async () => {
      const application = app().get('/flights/:from-:to', ok)
      const wildcard = isFour ? '/files/*' : '/files/*path'
      application.get(wildcard, ok)
      expect(await routes(application, '/flights/LAX-SFO', '/files/a/b')).toEqual([
        '/flights/:from-:to',
        wildcard,
      ])
    })

    test('of app.route() and router.route()', async () => {
      const router = create.Router()
      router.route('/:id').get(ok).delete(ok)
      const application = app()
      application
        .route('/things')
        .all((_request, _response, next) => next())
        .post(ok)
      application.use('/users', router)
      expect(await routes(application, '/users/1')).toEqual(['/users/:id'])
      expect((await trace1(application, '/things', { method: 'POST' })).name).toBe('POST /things')
    })

    test('at the root of a router is its mount path', async () => {
      expect(await routes(app().use('/users', create.Router().get('/', ok)), '/users', '/users/')).toEqual([
        '/users',
        '/users',
      ])
    })

    test('is the root’s own for the root', async () => {
      await expectRoute(app().get('/', ok), '/', '/')
    })

    test('for a HEAD that a GET route answers', async () => {
      const span = await trace1(app().get('/users/:id', ok), '/users/1', { method: 'HEAD' })
      expect(span.name).toBe('HEAD /users/:id')
    })

    test('does not mind the case of the path, a slash at its end, or what is encoded in it', async () => {
      const application = app().use('/Api', create.Router().get('/users/:id', ok))
      expect(await routes(application, '/API/USERS/1/', '/api/users/a%2Fb')).toEqual(
        ['/Api/users/:id', '/Api/users/:id'].map((route) =>
          isFour ? expect.stringMatching(new RegExp(route, 'i')) : route,
        ),
      )
    })

    test('is kept when its own middleware turns the request away', async () => {
      const span = await trace1(
        app().get('/users/:id', (_request, response) => void response.sendStatus(401), ok),
        '/users/1',
      )
      expect(span.attributes['http.response.status_code']).toBe(401)
      expect(span.name).toBe('GET /users/:id')
    })

    test('is kept when the handler answers 404', async () => {
      const missing: RequestHandler = (_request, response) => void response.sendStatus(404)
      await expectRoute(app().get('/users/:id', missing), '/users/1', '/users/:id')
    })

    test('is kept when the handler answers, and passes the request on for others to see', async () => {
      const application = app()
      application.get('/users/:id', (_request, response, next) => {
        response.send('ok')
        next()
      })
      application.use((_request, _response, next) => next())
      application.get('/users/1', () => {})
      application.use(() => {})
      await expectRoute(application, '/users/1', '/users/:id')
    })

    test('is the one that the request was passed on to', async () => {
      const application = app()
        .get('/users/me', (_request, _response, next) => next('route'))
        .get('/users/:id', (_request, _response, next) => next())
        .get('/:anything/:id', ok)
      await expectRoute(application, '/users/me', '/:anything/:id')
    })

    test('is the one after the router that was left', async () => {
      const router = create.Router().get('/:id', (_request, _response, next) => next('router'))
      await expectRoute(app().use('/users', router).get('/users/:id', ok), '/users/1', '/users/:id')
    })

    test('of a router that was mounted after the first request', async () => {
      const application = app()
      const router = create.Router()
      application.use('/late/:x', router)
      const recording = record()
      const serving = await serve(application)
      await ask(serving, '/late/1/a')
      router.get('/a', ok)
      const inner = create.Router()
      router.use('/b/:y', inner)
      inner.get('/c', ok)
      await ask(serving, '/late/1/a')
      await ask(serving, '/late/1/b/2/c')
      const spans = await recording.all(3)
      expect(spans.map(({ name: shown }) => shown)).toEqual(['GET', 'GET /late/:x/a', 'GET /late/:x/b/:y/c'])
    })

    test('of a router that is mounted at two places', async () => {
      const router = create.Router().get('/:id', ok)
      const application = app().use('/users', router).use('/orgs/:org', router)
      expect(await routes(application, '/users/1', '/orgs/1/2')).toEqual(['/users/:id', '/orgs/:org/:id'])
    })

    test('of an app that is mounted in an app, from the first request on', async () => {
      const admin = create().get('/users/:id', ok)
      const application = app().use('/admin/:realm', admin)
      expect(await routes(application, '/admin/a/users/1', '/admin/b/users/2')).toEqual([
        '/admin/:realm/users/:id',
        '/admin/:realm/users/:id',
      ])
    })

    test('of an app in an app in an app, with routers between them, from the first request on', async () => {
      const inner = create().use('/r/:r', create.Router().get('/users/:id', ok))
      const outer = create().use('/in', inner)
      const application = app().use('/out/:x', create.Router().use('/via', outer))
      expect(await routes(application, '/out/1/via/in/r/2/users/3', '/out/1/via/in/r/2/users/3')).toEqual([
        '/out/:x/via/in/r/:r/users/:id',
        '/out/:x/via/in/r/:r/users/:id',
      ])
    })

    test('of an app in an app in an app, each at one of several mount paths', async () => {
      const inner = create().get(['/a/:a', '/b/:b'], ok)
      const outer = create().use(['/c', '/in/:i'], inner)
      const application = app().use('/first', ok).use(['/out/:o', '/d'], outer)
      expect(await routes(application, '/out/1/in/2/b/3', '/out/1/in/2/b/3')).toEqual([
        '/out/:o/in/:i/b/:b',
        '/out/:o/in/:i/b/:b',
      ])
    })

    test('of an app in a router in an app in a router, from the first request on', async () => {
      const inner = create().get('/users/:id', ok)
      const outer = create().use('/r/:r', create.Router().use('/in', inner))
      const application = app().use('/out/:x', create.Router().use('/via', outer))
      expect(await routes(application, '/out/1/via/r/2/in/users/3', '/out/1/via/r/2/in/users/3')).toEqual([
        '/out/:x/via/r/:r/in/users/:id',
        '/out/:x/via/r/:r/in/users/:id',
      ])
    })

    test('is none rather than a wrong one, where a mount path cannot be seen', async () => {
      const inner = create().get('/users/:id', ok)
      const outer = create().use('/r', create.Router().use('/in', inner))
      const untraced = create().use(tracing()).use('/r', create.Router().get('/users/:id', ok))
      const application = app().use('/hidden', outer)
      const alone = quiet(create()).use('/hidden', create.Router().use('/app', untraced))
      const path = '/hidden/r/in/users/1'
      expect(await routes(application, path, path, path)).toEqual([undefined, undefined, undefined])
      const second = '/hidden/app/r/users/1'
      expect(await routes(alone, second, second)).toEqual([undefined, undefined])
    })

    test('of an app in an app, when it answers later', async () => {
      const admin = create()
      admin.use((_request, _response, next) => void setImmediate(next))
      admin.get('/users/:id', (_request, response) => void setImmediate(() => response.send('ok')))
      const application = app().use('/admin', admin)
      expect(await routes(application, '/admin/users/1', '/admin/users/2')).toEqual([
        '/admin/users/:id',
        '/admin/users/:id',
      ])
    })

    test.each([
      ['a router', () => create.Router()],
      ['an app', () => create()],
    ])('has the mount path of %s that tracing is in, from the first request on', async (_title, make) => {
      const inner = make()
      inner.use(tracing())
      inner.get('/users/:id', ok)
      const application = quiet(create()).use('/orgs/:org', inner)
      expect(await routes(application, '/orgs/7/users/1', '/orgs/8/users/2')).toEqual([
        '/orgs/:org/users/:id',
        '/orgs/:org/users/:id',
      ])
    })

    test('is whole where tracing is at a path', async () => {
      const application = quiet(create()).use('/api', tracing())
      application.use('/api/:version', create.Router().get('/users/:id', ok)).get('/api/x/:y', ok)
      expect(await routes(application, '/api/v1/users/1', '/api/v1/users/1', '/api/x/y')).toEqual([
        '/api/:version/users/:id',
        '/api/:version/users/:id',
        '/api/x/:y',
      ])
    })

    test('is no other request’s, for many at the same time', async () => {
      const application = app()
      let waiting: (() => void)[] = []
      const together: RequestHandler = (_request, response) => {
        waiting.push(() => response.send('ok'))
        if (waiting.length < 20) return
        for (const answer of waiting) answer()
        waiting = []
      }
      for (let i = 0; i < 20; i += 1) application.use(`/m${i}/:x`, create.Router().get(`/r${i}/:y`, together))
      const recording = record()
      const serving = await serve(application)
      await Promise.all(Array.from({ length: 20 }, (_, i) => ask(serving, `/m${i}/1/r${i}/2`)))
      for (const { attributes } of await recording.all(20)) {
        expect(attributes['http.route']).toBe(
          String(attributes['url.path']).replace('/1/', '/:x/').replace(/2$/, ':y'),
        )
      }
    })
  })

  describe('there is no route', () => {
    test('for a 404 below a mount path', async () => {
      const router = create.Router().use((_request, _response, next) => next())
      router.get('/users/:id', ok)
      expect(await routes(app().use('/api', router), '/api/users', '/api', '/api/users')).toEqual([
        undefined,
        undefined,
        undefined,
      ])
    })

    test('when the route passed the request on to a 404', async () => {
      const application = app()
        .use(
          '/api',
          create.Router().get('/:id', (_request, _response, next) => next()),
        )
        .get('/api/:id', (_request, _response, next) => next('route'))
      await expectRoute(application, '/api/1', undefined)
    })

    test('when middleware answers, also at a path of its own', async () => {
      const application = app().use('/static', ok).use(ok)
      expect(await routes(application, '/static/a.css', '/anything')).toEqual([undefined, undefined])
    })

    test('when middleware of a mounted app answers, from the first request on', async () => {
      const admin = create().use(ok).get('/users/:id', ok)
      expect(await routes(app().use('/admin', admin), '/admin/users/1', '/admin/users/1')).toEqual([
        undefined,
        undefined,
      ])
    })

    test('for a method that the route does not take', async () => {
      const span = await trace1(app().get('/users/:id', ok), '/users/1', { method: 'POST' })
      expect(span.name).toBe('POST')
    })
  })

  describe('an error', () => {
    test('that the handler of an outer app answers for keeps the route of the inner one', async () => {
      const inner = create().get('/users/:id', fail)
      const application = app().use('/admin/:realm', inner)
      application.use(answering(503))
      const span = await trace1(application, '/admin/a/users/1')
      expect(span.name).toBe('GET /admin/:realm/users/:id')
      expect(exceptions(span)).toEqual(['it broke'])
      expect(span.attributes['error.type']).toBe('RangeError')
    })

    test('that the handler of an inner router answers for has its route, and the error', async () => {
      const router = create.Router().get('/users/:id', fail)
      router.use(answering(500))
      const span = await trace1(app().use('/api', router), '/api/users/1')
      expect(span.name).toBe('GET /api/users/:id')
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('that is passed to next() is recorded once, through however many layers', async () => {
      const deep = create.Router().get('/x', (_request, _response, next) => next(new RangeError('it broke')))
      const application = app().use(create.Router().use(create.Router().use(deep)))
      application.use(((error, _request, _response, next) => next(error)) as express.ErrorRequestHandler)
      const span = await trace1(application, '/x')
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('that the error handler wraps is recorded as it was at first', async () => {
      const application = app().get('/x', fail)
      application.use(((_error, _request, _response, next) =>
        next(new Error('wrapped'))) as express.ErrorRequestHandler)
      application.use(answering(500))
      expect(exceptions(await trace1(application, '/x'))).toEqual(['it broke'])
    })

    test('of a middleware in front of the routes is recorded, without a route', async () => {
      const span = await trace1(app().use(fail).get('/x', ok), '/x')
      expect(span.name).toBe('GET')
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('in loading a parameter is recorded where the app has an error handler', async () => {
      const application = app()
      application.param('id', (_request, _response, next) => next(new RangeError('it broke')))
      application.get('/users/:id', ok)
      application.use(answering(500))
      expect(exceptions(await trace1(application, '/users/1'))).toEqual(['it broke'])
    })

    test.each([false, 0, '', null, 'route', 'router'])('is not what next(%j) says', async (value) => {
      const passing: RequestHandler = (_request, _response, next) => next(value)
      const application = app().use(create.Router().use(passing), create.Router().get('/x', passing))
      application.use((_request, response) => void response.sendStatus(500))
      const span = await trace1(application, '/x')
      expect(span.name).toBe('GET')
      expect(span.attributes['error.type']).toBe('500')
      expect(span.events).toEqual([])
    })

    test('that is no Error is recorded by what it says', async () => {
      const application = app().get('/x', (_request, _response, next) => next('out of paper'))
      const span = await trace1(application, '/x')
      expect(span.status).toEqual({ code: 2, message: 'out of paper' })
      expect(exceptions(span)).toEqual(['out of paper'])
      expect(span.attributes['error.type']).toBe('500')
    })
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
      await trace1(application, '/x')
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

    test('OPTIONS are answered with the methods that there are', async () => {
      record()
      const { headers, body } = await ask(await serve(app().get('/x', ok).post('/x', ok)), '/x', {
        method: 'OPTIONS',
      })
      expect(headers.allow?.split(/, ?/).toSorted()).toEqual(['GET', 'HEAD', 'POST'])
      expect(body.split(/, ?/).toSorted()).toEqual(['GET', 'HEAD', 'POST'])
    })

    test('its prototypes are left alone', async () => {
      await trace1(app().use('/api', create.Router().get('/x', ok)), '/api/x')
      expect(layersOf(create)).toEqual(untouched.get(create))
    })
  })

  test('the functions of the app are given request and response, with what the app put on them', async () => {
    const application = quiet(create())
    application.use(
      tracing({
        ignore: ({ path }) => path === '/health',
        attributes: ({ params, query }, { locals, statusCode }) => ({
          'app.user': String(locals['user']),
          'app.id': String(params['id']),
          'app.page': String(query['page']),
          'app.status': statusCode,
        }),
        spanName: ({ method, route }) => `${method} at ${route.path}`,
      }),
    )
    application.get('/users/:id', (_request, response) => {
      response.locals['user'] = 'ann'
      response.status(201).send('ok')
    })
    const span = await trace1(application, '/users/7?page=2')
    expect(span.name).toBe('GET at /users/:id')
    expect(span.attributes).toMatchObject({
      'app.user': 'ann',
      'app.id': '7',
      'app.page': '2',
      'app.status': 201,
    })
  })

  function app(): Express {
    return quiet(create()).use(tracing())
  }

  async function expectRoute(application: Express, path: string, route: string | undefined): Promise<void> {
    expect(await routes(application, path)).toEqual([route])
  }
})

test('Express 5: what an async handler rejects with is Express’s to answer, and is recorded', async () => {
  const application = quiet(express()).use(tracing())
  application.get('/users/:id', async () => {
    throw new RangeError('it broke')
  })
  const span = await trace1(application, '/users/1')
  expect(span.attributes['http.response.status_code']).toBe(500)
  expect(span.name).toBe('GET /users/:id')
  expect(exceptions(span)).toEqual(['it broke'])
})

function ok(_request: Request, response: Response): void {
  response.send('ok')
}

const fail: RequestHandler = () => {
  throw new RangeError('it broke')
}

const answering =
  (status: number): express.ErrorRequestHandler =>
  (_error, _request, response, _next) =>
    void response.sendStatus(status)

/** Keeps the default error handler from stderr. */
function quiet(application: Express): Express {
  return application.set('env', 'test')
}

function layersOf(create: typeof express): Record<string, PropertyDescriptor> {
  const own = create().use(ok) as unknown as Record<'_router' | 'router', { stack: object[] }>
  const [layer] = (own._router ?? own.router).stack
  return Object.getOwnPropertyDescriptors(Object.getPrototypeOf(layer))
}

describe('an app that hands a request over to one of another Express', () => {
  test.each([
    ['Express 5 to 4', express, express4],
    ['Express 4 to 5', express4, express],
  ])('%s: the span ends, and listeners run in its context', async (_title, outer, inner) => {
    const current: unknown[] = []
    const other = inner().post('/x', (request: Request, response: Response) => {
      request.on('end', () => {
        current.push(trace.getActiveSpan()?.spanContext().spanId)
        response.send('inner')
      })
      request.resume()
    })
    const application = outer().use(tracing())
    application.post('/x', (request, response) => void other(request as never, response as never))
    const span = await trace1(application, '/x', { method: 'POST' })
    expect(span.attributes).toMatchObject({ 'http.response.status_code': 200 })
    expect(current).toEqual([span.spanContext().spanId])
  })
})

test('an app that is not traced keeps what it binds, whatever another app of the process traces', async () => {
  const key = createContextKey('of the app')
  const seen: unknown[] = []
  const untraced = express().post('/', (request, response) => {
    context.bind(ROOT_CONTEXT.setValue(key, 'bound'), request)
    request.on('end', () => {
      seen.push(context.active().getValue(key))
      response.send('ok')
    })
    request.resume()
  })
  const serving = await serve(untraced)
  await trace1(express().use(tracing()).get('/', ok), '/')
  await ask(serving, '/', { method: 'POST' })
  expect(seen).toEqual(['bound'])
})

test('a request that was bound before it came to the app runs its listeners in the span’s context', async () => {
  const current: unknown[] = []
  const application = express().use(tracing())
  application.post('/', (request, response) => {
    request.on('end', () => {
      current.push(trace.getActiveSpan()?.spanContext().spanId)
      response.send('ok')
    })
    request.resume()
  })
  const recording = record()
  const serving = await listening(
    createServer((request, response) => {
      context.bind(ROOT_CONTEXT, request)
      application(request, response)
    }),
  )
  servings.push(serving)
  await ask(serving, '/', { method: 'POST' })
  const [span] = await recording.all(1)
  expect(current).toEqual([span?.spanContext().spanId])
})

test('the official instrumentation is told the route of an unsampled request too, for its metrics', async () => {
  const span = trace.wrapSpanContext({ traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 0 })
  const metadata: RPCMetadata = { type: RPCType.HTTP, span }
  record()
  const application = express().use(tracing()).get('/users/:id', ok)
  let resolve = (): void => {}
  const closed = new Promise<void>((settle) => (resolve = settle))
  const serving = await listening(
    createServer((request, response) => {
      response.on('close', resolve)
      const official = setRPCMetadata(trace.setSpan(ROOT_CONTEXT, span), metadata)
      context.with(official, () => application(request, response))
    }),
  )
  servings.push(serving)
  await ask(serving, '/users/7')
  await closed
  expect(metadata.route).toBe('/users/:id')
})

const servings: Serving[] = []

afterEach(async () => {
  await Promise.all(servings.splice(0).map((serving) => serving.close()))
})

async function serve(application: Express): Promise<Serving> {
  const serving = await listening(createServer(application))
  servings.push(serving)
  return serving
}

/** The routes on the spans of these requests, sent one after the other to a new app. */
async function routes(application: Express, ...paths: string[]): Promise<unknown[]> {
  const recording = record()
  const serving = await serve(application)
  for (const path of paths) await ask(serving, path)
  const spans = await recording.all(paths.length)
  await recording.stop()
  for (const { name, attributes } of spans) {
    const route = attributes['http.route']
    expect(name).toBe(route === undefined ? 'GET' : `GET ${route}`)
  }
  return spans.map(({ attributes }) => attributes['http.route'])
}

/** The one span of one request. */
async function trace1(application: Express, path: string, asking?: Asking) {
  const recording = record()
  await ask(await serve(application), path, asking)
  const [span] = await recording.all(1)
  if (span === undefined) throw new Error('there is no span')
  return span
}

function exceptions(span: Awaited<ReturnType<typeof trace1>>) {
  return span.events
    .filter(({ name }) => name === 'exception')
    .map(({ attributes }) => attributes?.['exception.message'])
}
