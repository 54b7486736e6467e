/**
 * Puts a method on one object in place of that of its prototype, where the app's enumerations do not see it. Lighter than
 * core's `override`, for objects that live as long as a request: nobody has it undone.
 */
export function hide<T extends object, K extends keyof T>(target: T, key: K, method: T[K]): void {
  Object.defineProperty(target, key, { value: method, writable: true, configurable: true, enumerable: false })
}
