import { describe, expect, test, vi } from 'vitest'
import { batchProcessor } from '../../packages/core/src/batch.ts'
import { guardedIds } from '../../packages/core/src/ids.ts'
import { report, reportOnce } from '../../packages/core/src/report.ts'
import { engine, finished, said } from './engine.ts'
import { app } from './process.ts'

const FORGING = 'a\n2026-11-30 INFO payment accepted\u001b[2J\u2028\u202e'
const SHOWN = 'a\\u000a2026-11-30 INFO payment accepted\\u001b[2J\\u2028\\u202e'
const LONG = 'x'.repeat(1_000_000)

describe('a name that is made of data', () => {
  test('forges no line where it is said', async () => {
    const reports = said()
    const { tracer } = engine()
    const span = tracer.startSpan(FORGING)
    span.setAttribute(FORGING, new Map() as never)
    span.end()
    span.end()
    const processor = batchProcessor(
      { export: (_spans, done) => done({ code: 0 }), shutdown: async () => {} },
      { scheduledDelayMillis: 1000, exportTimeoutMillis: 1000, maxQueueSize: 10, maxExportBatchSize: 10 },
    )
    await processor.shutdown()
    processor.onEnd(finished(FORGING))
    expect(reports.lines).toEqual([
      expect.stringContaining(`received [object Map] for "${SHOWN}"; for example`),
      `throughline: end() was called on the ended span "${SHOWN}"`,
      `throughline: a span ended after shutdown() and is not exported: "${SHOWN}"`,
    ])
  })

  test('is said as far as a line goes', async () => {
    const reports = said()
    const { tracer } = engine()
    const span = tracer.startSpan(LONG)
    span.setAttribute(LONG, new Map() as never)
    span.end()
    span.end()
    guardedIds({ generateTraceId: () => LONG, generateSpanId: () => '' }).generateTraceId()
    report('warn', `of whatever else: ${LONG}`)
    expect(reports.lines).toEqual([
      expect.stringMatching(/received \[object Map\] for "x{100}…"; for example/),
      expect.stringMatching(/the ended span "x{100}…"$/),
      expect.stringMatching(/no valid id: "x{100}…"$/),
      expect.stringMatching(/^throughline: of whatever else: x{4000,4096}$/),
    ])
  })

  test('is not kept to remember that it was said', async () => {
    const { stdout } = await app(`
      import { reportOnce } from '@throughline/core'
      import { setFlagsFromString } from 'node:v8'
      import { runInNewContext } from 'node:vm'
      setFlagsFromString('--expose-gc')
      const collect = runInNewContext('gc')
      const before = process.memoryUsage().heapUsed
      for (let count = 0; count < 50; count++)
        reportOnce('attribute:' + String(count).padEnd(1_000_000, '-'), 'info', 'left out')
      collect()
      console.log((process.memoryUsage().heapUsed - before) / 1_000_000)
    `).ended
    expect(Number(stdout)).toBeLessThan(10)
  })
})

test('of one kind a hundred are said, however many names there are, and of others as many as ever', () => {
  const reports = said()
  for (let count = 0; count < 150; count += 1) reportOnce(`attribute:${count}`, 'warn', 'left out')
  expect(reports.lines).toHaveLength(100)
  reportOnce('another kind', 'warn', 'left out')
  expect(reports.lines).toHaveLength(101)
})

test('the error that something was reported for is handed over as it is', () => {
  const spy = vi.spyOn(console, 'error').mockImplementation(() => {})
  const error = new Error('of two\nlines')
  said()
  reportOnce('a kind', 'error', 'it failed', error)
  expect(spy.mock.calls).toEqual([['throughline: it failed', error]])
})

test('a logger whose promise is rejected ends no process', async () => {
  const { stdout, stderr, code } = await app(`
    import { diag } from '@opentelemetry/api'
    import { reportOnce } from '@throughline/core'
    const log = async () => { throw new Error('the log service is down') }
    diag.setLogger({ error: log, warn: log, info: log, debug: log, verbose: log })
    reportOnce('a kind', 'error', 'it failed')
    setImmediate(() => console.log('the app lives'))
  `).ended
  expect([stdout, stderr, code]).toEqual(['the app lives', '', 0])
})

test('what nobody reads on stderr ends no app, as often as something is said', async () => {
  const { ended, printed, deafen, kill } = app(`
    import { reportOnce } from '@throughline/core'
    const alive = setInterval(() => {}, 1000)
    process.once('SIGUSR2', () => {
      for (const key of ['one', 'two']) reportOnce(key, 'error', 'it failed')
      setTimeout(() => {
        reportOnce('three', 'error', 'it failed')
        setTimeout(() => console.log('the app lives', process.stderr.listenerCount('error')), 10)
        clearInterval(alive)
      }, 10)
    })
    console.log('ready')
  `)
  await printed('ready')
  deafen('stderr')
  kill('SIGUSR2')
  expect(await ended).toMatchObject({ code: 0, stdout: 'ready\nthe app lives 0' })
})

test('spans that nobody reads on stdout end no app, and it is said that they are lost', async () => {
  const { ended, printed, deafen, kill } = app(
    `
    import { flush, span } from '@throughline/core'
    const alive = setInterval(() => {}, 1000)
    process.once('SIGUSR2', async () => {
      for (const name of ['one', 'two']) span(name, () => {})
      await flush()
      span('three', () => {})
      await flush()
      setImmediate(() => console.error('the app lives', process.stdout.listenerCount('error')))
      clearInterval(alive)
    })
    console.log('ready')`,
    { OTEL_TRACES_EXPORTER: 'console' },
  )
  await printed('ready')
  deafen('stdout')
  kill('SIGUSR2')
  const { code, stderr } = await ended
  expect([code, stderr]).toEqual([0, expect.stringMatching(/the app lives 0/)])
  expect(stderr.match(/spans cannot be printed on stdout, and are lost/g)).toHaveLength(1)
})
