// In place of `node:timers`, for tests that make time pass: `vi.mock('node:timers', () => import('../app-timers.ts'))`. Ours
// are those of Node whatever an app has put in the place of its own, and vitest moves those of the app alone.

export function setTimeout(work: () => void, milliseconds: number): NodeJS.Timeout {
  return globalThis.setTimeout(work, milliseconds)
}

export function clearTimeout(timer: NodeJS.Timeout | undefined): void {
  globalThis.clearTimeout(timer)
}

export function setInterval(work: () => void, milliseconds: number): NodeJS.Timeout {
  return globalThis.setInterval(work, milliseconds)
}

export function clearInterval(timer: NodeJS.Timeout | undefined): void {
  globalThis.clearInterval(timer)
}

export function setImmediate(work: () => void): NodeJS.Immediate {
  return globalThis.setImmediate(work)
}

export function clearImmediate(immediate: NodeJS.Immediate | undefined): void {
  globalThis.clearImmediate(immediate)
}
