import express, { type ErrorRequestHandler, type Express, type RequestHandler } from 'express'
import { describe, expect, test } from 'vitest'
import { exceptions, record } from '../recording.ts'
import { fail, ok, serve, spanOf, traced, versions } from './app.ts'

const failAgain: RequestHandler = () => {
  throw new RangeError('another')
}
const refuse: RequestHandler = (_request, response) => void response.status(503).end('busy')

describe.each(versions)('%s', (_name, create) => {
  describe('an error', () => {
    test('that the handler of an outer app answers for keeps the route of the inner one', async () => {
      const inner = create().get('/users/:id', fail)
      const application = app().use('/admin/:realm', inner)
      application.use(answering(503))
      const span = await spanOf(application, '/admin/a/users/1')
      expect(span.name).toBe('GET /admin/:realm/users/:id')
      expect(exceptions(span)).toEqual(['it broke'])
      expect(span.attributes['error.type']).toBe('RangeError')
    })

    test('that the handler of an inner router answers for has its route, and the error', async () => {
      const router = create.Router().get('/users/:id', fail)
      router.use(answering(500))
      const span = await spanOf(app().use('/api', router), '/api/users/1')
      expect(span.name).toBe('GET /api/users/:id')
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('that is passed to next() is recorded once, through however many layers', async () => {
      const deep = create.Router().get('/x', (_request, _response, next) => next(new RangeError('it broke')))
      const application = app().use(create.Router().use(create.Router().use(deep)))
      application.use(((error, _request, _response, next) => next(error)) as express.ErrorRequestHandler)
      const span = await spanOf(application, '/x')
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('that the error handler wraps is recorded as it was at first', async () => {
      const application = app().get('/x', fail)
      application.use(((_error, _request, _response, next) =>
        next(new Error('wrapped'))) as express.ErrorRequestHandler)
      application.use(answering(500))
      expect(exceptions(await spanOf(application, '/x'))).toEqual(['it broke'])
    })

    test('of a middleware in front of the routes is recorded, without a route', async () => {
      const span = await spanOf(app().use(fail).get('/x', ok), '/x')
      expect(span.name).toBe('GET')
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('in loading a parameter is recorded where the app has an error handler', async () => {
      const application = app()
      application.param('id', (_request, _response, next) => next(new RangeError('it broke')))
      application.get('/users/:id', ok)
      application.use(answering(500))
      expect(exceptions(await spanOf(application, '/users/1'))).toEqual(['it broke'])
    })

    test.each([false, 0, '', null, 'route', 'router'])('is not what next(%j) says', async (value) => {
      const passing: RequestHandler = (_request, _response, next) => next(value)
      const application = app().use(create.Router().use(passing), create.Router().get('/x', passing))
      application.use((_request, response) => void response.sendStatus(500))
      const span = await spanOf(application, '/x')
      expect(span.name).toBe('GET')
      expect(span.attributes['error.type']).toBe('500')
      expect(span.events).toEqual([])
    })

    test('has its type, message and stack, and its time', async () => {
      const failure = Object.assign(new RangeError('it broke'), { code: 'E_BROKEN' })
      const application = app().get('/x', (_request, _response, next) => next(failure))
      const span = await spanOf(application, '/x')
      expect(span.status).toEqual({ code: 2, message: 'it broke' })
      expect(span.events[0]?.attributes).toMatchObject({
        'exception.type': expect.stringMatching(/RangeError|E_BROKEN/),
        'exception.message': 'it broke',
        'exception.stacktrace': failure.stack,
      })
    })

    test('that an error handler throws itself comes after the first one, which is the one recorded', async () => {
      const application = app().get('/x', fail)
      application.use(((_error, _request, _response, _next) => {
        throw new TypeError('the handler broke')
      }) as ErrorRequestHandler)
      const span = await spanOf(application, '/x')
      expect(span.attributes['http.response.status_code']).toBe(500)
      expect(exceptions(span)).toEqual(['it broke'])
    })

    test('that an error handler recovers from, later, is none', async () => {
      const application = app().get('/x', fail)
      application.use(
        ((_error, _request, response, _next) =>
          void setImmediate(() => response.send('recovered'))) as ErrorRequestHandler,
      )
      const span = await spanOf(application, '/x')
      expect(span.name).toBe('GET /x')
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
      expect(span.attributes).not.toHaveProperty('error.type')
    })

    test.each<[string, RequestHandler, Record<string, unknown>, string[]]>([
      ['meets another one, which is that one', failAgain, { 'error.type': 'RangeError' }, ['another']],
      ['is refused on purpose, which is no error', refuse, { 'error.type': '503' }, []],
    ])(
      'that an error handler hands on as none: a request that then %s',
      async (_, answer, attributes, messages) => {
        const application = app().get('/x', fail)
        application.use(((_error, _request, _response, handOn) => handOn()) as ErrorRequestHandler)
        application.get('/x', answer)
        const span = await spanOf(application, '/x')
        expect(span.attributes).toMatchObject(attributes)
        expect(exceptions(span)).toEqual(messages)
      },
    )

    test('of the client is none: 4xx leaves the status unset', async () => {
      const application = app().use(create.json())
      application.post('/x', ok)
      const span = await spanOf(application, '/x', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: '{',
      })
      expect(span.attributes['http.response.status_code']).toBe(400)
      expect(span.status).toEqual({ code: 0 })
      expect(span.events).toEqual([])
    })

    test('that comes after the headers cuts the answer off, and is recorded with the status that was sent', async () => {
      const recording = record()
      const application = app().get('/x', (_request, response, next) => {
        response.write('half')
        next(new RangeError('it broke'))
      })
      const { port } = await serve(application)
      await fetch(`http://127.0.0.1:${port}/x`)
        .then((answer) => answer.text())
        .catch(() => {})
      const [span] = await recording.all(1)
      expect(span?.name).toBe('GET /x')
      expect(span?.attributes).toMatchObject({
        'http.response.status_code': 200,
        'error.type': 'RangeError',
        'throughline.incomplete': true,
      })
      expect(span?.status.code).toBe(2)
      expect(span && exceptions(span)).toEqual(['it broke'])
    })

    test('that is no Error is recorded by what it says', async () => {
      const application = app().get('/x', (_request, _response, next) => next('out of paper'))
      const span = await spanOf(application, '/x')
      expect(span.status).toEqual({ code: 2, message: 'out of paper' })
      expect(exceptions(span)).toEqual(['out of paper'])
      expect(span.attributes['error.type']).toBe('500')
    })
  })

  function app(): Express {
    return traced(create)
  }
})

test('Express 5: what an async handler rejects with is Express’s to answer, and is recorded', async () => {
  const application = traced(express)
  application.get('/users/:id', async () => {
    throw new RangeError('it broke')
  })
  const span = await spanOf(application, '/users/1')
  expect(span.attributes['http.response.status_code']).toBe(500)
  expect(span.name).toBe('GET /users/:id')
  expect(exceptions(span)).toEqual(['it broke'])
})

const answering =
  (status: number): express.ErrorRequestHandler =>
  (_error, _request, response, _next) =>
    void response.sendStatus(status)

test('Express 5: what an async error handler rejects with is answered by the next one', async () => {
  const application = traced(express).get('/x', fail)
  application.use((async (_error, _request, _response, _next) => {
    throw new TypeError('the handler broke')
  }) as ErrorRequestHandler)
  application.use(answering(503))
  const span = await spanOf(application, '/x')
  expect(span.attributes['http.response.status_code']).toBe(503)
  expect(exceptions(span)).toEqual(['it broke'])
})
