import { tracing } from '@throughline/koa'
import mount from 'koa-mount'
import type Koa from 'koa'
import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { ask, listen, load, ok, pass, trace1, traced, withRouters, type Asked } from './apps.ts'

const serveStatic = load<(root: string) => Koa.Middleware>('koa-static')

describe.each(withRouters)('%s', (name, Application, Router) => {
  const app = () => traced(Application)
  const isOld = name.endsWith('koa-router')

  /** The name and the route of the request's span are this pattern, or else it has none. */
  async function expectRoute(
    application: Pick<Koa, 'listen'>,
    path: string,
    route: string | undefined,
    asked: Asked = {},
  ) {
    const span = await trace1(application, path, asked)
    const { method = 'GET' } = asked
    expect(span.name).toBe(route === undefined ? method : `${method} ${route}`)
    expect(span.attributes['http.route']).toBe(route)
    return span
  }

  describe('the route is the pattern', () => {
    test('with the prefix of the router, and the parameters in it', async () => {
      const router = new Router({ prefix: '/orgs/:org' }).get('/users/:id', ok).get('/', ok)
      await expectRoute(app().use(router.routes()), '/orgs/7/users/8', '/orgs/:org/users/:id')
      await expectRoute(app().use(router.routes()), '/orgs/7', '/orgs/:org')
    })

    test('with a prefix that was given later', async () => {
      const router = new Router().get('/users/:id', ok).prefix('/api')
      await expectRoute(app().use(router.routes()), '/api/users/8', '/api/users/:id')
    })

    test('under middleware of a router whose prefix has parameters', async () => {
      const router = new Router({ prefix: '/orgs/:org' })
      router.use(pass)
      router.get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/orgs/7/users/8', '/orgs/:org/users/:id')
    })

    test('with the mount points of routers in routers in routers', async () => {
      const comments = new Router().get('/:comment', ok)
      const posts = new Router().use('/:post/comments', comments.routes())
      const users = new Router({ prefix: '/users' }).use('/:user/posts', posts.routes())
      const api = new Router({ prefix: '/api' }).use(users.routes())
      await expectRoute(
        app().use(api.routes()),
        '/api/users/1/posts/2/comments/3',
        '/api/users/:user/posts/:post/comments/:comment',
      )
    })

    test('of the one router that was nested in two places', async () => {
      const users = new Router().get('/users/:id', ok)
      const both = new Router().use('/a', users.routes()).use('/b/:x', users.routes())
      await expectRoute(app().use(both.routes()), '/a/users/1', '/a/users/:id')
      await expectRoute(app().use(both.routes()), '/b/2/users/1', '/b/:x/users/:id')
    })

    test('as the one of several that matched', async () => {
      const router = new Router({ prefix: '/api' }).get(['/a/:x', '/b/:y'], ok)
      await expectRoute(app().use(router.routes()), '/api/b/2', '/api/b/:y')
    })

    test('as a RegExp is written', async () => {
      const router = new Router().get(/^\/v(\d+)\/status$/, ok)
      await expectRoute(app().use(router.routes()), '/v2/status', '/^\\/v(\\d+)\\/status$/')
    })

    test('with its optional segments, whether they are there or not', async () => {
      const router = new Router().get('/posts{/:year}{/:month}', ok)
      await expectRoute(app().use(router.routes()), '/posts', '/posts{/:year}{/:month}')
      await expectRoute(app().use(router.routes()), '/posts/2026/11', '/posts{/:year}{/:month}')
    })

    test('with its wildcard', async () => {
      const router = new Router().get('/files/*path', ok)
      await expectRoute(app().use(router.routes()), '/files/a/b/c.txt', '/files/*path')
    })

    test('as it is written, whatever the case and the slash at the end of the request', async () => {
      const router = new Router().get('/Users/:id', ok)
      await expectRoute(app().use(router.routes()), '/uSERS/7/', '/Users/:id')
    })

    test('and is not there where the router is strict in these', async () => {
      const router = new Router({ sensitive: true, strict: true }).get('/Users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/7', undefined)
      await expectRoute(app().use(router.routes()), '/Users/7/', undefined)
      await expectRoute(app().use(router.routes()), '/Users/7', '/Users/:id')
    })

    test('and not the name of the route', async () => {
      const router = new Router().get('user', '/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/7', '/users/:id')
    })

    test('of a redirect', async () => {
      const router = new Router().get('new', '/new', ok).redirect('/old', 'new')
      const span = await expectRoute(app().use(router.routes()), '/old', '/old')
      expect(span.attributes['http.response.status_code']).toBe(301)
    })

    test('also when a handler of its parameter turns the request away', async () => {
      const router = new Router().param('id', (id, ctx, next) => (id === '0' ? ctx.throw(404) : next()))
      router.get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/1', '/users/:id')
      const span = await expectRoute(app().use(router.routes()), '/users/0', '/users/:id')
      expect(span.attributes['http.response.status_code']).toBe(404)
    })

    test('when it takes all methods', async () => {
      const router = new Router().all('/any/:x', ok)
      await expectRoute(app().use(router.routes()), '/any/1', '/any/:x', { method: 'OPTIONS' })
    })

    test('for a HEAD that a GET route answers', async () => {
      const router = new Router().get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/1', '/users/:id', { method: 'HEAD' })
    })

    test('when it was added while the app was serving', async () => {
      const router = new Router()
      const application = app().use(router.routes())
      const recording = record()
      const server = await listen(application)
      await ask(server, '/late/1')
      router.get('/late/:id', ok)
      await ask(server, '/late/1')
      expect((await recording.all(2)).map((span) => span.name)).toEqual(['GET', 'GET /late/:id'])
    })

    test('and is kept when the handler answers 404', async () => {
      const router = new Router().get('/users/:id', (ctx) => ctx.throw(404, 'no such user'))
      const span = await expectRoute(app().use(router.routes()), '/users/1', '/users/:id')
      expect(span.status.code).toBe(0)
    })

    test('that answered, where several match', async () => {
      const router = new Router().get('/users/me', ok).get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/me', '/users/me')
    })

    test('that the router prefers, where it takes one only', async () => {
      const router = new Router({ exclusive: true }).get('/users/:id', ok).get('/users/me', ok)
      await expectRoute(app().use(router.routes()), '/users/me', '/users/me')
    })

    test('that the request was passed on to', async () => {
      const router = new Router().get('/users/me', pass).get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/me', '/users/:id')
    })

    test('also when middleware of the router turns the request away', async () => {
      const router = new Router({ prefix: '/api' })
      router.use((ctx) => ctx.throw(401))
      router.get('/users/:id', ok)
      router.get('/users/{*rest}', ok)
      const span = await expectRoute(app().use(router.routes()), '/api/users/1', '/api/users/:id')
      expect(span.attributes['http.response.status_code']).toBe(401)
    })

    test('also when middleware behind the route answers', async () => {
      const router = new Router()
      router.get('/users/:id', pass)
      router.use(ok)
      await expectRoute(app().use(router.routes()), '/users/1', '/users/:id')
    })

    test('also when middleware at the very path of the route answers', async () => {
      const router = new Router()
      router.use('/users/:id', ok)
      router.post('/users/:id', ok)
      router.get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/1', '/users/:id')
    })

    test('of the second router, when the first has none for the request', async () => {
      const first = new Router({ prefix: '/api' })
      first.use(pass)
      first.get('/orgs/:org', ok)
      const second = new Router({ prefix: '/api' })
      second.use(pass)
      second.get('/users/:id', ok)
      await expectRoute(app().use(first.routes()).use(second.routes()), '/api/users/1', '/api/users/:id')
    })

    test('of the second router, when the first passed the request on', async () => {
      const first = new Router().get('/users/{*rest}', pass)
      const second = new Router().get('/users/:id', ok)
      await expectRoute(app().use(first.routes()).use(second.routes()), '/users/1', '/users/:id')
    })

    test('that a path was rewritten to', async () => {
      const router = new Router().get('/users/:id', ok)
      const rewriting = app().use((ctx, next) => {
        ctx.path = ctx.path.replace(/^\/u(\d+)$/, '/users/$1')
        return next()
      })
      const span = await expectRoute(rewriting.use(router.routes()), '/u7', '/users/:id')
      expect(span.attributes['url.path']).toBe('/u7')
      const returning = app().use(async (ctx, next) => {
        const { url } = ctx
        ctx.url = '/users/9?x=1'
        await next()
        ctx.url = url
      })
      const other = await expectRoute(returning.use(router.routes()), '/tenants/7', '/users/:id')
      expect(other.attributes['url.path']).toBe('/tenants/7')
    })

    test('without what a rewrite has cut off, which may be a value', async () => {
      const router = new Router().get('/users/:id', ok)
      const application = app().use((ctx, next) => {
        ctx.path = ctx.path.replace('/tenant-7', '')
        return next()
      })
      await expectRoute(application.use(router.routes()), '/tenant-7/users/1', '/users/:id')
    })
  })

  describe('a mount of koa-mount', () => {
    const users = () => new Router().get('/users/:id', ok).routes() as Koa.Middleware

    test('is a part of the route', async () => {
      await expectRoute(app().use(mount('/api', users())), '/api/users/1?page=2', '/api/users/:id')
      await expectRoute(app().use(mount(users())), '/users/1', '/users/:id')
    })

    test('is the route of its root', async () => {
      const root = () => new Router().get('/', ok).routes() as Koa.Middleware
      await expectRoute(app().use(mount('/api', root())), '/api', '/api')
      await expectRoute(app().use(mount('/api/', root())), '/api/', '/api')
    })

    test('is a part of it also in other mounts, with apps and routers with prefixes in them', async () => {
      const router = new Router({ prefix: '/orgs/:org' }).get('/users/:id', ok)
      const inner = new Application().use(mount('/v1', router.routes() as Koa.Middleware))
      const outer = new Application().use(pass).use(mount('/api', inner))
      await expectRoute(
        app().use(mount('/public', outer)),
        '/public/api/v1/orgs/1/users/2',
        '/public/api/v1/orgs/:org/users/:id',
      )
    })

    test('is no part of it when it passed the request on', async () => {
      const router = new Router().get('/api/users/:id', ok).get('/api/{*rest}', ok)
      const passing = mount('/api', mount('/users', pass))
      await expectRoute(app().use(passing).use(router.routes()), '/api/users/1', '/api/users/:id')
      await expectRoute(app().use(passing).use(router.routes()), '/api/more/1', '/api/{*rest}')
    })

    test('is a part of it when the route takes everything', async () => {
      const router = () => new Router().get('/{*path}', ok).routes() as Koa.Middleware
      await expectRoute(app().use(mount('/api', router())), '/api/a/b', '/api/{*path}')
      await expectRoute(app().use(mount('/a', pass)).use(mount('/a', router())), '/a/b/c', '/a/{*path}')
    })

    test('is the one that the request went into, of several at the same place', async () => {
      const application = app().use(mount('/a', mount('/b', pass)))
      application.use(mount('/a/b', users()))
      await expectRoute(application, '/a/b/users/1', '/a/b/users/:id')
    })

    test('is a part of it when the path was rewritten before, and what was cut off is not', async () => {
      const application = app().use((ctx, next) => {
        ctx.path = ctx.path.replace('/tenant-7', '/api')
        return next()
      })
      await expectRoute(application.use(mount('/api', users())), '/tenant-7/users/1', '/api/users/:id')
      const cutting = app().use((ctx, next) => {
        ctx.path = ctx.path.replace('/tenant-7', '')
        return next()
      })
      await expectRoute(cutting.use(mount('/api', users())), '/tenant-7/api/users/1', '/api/users/:id')
    })

    test('is a part of it while the handler has not answered, and the client goes away', async () => {
      const recording = record()
      const gone = new AbortController()
      const router = new Router().get('/users/:id', () => {
        gone.abort()
        return new Promise(() => {})
      })
      const server = await listen(app().use(mount('/api', mount('/v1', router.routes() as Koa.Middleware))))
      const asked = fetch(`http://localhost:${(server.address() as { port: number }).port}/api/v1/users/1`, {
        signal: gone.signal,
      })
      await expect(asked).rejects.toThrow('aborted')
      const [span] = await recording.all(1)
      expect(span?.name).toBe('GET /api/v1/users/:id')
    })

    test('is a part of it, and of the path, also where tracing is inside of it', async () => {
      const application = new Application().use(mount('/api', mount('/v1', app().use(users()))))
      // The second request finds what the first one has left.
      for (const id of [1, 2]) {
        const span = await expectRoute(application, `/api/v1/users/${id}?page=2`, '/api/v1/users/:id')
        expect(span.attributes).toMatchObject({ 'url.path': `/api/v1/users/${id}`, 'url.query': 'page=2' })
      }
      const root = app().use(new Router().get('/', ok).routes() as Koa.Middleware)
      await expectRoute(new Application().use(mount('/api', root)), '/api', '/api')
    })

    test('is a part of it, without the host of a request that a proxy sends with its whole URL', async () => {
      const recording = record()
      const server = await listen(new Application().use(mount('/api', app().use(users()))))
      const { port } = server.address() as AddressInfo
      const [response] = (await once(get({ port, path: 'http://a.example/api/users/1' }), 'response')) as [
        IncomingMessage,
      ]
      response.resume()
      const [span] = await recording.all(1)
      expect(span?.name).toBe('GET /api/users/:id')
    })

    test('is a part of it when tracing is behind one that has passed the request on', async () => {
      const application = new Application().use(mount('/api', pass)).use(tracing())
      await expectRoute(application.use(mount('/api', users())), '/api/users/1', '/api/users/:id')
    })

    test('shows what is inside of it the path as ever', async () => {
      const seen: unknown[] = []
      const inner = traced(Application, {
        ignore: (ctx) => {
          seen.push(ctx.url, ctx.path)
          return false
        },
      })
      inner.use((ctx, next) => {
        seen.push(ctx.url, ctx.originalUrl, 'originalUrl' in ctx.req, ctx['mountPath'])
        return next()
      })
      await trace1(new Application().use(mount('/api', inner)), '/api/x?y=1')
      expect(seen).toEqual(['/x?y=1', '/x', '/x?y=1', '/api/x?y=1', false, '/api'])
    })

    test('leaves its path on the context, as ever', async () => {
      const seen: unknown[] = []
      const look: Koa.Middleware = (ctx, next) => {
        seen.push(ctx['mountPath'], Object.keys(ctx).includes('mountPath'))
        return next()
      }
      const application = app().use(look)
      application.use(mount('/api', mount('/v1', look)))
      await trace1(application.use(look), '/api/v1/x')
      expect(seen).toEqual([undefined, false, '/v1', true, '/v1', true])
    })
  })

  describe('there is no route', () => {
    test.each([
      '/',
      '/api',
      '/api/',
      '/api/nothing',
      '/api/nothing/here',
      '/api/users',
      '/api/users/1/more',
      '/apix/users/1',
    ])('for a 404 at %s, whatever routers and middleware it went through', async (path) => {
      const users = new Router().use(pass).get('/:id', ok)
      const api = new Router({ prefix: '/api' })
      api.use(pass)
      api.use('/users', pass)
      api.use('/users', users.routes())
      const application = app().use(api.routes()).use(api.allowedMethods())
      application.use(mount('/api', new Router().get('/orgs/:id', ok).routes() as Koa.Middleware))
      const span = await expectRoute(application, path, undefined)
      expect(span.attributes['http.response.status_code']).toBe(404)
    })

    test.each([
      ['OPTIONS', 200],
      ['POST', 405],
      ['PROPFIND', 501],
    ])('when the router itself answers %s', async (method, status) => {
      const router = new Router({ prefix: '/api' })
      router.use(pass)
      router.get('/users/:id', ok)
      const span = await trace1(app().use(router.routes()).use(router.allowedMethods()), '/api/users/1', {
        method,
      })
      expect(span.attributes).not.toHaveProperty('http.route')
      expect(span.attributes['http.response.status_code']).toBe(status)
      expect(span.name).toBe(method === 'PROPFIND' ? 'HTTP' : method)
    })

    test('when the router throws what it has against the method', async () => {
      const router = new Router().get('/users/:id', ok)
      const application = app()
        .use(router.routes())
        .use(router.allowedMethods({ throw: true }))
      const span = await expectRoute(application, '/users/1', undefined, { method: 'POST' })
      expect(span.attributes['http.response.status_code']).toBe(405)
      expect(span.events).toEqual([])
    })

    test('for a static file', async () => {
      const root = mkdtempSync(join(tmpdir(), 'throughline-koa-'))
      writeFileSync(join(root, 'a.txt'), 'a file')
      const router = new Router({ prefix: '/assets' }).get('/api', ok)
      const application = app()
        .use(router.routes())
        .use(mount('/assets', serveStatic(root)))
      const span = await expectRoute(application, '/assets/a.txt', undefined)
      expect(span.attributes['http.response.status_code']).toBe(200)
    })

    test('for a host that the router is not for', async () => {
      const router = new Router({ host: 'elsewhere.example' }).get('/users/:id', ok)
      await expectRoute(app().use(router.routes()), '/users/1', undefined)
    })

    test('in an app without a router', async () => {
      await expectRoute(app().use(ok), '/users/1', undefined)
    })
  })

  test.runIf(!isOld)('a route that the router takes for its few parameters is the route', async () => {
    const router = new Router({ exclusive: 'specificity' }).get('/users/me', ok).get('/users/:id', ok)
    await expectRoute(app().use(router.routes()), '/users/me', '/users/me')
  })
})
