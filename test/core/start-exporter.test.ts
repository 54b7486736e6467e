import { flush, span, type SpanProcessor } from '@throughline/core'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { said } from './engine.ts'
import { receiver } from './receiver.ts'
import { started } from './tracing.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

describe('start()', () => {
  test('puts an exporter of others behind our batch, and hands it all that our spans hold', async () => {
    const collector = await receiver()
    const exporter = new OTLPTraceExporter({ url: `${collector.url}/v1/traces` })
    const tracing = started({ exporter, serviceName: 'orders' })
    span('work', { 'order.id': 7 }, (s) => s.addEvent('paid'))
    await tracing.flush()
    expect(collector.spans()).toMatchObject([
      {
        name: 'work',
        attributes: [{ key: 'order.id', value: { intValue: '7' } }],
        events: [{ name: 'paid' }],
      },
    ])
    expect(collector.requests[0]?.headers['traceparent']).toBeUndefined()
  })

  test('puts span processors of others in place of our pipeline', async () => {
    const exporter = new InMemorySpanExporter()
    started({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    span('work', () => {})
    await flush()
    expect(exporter.getFinishedSpans()).toMatchObject([{ name: 'work', resource: { attributes: {} } }])
  })
})

describe('several exporters', () => {
  test('each get all spans', async () => {
    const collector = await receiver()
    vi.stubEnv('OTEL_TRACES_EXPORTER', 'console,otlp')
    const printed = vi.spyOn(console, 'dir').mockImplementation(() => {})
    const tracing = started({ endpoint: collector.url })
    vi.unstubAllEnvs()
    span('one', () => {})
    span('two', () => {})
    await tracing.shutdown()
    expect(printed.mock.calls.map(([object]) => (object as { name: string }).name)).toEqual(['one', 'two'])
    expect(collector.spans().map(({ name }) => name)).toEqual(['one', 'two'])
    printed.mockRestore()
  })

  test('are flushed side by side: one that never answers costs the others neither spans nor time', async () => {
    const reports = said()
    const shut: string[] = []
    const processor = (name: string, forceFlush: () => Promise<void>): SpanProcessor => ({
      onStart() {},
      onEnd() {},
      forceFlush,
      async shutdown() {
        await forceFlush()
        shut.push(name)
      },
    })
    const flushed: string[] = []
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const tracing = started({
      spanProcessors: [
        processor('hangs', () => new Promise(() => {})),
        processor('fails', () => Promise.reject(new Error('cannot'))),
        processor('throws', () => {
          throw new Error('cannot')
        }),
        processor('works', async () => void flushed.push('works')),
      ],
    })
    const flushing = tracing.flush()
    expect(flushed).toEqual(['works'])
    vi.advanceTimersByTime(5000)
    await flushing
    const stopping = tracing.shutdown()
    await vi.waitFor(() => expect(shut).toEqual(['works']))
    vi.advanceTimersByTime(5000)
    await stopping
    vi.useRealTimers()
    expect(reports.lines).toEqual(['throughline: the spans could not all be sent within 5000 ms'])
  })

  test('none of them is what OTEL_TRACES_EXPORTER=none says: spans are made, and nobody gets them', async () => {
    const collector = await receiver()
    vi.stubEnv('OTEL_TRACES_EXPORTER', 'none')
    const tracing = started({ endpoint: collector.url })
    vi.unstubAllEnvs()
    span('work', (s) => expect(s.isRecording()).toBe(true))
    await tracing.shutdown()
    expect(collector.requests).toHaveLength(0)
  })
})

test.each(['the environment', 'the code'])(
  'certificates that %s names are used: the collector is trusted, and knows who sends',
  async (by) => {
    const pem = (name: string) => fileURLToPath(new URL(`certificates/${name}.pem`, import.meta.url))
    const senders: unknown[] = []
    const collector = https.createServer(
      {
        key: readFileSync(pem('collector.key')),
        cert: readFileSync(pem('collector')),
        ca: readFileSync(pem('authority')),
        requestCert: true,
      },
      (request, response) => {
        senders.push((request.socket as TLSSocket).getPeerCertificate().subject.CN)
        request.resume().on('end', () => response.end())
      },
    )
    await once(collector.listen(0, '127.0.0.1'), 'listening')
    onTestFinished(() => {
      collector.closeAllConnections()
      collector.close()
    })
    const endpoint = `https://127.0.0.1:${(collector.address() as AddressInfo).port}`
    const [ca, cert, key] = [pem('authority'), pem('app'), pem('app.key')]
    const tls = { ca: readFileSync(ca), cert: readFileSync(cert, 'utf8'), key: readFileSync(key) }
    if (by === 'the environment') {
      vi.stubEnv('OTEL_EXPORTER_OTLP_ENDPOINT', endpoint)
      vi.stubEnv('OTEL_EXPORTER_OTLP_CERTIFICATE', ca)
      vi.stubEnv('OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE', cert)
      vi.stubEnv('OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY', key)
    }
    const reports = said()
    const tracing = started(by === 'the code' ? { endpoint, tls } : {})
    vi.unstubAllEnvs()
    span('work', () => {})
    await tracing.shutdown()
    expect(senders).toEqual(['app'])
    expect(reports.lines).toEqual([])
  },
)
