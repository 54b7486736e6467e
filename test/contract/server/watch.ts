import { context, diag, propagation, trace } from '@opentelemetry/api'
import type { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import type { ReadableSpan } from '@throughline/core'
import { expect, onTestFinished } from 'vitest'
import type { Recording } from '../../recording.ts'

/** The one span that there is, and nothing more. */
export async function theOnly(recording: Recording): Promise<ReadableSpan> {
  const [span] = await recording.all(1)
  // What else there might be has ended by then: it would have been ended by the same event.
  await turn()
  expect(recording.spans.map((each) => each.name)).toHaveLength(1)
  return span as ReadableSpan
}

/** Something that a handler tells the test, or the test a handler. */
export function signal<T = void>(): { readonly given: Promise<T>; give(value: T): void } {
  let give = (_value: T): void => {}
  const given = new Promise<T>((resolve) => {
    give = resolve
  })
  return { given, give: (value) => give(value) }
}

export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** What is reported from here to the end of the test. */
export function complaints(): string[] {
  const said: string[] = []
  const note = (message: string) => void said.push(message)
  const silent = () => {}
  diag.setLogger(
    { error: note, warn: note, info: silent, debug: silent, verbose: silent },
    { suppressOverrideMessage: true },
  )
  onTestFinished(() => diag.disable())
  return said
}

/** Puts an official SDK in charge until the end of the test. */
export function register(provider: NodeTracerProvider): void {
  provider.register()
  onTestFinished(async () => {
    trace.disable()
    context.disable()
    propagation.disable()
    await provider.shutdown()
  })
}
