/** `00-<32 hex>-<16 hex>-<2 hex>` */
const LENGTH = 55
const DASH = 45
const NO_TRACE = '0'.repeat(32)
const NO_SPAN = '0'.repeat(16)

// 1 for the digits of lower-case hexadecimal.
const HEX = new Uint8Array(128)
for (const digit of '0123456789abcdef') HEX[digit.charCodeAt(0)] = 1

/**
 * A `traceparent` of version 00, checked; undefined for any other text.
 *
 * @param {unknown} header
 * @returns {{ traceId: string, spanId: string, flags: number } | undefined}
 */
export function parseTraceparent(header) {
  if (typeof header !== 'string' || header.length !== LENGTH) return undefined
  if (header.charCodeAt(0) !== 48 || header.charCodeAt(1) !== 48) return undefined
  if (header.charCodeAt(2) !== DASH || header.charCodeAt(35) !== DASH || header.charCodeAt(52) !== DASH)
    return undefined
  for (let index = 3; index < LENGTH; index++) {
    if (HEX[header.charCodeAt(index)] !== 1 && index !== 35 && index !== 52) return undefined
  }
  const traceId = header.slice(3, 35)
  const spanId = header.slice(36, 52)
  if (traceId === NO_TRACE || spanId === NO_SPAN) return undefined
  const high = header.charCodeAt(53)
  const low = header.charCodeAt(54)
  return {
    traceId,
    spanId,
    flags: ((high > 57 ? high - 87 : high - 48) << 4) | (low > 57 ? low - 87 : low - 48),
  }
}

/** @param {{ traceId: string, spanId: string, flags: number }} of */
export function formatTraceparent({ traceId, spanId, flags }) {
  return `00-${traceId}-${spanId}-${(flags & 1) === 1 ? '01' : '00'}`
}
