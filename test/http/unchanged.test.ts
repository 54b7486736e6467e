import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { AsyncLocalStorage } from 'node:async_hooks'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as http from 'node:http'
import { describe, expect, test } from 'vitest'
import { record } from '../recording.ts'
import { root } from '../source.ts'
import { served, traced } from './served.ts'

/** What an app can see of an object without looking for it. */
function shapeOf(emitter: http.ClientRequest | http.IncomingMessage) {
  const seen: string[] = []
  for (const key in emitter) if (Object.hasOwn(emitter, key)) seen.push(key)
  return {
    seen,
    keys: Object.keys(emitter),
    copied: Reflect.ownKeys({ ...emitter }).map(String),
    listeners: emitter.eventNames().map((name) => [String(name), emitter.listenerCount(name)]),
    parameters: (['emit', 'destroy', 'push'] as const).map(
      (name) => (emitter as Partial<http.IncomingMessage>)[name]?.length,
    ),
  }
}

/** The shapes of a request and its response all along their way, and the events that listeners are told of. */
async function followed(url: string): Promise<unknown[]> {
  const seen: unknown[] = []
  const request = http.request(url, { method: 'POST', headers: { a: '1' } })
  const follow = (emitter: http.ClientRequest | http.IncomingMessage, who: string, names: string[]) => {
    for (const name of names) {
      emitter.on(name, (...given: unknown[]) => seen.push([who, name, given.length, shapeOf(emitter)]))
    }
  }
  seen.push(shapeOf(request))
  follow(request, 'request', ['socket', 'drain', 'finish', 'response', 'error', 'close'])
  const closed = new Promise((resolve) => {
    request.on('response', (response: http.IncomingMessage) => {
      follow(response, 'response', ['data', 'end', 'error', 'close'])
      response.on('close', resolve)
    })
  })
  request.end('body')
  await closed
  return seen
}

test('events come in the same order, to the same listeners, of objects that look the same', async () => {
  const recording = record()
  const { url } = await served()
  // Modules that Node loads late leave no mark on the first request that is compared.
  await followed(url)
  const bare = await followed(url)
  traced()
  expect(await followed(url)).toEqual(bare)
  await recording.all(1)
})

test('the app may emit on a request and override its methods as before', async () => {
  record()
  const { url } = await served()
  traced()
  const request = http.request(url)
  const given: unknown[] = []
  request.on('of the app', (...args) => given.push(...args))
  expect(request.emit('of the app', 1, 2, 3)).toBe(true)
  expect(request.emit('of nobody')).toBe(false)
  expect(given).toEqual([1, 2, 3])
  const { destroy } = request
  request.destroy = function (error) {
    given.push('destroyed')
    return destroy.call(this, error)
  }
  expect(request.on('error', () => {}).destroy()).toBe(request)
  expect(given.at(-1)).toBe('destroyed')
  expect(request.destroyed).toBe(true)
})

test("listeners run in the caller's context, and in the app's own storage, over connections that others opened", async () => {
  record()
  const { url } = await served()
  traced()
  const storage = new AsyncLocalStorage<string>()
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  const call = (name: string) =>
    storage.run(name, () =>
      span(name, async (caller) => {
        const seen = new Set<unknown>()
        const look = () => {
          seen.add(storage.getStore())
          seen.add(trace.getActiveSpan())
        }
        const request = http.get(url, { agent }, (response) => {
          look()
          for (const event of ['data', 'end', 'close']) response.on(event, look)
        })
        for (const event of ['socket', 'response', 'close']) request.on(event, look)
        await once(request, 'close')
        expect([...seen]).toEqual([name, caller])
      }),
    )
  await Promise.all(['a', 'b', 'c'].map(call))
  agent.destroy()
})

test('a request that is not sampled is given a header, and is not watched', async () => {
  record({ sampling: 0 })
  const { url } = await served()
  const keysOf = async () => {
    const request = http.request(url)
    const keys = Reflect.ownKeys(request)
    const response = new Promise<http.IncomingMessage>((resolve) => request.on('response', resolve))
    request.end()
    return { keys, ofResponse: Reflect.ownKeys((await response).resume()) }
  }
  await keysOf()
  const bare = await keysOf()
  traced()
  const { keys, ofResponse } = await keysOf()
  expect(keys.filter((key) => !bare.keys.includes(key))).toEqual(['_implicitHeader'])
  expect(ofResponse).toEqual(bare.ofResponse)
})

describe('what Node refuses is refused in its own words', () => {
  test.each<[string, () => unknown]>([
    ['a path', () => http.get({ path: '/a b' })],
    ['a protocol', () => http.get('ftp://example.com')],
    ['a method', () => http.request({ method: 'a b' })],
    ['a header', () => http.get({ headers: { a: 'b\nc' } })],
    ['a header in a list', () => http.get({ headers: ['a', 'b\nc'] })],
    ['a list of headers', () => http.get({ headers: ['a'] })],
    ['a URL', () => http.get('not one')],
    ['an agent', () => http.get({ agent: 7 as never })],
  ])('%s', (_what, make) => {
    record()
    const refusal = () => {
      try {
        make()
      } catch (error) {
        const { name, message, code } = error as NodeJS.ErrnoException
        return { name, message, code }
      }
      throw new Error('it was accepted')
    }
    const bare = refusal()
    traced()
    expect(refusal()).toEqual(bare)
  })
})

describe('a process dies as before', () => {
  const die = (code: string, isTraced: boolean) => {
    const set = `
      import http from 'node:http'
      import { createServer } from 'node:net'
      ${isTraced ? "import { traceHttp } from '@throughline/http'; traceHttp()" : ''}
      process.on('exit', (code) => console.log('exit', code))
      process.on('uncaughtExceptionMonitor', (error, origin) => console.log(error.message, origin))
    `
    const { status, stdout, signal } = spawnSync(
      process.execPath,
      ['--input-type=module', '-e', set + code],
      {
        cwd: root,
        encoding: 'utf8',
        timeout: 20_000,
        env: { PATH: process.env['PATH'] ?? '', OTEL_TRACES_EXPORTER: 'none' },
      },
    )
    return { status, stdout, signal }
  }

  test.each([
    ['an error that nobody listens for', "http.get({ host: '127.0.0.1', port: 1 })"],
    [
      'a listener that throws',
      `const server = http.createServer((request, response) => response.end('hello'))
       server.listen(0, () => http.get({ port: server.address().port }, () => { throw new Error('of the app') }))`,
    ],
    [
      'a connection that breaks, which nobody listens for',
      `const server = createServer((socket) => socket.end())
       server.listen(0, () => http.get({ port: server.address().port }))`,
    ],
  ])('of %s', (_what, code) => {
    const bare = die(code, false)
    expect(bare).toMatchObject({ status: 1, stdout: expect.stringContaining('uncaughtException') })
    expect(die(code, true)).toEqual(bare)
  })

  test('or does not, and ends when there is nothing to wait for', () => {
    const code = `
      const server = http.createServer((request, response) => response.end('hello'))
      server.listen(0, () => http.get({ port: server.address().port }).on('close', () => server.close()))`
    const bare = die(code, false)
    expect(bare).toMatchObject({ status: 0, signal: null })
    expect(die(code, true)).toEqual(bare)
  })
})
