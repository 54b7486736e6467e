import { trace } from '@opentelemetry/api'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { maskErrors, showAs, span, traceRequest } from '@throughline/core'
import { createServer } from 'node:http'
import request from 'supertest'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { messageOf } from '../../packages/core/src/exception.ts'
import { record } from '../recording.ts'

// An adapter that knows what a message holds says what may be shown of it. Whoever tells of the error tells that.

const SECRET = '4111-1111'

class Refused extends Error {
  override readonly name = 'Refused'
}

function refused(): Error {
  const error = new Refused(`no such card: ${SECRET}`)
  showAs(error, 'no such card: ?')
  return error
}

afterEach(() => trace.disable())

interface Told {
  status: unknown
  attributes: unknown
  events: { attributes?: Record<string, unknown> | undefined }[]
}

function expectMasked({ status, attributes, events }: Told): void {
  expect(status).toEqual({ code: 2, message: 'no such card: ?' })
  expect(attributes).toMatchObject({ 'error.type': 'Refused' })
  expect(events).toHaveLength(1)
  expect(events[0]?.attributes).toMatchObject({
    'exception.type': 'Refused',
    'exception.message': 'no such card: ?',
    'exception.stacktrace': expect.stringMatching(/no such card: \?\n +at refused /),
  })
  expect(JSON.stringify([status, attributes, events])).not.toContain(SECRET)
}

describe('an error that is shown with another message', () => {
  test('is so on a span of ours, and the app gets it as it was', async () => {
    const recording = record()
    const error = refused()
    expect(() =>
      span('work', () => {
        throw error
      }),
    ).toThrow(`no such card: ${SECRET}`)
    expect(error.stack).toContain(SECRET)
    const [work] = await recording.all(1)
    expectMasked(work as Told)
  })

  test.each<[string, (below: Error) => Error]>([
    ['', (below) => new Error(`could not pay: ${below.message}`, { cause: below })],
    [
      ', which is the cause of its cause',
      (below) =>
        new Error(`could not pay: ${below.message}`, { cause: new Error('no payment', { cause: below }) }),
    ],
    [
      ', or one of several that it stands for',
      (below) => new AggregateError([new Error('other'), below], `could not pay: ${below.message}`),
    ],
  ])('is so within the message of an error of which it is the cause%s', async (_, wrapped) => {
    const recording = record()
    const error = wrapped(refused())
    expect(() =>
      span('work', () => {
        throw error
      }),
    ).toThrow(SECRET)
    const [work] = await recording.all(1)
    expect(work?.status).toEqual({ code: 2, message: 'could not pay: no such card: ?' })
    expect(work?.events[0]?.attributes).toMatchObject({
      'exception.message': 'could not pay: no such card: ?',
      'exception.stacktrace': expect.stringMatching(
        /^(Aggregate)?Error: could not pay: no such card: \?\n +at /,
      ),
    })
    expect(JSON.stringify([work?.status, work?.events])).not.toContain(SECRET)
  })

  test('leaves the message of one that says something else, also where causes go round in a circle', async () => {
    const recording = record()
    const error: Error = new Error('could not pay', { cause: refused() })
    const circle: Error = new Error('in a circle')
    circle.cause = circle
    span('work', (work) => {
      work.recordException(error)
      work.recordException(circle)
    })
    const [work] = await recording.all(1)
    expect(work?.events.map(({ attributes }) => attributes?.['exception.message'])).toEqual([
      'could not pay',
      'in a circle',
    ])
  })

  test('keeps its stack where its own message holds nothing to hide', async () => {
    const recording = record()
    const error = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' })
    showAs(error, error.message)
    await expect(span('work', () => Promise.reject(error))).rejects.toBe(error)
    const [work] = await recording.all(1)
    expect(work?.events[0]?.attributes?.['exception.stacktrace']).toBe(error.stack)
  })

  test('is so on spans of the official SDK, of functions and of requests', async () => {
    const exporter = new InMemorySpanExporter()
    trace.setGlobalTracerProvider(
      new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }),
    )
    await expect(span('work', () => Promise.reject(refused()))).rejects.toThrow(SECRET)
    const server = createServer((incoming, response) => {
      traceRequest(incoming, response, () => Promise.reject(refused())).catch(() => {
        response.writeHead(500).end()
      })
    })
    await request(server).get('/').expect(500)
    const [work, received] = exporter.getFinishedSpans()
    expectMasked(work as unknown as Told)
    expectMasked(received as unknown as Told)
  })

  test('is so where the app records it itself', async () => {
    const recording = record()
    span('work', (work) => work.recordException(refused()))
    const [work] = await recording.all(1)
    expect(work?.events[0]?.attributes).toMatchObject({ 'exception.message': 'no such card: ?' })
    expect(JSON.stringify(work?.events)).not.toContain(SECRET)
  })

  test('is so where its message is changed by whoever passes it on', () => {
    const error = refused()
    error.message = `INSERT INTO cards VALUES ('${SECRET}') - ${error.message}`
    expect(messageOf(error)).toBe('no such card: ?')
  })

  test.each([
    ['of several lines', `no such card:\n    at ${SECRET}`, ''],
    ['that somebody has added to', `no such card`, `: ${SECRET}`],
  ])('has frames in its stack, and nothing of a message %s', (_, message, more) => {
    const recording = record()
    const error = new Refused(message)
    showAs(error, '?')
    error.stack = (error.stack ?? '').replace(message, message + more)
    span('work', (work) => work.recordException(error))
    const stack = recording.spans[0]?.events[0]?.attributes?.['exception.stacktrace']
    expect(stack).toMatch(/^Refused: \?\n +at /)
    expect(stack).not.toContain(SECRET)
  })

  test('is so for another copy of this package', async () => {
    const error = refused()
    vi.resetModules()
    const copy = await import('../../packages/core/src/exception.ts')
    expect(copy.messageOf).not.toBe(messageOf)
    expect(copy.messageOf(error)).toBe('no such card: ?')
  })
})

