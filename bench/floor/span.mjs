import { newSpanId } from './ids.mjs'

/** OTLP's numbers. */
export const SERVER = 2
export const CLIENT = 3

/** One operation. Its two times are clock reads; the wall clock is added when it is encoded. */
export class Span {
  /**
   * @param {string} name
   * @param {number} kind
   * @param {string} traceId
   * @param {string} parentId empty for a root
   * @param {number} flags
   * @param {Record<string, string | number | boolean | undefined>} attributes become the span's own
   */
  constructor(name, kind, traceId, parentId, flags, attributes) {
    this.name = name
    this.kind = kind
    this.traceId = traceId
    this.spanId = newSpanId()
    this.parentId = parentId
    this.flags = flags
    this.attributes = attributes
    this.isError = false
    this.start = performance.now()
    this.end = 0
  }

  finish() {
    this.end = performance.now()
    return this
  }
}
