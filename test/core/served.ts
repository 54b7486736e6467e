import { traceRequest, type ReceivingOptions } from '@throughline/core'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { onTestFinished } from 'vitest'
import { ask, listening, type Serving } from '../contract/server.ts'
import { record } from '../recording.ts'

export type Listener = (request: IncomingMessage, response: ServerResponse) => unknown
export type Options = ReceivingOptions<IncomingMessage, [IncomingMessage, ServerResponse]>

/** A server, for the test alone. */
export async function serve(listener: Listener): Promise<Serving> {
  const serving = await listening(createServer((request, response) => void listener(request, response)))
  onTestFinished(() => serving.close())
  return serving
}

/** The one span of one request that this listener answers, inside `traceRequest`. */
export async function spanOf(listener: Listener, options?: Options) {
  const recording = record()
  const serving = await serve((request, response) =>
    traceRequest(request, response, () => listener(request, response), options),
  )
  await ask(serving, '/')
  const [span] = await recording.all(1)
  if (span === undefined) throw new Error('there is no span')
  return span
}