test('a mask may read the message as anybody does: it is not asked for that', () => {
  class Declined extends Error {}
  let asked = 0
  maskErrors((error) => {
    if (!(error instanceof Declined)) return undefined
    asked += 1
    return messageOf(error).replace(SECRET, '?')
  })
  expect(messageOf(new Declined(`no such card: ${SECRET}`))).toBe('no such card: ?')
  expect(asked).toBe(1)
})

describe('an error whose message names a URL', () => {
  const NAMED = 'request to https://user:pass-1@h:8080/a@b?sig=sign-1&b=2 failed, see http://docs.example/a@b'
  const SHOWN =
    'request to https://REDACTED:REDACTED@h:8080/a@b?sig=REDACTED&b=2 failed, see http://docs.example/a@b'
  const SECRETS = /pass-1|sign-1/

  test('is recorded without the credentials and the signature in it, whoever says so', async () => {
    const recording = record()
    const error = new TypeError(NAMED)
    expect(() =>
      span('work', () => {
        throw error
      }),
    ).toThrow(NAMED)
    await expect(span('later', () => Promise.reject(error))).rejects.toBe(error)
    for (const work of await recording.all(2)) {
      expect(work.status).toEqual({ code: 2, message: SHOWN })
      expect(work.events[0]?.attributes).toMatchObject({
        'exception.message': SHOWN,
        'exception.stacktrace': expect.stringMatching(/^TypeError: request to .* failed.*\n +at /),
      })
      expect(JSON.stringify(work.events)).not.toMatch(SECRETS)
    }
    expect(error.stack).toContain(NAMED)
  })

  test('is so on a span of the official SDK', () => {
    const exporter = new InMemorySpanExporter()
    trace.setGlobalTracerProvider(
      new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }),
    )
    expect(() =>
      span('work', () => {
        throw new Error(NAMED)
      }),
    ).toThrow(NAMED)
    const [work] = exporter.getFinishedSpans()
    expect(work?.status.message).toBe(SHOWN)
    expect(JSON.stringify([work?.status, work?.events])).not.toMatch(SECRETS)
  })

  test('is so where that is in its stack alone, or there a second time, was masked before, or is all that was thrown', async () => {
    const recording = record()
    const changed = new Error(NAMED)
    changed.message = 'failed'
    const masked = new Error(`${NAMED} for ${SECRET}`)
    showAs(masked, `${NAMED} for ?`)
    const joined = new Error(NAMED)
    joined.stack += `\ncaused by: Error: ${NAMED}\n    at below`
    span('work', (work) => {
      work.recordException(changed)
      work.recordException(masked)
      work.recordException(joined)
      work.recordException(NAMED)
    })
    const [work] = await recording.all(1)
    expect(work?.events.map(({ attributes }) => attributes?.['exception.message'])).toEqual([
      'failed',
      `${SHOWN} for ?`,
      SHOWN,
      SHOWN,
    ])
    expect(JSON.stringify(work?.events)).not.toMatch(SECRETS)
    expect(JSON.stringify(work?.events)).not.toContain(SECRET)
  })
})

test('what has no message to mask, or needs none, is told as it is', () => {
  const plain = new Error('a plain one')
  showAs(plain, 'a plain one')
  expect(messageOf(plain)).toBe('a plain one')
  for (const thrown of [undefined, null, 'text', 7]) {
    showAs(thrown, '?')
    expect(messageOf(thrown)).toBe(String(thrown))
  }
  // By its name, and not by its source.
  expect(messageOf(RangeError)).toBe('[Function: RangeError]')
  const several = new AggregateError([new Error('one')])
  showAs(several, 'one')
  expect(messageOf(several)).toBe('one')
})
