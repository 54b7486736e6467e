import { trace } from '@opentelemetry/api'
import { span } from '@throughline/core'
import { describe, expect, test } from 'vitest'
import { record } from '../../recording.ts'
import { read, served, traceparentOf, valuesOf, type Contract } from './client.ts'

/** Whose child the span of a request is. */
export function findsTheCaller({ name, traced }: Contract): void {
  describe(`${name}: the parent of a request`, () => {
    test('is the span of its caller for each of a hundred in different traces', async () => {
      const recording = record()
      const { url, requests } = await served()
      const ask = await traced()
      const callers = Array.from({ length: 100 }, (_, index) => `caller ${index}`)
      await Promise.all(
        callers.map((caller) => span(caller, () => read(ask({ url: `${url}/${caller.slice(7)}` })))),
      )

      const spans = await recording.all(200)
      for (const caller of callers) {
        const made = spans.find((each) => each.name === caller)?.spanContext()
        const [call, ...others] = spans.filter((each) => each.parentSpanContext?.spanId === made?.spanId)
        expect(others).toEqual([])
        expect(call?.spanContext().traceId).toBe(made?.traceId)
        const request = requests.find((each) => each.url === `/${caller.slice(7)}`)
        expect(valuesOf(request as never, 'traceparent')).toEqual([traceparentOf(call)])
      }
    })

    test('is the span of its caller on a connection that another has opened', async () => {
      const recording = record()
      const { url } = await served()
      const ask = await traced()
      for (const caller of ['first', 'second', 'third']) await span(caller, () => read(ask({ url })))
      const spans = await recording.all(6)
      const ids = (name: string) =>
        spans.filter((each) => each.name === name).map((each) => each.spanContext().spanId)
      const parents = spans
        .filter((each) => each.name === 'GET')
        .map((each) => each.parentSpanContext?.spanId)
      expect(parents).toEqual([...ids('first'), ...ids('second'), ...ids('third')])
    })

    test('is current again for what follows a request, its headers and its body', async () => {
      record()
      const { url } = await served()
      const ask = await traced()
      await span('caller', async (caller) => {
        const answer = await ask({ url })
        expect(trace.getActiveSpan()).toBe(caller)
        await answer.text()
        expect(trace.getActiveSpan()).toBe(caller)
      })
    })
  })
}
