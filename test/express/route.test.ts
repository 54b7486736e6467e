import { tracing } from '@throughline/express'
import type {
  ErrorRequestHandler,
  Express,
  IRouter,
  NextFunction,
  Request,
  RequestHandler,
  Response,
} from 'express'
import { basename, dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { ask } from '../contract/server.ts'
import { record } from '../recording.ts'
import {
  fail,
  forgetsMountPaths,
  ok,
  pass,
  quiet,
  routes,
  serve,
  spanOf,
  stackOf,
  traced,
  versions,
  wrapped,
} from './app.ts'

describe.each(versions)('%s', (name, create) => {
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
      expect((await spanOf(application, '/things', { method: 'POST' })).name).toBe('POST /things')
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
      const span = await spanOf(app().get('/users/:id', ok), '/users/1', { method: 'HEAD' })
      expect(span.name).toBe('HEAD /users/:id')
    })

    test('does not mind the case of the path, a slash at its end, or what is encoded in it', async () => {
      const application = app().use('/Api', create.Router().get('/Users/:id', ok))
      const [first, second] = await routes(application, '/API/USERS/1/', '/api/users/a%2Fb')
      expect(second).toBe(first)
      expect(first).toBe(forgetsMountPaths(create) ? '/api/Users/:id' : '/Api/Users/:id')
    })

    test('minds the case, and the slash, where the app does', async () => {
      const application = quiet(create()).enable('case sensitive routing').enable('strict routing')
      application.use(tracing())
      application.get('/users/:id', ok).get('/users/:id/', ok).get('/Users/:name', ok)
      application.use('/Api', create.Router({ strict: true }).get('/x/', ok))
      expect(
        await routes(application, '/users/1', '/users/1/', '/Users/1', '/USERS/1', '/Api/x/', '/Api/x'),
      ).toEqual(['/users/:id', '/users/:id/', '/Users/:name', undefined, '/Api/x/', undefined])
    })

    if (!isFour) {
      test('minds the case of a mount path where the app does, its optional parts included', async () => {
        const application = quiet(create()).enable('case sensitive routing').use(tracing())
        const router = create.Router().get('/x', ok)
        application.use('/a{/B}', router).use('/c/:id{-D}', router)
        const written = forgetsMountPaths(create) ? ['/a/B/x', '/c/:id-D/x'] : ['/a{/B}/x', '/c/:id{-D}/x']
        expect(await routes(application, '/a/B/x', '/c/7-D/x')).toEqual(written)
      })
    }

    test('has its optional parts, whether the path has them or not', async () => {
      const optional = isFour ? '/users/:id?' : '/users{/:id}'
      const application = app().get(optional, ok)
      application.get(isFour ? ['/a/:x?', '/b/:y?'] : ['/a{/:x}', '/b{/:y}'], ok)
      expect(await routes(application, '/users/1', '/users', '/b/1', '/b')).toEqual([
        optional,
        optional,
        isFour ? '/b/:y?' : '/b{/:y}',
        isFour ? '/b/:y?' : '/b{/:y}',
      ])
    })

    test('is the wildcard’s for what a wildcard catches, below a mount path too', async () => {
      const all = isFour ? '*' : '/*all'
      const application = app().use('/files', create.Router().get(all, ok)).get(all, ok)
      expect(await routes(application, '/files/a/b', '/a/b')).toEqual([
        isFour ? '/files*' : '/files/*all',
        all,
      ])
    })

    test.each([
      ['/:a/:b', '/7/7', '/:a/:b'],
      ['/orgs/:orgs', '/orgs/orgs', '/orgs/:orgs'],
      ['/orgs/:org', '/ORGS/Acme', '/orgs/:org'],
      ['/o/:o-:p', '/o/o-o', '/o/:o-:p'],
      ['/:file.json', '/a.json', '/:file.json'],
      ['/a.b+c/:x'.replace('+', ''), '/a.bc/a.bc', '/a.bc/:x'],
      ['/users/:id', '/users/a%20b', '/users/:id'],
      ['/users/:id', '/users/%C3%A9', '/users/:id'],
      ['/api/', '/api', '/api'],
    ])('below a mount path %s asked for as %s is %s', async (path, asked, shown) => {
      const application = app().use(path, create.Router().get('/x', ok))
      const twice = [`${asked}/x`, `${asked}/x`]
      const expected = !isFour && !forgetsMountPaths(create) && path.endsWith('/') ? '/api' : shown
      expect(await routes(application, ...twice)).toEqual([`${expected}/x`, `${expected}/x`])
    })

    test('below a mount path that is a RegExp has that, where the router keeps it', async () => {
      const application = app().use(/^\/v(\d+)$/, create.Router().get('/x', ok))
      application.use(/^\/w\d+/, create.Router().get('/x', ok))
      const paths = forgetsMountPaths(create)
        ? [undefined, undefined]
        : [`${String(/^\/v(\d+)$/)}/x`, `${String(/^\/w\d+/)}/x`]
      // In Express 4 and 5 a mount path that ends in $ takes nothing that goes on.
      expect(await routes(application, '/v1/x', '/w1/x')).toEqual([undefined, paths[1]])
    })

    test('below a mount path with a wildcard', async () => {
      const path = isFour ? '/files/*/meta' : '/files/*path/meta'
      const application = app().use(path, create.Router().get('/x', ok))
      expect(await routes(application, '/files/a/b/meta/x', '/files/c/meta/x')).toEqual([
        `${path}/x`,
        `${path}/x`,
      ])
    })

    test('is the one that a request was rewritten to, wherever that was', async () => {
      const rewritten =
        (from: string, to: string): RequestHandler =>
        (request, _response, next) => {
          request.url = request.url.replace(from, to)
          next()
        }
      const router = create.Router().use(rewritten('/old', '/new')).get('/new/:id', ok)
      const inner = create().use(rewritten('/older', '/oldest')).get('/oldest/:id', ok)
      const application = quiet(create()).use(rewritten('/v0', '/v1')).use(tracing())
      application.use('/v1/:x', router).use('/v2/:x', inner)
      application.use(rewritten('/v3', '/v4')).get('/v4/:id', ok)
      expect(await routes(application, '/v2/1/older/2', '/v0/1/old/2', '/v2/1/older/2', '/v3/1')).toEqual([
        '/v2/:x/oldest/:id',
        '/v1/:x/new/:id',
        '/v2/:x/oldest/:id',
        '/v4/:id',
      ])
    })

    test('is whole where tracing is in a router, and the path was rewritten in front of it', async () => {
      const inner = create.Router().use(tracing()).get('/users/:id', ok)
      const application = quiet(create())
      application.use((request, _response, next) => {
        request.url = `/orgs/7${request.url}`
        next()
      })
      application.use('/orgs/:org', inner)
      expect(await routes(application, '/users/1', '/users/2')).toEqual([
        '/orgs/:org/users/:id',
        '/orgs/:org/users/:id',
      ])
    })

    test('is whole, from the first request on, where something has put functions of its own in the place of the app’s', async () => {
      const inner = create.Router().use(tracing()).get('/users/:id', ok)
      const application = quiet(create()).use('/orgs/:org', inner)
      wrapped(stackOf(application))
      const route = '/orgs/:org/users/:id'
      expect(await routes(application, '/orgs/7/users/1', '/orgs/7/users/2')).toEqual([route, route])
      const top = quiet(create()).use(tracing())
      const middle = create().use('/b/:y', create().get('/c/:z', ok))
      top.use('/a/:x', middle)
      wrapped(stackOf(top))
      wrapped(stackOf(middle))
      expect(await routes(top, '/a/1/b/2/c/3', '/a/1/b/2/c/3')).toEqual([
        '/a/:x/b/:y/c/:z',
        '/a/:x/b/:y/c/:z',
      ])
    })

    test('waits for the parameters of routes and of mount paths to be loaded', async () => {
      const load = (_request: Request, _response: Response, next: NextFunction) => void setImmediate(next)
      const router = create.Router({ mergeParams: true }).param('id', load).get('/users/:id', ok)
      const application = app().param('org', load).use('/orgs/:org', router)
      const recording = record()
      const serving = await serve(application)
      await Promise.all(['/orgs/1/users/2', '/orgs/3/users/4', '/orgs/5'].map((path) => ask(serving, path)))
      const spans = await recording.all(3)
      expect(spans.map(({ attributes }) => attributes['http.route']).toSorted()).toEqual([
        '/orgs/:org/users/:id',
        '/orgs/:org/users/:id',
        undefined,
      ])
    })

    test('of a router that is mounted twice below the same router, with other parameters', async () => {
      const things = create.Router({ mergeParams: true }).get('/things/:id', ok)
      const router = create.Router().use('/orgs/:org', things).use('/users/:user', things)
      expect(
        await routes(app().use('/api', router), '/api/orgs/1/things/2', '/api/users/1/things/2'),
      ).toEqual(['/api/orgs/:org/things/:id', '/api/users/:user/things/:id'])
    })

    test('of an app that middleware hands the request to, by the name of the host for example', async () => {
      const api = create().use('/orgs/:org', create.Router().get('/users/:id', ok))
      const application = app().use((request, response, next) => {
        if (request.headers['x-host'] === 'www') next()
        else api(request, response, next)
      })
      expect(await routes(application, '/orgs/1/users/2', '/orgs/1/users/2', '/orgs/1')).toEqual([
        '/orgs/:org/users/:id',
        '/orgs/:org/users/:id',
        undefined,
      ])
    })

    test('of layers that an app has put in the place of others', async () => {
      const application = app()
      const swap = () => (application.route('/b/:y').get(ok), stackOf(application))
      application.get('/a/:x', ok)
      const recording = record()
      const serving = await serve(application)
      await ask(serving, '/a/1')
      const stack = swap()
      stack.splice(-2, 1)
      await ask(serving, '/b/1')
      expect((await recording.all(2)).map(({ name: shown }) => shown)).toEqual(['GET /a/:x', 'GET /b/:y'])
    })

    test('is kept when its own middleware turns the request away', async () => {
      const span = await spanOf(
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

    test('of which tracing is a handler itself, but for the first request', async () => {
      const tracer = tracing({ middlewareSpans: true })
      const router = create.Router({ mergeParams: true }).get('/b/:y', tracer, ok)
      const application = quiet(create())
        .get('/a/:x', tracer, ok)
        .get('/left', tracer, (_request, _response, next) => next())
        .use('/in/:z', router)
      application.get('/twice', tracer, tracer, ok)
      const recording = record()
      const serving = await serve(application)
      for (const path of ['/a/1', '/a/2', '/in/1/b/2', '/left', '/twice']) await ask(serving, path)
      await recording.span(({ attributes }) => attributes['url.path'] === '/twice')
      const shown = recording.spans.map(({ name }) => name)
      expect(shown.filter((name) => name.startsWith('GET'))).toEqual([
        'GET',
        'GET /a/:x',
        'GET /in/:z/b/:y',
        'GET',
        'GET /twice',
      ])
      expect(shown.filter((name) => name === 'handler /twice')).toHaveLength(1)
    })

    test('of what is behind a middleware whose properties cannot be read', async () => {
      const lazy = new Proxy(pass, {
        get(target, key) {
          if (key === 'stack') throw new Error('not ready')
          return Reflect.get(target, key) as unknown
        },
      })
      await expectRoute(app().use(lazy).get('/users/:id', ok), '/users/1', '/users/:id')
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

    test.each<[string, () => IRouter]>([
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
    test.each(['', '/in'])(
      'where one below %j has failed in front of tracing, and the app has recovered',
      async (mount) => {
        const tracer = tracing()
        const failing: RequestHandler = (_request, _response, next) => next(new Error('of a route'))
        const recover: ErrorRequestHandler = (_error, _request, _response, next) => next()
        const router = create.Router().get('/a', failing, tracer, ok)
        const application = quiet(create())
        if (mount === '') application.get('/a', failing, tracer, ok)
        else application.use(mount, router)
        application.use(recover, tracer, ok)
        const recording = record()
        const serving = await serve(application)
        for (const _ of [1, 2, 3]) await ask(serving, `${mount}/a`)
        expect((await recording.all(3)).map(({ name: shown }) => shown)).toEqual(['GET', 'GET', 'GET'])
      },
    )

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

    test('when the route passed the request on by res.format or by req.next', async () => {
      const application = app()
      application.get('/a', (_request, response) => {
        response.format({ default: (_request: Request, _response: Response, next: NextFunction) => next() })
      })
      application.get('/b', (request) => request.next?.())
      expect(await routes(application, '/a', '/b')).toEqual([undefined, undefined])
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

    test('when a route of a mounted app passes the request on, from the first request on', async () => {
      const soon: RequestHandler = (_request, _response, next) => void setImmediate(next)
      const admin = create().get('/users/:id', pass).get('/things/:id', soon)
      const application = app().use('/admin', admin)
      expect(await routes(application, '/admin/things/1', '/admin/users/1', '/admin/users/1')).toEqual([
        undefined,
        undefined,
        undefined,
      ])
    })

    test('when the error handler passes the request on to nobody', async () => {
      const application = app().get('/users/:id', fail)
      application.use(((_error, _request, _response, next) => next()) as ErrorRequestHandler)
      await expectRoute(application, '/users/1', undefined)
    })

    test('for a file, at a mount path or without one', async () => {
      const files = dirname(fileURLToPath(import.meta.url))
      const application = app().use('/assets/:version', create.static(files)).use(create.static(files))
      const file = basename(fileURLToPath(import.meta.url))
      expect(await routes(application, `/assets/1/${file}`, `/${file}`, '/assets/1/none')).toEqual([
        undefined,
        undefined,
        undefined,
      ])
    })

    test('for OPTIONS that the router answers, and for a method that the app says it does not take', async () => {
      const router = create.Router().get('/users/:id', ok)
      router.use('/users/:id', (_request, response) => void response.sendStatus(405))
      const application = app().use('/api', router).use('/other', create.Router().get('/:id', ok))
      const options = await spanOf(application, '/other/1', { method: 'OPTIONS' })
      expect(options.attributes['http.response.status_code']).toBe(200)
      expect(options.name).toBe('OPTIONS')
      const refused = await spanOf(application, '/api/users/1', { method: 'PATCH' })
      expect(refused.attributes['http.response.status_code']).toBe(405)
      expect(refused.name).toBe('PATCH')
    })

    test('but for 405 from a route for all methods there is', async () => {
      const application = app()
      application
        .route('/things/:id')
        .get(ok)
        .all((_request, response) => void response.sendStatus(405))
      const span = await spanOf(application, '/things/1', { method: 'PATCH' })
      expect(span.name).toBe('PATCH /things/:id')
      expect(span.attributes['http.response.status_code']).toBe(405)
    })

    test('at any level for what nobody takes', async () => {
      const inner = create.Router().get('/c', ok)
      const middle = create.Router().use('/b/:y', inner)
      const application = app().use('/a/:x', middle).use('/app', create().use('/b', inner))
      const paths = ['/', '/a', '/a/1', '/a/1/b', '/a/1/b/2', '/a/1/b/2/d', '/app', '/app/b', '/app/b/d']
      expect(await routes(application, ...paths)).toEqual(paths.map(() => undefined))
    })

    test('for a method that the route does not take', async () => {
      const span = await spanOf(app().get('/users/:id', ok), '/users/1', { method: 'POST' })
      expect(span.name).toBe('POST')
    })
  })

  function app(): Express {
    return traced(create)
  }

  async function expectRoute(application: Express, path: string, route: string | undefined): Promise<void> {
    expect(await routes(application, path)).toEqual([route])
  }
})
