/**
 * Reusable memory for encoded spans. Bytes waiting for a full batch outlive V8's young space; without reuse thousands of spans'
 * worth would wait for the next major collection: 9 MB.
 */

/** Exponents of the sizes lent, all powers of two in bytes: 64 ordinary spans take 32 KiB, a batch 256 KiB. */
const SMALLEST = 12
const LARGEST = 20
/** Above this total, after a burst, the free memory is released. */
const MOST_KEPT_BYTES = 2 ** 20

const free: ArrayBufferLike[][] = Array.from({ length: LARGEST + 1 }, () => [])
const lent = new WeakSet<ArrayBufferLike>()
let kept = 0

/** A memory of this many bytes, not cleared. */
export function borrow(size: number): Uint8Array {
  const power = Math.max(SMALLEST, 32 - Math.clz32(size - 1))
  if (power > LARGEST) return Buffer.allocUnsafeSlow(size)
  let memory = free[power]?.pop()
  if (memory === undefined) memory = Buffer.allocUnsafeSlow(2 ** power).buffer
  else kept -= memory.byteLength
  lent.add(memory)
  return new Uint8Array(memory, 0, size)
}

/** For memory that nobody will read or write any more. Ignores what was not borrowed or is already given back. */
export function giveBack({ buffer }: Uint8Array): void {
  if (!lent.delete(buffer)) return
  const { byteLength } = buffer
  // All at once: the kept sizes may no longer be needed.
  if (kept + byteLength > MOST_KEPT_BYTES) forget()
  kept += byteLength
  free[Math.log2(byteLength)]?.push(buffer)
}

function forget(): void {
  for (const same of free) same.length = 0
  kept = 0
}
