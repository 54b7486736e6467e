import { randomFillSync } from 'node:crypto'

/** One call of the system's generator for 8 KiB costs less than two for 8 bytes. */
const POOL_BYTES = 8192

const pool = Buffer.allocUnsafe(POOL_BYTES)
let digits = ''
let used = 0

/** @param {number} count */
function take(count) {
  if (used + count > digits.length) {
    digits = randomFillSync(pool).toString('hex')
    used = 0
  }
  return digits.slice(used, (used += count))
}

/** 32 hex digits. */
export const newTraceId = () => take(32)

/** 16 hex digits. */
export const newSpanId = () => take(16)
