import type { Attributes } from '@opentelemetry/api'

/** Who made the spans; the shape of the official SDK's Resource. */
export interface Resource {
  readonly attributes: Attributes
  readonly schemaUrl?: string | undefined
}
