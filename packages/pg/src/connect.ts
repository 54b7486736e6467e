import { Call, semconv, type Attributes, type Context } from '@throughline/core'
import { serverOf, SYSTEM, type Connected } from './connection.ts'
import { failureType, maskedMessage, sqlStateOf } from './failure.ts'
import type { Tracing } from './options.ts'

/** What the span is named after: the call of the app. */
const NAME = 'pool.connect'

/** The app waits for a connection of a pool. */
class ConnectCall extends Call<[], []> {
  readonly #send: NonNullable<Tracing['connects']>
  #client: Connected | undefined

  constructor(send: NonNullable<Tracing['connects']>, caller: Context, client: Connected | undefined) {
    super(caller)
    this.#send = send
    this.#client = client
  }

  override name(): string {
    return NAME
  }

  override subject(): [] {
    return []
  }

  override outcome(): [] {
    return []
  }

  protected override build(): Attributes {
    return { [semconv.DB_SYSTEM_NAME]: SYSTEM, ...serverOf(this.#client) }
  }

  end(error: unknown, client?: unknown): void {
    if (error) {
      const status = sqlStateOf(error)
      if (status !== undefined) this.span.setAttribute(semconv.DB_RESPONSE_STATUS_CODE, status)
      this.#send.fail(this, failureType(error), maskedMessage(error))
      return
    }
    if (client !== this.#client) this.span.setAttributes(serverOf(client as Connected))
    this.#send.succeed(this)
  }
}

/** Begins the span of a `pool.connect()`; undefined where the app wants none. */
export function beginConnect(tracing: Tracing, client: Connected | undefined): ConnectCall | undefined {
  const send = tracing.connects
  const caller = send?.caller()
  if (send === undefined || caller === undefined) return undefined
  const call = new ConnectCall(send, caller, client)
  return send.begin(call) ? call : undefined
}
