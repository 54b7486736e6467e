import { flush, span, start } from '@throughline/core'
import { traceHttp } from '@throughline/http'
import { traceUndici } from '@throughline/undici'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { spawn } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import http from 'node:http'
import https from 'node:https'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { root } from '../source.ts'
import { traceparents } from '../contract/http-client.ts'
import { answerTo, served, traced } from './served.ts'

const modules = { http, https, agents: http.Agent.prototype, sockets: https.Agent.prototype }

function propertiesOf(target: object) {
  return Reflect.ownKeys(target).map((key) => [key, Object.getOwnPropertyDescriptor(target, key)])
}

test('what stop leaves behind is what was there, in the same order', () => {
  const before = Object.values(modules).map(propertiesOf)
  const keys = Object.values(modules).map((target) => Object.keys(target))
  const stop = traceHttp()
  // What copies the module, as mocks do, has all of it.
  expect(Object.values(modules).map((target) => Object.keys(target))).toEqual(keys)
  stop()
  expect(Object.values(modules).map(propertiesOf)).toEqual(before)
})

test('stop ends what it was given for, once, and tracing can begin again', async () => {
  const recording = record()
  const { url } = await served()
  const first = traceHttp()
  first()
  traced({ attributes: () => ({ 'app.life': 2 }) })
  first()
  await answerTo(http.get(url))
  expect((await recording.all(1))[0]?.attributes).toMatchObject({ 'app.life': 2 })
})

test('a request that is under way when tracing ends has its span all the same', async () => {
  const recording = record()
  const { url } = await served()
  const stop = traceHttp()
  const request = http.request(url)
  stop()
  await answerTo(request.end())
  const [call] = await recording.all(1)
  expect(call?.attributes['http.response.status_code']).toBe(200)
})

test.each(['http', 'https'] as const)(
  'what somebody has put over ours in node:%s meanwhile stays when tracing ends, and works',
  async (scheme) => {
    const recording = record()
    const { url } = await served(undefined, scheme)
    const module = modules[scheme] as typeof http
    const options = { rejectUnauthorized: false } as http.RequestOptions
    const stop = traceHttp()
    const before = module.get
    onTestFinished(() => void Object.assign(module, { get: before }))
    const theirs = (...args: unknown[]) => Reflect.apply(before, module, args) as http.ClientRequest
    Object.assign(module, { get: theirs })
    await answerTo(module.get(url, options))
    await recording.all(1)
    stop()
    expect(module.get).toBe(theirs)
    expect(await answerTo(module.get(url, options))).toBe('hello')
    expect(recording.spans).toHaveLength(1)
  },
)

test('what stands in for a request in tests is left alone', async () => {
  const said = vi.spyOn(console, 'error').mockReturnValue()
  record()
  const before = http.get
  onTestFinished(() => void Object.assign(http, { get: before }))
  const mock = new EventEmitter()
  Object.assign(http, { get: () => mock })
  const keys = Reflect.ownKeys(mock)
  traced()
  expect(http.get('http://api.example')).toBe(mock)
  expect(Reflect.ownKeys(mock)).toEqual(keys)
  expect(said).not.toHaveBeenCalled()
})

test('where a library for tests has put a class of its own in place of that of requests, real ones are traced', async () => {
  const said = vi.spyOn(console, 'error').mockReturnValue()
  const recording = record()
  const { url, requests } = await served()
  const { ClientRequest, get } = http
  onTestFinished(() => void Object.assign(http, { ClientRequest, get }))
  // As of nock: it inherits from Node's, and has not been made by that.
  class StandIn extends http.OutgoingMessage {
    static {
      Object.setPrototypeOf(this.prototype, ClientRequest.prototype)
    }
  }
  const mock = new StandIn()
  const mocked = (to: string) => (to.includes('mock.example') ? mock : get(to))
  Object.assign(http, { ClientRequest: StandIn, get: mocked })
  const keys = Reflect.ownKeys(mock)
  traced({ urlTemplate: () => undefined })
  expect(http.get('http://mock.example')).toBe(mock)
  expect(Reflect.ownKeys(mock)).toEqual(keys)
  await answerTo(http.get(url))
  await recording.all(1)
  expect(requests.map((each) => traceparents(each).length)).toEqual([1])
  expect(said).not.toHaveBeenCalled()
})

