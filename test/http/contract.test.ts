import { traceHttp } from '@throughline/http'
import * as http from 'node:http'
import * as https from 'node:https'
import { expect } from 'vitest'
import { clientContract } from '../contract/client.ts'
import { answerTo, authority, close, listen } from './served.ts'

const PATH = '/stock?sig=s3cret'
const DURATION = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]

const MEASURED = {
  'http.request.method': 'GET',
  'server.address': '127.0.0.1',
  'server.port': expect.any(Number) as number,
  'network.protocol.version': '1.1',
}

const options = { ca: authority, agent: false } as const

const forms: [string, 'http' | 'https', (url: string) => http.ClientRequest][] = [
  ['http.get', 'http', (url) => http.get(url, options)],
  ['http.request', 'http', (url) => http.request(url, options).end()],
  ['https.get', 'https', (url) => https.get(url, options)],
  ['https.request', 'https', (url) => https.request(url, options).end()],
]

for (const [title, scheme, make] of forms) {
  clientContract<string>(title, {
    isProcessWide: true,
    async open() {
      const { url, server } = await listen(undefined, scheme)
      return { target: url, close: async () => void (await close(server)) }
    },
    trace: (_url, given) => traceHttp(given),
    call: (url) => answerTo(make(url + PATH)),
    callBack(url, done) {
      make(url + PATH).on('response', (response) => {
        let text = ''
        response.on('data', (chunk) => (text += String(chunk)))
        response.on('end', () => done(undefined, text))
      })
    },
    fail: (url) => answerTo(make(`${url}/none`)),
    result: 'hello',
    name: 'GET',
    scope: '@throughline/http',
    attributes: {
      'http.request.method': 'GET',
      'http.response.status_code': 200,
      'server.address': '127.0.0.1',
      'network.peer.address': '127.0.0.1',
      'network.protocol.version': '1.1',
    },
    failure: { type: '404', rejects: false },
    duration: {
      metric: 'http.client.request.duration',
      buckets: DURATION,
      attributes: { ...MEASURED, 'http.response.status_code': 200 },
      failed: { ...MEASURED, 'http.response.status_code': 404 },
    },
    ignoredText: /\/stock/,
    secret: 's3cret',
  })
}
