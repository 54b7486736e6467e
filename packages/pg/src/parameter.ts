import { semconv, type Attributes } from '@throughline/core'

/** Adds `db.query.parameter.0` and so on: each value as text, as it was given. */
export function addParameters(attributes: Attributes, values: readonly unknown[]): void {
  for (const [index, value] of values.entries())
    attributes[`${semconv.DB_QUERY_PARAMETER}${index}`] = textOf(value)
}

function textOf(value: unknown): string {
  try {
    if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString('hex')}`
    if (value instanceof Date) return value.toISOString()
    if (typeof value === 'object' && value !== null) return JSON.stringify(value) ?? ''
    return String(value)
  } catch {
    return 'a value without text'
  }
}
