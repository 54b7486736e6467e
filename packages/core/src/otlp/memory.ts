/**
 * Memory for what is encoded, which is used again. Bytes that wait for a batch to be full live longer than V8's young space
 * looks back, so that without this those of thousands of spans were still there, waiting for the next large collection: 9 MB.
 */

/** What is lent has a power of two of bytes: 64 ordinary spans have 32 KiB, a batch 256 KiB. */
const SMALLEST = 12
const LARGEST = 20
/** What is more than this altogether, after a rush, is given back. */
const MOST_KEPT_BYTES = 2 ** 20

const free: ArrayBufferLike[][] = Array.from({ length: LARGEST + 1 }, () => [])
const lent = new WeakSet<ArrayBufferLike>()
let kept = 0

/** So many bytes, with what was left in them. */
export function borrow(size: number): Uint8Array {
  const power = Math.max(SMALLEST, 32 - Math.clz32(size - 1))
  if (power > LARGEST) return Buffer.allocUnsafeSlow(size)
  let memory = free[power]?.pop()
  if (memory === undefined) memory = Buffer.allocUnsafeSlow(2 ** power).buffer
  else kept -= memory.byteLength
  lent.add(memory)
  return new Uint8Array(memory, 0, size)
}

/** For what nobody will read or write any more. What was not borrowed, or has been given back, is left alone. */
export function giveBack({ buffer }: Uint8Array): void {
  if (!lent.delete(buffer)) return
  const { byteLength } = buffer
  // All at once: what is kept may be of sizes that nobody wants any more.
  if (kept + byteLength > MOST_KEPT_BYTES) forget()
  kept += byteLength
  free[Math.log2(byteLength)]?.push(buffer)
}

function forget(): void {
  for (const same of free) same.length = 0
  kept = 0
}
