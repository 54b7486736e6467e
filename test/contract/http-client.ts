import type { HttpClientOptions } from '@throughline/core/http-client'
import { onTestFinished } from 'vitest'
import { describesExchanges } from './http-client/attributes.ts'
import type { Contract, HttpClientUnderTest, OpenClient } from './http-client/client.ts'
import { endsWithTheLastByte } from './http-client/ends.ts'
import { carriesOneTrace } from './http-client/headers.ts'
import { takesOptions } from './http-client/options.ts'
import { findsTheCaller } from './http-client/parents.ts'

export * from './http-client/client.ts'

/**
 * What every client of HTTP promises, beside what all clients do. A test gets a client of its own, and a server of its own
 * that it reads on.
 */
export function httpClientContract(name: string, { scope, open, gaps = {} }: HttpClientUnderTest): void {
  async function opened(options: HttpClientOptions | undefined): Promise<OpenClient['ask']> {
    const client = await open(options)
    onTestFinished(() => client.close() as void)
    return (asking) => client.ask(asking)
  }

  const contract: Contract = {
    name,
    scope,
    gaps,
    traced: (options = {}) => opened(options),
    untraced: () => opened(undefined),
  }
  carriesOneTrace(contract)
  endsWithTheLastByte(contract)
  takesOptions(contract)
  findsTheCaller(contract)
  // Last, for it leaves new copies of all our modules behind.
  describesExchanges(contract)
}
