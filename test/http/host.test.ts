import { EventEmitter, once } from 'node:events'
import * as http from 'node:http'
import { expect, test, vi } from 'vitest'
import { record } from '../recording.ts'
import { served, traced } from './served.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

test('an agent that hands on a host and a port, as older ones do, goes where it went', async () => {
  const recording = record()
  const { url, port } = await served()
  class Older extends http.Agent {
    addRequest(request: http.ClientRequest): void {
      const { addRequest } = http.Agent.prototype as unknown as {
        addRequest(request: http.ClientRequest, host: string, port: number): void
      }
      addRequest.call(this, request, '127.0.0.1', port)
    }
  }
  traced()
  const asked = http.get(url, { agent: new Older(), headers: { host: 'service' } })
  const [response] = (await once(asked, 'response')) as [http.IncomingMessage]
  await once(response.resume(), 'end')
  const [call] = await recording.all(1)
  expect(call?.attributes).toMatchObject({ 'server.port': port, 'http.response.status_code': 200 })
})

test('what the app destroys because it takes too long is an error', async () => {
  const recording = record()
  const { url } = await served(() => {})
  traced()
  const asked = http.get(url, { agent: false })
  asked.setTimeout(20, () => asked.destroy())
  await expect(once(asked, 'close')).rejects.toThrow('socket hang up')
  const [call] = await recording.all(1)
  expect(call?.status).toEqual({ code: 2, message: 'the request timed out' })
  expect(call?.attributes['error.type']).toBe('ETIMEDOUT')
})

test('a body that goes on to come is not taken for one that nobody reads', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
  try {
    const recording = record()
    const arrived = new EventEmitter()
    const { url } = await served((_request, response) => {
      response.write('0')
      arrived.emit('response', response)
    })
    traced()
    const asked = http.get(url, { agent: false })
    const [answering] = (await once(arrived, 'response')) as [http.ServerResponse]
    const [response] = (await once(asked, 'response')) as [http.IncomingMessage]
    await once(response, 'data')
    for (let count = 1; count <= 8; count += 1) {
      vi.advanceTimersByTime(10_000)
      answering.write(`${count}`)
      await once(response, 'data')
    }
    expect(recording.spans).toEqual([])
    answering.end()
    await once(response, 'end')
    const [call] = await recording.all(1)
    expect(call?.duration[0]).toBeGreaterThanOrEqual(80)
  } finally {
    vi.useRealTimers()
  }
})
