import { tracing } from '@throughline/express'
import type { Express, RequestHandler } from 'express'
import { describe, expect, test } from 'vitest'
import { ask } from '../contract/server.ts'
import { record } from '../recording.ts'
import { ok, quiet, serve, spanOf, traced, versions, type Create } from './app.ts'

/** What layers inherit, before anything was traced. */
const untouched = new Map(versions.map(([, create]) => [create, layersOf(create)]))

describe.each(versions)('%s', (_name, create) => {
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
