import type { ReadableSpan } from '@throughline/core'
import { afterEach } from 'vitest'
import { record } from '../recording.ts'
import type { Adapter, App, Handler, Options, Serving } from './server/app.ts'
import { ask, type Asking } from './server/client.ts'
import { keepsContext } from './server/context.ts'
import { sparesTheApp } from './server/host.ts'
import { endsWithRequests } from './server/life.ts'
import { measuresRequests } from './server/metrics.ts'
import { namesRequests } from './server/names.ts'
import { takesOptions } from './server/options.ts'
import { describesRequests } from './server/span.ts'
import { continuesTraces } from './server/trace.ts'
import { trustsProxies } from './server/trust.ts'
import { theOnly } from './server/watch.ts'

export { listening } from './server/app.ts'
export type { Adapter, App, Exchange, Gaps, Handler, Options, Routes, Serving } from './server/app.ts'
export { ask, raw, type Answer, type Asking } from './server/client.ts'

/** What every adapter that receives requests promises. */
export function serverContract(name: string, { serve, gaps = {} }: Adapter): void {
  const open: Serving[] = []

  async function served(
    app: App | Handler,
    options: Options = {},
    mounts = 1,
    later = options,
  ): Promise<Serving> {
    const serving = await serve(
      typeof app === 'function' ? { routes: { 'GET /': app, 'POST /': app } } : app,
      options,
      mounts,
      later,
    )
    open.push(serving)
    return serving
  }

  afterEach(async () => {
    await Promise.all(open.splice(0).map((serving) => serving.close()))
  })

  async function spanOf(
    app: App | Handler,
    path = '/',
    asking: Asking = {},
    options: Options = {},
  ): Promise<ReadableSpan> {
    const recording = record()
    await ask(await served(app, options), path, asking)
    return theOnly(recording)
  }

  const contract = { name, gaps, served, spanOf }
  describesRequests(contract)
  namesRequests(contract)
  endsWithRequests(contract)
  continuesTraces(contract)
  keepsContext(contract)
  takesOptions(contract)
  trustsProxies(contract)
  measuresRequests(contract)
  // Last, for it leaves a new copy of all our modules behind.
  sparesTheApp(contract)
}