test('two copies of this package make one span of a request, and each ends only what it has begun', async () => {
  const recording = record()
  const { url, requests } = await served()
  traced()
  vi.resetModules()
  const copy = await import('@throughline/http')
  expect(copy.traceHttp).not.toBe(traceHttp)
  onTestFinished(copy.traceHttp())
  await answerTo(http.get(url))
  await recording.all(1)
  expect(traceparents(requests[0])).toHaveLength(1)
})

test('beside traceUndici each request is one span of its own client', async () => {
  const recording = record()
  const { url, requests } = await served()
  traced()
  onTestFinished(traceUndici())
  await span('caller', async () => {
    await (await fetch(url)).text()
    await answerTo(http.get(url))
  })
  const spans = await recording.all(3)
  expect(spans.map((each) => each.instrumentationScope.name)).toEqual([
    '@throughline/undici',
    '@throughline/http',
    '@throughline/core',
  ])
  expect(requests.map((each) => traceparents(each).length)).toEqual([1, 1])
})

test.each([
  ['ours', (url: string) => ({ endpoint: url })],
  ['the official one', (url: string) => ({ exporter: new OTLPTraceExporter({ url: `${url}/v1/traces` }) })],
])('what an exporter sends, %s, is no span and has no trace', async (_whose, options) => {
  const collector = await served((request, response) => request.resume().on('end', () => response.end()))
  const { url } = await served()
  const tracing = start({ ...(options(collector.url) as object), signals: false })
  onTestFinished(() => tracing.shutdown())
  traced()
  await answerTo(http.get(url))
  await flush()
  // What the first export had left behind would leave with the second.
  await flush()
  await tracing.shutdown()
  expect(collector.requests.map(traceparents)).toEqual([[]])
})

describe('in a process of plain Node', () => {
  const recorded = `
    const spans = []
    const processor = {
      onStart() {},
      onEnd: ({ attributes }) => spans.push(new URL(attributes['url.full']).pathname),
      forceFlush: async () => {},
      shutdown: async () => {},
    }
    start({ spanProcessors: [processor], signals: false })
    const bare = [http.request, http.get, https.request, https.get]
    const done = (request) => new Promise((resolve, reject) =>
      request.on('error', reject).on('response', (response) => response.resume().on('close', resolve)))
    async function main(request, get, now) {
      const url = process.argv[1]
      const secure = { rejectUnauthorized: false }
      const stop = traceHttp()
      await done(request(url + '/request').end())
      await done(get(url + '/get'))
      await done(now().get(url + '/now'))
      await done(now(true).get(process.argv[2] + '/secure', secure))
      stop()
      await done(get(url + '/stopped'))
      const same = [http.request, http.get, https.request, https.get].every((each, index) => each === bare[index])
      console.log(JSON.stringify({ spans, same }))
    }`

  async function run(type: string, code: string): Promise<unknown> {
    const { url } = await served()
    const secure = await served(undefined, 'https')
    const child = spawn(process.execPath, [`--input-type=${type}`, '-e', code, url, secure.url], {
      cwd: root,
      env: {
        PATH: process.env['PATH'] ?? '',
        NODE_OPTIONS: '--disable-warning=ExperimentalWarning --disable-warning=DEP0169',
        NODE_NO_WARNINGS: '1',
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    onTestFinished(() => void child.kill('SIGKILL'))
    let stdout = ''
    child.stdout.on('data', (chunk) => (stdout += String(chunk)))
    const [status] = (await once(child, 'close')) as [number]
    expect(status).toBe(0)
    return JSON.parse(stdout)
  }

  const SEEN = { spans: ['/request', '/get', '/now', '/secure'], same: true }

  test('requests by functions that are imported by name are seen, until tracing ends', async () => {
    const code = `
      import http, { get, request } from 'node:http'
      import https from 'node:https'
      import * as namespace from 'http'
      import * as secureNamespace from 'https'
      import { start } from '@throughline/core'
      import { traceHttp } from '@throughline/http'
      ${recorded}
      await main((...args) => request(...args), (...args) => get(...args), (isSecure) => isSecure ? secureNamespace : namespace)
      if (namespace.get !== http.get || get !== http.get) throw new Error('the names are not what they were')`
    expect(await run('module', code)).toEqual(SEEN)
  })

  test('requests in CommonJS are seen, until tracing ends', async () => {
    const code = `
      const http = require('http')
      const https = require('node:https')
      const { start } = require('@throughline/core')
      const { traceHttp } = require('@throughline/http')
      ${recorded}
      void main((...args) => http.request(...args), (...args) => http.get(...args), (isSecure) => isSecure ? https : http)`
    expect(await run('commonjs', code)).toEqual(SEEN)
  })
})
